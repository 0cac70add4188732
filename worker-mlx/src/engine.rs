//! The engine: slots, batches and logits on top of a loaded model.
//!
//! One thread owns it and everything of MLX. Each [`Engine::forward`] builds one lazy graph for the whole ragged batch
//! and evaluates it once, together with the caches it wrote. It knows nothing of requests, text or sampling. A load order's
//! word on flash attention changes nothing: attention is fused but where scores are capped.

use std::path::PathBuf;
use std::sync::Arc;

use mlx_rs::error::Exception;
use mlx_rs::{Array, memory, transforms};
use ollmlx_proto::{Failure, FailureKind, LoadSpec, MemoryModel, MemoryReport, ModelCard, SlotId, TokenId};
use ollmlx_worker_kit::chat::ChatSource;
use ollmlx_worker_kit::contract::{CellType, NO_EMBEDDINGS};
use ollmlx_worker_kit::engine::{
    self, Backend, EmbedStep, Engine, EngineError, EngineFacts, LoadProgress, Pulse, SlotInput,
};

use crate::card::{self, Description};
use crate::config::Config;
use crate::ffi::{self, Threads};
use crate::kv::{KvPacking, KvShape, SlotCache};
use crate::limits::{
    BATCHES_PER_CLEAR, BUFFER_CACHE_BYTES, BUFFER_CACHE_BYTES_MIN, EMBED_STEP, LONG_BYTE_TOKENS, ONE_THREAD_ROWS,
};
use crate::memory::{is_on_cpu, memory_model, unpacks};
use crate::model::ModelSpec;
use crate::model::attention::Span;
use crate::model::bert::Bert;
use crate::model::decoder::{Batch, Decoder};
use crate::tokenizer::{Tokenizer, chat_template};
use crate::weights::{Placement, Weights, load_failed};

/// The MLX backend.
#[derive(Debug)]
pub struct MlxBackend;

impl Backend for MlxBackend {
    type Engine = MlxEngine;

    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
        card::inspect(paths)
    }

    fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<Self::Engine, Failure> {
        MlxEngine::open(spec, Unpacking::WhereSmall, progress)
    }
}

/// Whether quantised weights become plain floats at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacking {
    /// On a CPU, where they then are small enough.
    WhereSmall,
    /// They stay as they are, as on a GPU.
    Never,
}

enum Model {
    Decoder(Box<Decoder>),
    Encoder(Box<Bert>),
}

/// A loaded model with its slots.
pub struct MlxEngine {
    facts: EngineFacts,
    model: Model,
    tokenizer: Arc<Tokenizer>,
    slots: Vec<SlotCache>,
    shapes: Vec<KvShape>,
    embeddings: Option<Underway>,
    logits: Vec<f32>,
    /// Row of the logits of each input, where it asked for them.
    rows: Vec<Option<usize>>,
    weight_bytes: u64,
    batches: u64,
    on_cpu: bool,
    /// See [`LONG_BYTE_TOKENS`].
    long_byte_tokens: u64,
    pulse: Option<Pulse>,
}

/// Embeddings that have begun.
struct Underway {
    inputs: Vec<Vec<TokenId>>,
    /// Of the first inputs.
    vectors: Vec<Vec<f32>>,
    /// Hidden states of the next input, and layers behind them; `None` before the first.
    states: Option<(Array, usize)>,
}

impl Underway {
    fn told(mut self) -> (EmbedStep, Option<Self>) {
        if self.vectors.len() == self.inputs.len() {
            return (EmbedStep::Vectors(std::mem::take(&mut self.vectors)), None);
        }
        let done_tokens = self.inputs.iter().take(self.vectors.len()).map(Vec::len).sum();
        (EmbedStep::Part { done_tokens }, Some(self))
    }
}

fn failed(error: &Exception) -> EngineError {
    EngineError::Failed(error.what().to_owned())
}

impl MlxEngine {
    /// Loads a model as [`Backend::load`] does, with the choice of how quantised weights are held.
    ///
    /// # Errors
    /// The load failed or was aborted.
    pub fn open(load: &LoadSpec, unpacking: Unpacking, progress: LoadProgress<'_>) -> Result<Self, Failure> {
        let fault = |error| load_failed(&error);
        // The first call of this kind installs the handler without which MLX ends the process on an error.
        memory::active_memory().map_err(fault)?;
        use_shipped_kernels().map_err(fault)?;
        if !load.adapters.is_empty() {
            return Err(Failure::new(FailureKind::Unsupported, "adapters are not supported by the MLX engine"));
        }
        let Description { checkpoint, config, spec } = card::describe(&load.weights)?;
        let view = Config::new(&config, "");
        let on_cpu = is_on_cpu();
        let unpack = unpacking == Unpacking::WhereSmall && unpacks(&checkpoint.tensors, &config, on_cpu);
        let placement = Placement { on_cpu, unpack };
        limit_memory(load, &memory_model(&checkpoint, &spec, &config), on_cpu).map_err(fault)?;
        let kv_packing = KvPacking::of(CellType::named(&load.kv_type)?);
        let encoder = matches!(spec, ModelSpec::Encoder(_));
        let vocab_size = match &spec {
            ModelSpec::Decoder(spec) => spec.vocab,
            ModelSpec::Encoder(spec) => spec.vocab,
        };
        let tokenizer = Arc::new(Tokenizer::load(&checkpoint.folder, vocab_size as usize, encoder)?);
        let chat = ChatSource {
            jinja: chat_template(&checkpoint.folder)?,
            go: load.go_template.clone(),
            architecture: view.text("model_type")?.unwrap_or_default().to_owned(),
        };
        let mut weights = Weights::open(&checkpoint, placement)?;
        // Multimodal checkpoints keep the language model under a name of its own.
        weights.rename_prefix("language_model.", "");
        let (model, shapes, context) = load_model(&mut weights, spec, kv_packing, progress)?;
        drop(weights);
        memory::clear_cache().map_err(fault)?;
        let weight_bytes = memory::active_memory().map_err(fault)? as u64;
        let facts = EngineFacts {
            slots: load.slots,
            context_tokens: load.context_tokens.min(context).max(1),
            batch_tokens: load.batch_tokens,
            embedding: encoder,
            device: if on_cpu { "cpu".to_owned() } else { "metal".to_owned() },
            accelerator_bytes: if on_cpu { 0 } else { weight_bytes },
            vocab: Arc::clone(tokenizer.vocab()),
            chat,
        };
        let slots = vec![SlotCache::new(&shapes); usize::from(facts.slots)];
        let mut engine = Self {
            facts,
            model,
            tokenizer,
            slots,
            shapes,
            embeddings: None,
            logits: Vec::new(),
            rows: Vec::new(),
            weight_bytes,
            batches: 0,
            on_cpu,
            long_byte_tokens: LONG_BYTE_TOKENS,
            pulse: None,
        };
        engine.warm_up()?;
        Ok(engine)
    }

    /// Evaluates batches layer by layer from so many bytes of weights times tokens on, instead of where it is needed.
    pub fn part_from(&mut self, byte_tokens: u64) {
        self.long_byte_tokens = byte_tokens;
    }

    /// One pass through the real path, so that what can't work fails now.
    fn warm_up(&mut self) -> Result<(), Failure> {
        let token = self.facts.vocab.bos.unwrap_or(0);
        let result = if self.facts.embedding {
            self.embed(&[vec![token]]).map(|vectors| vectors.into_iter().flatten().all(f32::is_finite))
        } else {
            let input = SlotInput { slot: SlotId(0), tokens: &[token], logits: true };
            self.forward(&[input]).map(|()| self.logits(0).iter().all(|logit| logit.is_finite()))
        };
        self.clear_slots();
        match result {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(
                FailureKind::ModelInvalid,
                "the model computes no finite numbers, its weights may be damaged",
            )),
            Err(error) => Err(Failure::new(FailureKind::LoadFailed, "the model failed its first computation")
                .with_detail(error.to_string())),
        }
    }

    fn clear_slots(&mut self) {
        self.slots.iter_mut().for_each(SlotCache::clear);
    }

    fn slot(&mut self, slot: SlotId) -> &mut SlotCache {
        &mut self.slots[usize::from(slot.0)]
    }

    fn compute(&mut self, batch: &[SlotInput<'_>]) -> Result<(), Exception> {
        let Model::Decoder(decoder) = &self.model else {
            return Err(Exception::custom("an embedding model can't continue text"));
        };
        let (mut tokens, mut positions, mut spans, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        self.rows.clear();
        for input in batch {
            let slot = usize::from(input.slot.0);
            let from = tokens.len() as i32;
            let first = self.slots[slot].tokens;
            tokens.extend(input.tokens.iter().map(|&token| token as i32));
            positions.extend((0..input.tokens.len() as i32).map(|offset| first + offset));
            let to = tokens.len() as i32;
            spans.push(Span { slot, from, to });
            self.rows.push(input.logits.then_some(wanted.len()));
            if input.logits {
                wanted.push(to - 1);
            }
        }
        let cost = self.weight_bytes.saturating_mul(tokens.len() as u64);
        let is_long = self.on_cpu && cost >= self.long_byte_tokens;
        let after_layer = |states: &Array| {
            if is_long {
                states.eval()?;
                self.pulse.iter().for_each(Pulse::beat);
            }
            Ok(())
        };
        let ragged = Batch {
            tokens: &tokens,
            positions: &positions,
            spans: &spans,
            wanted: &wanted,
            context_max: self.facts.context_tokens as i32,
            after_layer: &after_layer,
        };
        if self.on_cpu {
            ffi::set_blas_threads(if tokens.len() > ONE_THREAD_ROWS { Threads::All } else { Threads::One });
        }
        let logits = decoder.forward(&ragged, &mut self.slots)?;
        let written = spans.iter().flat_map(|span| &self.slots[span.slot].layers).flat_map(|layer| layer.arrays());
        transforms::eval(logits.iter().chain(written))?;
        self.logits.clear();
        if let Some(logits) = logits {
            let values = logits.try_as_slice::<f32>().map_err(|error| Exception::custom(error.to_string()))?;
            self.logits.extend_from_slice(values);
        }
        for span in &spans {
            self.slots[span.slot].tokens += span.to - span.from;
        }
        Ok(())
    }

    /// Some layers of the next input; evaluated, so that their graph and its buffers are gone.
    fn embed_some(&self, work: &mut Underway) -> Result<(), Exception> {
        let Model::Encoder(encoder) = &self.model else {
            return Err(Exception::custom("only an embedding model embeds"));
        };
        let Some(input) = work.inputs.get(work.vectors.len()) else { return Ok(()) };
        let (states, from) = match work.states.take() {
            Some(states) => states,
            None => {
                let tokens: Vec<i32> = input.iter().map(|&token| token as i32).collect();
                (encoder.begin(&tokens)?, 0)
            }
        };
        let layers = encoder.spec().layers as usize;
        let to = from.saturating_add((EMBED_STEP / input.len().max(1)).max(1)).min(layers);
        let states = encoder.layers(states, from..to)?;
        if to < layers {
            states.eval()?;
            work.states = Some((states, to));
            return Ok(());
        }
        let vector = encoder.pool(&states)?;
        let values = vector.try_as_slice::<f32>().map_err(|error| Exception::custom(error.to_string()))?;
        work.vectors.push(values.to_vec());
        Ok(())
    }

    /// After a failure: whether MLX still computes.
    fn probe(&mut self) -> Result<(), EngineError> {
        let probe = || -> Result<(), Exception> {
            memory::clear_cache()?;
            mlx_rs::ops::add(Array::from_f32(1.0), Array::from_f32(1.0))?.eval()
        };
        probe().map_err(|error| EngineError::Broken(error.what().to_owned()))
    }
}

/// Tells MLX what it may take. The limit is soft: beyond it MLX empties its buffer cache and waits for running work.
fn limit_memory(load: &LoadSpec, model: &MemoryModel, on_cpu: bool) -> Result<(), Exception> {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let expected = model.estimate(load.slots, load.context_tokens, load.batch_tokens, &load.kv_type);
    // What one batch needs is worth keeping for the next; more would be outside the estimate.
    let reusable = bytes(expected.compute.saturating_sub(model.fixed));
    memory::set_cache_limit(reusable.clamp(BUFFER_CACHE_BYTES_MIN, BUFFER_CACHE_BYTES))?;
    if load.memory_limit_bytes > 0 {
        memory::set_memory_limit(bytes(load.memory_limit_bytes))?;
    }
    if load.wired_limit_bytes > 0 && !on_cpu {
        memory::set_wired_limit(bytes(load.wired_limit_bytes.min(expected.total())))?;
    }
    Ok(())
}

/// An installed program brings its Metal kernels along; without this MLX looks where it was built.
#[cfg(target_os = "macos")]
fn use_shipped_kernels() -> Result<(), Exception> {
    let program = std::env::current_exe().ok();
    let shipped =
        program.and_then(|program| Some(program.parent()?.join("mlx.metallib"))).filter(|path| path.is_file());
    match shipped.as_deref().and_then(|path| path.to_str()) {
        Some(path) => mlx_rs::metal::set_metallib_path(path),
        None => Ok(()),
    }
}

/// There are none.
#[cfg(not(target_os = "macos"))]
fn use_shipped_kernels() -> Result<(), Exception> {
    Ok(())
}

fn load_model(
    weights: &mut Weights,
    spec: ModelSpec,
    kv_packing: KvPacking,
    progress: LoadProgress<'_>,
) -> Result<(Model, Vec<KvShape>, u32), Failure> {
    let layers = match &spec {
        ModelSpec::Decoder(spec) => spec.layers,
        ModelSpec::Encoder(spec) => spec.layers,
    };
    let mut step = |done: u64| {
        if progress(done, layers as u64) {
            Ok(())
        } else {
            Err(Failure::new(FailureKind::LoadFailed, "the load was aborted"))
        }
    };
    step(0)?;
    match spec {
        ModelSpec::Decoder(spec) => {
            let context = spec.context;
            let decoder = Decoder::load(weights, *spec, &mut step)?;
            let shapes = decoder.spec().kv_shapes(decoder.dtype(), kv_packing);
            Ok((Model::Decoder(Box::new(decoder)), shapes, context))
        }
        ModelSpec::Encoder(spec) => {
            let context = spec.context;
            Ok((Model::Encoder(Box::new(Bert::load(weights, spec, &mut step)?)), Vec::new(), context))
        }
    }
}

impl Engine for MlxEngine {
    fn on_progress(&mut self, pulse: Pulse) {
        self.pulse = Some(pulse);
    }

    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenizer(&self) -> Arc<dyn engine::Tokenizer> {
        Arc::<Tokenizer>::clone(&self.tokenizer)
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.batches += 1;
        if self.batches.is_multiple_of(BATCHES_PER_CLEAR) {
            memory::clear_cache().map_err(|error| failed(&error))?;
        }
        if let Err(error) = self.compute(batch) {
            self.rows.clear();
            // Half-written caches are of no use; arrays of a failed graph may never become available.
            for input in batch {
                self.slot(input.slot).clear();
            }
            self.probe()?;
            return Err(failed(&error));
        }
        Ok(())
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        let width = self.facts.vocab.len();
        let row = self.rows.get(input).copied().flatten().expect("that input asked for logits");
        &mut self.logits[row * width..(row + 1) * width]
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        let keep = i32::try_from(keep).unwrap_or(i32::MAX);
        self.slot(slot).truncate(keep) as u32
    }

    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool {
        let Model::Decoder(decoder) = &self.model else { return false };
        let cache = &mut self.slots[usize::from(slot.0)];
        let (Ok(keep), Ok(discard)) = (i32::try_from(keep), i32::try_from(discard)) else { return false };
        if !cache.can_shift() || keep.checked_add(discard).is_none_or(|end| end >= cache.tokens) {
            return false;
        }
        if discard == 0 {
            return true;
        }
        let mut turned = cache.clone();
        let moved = turned
            .layers
            .iter_mut()
            .try_for_each(|layer| layer.shift(keep, discard, &decoder.spec().rope))
            .and_then(|()| transforms::eval(turned.layers.iter().flat_map(|layer| layer.arrays())));
        if moved.is_err() {
            return false;
        }
        turned.tokens -= discard;
        *cache = turned;
        true
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        let Ok(tokens) = i32::try_from(tokens) else { return false };
        let mut copy = self.slot(from).clone();
        // The buffers are shared until one of the two writes.
        let good = tokens > 0 && tokens <= copy.tokens && copy.truncate(tokens) == tokens;
        if !good {
            copy = SlotCache::new(&self.shapes);
        }
        *self.slot(to) = copy;
        good
    }

    fn embed_begin(&mut self, inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError> {
        self.clear_slots();
        self.embeddings = None;
        let Model::Encoder(_) = &self.model else {
            return Err(EngineError::Refused(Failure::new(FailureKind::Unsupported, NO_EMBEDDINGS)));
        };
        self.embeddings = Some(Underway { vectors: Vec::with_capacity(inputs.len()), inputs, states: None });
        Ok(())
    }

    fn embed_step(&mut self) -> Result<EmbedStep, EngineError> {
        let Some(mut work) = self.embeddings.take() else {
            return Err(EngineError::Failed("no embeddings have begun".to_owned()));
        };
        self.embed_some(&mut work).map_err(|error| failed(&error))?;
        let (told, rest) = work.told();
        self.embeddings = rest;
        Ok(told)
    }

    fn trim(&mut self) {
        self.slots.iter_mut().filter(|slot| slot.tokens == 0).for_each(SlotCache::clear);
        // Freed buffers are only kept for speed; if they stay, the next batch counts them again.
        let _kept = memory::clear_cache();
    }

    fn memory(&self) -> MemoryReport {
        let kv = self.slots.iter().fold(0_u64, |sum, slot| sum.saturating_add(slot.bytes()));
        let active = memory::active_memory().unwrap_or(0) as u64;
        let cached = memory::cache_memory().unwrap_or(0) as u64;
        let other = active.saturating_sub(self.weight_bytes).saturating_sub(kv);
        let logits = (self.logits.capacity() * size_of::<f32>()) as u64;
        MemoryReport { weights: self.weight_bytes, kv, compute: other.saturating_add(cached).saturating_add(logits) }
    }
}
