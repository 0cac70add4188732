//! Everything the supervisor decides: who may run, who waits, who is refused, which process is started, asked to leave
//! or killed, and how long a failed one rests.
//!
//! [`Scheduler::step`] is the only way in and [`Outbox`] the only way out: no clock, no process, no lock, no task. It
//! doesn't see tokens; it learns of a request at its arrival and its end. Everything it does is a function of its
//! configuration, its seed and the `(Mono, Event)` pairs it was given.
//!
//! | file | |
//! |---|---|
//! | `lifecycle` | the life of one worker as a value |
//! | `admission` | arrivals and departures of requests |
//! | `queue`, `budget`, `evict`, `backoff` | who waits, who holds memory, who makes room, how long a failed one rests |
//! | `fit` | whether a plan can ever have its room, and how it is made smaller |
//! | `room` | after each event: grants, starts, evictions |
//! | `incident` | workers that die together: told as one, started one by one |
//! | `poison` | requests that killed their workers |
//! | `replace` | a server that is replaced, and one that replaces another |
//! | `ladder`, `relief` | how near the memory limit is, and what is done about it |
//! | `own_limit` | the same of one model's own limit |
//! | `settle` | transitions, and what a death means for those concerned |
//!
//! Invariants: memory is reserved from `Wanted` until the process is reaped (I1); one process per model, one
//! incarnation per process (I2); everything but `Absent`, `Spawning` and a pinned `Idle` has a deadline (I3); an illegal
//! event changes nothing and is told as [`Effect::Never`] (I4); a draining worker gets no grants (I5); the tally
//! of deaths outlives a quarantine (I6, in `limits`). Every request ends exactly once.
//!
//! A worker's death is nobody's problem: those it ran come back to the front of their line and go on on the next
//! incarnation, see `settle`. The driver keeps the tokens they had produced.

mod admission;
mod backoff;
mod budget;
mod cause;
pub mod effect;
pub mod event;
mod evict;
mod fit;
mod homes;
mod incident;
mod ladder;
mod level;
pub mod lifecycle;
mod model;
mod own_limit;
mod poison;
mod queue;
mod record;
mod relief;
mod replace;
mod room;
mod settle;
mod snapshot;

use std::collections::BTreeMap;

use ollmlx_proto::{MemoryReport, ModelId, Ready, RequestId, WorkerId, limits};

pub use effect::{Effect, Outbox, Push};
pub use event::Event;

use backoff::Rng;
use budget::Ledger;
use homes::Homes;
use incident::Incidents;
use ladder::Ladder;
use lifecycle::{DrainReason, Input, State, Timeouts};
use model::{Model, Running};
use poison::Poisons;

use crate::types::{Cause, KeepAlive, Mono, Shrink, Totals};

/// What an administrator may set, with defaults from `limits`.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Requests waiting over all models.
    pub queue_max: usize,
    /// Processes at once, leaving ones included; at least 1.
    pub workers_max: usize,
    /// Bytes that all workers may hold together; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// Whether the machine's own complaints about memory count.
    pub heeds_pressure: bool,
    /// What may be given up for a model that doesn't fit.
    pub shrink: Shrink,
    /// For models whose requests say nothing.
    pub default_keep_alive: KeepAlive,
    /// Longest wait for a grant.
    pub queue_wait_ms: u64,
    /// A model that waits for room this long makes busy ones give way.
    pub yield_after_ms: u64,
    /// Of a worker's life.
    pub timeouts: Timeouts,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            queue_max: limits::QUEUE_LEN_MAX,
            workers_max: limits::WORKERS_MAX,
            memory_limit: None,
            heeds_pressure: true,
            shrink: Shrink::Nothing,
            default_keep_alive: KeepAlive::ForMs(limits::KEEP_ALIVE_MS),
            queue_wait_ms: limits::QUEUE_WAIT_MS_MAX,
            yield_after_ms: limits::YIELD_AFTER_MS,
            timeouts: Timeouts {
                hello_ms: limits::HELLO_TIMEOUT_MS,
                load_stall_ms: limits::LOAD_STALL_MS,
                silence_ms: limits::SILENCE_MS,
                ask_ms: limits::ASK_TIMEOUT_MS,
                term_ms: limits::TERM_TIMEOUT_MS,
                kill_ms: limits::KILL_TIMEOUT_MS,
                drain_ms: limits::DRAIN_TIMEOUT_MS,
                relief_ms: limits::RELIEF_DRAIN_MS,
                linger_ms: limits::LINK_LINGER_MS,
            },
        }
    }
}

/// The scheduler. See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    rng: Rng,
    ledger: Ledger,
    ladder: Ladder,
    /// When workers were last asked to drop caches.
    trimmed: Option<(Mono, u64)>,
    /// When a worker last went because of pressure on the machine.
    relieved: Option<Mono>,
    /// In order of id; a place is stable within a step.
    models: Vec<Model>,
    /// Where each living request is.
    homes: Homes,
    poisons: Poisons,
    incidents: Incidents,
    queue_len: usize,
    /// A successor serves.
    is_replaced: bool,
    leaving: bool,
    finished: bool,
    totals: Totals,
    /// Processes that took the place of one that died, by the class of its cause.
    restarts: BTreeMap<&'static str, u64>,
    now: Mono,
}

impl Scheduler {
    /// An empty house. The seed only spreads restarts.
    #[must_use]
    pub fn new(config: SchedulerConfig, seed: u64) -> Self {
        let ledger = Ledger::new(config.memory_limit);
        Self {
            config,
            rng: Rng::new(seed),
            ledger,
            ladder: Ladder::default(),
            trimmed: None,
            relieved: None,
            models: Vec::new(),
            homes: Homes::default(),
            poisons: Poisons::default(),
            incidents: Incidents::default(),
            queue_len: 0,
            is_replaced: false,
            leaving: false,
            finished: false,
            totals: Totals::default(),
            restarts: BTreeMap::new(),
            now: Mono(0),
        }
    }

    /// Takes one event and appends what is to be done. A clock that goes back stands still.
    pub fn step(&mut self, now: Mono, event: Event, out: &mut Outbox) {
        self.now = self.now.max(now);
        match event {
            Event::Arrived { request, job, plan, keep_alive } => self.arrived(request, job, plan, keep_alive, out),
            Event::Left { request } => self.left(request, out),
            Event::Unload { model } => self.unload(&model, out),
            Event::Pardoned { model } => self.pardoned(&model, out),
            Event::Restart { model } => self.restart(&model, out),
            Event::Spawned { worker, pid } => self.told(&worker, Input::Spawned { pid }, None, out),
            Event::SpawnFailed { worker, reason } => self.ended(&worker, Cause::SpawnFailed(reason), "", out),
            Event::Hello { worker } => self.told(&worker, Input::Hello, None, out),
            Event::Misbehaved { worker, cause } => self.told(&worker, Input::Misbehaved, Some(cause), out),
            Event::LoadProgress { worker, done, total } => self.progressed(&worker, (done, total), out),
            Event::Ready { worker, ready } => self.ready(&worker, ready, out),
            Event::LoadFailed { worker, failure } => {
                self.told(&worker, Input::LoadFailed, Some(Cause::LoadFailed(failure)), out);
            }
            Event::Heard { worker } => self.told(&worker, Input::Heard, None, out),
            Event::Ended { worker, request } => self.request_ended(&worker, request, out),
            Event::Cleared { worker, request } => self.cleared(&worker, request),
            Event::Gained { worker, request } => self.gained(&worker, request),
            Event::LinkClosed { worker } => self.told(&worker, Input::LinkClosed, Some(Cause::LinkLost), out),
            Event::Exited { worker, cause, log_tail } => self.ended(&worker, cause, &log_tail, out),
            Event::MemoryReported { worker, memory } => self.reported(&worker, memory, out),
            Event::MemorySampled { worker, bytes } => self.sampled(&worker, bytes, out),
            Event::PressureSampled { permille } if self.config.heeds_pressure => self.pressed(permille, out),
            Event::PressureSampled { .. } => {}
            Event::Stopped { worker } => self.stopped(worker, out),
            Event::DeadlineElapsed => self.elapsed(out),
            Event::Replaced => self.replaced(out),
            Event::ElsewhereHeld { bytes } => self.ledger.hold_elsewhere(bytes),
            Event::ShutdownAsked => self.leave(Input::Drain { reason: DrainReason::Leaving }, out),
            Event::ShutdownForced => self.leave(Input::Kill, out),
        }
        self.settle_wants(out);
    }

    /// When [`Event::DeadlineElapsed`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        let of_model = |model: &Model| {
            let state = model.state.deadline();
            let head = model.queue.head();
            let wait = model.queue.deadline();
            let blocked = head.filter(|_| model.state == State::Absent);
            let gives_way = blocked.map(|waiting| waiting.arrived.plus_ms(self.config.yield_after_ms));
            let gives_way = gives_way.filter(|&at| at > self.now);
            let held = blocked.and_then(|_| self.held_until(model));
            let cancel = model.running.values().filter_map(|running| running.cancel_deadline).min();
            let cancel = cancel.filter(|_| !matches!(model.state, State::Exiting { .. }));
            [state, wait, gives_way, held, cancel, model.given_up_at()].into_iter().flatten().min()
        };
        self.models.iter().filter_map(of_model).chain(self.incidents.deadline()).min()
    }

    /// Bytes that nobody else may have because of this model.
    #[must_use]
    pub fn reserved_bytes(&self, model: &ModelId) -> u64 {
        self.ledger.of(model).bytes()
    }

    /// Whether a worker loads or computes: its memory may grow.
    #[must_use]
    pub fn is_working(&self) -> bool {
        let quiet = |state: State| !state.has_process() || matches!(state, State::Idle { .. });
        !self.models.iter().all(|model| quiet(model.state))
    }

    fn find(&self, model: &ModelId) -> Result<usize, usize> {
        self.models.binary_search_by(|known| known.id.cmp(model))
    }

    /// The place of a living process; `None` for one that is gone, whose late words are dropped.
    fn living(&self, worker: &WorkerId) -> Option<usize> {
        let at = self.find(&worker.model).ok()?;
        let model = &self.models[at];
        (model.incarnation == worker.incarnation && model.state.has_process()).then_some(at)
    }

    fn told(&mut self, worker: &WorkerId, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        if let Some(at) = self.living(worker) {
            self.apply(at, input, cause, out);
        }
    }

    /// Only a load that moves pushes its deadline.
    fn progressed(&mut self, worker: &WorkerId, progress: (u64, u64), out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        if self.models[at].progress.replace(progress) != Some(progress) {
            self.apply(at, Input::Progress, None, out);
        }
    }

    fn ready(&mut self, worker: &WorkerId, mut ready: Ready, out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        let model = &mut self.models[at];
        if ready.slots == 0 {
            let cause = Cause::Protocol("ready without slots".to_owned());
            return self.apply(at, Input::Misbehaved, Some(cause), out);
        }
        if !matches!(model.state, State::Loading { .. }) {
            let cause = Cause::Protocol("ready out of turn".to_owned());
            let expires_at = None;
            return self.apply(at, Input::Ready { expires_at }, Some(cause), out);
        }
        let need = self.ledger.of(&worker.model).measured().max(ready.memory.total());
        let too_large = self.too_large(at, need);
        if too_large.is_some() {
            return self.apply(at, Input::Kill, too_large, out);
        }
        let model = &mut self.models[at];
        model.too_large = 0;
        ready.slots = ready.slots.min(limits::SLOTS_MAX);
        model.last_used = self.now;
        model.load_ns = self.now.since(model.started).max(1);
        model.ready_bytes = need;
        let expires_at = model.expires_at(self.now);
        self.ledger.report(&worker.model, ready.memory.total());
        model.ready = Some(ready);
        model.incident = None;
        self.apply(at, Input::Ready { expires_at }, None, out);
        self.relieve(out);
    }

    /// Its own word counts from when it is ready, and is said again then.
    fn reported(&mut self, worker: &WorkerId, memory: MemoryReport, out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        let Some(ready) = &mut self.models[at].ready else { return };
        ready.memory = memory;
        self.ledger.report(&worker.model, memory.total());
        self.relieve(out);
    }

    fn sampled(&mut self, worker: &WorkerId, bytes: u64, out: &mut Outbox) {
        if self.living(worker).is_some() {
            self.ledger.sample(&worker.model, bytes, self.now);
            self.recycle(worker, out);
            self.relieve(out);
        }
    }

    /// One that keeps much more than it needs goes while nobody misses it. What is wrong with an estimate shows when the
    /// process is ready, and is no leak.
    fn recycle(&mut self, worker: &WorkerId, out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        let (model, holding) = (&self.models[at], self.ledger.of(&worker.model));
        let usual = holding.planned.max(model.ready_bytes);
        let slack = (usual / 100).saturating_mul(limits::LEAK_PERCENT).max(limits::LEAK_BYTES_MIN);
        let has_leaked = holding.measured() > usual.saturating_add(slack);
        if has_leaked && matches!(model.state, State::Idle { .. }) && model.queue.is_empty() {
            self.apply(at, Input::Drain { reason: DrainReason::Reload }, Some(Cause::Leaked), out);
        }
    }

    /// Nobody gains by a worker that stands still while it owes something. One that is idle may be looked at.
    fn stopped(&mut self, worker: WorkerId, out: &mut Outbox) {
        let Some(at) = self.living(&worker) else { return };
        if !matches!(self.models[at].state, State::Idle { .. }) {
            out.push(Effect::Continue { worker });
        }
    }

    fn request_ended(&mut self, worker: &WorkerId, request: RequestId, out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        let model = &mut self.models[at];
        let Some(running) = model.running.remove(&request) else {
            // After a loss, those that ran may have been failed already.
            if !matches!(model.state, State::Exiting { .. }) {
                out.never(format!("{worker} ended {request}, which it doesn't run"));
            }
            return;
        };
        if running.waiting.came_back {
            model.tally.calm();
        }
        self.homes.remove(request);
        model.last_used = self.now;
        let expires_at = model.expires_at(self.now);
        self.apply(at, Input::Ended { expires_at }, None, out);
    }

    /// Probation is over.
    fn cleared(&mut self, worker: &WorkerId, request: RequestId) {
        let Some(at) = self.living(worker) else { return };
        let model = &mut self.models[at];
        if let Some(Running { waiting, .. }) = model.running.get_mut(&request) {
            (waiting.deaths, waiting.kills, waiting.memory_deaths) = (0, 0, 0);
            waiting.was_acquitted = false;
            model.tally.calm();
        }
    }

    /// Who gets on in spite of those that kill its workers sits through any number of them.
    fn gained(&mut self, worker: &WorkerId, request: RequestId) {
        let Some(at) = self.living(worker) else { return };
        if let Some(Running { waiting, .. }) = self.models[at].running.get_mut(&request) {
            waiting.kills = 0;
        }
    }

    fn unload(&mut self, model: &ModelId, out: &mut Outbox) {
        let Ok(at) = self.find(model) else { return };
        let known = &mut self.models[at];
        if !known.state.has_process() {
            return;
        }
        known.keep_alive = KeepAlive::Unload;
        match known.state {
            State::Idle { .. } => self.apply(at, Input::Drain { reason: DrainReason::Unload }, None, out),
            State::Handshaking { .. } | State::Loading { .. } if known.queue.is_empty() => {
                self.apply(at, Input::Drain { reason: DrainReason::Unload }, None, out);
            }
            // With work, or waited for: the keep-alive of nothing does the rest.
            _ => {}
        }
    }

    fn pardoned(&mut self, model: &ModelId, out: &mut Outbox) {
        self.poisons.pardon(model);
        let Ok(at) = self.find(model) else { return };
        self.models[at].tally.clear();
        self.models[at].cpu_level = None;
        (self.models[at].memory_deaths, self.models[at].appetite, self.models[at].too_large) = (0, None, 0);
        self.apply(at, Input::Pardoned, None, out);
    }

    /// A person asked for a new process: the past is forgotten, and a living one goes once its work is done.
    fn restart(&mut self, model: &ModelId, out: &mut Outbox) {
        self.pardoned(model, out);
        let Ok(at) = self.find(model) else { return };
        match self.models[at].state {
            State::Idle { .. } | State::Busy { .. } | State::Handshaking { .. } | State::Loading { .. } => {
                self.apply(at, Input::Drain { reason: DrainReason::Reload }, Some(Cause::Asked), out);
            }
            _ => {}
        }
    }

    /// Everything whose time has come.
    fn elapsed(&mut self, out: &mut Outbox) {
        let now = self.now;
        self.tell_incidents(now, out);
        for at in 0..self.models.len() {
            let model = &mut self.models[at];
            let late = model.queue.take(|waiting| waiting.deadline <= now);
            if !late.is_empty() {
                model.left_alone = Some(now);
            }
            for waiting in late {
                let failure = self.waited_in_vain(at, &waiting.plan);
                self.fail_waiting(waiting.request, failure, out);
            }
            let model = &self.models[at];
            if model.state.deadline().is_some_and(|deadline| deadline <= now) {
                let cause = settle::cause_of_elapsed(model.state);
                self.apply(at, Input::Elapsed, cause, out);
            } else if model.given_up_at().is_some_and(|at| at <= now) {
                self.apply(at, Input::Kill, Some(Cause::Asked), out);
            } else if model.running.values().any(|running| running.cancel_deadline.is_some_and(|at| at <= now))
                && !matches!(model.state, State::Exiting { .. })
            {
                self.apply(at, Input::Hung, Some(Cause::Silent), out);
            }
        }
    }

    /// First, or harder, request to leave.
    fn leave(&mut self, input: Input, out: &mut Outbox) {
        self.leaving = true;
        self.tell_incidents(Mono(u64::MAX), out);
        for at in 0..self.models.len() {
            let waiting = self.models[at].queue.take(|_| true);
            for waiting in waiting {
                self.fail_waiting(waiting.request, cause::shutting_down(), out);
            }
            if self.models[at].state.has_process() {
                self.apply(at, input, Some(Cause::Asked), out);
            }
            if matches!(self.models[at].state, State::Exiting { .. }) {
                // They waited for the next process.
                self.fail_running(at, out);
            }
        }
    }
}
