//! Embedding requests: in groups, so that a cancel is seen and progress is told between them.

use std::time::Instant;

use ollmlx_proto::{Embed, Embeddings, Failure, FailureKind, Output, RequestId, Timings, TokenId};

use crate::engine::{Engine, EngineError};
use crate::vocab::Vocab;

/// One embedding request at work.
#[derive(Debug)]
pub(super) struct EmbedRun {
    pub(super) id: RequestId,
    pub(super) cancelled: bool,
    options: Embed,
    inputs: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
    arrived: Instant,
    started: Option<Instant>,
}

impl EmbedRun {
    /// Tokenises the inputs and shortens the ones that are too long.
    ///
    /// # Errors
    /// An input is too long and must not be shortened, or is refused by the tokenizer.
    pub(super) fn new<E: Engine>(
        engine: &E,
        id: RequestId,
        options: Embed,
        window: usize,
        arrived: Instant,
    ) -> Result<Self, Failure> {
        let window = window.min(engine.facts().context_tokens as usize);
        let mut inputs = Vec::with_capacity(options.inputs.len());
        for text in &options.inputs {
            let mut tokens = engine.tokenize(text, true, false)?;
            if tokens.is_empty() {
                let vocab = &engine.facts().vocab;
                let start = vocab.bos.or(vocab.eos);
                tokens.push(start.ok_or_else(|| Failure::new(FailureKind::InvalidRequest, "empty input"))?);
            }
            if tokens.len() > window {
                if !options.truncate {
                    let text = "the input length exceeds the context length";
                    let detail = format!("{} tokens, window of {window}", tokens.len());
                    return Err(Failure::new(FailureKind::ContextExceeded, text).with_detail(detail));
                }
                shorten(&mut tokens, window, &engine.facts().vocab);
            }
            inputs.push(tokens);
        }
        Ok(Self { id, cancelled: false, options, inputs, vectors: Vec::new(), arrived, started: None })
    }

    /// Computes the next group. Returns the terminal output when all is done.
    ///
    /// # Errors
    /// The engine is broken and the worker must exit.
    pub(super) fn step<E: Engine>(&mut self, engine: &mut E) -> Result<Option<Output>, EngineError> {
        self.started.get_or_insert_with(Instant::now);
        let done = self.vectors.len();
        if done == self.inputs.len() {
            return Ok(Some(self.finish()));
        }
        let group = usize::from(engine.facts().slots).max(1).min(self.inputs.len() - done);
        match engine.embed(&self.inputs[done..done + group]) {
            Ok(vectors) if vectors.len() == group => self.vectors.extend(vectors),
            Ok(_) => return Ok(Some(Output::Failed(failure("the engine lost a vector")))),
            Err(EngineError::Broken(reason)) => return Err(EngineError::Broken(reason)),
            Err(EngineError::Unsupported(reason)) => {
                return Ok(Some(Output::Failed(Failure::new(FailureKind::Unsupported, reason))));
            }
            Err(error) => return Ok(Some(Output::Failed(failure(&error.to_string())))),
        }
        if self.vectors.len() < self.inputs.len() {
            return Ok(None);
        }
        Ok(Some(self.finish()))
    }

    /// Prompt tokens done and in all, as proof of life.
    pub(super) fn progress(&self) -> Output {
        let count =
            |inputs: &[Vec<TokenId>]| u32::try_from(inputs.iter().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX);
        Output::Prefill { done: count(&self.inputs[..self.vectors.len()]), total: count(&self.inputs) }
    }

    fn finish(&mut self) -> Output {
        let mut vectors = std::mem::take(&mut self.vectors);
        for vector in &mut vectors {
            if let Some(dimensions) = self.options.dimensions.filter(|&dimensions| dimensions > 0) {
                vector.truncate(dimensions as usize);
            }
            if vector.iter().any(|value| !value.is_finite()) {
                let text = "embedding contains NaN or Inf values";
                return Output::Failed(Failure::new(FailureKind::InvalidRequest, text));
            }
            if self.options.normalize {
                normalize(vector);
            }
        }
        let Output::Prefill { total, .. } = self.progress() else {
            return Output::Failed(failure("the inputs were lost"));
        };
        let elapsed = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let started = self.started.unwrap_or(self.arrived);
        let queue = started.saturating_duration_since(self.arrived).as_nanos();
        let timings =
            Timings { queue_ns: u64::try_from(queue).unwrap_or(u64::MAX), prefill_ns: elapsed(started), decode_ns: 0 };
        Output::Embedded(Embeddings { vectors, prompt_tokens: total, timings })
    }
}

fn failure(reason: &str) -> Failure {
    Failure::new(FailureKind::EngineFailed, format!("an error was encountered while running the model: {reason}"))
}

/// Cuts the end off, but keeps a closing marker that the tokenizer put there.
fn shorten(tokens: &mut Vec<TokenId>, window: usize, vocab: &Vocab) {
    let last = tokens.last().copied().filter(|last| vocab.ends.contains(last) || vocab.eos == Some(*last));
    tokens.truncate(window);
    if let (Some(marker), Some(end)) = (last, tokens.last_mut()) {
        *end = marker;
    }
}

fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}
