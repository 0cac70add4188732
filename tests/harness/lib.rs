//! What the tests share: model references, load plans, requests.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "whoever started the supervisor reads it")]

pub mod cgroups;
pub mod hostile;
pub mod link;
pub mod script;
pub mod toy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ollmlx_proto::{
    CacheSalt, Capability, Chat, ContentPart, Format, Limits, LoadSpec, MemoryModel, MemoryReport, Message, ModelCard,
    ModelId, Request, RequestId, ResumePoint, Role, Sampling, ThinkMode, UnixSeconds, Work,
};
use ollmlx_supervisor::catalog::{Backend, Details, ModelRef};
use ollmlx_supervisor::driver::DriverConfig;
use ollmlx_supervisor::os::sandbox::{Launcher, Policy};
use ollmlx_supervisor::types::TicketItem;
use ollmlx_supervisor::types::{Job, LoadPlan, Terms};

/// A model whose id is derived from its name and whose weights are this file.
#[must_use]
pub fn model(name: &str, weights: PathBuf) -> Arc<ModelRef> {
    let card = ModelCard {
        format: "gguf".to_owned(),
        architecture: "fake".to_owned(),
        parameter_count: 1,
        quantization: "F16".to_owned(),
        context_length: 4096,
        embedding_length: 8,
        block_count: 1,
        vocab_size: 16,
        weight_bytes: 1,
        memory: MemoryModel::default(),
        chat_template: None,
        chat_template_fault: None,
        builtin_template: None,
        capabilities: vec![Capability::Completion],
        metadata: "{}".to_owned(),
        tensors: Vec::new(),
    };
    Arc::new(ModelRef {
        id: id(name),
        name: name.to_owned(),
        full_name: name.to_owned(),
        backend: Backend::Gguf,
        weights: vec![weights],
        adapters: Vec::new(),
        card: Arc::new(card),
        capabilities: vec![Capability::Completion],
        template: None,
        system: None,
        params: serde_json::Map::new(),
        messages: Vec::new(),
        licenses: Vec::new(),
        digest: String::new(),
        size_bytes: 1,
        modified_at: SystemTime::UNIX_EPOCH,
        details: Details::default(),
        parent: String::new(),
    })
}

/// 64 hexadecimal digits made of a name.
#[must_use]
pub fn id(name: &str) -> ModelId {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    ModelId(format!("{hex:0<64}").chars().take(64).collect())
}

/// A plan for two slots.
#[must_use]
pub fn plan(model: &Arc<ModelRef>, context_tokens: u32, bytes: u64) -> LoadPlan {
    LoadPlan {
        model: model.clone(),
        spec: LoadSpec {
            weights: model.weights.clone(),
            slots: 2,
            context_tokens,
            batch_tokens: 512,
            threads: 1,
            kv_type: "f16".to_owned(),
            ..LoadSpec::default()
        },
        memory: MemoryReport { weights: bytes, kv: 0, compute: 0 },
        terms: Terms::default(),
    }
}

/// A chat request.
#[must_use]
pub fn request(id: u64, text: &str) -> Box<Request> {
    let message = Message {
        role: Role::User,
        content: vec![ContentPart::Text(text.to_owned())],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    };
    Box::new(Request {
        id: RequestId(id),
        work: Work::Chat(Chat {
            messages: vec![message],
            tools: Vec::new(),
            think: ThinkMode::Unset,
            template: None,
            single_turn: false,
            context: Vec::new(),
            suffix: None,
            render_only: false,
        }),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        format: Format::Text,
        limits: Limits { max_tokens: None, context_tokens: 4096, truncate: true, shift: false, keep_tokens: 0 },
        logprobs: None,
        asked_at: UnixSeconds::default(),
        cache_salt: CacheSalt::default(),
        progress: ResumePoint::default(),
    })
}

/// Makes a folder of worker programs that are all this one.
///
/// # Panics
/// The disk is full.
pub fn link_workers(folder: &Path, program: &Path) {
    for backend in ["gguf", "mlx"] {
        let link = folder.join(format!("ollmlx-worker-{backend}"));
        std::os::unix::fs::symlink(program, link).expect("a writable folder");
    }
}

/// For a program that lies beside the server.
///
/// # Panics
/// It has no path.
#[must_use]
pub fn launcher_beside() -> Launcher {
    let own = std::env::current_exe().expect("a program has a path");
    Launcher::new(Policy::Off, own.with_file_name("server"))
}

/// A supervisor with one running request, until it is killed.
///
/// # Panics
/// Something does not work.
pub fn supervise(folder: PathBuf, script: PathBuf) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = DriverConfig {
            worker_dir: Some(folder.clone()),
            launcher: launcher_beside(),
            runtime_dir: Some(folder),
            ..DriverConfig::default()
        };
        let (handle, _driver) = ollmlx_supervisor::driver::start(config).await.expect("a driver");
        let model = model("supervised", script);
        let mut ticket = handle.submit(Job::Run(request(1, "")), plan(&model, 2048, 1), None).await;
        while let Some(item) = ticket.next().await {
            if matches!(item, TicketItem::Output(_)) {
                println!("running");
            }
        }
    });
}
