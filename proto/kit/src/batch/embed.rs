//! Embeddings: many inputs of many requests, as many per pass as a forward pass holds.
//!
//! A pass takes as many steps as the engine makes of it; a cancel is seen and progress told between two of them. When a
//! shared pass fails, its requests are computed apart, so that only the one at fault fails.

use std::collections::VecDeque;
use std::time::Instant;

use ollmlx_proto::{Embed, Embeddings, Failure, FailureKind, Output, Request, RequestId, TokenId};

use super::job::Stopwatch;
use super::prompt::Renderer;
use super::slices::Text;
use super::{Outputs, broken, cancelled, failure, prompt};
use crate::contract::INPUT_TOO_LONG;
use crate::engine::{EmbedStep, Engine, EngineError};
use crate::limits::PREFILL_TOLD_EVERY;

/// One embedding request.
#[derive(Debug)]
pub(super) struct EmbedJob {
    pub(super) id: RequestId,
    pub(super) cancelled: bool,
    pub(super) clock: Stopwatch,
    /// Those before `taken` are with a pass, and empty.
    inputs: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
    /// Inputs that a pass has taken.
    taken: usize,
    /// Tokens of the inputs that are done.
    done_tokens: usize,
    prompt_tokens: u32,
    normalize: bool,
    dimensions: Option<u32>,
}

impl EmbedJob {
    /// Tokenises the inputs and shortens them where that is allowed.
    ///
    /// # Errors
    /// An input is too long, or empty.
    pub(super) fn new(
        request: &Request,
        embed: &Embed,
        renderer: &Renderer<'_>,
        arrived: Instant,
    ) -> Result<Self, Failure> {
        let window = prompt::window(&request.limits, &renderer.bench.facts);
        let marker = renderer.bench.seams.last_marker();
        let mut inputs = Vec::with_capacity(embed.inputs.len());
        for text in &embed.inputs {
            let text = Text { text, cuts: &[], add_special: true };
            // One more than fit shows that they don't.
            let mut tokens = renderer.first(text, window + 1)?;
            if tokens.len() > window {
                if !embed.truncate {
                    return Err(Failure::new(FailureKind::ContextExceeded, INPUT_TOO_LONG));
                }
                tokens.truncate(window);
                // The marker at its end stays, where the tokenizer puts one there.
                if let (Some(marker), Some(last)) = (marker, tokens.last_mut()) {
                    *last = marker;
                }
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
            clock: Stopwatch::new(arrived),
            vectors: Vec::with_capacity(inputs.len()),
            inputs,
            taken: 0,
            done_tokens: 0,
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            normalize: embed.normalize,
            dimensions: embed.dimensions,
        })
    }

    /// Says now and then how many tokens are done: with the pass that runs, `more` beside those of whole passes.
    fn tell(&mut self, more: usize, out: &mut Outputs) {
        let now = Instant::now();
        if now.saturating_duration_since(self.clock.told) >= PREFILL_TOLD_EVERY {
            self.clock.told = now;
            let done = u32::try_from(self.done_tokens.saturating_add(more)).unwrap_or(u32::MAX);
            let total = self.prompt_tokens;
            out.push((self.id, Output::Prefill { done: done.min(total), total }));
        }
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

/// The inputs of one request in one pass; not empty.
#[derive(Clone, Debug)]
struct Part {
    id: RequestId,
    inputs: Vec<Vec<TokenId>>,
}

impl Part {
    fn tokens(&self) -> usize {
        self.inputs.iter().map(Vec::len).sum()
    }
}

/// Inputs that are computed together, at least one.
type Pass = Vec<Part>;

/// All embedding requests of a model.
#[derive(Debug, Default)]
pub(super) struct Embeds {
    jobs: Vec<EmbedJob>,
    /// What is to be computed before more is taken: one pass, or the pieces of one that failed.
    passes: VecDeque<Pass>,
    /// Whether the engine is at the first of them.
    begun: bool,
}

impl Embeds {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn push(&mut self, job: EmbedJob) {
        self.jobs.push(job);
    }

    pub(super) fn cancel(&mut self, id: RequestId) {
        for job in self.jobs.iter_mut().filter(|job| job.id == id) {
            job.cancelled = true;
        }
    }

    /// Ends what was cancelled. A pass that nobody waits for any more is given up.
    pub(super) fn end_cancelled(&mut self, out: &mut Outputs) {
        let before = self.jobs.len();
        self.jobs.retain(|job| {
            if job.cancelled {
                out.push((job.id, cancelled(&job.clock)));
            }
            !job.cancelled
        });
        if self.jobs.len() < before {
            self.drop_orphans();
        }
    }

    /// Computes a part of a pass, and says what is complete.
    ///
    /// # Errors
    /// The engine is broken.
    pub(super) fn step<E: Engine>(&mut self, engine: &mut E, out: &mut Outputs) -> Result<(), Failure> {
        if self.passes.is_empty() {
            let pass = take(&mut self.jobs, engine.facts().batch_tokens as usize);
            self.passes.extend((!pass.is_empty()).then_some(pass));
        }
        if let Some(pass) = self.passes.front() {
            let count: usize = pass.iter().map(|part| part.inputs.len()).sum();
            let step = match self.begun {
                true => engine.embed_step(),
                false => {
                    let inputs = pass.iter().flat_map(|part| part.inputs.iter().cloned()).collect();
                    engine.embed_begin(inputs).and_then(|()| engine.embed_step())
                }
            };
            self.begun = true;
            match step {
                Ok(EmbedStep::Part { done_tokens }) => self.tell(done_tokens, out),
                Ok(EmbedStep::Vectors(vectors)) if vectors.len() == count => self.finish(vectors, out),
                Ok(EmbedStep::Vectors(vectors)) => {
                    let text = format!("{} vectors for {count} inputs", vectors.len());
                    self.try_apart(&EngineError::Failed(text), out);
                }
                Err(EngineError::Broken(detail)) => return Err(broken(detail)),
                Err(error) => self.try_apart(&error, out),
            }
        }
        self.jobs.retain_mut(|job| {
            let end = job.result();
            let goes_on = end.is_none();
            out.extend(end.map(|output| (job.id, output)));
            goes_on
        });
        Ok(())
    }

    fn job(&mut self, id: RequestId) -> Option<&mut EmbedJob> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// The first pass is so far.
    fn tell(&mut self, mut done_tokens: usize, out: &mut Outputs) {
        for part in self.passes.front().into_iter().flatten() {
            let own = part.tokens().min(done_tokens);
            done_tokens -= own;
            if let Some(job) = self.jobs.iter_mut().find(|job| job.id == part.id) {
                job.tell(own, out);
            }
        }
    }

    /// The first pass is done.
    fn finish(&mut self, vectors: Vec<Vec<f32>>, out: &mut Outputs) {
        self.begun = false;
        let mut vectors = vectors.into_iter();
        for part in self.passes.pop_front().into_iter().flatten() {
            let own = vectors.by_ref().take(part.inputs.len());
            match self.job(part.id) {
                Some(job) => {
                    job.vectors.extend(own);
                    job.done_tokens += part.tokens();
                    if job.vectors.len() < job.inputs.len() {
                        job.tell(0, out);
                    }
                }
                // It was cancelled meanwhile.
                None => own.for_each(drop),
            }
        }
    }

    /// The first pass failed: where there was no room for all of it, it is tried in halves, else a request at a time, and
    /// what can't be tried apart fails.
    fn try_apart(&mut self, error: &EngineError, out: &mut Outputs) {
        self.begun = false;
        let Some(mut pass) = self.passes.pop_front() else { return };
        let inputs: usize = pass.iter().map(|part| part.inputs.len()).sum();
        if matches!(error, EngineError::NoRoom) && inputs > 1 {
            let rest = split(&mut pass, inputs / 2);
            self.passes.push_front(rest);
            self.passes.push_front(pass);
        } else if pass.len() > 1 {
            pass.into_iter().rev().for_each(|part| self.passes.push_front(vec![part]));
        } else {
            for part in pass {
                self.jobs.retain(|job| job.id != part.id);
                out.push((part.id, Output::Failed(failure(error))));
            }
        }
        self.drop_orphans();
    }

    /// Drops inputs of requests that have ended, but not out of a pass that goes on for another.
    fn drop_orphans(&mut self) {
        let jobs = &self.jobs;
        let lives = |part: &Part| jobs.iter().any(|job| job.id == part.id);
        let begun = self.begun && self.passes.front().is_some_and(|pass| pass.iter().any(lives));
        for pass in self.passes.iter_mut().skip(usize::from(begun)) {
            pass.retain(lives);
        }
        self.passes.retain(|pass| !pass.is_empty());
        self.begun = begun;
    }
}

/// Takes all but the first `count` inputs off a pass.
fn split(pass: &mut Pass, mut count: usize) -> Pass {
    let mut rest = Pass::new();
    for part in pass.iter_mut() {
        let own = count.min(part.inputs.len());
        count -= own;
        rest.push(Part { id: part.id, inputs: part.inputs.split_off(own) });
    }
    pass.retain(|part| !part.inputs.is_empty());
    rest.retain(|part| !part.inputs.is_empty());
    rest
}

/// The next inputs in order, at least one where there are any, together at most `limit` tokens.
fn take(jobs: &mut [EmbedJob], limit: usize) -> Pass {
    let mut pass = Pass::new();
    let mut tokens = 0;
    for job in jobs {
        let mut inputs = Vec::new();
        for input in &mut job.inputs[job.taken..] {
            if tokens > 0 && tokens + input.len() > limit {
                break;
            }
            tokens += input.len();
            inputs.push(std::mem::take(input));
        }
        job.taken += inputs.len();
        let complete = job.taken == job.inputs.len();
        if !inputs.is_empty() {
            job.clock.prefill.get_or_insert_with(Instant::now);
            pass.push(Part { id: job.id, inputs });
        }
        if !complete {
            break;
        }
    }
    pass
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ollmlx_proto::{FinishReason, Work};

    use super::super::toy::{Toy, complete};
    use super::super::{Batcher, StepOutcome};
    use super::*;

    /// A model that parts its inputs into eight tokens at a time.
    fn batcher() -> Batcher<Toy> {
        Batcher::new(Toy { embed_tokens: 8, ..Toy::new(2, 64, 32) })
    }

    fn embed(id: u64, inputs: &[&str]) -> Request {
        let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
        let work = Work::Embed(Embed { inputs, truncate: true, normalize: false, dimensions: None });
        Request { work, ..complete(id, "") }
    }

    fn step(batcher: &mut Batcher<Toy>) -> (StepOutcome, Outputs) {
        let mut out = Outputs::new();
        (batcher.step(&mut out).expect("the engine is not broken"), out)
    }

    /// As if the last word were long ago.
    fn time_passes(batcher: &mut Batcher<Toy>) {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(5)).expect("the machine is up for longer");
        batcher.embeds.jobs.iter_mut().for_each(|job| job.clock.told = long_ago);
    }

    #[test]
    fn a_long_input_takes_several_steps_and_is_told_of_between_them() {
        let mut batcher = batcher();
        // One token is the beginning.
        batcher.run(embed(1, &["aaaaaaaaaaaaaaaaaaa", "b"]));
        assert_eq!(step(&mut batcher), (StepOutcome::Busy, Vec::new()), "not so soon");
        time_passes(&mut batcher);
        let (_, told) = step(&mut batcher);
        assert_eq!(told, [(RequestId(1), Output::Prefill { done: 16, total: 22 })]);
        let (outcome, out) = step(&mut batcher);
        let [(_, Output::Embedded(embedded))] = &out[..] else { panic!("{out:?}") };
        assert_eq!((outcome, embedded.vectors.len(), embedded.prompt_tokens), (StepOutcome::Idle, 2, 22));
    }

    #[test]
    fn a_cancel_ends_a_long_input_between_two_parts_and_leaves_clean_slots() {
        let calm = {
            let mut batcher = batcher();
            batcher.run(complete(2, "next"));
            let mut all = Outputs::new();
            while batcher.step(&mut all).expect("fine") == StepOutcome::Busy {}
            all.into_iter().filter(|(_, output)| matches!(output, Output::Delta(_))).collect::<Vec<_>>()
        };
        let mut batcher = batcher();
        batcher.run(embed(1, &["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]));
        step(&mut batcher);
        batcher.cancel(RequestId(1));
        batcher.run(complete(2, "next"));
        let (_, mut out) = step(&mut batcher);
        let ended = |reason| matches!(reason, FinishReason::Cancelled);
        assert!(
            out.iter().any(|(id, it)| *id == RequestId(1) && matches!(it, Output::Finished(it) if ended(it.reason)))
        );
        while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
        let after: Vec<_> = out.into_iter().filter(|(_, output)| matches!(output, Output::Delta(_))).collect();
        assert_eq!(after, calm, "what comes next is as if there had been no embedding");
        // And the next embedding begins anew.
        batcher.run(embed(3, &["c"]));
        let (_, out) = step(&mut batcher);
        assert!(matches!(&out[..], [(RequestId(3), Output::Embedded(_))]), "{out:?}");
    }

    #[test]
    fn a_pass_goes_on_for_the_others_when_one_of_its_requests_is_cancelled() {
        let mut batcher = batcher();
        batcher.run(embed(1, &["aaaaaaaaa"]));
        batcher.run(embed(2, &["bbbbbbbbb"]));
        step(&mut batcher);
        batcher.cancel(RequestId(1));
        let mut out = Outputs::new();
        while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
        let [(RequestId(1), Output::Finished(_)), (RequestId(2), Output::Embedded(two))] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(two.vectors[0][3], f32::from(b'b'));
        assert_eq!(batcher.engine().passes.len(), 1, "it was not computed again");
    }
}
