//! Continuous batching: requests join and leave between steps, and every step is one forward pass over all of them.
//!
//! A step computes one token for every slot that generates, then fills the batch with prompt tokens of the slots that
//! don't yet. While anyone generates, the prompt's share of a step is capped (`PREFILL_CHUNK_TOKENS`), so that a long prompt
//! delays a running stream by one chunk and not by the whole prompt.
//!
//! A slot keeps its tokens when its request ends: the next request with the same beginning computes only the rest. A
//! beginning that lies in another slot is copied, where the engine can.
//!
//! Embeddings use all slots, so they wait until none is busy and then run group by group.

mod embed;
mod prompt;
mod run;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ollmlx_proto::limits::{PREFILL_CHUNK_TOKENS, PROGRESS_INTERVAL_MS};
use ollmlx_proto::{
    Failure, FailureKind, FinishReason, Finished, Format, Output, Request, RequestId, SlotId, Started, Timings,
    TokenId, Usage, Work,
};

use self::embed::EmbedRun;
use self::prompt::{Preparation, keep_tokens, prepare};
use self::run::{Emit, Fate, Given, Run};
use crate::chat::ChatFormat;
use crate::engine::{Engine, EngineError, SlotInput};
use crate::grammar::GrammarFactory;

/// A beginning in another slot is copied only if it is this much longer than what the chosen slot has.
const COPY_GAIN_TOKENS: usize = 32;

/// Outputs in the order they were said.
pub type Outputs = Vec<(RequestId, Output)>;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// There was nothing to do.
    Idle,
    /// Something was computed or ended; there may be more.
    Worked,
}

/// One sequence of the engine and who uses it.
#[derive(Debug)]
struct Slot {
    id: SlotId,
    /// Tokens in the engine's cache.
    cached: Vec<TokenId>,
    /// Rises with use; the lowest is the least recently used.
    used: u64,
    run: Option<Box<Run>>,
}

/// A request that has no slot yet.
#[derive(Debug)]
struct Waiting {
    request: Request,
    arrived: Instant,
    cancelled: bool,
}

/// One slot's part of the coming forward pass.
#[derive(Debug)]
struct Share {
    slot: usize,
    tokens: Vec<TokenId>,
    logits: bool,
}

/// The loop's state. Driven by [`crate::serve`].
#[derive(Debug)]
pub struct Batcher<E: Engine> {
    engine: E,
    format: ChatFormat,
    grammars: GrammarFactory,
    slots: Vec<Slot>,
    waiting: VecDeque<Waiting>,
    embeds: VecDeque<EmbedRun>,
    clock: u64,
    prefill_told: Instant,
}

impl<E: Engine> Batcher<E> {
    /// A loop over an engine that has just been loaded.
    #[must_use]
    pub fn new(engine: E) -> Self {
        let facts = engine.facts();
        let slots =
            (0..facts.slots).map(|id| Slot { id: SlotId(id), cached: Vec::new(), used: 0, run: None }).collect();
        Self {
            format: ChatFormat::new(&facts.chat, &facts.vocab),
            grammars: GrammarFactory::new(std::sync::Arc::clone(&facts.vocab)),
            slots,
            waiting: VecDeque::new(),
            embeds: VecDeque::new(),
            clock: 0,
            prefill_told: Instant::now(),
            engine,
        }
    }

    /// The engine, for its facts and its memory.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Whether any request is unfinished.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.embeds.is_empty() || self.slots.iter().any(|slot| slot.run.is_some())
    }

    /// Takes a request; it is heard of at the next step.
    pub fn run(&mut self, request: Request) {
        self.waiting.push_back(Waiting { request, arrived: Instant::now(), cancelled: false });
    }

    /// Ends a request before the next step. Unknown ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        for run in self.slots.iter_mut().filter_map(|slot| slot.run.as_mut()).filter(|run| run.id == id) {
            run.cancelled = true;
        }
        for run in self.embeds.iter_mut().filter(|run| run.id == id) {
            run.cancelled = true;
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.request.id == id) {
            waiting.cancelled = true;
        }
    }

    /// One step: ends what was cancelled, admits what waits, computes one batch.
    ///
    /// # Errors
    /// The engine is broken: the worker must exit. What is in `out` is still true.
    pub fn step(&mut self, out: &mut Outputs) -> Result<StepOutcome, Failure> {
        let said = out.len();
        self.end_cancelled(out);
        self.admit(out);
        if self.slots.iter().all(|slot| slot.run.is_none()) {
            if self.step_embed(out)? {
                return Ok(StepOutcome::Worked);
            }
            return Ok(if out.len() > said { StepOutcome::Worked } else { StepOutcome::Idle });
        }
        self.make_room(out);
        let shares = self.share();
        if shares.is_empty() {
            return Ok(StepOutcome::Worked);
        }
        self.compute(shares, out)?;
        self.tell_prefill(out);
        Ok(StepOutcome::Worked)
    }

    fn end_cancelled(&mut self, out: &mut Outputs) {
        for slot in &mut self.slots {
            if let Some(run) = slot.run.as_mut().filter(|run| run.cancelled) {
                let mut emit = Emit { id: run.id, out, silent: false };
                if let Err(failure) = run.finish(FinishReason::Cancelled, None, &mut emit) {
                    emit.say(Output::Failed(failure));
                }
                slot.run = None;
            }
        }
        self.waiting.retain(|waiting| {
            if waiting.cancelled {
                out.push((waiting.request.id, cancelled()));
            }
            !waiting.cancelled
        });
        self.embeds.retain(|run| {
            if run.cancelled {
                out.push((run.id, cancelled()));
            }
            !run.cancelled
        });
    }

    /// Gives waiting requests their slots, first come first served. Embeddings in front close the door until they
    /// are done.
    fn admit(&mut self, out: &mut Outputs) {
        while self.embeds.is_empty() && self.slots.iter().any(|slot| slot.run.is_none()) {
            let Some(Waiting { request, arrived, .. }) = self.waiting.pop_front() else { return };
            let id = request.id;
            if let Err(failure) = self.place(request, arrived, out) {
                out.push((id, Output::Failed(failure)));
            }
        }
    }

    fn place(&mut self, request: Request, arrived: Instant, out: &mut Outputs) -> Result<(), Failure> {
        let facts = self.engine.facts();
        let window = request.limits.context_tokens.min(facts.context_tokens) as usize;
        if let Work::Embed(options) = &request.work {
            let run = EmbedRun::new(&self.engine, request.id, options.clone(), window, arrived)?;
            self.embeds.push_back(run);
            return Ok(());
        }
        if facts.embedding {
            return Err(Failure::new(FailureKind::Unsupported, "this model only makes embeddings"));
        }
        let prepared = match prepare(&self.engine, &self.format, &request.work, &request.limits, window)? {
            Preparation::Prompt(prepared) => *prepared,
            Preparation::Rendered(text) => {
                out.push((request.id, Output::Rendered(text)));
                return Ok(());
            }
        };
        let grammar = match request.format {
            Format::Text => None,
            _ => self.grammars.compile(&request.format)?,
        };
        let keep = keep_tokens(&request.limits, facts, prepared.tokens.len());
        let vocab = std::sync::Arc::clone(&facts.vocab);
        let mut run = Run::new(&request, prepared, &vocab, Given { grammar, window, keep, arrived });
        run.replay(&request.produced)?;
        let slot = self.choose_slot(&run.prompt);
        run.cached_tokens = self.slots[slot].cached.len();
        run.started = Instant::now();
        out.push((
            run.id,
            Output::Started(Started {
                slot: self.slots[slot].id,
                prompt_tokens: u32::try_from(run.prompt_tokens).unwrap_or(u32::MAX),
                cached_tokens: u32::try_from(run.cached_tokens.min(run.prompt_tokens)).unwrap_or(u32::MAX),
            }),
        ));
        self.slots[slot].run = Some(Box::new(run));
        Ok(())
    }

    /// Picks an idle slot for `prompt` and leaves in it what of the prompt is already computed; always at least one
    /// token is left to compute, since its logits are wanted.
    fn choose_slot(&mut self, prompt: &[TokenId]) -> usize {
        let useful = prompt.len() - 1;
        let shared = |slot: &Slot| common_prefix(&slot.cached, prompt).min(useful);
        let idle = |slot: &&(usize, &Slot)| slot.1.run.is_none();
        let indexed: Vec<(usize, &Slot)> = self.slots.iter().enumerate().collect();
        let (own, own_shared) = indexed
            .iter()
            .filter(idle)
            .map(|&(index, slot)| (index, shared(slot), slot))
            .max_by_key(|&(_, shared, slot)| (shared, slot.cached.is_empty(), u64::MAX - slot.used))
            .map(|(index, shared, _)| (index, shared))
            .expect("admission found an idle slot");
        let donor = indexed
            .iter()
            .map(|&(index, slot)| (index, shared(slot)))
            .filter(|&(index, shared)| index != own && shared > own_shared + COPY_GAIN_TOKENS)
            .max_by_key(|&(_, shared)| shared);
        self.clock += 1;
        self.slots[own].used = self.clock;
        if let Some((donor, shared)) = donor {
            let target = self.least_recently_used(own);
            if self.copy(donor, target, shared) {
                self.slots[target].used = self.clock;
                return target;
            }
        }
        self.keep_prefix(own, own_shared);
        own
    }

    /// An empty idle slot, else the one unused for longest; `otherwise` where all are busy.
    fn least_recently_used(&self, otherwise: usize) -> usize {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.run.is_none())
            .min_by_key(|(_, slot)| (!slot.cached.is_empty(), slot.used))
            .map_or(otherwise, |(index, _)| index)
    }

    fn copy(&mut self, donor: usize, target: usize, tokens: usize) -> bool {
        let count = u32::try_from(tokens).unwrap_or(u32::MAX);
        if donor == target || !self.engine.copy_prefix(self.slots[donor].id, self.slots[target].id, count) {
            return false;
        }
        self.slots[target].cached = self.slots[donor].cached[..tokens].to_vec();
        true
    }

    fn keep_prefix(&mut self, slot: usize, tokens: usize) {
        let slot = &mut self.slots[slot];
        if slot.cached.len() > tokens {
            let kept = self.engine.truncate(slot.id, u32::try_from(tokens).unwrap_or(u32::MAX)) as usize;
            slot.cached.truncate(kept.min(tokens));
        }
    }

    fn forget(&mut self, slot: usize) {
        self.engine.truncate(self.slots[slot].id, 0);
        self.slots[slot].cached.clear();
    }

    /// Slides the windows that are full, or ends their requests.
    fn make_room(&mut self, out: &mut Outputs) {
        for slot in &mut self.slots {
            let Some(run) = slot.run.as_mut() else { continue };
            if run.next.is_none() || slot.cached.len() < run.window {
                continue;
            }
            let (keep, discard) = run.slide(slot.cached.len());
            let (keep_tokens, discard_tokens) =
                (u32::try_from(keep).unwrap_or(u32::MAX), u32::try_from(discard).unwrap_or(u32::MAX));
            if run.shift && run.window > 2 && self.engine.shift(slot.id, keep_tokens, discard_tokens) {
                slot.cached.drain(keep..keep + discard);
                continue;
            }
            let mut emit = Emit { id: run.id, out, silent: false };
            if let Err(failure) = run.finish(FinishReason::Length, None, &mut emit) {
                emit.say(Output::Failed(failure));
            }
            slot.run = None;
        }
    }

    /// Divides the batch: first everyone's next token, then prompts, oldest first.
    fn share(&self) -> Vec<Share> {
        let mut shares = Vec::new();
        let mut room = self.engine.facts().batch_tokens as usize;
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(next) = slot.run.as_ref().and_then(|run| run.next)
                && room > 0
            {
                shares.push(Share { slot: index, tokens: vec![next], logits: true });
                room -= 1;
            }
        }
        if !shares.is_empty() {
            room = room.min(PREFILL_CHUNK_TOKENS as usize);
        }
        let mut prefilling: Vec<usize> = (0..self.slots.len())
            .filter(|&index| self.slots[index].run.as_ref().is_some_and(|run| run.next.is_none()))
            .collect();
        prefilling.sort_by_key(|&index| self.slots[index].run.as_ref().map(|run| run.arrived));
        for index in prefilling {
            let slot = &self.slots[index];
            let Some(run) = &slot.run else { continue };
            let rest = &run.prompt[slot.cached.len().min(run.prompt.len())..];
            let chunk = &rest[..rest.len().min(room)];
            if chunk.is_empty() {
                continue;
            }
            room -= chunk.len();
            shares.push(Share { slot: index, tokens: chunk.to_vec(), logits: chunk.len() == rest.len() });
        }
        shares
    }

    /// Computes the shares; where the engine has no room for all of them, half by half.
    fn compute(&mut self, mut shares: Vec<Share>, out: &mut Outputs) -> Result<(), Failure> {
        let inputs: Vec<SlotInput<'_>> = shares
            .iter()
            .map(|share| SlotInput { slot: self.slots[share.slot].id, tokens: &share.tokens, logits: share.logits })
            .collect();
        match self.engine.forward(&inputs) {
            Ok(()) => {
                for share in &shares {
                    self.slots[share.slot].cached.extend_from_slice(&share.tokens);
                }
                for (input, share) in shares.iter().enumerate().filter(|(_, share)| share.logits) {
                    self.sample(share.slot, input, out);
                }
                Ok(())
            }
            Err(EngineError::NoRoom) if shares.len() > 1 => {
                let second = shares.split_off(shares.len() / 2);
                self.compute(shares, out)?;
                self.compute(second, out)
            }
            Err(EngineError::Broken(reason)) => Err(engine_failure(&reason)),
            Err(error) => {
                for share in &shares {
                    self.fail(share.slot, engine_failure(&error.to_string()), out);
                }
                Ok(())
            }
        }
    }

    fn fail(&mut self, slot: usize, failure: Failure, out: &mut Outputs) {
        if let Some(run) = self.slots[slot].run.take() {
            out.push((run.id, Output::Failed(failure)));
        }
        self.forget(slot);
    }

    fn sample(&mut self, slot: usize, input: usize, out: &mut Outputs) {
        let Some(run) = self.slots[slot].run.as_mut() else { return };
        run.decoding_since.get_or_insert_with(Instant::now);
        run.next = None;
        let mut emit = Emit { id: run.id, out, silent: false };
        match run.choose(self.engine.logits(input), &mut emit) {
            Ok(Fate::Goes) => {}
            Ok(Fate::Ended) => self.slots[slot].run = None,
            Err(failure) => {
                emit.say(Output::Failed(failure));
                self.slots[slot].run = None;
            }
        }
    }

    /// Proof of life of long prompts.
    fn tell_prefill(&mut self, out: &mut Outputs) {
        if self.prefill_told.elapsed() < Duration::from_millis(PROGRESS_INTERVAL_MS / 2) {
            return;
        }
        self.prefill_told = Instant::now();
        for slot in &self.slots {
            if let Some(run) = slot.run.as_ref().filter(|run| run.next.is_none()) {
                let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
                let (done, total) = (count(slot.cached.len()), count(run.prompt.len()));
                out.push((run.id, Output::Prefill { done, total }));
            }
        }
    }

    /// One group of the first embedding request. Returns whether there was one.
    fn step_embed(&mut self, out: &mut Outputs) -> Result<bool, Failure> {
        let Some(run) = self.embeds.front_mut() else { return Ok(false) };
        for slot in &mut self.slots {
            slot.cached.clear();
        }
        let id = run.id;
        match run.step(&mut self.engine).map_err(|error| engine_failure(&error.to_string()))? {
            Some(output) => {
                out.push((id, output));
                self.embeds.pop_front();
            }
            None => out.push((id, run.progress())),
        }
        Ok(true)
    }
}

fn engine_failure(reason: &str) -> Failure {
    Failure::new(FailureKind::EngineFailed, format!("an error was encountered while running the model: {reason}"))
}

/// The end of a request that was cancelled before it computed anything.
fn cancelled() -> Output {
    Output::Finished(Finished {
        reason: FinishReason::Cancelled,
        stop_string: None,
        usage: Usage::default(),
        timings: Timings::default(),
        context: Vec::new(),
    })
}

fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
