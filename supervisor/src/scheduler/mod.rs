//! Everything the supervisor decides: admit, queue, spawn, grant, evict, kill, back off.
//!
//! [`Scheduler::step`] takes what happened and the time, and returns what is to be done. It has no clock, process, task,
//! lock or randomness of its own, so a log of `(Mono, Event)` lines, or a seed, replays any decision. Tokens never
//! come here.
//!
//! A request leaves admission in exactly one of: granted, queued, joined to a load, refused. Whether a model should be up
//! is derived (its queue is not empty), never stored. Invariants I1 to I6 of the architecture page are asserted by the
//! simulation in `tests/it/sim.rs`; what can't happen is reported as [`Effect::Never`], which that simulation refuses.
//!
//! Decision (2026-11-25): requests that run when their worker dies fail once the process is reaped, not when its socket
//! closes, so that the client is told the true cause (a signal's name) a few milliseconds later. The rejected option,
//! failing at once, could only say "lost".

mod admission;
mod backoff;
mod budget;
pub mod effect;
pub mod event;
pub mod lifecycle;
mod model;
mod pump;
pub mod snapshot;

use std::collections::BTreeMap;

use ollmlx_proto::{FailureKind, ModelId, RequestId, WorkerId, limits};

use self::backoff::Rest;
pub use self::backoff::Rng;
use self::budget::Ledger;
pub use self::effect::{Effect, Push};
pub use self::event::{Cause, Event, Job, KeepAlive, LoadPlan, Mono};
use self::lifecycle::{Input, State, Step};
use self::model::{Model, death_failure, load_failure, words};
pub use self::snapshot::{Snapshot, WorkerView};

/// Effects, in the order they are to be performed.
pub type Outbox = Vec<Effect>;

/// Loads that fail in a row before those who wait are told.
const LOAD_TRIES_MAX: u32 = 3;

/// Every number that the scheduler decides by. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Requests that wait over all models.
    pub queue_len_max: usize,
    /// Workers at once.
    pub workers_max: usize,
    /// Bytes of all workers; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// Where a client says nothing.
    pub keep_alive: KeepAlive,
    /// See `limits::HELLO_TIMEOUT_MS`.
    pub hello_timeout_ms: u64,
    /// See `limits::LOAD_STALL_MS`.
    pub load_stall_ms: u64,
    /// See `limits::SILENCE_MS`.
    pub silence_ms: u64,
    /// See `limits::ASK_TIMEOUT_MS`.
    pub ask_timeout_ms: u64,
    /// See `limits::TERM_TIMEOUT_MS`.
    pub term_timeout_ms: u64,
    /// See `limits::KILL_TIMEOUT_MS`.
    pub kill_timeout_ms: u64,
    /// See `limits::QUEUE_WAIT_MS_MAX`.
    pub queue_wait_ms: u64,
    /// See `limits::DRAIN_TIMEOUT_MS`.
    pub drain_timeout_ms: u64,
    /// See `limits::BACKOFF_MS_MIN`.
    pub backoff_ms_min: u64,
    /// See `limits::BACKOFF_MS_MAX`.
    pub backoff_ms_max: u64,
    /// See `limits::DEATHS_MAX`.
    pub deaths_max: usize,
    /// See `limits::DEATHS_WINDOW_S`.
    pub deaths_window_ms: u64,
    /// See `limits::QUARANTINE_S`.
    pub quarantine_ms: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            queue_len_max: limits::QUEUE_LEN_MAX,
            workers_max: 3,
            memory_limit: None,
            keep_alive: KeepAlive::ForMs(5 * 60_000),
            hello_timeout_ms: limits::HELLO_TIMEOUT_MS,
            load_stall_ms: limits::LOAD_STALL_MS,
            silence_ms: limits::SILENCE_MS,
            ask_timeout_ms: limits::ASK_TIMEOUT_MS,
            term_timeout_ms: limits::TERM_TIMEOUT_MS,
            kill_timeout_ms: limits::KILL_TIMEOUT_MS,
            queue_wait_ms: limits::QUEUE_WAIT_MS_MAX,
            drain_timeout_ms: limits::DRAIN_TIMEOUT_MS,
            backoff_ms_min: limits::BACKOFF_MS_MIN,
            backoff_ms_max: limits::BACKOFF_MS_MAX,
            deaths_max: limits::DEATHS_MAX,
            deaths_window_ms: limits::DEATHS_WINDOW_S * 1000,
            quarantine_ms: limits::QUARANTINE_S * 1000,
        }
    }
}

/// The whole state of what is decided.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    rng: Rng,
    models: BTreeMap<ModelId, Model>,
    /// Where each unfinished request is.
    requests: BTreeMap<RequestId, ModelId>,
    ledger: Ledger,
    leaving: bool,
    finished: bool,
}

impl Scheduler {
    /// An empty house. `seed` feeds the jitter.
    #[must_use]
    pub fn new(config: SchedulerConfig, seed: u64) -> Self {
        let ledger = Ledger::new(config.memory_limit);
        Self {
            config,
            rng: Rng::new(seed),
            models: BTreeMap::new(),
            requests: BTreeMap::new(),
            ledger,
            leaving: false,
            finished: false,
        }
    }

    /// Takes one event and says what is to be done. `now` never goes back.
    pub fn step(&mut self, now: Mono, event: Event, out: &mut Outbox) {
        match event {
            Event::Arrived { request, job, plan, keep_alive } => {
                self.arrived(now, request, job, *plan, keep_alive, out);
            }
            Event::Left { request } => self.left(request, out),
            Event::Unload { model } => self.unload(&model),
            Event::Pardoned { model } => self.pardon(now, &model, out),
            Event::Spawned { worker, pid } => self.hear(now, &worker, Input::Spawned { pid }, None, out),
            Event::SpawnFailed { worker, reason } => {
                self.hear(now, &worker, Input::SpawnFailed, Some(Cause::SpawnFailed(reason)), out);
            }
            Event::Hello { worker } => self.hello(now, &worker, out),
            Event::Misbehaved { worker, cause } => self.hear(now, &worker, Input::Misbehaved, Some(cause), out),
            Event::LoadProgress { worker, .. } => self.hear(now, &worker, Input::LoadProgress, None, out),
            Event::Ready { worker, ready } => self.ready(now, &worker, ready, out),
            Event::LoadFailed { worker, failure } => {
                self.hear(now, &worker, Input::LoadFailed, Some(Cause::LoadFailed(failure)), out);
            }
            Event::Heard { worker } => self.hear(now, &worker, Input::Heard, None, out),
            Event::Ended { worker, request } => self.ended(now, &worker, request, out),
            Event::LinkClosed { worker } => {
                self.hear(now, &worker, Input::LinkClosed, Some(Cause::LinkLost), out);
            }
            Event::Exited { worker, cause, log_tail } => self.exited(now, &worker, cause, &log_tail, out),
            Event::MemorySampled { worker, bytes } => self.sampled(&worker, bytes),
            Event::DeadlineElapsed => self.elapsed(now, out),
            Event::ShutdownAsked => self.shut_down(now, out),
            Event::ShutdownForced => self.shut_down_now(now, out),
        }
        self.pump(now, out);
        if self.leaving && !self.finished && !self.models.values().any(|model| model.state.is_live()) {
            self.finished = true;
            out.push(Effect::Finished);
        }
    }

    /// When [`Event::DeadlineElapsed`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        let states = self.models.values().filter_map(|model| model.state.deadline());
        let waits = self.models.values().flat_map(|model| model.queue.iter().map(|waiting| waiting.deadline));
        states.chain(waits).min()
    }

    /// Whether this process is the model's current one.
    fn is_current(&self, worker: &WorkerId) -> bool {
        self.models.get(&worker.model).is_some_and(|model| model.incarnation == worker.incarnation)
    }

    /// Tells a worker's state what it hears. `cause` is kept as the reason should this lead out.
    fn hear(&mut self, now: Mono, worker: &WorkerId, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        if !self.is_current(worker) {
            return;
        }
        let Some(model) = self.models.get_mut(&worker.model) else { return };
        let before = model.state;
        match before.next(input, now, &self.config) {
            Step::Stay => {}
            Step::Never => {
                out.push(Effect::Never { what: format!("{worker} heard {input:?} while {}", before.name()) });
            }
            Step::Settle => {
                let cause = cause.unwrap_or(Cause::Asked);
                self.settle(now, worker, cause, "", out);
            }
            Step::To(state, push) => {
                let leaves = matches!(state, State::Exiting { .. });
                if leaves && model.ending.is_none() {
                    model.ending = Some(cause.unwrap_or_else(|| late(before)));
                }
                model.state = state;
                if let Some(push) = push {
                    out.push(Effect::Push { worker: worker.clone(), push });
                }
                if before.name() != state.name() {
                    let cause = if leaves { model.ending.clone() } else { None };
                    out.push(Effect::Transition {
                        worker: worker.clone(),
                        from: before.name(),
                        to: state.name(),
                        cause,
                    });
                }
            }
        }
    }

    fn hello(&mut self, now: Mono, worker: &WorkerId, out: &mut Outbox) {
        self.hear(now, worker, Input::Hello, None, out);
        let Some(model) = self.models.get(&worker.model).filter(|model| model.worker(&worker.model) == *worker) else {
            return;
        };
        if matches!(model.state, State::Loading { .. }) {
            out.push(Effect::Load { worker: worker.clone(), plan: Box::new(model.plan.clone()) });
        }
    }

    fn ready(&mut self, now: Mono, worker: &WorkerId, ready: ollmlx_proto::Ready, out: &mut Outbox) {
        if !self.is_current(worker) {
            return;
        }
        let Some(model) = self.models.get_mut(&worker.model) else { return };
        if matches!(model.state, State::Loading { .. }) {
            self.ledger.raise(&worker.model, ready.memory.total());
            model.ready = Some(ready);
            model.load_failures = 0;
            model.used_at = now;
        }
        // Whoever waits is granted before a keep-alive of nothing can elapse.
        let expires_at = model.expires_at(now);
        self.hear(now, worker, Input::Ready { expires_at }, None, out);
    }

    fn ended(&mut self, now: Mono, worker: &WorkerId, request: RequestId, out: &mut Outbox) {
        if !self.is_current(worker) {
            return;
        }
        let Some(model) = self.models.get_mut(&worker.model) else { return };
        if model.running.remove(&request).is_none() {
            return;
        }
        self.requests.remove(&request);
        model.used_at = now;
        let expires_at = model.expires_at(now);
        self.hear(now, worker, Input::Ended { expires_at }, None, out);
    }

    fn exited(&mut self, now: Mono, worker: &WorkerId, cause: Cause, log_tail: &str, out: &mut Outbox) {
        if !self.is_current(worker) {
            return;
        }
        let Some(model) = self.models.get(&worker.model) else { return };
        match model.state.next(Input::Exited, now, &self.config) {
            Step::Settle => self.settle(now, worker, cause, log_tail, out),
            _ => out.push(Effect::Never { what: format!("{worker} exited while {}", model.state.name()) }),
        }
    }

    fn sampled(&mut self, worker: &WorkerId, bytes: u64) {
        if self.is_current(worker)
            && let Some(model) = self.models.get_mut(&worker.model)
        {
            model.sampled_bytes = bytes;
            self.ledger.raise(&worker.model, bytes);
        }
    }

    /// The process is gone: release, tally, decide what follows.
    fn settle(&mut self, now: Mono, worker: &WorkerId, seen: Cause, log_tail: &str, out: &mut Outbox) {
        let Some(model) = self.models.get_mut(&worker.model) else { return };
        let before = model.state;
        // What we decided ourselves says more than the status it left with; a lost link says less.
        let cause = match model.ending.take() {
            None | Some(Cause::LinkLost) => seen,
            Some(Cause::Asked)
                if matches!(seen, Cause::Signalled { .. }) && !self.leaving && before.in_flight() > 0 =>
            {
                seen
            }
            Some(ending) => ending,
        };
        self.ledger.release(&worker.model);
        let was_ready = model.ready.take().is_some();
        model.sampled_bytes = 0;
        model.unload_asked = false;
        let line = log_tail.lines().last().unwrap_or_default();
        let running = std::mem::take(&mut model.running);
        let failure = if self.leaving {
            ollmlx_proto::Failure::new(FailureKind::ShuttingDown, "the server is shutting down")
        } else {
            death_failure(&cause, line)
        };
        for request in running.into_keys() {
            self.requests.remove(&request);
            out.push(Effect::Fail { request, failure: failure.clone() });
        }
        let (state, refusal) = self.after_death(now, &worker.model, &cause, was_ready, line);
        if let Some(model) = self.models.get_mut(&worker.model) {
            model.state = state;
        }
        out.push(Effect::Transition {
            worker: worker.clone(),
            from: before.name(),
            to: state.name(),
            cause: Some(cause),
        });
        if let Some(failure) = refusal {
            self.refuse_queue(&worker.model, &failure, out);
        }
    }

    /// Where a model goes after its process ended, and what those who wait are told, if anything.
    fn after_death(
        &mut self,
        now: Mono,
        id: &ModelId,
        cause: &Cause,
        was_ready: bool,
        line: &str,
    ) -> (State, Option<ollmlx_proto::Failure>) {
        let Some(model) = self.models.get_mut(id) else { return (State::Absent, None) };
        if matches!(cause, Cause::Asked) {
            return (State::Absent, None);
        }
        model.last_death = Some(words(cause));
        if let Cause::LoadFailed(failure) = cause
            && failure.retry == ollmlx_proto::Retry::Never
        {
            // The files themselves are wrong: trying again changes nothing, waiting neither.
            return (State::Absent, Some(failure.clone()));
        }
        model.restarts = model.restarts.saturating_add(1);
        let rest = model.tally.record(now, &self.config, &mut self.rng);
        if !was_ready {
            model.load_failures += 1;
        }
        match rest {
            Rest::Quarantine(until) => {
                let failure = quarantine_failure(&words(cause), self.config.quarantine_ms);
                (State::Quarantined { until }, Some(failure))
            }
            Rest::Backoff(until) => {
                let given_up = model.load_failures >= LOAD_TRIES_MAX || matches!(cause, Cause::LoadStalled);
                let refusal = (!was_ready && given_up).then(|| load_failure(cause, line));
                if refusal.is_some() {
                    model.load_failures = 0;
                }
                (State::Backoff { until }, refusal)
            }
        }
    }

    /// Fires every deadline that has come.
    fn elapsed(&mut self, now: Mono, out: &mut Outbox) {
        let due: Vec<WorkerId> = self
            .models
            .iter()
            .filter(|(_, model)| model.state.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(id, model)| model.worker(id))
            .collect();
        for worker in due {
            self.hear(now, &worker, Input::Elapsed, None, out);
        }
        for model in self.models.values_mut() {
            model.queue.retain(|waiting| {
                let late = waiting.deadline <= now;
                if late {
                    self.requests.remove(&waiting.request);
                    let text = "server busy, please try again.  the request waited too long for a free slot";
                    let failure = ollmlx_proto::Failure::new(FailureKind::Busy, text);
                    out.push(Effect::Fail { request: waiting.request, failure });
                }
                !late
            });
        }
    }

    /// Ends all that wait for `id` with `failure`.
    fn refuse_queue(&mut self, id: &ModelId, failure: &ollmlx_proto::Failure, out: &mut Outbox) {
        let Some(model) = self.models.get_mut(id) else { return };
        for waiting in std::mem::take(&mut model.queue) {
            self.requests.remove(&waiting.request);
            out.push(Effect::Fail { request: waiting.request, failure: failure.clone() });
        }
    }
}

/// Why a state's deadline leads out.
fn late(state: State) -> Cause {
    match state {
        State::Handshaking { .. } => Cause::NoHello,
        State::Loading { .. } => Cause::LoadStalled,
        State::Busy { .. } => Cause::Silent,
        _ => Cause::Asked,
    }
}

fn quarantine_failure(cause: &str, rest_ms: u64) -> ollmlx_proto::Failure {
    let seconds = rest_ms.div_ceil(1000);
    let text = format!(
        "the model failed too often and rests (last cause: {cause}); it is tried again in {seconds} s at the latest, or \
         at once after 'ollmlx stop' and a new create"
    );
    ollmlx_proto::Failure::new(FailureKind::Quarantined, text)
}
