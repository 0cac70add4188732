//! Embeddings: many inputs of many requests, as many per step as a forward pass holds.
//!
//! A step is short, so that a cancel is seen between two of them. When a shared computation fails, its requests are
//! computed apart, so that only the one at fault fails.

use std::time::Instant;

use ollmlx_proto::{Embed, Embeddings, Failure, FailureKind, Output, Request, RequestId, TokenId};

use super::job::Clock;
use super::{Outputs, broken, failure, prompt};
use crate::engine::{Engine, EngineError};

/// One embedding request.
#[derive(Debug)]
pub(super) struct EmbedJob {
    pub(super) id: RequestId,
    pub(super) cancelled: bool,
    pub(super) clock: Clock,
    /// Those before `vectors.len()` are done, and empty.
    inputs: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
    prompt_tokens: u32,
    normalize: bool,
    dimensions: Option<u32>,
}

impl EmbedJob {
    /// Tokenises the inputs and shortens them where that is allowed.
    ///
    /// # Errors
    /// An input is too long, or empty.
    pub(super) fn new<E: Engine>(
        request: &Request,
        embed: &Embed,
        engine: &E,
        arrived: Instant,
    ) -> Result<Self, Failure> {
        let window = prompt::window(&request.limits, engine.facts());
        let frame = engine.tokenize("", true, true)?;
        let mut inputs = Vec::with_capacity(embed.inputs.len());
        for text in &embed.inputs {
            let mut tokens = engine.tokenize(text, true, true)?;
            if tokens.len() > window {
                if !embed.truncate {
                    let text = "the input length exceeds the context length";
                    return Err(Failure::new(FailureKind::ContextExceeded, text));
                }
                shorten(&mut tokens, &frame, window);
            }
            if tokens.is_empty() {
                return Err(Failure::new(FailureKind::InvalidRequest, "an input is empty"));
            }
            inputs.push(tokens);
        }
        let prompt_tokens = inputs.iter().map(Vec::len).sum::<usize>();
        Ok(Self {
            id: request.id,
            cancelled: false,
            clock: Clock::new(arrived),
            vectors: Vec::with_capacity(inputs.len()),
            inputs,
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            normalize: embed.normalize,
            dimensions: embed.dimensions,
        })
    }

    /// The end of this request, if it has come.
    fn result(&mut self) -> Option<Output> {
        if self.vectors.len() < self.inputs.len() {
            return None;
        }
        self.clock.decode = Some(Instant::now());
        let vectors = std::mem::take(&mut self.vectors);
        let vectors = vectors.into_iter().map(|vector| self.dress(vector)).collect::<Result<_, _>>();
        Some(match vectors {
            Ok(vectors) => Output::Embedded(Embeddings {
                vectors,
                prompt_tokens: self.prompt_tokens,
                timings: self.clock.timings(),
            }),
            Err(failure) => Output::Failed(failure),
        })
    }

    fn dress(&self, mut vector: Vec<f32>) -> Result<Vec<f32>, Failure> {
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(Failure::new(FailureKind::EngineFailed, "embedding contains NaN or Inf values"));
        }
        if let Some(dimensions) = self.dimensions.filter(|&dimensions| dimensions > 0) {
            vector.truncate(dimensions as usize);
        }
        if self.normalize {
            let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        }
        Ok(vector)
    }
}

/// Cuts an input, but keeps the marker at its end where the tokenizer puts one there.
fn shorten(tokens: &mut Vec<TokenId>, frame: &[TokenId], window: usize) {
    let end = match (frame, tokens.last()) {
        (&[_, .., end], Some(&last)) if end == last => Some(end),
        _ => None,
    };
    tokens.truncate(window);
    if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
        *last = end;
    }
}

/// The inputs of one request in one step.
struct Part {
    job: usize,
    inputs: Vec<Vec<TokenId>>,
}

/// Computes as many inputs as one forward pass holds, and says what is complete.
///
/// # Errors
/// The engine is broken.
pub(super) fn step<E: Engine>(engine: &mut E, jobs: &mut Vec<EmbedJob>, out: &mut Outputs) -> Result<(), Failure> {
    let parts = take(jobs, engine.facts().batch_tokens as usize);
    let all: Vec<Vec<TokenId>> = parts.iter().flat_map(|part| part.inputs.iter().cloned()).collect();
    let mut failures: Vec<(usize, Failure)> = Vec::new();
    let together = if all.is_empty() { Ok(Vec::new()) } else { compute(engine, &all) };
    match together {
        Ok(vectors) => {
            let mut vectors = vectors.into_iter();
            for part in &parts {
                jobs[part.job].vectors.extend(vectors.by_ref().take(part.inputs.len()));
            }
        }
        Err(EngineError::Broken(detail)) => return Err(broken(detail)),
        Err(error) if parts.len() == 1 => failures.push((parts[0].job, failure(&error))),
        Err(_) => {
            for part in &parts {
                match compute(engine, &part.inputs) {
                    Ok(vectors) => jobs[part.job].vectors.extend(vectors),
                    Err(EngineError::Broken(detail)) => return Err(broken(detail)),
                    Err(error) => failures.push((part.job, failure(&error))),
                }
            }
        }
    }
    let mut index = 0;
    jobs.retain_mut(|job| {
        let failed = failures.iter().find(|(failed, _)| *failed == index);
        index += 1;
        let end = match failed {
            Some((_, failure)) => Some(Output::Failed(failure.clone())),
            None => job.result(),
        };
        let goes_on = end.is_none();
        out.extend(end.map(|output| (job.id, output)));
        goes_on
    });
    Ok(())
}

/// The next inputs in order, at least one, together at most `limit` tokens.
fn take(jobs: &mut [EmbedJob], limit: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut tokens = 0;
    for (index, job) in jobs.iter_mut().enumerate() {
        let mut inputs = Vec::new();
        for input in &mut job.inputs[job.vectors.len()..] {
            if tokens > 0 && tokens + input.len() > limit {
                break;
            }
            tokens += input.len();
            inputs.push(std::mem::take(input));
        }
        let complete = job.vectors.len() + inputs.len() == job.inputs.len();
        if !inputs.is_empty() {
            job.clock.prefill.get_or_insert_with(Instant::now);
            parts.push(Part { job: index, inputs });
        }
        if !complete {
            break;
        }
    }
    parts
}

/// One vector per input; where the cache has no room for all, in halves.
fn compute<E: Engine>(engine: &mut E, inputs: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, EngineError> {
    match engine.embed(inputs) {
        Ok(vectors) if vectors.len() == inputs.len() => Ok(vectors),
        Ok(vectors) => Err(EngineError::Failed(format!("{} vectors for {} inputs", vectors.len(), inputs.len()))),
        Err(EngineError::NoRoom) if inputs.len() > 1 => {
            let (first, second) = inputs.split_at(inputs.len() / 2);
            let mut vectors = compute(engine, first)?;
            vectors.append(&mut compute(engine, second)?);
            Ok(vectors)
        }
        Err(error) => Err(error),
    }
}
