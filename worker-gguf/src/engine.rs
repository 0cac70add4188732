//! llama.cpp behind the kit's [`Engine`].
//!
//! An engine owns one context, in which each slot is a sequence ([`slots`]), and a batch of some slots' tokens is one
//! call. How slots lie in the cache is decided at load ([`load`]).
//!
//! Nothing goes down to llama.cpp that it would abort on: the kit's contract checks token ids, slots and lengths before this
//! is called.

mod embed;
mod load;
mod slots;
#[cfg(test)]
mod tests;
mod vocab;

use std::sync::Arc;

use ollmlx_proto::{Failure, FailureKind, MemoryReport, SlotId, TokenId};
use ollmlx_worker_kit::contract::ONLY_EMBEDDINGS;
use ollmlx_worker_kit::engine::{EmbedStep, Engine, EngineError, EngineFacts, Pulse, SlotInput, Tokenizer};

use self::embed::{Embedder, Underway};
pub use self::load::load;
use self::slots::Slots;
use crate::ffi::batch::{Batch, Place};
use crate::ffi::context::{Context, DecodeError, Heart};
use crate::ffi::model::{Model, Specials, Vocabulary};

/// A loaded model with its cache.
#[derive(Debug)]
pub struct GgufEngine {
    facts: EngineFacts,
    /// Leaked on purpose: a context borrows its model, and both live as long as the process, which serves this model
    /// and no other. A struct that owns both would need unsafe code.
    model: &'static Model,
    /// `None` for models that look both ways.
    generator: Option<Generator>,
    embedder: Embedder,
    embeddings: Option<Underway>,
    memory: MemoryReport,
}

/// What generation needs, and embeddings of models that look back only.
#[derive(Debug)]
struct Generator {
    context: Context<'static>,
    batch: Batch,
    slots: Slots,
    /// Logits of each input of the last batch; empty where they were not asked for.
    logits: Vec<Vec<f32>>,
    batch_tokens: usize,
}

impl Generator {
    fn forward(&mut self, inputs: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.batch.clear();
        // llama.cpp computes neighbouring sequences in one pass only if they come in ascending order.
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_unstable_by_key(|&index| inputs[index].slot.0);
        for input in order.iter().map(|&index| &inputs[index]) {
            let used = self.slots.used(input.slot.0.into());
            let last = input.tokens.len() - 1;
            for (position, (index, token)) in (used..).zip(input.tokens.iter().enumerate()) {
                let output = input.logits && index == last;
                self.batch.add(Place { token: *token, position, sequence: input.slot.0.into(), output });
            }
        }
        match self.context.decode(&mut self.batch) {
            Ok(()) => {}
            Err(DecodeError::NoRoom) => return Err(EngineError::NoRoom),
            Err(error) => {
                // Some micro-batches may have been computed; what is left of them goes.
                for input in inputs {
                    self.slots.restore(&mut self.context, input.slot.0.into());
                }
                let why = crate::ffi::log::take_errors().pop().unwrap_or_default();
                return Err(EngineError::Failed(format!("{error} {why}").trim_end().to_owned()));
            }
        }
        self.logits.resize_with(self.logits.len().max(inputs.len()), Vec::new);
        self.logits.iter_mut().for_each(Vec::clear);
        let mut end = 0;
        for index in order {
            let (input, logits) = (&inputs[index], &mut self.logits[index]);
            end += input.tokens.len();
            self.slots.grow(input.slot.0.into(), input.tokens.len());
            if input.logits {
                let computed = self.context.logits(end - 1);
                logits
                    .extend_from_slice(computed.ok_or_else(|| EngineError::Failed("llama.cpp made no logits".into()))?);
            }
        }
        Ok(())
    }
}

impl Tokenizer for Vocabulary {
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        let tokens = self.tokens(text.as_bytes(), Specials { add: add_special, parse: parse_special });
        tokens.ok_or_else(|| Failure::new(FailureKind::EngineFailed, "the tokenizer failed"))
    }
}

impl Engine for GgufEngine {
    fn on_progress(&mut self, pulse: Pulse) {
        let heart = Arc::new(Heart::new(move || pulse.beat()));
        let contexts = self.generator.as_mut().map(|it| &mut it.context).into_iter().chain(self.embedder.context());
        contexts.for_each(|context| context.hear(Arc::clone(&heart)));
    }

    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(self.model.vocabulary())
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        match &mut self.generator {
            Some(generator) => generator.forward(batch),
            None => Err(EngineError::Refused(Failure::new(FailureKind::Unsupported, ONLY_EMBEDDINGS))),
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
        self.embeddings = Some(Underway::new(inputs));
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
