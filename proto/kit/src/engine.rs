//! All that an engine must implement.
//!
//! What a method may be called with is checked before it is called ([`crate::contract`]), so that engines need no checks of
//! their own. An engine is single-threaded: every method is called from the one engine thread; only its tokenizer is used
//! from others as well. It knows sequences ("slots") and
//! tokens, nothing of requests, text or sampling. Positions are the engine's own: each slot is a list of cached
//! tokens that [`Engine::forward`] appends to.

use std::path::PathBuf;
use std::sync::Arc;

use ollmlx_proto::{Failure, LoadSpec, MemoryReport, ModelCard, SlotId, TokenId};

use crate::chat::ChatSource;
use crate::vocab::Vocab;

/// Tells how far a load is: `(done, total)` in bytes or layers. Returns `false` to abort the load.
pub type LoadProgress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Signs of life from within a computation.
#[derive(Clone)]
pub struct Pulse(Arc<dyn Fn() + Send + Sync>);

impl Pulse {
    /// `beat` is called for each sign.
    pub fn new(beat: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(beat))
    }

    /// The engine has come on. To be called from its own thread, as often as it likes.
    pub fn beat(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Pulse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Pulse")
    }
}

/// What a worker binary gives to the kit: how to read a model's facts and how to load it.
pub trait Backend {
    /// The engine it makes.
    type Engine: Engine;

    /// Reads the facts of a model from its files, without loading it. Must be bounded in time and memory for
    /// hostile files.
    ///
    /// # Errors
    /// What is wrong with the files, specifically ([`ollmlx_proto::FailureKind::ModelInvalid`]).
    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure>;

    /// Loads a model and warms it up through the real path (one forward pass), so that a `Ready` is true.
    ///
    /// # Errors
    /// The load failed or was aborted.
    fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<Self::Engine, Failure>;
}

/// Text to tokens, on any thread: prompts are made ready while the engine computes.
pub trait Tokenizer: Send + Sync {
    /// `add_special` puts the model's beginning-of-sequence token in front where its vocabulary says so;
    /// `parse_special` turns the text of control tokens into them.
    ///
    /// # Errors
    /// The tokenizer refused the text.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure>;
}

/// A loaded model.
pub trait Engine {
    /// Called once after the load, with what [`Engine::forward`] and [`Engine::embed_step`] call while they compute, so that
    /// a long one is not taken for one that hangs. Only real progress may lead to a call. The default is for engines whose
    /// steps are short.
    fn on_progress(&mut self, _pulse: Pulse) {}

    /// Facts that hold for the life of the engine.
    fn facts(&self) -> &EngineFacts;

    /// Its tokenizer. Asked for once, after the load.
    fn tokenizer(&self) -> Arc<dyn Tokenizer>;

    /// Text to tokens, see [`Tokenizer::tokenize`].
    ///
    /// # Errors
    /// The tokenizer refused the text.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        self.tokenizer().tokenize(text, add_special, parse_special)
    }

    /// Computes one ragged batch: for each input, its tokens are appended to its slot. Inputs name distinct slots;
    /// the sum of their tokens is at most [`EngineFacts::batch_tokens`]; no slot grows over
    /// [`EngineFacts::context_tokens`]; every token is below the vocabulary's size. On success the logits of each
    /// input with `logits` set can be read with [`Engine::logits`].
    ///
    /// # Errors
    /// See [`EngineError`]; after an error the caller forgets or truncates the slots that took part.
    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError>;

    /// Logits after the last token of input number `input` of the last [`Engine::forward`]; one value per
    /// vocabulary entry. May be changed in place by the caller.
    ///
    /// # Panics
    /// That input did not ask for logits.
    fn logits(&mut self, input: usize) -> &mut [f32];

    /// Forgets all but the first `keep` tokens of a slot. Returns how many are really kept, which is less where the
    /// cache can't be cut there (sliding windows, recurrent state); 0 is always possible.
    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32;

    /// Slides a full window: drops `discard` tokens after the first `keep` and moves the rest up. Returns `false`
    /// where the cache can't do that; nothing has changed then.
    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool;

    /// Makes the first `tokens` tokens of `from` the whole content of `to`, without computing. Returns `false` where
    /// the cache can't do that; `to` is empty then.
    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool;

    /// Begins one vector per input, not normalised; each input is at most [`EngineFacts::context_tokens`] tokens long and
    /// not empty. What an earlier call began is given up. Uses and clears all slots, so nothing may run until
    /// [`Engine::embed_step`] has brought the vectors or an error, or nobody wants them any more.
    ///
    /// # Errors
    /// The model has no embeddings, or an input is none that it can compute.
    fn embed_begin(&mut self, inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError>;

    /// Computes a part of what was begun: so little, wherever the model lets an input be parted, that a sign of life and a
    /// cancel between two parts come in time.
    ///
    /// # Errors
    /// The computation failed, or nothing is begun; nothing is begun any more.
    fn embed_step(&mut self) -> Result<EmbedStep, EngineError>;

    /// The vectors in one go.
    ///
    /// # Errors
    /// As [`Engine::embed_begin`] and [`Engine::embed_step`].
    fn embed(&mut self, inputs: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.embed_begin(inputs.to_vec())?;
        loop {
            if let EmbedStep::Vectors(vectors) = self.embed_step()? {
                return Ok(vectors);
            }
        }
    }

    /// Memory is short: gives back what is only kept for reuse, buffers of empty slots among it. What runs is not touched.
    fn trim(&mut self);

    /// What the engine takes now.
    fn memory(&self) -> MemoryReport;
}

/// What holds for the life of an engine.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// Sequences computed together, at most `ollmlx_proto::limits::SLOTS_MAX`.
    pub slots: u16,
    /// Window of each slot, in tokens.
    pub context_tokens: u32,
    /// Most tokens of one [`Engine::forward`].
    pub batch_tokens: u32,
    /// Whether this is an embedding model: only [`Engine::embed_begin`] works.
    pub embedding: bool,
    /// Where it computes, for `ollmlx ps`.
    pub device: String,
    /// Of its memory, the part on an accelerator, in bytes.
    pub accelerator_bytes: u64,
    /// Token id to bytes, special tokens, ends of generation.
    pub vocab: Arc<Vocab>,
    /// Where the chat template comes from.
    pub chat: ChatSource,
}

/// One slot's share of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct SlotInput<'a> {
    /// Which sequence.
    pub slot: SlotId,
    /// What to append; not empty.
    pub tokens: &'a [TokenId],
    /// Whether the logits after the last of them are wanted.
    pub logits: bool,
}

/// How far embeddings have come.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbedStep {
    /// There is more to compute.
    Part {
        /// Tokens computed so far, the inputs in their order.
        done_tokens: usize,
    },
    /// One vector per input; nothing is begun any more.
    Vectors(Vec<Vec<f32>>),
}

/// Why a computation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The cache has no room for the batch; nothing was computed. Trying with fewer slots may work.
    #[error("no room in the key-value cache")]
    NoRoom,
    /// The computation failed; slots of the batch are in an unknown state, others are as before.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// The engine is of no use any more; the worker must exit.
    #[error("the engine is broken: {0}")]
    Broken(String),
    /// This model can't do that, or what it was given is none that it can compute; nothing has changed.
    #[error("{0}")]
    Refused(Failure),
}
