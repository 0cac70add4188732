//! Continuous batching: many requests, one forward pass per step.
//!
//! [`Batcher`] is driven by the one thread that owns the engine: [`Batcher::run`] and [`Batcher::cancel`] only take
//! notes, [`Batcher::step`] does the work of one forward pass and says everything it led to. A step computes one token
//! for every generating slot, and fills the rest of the batch with prompt tokens; while others generate, prompts
//! get no more of a step than these ([`pace`]), so that nobody waits long for the next token.
//!
//! A request is made ready off this thread ([`prepare`]), and starts in the order it came among those that are ready.
//! Embeddings use all slots, so they wait until nothing generates, and what is ready after them waits for them. A request that fails takes nobody with it, except those whose forward pass failed
//! together with its own. Knows nothing of sockets; the clock is only read for timings and proof of life.

mod embed;
#[cfg(test)]
mod format_tests;
mod job;
mod pace;
mod prepare;
#[cfg(test)]
mod prepare_tests;
mod prompt;
mod slices;
#[cfg(test)]
mod slices_tests;
mod slots;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toy;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ollmlx_proto::limits::SLOTS_MAX;
use ollmlx_proto::{
    Failure, FailureKind, FinishReason, Finished, Output, Request, RequestId, ResumePoint, SlotId, Started, TokenId,
};

use self::embed::Embeds;
use self::job::{Ending, Job, Stopwatch};
use self::pace::Pace;
use self::prepare::{Bench, Preparer, Ready, ReadyJob, Watch};
use self::slices::Seams;
use self::slots::{Placement, Replay, Slot, place};
use crate::chat::ChatFormat;
use crate::contract::Checked;
use crate::engine::{Engine, EngineError, SlotInput};
use crate::grammar::GrammarFactory;
use crate::limits::{ARRIVALS_LEN_MAX, OLDEST_SHARE, PREFILL_TOLD_EVERY, PREPARED_POLL, PREPARED_SOON};
use crate::sampler::{Choice, Scratch};
use crate::vocab::Vocab;

/// What a step found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Work is outstanding: step again.
    Busy,
    /// Work is outstanding, all of it paused: nothing to do until the next message.
    Paused,
    /// Nothing is outstanding until [`Batcher::run`].
    Idle,
}

/// Outputs of a step, in the order in which they are to be sent.
pub type Outputs = Vec<(RequestId, Output)>;

/// All requests of one loaded model.
pub struct Batcher<E> {
    engine: Checked<E>,
    vocab: Arc<Vocab>,
    preparer: Preparer,
    /// How long a step waits for what has just come.
    patience: Duration,
    arrivals: VecDeque<Arrival>,
    /// Turned away because too many wait.
    refused: Vec<RequestId>,
    slots: Vec<Slot>,
    embeds: Embeds,
    scratch: Scratch,
    pace: Pace,
    /// By which steps are timed.
    clock: fn() -> Instant,
    steps: u64,
    /// Plans made so far; says whose turn it is to be first.
    plans: u64,
    uses: u64,
}

struct Arrival {
    id: RequestId,
    at: Instant,
    cancelled: bool,
    paused: bool,
    stage: Stage,
}

/// How far a request has come that is in no slot yet.
enum Stage {
    Waiting(Arc<Request>),
    Preparing(Arc<Watch>),
    Ready(Result<Ready, Failure>),
}

impl Arrival {
    fn is_underway(&self) -> bool {
        !matches!(self.stage, Stage::Ready(_))
    }

    fn is_watched_by(&self, watch: &Arc<Watch>) -> bool {
        matches!(&self.stage, Stage::Preparing(own) if Arc::ptr_eq(own, watch))
    }
}

/// Tokens that one slot computes in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    slot: usize,
    tokens: usize,
}

impl<E: Engine> Batcher<E> {
    /// With all slots empty.
    #[must_use]
    pub fn new(engine: E) -> Self {
        let facts = engine.facts();
        let vocab = Arc::clone(&facts.vocab);
        let slots = (0..facts.slots.clamp(1, SLOTS_MAX)).map(|_| Slot::empty()).collect();
        let format = ChatFormat::new(&facts.chat, &vocab);
        let (facts, grammars) = (facts.clone(), GrammarFactory::new(Arc::clone(&vocab)));
        let engine = Checked::new(engine);
        let tokenizer = engine.tokenizer();
        let seams = Seams::new(&*tokenizer, &vocab);
        let bench = Bench { facts, tokenizer, seams, format, grammars };
        Self {
            preparer: Preparer::new(bench),
            patience: PREPARED_SOON,
            engine,
            vocab,
            arrivals: VecDeque::new(),
            refused: Vec::new(),
            slots,
            embeds: Embeds::default(),
            scratch: Scratch::default(),
            pace: Pace::default(),
            clock: Instant::now,
            steps: 0,
            plans: 0,
            uses: 0,
        }
    }

    /// The engine, for its facts and its memory.
    pub fn engine(&self) -> &E {
        self.engine.inner()
    }

    /// Forward passes computed so far, and waits for what makes requests ready: a sign of life.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether nothing is outstanding.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.arrivals.is_empty() && self.refused.is_empty() && self.embeds.is_empty() && !self.any_job()
    }

    /// Takes a request in. Whatever it says, it says in later steps.
    pub fn run(&mut self, request: Request) {
        if self.arrivals.len() >= ARRIVALS_LEN_MAX {
            // One answer each; the supervisor that overruns this has a defect, and memory must stay bounded.
            self.refused.push(request.id);
            return;
        }
        let (id, at, stage) = (request.id, Instant::now(), Stage::Waiting(Arc::new(request)));
        self.arrivals.push_back(Arrival { id, at, cancelled: false, paused: false, stage });
    }

    /// Ends a request in the next step. Unknown ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        for arrival in self.arrivals.iter_mut().filter(|arrival| arrival.id == id) {
            arrival.cancelled = true;
        }
        for job in self.slots.iter_mut().filter_map(|slot| slot.job.as_mut()).filter(|job| job.id == id) {
            job.cancelled = true;
        }
        self.embeds.cancel(id);
    }

    /// Computes nothing more for a request, or goes on with it. Embeddings, which wait for all that runs, wait for no paused
    /// one: while there are any, nothing is paused. Unknown ids are ignored.
    pub fn pause(&mut self, id: RequestId, paused: bool) {
        for arrival in self.arrivals.iter_mut().filter(|arrival| arrival.id == id) {
            arrival.paused = paused;
        }
        for job in self.slots.iter_mut().filter_map(|slot| slot.job.as_mut()).filter(|job| job.id == id) {
            job.paused = paused;
        }
    }

    /// Memory is short: forgets what idle slots keep for reuse, and has the engine give back what it does not need.
    pub fn trim(&mut self) {
        self.drop_idle_caches();
        self.engine.trim();
    }

    /// Does the work of one forward pass and appends what it led to.
    ///
    /// # Errors
    /// The engine is broken: the worker must exit.
    pub fn step(&mut self, out: &mut Outputs) -> Result<StepOutcome, Failure> {
        self.end_cancelled(out);
        self.prepare();
        self.give_up_slow(Instant::now());
        self.admit(out);
        if self.any_job() {
            self.generate(out)?;
        } else if !self.embeds.is_empty() {
            self.embed(out)?;
        }
        // A slot that has just become free is for the next of those that wait.
        let free = self.slots.iter().any(|slot| slot.job.is_none());
        let may_admit = self.arrivals.iter().any(|arrival| free || arrival.is_underway());
        Ok(match self.is_idle() {
            true => StepOutcome::Idle,
            false if self.embeds.is_empty() && !may_admit && self.slots.iter().all(Slot::is_held) => {
                StepOutcome::Paused
            }
            false => StepOutcome::Busy,
        })
    }

    fn any_job(&self) -> bool {
        self.slots.iter().any(|slot| slot.job.is_some())
    }

    fn end_cancelled(&mut self, out: &mut Outputs) {
        for id in self.refused.drain(..) {
            out.push((id, Output::Failed(Failure::new(FailureKind::Busy, "the worker has no free slot"))));
        }
        self.arrivals.retain(|arrival| {
            if arrival.cancelled {
                if let Stage::Preparing(watch) = &arrival.stage {
                    watch.give_up();
                }
                out.push((arrival.id, cancelled(&Stopwatch::new(arrival.at))));
            }
            !arrival.cancelled
        });
        self.embeds.end_cancelled(out);
        for slot in 0..self.slots.len() {
            if self.slots[slot].job.as_ref().is_some_and(|job| job.cancelled) {
                self.finish(slot, Ending::because(FinishReason::Cancelled), out);
            }
        }
    }

    /// Has requests made ready, and waits a little for those that have just come; longer where there is nothing to compute.
    fn prepare(&mut self) {
        let called = Instant::now();
        let mut fresh: Vec<Arc<Watch>> = Vec::new();
        loop {
            fresh.append(&mut self.begin_preparing());
            let idle = self.embeds.is_empty() && self.slots.iter().all(Slot::is_held);
            let polls = idle && !self.arrivals.is_empty() && self.arrivals.iter().all(Arrival::is_underway);
            let until = match polls {
                _ if !fresh.is_empty() => called + self.patience,
                true => called + PREPARED_POLL,
                false => called,
            };
            let Some((watch, outcome)) = self.preparer.next(until.saturating_duration_since(Instant::now())) else {
                // Whoever waits for what is bounded is alive.
                self.steps += u64::from(polls);
                return;
            };
            fresh.retain(|one| !Arc::ptr_eq(one, &watch));
            // Nobody waits for one that was cancelled, or too slow.
            if let Some(arrival) = self.arrivals.iter_mut().find(|arrival| arrival.is_watched_by(&watch)) {
                arrival.stage = Stage::Ready(outcome);
            }
        }
    }

    /// Begins what there is room for; returns what has begun.
    fn begin_preparing(&mut self) -> Vec<Arc<Watch>> {
        let mut begun = Vec::new();
        for Arrival { stage, at, .. } in &mut self.arrivals {
            let Stage::Waiting(request) = &stage else { continue };
            if !self.preparer.has_room() {
                break;
            }
            *stage = match self.preparer.begin(Arc::clone(request), *at) {
                Ok(watch) => {
                    begun.push(Arc::clone(&watch));
                    Stage::Preparing(watch)
                }
                Err(failure) => Stage::Ready(Err(failure)),
            };
        }
        begun
    }

    /// Whoever takes too long to be made ready is answered now; nobody waits for its thread.
    fn give_up_slow(&mut self, now: Instant) {
        for arrival in &mut self.arrivals {
            if let Stage::Preparing(watch) = &arrival.stage
                && let Some(failure) = watch.too_slow(now)
            {
                watch.give_up();
                arrival.stage = Stage::Ready(Err(failure));
            }
        }
    }

    /// Starts what is ready and can start, in order of arrival.
    fn admit(&mut self, out: &mut Outputs) {
        let mut index = 0;
        while let Some(Arrival { stage, .. }) = self.arrivals.get(index) {
            let free = self.slots.iter().any(|slot| slot.job.is_none());
            let may_start = match stage {
                Stage::Waiting(_) | Stage::Preparing(_) => false,
                Stage::Ready(Ok(Ready::Job(_))) if !(free && self.embeds.is_empty()) => return,
                Stage::Ready(_) => true,
            };
            if !may_start {
                index += 1;
                continue;
            }
            let Some(Arrival { id, paused, stage: Stage::Ready(ready), .. }) = self.arrivals.remove(index) else {
                return;
            };
            match ready {
                Ok(Ready::Job(ready)) => self.begin(*ready, paused, out),
                Ok(Ready::Embed(job)) => self.embeds.push(job),
                Ok(Ready::Said(output)) => out.push((id, output)),
                Err(failure) => out.push((id, Output::Failed(failure))),
            }
        }
    }

    fn begin(&mut self, ready: ReadyJob, paused: bool, out: &mut Outputs) {
        let ReadyJob { mut job, tokens, prompt_tokens, salt, missing, ending, produced, replay_exact } = ready;
        let id = job.id;
        job.paused = paused;
        let Some(placement) = place(&self.slots, &tokens, salt) else {
            out.push((id, Output::Failed(Failure::new(FailureKind::Internal, "no slot is free"))));
            return;
        };
        let slot = placement.slot;
        let computed = self.reuse(placement);
        job.usage.cached_tokens = u32::try_from(computed).unwrap_or(u32::MAX).min(job.usage.prompt_tokens);
        let started = Started {
            slot: slot_id(slot),
            prompt_tokens: job.usage.prompt_tokens,
            cached_tokens: job.usage.cached_tokens,
        };
        out.push((id, Output::Started(started)));
        out.extend(missing.into_iter().map(|output| (id, output)));
        self.uses += 1;
        // A window that slid has lost what it was computed from.
        let slid = tokens.len() != prompt_tokens + produced;
        let exact = !replay_exact.is_zero() && produced > 0 && !slid;
        let replay = exact.then(|| Replay::new(prompt_tokens, replay_exact));
        let used = self.uses;
        self.slots[slot] = Slot { tokens, computed, exact: usize::MAX, salt, used, job: Some(job), replay };
        if let Some(ending) = ending {
            self.finish(slot, ending, out);
        }
    }

    /// Prepares a slot's cache; returns how many tokens it really holds then.
    fn reuse(&mut self, placement: Placement) -> usize {
        let Placement { slot, keep, copy_from } = placement;
        let tokens = u32::try_from(keep).expect("a window's tokens have 32 bits");
        let kept = match copy_from {
            Some(from) if self.engine.copy_prefix(slot_id(from), slot_id(slot), tokens) => tokens,
            // A failed copy leaves nothing; a truncation to nothing is always possible and makes sure of it.
            Some(_) => self.engine.truncate(slot_id(slot), 0),
            None => self.engine.truncate(slot_id(slot), tokens),
        };
        keep.min(kept as usize)
    }

    fn generate(&mut self, out: &mut Outputs) -> Result<(), Failure> {
        let plan = self.plan();
        let Some(computed) = self.forward(plan, out)? else { return Ok(()) };
        for (input, share) in computed.into_iter().enumerate() {
            let slot = &mut self.slots[share.slot];
            slot.computed += share.tokens;
            let (done, total) = (slot.computed, slot.tokens.len());
            let Some(job) = &mut slot.job else { continue };
            if done < total {
                tell_prefill(job, done, total, out);
                continue;
            }
            job.clock.decode.get_or_insert_with(Instant::now);
            if job.is_full() {
                self.finish(share.slot, Ending::because(FinishReason::Length), out);
                continue;
            }
            let (id, vocab) = (job.id, &self.vocab);
            let next = job.sample(self.engine.logits(input), vocab, &mut self.scratch).and_then(|choice| {
                let token = choice.token;
                job.accept(choice, vocab, &mut |output| out.push((id, output))).map(|ending| (token, ending))
            });
            match next {
                Ok((token, None)) => self.append(share.slot, token, out),
                Ok((_, Some(ending))) => self.finish(share.slot, ending, out),
                Err(failure) => self.fail(share.slot, failure, out),
            }
        }
        Ok(())
    }

    /// Shares a batch out: one token for every generating slot, the rest for prompts, evenly.
    fn plan(&mut self) -> Vec<Share> {
        let limit = self.engine.facts().batch_tokens.max(1) as usize;
        let count = self.slots.len();
        let offset = usize::try_from(self.plans % count as u64).unwrap_or(0);
        self.plans += 1;
        // Whoever does not fit into a small batch is first another time.
        let goes_on = |slot: &Slot| slot.waiting() > 0 && !(slot.is_held() && self.embeds.is_empty());
        let busy = (0..count).map(|index| (index + offset) % count).filter(|&slot| goes_on(&self.slots[slot]));
        let generating = |slot: usize| {
            let slot = &self.slots[slot];
            slot.waiting() == 1 && slot.job.as_ref().is_some_and(|job| job.clock.decode.is_some())
        };
        let (decoding, mut prefilling): (Vec<usize>, Vec<usize>) = busy.partition(|&slot| generating(slot));
        let mut plan: Vec<Share> = decoding.into_iter().take(limit).map(|slot| Share { slot, tokens: 1 }).collect();
        let mut left = limit - plan.len();
        if !plan.is_empty() {
            left = left.min(self.pace.prompt_tokens());
        }
        // Short prompts first, whole, so that most first tokens come early; the oldest prompt always gets its part, so that
        // no long one starves.
        let now = Instant::now();
        let oldest = prefilling.iter().copied().min_by_key(|&slot| self.slots[slot].arrived());
        let kept = oldest.map_or(0, |slot| self.slots[slot].step_tokens(now).min(left.div_ceil(OLDEST_SHARE)));
        left -= kept;
        prefilling.sort_by_key(|&slot| self.slots[slot].waiting());
        for slot in prefilling {
            let own = if Some(slot) == oldest { kept } else { 0 };
            let tokens = self.slots[slot].step_tokens(now).min(left + own);
            if tokens > 0 {
                left -= tokens.saturating_sub(own);
                plan.push(Share { slot, tokens });
            }
        }
        plan
    }

    /// Computes as much of the plan as the cache has room for. `None` where the failure has been told already.
    fn forward(&mut self, mut plan: Vec<Share>, out: &mut Outputs) -> Result<Option<Vec<Share>>, Failure> {
        let now = Instant::now();
        for share in &plan {
            if let Some(job) = &mut self.slots[share.slot].job {
                job.clock.prefill.get_or_insert(now);
            }
        }
        while !plan.is_empty() {
            let slots = &self.slots;
            let input = |share: &Share| {
                let Slot { tokens, computed, .. } = &slots[share.slot];
                let end = computed + share.tokens;
                SlotInput { slot: slot_id(share.slot), tokens: &tokens[*computed..end], logits: end == tokens.len() }
            };
            let batch: Vec<SlotInput<'_>> = plan.iter().map(input).collect();
            let generating = batch.iter().filter(|input| input.tokens.len() == 1).count();
            let prompt_tokens = batch.iter().map(|input| input.tokens.len()).filter(|count| *count > 1).sum();
            let began = (self.clock)();
            let result = self.engine.forward(&batch);
            self.steps += 1;
            match result {
                Ok(()) => {
                    self.pace.saw((self.clock)().duration_since(began), generating, prompt_tokens);
                    return Ok(Some(plan));
                }
                Err(EngineError::NoRoom) if self.drop_idle_caches() => {}
                Err(EngineError::NoRoom) if plan.len() > 1 => plan.truncate(plan.len() / 2),
                // Whoever came last gives way, not whoever happens to need the next place.
                Err(error @ EngineError::NoRoom)
                    if let Some(newest) = self.newest_prompt().filter(|&newest| newest != plan[0].slot) =>
                {
                    self.fail(newest, failure(&error), out);
                }
                Err(EngineError::Broken(detail)) => return Err(broken(detail)),
                Err(error) => {
                    for share in plan {
                        self.fail(share.slot, failure(&error), out);
                    }
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// The slot whose prompt is being computed and came last.
    fn newest_prompt(&self) -> Option<usize> {
        let computing = |slot: &Slot| slot.computed > 0 && slot.waiting() > 1;
        let prompts = self.slots.iter().enumerate().filter(|(_, slot)| slot.job.is_some() && computing(slot));
        prompts.max_by_key(|(_, slot)| slot.arrived()).map(|(index, _)| index)
    }

    /// Makes room by forgetting what is only kept for reuse. `false` where there is nothing of that kind.
    fn drop_idle_caches(&mut self) -> bool {
        let mut any = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.job.is_none() && slot.computed > 0 {
                self.engine.truncate(slot_id(index), 0);
                slot.forget();
                any = true;
            }
        }
        any
    }

    /// Puts a generated token in line, and makes room for it where the window is full.
    fn append(&mut self, index: usize, token: TokenId, out: &mut Outputs) {
        let slot = &mut self.slots[index];
        slot.tokens.push(token);
        let Some(job) = &slot.job else { return };
        if slot.tokens.len() <= job.window {
            return;
        }
        if let Some((keep, discard)) = job.slide(slot.computed)
            && self.engine.shift(slot_id(index), keep as u32, discard as u32)
        {
            slot.tokens.drain(keep..keep + discard);
            slot.computed -= discard;
            slot.exact = slot.exact.min(keep);
            return;
        }
        self.finish(index, Ending::because(FinishReason::Length), out);
    }

    /// Ends a request and frees its slot; what it computed stays for the next one.
    fn finish(&mut self, index: usize, ending: Ending, out: &mut Outputs) {
        let slot = &mut self.slots[index];
        let Some(job) = slot.job.take() else { return };
        let id = job.id;
        job.finish(ending, &mut |output| out.push((id, output)));
        slot.tokens.truncate(slot.computed);
        if slot.exact < slot.computed {
            let kept = self.engine.truncate(slot_id(index), slot.exact as u32) as usize;
            slot.tokens.truncate(kept);
            slot.computed = slot.tokens.len();
        }
        slot.exact = usize::MAX;
    }

    /// Ends a request that failed and forgets its cache, which may be the reason.
    fn fail(&mut self, index: usize, failure: Failure, out: &mut Outputs) {
        if let Some(job) = self.slots[index].job.take() {
            out.push((job.id, Output::Failed(failure)));
        }
        self.engine.truncate(slot_id(index), 0);
        self.slots[index].forget();
    }

    fn embed(&mut self, out: &mut Outputs) -> Result<(), Failure> {
        self.slots.iter_mut().for_each(Slot::forget);
        self.steps += 1;
        self.embeds.step(&mut self.engine, out)
    }
}

/// Brings a fresh job to where an earlier worker left it: `tokens` becomes what its slot must hold. Returns what the
/// earlier worker had no time to tell: the ending, and before it, the rest of what its last token led to.
fn replay(
    job: &mut Job,
    request: &Request,
    tokens: &mut Vec<TokenId>,
    vocab: &Vocab,
    watch: &Watch,
) -> Result<(Option<Ending>, Vec<Output>), Failure> {
    let ResumePoint { produced, said_after, .. } = &request.progress;
    let mut missing = Vec::new();
    job.heard = *said_after as usize;
    for (index, &token) in produced.iter().enumerate() {
        watch.replayed()?;
        if token as usize >= vocab.len() {
            return Err(Failure::new(FailureKind::Internal, "a produced token is not in the vocabulary"));
        }
        // Of the last one its own delta was heard, and what is counted.
        job.heard = if index + 1 == produced.len() { 1 + *said_after as usize } else { usize::MAX };
        let ending = job.accept(Choice { token, logprob: None }, vocab, &mut |output| missing.push(output))?;
        if ending.is_some() {
            return Ok((ending, missing));
        }
        tokens.push(token);
        if tokens.len() > job.window {
            let Some((keep, discard)) = job.slide(tokens.len() - 1) else {
                return Ok((Some(Ending::because(FinishReason::Length)), missing));
            };
            tokens.drain(keep..keep + discard);
        }
    }
    Ok((None, missing))
}

fn tell_prefill(job: &mut Job, done: usize, total: usize, out: &mut Outputs) {
    let now = Instant::now();
    if now.saturating_duration_since(job.clock.told) >= PREFILL_TOLD_EVERY {
        job.clock.told = now;
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        out.push((job.id, Output::Prefill { done: count(done), total: count(total) }));
    }
}

fn slot_id(index: usize) -> SlotId {
    SlotId(u16::try_from(index).expect("there are at most SLOTS_MAX slots"))
}

fn cancelled(clock: &Stopwatch) -> Output {
    Output::Finished(Finished {
        reason: FinishReason::Cancelled,
        stop_string: None,
        usage: ollmlx_proto::Usage::default(),
        timings: clock.timings(),
        context: Vec::new(),
    })
}

fn broken(detail: String) -> Failure {
    Failure::new(FailureKind::EngineFailed, "the engine is broken").with_detail(detail)
}

/// What a client hears of an engine's error.
fn failure(error: &EngineError) -> Failure {
    match error {
        EngineError::NoRoom => Failure::new(FailureKind::EngineFailed, "no room in the key-value cache"),
        EngineError::Refused(failure) => failure.clone(),
        EngineError::Failed(detail) | EngineError::Broken(detail) => {
            Failure::new(FailureKind::EngineFailed, "the engine failed in a computation").with_detail(detail.clone())
        }
    }
}
