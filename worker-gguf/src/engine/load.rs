//! From a load order to a warmed-up engine.

use std::path::Path;
use std::sync::Arc;

use ollmlx_proto::limits::CONTEXT_TOKENS_MIN;
use ollmlx_proto::{Failure, FailureKind, FlashAttention, LoadSpec, MemoryReport, SlotId};
use ollmlx_worker_kit::chat::ChatSource;
use ollmlx_worker_kit::contract::CellType;
use ollmlx_worker_kit::engine::{Engine as _, EngineFacts, LoadProgress, SlotInput};
use ollmlx_worker_kit::tell::tell;

use super::embed::{Embedder, Whole};
use super::slots::{Abilities, Slots};
use super::{Generator, GgufEngine, vocab};
use crate::cpu::{self, Runtime};
use crate::ffi::batch::Batch;
use crate::ffi::context::{Context, Outputs, Pooling, Settings};
use crate::ffi::log::take_errors;
use crate::ffi::model::{Model, Rope};
use crate::gguf::Header;
use crate::gguf::kv_cost::kv_cost;
use crate::gguf::shards::Files;
use crate::limits::{CELLS_MULTIPLE, EMBED_CHUNK_TOKENS, EMBED_TOKENS_MAX, MICRO_BATCH_TOKENS};
use crate::memory::{Kind, Layout, looks_both_ways, memory_model, needs_flash_attention};

/// What the order and the model say together.
struct Plan {
    slots: u16,
    context_tokens: u32,
    batch_tokens: u32,
    threads: u16,
    kv_type: CellType,
    flash_attention: FlashAttention,
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
    let files = Files::read(&spec.weights)?;
    let runtime = cpu::start(&spec.cpu_level)?;
    let mut plan = plan(spec, &files, runtime)?;
    plan.layout = layout.unwrap_or(plan.layout);
    // What was logged before is not about this model.
    drop(take_errors());
    let mut model = load_weights(runtime, &files, spec, progress)?;
    load_adapter(&mut model, &spec.adapters)?;
    let mut engine = assemble(runtime, Box::leak(Box::new(model)), &files, spec, plan)?;
    warm_up(&mut engine)?;
    let sample = engine.tokenizer().tokenize("hello, 1", false, false);
    sample.map_err(|_| refused("its tokenizer", &files.path, "it makes no tokens of a text"))?;
    Ok(engine)
}

fn plan(spec: &LoadSpec, files: &Files, runtime: &Runtime) -> Result<Plan, Failure> {
    let header = &files.header;
    let kind = Kind::of(header, spec.embedding);
    // Beyond what the model was trained for, learned positions do not exist and rotary ones mean nothing.
    let trained = header.arch_number("context_length").and_then(|it| u32::try_from(it).ok()).unwrap_or(u32::MAX);
    let mut context_tokens = spec.context_tokens.min(trained.max(CONTEXT_TOKENS_MIN));
    if kind == Kind::Encoder {
        context_tokens = context_tokens.min(EMBED_TOKENS_MAX);
    }
    let threads = if spec.threads == 0 { cpu::thread_count() } else { spec.threads };
    let offload = spec.gpu_layers != 0 && runtime.library.can_offload();
    Ok(Plan {
        slots: spec.slots,
        context_tokens,
        batch_tokens: match kind {
            // Nor do several inputs together take more than one that is as long as can be.
            Kind::Encoder => spec.batch_tokens.min(context_tokens),
            Kind::Generator | Kind::Embedder => spec.batch_tokens,
        },
        threads,
        kv_type: kv_type(spec)?,
        flash_attention: spec.flash_attention,
        kind,
        offload,
        // The inputs of an embedding model share one window.
        layout: if kind == Kind::Generator { Layout::of(files, offload) } else { Layout::Shared },
    })
}

/// As asked for, but as Ollama does it, `f16` where without flash attention nothing could read it.
fn kv_type(spec: &LoadSpec) -> Result<CellType, Failure> {
    let kv_type = CellType::named(&spec.kv_type)?;
    if spec.flash_attention == FlashAttention::Off && needs_flash_attention(&spec.kv_type) {
        tell(format_args!("flash attention is off: the key-value cache stays f16, {} needs it", spec.kv_type));
        return Ok(CellType::F16);
    }
    Ok(kv_type)
}

fn load_weights(
    runtime: &Runtime,
    files: &Files,
    spec: &LoadSpec,
    progress: LoadProgress<'_>,
) -> Result<Model, Failure> {
    let total = files.weight_bytes();
    let mut aborted = false;
    let mut told = |done: f32| {
        let done = (f64::from(done.clamp(0.0, 1.0)) * total as f64) as u64;
        aborted |= !progress(done.min(total), total);
        !aborted
    };
    let loaded = Model::load(&runtime.library, &files.path, u32::try_from(spec.gpu_layers).ok(), &mut told);
    if aborted {
        return Err(Failure::new(FailureKind::Cancelled, "the load was aborted"));
    }
    loaded.map_err(|error| refused("the model", &files.path, &error.to_string()))
}

/// A failure with llama.cpp's own words, of which the first is the cause and the later ones follow from it.
fn refused(what: &str, path: &Path, error: &str) -> Failure {
    let log = take_errors();
    let cause = log.first().map_or(error, String::as_str);
    // Its lines begin with the name of a function.
    let cause = cause.split_once(": ").map_or(cause, |(_, rest)| rest);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let text = format!("model file {name}: llama.cpp refuses {what}: {cause}");
    Failure::new(FailureKind::ModelInvalid, text).with_detail(format!(
        "{}: {error}: {}",
        path.display(),
        log.join("; ")
    ))
}

fn load_adapter(model: &mut Model, paths: &[std::path::PathBuf]) -> Result<(), Failure> {
    match paths {
        [] => Ok(()),
        [path] => {
            // Parsed for its damage first, as the model was.
            let header = Header::read(path).map_err(|error| error.into_failure(path))?;
            if header.text("general.type") != Some("adapter") {
                return Err(Failure::new(
                    FailureKind::ModelInvalid,
                    "the adapter is not a GGUF adapter (general.type)",
                ));
            }
            model.load_adapter(path).map_err(|error| refused("the adapter", path, &error.to_string()))
        }
        several => {
            let text = format!("{} adapters are named; one is possible", several.len());
            Err(Failure::new(FailureKind::Unsupported, text))
        }
    }
}

fn assemble(
    runtime: &'static Runtime,
    model: &'static Model,
    files: &Files,
    spec: &LoadSpec,
    plan: Plan,
) -> Result<GgufEngine, Failure> {
    let header = &files.header;
    let vocab = Arc::new(vocab::vocab(model, header));
    let no_context = || refused("a context for the model", &files.path, "no context");
    let (mut generator, mut embedder) = (None, Embedder::Parts(pooling(header, plan.kind)));
    if plan.kind == Kind::Encoder {
        let sizes = (plan.context_tokens, plan.threads);
        let whole =
            Whole::open(model, sizes, plan.flash_attention, pooling(header, plan.kind)).ok_or_else(no_context)?;
        embedder = Embedder::Whole(whole);
    } else {
        let context = Context::open(model, &context_settings(&plan)).ok_or_else(no_context)?;
        generator = Some(Generator {
            batch: Batch::default(),
            slots: Slots::new(plan.slots, abilities(model, &context, header, plan.layout)),
            logits: Vec::new(),
            batch_tokens: plan.batch_tokens as usize,
            context,
        });
        if looks_both_ways(header) {
            // llama.cpp ends the process where such an input is longer than a micro-batch.
            embedder = Embedder::Nothing;
        }
    }
    let contexts = generator.as_mut().map(|it| &mut it.context).into_iter().chain(embedder.context());
    for context in contexts {
        context
            .use_adapter()
            .map_err(|error| Failure::new(FailureKind::LoadFailed, format!("the adapter does not fit: {error}")))?;
    }
    let memory = memory_model(files, plan.layout, plan.offload, plan.kind).with_attention(plan.flash_attention);
    let memory = memory.estimate(plan.slots, plan.context_tokens, plan.batch_tokens, &spec.kv_type);
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
    Ok(GgufEngine { facts, model, generator, embedder, embeddings: None, memory })
}

fn context_settings(plan: &Plan) -> Settings {
    // A stream is rounded up by itself; llama.cpp warns where it has to do that.
    let window = match plan.layout {
        Layout::Shared => plan.context_tokens,
        Layout::Streams => plan.context_tokens.next_multiple_of(CELLS_MULTIPLE),
    };
    let (windows, micro_batch, outputs) = match plan.kind {
        Kind::Generator => (plan.slots, MICRO_BATCH_TOKENS, Outputs::Logits),
        // The engine pools, since a sequence comes in parts.
        Kind::Embedder | Kind::Encoder => (1, EMBED_CHUNK_TOKENS, Outputs::HiddenStates),
    };
    Settings {
        cells: u32::from(windows).saturating_mul(window),
        layout: plan.layout,
        cell_type: plan.kv_type,
        flash_attention: plan.flash_attention,
        batch_tokens: plan.batch_tokens,
        micro_batch_tokens: plan.batch_tokens.min(micro_batch),
        sequences: plan.slots.into(),
        threads: plan.threads,
        outputs,
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

/// What a slot's cells allow. llama.cpp moves positions that it then gets wrong: of a sliding window, of latent keys, and
/// where a position is no single angle.
fn abilities(model: &Model, context: &Context<'_>, header: &Header, layout: Layout) -> Abilities {
    let cut = !model.is_recurrent() && !model.is_hybrid();
    let window = header.arch_number("attention.sliding_window").unwrap_or_default();
    let has_window = window > 0 || kv_cost(header).window_tokens > 0;
    let latent = header.arch("attention.kv_lora_rank").is_some();
    let shift = cut && !has_window && !latent && model.rope() == Rope::Plain && context.can_move();
    let window_tokens = u32::try_from(window.max(kv_cost(header).window_tokens)).unwrap_or(u32::MAX);
    Abilities { shift, cut, window_tokens, layout }
}

fn device(runtime: &Runtime, plan: &Plan, spec: &LoadSpec, header: &Header, memory: MemoryReport) -> (String, u64) {
    let gpu = if plan.offload { runtime.library.gpu_backend() } else { None };
    let Some(gpu) = gpu else { return (cpu::describe(runtime.level), 0) };
    // ggml calls Metal's backend "MTL".
    let name = match gpu.to_lowercase() {
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
