//! The engine: sequences and tokens on a llama.cpp context.
//!
//! Slot n is sequence n. The cache is split per sequence (not unified), so that one sequence's length does not slow
//! the attention of another. llama.cpp aborts the process on ids and lengths it does not expect, so nothing reaches it
//! unchecked.

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use ollmlx_proto::{Failure, FailureKind, MemoryReport, SlotId, TokenId};
use ollmlx_worker_kit::engine::{Engine, EngineError, EngineFacts, SlotInput};

/// Texts longer than this are not given to the tokenizer in one call: its lengths are 32-bit.
const TEXT_BYTES_MAX: usize = 1 << 30;

/// What of the model's make-up decides what its cache can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Width of the sliding window, where some layers have one.
    pub(crate) sliding_window: Option<u64>,
    /// Whether cached positions can be moved.
    pub(crate) can_shift: bool,
    /// Whether a sequence can be copied.
    pub(crate) can_copy: bool,
    pub(crate) weight_bytes: u64,
    pub(crate) kv_bytes: u64,
}

/// A loaded model with its context.
#[derive(Debug)]
pub(crate) struct GgufEngine {
    backend: &'static LlamaBackend,
    model: &'static LlamaModel,
    context: LlamaContext<'static>,
    params: LlamaContextParams,
    /// A second context for embeddings of a model that generates; made at the first such request.
    embedder: Option<LlamaContext<'static>>,
    batch: LlamaBatch<'static>,
    facts: EngineFacts,
    shape: Shape,
    /// Tokens cached per slot.
    lengths: Vec<u32>,
    /// For each input of the last pass, where its logits are.
    outputs: Vec<Option<i32>>,
    row: Vec<f32>,
}

impl GgufEngine {
    pub(crate) fn new(
        backend: &'static LlamaBackend,
        model: &'static LlamaModel,
        context: LlamaContext<'static>,
        params: LlamaContextParams,
        facts: EngineFacts,
        shape: Shape,
    ) -> Self {
        let batch = LlamaBatch::new(facts.batch_tokens as usize, 1);
        let lengths = vec![0; usize::from(facts.slots)];
        Self {
            backend,
            model,
            context,
            params,
            embedder: None,
            batch,
            facts,
            shape,
            lengths,
            outputs: Vec::new(),
            row: Vec::new(),
        }
    }

    /// One token through the real path, then an empty cache: a `Ready` is true.
    pub(crate) fn warm_up(&mut self) -> Result<(), EngineError> {
        let vocab = &self.facts.vocab;
        let token = vocab.bos.or(vocab.eos).unwrap_or(0);
        if self.facts.embedding {
            return self.embed(&[vec![token]]).map(drop);
        }
        self.forward(&[SlotInput { slot: SlotId(0), tokens: &[token], logits: true }])?;
        self.truncate(SlotId(0), 0);
        Ok(())
    }

    fn slot(&self, slot: SlotId) -> Result<usize, EngineError> {
        let index = usize::from(slot.0);
        if index < self.lengths.len() {
            Ok(index)
        } else {
            Err(EngineError::Failed(format!("slot {index} does not exist")))
        }
    }

    fn check(&self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        let total: usize = batch.iter().map(|input| input.tokens.len()).sum();
        if total == 0 || total > self.facts.batch_tokens as usize {
            return Err(EngineError::Failed(format!("a batch of {total} tokens")));
        }
        for input in batch {
            let slot = self.slot(input.slot)?;
            if self.lengths[slot] as usize + input.tokens.len() > self.facts.context_tokens as usize {
                return Err(EngineError::Failed(format!("slot {slot} would outgrow its window")));
            }
            self.check_tokens(input.tokens)?;
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[TokenId]) -> Result<(), EngineError> {
        let size = self.facts.vocab.len();
        match tokens.iter().find(|&&token| token as usize >= size) {
            None => Ok(()),
            Some(stranger) => Err(EngineError::Failed(format!("token {stranger} is outside the vocabulary of {size}"))),
        }
    }

    fn fill(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.batch.clear();
        self.outputs.clear();
        for input in batch {
            let first = self.lengths[usize::from(input.slot.0)];
            let last = input.tokens.len() - 1;
            for (index, &token) in input.tokens.iter().enumerate() {
                let position = i32::try_from(first as usize + index).map_err(too_large)?;
                let token = LlamaToken(i32::try_from(token).map_err(too_large)?);
                let wanted = input.logits && index == last;
                self.batch.add(token, position, &[i32::from(input.slot.0)], wanted).map_err(failed)?;
            }
            self.outputs.push(input.logits.then(|| self.batch.n_tokens() - 1));
        }
        Ok(())
    }

    /// After a failed pass the cache may hold part of it.
    fn roll_back(&mut self, batch: &[SlotInput<'_>]) {
        for input in batch {
            let keep = self.lengths[usize::from(input.slot.0)];
            self.truncate(input.slot, keep);
        }
    }

    fn clear_all(&mut self) {
        self.context.clear_kv_cache();
        self.lengths.fill(0);
    }

    /// One group that fits a batch.
    fn embed_group(&mut self, inputs: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let context = match &mut self.embedder {
            Some(context) => context,
            None => &mut self.context,
        };
        context.clear_kv_cache();
        self.batch.clear();
        for (sequence, tokens) in inputs.iter().enumerate() {
            for (position, &token) in tokens.iter().enumerate() {
                let token = LlamaToken(i32::try_from(token).map_err(too_large)?);
                let position = i32::try_from(position).map_err(too_large)?;
                let sequence = i32::try_from(sequence).map_err(too_large)?;
                self.batch.add(token, position, &[sequence], true).map_err(failed)?;
            }
        }
        context.decode(&mut self.batch).map_err(|error| decode_error(&error))?;
        let vectors = (0..inputs.len())
            .map(|sequence| {
                let sequence = i32::try_from(sequence).map_err(too_large)?;
                context.embeddings_seq_ith(sequence).map(<[f32]>::to_vec).map_err(failed)
            })
            .collect();
        context.clear_kv_cache();
        vectors
    }

    /// A model that generates has no pooled output in its own context: another one is made for that.
    fn ensure_embedder(&mut self) -> Result<(), EngineError> {
        if self.facts.embedding || self.embedder.is_some() {
            return Ok(());
        }
        let params = self
            .params
            .clone()
            .with_embeddings(true)
            .with_pooling_type(LlamaPoolingType::Mean)
            .with_n_ubatch(self.facts.batch_tokens);
        self.embedder = Some(self.model.new_context(self.backend, params).map_err(failed)?);
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

fn too_large(error: std::num::TryFromIntError) -> EngineError {
    EngineError::Failed(error.to_string())
}

fn decode_error(error: &DecodeError) -> EngineError {
    match error {
        DecodeError::NoKvCacheSlot => EngineError::NoRoom,
        other => EngineError::Failed(other.to_string()),
    }
}

impl Engine for GgufEngine {
    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Failure::new(FailureKind::InvalidRequest, "the text is too long for the tokenizer"));
        }
        let tokens = self.model.vocab().tokenize(text.as_bytes(), add_special, parse_special);
        tokens
            .into_iter()
            .map(|token| TokenId::try_from(token.0))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::new(FailureKind::EngineFailed, "the tokenizer returned a negative token"))
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.check(batch)?;
        self.fill(batch)?;
        if let Err(error) = self.context.decode(&mut self.batch) {
            self.roll_back(batch);
            return Err(decode_error(&error));
        }
        for input in batch {
            let added = u32::try_from(input.tokens.len()).unwrap_or(u32::MAX);
            self.lengths[usize::from(input.slot.0)] += added;
        }
        Ok(())
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        let output = self.outputs[input].expect("the caller asked for these logits");
        self.row.clear();
        self.row.extend_from_slice(self.context.get_logits_ith(output));
        &mut self.row
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        let Ok(index) = self.slot(slot) else { return 0 };
        let sequence = u32::from(slot.0);
        let mut kept = keep.min(self.lengths[index]);
        if kept > 0
            && let Some(window) = self.shape.sliding_window
        {
            // What slid out of the window is gone: the next token could not see as far back as it must.
            let oldest = self.context.kv_cache_seq_pos_min(i32::from(slot.0));
            let needed = i64::from(kept) - i64::try_from(window).unwrap_or(i64::MAX);
            if i64::from(oldest) > needed.max(0) {
                kept = 0;
            }
        }
        let cut = kept > 0 && self.context.clear_kv_cache_seq(Some(sequence), Some(kept), None) == Ok(true);
        if !cut {
            kept = 0;
            // Removing a whole sequence always works.
            let _ = self.context.clear_kv_cache_seq(Some(sequence), None, None);
        }
        self.lengths[index] = kept;
        kept
    }

    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool {
        let Ok(index) = self.slot(slot) else { return false };
        let length = self.lengths[index];
        let Some(end) = keep.checked_add(discard).filter(|&end| discard > 0 && end < length) else { return false };
        let Ok(distance) = i32::try_from(discard) else { return false };
        let sequence = u32::from(slot.0);
        if !self.shape.can_shift
            || self.context.clear_kv_cache_seq(Some(sequence), Some(keep), Some(end)) != Ok(true)
            || self.context.kv_cache_seq_add(i32::from(slot.0), Some(end), Some(length), -distance).is_err()
        {
            return false;
        }
        self.lengths[index] = length - discard;
        true
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        let (Ok(source), Ok(target)) = (self.slot(from), self.slot(to)) else { return false };
        self.truncate(to, 0);
        if !self.shape.can_copy || source == target || tokens > self.lengths[source] {
            return false;
        }
        // Between split caches llama.cpp copies whole sequences only; the end is cut off afterwards.
        let copied = self.context.copy_kv_cache_seq(i32::from(from.0), i32::from(to.0), None, None);
        if copied.is_err() {
            return false;
        }
        self.lengths[target] = self.lengths[source];
        if self.truncate(to, tokens) == tokens {
            return true;
        }
        self.truncate(to, 0);
        false
    }

    fn embed(&mut self, inputs: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.ensure_embedder()?;
        self.clear_all();
        let mut vectors = Vec::with_capacity(inputs.len());
        let mut rest = inputs;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |input: &&Vec<TokenId>| {
                tokens += input.len();
                tokens <= self.facts.batch_tokens as usize
            };
            let group = rest.iter().take(usize::from(self.facts.slots)).take_while(fits).count();
            if group == 0 {
                let text = format!("an input of {} tokens does not fit a batch", rest[0].len());
                return Err(EngineError::Unsupported(text));
            }
            for input in &rest[..group] {
                self.check_tokens(input)?;
            }
            vectors.extend(self.embed_group(&rest[..group])?);
            rest = &rest[group..];
        }
        Ok(vectors)
    }

    fn memory(&self) -> MemoryReport {
        let rows = u64::from(self.facts.batch_tokens.min(512));
        // One row of logits per token of a micro-batch is what llama.cpp reserves.
        let compute = rows.saturating_mul(self.facts.vocab.len() as u64).saturating_mul(4);
        MemoryReport { weights: self.shape.weight_bytes, kv: self.shape.kv_bytes, compute }
    }
}
