//! llama.cpp behind the kit's [`Engine`].
//!
//! An engine owns one context, in which each slot is a sequence ([`slots`]), and a batch of some slots' tokens is one
//! call. How slots lie in the cache is decided at load ([`load`]).
//!
//! Nothing goes down to llama.cpp that it would abort on: token ids, sequence ids and lengths are checked here.

mod embed;
mod load;
mod slots;
#[cfg(test)]
mod tests;
mod vocab;

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use ollmlx_proto::{Failure, FailureKind, MemoryReport, SlotId, TokenId};
use ollmlx_worker_kit::engine::{EmbedStep, Engine, EngineError, EngineFacts, Pulse, SlotInput};
use ollmlx_worker_kit::tell::tell;

use self::embed::{Embedder, Underway};
pub use self::load::load;
use self::slots::Slots;
use crate::ffi::Heart;

/// Bytes of a text to tokenise; llama.cpp counts in 31 bits, and some of its tokenizers need many times the text.
const TEXT_BYTES_MAX: usize = ollmlx_proto::limits::RENDERED_BYTES_MAX;

/// A loaded model with its cache.
#[derive(Debug)]
pub struct GgufEngine {
    facts: EngineFacts,
    /// Leaked on purpose: a context borrows its model, and both live as long as the process, which serves this model
    /// and no other. A struct that owns both would need unsafe code.
    model: &'static LlamaModel,
    /// `None` for models that look both ways.
    generator: Option<Generator>,
    embedder: Embedder,
    embeddings: Option<Underway>,
    memory: MemoryReport,
    /// Kept for as long as the context uses it.
    _adapter: Option<LlamaLoraAdapter>,
}

/// What generation needs, and embeddings of models that look back only.
#[derive(Debug)]
struct Generator {
    context: LlamaContext<'static>,
    batch: LlamaBatch<'static>,
    slots: Slots,
    /// Logits of each input of the last batch; empty where they were not asked for.
    logits: Vec<Vec<f32>>,
    vocab_size: usize,
    batch_tokens: usize,
    context_tokens: usize,
}

impl Generator {
    fn check(&self, inputs: &[SlotInput<'_>]) -> Result<(), EngineError> {
        let mut seen = vec![false; self.slots.len()];
        let mut tokens = 0;
        for input in inputs {
            let slot = usize::from(input.slot.0);
            match seen.get_mut(slot) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(EngineError::Failed(format!("slot {slot} is twice in a batch"))),
                None => return Err(EngineError::Failed(format!("there is no slot {slot}"))),
            }
            if input.tokens.is_empty() {
                return Err(EngineError::Failed(format!("slot {slot} brings no tokens")));
            }
            if let Some(token) = input.tokens.iter().find(|token| **token as usize >= self.vocab_size) {
                return Err(EngineError::Failed(format!("token {token} is outside the vocabulary")));
            }
            if self.slots.used(slot) as usize + input.tokens.len() > self.context_tokens {
                return Err(EngineError::Failed(format!("slot {slot} would grow over its window")));
            }
            tokens += input.tokens.len();
        }
        if tokens > self.batch_tokens {
            return Err(EngineError::Failed(format!("{tokens} tokens in a batch of {}", self.batch_tokens)));
        }
        Ok(())
    }

    fn forward(&mut self, inputs: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.check(inputs)?;
        self.batch.clear();
        // llama.cpp computes neighbouring sequences in one pass only if they come in ascending order.
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_unstable_by_key(|&index| inputs[index].slot.0);
        for input in order.iter().map(|&index| &inputs[index]) {
            let used = self.slots.used(input.slot.0.into());
            let last = input.tokens.len() - 1;
            for (position, (index, token)) in (used..).zip(input.tokens.iter().enumerate()) {
                self.batch
                    .add(
                        to_llama(*token),
                        position.cast_signed(),
                        &[i32::from(input.slot.0)],
                        input.logits && index == last,
                    )
                    .map_err(|error| EngineError::Failed(error.to_string()))?;
            }
        }
        match self.context.decode(&mut self.batch) {
            Ok(()) => {}
            Err(DecodeError::NoKvCacheSlot) => return Err(EngineError::NoRoom),
            Err(error) => {
                // Some micro-batches may have been computed; what is left of them goes.
                for input in inputs {
                    self.slots.restore(&mut self.context, input.slot.0.into());
                }
                let why = crate::ffi::take_errors().pop().unwrap_or_default();
                return Err(EngineError::Failed(format!("{error} {why}").trim_end().to_owned()));
            }
        }
        self.logits.resize_with(self.logits.len().max(inputs.len()), Vec::new);
        self.logits.iter_mut().for_each(Vec::clear);
        let mut end = 0;
        for index in order {
            let (input, logits) = (&inputs[index], &mut self.logits[index]);
            end += i32::try_from(input.tokens.len()).expect("a batch has some thousand tokens");
            self.slots.grow(input.slot.0.into(), input.tokens.len());
            if input.logits {
                logits.extend_from_slice(self.context.get_logits_ith(end - 1));
            }
        }
        Ok(())
    }
}

/// Ids were checked against the vocabulary, whose size fits `i32`.
fn to_llama(token: TokenId) -> LlamaToken {
    LlamaToken::new(token.cast_signed())
}

impl Engine for GgufEngine {
    fn on_progress(&mut self, pulse: Pulse) {
        let heart: &'static Heart = Box::leak(Box::new(Heart::new(move || pulse.beat())));
        let contexts = self.generator.as_mut().map(|it| &mut it.context).into_iter().chain(self.embedder.context());
        for context in contexts {
            if !crate::ffi::hear(context, heart) {
                tell(format_args!("llama.cpp can't be heard while it computes: a long step gives no sign of life"));
            }
        }
    }

    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        if text.len() > TEXT_BYTES_MAX {
            let text = format!("the text has {} bytes, over the limit of {TEXT_BYTES_MAX}", text.len());
            return Err(Failure::new(FailureKind::InvalidRequest, text));
        }
        let tokens = self.model.vocab().tokenize(text.as_bytes(), add_special, parse_special);
        tokens
            .into_iter()
            .map(|token| TokenId::try_from(token.0))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::new(FailureKind::EngineFailed, "the tokenizer returned a negative id"))
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        match &mut self.generator {
            Some(_) if batch.is_empty() => Ok(()),
            Some(generator) if !self.facts.embedding => generator.forward(batch),
            _ => Err(EngineError::Unsupported("this model makes embeddings and can't generate".into())),
        }
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        let logits = self.generator.as_mut().and_then(|generator| generator.logits.get_mut(input));
        let logits = logits.expect("the input was in the last batch");
        assert!(!logits.is_empty(), "input {input} asked for no logits");
        logits
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        self.generator.as_mut().map_or(0, |it| it.slots.truncate(&mut it.context, slot.0.into(), keep))
    }

    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool {
        self.generator.as_mut().is_some_and(|it| it.slots.shift(&mut it.context, slot.0.into(), keep, discard))
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        let copy = |it: &mut Generator| it.slots.copy_prefix(&mut it.context, from.0.into(), to.0.into(), tokens);
        self.generator.as_mut().is_some_and(copy)
    }

    fn embed_begin(&mut self, inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError> {
        self.embeddings = None;
        if let Some(generator) = &mut self.generator {
            generator.slots.clear(&mut generator.context);
        }
        self.embeddings = Some(Underway::new(inputs, (self.facts.context_tokens, self.facts.vocab.len()))?);
        Ok(())
    }

    fn embed_step(&mut self) -> Result<EmbedStep, EngineError> {
        let Some(mut work) = self.embeddings.take() else {
            return Err(EngineError::Failed("no embeddings have begun".into()));
        };
        if !work.is_done() {
            self.embedder.step(self.generator.as_mut(), &mut work)?;
        }
        let told = work.told();
        self.embeddings = matches!(told, EmbedStep::Part { .. }).then_some(work);
        Ok(told)
    }

    fn trim(&mut self) {
        // The cache is one buffer for the life of the context; what the heap has free goes back to the system.
        crate::ffi::release_free_heap();
    }

    fn memory(&self) -> MemoryReport {
        self.memory
    }
}
