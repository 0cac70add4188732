//! From a load order to a warmed-up engine.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel, RopeType};
use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};
use ollmlx_proto::limits::{BATCH_TOKENS_MAX, CONTEXT_TOKENS_MIN, SLOTS_MAX};
use ollmlx_proto::{Failure, FailureKind, LoadSpec, MemoryReport, SlotId};
use ollmlx_worker_kit::chat::ChatSource;
use ollmlx_worker_kit::engine::{Engine as _, EngineFacts, LoadProgress, SlotInput};

use super::embed::{Embedder, Pooling, Whole};
use super::slots::{Abilities, Slots};
use super::{Generator, GgufEngine, vocab};
use crate::cpu::{self, Runtime};
use crate::ffi;
use crate::gguf::Header;
use crate::gguf::kv_cost::kv_cost;
use crate::gguf::shards::Model;
use crate::memory::{
    CELLS_MULTIPLE, EMBED_CHUNK_TOKENS, EMBED_TOKENS_MAX, Kind, Layout, MICRO_BATCH_TOKENS, looks_both_ways,
    memory_model,
};

/// Where the order does not say how many tokens a forward pass has.
const BATCH_TOKENS: u32 = 512;
/// Progress reports under way; one that finds no room is dropped.
const PROGRESS_QUEUE_LEN_MAX: usize = 16;
/// What the order and the model say together.
struct Plan {
    slots: u16,
    context_tokens: u32,
    batch_tokens: u32,
    threads: i32,
    kv_type: KvCacheType,
    kind: Kind,
    offload: bool,
    layout: Layout,
}

/// Loads a model and computes one token with it.
///
/// # Errors
/// Its files are damaged, llama.cpp refuses them, or the progress callback said no.
pub fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<GgufEngine, Failure> {
    load_as(spec, progress, None)
}

/// The same with a given layout.
pub(super) fn load_as(
    spec: &LoadSpec,
    progress: LoadProgress<'_>,
    layout: Option<Layout>,
) -> Result<GgufEngine, Failure> {
    let files = Model::read(&spec.weights)?;
    let runtime = cpu::start(&spec.cpu_level)?;
    let mut plan = plan(spec, &files, runtime)?;
    plan.layout = layout.unwrap_or(plan.layout);
    // What was logged before is not about this model.
    drop(ffi::take_errors());
    let mut model = load_weights(runtime, &files, spec, progress)?;
    let adapter = load_adapter(&mut model, &spec.adapters)?;
    let model: &'static LlamaModel = Box::leak(Box::new(model));
    let mut engine = assemble(runtime, model, &files, spec, plan, adapter)?;
    warm_up(&mut engine)?;
    Ok(engine)
}

fn plan(spec: &LoadSpec, files: &Model, runtime: &Runtime) -> Result<Plan, Failure> {
    let header = &files.header;
    let kind = Kind::of(header, spec.embedding);
    // Beyond what the model was trained for, learned positions do not exist and rotary ones mean nothing.
    let trained = header.arch_number("context_length").and_then(|it| u32::try_from(it).ok()).unwrap_or(u32::MAX);
    let mut context_tokens = spec.context_tokens.clamp(CONTEXT_TOKENS_MIN, trained.max(CONTEXT_TOKENS_MIN));
    if kind == Kind::Encoder {
        context_tokens = context_tokens.min(EMBED_TOKENS_MAX);
    }
    let threads = if spec.threads == 0 { cpu::thread_count() } else { spec.threads };
    let asked = if spec.batch_tokens == 0 { BATCH_TOKENS } else { spec.batch_tokens };
    let slots = spec.slots.clamp(1, SLOTS_MAX);
    let offload = spec.gpu_layers != 0 && runtime.backend.supports_gpu_offload();
    Ok(Plan {
        slots,
        context_tokens,
        // A batch holds at least one token of each slot.
        batch_tokens: match kind {
            // Nor do several inputs together take more than one that is as long as can be.
            Kind::Encoder => asked.clamp(1, BATCH_TOKENS_MAX).min(context_tokens),
            Kind::Generator | Kind::Embedder => asked.clamp(slots.into(), BATCH_TOKENS_MAX),
        },
        threads: threads.into(),
        kv_type: kv_type(&spec.kv_type)?,
        kind,
        offload,
        // The inputs of an embedding model share one window.
        layout: if kind == Kind::Generator { Layout::of(files, offload) } else { Layout::Shared },
    })
}

fn kv_type(name: &str) -> Result<KvCacheType, Failure> {
    Ok(match name {
        "" | "f16" => KvCacheType::F16,
        "bf16" => KvCacheType::BF16,
        "f32" => KvCacheType::F32,
        "q8_0" => KvCacheType::Q8_0,
        "q4_0" => KvCacheType::Q4_0,
        _ => {
            let text = format!("unknown key-value cache type {name:?}; known are f16, bf16, f32, q8_0 and q4_0");
            return Err(Failure::new(FailureKind::LoadFailed, text));
        }
    })
}

/// Loads on a thread of its own, because llama.cpp's callback must own what it uses and ours is borrowed.
fn load_weights(
    runtime: &Runtime,
    files: &Model,
    spec: &LoadSpec,
    progress: LoadProgress<'_>,
) -> Result<LlamaModel, Failure> {
    let total = files.weight_bytes();
    let aborted = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::sync_channel::<f32>(PROGRESS_QUEUE_LEN_MAX);
    let callback_aborted = Arc::clone(&aborted);
    let gpu_layers = u32::try_from(spec.gpu_layers).ok();
    let loaded = std::thread::scope(|scope| {
        let loading = scope.spawn(move || {
            let mut params = LlamaModelParams::default().with_progress_callback(move |done| {
                // A full queue means that enough progress is on its way.
                let _ = sender.try_send(done);
                !callback_aborted.load(Ordering::Relaxed)
            });
            if let Some(layers) = gpu_layers {
                params = params.with_n_gpu_layers(layers);
            }
            LlamaModel::load_from_file(&runtime.backend, &files.path, &params)
        });
        // Ends when the callback is dropped, which is when the load ends.
        for done in &receiver {
            let done = (f64::from(done.clamp(0.0, 1.0)) * total as f64) as u64;
            if !progress(done.min(total), total) {
                aborted.store(true, Ordering::Relaxed);
            }
        }
        loading.join()
    });
    if aborted.load(Ordering::Relaxed) {
        return Err(Failure::new(FailureKind::Cancelled, "the load was aborted"));
    }
    match loaded {
        Ok(Ok(model)) => Ok(model),
        Ok(Err(error)) => Err(refused("the model", &files.path, &error.to_string())),
        Err(_) => Err(refused("the model", &files.path, "the loading thread panicked")),
    }
}

/// A failure with llama.cpp's own words, of which the first is the cause and the later ones follow from it.
fn refused(what: &str, path: &Path, error: &str) -> Failure {
    let log = ffi::take_errors();
    let cause = log.first().map_or(error, String::as_str);
    // Its lines begin with the name of a function, and its messages quote paths.
    let cause = cause.split_once(": ").map_or(cause, |(_, rest)| rest).replace(&*path.to_string_lossy(), "the file");
    Failure::new(FailureKind::ModelInvalid, format!("llama.cpp refuses {what}: {cause}")).with_detail(format!(
        "{}: {error}: {}",
        path.display(),
        log.join("; ")
    ))
}

fn load_adapter(model: &mut LlamaModel, paths: &[std::path::PathBuf]) -> Result<Option<LlamaLoraAdapter>, Failure> {
    match paths {
        [] => Ok(None),
        [path] => {
            // Parsed for its damage first, as the model was.
            let header = Header::read(path).map_err(|error| error.into_failure(path))?;
            if header.text("general.type") != Some("adapter") {
                return Err(Failure::new(
                    FailureKind::ModelInvalid,
                    "the adapter is not a GGUF adapter (general.type)",
                ));
            }
            let adapter =
                model.lora_adapter_init(path).map_err(|error| refused("the adapter", path, &error.to_string()))?;
            Ok(Some(adapter))
        }
        several => {
            let text = format!("{} adapters are named; one is possible", several.len());
            Err(Failure::new(FailureKind::Unsupported, text))
        }
    }
}

fn assemble(
    runtime: &'static Runtime,
    model: &'static LlamaModel,
    files: &Model,
    spec: &LoadSpec,
    plan: Plan,
    mut adapter: Option<LlamaLoraAdapter>,
) -> Result<GgufEngine, Failure> {
    let header = &files.header;
    let vocab = Arc::new(vocab::vocab(model, header));
    let no_context = || refused("a context for the model", &files.path, "no context");
    let (mut generator, mut embedder) = (None, Embedder::Parts(pooling(header, plan.kind)));
    if plan.kind == Kind::Encoder {
        let sizes = (plan.context_tokens, plan.threads);
        let whole = Whole::open(runtime, model, sizes, pooling(header, plan.kind)).ok_or_else(no_context)?;
        embedder = Embedder::Whole(whole);
    } else {
        let context = model.new_context(&runtime.backend, context_params(&plan)).map_err(|_| no_context())?;
        generator = Some(Generator {
            batch: LlamaBatch::new(plan.batch_tokens as usize, 1),
            slots: Slots::new(plan.slots, abilities(model, header, plan.layout)),
            logits: Vec::new(),
            vocab_size: vocab.len(),
            batch_tokens: plan.batch_tokens as usize,
            context_tokens: plan.context_tokens as usize,
            context,
        });
        if looks_both_ways(header) {
            // llama.cpp ends the process where such an input is longer than a micro-batch.
            embedder = Embedder::Nothing("this model does not support embeddings");
        }
    }
    if let Some(adapter) = &mut adapter {
        let context = match (&mut generator, &mut embedder) {
            (Some(generator), _) => &mut generator.context,
            (None, Embedder::Whole(whole)) => &mut whole.context,
            (None, Embedder::Parts(_) | Embedder::Nothing(_)) => return Err(no_context()),
        };
        context
            .lora_adapter_set(adapter, 1.0)
            .map_err(|error| Failure::new(FailureKind::LoadFailed, format!("the adapter does not fit: {error}")))?;
    }
    let memory = memory_model(files, plan.layout, plan.offload, plan.kind).estimate(
        plan.slots,
        plan.context_tokens,
        plan.batch_tokens,
        &spec.kv_type,
    );
    let (device, accelerator_bytes) = device(runtime, &plan, spec, header, memory);
    let facts = EngineFacts {
        slots: plan.slots,
        context_tokens: plan.context_tokens,
        batch_tokens: plan.batch_tokens,
        embedding: plan.kind != Kind::Generator,
        device,
        accelerator_bytes,
        vocab,
        chat: ChatSource {
            jinja: header.text("tokenizer.chat_template").map(str::to_owned),
            go: spec.go_template.clone(),
            architecture: header.architecture().to_owned(),
        },
    };
    Ok(GgufEngine { facts, model, generator, embedder, embeddings: None, memory, _adapter: adapter })
}

fn context_params(plan: &Plan) -> LlamaContextParams {
    // A stream is rounded up by itself; llama.cpp warns where it has to do that.
    let window = match plan.layout {
        Layout::Shared => plan.context_tokens,
        Layout::Streams => plan.context_tokens.next_multiple_of(CELLS_MULTIPLE),
    };
    let (windows, micro_batch) = match plan.kind {
        Kind::Generator => (plan.slots, MICRO_BATCH_TOKENS),
        Kind::Embedder | Kind::Encoder => (1, EMBED_CHUNK_TOKENS),
    };
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(u32::from(windows).saturating_mul(window)))
        .with_n_batch(plan.batch_tokens)
        .with_n_ubatch(plan.batch_tokens.min(micro_batch))
        .with_n_seq_max(plan.slots.into())
        .with_n_threads(plan.threads)
        .with_n_threads_batch(plan.threads)
        .with_type_k(plan.kv_type)
        .with_type_v(plan.kv_type)
        .with_kv_unified(plan.layout == Layout::Shared)
        .with_swa_full(false)
        .with_no_perf(true);
    match plan.kind {
        Kind::Generator => params,
        // The engine pools, since a sequence comes in parts.
        Kind::Embedder | Kind::Encoder => params.with_pooling_type(LlamaPoolingType::None),
    }
}

fn pooling(header: &Header, kind: Kind) -> Pooling {
    match header.arch_number("pooling_type").unwrap_or_default() {
        1 => Pooling::Mean,
        2 => Pooling::First,
        3 => Pooling::Last,
        // A model that looks both ways: all tokens know the same. One that looks back: the last knows most.
        _ if kind == Kind::Encoder => Pooling::Mean,
        _ => Pooling::Last,
    }
}

/// What llama.cpp's `llama_memory_can_shift` would say, which can't be asked through the safe crate: no where
/// unsure.
fn abilities(model: &LlamaModel, header: &Header, layout: Layout) -> Abilities {
    let cut = !model.is_recurrent() && !model.is_hybrid();
    let window = header.arch_number("attention.sliding_window").unwrap_or_default();
    let has_window = window > 0 || kv_cost(header).window_tokens > 0;
    let plain_rope = matches!(model.rope_type(), Some(RopeType::Norm | RopeType::NeoX));
    let latent = header.arch("attention.kv_lora_rank").is_some();
    let shift = cut && !has_window && plain_rope && !latent && header.architecture() != "step35";
    let window_tokens = u32::try_from(window.max(kv_cost(header).window_tokens)).unwrap_or(u32::MAX);
    Abilities { shift, cut, window_tokens, layout }
}

fn device(runtime: &Runtime, plan: &Plan, spec: &LoadSpec, header: &Header, memory: MemoryReport) -> (String, u64) {
    let on_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
    let gpu = list_llama_ggml_backend_devices().into_iter().find(|device| plan.offload && on_gpu(device.device_type));
    let Some(gpu) = gpu else { return (cpu::describe(runtime.level), 0) };
    // ggml calls Metal's backend "MTL".
    let name = match gpu.backend.to_lowercase() {
        name if name == "mtl" => "metal".to_owned(),
        name => name,
    };
    let layers = header.arch_number("block_count").unwrap_or_default().saturating_add(1);
    let there = u64::try_from(spec.gpu_layers).map_or(layers, |asked| asked.min(layers));
    let bytes = u128::from(memory.total()) * u128::from(there) / u128::from(layers.max(1));
    (name, u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// One token through the whole model, so that a level or a device that crashes does so now, and the weights are read
/// in.
fn warm_up(engine: &mut GgufEngine) -> Result<(), Failure> {
    let token = engine.facts.vocab.bos.unwrap_or(0);
    let failed = |error| {
        Failure::new(FailureKind::LoadFailed, "the model fails at its first token").with_detail(format!("{error}"))
    };
    if engine.facts.embedding {
        return engine.embed(&[vec![token]]).map(drop).map_err(failed);
    }
    let input = SlotInput { slot: SlotId(0), tokens: &[token], logits: true };
    engine.forward(&[input]).map_err(failed)?;
    if engine.logits(0).iter().any(|logit| logit.is_nan()) {
        return Err(Failure::new(
            FailureKind::ModelInvalid,
            "the model computes no numbers (NaN): its weights are damaged",
        ));
    }
    engine.truncate(SlotId(0), 0);
    Ok(())
}
