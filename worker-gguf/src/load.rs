//! From files to a loaded engine: the header is read and checked first, then llama.cpp loads.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use llama_cpp_2::LlamaModelLoadError;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use ollmlx_proto::limits::{CONTEXT_TOKENS_MAX, SLOTS_MAX};
use ollmlx_proto::{Failure, FailureKind, LoadSpec, ModelCard, TokenId};
use ollmlx_worker_kit::chat::ChatSource;
use ollmlx_worker_kit::engine::{Backend, EngineFacts, LoadProgress};
use ollmlx_worker_kit::vocab::{TokenKind, Vocab};

use crate::engine::{GgufEngine, Shape};
use crate::facts::Facts;
use crate::gguf::{self, Header};
use crate::{cpu, ffi, sanity};

/// How often a load is looked at.
const LOAD_POLL: Duration = Duration::from_millis(50);
/// Parts per unit in which llama.cpp's progress is told.
const PROGRESS_TOTAL: f32 = 10_000.0;
/// "All layers": more than any model has.
const GPU_LAYERS_ALL: u32 = 10_000;

/// llama.cpp.
#[derive(Debug)]
pub(crate) struct GgufBackend;

impl Backend for GgufBackend {
    type Engine = GgufEngine;

    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
        let headers = read_headers(paths)?;
        Ok(Facts::new(&headers[0]).card(&headers))
    }

    fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<Self::Engine, Failure> {
        let headers = read_headers(&spec.weights)?;
        ffi::capture_logs();
        let level = cpu::load(&spec.cpu_level)?;
        let backend = LlamaBackend::init().map_err(|error| load_failed(&error.to_string()))?;
        // The process serves one model and exits with it, so a backend, a model and a context that borrows both
        // are leaked instead of tied together with unsafe code.
        let backend: &'static LlamaBackend = Box::leak(Box::new(backend));
        let mut model = load_model(backend, spec, progress)?;
        let adapters = spec.adapters.iter().map(|path| adapter(&mut model, path)).collect::<Result<_, _>>()?;
        build(backend, Box::leak(Box::new(model)), adapters, spec, &headers, &level)
    }
}

fn load_failed(reason: &str) -> Failure {
    let text = match ffi::take_last_error() {
        Some(line) => format!("llama.cpp could not load the model: {line}"),
        None => format!("llama.cpp could not load the model: {reason}"),
    };
    Failure::new(FailureKind::LoadFailed, text).with_detail(reason)
}

fn invalid(path: &std::path::Path, reason: &str) -> Failure {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Failure::new(FailureKind::ModelInvalid, format!("{name}: {reason}"))
}

/// Reads and checks every shard; the first one carries the metadata.
fn read_headers(paths: &[PathBuf]) -> Result<Vec<Header>, Failure> {
    let mut headers = Vec::new();
    for path in paths {
        let header = gguf::read(path).map_err(|error| {
            let reason = match &error {
                gguf::GgufError::Io(source) => format!("{error}: {source}"),
                _ => error.to_string(),
            };
            invalid(path, &reason)
        })?;
        headers.push(header);
    }
    let (Some(first), Some(path)) = (headers.first(), paths.first()) else {
        return Err(Failure::new(FailureKind::ModelInvalid, "no model file was named"));
    };
    sanity::check(first).map_err(|reason| invalid(path, &reason))?;
    let shards = first.get("split.count").and_then(gguf::Value::as_u64).unwrap_or(1).max(1);
    if shards != headers.len() as u64 {
        let reason = format!("the model has {shards} parts, {} were found", headers.len());
        return Err(invalid(path, &reason));
    }
    Ok(headers)
}

/// Loads on a thread of its own, so that progress can be told from this one.
fn load_model(
    backend: &'static LlamaBackend,
    spec: &LoadSpec,
    progress: LoadProgress<'_>,
) -> Result<LlamaModel, Failure> {
    let path = spec.weights[0].clone();
    let layers = u32::try_from(spec.gpu_layers).unwrap_or(GPU_LAYERS_ALL);
    let done = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = sync_channel::<Result<LlamaModel, LlamaModelLoadError>>(1);
    let (told, asked) = (Arc::clone(&done), Arc::clone(&stop));
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            let params = LlamaModelParams::default().with_n_gpu_layers(layers).with_progress_callback(move |part| {
                told.store((part * PROGRESS_TOTAL) as u32, Ordering::Relaxed);
                !asked.load(Ordering::Relaxed)
            });
            let _ = sender.send(LlamaModel::load_from_file(backend, path, &params));
        })
        .map_err(|error| load_failed(&error.to_string()))?;
    let mut last = None;
    loop {
        match receiver.recv_timeout(LOAD_POLL) {
            Ok(loaded) => return loaded.map_err(|error| load_failed(&error.to_string())),
            Err(RecvTimeoutError::Disconnected) => return Err(load_failed("the loader panicked")),
            Err(RecvTimeoutError::Timeout) => {
                let now = done.load(Ordering::Relaxed);
                // Only progress is told: the supervisor takes silence for a stall.
                if last != Some(now) && !progress(u64::from(now), PROGRESS_TOTAL as u64) {
                    stop.store(true, Ordering::Relaxed);
                }
                last = Some(now);
            }
        }
    }
}

fn build(
    backend: &'static LlamaBackend,
    model: &'static LlamaModel,
    adapters: Vec<(PathBuf, LlamaLoraAdapter)>,
    spec: &LoadSpec,
    headers: &[Header],
    level: &str,
) -> Result<GgufEngine, Failure> {
    let facts = Facts::new(&headers[0]);
    let encoder = facts.is_encoder() || spec.embedding;
    let slots = spec.slots.clamp(1, SLOTS_MAX);
    let window = spec.context_tokens.clamp(1, CONTEXT_TOKENS_MAX).min(model.n_ctx_train().max(1));
    // An encoder computes a text in one piece, so a batch must hold the longest.
    let batch = if encoder { spec.batch_tokens.max(window) } else { spec.batch_tokens.min(window * u32::from(slots)) };
    let batch = batch.max(u32::from(slots));
    let threads = threads(spec);
    let cells = window.saturating_mul(u32::from(slots));
    let kv = kv_type(&spec.kv_type)?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(cells))
        .with_n_batch(batch)
        .with_n_ubatch(batch.min(512).max(if encoder { batch } else { 1 }))
        .with_n_seq_max(u32::from(slots))
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_type_k(kv)
        .with_type_v(kv)
        .with_swa_full(false)
        .with_kv_unified(false)
        .with_no_perf(true)
        .with_embeddings(encoder);
    let mut context = model.new_context(backend, params.clone()).map_err(|error| load_failed(&error.to_string()))?;
    let (growing, fixed) = facts.cache_bytes();
    let scale = kv_bytes_scale(&spec.kv_type);
    let per_slot = growing.saturating_mul(u64::from(window)).saturating_add(fixed);
    let kv_bytes = if encoder { 0 } else { (per_slot.saturating_mul(u64::from(slots)) as f64 * scale) as u64 };
    let chat = ChatSource {
        jinja: facts.chat_template().map(str::to_owned),
        go: spec.go_template.clone(),
        architecture: facts.architecture.to_owned(),
    };
    let accelerated = backend.supports_gpu_offload() && spec.gpu_layers != 0;
    let device = if accelerated { "gpu".to_owned() } else { format!("cpu ({level})") };
    let engine_facts = EngineFacts {
        slots,
        context_tokens: window,
        batch_tokens: batch,
        embedding: encoder,
        device,
        accelerator_bytes: if accelerated { model.size().saturating_add(kv_bytes) } else { 0 },
        vocab: Arc::new(vocab(model, headers)),
        chat,
    };
    let shape = Shape {
        sliding_window: facts.sliding_window(),
        can_shift: facts.sliding_window().is_none() && !model.is_recurrent() && !model.is_hybrid() && plain_rope(model),
        can_copy: !model.is_recurrent() && !model.is_hybrid(),
        weight_bytes: model.size(),
        kv_bytes,
    };
    for (path, adapter) in adapters {
        // Lives as long as the process, like the model it belongs to.
        let adapter = Box::leak(Box::new(adapter));
        context.lora_adapter_set(adapter, 1.0).map_err(|error| adapter_failed(&path, &error.to_string()))?;
    }
    let mut engine = GgufEngine::new(backend, model, context, params, engine_facts, shape);
    engine.warm_up().map_err(|error| load_failed(&error.to_string()))?;
    Ok(engine)
}

/// Rotary embeddings that llama.cpp can move in its cache; it aborts on the others.
fn plain_rope(model: &LlamaModel) -> bool {
    use llama_cpp_2::model::RopeType;
    matches!(model.rope_type(), Some(RopeType::Norm | RopeType::NeoX))
}

fn adapter_failed(path: &std::path::Path, error: &str) -> Failure {
    invalid(path, &format!("the adapter could not be used: {error}"))
}

fn adapter(model: &mut LlamaModel, path: &PathBuf) -> Result<(PathBuf, LlamaLoraAdapter), Failure> {
    let adapter = model.lora_adapter_init(path).map_err(|error| adapter_failed(path, &error.to_string()))?;
    Ok((path.clone(), adapter))
}

fn threads(spec: &LoadSpec) -> i32 {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if spec.threads == 0 { available() } else { usize::from(spec.threads) };
    i32::try_from(threads.clamp(1, 256)).unwrap_or(1)
}

fn kv_type(name: &str) -> Result<KvCacheType, Failure> {
    Ok(match name {
        "" | "f16" => KvCacheType::F16,
        "f32" => KvCacheType::F32,
        "bf16" => KvCacheType::BF16,
        "q8_0" => KvCacheType::Q8_0,
        "q5_1" => KvCacheType::Q5_1,
        "q5_0" => KvCacheType::Q5_0,
        "q4_1" => KvCacheType::Q4_1,
        "q4_0" => KvCacheType::Q4_0,
        other => {
            let text = format!("cache type {other:?} does not exist; f16, q8_0 and q4_0 are the usual ones");
            return Err(Failure::new(FailureKind::InvalidRequest, text));
        }
    })
}

/// Bytes of an element relative to 16 bits.
fn kv_bytes_scale(name: &str) -> f64 {
    match name {
        "f32" => 2.0,
        "q8_0" => 34.0 / 64.0,
        "q5_1" => 24.0 / 64.0,
        "q5_0" => 22.0 / 64.0,
        "q4_1" => 20.0 / 64.0,
        "q4_0" => 18.0 / 64.0,
        _ => 1.0,
    }
}

fn vocab(model: &LlamaModel, headers: &[Header]) -> Vocab {
    let source = model.vocab();
    let id = |token: LlamaToken| TokenId::try_from(token.0).ok();
    let mut vocab = Vocab {
        bos: id(source.bos()),
        eos: id(source.eos()),
        add_bos: source.should_add_bos(),
        add_space_prefix: headers[0].get("tokenizer.ggml.add_space_prefix") == Some(&gguf::Value::Bool(true)),
        ..Vocab::default()
    };
    for token in source.tokens() {
        let attributes = source.attr(token);
        let kind = if attributes.contains(LlamaTokenAttr::Control) {
            TokenKind::Control
        } else if attributes.contains(LlamaTokenAttr::UserDefined) {
            TokenKind::UserDefined
        } else if attributes.contains(LlamaTokenAttr::Unused) || attributes.contains(LlamaTokenAttr::Unknown) {
            TokenKind::Unused
        } else {
            TokenKind::Text
        };
        vocab.bytes.push(source.token_to_piece(token, true, None));
        vocab.kinds.push(kind);
        if source.is_eog(token) {
            vocab.ends.extend(id(token));
        }
    }
    vocab.infill = id(source.fim_pre())
        .zip(id(source.fim_suf()))
        .zip(id(source.fim_mid()))
        .map(|((prefix, suffix), middle)| (prefix, suffix, middle));
    vocab
}
