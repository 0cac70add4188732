//! A context in llama.cpp: what is computed with a model, and the cache of its sequences.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use llama_cpp_sys_2::{llama_context, llama_memory_t};
use ollmlx_proto::FlashAttention;
use ollmlx_worker_kit::contract::CellType;

use super::batch::Batch;
use super::model::Model;
use crate::limits::NODES_PER_BEAT;
use crate::memory::Layout;

/// A context. One thread has it.
#[derive(Debug)]
pub struct Context<'m> {
    raw: NonNull<llama_context>,
    sequences: u32,
    batch_tokens: usize,
    /// llama.cpp has its address.
    heart: Option<Arc<Heart>>,
    model: &'m Model,
}

/// How a context is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Cells of the cache, over all sequences.
    pub cells: u32,
    /// How sequences lie in them.
    pub layout: Layout,
    /// Element type of keys and values.
    pub cell_type: CellType,
    /// Whether attention is fused.
    pub flash_attention: FlashAttention,
    /// Most tokens of one batch.
    pub batch_tokens: u32,
    /// Of these, so many are computed in one pass over the weights.
    pub micro_batch_tokens: u32,
    /// How many sequences there are.
    pub sequences: u32,
    /// CPU threads.
    pub threads: u16,
    /// What comes out.
    pub outputs: Outputs,
}

/// What comes out of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Logits of tokens.
    Logits,
    /// Hidden states of tokens, by [`Context::decode_hidden`].
    HiddenStates,
    /// One vector of each sequence.
    Vectors(Pooling),
}

/// How the vectors of an input's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Of all.
    Mean,
    /// That of the first.
    First,
    /// That of the last.
    Last,
}

/// Why a batch was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The cache has no room for it.
    #[error("no room in the cache")]
    NoRoom,
    /// It has none, or more tokens than the context takes, which llama.cpp would abort for.
    #[error("a batch of {tokens} tokens where {tokens_max} are possible")]
    Size {
        /// What it has.
        tokens: usize,
        /// What is possible.
        tokens_max: usize,
    },
    /// Its log says why.
    #[error("llama_decode returned {0}")]
    Failed(i32),
}

/// What llama.cpp calls while it computes on a CPU.
pub struct Heart {
    nodes: AtomicU32,
    beat: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Heart {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Heart")
    }
}

impl Heart {
    /// `beat` is called now and then while a context computes, on the thread that asked for it. A panic
    /// in it ends the process.
    pub fn new(beat: impl Fn() + Send + Sync + 'static) -> Self {
        Self { nodes: AtomicU32::new(0), beat: Box::new(beat) }
    }

    /// The next node of a graph is computed.
    fn node(&self) {
        if self.nodes.fetch_add(1, Ordering::Relaxed).is_multiple_of(NODES_PER_BEAT) {
            (self.beat)();
        }
    }
}

impl<'m> Context<'m> {
    /// Makes a context; `None` where llama.cpp refuses, for which its log has the reason.
    #[must_use]
    pub fn open(model: &'m Model, settings: &Settings) -> Option<Self> {
        let params = params(settings);
        // JUSTIFICATION: this makes a context.
        // SAFETY: the model lives, and is written to by this thread alone, since it can't leave its thread; the parameters
        // name nothing that must outlive the call.
        let raw = unsafe { llama_cpp_sys_2::llama_init_from_model(model.raw().as_ptr(), params) };
        let raw = NonNull::new(raw)?;
        // JUSTIFICATION: it may be less than what was asked for.
        // SAFETY: the context was just made.
        let batch_tokens = unsafe { llama_cpp_sys_2::llama_n_batch(raw.as_ptr()) };
        Some(Self { raw, sequences: settings.sequences, batch_tokens: batch_tokens as usize, heart: None, model })
    }

    /// Most tokens of a batch.
    #[must_use]
    pub fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// Cells of the cache, over all sequences.
    #[must_use]
    pub fn cells(&self) -> usize {
        // JUSTIFICATION: llama.cpp rounds what was asked for.
        // SAFETY: the context lives; the call reads it.
        let cells = unsafe { llama_cpp_sys_2::llama_n_ctx(self.raw.as_ptr()) };
        cells as usize
    }

    /// Computes a batch, after which the outputs of its tokens can be read by their places in it.
    ///
    /// # Errors
    /// There was no room, or something failed.
    pub fn decode(&mut self, batch: &mut Batch) -> Result<(), DecodeError> {
        if batch.is_empty() || batch.len() > self.batch_tokens {
            return Err(DecodeError::Size { tokens: batch.len(), tokens_max: self.batch_tokens });
        }
        let raw = batch.raw();
        // JUSTIFICATION: this computes.
        // SAFETY: the arrays of the batch have as many entries as it says, live until the call returns, and are not kept;
        // the heart that it may call lives as long as the context.
        match unsafe { llama_cpp_sys_2::llama_decode(self.raw.as_ptr(), raw) } {
            0 => Ok(()),
            1 => Err(DecodeError::NoRoom),
            status => Err(DecodeError::Failed(status)),
        }
    }

    /// The same with the hidden state of each token beside its logits, for a context that is made for logits.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_hidden(&mut self, batch: &mut Batch) -> Result<(), DecodeError> {
        // JUSTIFICATION: a context made for embeddings needs one more cache; one that generates can be switched.
        // SAFETY: the context lives; the call sets a flag that the next batch heeds.
        unsafe { llama_cpp_sys_2::llama_set_embeddings(self.raw.as_ptr(), true) };
        let decoded = self.decode(batch);
        // JUSTIFICATION: as above.
        // SAFETY: as above; what the batch computed stays to be read.
        unsafe { llama_cpp_sys_2::llama_set_embeddings(self.raw.as_ptr(), false) };
        decoded
    }

    /// The logits after the token at this place of the last batch, where they were wanted.
    #[must_use]
    pub fn logits(&mut self, place: usize) -> Option<&[f32]> {
        let place = i32::try_from(place).ok()?;
        // JUSTIFICATION: this is where llama.cpp keeps them.
        // SAFETY: the context lives; a place without logits is null.
        let logits = unsafe { llama_cpp_sys_2::llama_get_logits_ith(self.raw.as_ptr(), place) };
        self.floats(logits, self.model.token_count() as usize)
    }

    /// The hidden state of the token at this place of the last batch, where it was wanted.
    #[must_use]
    pub fn hidden_state(&mut self, place: usize) -> Option<&[f32]> {
        let place = i32::try_from(place).ok()?;
        // JUSTIFICATION: this is where llama.cpp keeps them.
        // SAFETY: the context lives; a place without a hidden state is null.
        let state = unsafe { llama_cpp_sys_2::llama_get_embeddings_ith(self.raw.as_ptr(), place) };
        self.floats(state, self.model.vector_length())
    }

    /// The vector of a sequence of the last batch, where the context makes them.
    #[must_use]
    pub fn vector(&mut self, sequence: usize) -> Option<&[f32]> {
        let sequence = self.sequence(sequence);
        // JUSTIFICATION: this is where llama.cpp keeps them.
        // SAFETY: the context lives; a sequence without a vector is null.
        let vector = unsafe { llama_cpp_sys_2::llama_get_embeddings_seq(self.raw.as_ptr(), sequence) };
        self.floats(vector, self.model.vector_length())
    }

    fn floats(&mut self, first: *mut f32, length: usize) -> Option<&[f32]> {
        let first = NonNull::new(first)?;
        // JUSTIFICATION: this is how llama.cpp hands over its outputs.
        // SAFETY: not null, and `length` floats are there: the vocabulary's size for logits, the output width of the model
        // for the rest. They stay until the context computes again, for which it would have to be borrowed once more.
        Some(unsafe { std::slice::from_raw_parts(first.as_ptr().cast_const(), length) })
    }

    /// Uses the model's adapter from now on, where it has one.
    ///
    /// # Errors
    /// It does not fit.
    pub fn use_adapter(&mut self) -> Result<(), DecodeError> {
        let Some(adapter) = self.model.raw_adapter() else { return Ok(()) };
        let (mut adapters, mut scales) = ([adapter.as_ptr()], [1.0]);
        // JUSTIFICATION: adapters belong to a context.
        // SAFETY: both arrays have one entry and are copied; the adapter was made for this model, and lives as long as it,
        // which outlives the context.
        let status = unsafe {
            llama_cpp_sys_2::llama_set_adapters_lora(
                self.raw.as_ptr(),
                adapters.as_mut_ptr(),
                adapters.len(),
                scales.as_mut_ptr(),
            )
        };
        if status == 0 { Ok(()) } else { Err(DecodeError::Failed(status)) }
    }

    /// Lets a heart beat while the context computes, from now on. An accelerator tells nothing of its nodes.
    pub fn hear(&mut self, heart: Arc<Heart>) {
        let data: *const Heart = Arc::as_ptr(&heart);
        // JUSTIFICATION: the one call that llama.cpp makes while it computes.
        // SAFETY: the context keeps the heart for as long as llama.cpp may call; it is only ever shared, and `on_node` takes
        // its address for nothing else.
        unsafe {
            llama_cpp_sys_2::llama_set_abort_callback(self.raw.as_ptr(), Some(on_node), data.cast_mut().cast());
        }
        self.heart = Some(heart);
    }

    fn memory(&self) -> llama_memory_t {
        // JUSTIFICATION: the cache is a part of the context with functions of its own.
        // SAFETY: the context lives; null, where it has no cache, is taken by every function of these.
        unsafe { llama_cpp_sys_2::llama_get_memory(self.raw.as_ptr()) }
    }

    /// llama.cpp aborts on a sequence that it was not made for.
    fn sequence(&self, sequence: usize) -> i32 {
        let id = u32::try_from(sequence).ok().filter(|id| *id < self.sequences);
        id.expect("sequences are those that the context was made for").cast_signed()
    }

    /// Forgets all sequences and wipes the cache.
    pub fn clear(&mut self) {
        // JUSTIFICATION: the cache is llama.cpp's.
        // SAFETY: it lives as long as the context.
        unsafe { llama_cpp_sys_2::llama_memory_clear(self.memory(), true) }
    }

    /// Forgets what a sequence has from one position on, up to another one or to its end. `false` where only a whole one
    /// can be forgotten, which always works.
    ///
    /// # Panics
    /// There is no such sequence.
    pub fn remove(&mut self, sequence: usize, from: u32, to: Option<u32>) -> bool {
        let sequence = self.sequence(sequence);
        // JUSTIFICATION: the cache is llama.cpp's.
        // SAFETY: it lives as long as the context, and the sequence is one of its own.
        unsafe { llama_cpp_sys_2::llama_memory_seq_rm(self.memory(), sequence, position(from), end(to)) }
    }

    /// Lets a sequence use what another one has before a position; without one, all of it. Where each sequence has its
    /// own part of the cells, llama.cpp aborts if it is asked for less.
    ///
    /// # Panics
    /// There is no such sequence.
    pub fn copy(&mut self, from: usize, to: usize, before: Option<u32>) {
        let (from, to) = (self.sequence(from), self.sequence(to));
        // JUSTIFICATION: the cache is llama.cpp's.
        // SAFETY: it lives as long as the context, and the sequences are its own.
        unsafe { llama_cpp_sys_2::llama_memory_seq_cp(self.memory(), from, to, 0, end(before)) }
    }

    /// Moves what a sequence has from a position on to earlier ones, with the next batch.
    ///
    /// # Panics
    /// There is no such sequence.
    pub fn move_up(&mut self, sequence: usize, from: u32, by: u32) {
        let sequence = self.sequence(sequence);
        // JUSTIFICATION: the cache is llama.cpp's.
        // SAFETY: it lives as long as the context, and the sequence is one of its own.
        unsafe {
            llama_cpp_sys_2::llama_memory_seq_add(self.memory(), sequence, position(from), end(None), -position(by));
        }
    }

    /// Whether positions can be moved at all; where not, the next batch would end the process.
    #[must_use]
    pub fn can_move(&self) -> bool {
        // JUSTIFICATION: only llama.cpp knows.
        // SAFETY: the cache lives as long as the context; the call reads it.
        unsafe { llama_cpp_sys_2::llama_memory_can_shift(self.memory()) }
    }

    /// The first position that is still there; `None` for an empty sequence.
    ///
    /// # Panics
    /// There is no such sequence.
    #[must_use]
    pub fn oldest_position(&self, sequence: usize) -> Option<u32> {
        let sequence = self.sequence(sequence);
        // JUSTIFICATION: only llama.cpp knows.
        // SAFETY: the cache lives as long as the context, and the sequence is one of its own; the call reads it.
        let oldest = unsafe { llama_cpp_sys_2::llama_memory_seq_pos_min(self.memory(), sequence) };
        u32::try_from(oldest).ok()
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // JUSTIFICATION: what was made is given back.
        // SAFETY: it was made by `open`, and nobody has what it lent any more; model and heart go later.
        unsafe { llama_cpp_sys_2::llama_free(self.raw.as_ptr()) }
    }
}

fn params(settings: &Settings) -> llama_cpp_sys_2::llama_context_params {
    // JUSTIFICATION: only llama.cpp knows its defaults.
    // SAFETY: it returns plain data.
    let mut params = unsafe { llama_cpp_sys_2::llama_context_default_params() };
    params.n_ctx = settings.cells;
    params.n_batch = settings.batch_tokens;
    params.n_ubatch = settings.micro_batch_tokens;
    params.n_seq_max = settings.sequences;
    params.n_threads = settings.threads.into();
    params.n_threads_batch = settings.threads.into();
    params.type_k = cell_type(settings.cell_type);
    params.type_v = cell_type(settings.cell_type);
    params.flash_attn_type = match settings.flash_attention {
        FlashAttention::Auto => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    params.kv_unified = settings.layout == Layout::Shared;
    params.swa_full = false;
    params.no_perf = true;
    match settings.outputs {
        Outputs::Logits => {}
        Outputs::HiddenStates => params.pooling_type = llama_cpp_sys_2::LLAMA_POOLING_TYPE_NONE,
        Outputs::Vectors(pooling) => {
            params.embeddings = true;
            params.pooling_type = match pooling {
                Pooling::Mean => llama_cpp_sys_2::LLAMA_POOLING_TYPE_MEAN,
                Pooling::First => llama_cpp_sys_2::LLAMA_POOLING_TYPE_CLS,
                Pooling::Last => llama_cpp_sys_2::LLAMA_POOLING_TYPE_LAST,
            };
        }
    }
    params
}

fn cell_type(name: CellType) -> llama_cpp_sys_2::ggml_type {
    match name {
        CellType::F32 => llama_cpp_sys_2::GGML_TYPE_F32,
        CellType::F16 => llama_cpp_sys_2::GGML_TYPE_F16,
        CellType::Bf16 => llama_cpp_sys_2::GGML_TYPE_BF16,
        CellType::Q8_0 => llama_cpp_sys_2::GGML_TYPE_Q8_0,
        CellType::Q4_0 => llama_cpp_sys_2::GGML_TYPE_Q4_0,
    }
}

/// Windows have at most 22 bits.
fn position(position: u32) -> i32 {
    i32::try_from(position).unwrap_or(i32::MAX)
}

/// llama.cpp's word for the end is a negative position.
fn end(before: Option<u32>) -> i32 {
    before.map_or(-1, position)
}

/// After each node: whether to give up, which is never wanted.
unsafe extern "C" fn on_node(heart: *mut c_void) -> bool {
    // JUSTIFICATION: this is how llama.cpp hands back what `Context::hear` gave it.
    // SAFETY: it is the heart that the context keeps, which is only ever shared.
    let heart = unsafe { heart.cast_const().cast::<Heart>().as_ref() };
    if let Some(heart) = heart {
        heart.node();
    }
    false
}
