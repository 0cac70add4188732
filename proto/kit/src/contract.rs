//! The contract of [`Engine`], checked once, before an engine is called.
//!
//! [`Checked`] keeps count of what each slot holds, and refuses what an engine must never see: ids, lengths and slots out of
//! range, which llama.cpp ends the process for. So engines have no checks of their own, and whichever of them computes, a
//! client is told the same. Knows nothing of requests.

use std::sync::Arc;

use ollmlx_proto::limits::{BATCH_TOKENS_MAX, CONTEXT_TOKENS_MIN, SLOTS_MAX};
use ollmlx_proto::{Failure, FailureKind, LoadSpec, MemoryReport, SlotId, TokenId};

use crate::engine::{EmbedStep, Engine, EngineError, EngineFacts, Pulse, SlotInput, Tokenizer};
use crate::limits::{BATCH_TOKENS, RENDERED_BYTES_MAX};

/// Ollama's words for a prompt that does not fit.
pub(crate) const PROMPT_TOO_LONG: &str = "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the context \
     length in settings, or use a model with a longer context length";
/// Ollama's words for an input to embed that does not fit.
pub(crate) const INPUT_TOO_LONG: &str = "the input length exceeds the context length";
/// What a model without vectors says.
pub const NO_EMBEDDINGS: &str = "this model does not support embeddings";
/// What a model with nothing but vectors says.
pub const ONLY_EMBEDDINGS: &str = "this model only makes embeddings";

/// A load order with its numbers in range. What is more than the model can is for the engine to know.
#[must_use]
pub fn in_range(order: LoadSpec) -> LoadSpec {
    let slots = order.slots.clamp(1, SLOTS_MAX);
    let batch_tokens = if order.batch_tokens == 0 { BATCH_TOKENS } else { order.batch_tokens };
    LoadSpec {
        slots,
        context_tokens: order.context_tokens.max(CONTEXT_TOKENS_MIN),
        // A batch holds at least one token of each slot.
        batch_tokens: batch_tokens.clamp(slots.into(), BATCH_TOKENS_MAX),
        ..order
    }
}

/// Element type of keys and values in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CellType {
    /// 32 bits.
    F32,
    /// 16 bits.
    #[default]
    F16,
    /// 16 bits, with the exponents of 32.
    Bf16,
    /// 8 bits, in blocks with a scale.
    Q8_0,
    /// 4 bits, likewise.
    Q4_0,
}

impl CellType {
    /// What the word of a load order stands for; none is [`CellType::F16`].
    ///
    /// # Errors
    /// There is no such type.
    pub fn named(word: &str) -> Result<Self, Failure> {
        Ok(match word {
            "" | "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "q8_0" => Self::Q8_0,
            "q4_0" => Self::Q4_0,
            _ => {
                let word: String = word.chars().take(32).collect();
                let text = format!("unknown key-value cache type {word:?}; known are f16, bf16, f32, q8_0 and q4_0");
                return Err(Failure::new(FailureKind::LoadFailed, text));
            }
        })
    }
}

/// An engine that is only called as its contract allows.
#[derive(Debug)]
pub struct Checked<E> {
    engine: E,
    /// Tokens that each slot holds.
    used: Vec<usize>,
}

impl<E: Engine> Checked<E> {
    /// All slots are empty.
    pub fn new(engine: E) -> Self {
        let slots = engine.facts().slots.clamp(1, SLOTS_MAX).into();
        Self { engine, used: vec![0; slots] }
    }

    /// The engine itself, to look at.
    pub fn inner(&self) -> &E {
        &self.engine
    }

    /// The engine itself, for a test to prepare what it does next.
    #[cfg(test)]
    pub(crate) fn inner_mut(&mut self) -> &mut E {
        &mut self.engine
    }

    fn check(&self, batch: &[SlotInput<'_>]) -> Result<(), Failure> {
        let facts = self.engine.facts();
        if facts.embedding {
            return Err(Failure::new(FailureKind::Unsupported, ONLY_EMBEDDINGS));
        }
        let mut seen = vec![false; self.used.len()];
        for SlotInput { slot, tokens, .. } in batch {
            let index = usize::from(slot.0);
            match seen.get_mut(index) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(defect(format!("slot {index} is twice in a batch"))),
                None => return Err(defect(format!("there is no slot {index}"))),
            }
            if tokens.is_empty() {
                return Err(defect(format!("slot {index} brings no tokens")));
            }
            self.check_ids(tokens)?;
            let length = self.used[index].saturating_add(tokens.len());
            if length > facts.context_tokens as usize {
                return Err(Failure::new(FailureKind::ContextExceeded, PROMPT_TOO_LONG)
                    .with_detail(format!("{length} tokens, window of {}", facts.context_tokens)));
            }
        }
        let sum: usize = batch.iter().map(|input| input.tokens.len()).sum();
        if sum > facts.batch_tokens as usize {
            return Err(defect(format!("{sum} tokens in a batch of {}", facts.batch_tokens)));
        }
        Ok(())
    }

    fn check_inputs(&self, inputs: &[Vec<TokenId>]) -> Result<(), Failure> {
        let window = self.engine.facts().context_tokens;
        for input in inputs {
            if input.is_empty() {
                return Err(Failure::new(FailureKind::InvalidRequest, "an input is empty"));
            }
            if input.len() > window as usize {
                return Err(Failure::new(FailureKind::ContextExceeded, INPUT_TOO_LONG)
                    .with_detail(format!("{} tokens, window of {window}", input.len())));
            }
            self.check_ids(input)?;
        }
        Ok(())
    }

    fn check_ids(&self, tokens: &[TokenId]) -> Result<(), Failure> {
        let size = self.engine.facts().vocab.len();
        match tokens.iter().find(|&&token| token as usize >= size) {
            None => Ok(()),
            Some(token) => Err(Failure::new(
                FailureKind::InvalidRequest,
                format!("the prompt holds token {token}, but the model has only {size}"),
            )),
        }
    }

    fn used(&self, slot: SlotId) -> Option<usize> {
        self.used.get(usize::from(slot.0)).copied()
    }
}

/// A tokenizer whose texts are bounded, and whose tokens the model has.
struct CheckedTokenizer {
    tokenizer: Arc<dyn Tokenizer>,
    /// Tokens of the vocabulary.
    size: usize,
}

impl Tokenizer for CheckedTokenizer {
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        if text.len() > RENDERED_BYTES_MAX {
            let text = format!("the text has {} bytes, over the limit of {RENDERED_BYTES_MAX}", text.len());
            return Err(Failure::new(FailureKind::InvalidRequest, text));
        }
        let tokens = self.tokenizer.tokenize(text, add_special, parse_special)?;
        match tokens.iter().find(|&&token| token as usize >= self.size) {
            None => Ok(tokens),
            Some(token) => Err(Failure::new(
                FailureKind::ModelInvalid,
                format!("the tokenizer knows token {token}, but the model has only {}", self.size),
            )),
        }
    }
}

/// The kit promised otherwise.
fn defect(detail: String) -> Failure {
    Failure::new(FailureKind::Internal, "the worker made a batch that can't be computed").with_detail(detail)
}

impl<E: Engine> Engine for Checked<E> {
    fn on_progress(&mut self, pulse: Pulse) {
        self.engine.on_progress(pulse);
    }

    fn facts(&self) -> &EngineFacts {
        self.engine.facts()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        let size = self.engine.facts().vocab.len();
        Arc::new(CheckedTokenizer { tokenizer: self.engine.tokenizer(), size })
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.check(batch).map_err(EngineError::Refused)?;
        if batch.is_empty() {
            return Ok(());
        }
        self.engine.forward(batch)?;
        for SlotInput { slot, tokens, .. } in batch {
            self.used[usize::from(slot.0)] += tokens.len();
        }
        Ok(())
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        self.engine.logits(input)
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        if self.used(slot).is_none() {
            return 0;
        }
        // Asked even where nothing is to be cut: after a failure only the engine knows what is left.
        let kept = self.engine.truncate(slot, keep);
        self.used[usize::from(slot.0)] = kept as usize;
        kept
    }

    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool {
        let end = (keep as usize).saturating_add(discard as usize);
        if self.used(slot).is_none_or(|used| end > used) {
            return false;
        }
        let shifted = self.engine.shift(slot, keep, discard);
        if shifted {
            self.used[usize::from(slot.0)] -= discard as usize;
        }
        shifted
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        if from == to {
            return self.truncate(to, tokens) == tokens;
        }
        if self.used(from).is_none_or(|used| tokens as usize > used) {
            self.truncate(to, 0);
            return false;
        }
        let Some(target) = self.used.get_mut(usize::from(to.0)) else { return false };
        let copied = self.engine.copy_prefix(from, to, tokens);
        *target = if copied { tokens as usize } else { 0 };
        copied
    }

    fn embed_begin(&mut self, inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError> {
        self.check_inputs(&inputs).map_err(EngineError::Refused)?;
        self.used.fill(0);
        self.engine.embed_begin(inputs)
    }

    fn embed_step(&mut self) -> Result<EmbedStep, EngineError> {
        self.engine.embed_step()
    }

    fn trim(&mut self) {
        self.engine.trim();
    }

    fn memory(&self) -> MemoryReport {
        self.engine.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::toy::Toy;

    /// Two slots of eight tokens, four of them at once. The toy panics at what it must not see.
    fn engine() -> Checked<Toy> {
        Checked::new(Toy::new(2, 8, 4))
    }

    fn input(slot: u16, tokens: &[TokenId]) -> SlotInput<'_> {
        SlotInput { slot: SlotId(slot), tokens, logits: true }
    }

    #[track_caller]
    fn refusal<T: std::fmt::Debug>(result: Result<T, EngineError>) -> (FailureKind, String) {
        match result {
            Err(EngineError::Refused(failure)) => (failure.kind, failure.public),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_slot_is_filled_to_its_window_and_no_further() {
        let mut engine = engine();
        for _ in 0..2 {
            engine.forward(&[input(0, &[1, 2, 3, 4])]).unwrap();
        }
        let full = (FailureKind::ContextExceeded, PROMPT_TOO_LONG.to_owned());
        assert_eq!(refusal(engine.forward(&[input(1, &[1]), input(0, &[5])])), full);
        assert_eq!(engine.inner().caches, [vec![1, 2, 3, 4, 1, 2, 3, 4], vec![]], "nothing was computed");
        assert!(engine.shift(SlotId(0), 1, 1));
        engine.forward(&[input(0, &[5])]).unwrap();
        assert_eq!(refusal(engine.forward(&[input(0, &[6])])), full);
        assert_eq!(engine.truncate(SlotId(0), 4), 4);
        engine.forward(&[input(0, &[6, 6, 6, 6])]).unwrap();
        assert!(engine.copy_prefix(SlotId(0), SlotId(1), 7));
        engine.forward(&[input(1, &[9])]).unwrap();
        assert_eq!(refusal(engine.forward(&[input(1, &[9])])), full);
    }

    #[test]
    fn batches_that_the_kit_never_makes_are_its_defect() {
        let batches: [&[SlotInput<'_>]; 4] = [
            &[input(2, &[5])],
            &[input(0, &[])],
            &[input(0, &[5]), input(0, &[6])],
            &[input(0, &[5, 5, 5]), input(1, &[5, 5])],
        ];
        for batch in batches {
            let mut engine = engine();
            assert_eq!(refusal(engine.forward(batch)).0, FailureKind::Internal, "{batch:?}");
            assert!(engine.inner().passes.is_empty());
        }
        engine().forward(&[input(0, &[5, 5, 5]), input(1, &[5])]).unwrap();
        engine().forward(&[]).unwrap();
    }

    #[test]
    fn tokens_outside_the_vocabulary_never_reach_the_engine() {
        let (last, beyond) = (257, 258);
        let mut engine = engine();
        engine.forward(&[input(0, &[last])]).unwrap();
        for token in [beyond, u32::MAX] {
            assert_eq!(refusal(engine.forward(&[input(0, &[token])])).0, FailureKind::InvalidRequest);
            assert_eq!(refusal(engine.embed(&[vec![token]])).0, FailureKind::InvalidRequest);
        }
        let mut small = Toy::new(1, 8, 4);
        let mut vocab = (*small.facts.vocab).clone();
        vocab.bytes.truncate(100);
        small.facts.vocab = vocab.into();
        let small = Checked::new(small);
        assert_eq!(small.tokenize("c", false, false).unwrap(), [99]);
        let refused = small.tokenize("d", false, false).unwrap_err();
        assert_eq!((refused.kind, refused.public.contains("token 100")), (FailureKind::ModelInvalid, true));
    }

    #[test]
    fn inputs_to_embed_have_a_token_and_fit_the_window() {
        let mut engine = engine();
        assert_eq!(engine.embed(&[vec![1; 8], vec![2]]).unwrap().len(), 2);
        let long = (FailureKind::ContextExceeded, INPUT_TOO_LONG.to_owned());
        assert_eq!(refusal(engine.embed(&[vec![1], vec![1; 9]])), long);
        assert_eq!(refusal(engine.embed(&[vec![]])), (FailureKind::InvalidRequest, "an input is empty".to_owned()));
    }

    #[test]
    fn embedding_models_only_embed() {
        let mut toy = Toy::new(1, 8, 4);
        toy.facts.embedding = true;
        let mut engine = Checked::new(toy);
        let refused = refusal(engine.forward(&[input(0, &[1])]));
        assert_eq!(refused, (FailureKind::Unsupported, ONLY_EMBEDDINGS.to_owned()));
    }

    #[test]
    fn slots_that_are_not_there_hold_nothing_and_take_nothing() {
        let mut engine = engine();
        engine.forward(&[input(0, &[1, 2, 3])]).unwrap();
        assert_eq!(engine.truncate(SlotId(2), 5), 0);
        assert!(!engine.shift(SlotId(2), 0, 0));
        assert!(!engine.shift(SlotId(0), 2, 2), "not so many tokens");
        assert!(!engine.shift(SlotId(0), u32::MAX, u32::MAX));
        assert!(!engine.copy_prefix(SlotId(0), SlotId(2), 1));
        assert!(!engine.copy_prefix(SlotId(2), SlotId(1), 1));
        assert!(!engine.copy_prefix(SlotId(0), SlotId(1), 4), "not so many tokens");
        assert!(engine.copy_prefix(SlotId(0), SlotId(0), 2), "that is a cut");
        assert_eq!(engine.truncate(SlotId(0), 9), 2);
    }

    #[test]
    fn texts_have_a_limit() {
        // The toy has its own words for this text, so that the longest need not become tokens.
        let mut text = "!refuse".to_owned();
        text.extend(std::iter::repeat_n('a', RENDERED_BYTES_MAX - text.len()));
        assert_eq!(engine().tokenize(&text, false, false).unwrap_err().public, "refused");
        text.push('a');
        let refused = engine().tokenize(&text, false, false).unwrap_err();
        assert_eq!((refused.kind, refused.public.contains("over the limit")), (FailureKind::InvalidRequest, true));
    }

    #[test]
    fn orders_are_brought_into_range() {
        let order = |slots, context_tokens, batch_tokens| {
            let spec = in_range(LoadSpec { slots, context_tokens, batch_tokens, ..LoadSpec::default() });
            (spec.slots, spec.context_tokens, spec.batch_tokens)
        };
        assert_eq!(order(0, 0, 0), (1, CONTEXT_TOKENS_MIN, BATCH_TOKENS));
        assert_eq!(order(SLOTS_MAX + 1, 8192, 1), (SLOTS_MAX, 8192, SLOTS_MAX.into()));
        assert_eq!(order(4, 8192, BATCH_TOKENS_MAX + 1), (4, 8192, BATCH_TOKENS_MAX));
        assert_eq!(order(4, 8192, 128), (4, 8192, 128), "what is in range stays");
    }

    #[test]
    fn cell_types_have_names() {
        assert_eq!(CellType::named(""), Ok(CellType::default()));
        assert_eq!(CellType::named("q8_0"), Ok(CellType::Q8_0));
        let refused = CellType::named("q9").unwrap_err();
        assert_eq!((refused.kind, refused.public.contains("q9")), (FailureKind::LoadFailed, true));
    }
}
