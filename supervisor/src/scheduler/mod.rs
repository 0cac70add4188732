//! Everything the supervisor decides: who may run, who waits, who is refused, which process is started, asked to leave
//! or killed, and how long a failed one rests.
//!
//! [`Scheduler::step`] is the only way in and [`Outbox`] the only way out: no clock, no process, no lock, no task. It
//! doesn't see tokens; it learns of a request at its arrival and its end. Everything it does is a function of its
//! configuration, its seed and the `(Mono, Event)` pairs it was given.
//!
//! Five values decide, each by itself, as functions of a [`view::View`] that they can't change; this file alone applies what
//! they decide.
//!
//! | value | what it decides |
//! |---|---|
//! | [`life`] | the life of one worker: its next state, and what that asks for |
//! | [`line`], `suspicion`, `admission` | who waits, who runs, who is refused |
//! | [`pressure`], `ledger` | how near memory is to its limits, and what is asked of whom about it |
//! | [`placement`] | what fits, who makes room, who is started; the same told beforehand |
//! | [`verdict`], `history` | a death: its cause, whose fault it is, how long the model rests, what becomes of each request |
//!
//! Invariants: memory is reserved from `Wanted` until the process is reaped (I1); one process per model, one
//! incarnation per process (I2); everything but `Absent`, `Spawning` and a pinned `Idle` has a deadline (I3); an illegal
//! event changes nothing and is told as [`Effect::Never`] (I4); a draining worker gets no grants (I5); the tally
//! of deaths outlives a quarantine (I6, in `limits`). Every request ends exactly once.
//!
//! A worker's death is nobody's problem: those it ran come back to the front of their line and go on on the next
//! incarnation. The driver keeps the tokens they had produced.
//!
//! Two servers live for a short time when one is replaced, and divide the memory. The one that was replaced keeps what its
//! answers need and nothing for later: idle models go at once, others when they become idle, whatever their keep-alive. The
//! successor is told what the other one holds and gives that to nobody until it is told otherwise. Decision: what is held
//! elsewhere is no pressure: it is what was set aside there, nothing here can free it, and the other server heeds its own.

mod admission;
mod config;
pub mod effect;
pub mod event;
mod failures;
mod gauge;
mod history;
mod ledger;
pub mod life;
mod line;
mod model;
mod placement;
mod pressure;
mod snapshot;
mod suspicion;
mod verdict;
mod view;

use std::collections::BTreeMap;

use crate::limits;
use ollmlx_proto::{Failure, MemoryReport, ModelId, Ready, RequestId, WorkerId};

pub use config::SchedulerConfig;
pub use effect::{Effect, Outbox, Push};
pub use event::Event;

use crate::types::{Caller, Cause, Fate, Job, KeepAlive, LoadPlan, Mono, Outlook, Snapshot, Totals, WishedLoad};
use history::Rng;
use ledger::Ledger;
use life::{Action, DrainReason, Input, Rung, State};
use line::{Kept, Requests, Waiting};
use model::{Model, Models, Process};
use placement::{Ahead, Room};
use pressure::{Demand, Demanded, Pressure};
use suspicion::Suspicion;
use verdict::incident::{Incidents, held_until};
use verdict::poison::Poisons;
use verdict::{Death, Sentence, failure_of_held};
use view::View;

/// The scheduler. See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    rng: Rng,
    ledger: Ledger,
    pressure: Pressure,
    models: Models,
    /// Where each living request is.
    requests: Requests,
    poisons: Poisons,
    incidents: Incidents,
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
    /// No model, no request. The seed only spreads restarts.
    #[must_use]
    pub fn new(config: SchedulerConfig, seed: u64) -> Self {
        let ledger = Ledger::new(config.memory_limit);
        Self {
            config,
            rng: Rng::new(seed),
            ledger,
            pressure: Pressure::default(),
            models: Models::default(),
            requests: Requests::default(),
            poisons: Poisons::default(),
            incidents: Incidents::default(),
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
            Event::Arrived { request, job, plan, keep_alive, client } => {
                self.arrived(request, job, plan, (keep_alive, client), out);
            }
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
            Event::PressureSampled { permille } => self.pressed(permille, out),
            Event::Stopped { worker } => self.stopped(worker, out),
            Event::DeadlineElapsed => self.elapsed(out),
            Event::Replaced => self.replaced(out),
            Event::ElsewhereHeld { bytes } => self.ledger.hold_elsewhere(bytes),
            Event::ShutdownAsked => self.leave(Input::Drain { reason: DrainReason::Leaving }, out),
            Event::ShutdownForced => self.leave(Input::Kill, out),
        }
        self.serve_and_start(out);
    }

    /// When [`Event::DeadlineElapsed`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        let of_model = |model: &Model| {
            let blocked = model.line.head().filter(|_| model.state == State::Absent);
            let gives_way = blocked.map(|waiting| waiting.arrived.plus_ms(self.config.yield_after_ms));
            let gives_way = gives_way.filter(|&at| at > self.now);
            let held = blocked.and_then(|_| held_until(self.view(), model));
            let (state, wait) = (model.state.deadline(), model.line.deadline());
            [state, wait, gives_way, held, model.cancel_deadline(), model.given_up_at()].into_iter().flatten().min()
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
        self.view().processes().any(|model| !matches!(model.state, State::Idle { .. }))
    }

    /// What would become of a request that wanted this load now.
    #[must_use]
    pub fn outlook(&self, wished: &WishedLoad) -> Outlook {
        placement::outlook(self.view(), wished)
    }

    /// What it is like now. Absent models that nobody waits for are left out.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            is_replaced: self.is_replaced,
            leaving: self.leaving,
            totals: Totals { incidents: self.incidents.count(), ..self.totals },
            restarts: self.restarts.clone(),
            ..snapshot::of(self.view())
        }
    }

    /// Looks for a broken invariant: for the simulation, after each step.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        snapshot::check(self.view(), self.requests.len())
    }

    fn view(&self) -> View<'_> {
        let (models, ledger, config) = (&*self.models, &self.ledger, &self.config);
        View { models, ledger, config, step: self.pressure.step(), now: self.now }
    }

    fn told(&mut self, worker: &WorkerId, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        if let Some(at) = self.models.living(worker) {
            self.apply(at, input, cause, out);
        }
    }

    // --- requests come and go ---

    fn arrived(
        &mut self,
        request: RequestId,
        job: Job,
        plan: Box<LoadPlan>,
        (keep_alive, client): (Option<KeepAlive>, Caller),
        out: &mut Outbox,
    ) {
        if self.requests.has(request) {
            return out.never(format!("{request} arrived twice"));
        }
        let bytes = job.bytes();
        if let Err(failure) = self.admit((&job, bytes), &plan, &client) {
            return out.push(Effect::Fail { request, failure });
        }
        let at = self.models.place_of(&plan.model, self.config.default_keep_alive);
        let keep_alive = if self.is_replaced { Some(KeepAlive::Unload) } else { keep_alive };
        let model = &mut self.models[at];
        model.model = plan.model.clone();
        let (arrived, deadline) = (self.now, self.now.plus_ms(self.config.queue_wait_ms));
        self.requests.insert(request, model.id.clone(), (bytes, &client));
        let (job, suspicion, came_back) = (Kept::new(job), Suspicion::default(), false);
        model.line.push(Waiting { request, job, plan, keep_alive, client, arrived, deadline, came_back, suspicion });
    }

    /// Why it is turned away at once.
    fn admit(&self, (job, bytes): (&Job, usize), plan: &LoadPlan, client: &Caller) -> Result<(), Failure> {
        if self.leaving {
            return Err(failures::shutting_down());
        }
        if let Job::Run(run) = job
            && let Some(until) = self.poisons.until(&plan.model.id, run, self.now)
        {
            return Err(failures::known_poison(until, self.now));
        }
        let known = self.models.find(&plan.model.id).map(|at| &self.models[at]);
        admission::admit(self.view(), known, plan, client)?;
        if self.requests.has_room(bytes, client) { Ok(()) } else { Err(failures::queue_full()) }
    }

    fn left(&mut self, request: RequestId, out: &mut Outbox) {
        // One that has ended may still be reported as gone.
        let Some(model) = self.requests.model_of(request) else { return };
        let Some(at) = self.models.find(model) else { return out.never(format!("{request} wants no model")) };
        let model = &mut self.models[at];
        if model.line.leave(request, self.now) {
            return self.requests.remove(request);
        }
        // One that is silent is found by that. This is for one that goes on and does not hear, and it may be in the
        // middle of a step that takes its time.
        let silence_ms = self.config.timeouts.silence_ms;
        let patience_ms = silence_ms.saturating_mul(limits::CANCEL_SILENCES).min(silence_ms.max(limits::CANCEL_MS_MAX));
        match model.line.cancel(request, self.now.plus_ms(patience_ms)) {
            None => out.never(format!("{request} is neither waiting nor running")),
            // One whose worker is dying is let go when that is reaped.
            Some(true) if !matches!(model.state, State::Exiting { .. }) => {
                out.push(Effect::Cancel { worker: model.worker(), request });
            }
            Some(_) => {}
        }
    }

    /// Ends one that is out of the line already.
    fn fail(&mut self, request: RequestId, failure: Failure, out: &mut Outbox) {
        self.requests.remove(request);
        out.push(Effect::Fail { request, failure });
    }

    fn request_ended(&mut self, worker: &WorkerId, request: RequestId, out: &mut Outbox) {
        let Some(at) = self.models.living(worker) else { return };
        let model = &mut self.models[at];
        let Some(running) = model.line.end(request) else {
            // After a loss, those that ran may have been failed already.
            if !matches!(model.state, State::Exiting { .. }) {
                out.never(format!("{worker} ended {request}, which it doesn't run"));
            }
            return;
        };
        if running.waiting.came_back {
            model.history.tally.calm();
        }
        model.stay.last_used = self.now;
        let expires_at = model.expires_at(self.now);
        self.requests.remove(request);
        self.apply(at, Input::Ended { expires_at }, None, out);
    }

    /// Probation is over.
    fn cleared(&mut self, worker: &WorkerId, request: RequestId) {
        let Some(at) = self.models.living(worker) else { return };
        let model = &mut self.models[at];
        if let Some(waiting) = model.line.running_mut(request) {
            waiting.suspicion = Suspicion::default();
            model.history.tally.calm();
        }
    }

    fn gained(&mut self, worker: &WorkerId, request: RequestId) {
        let Some(at) = self.models.living(worker) else { return };
        if let Some(waiting) = self.models[at].line.running_mut(request) {
            waiting.suspicion.gained();
        }
    }

    // --- what is asked of a model ---

    fn unload(&mut self, model: &ModelId, out: &mut Outbox) {
        let Some(at) = self.models.find(model) else { return };
        let known = &mut self.models[at];
        if !known.state.has_process() {
            return;
        }
        known.stay.keep_alive = KeepAlive::Unload;
        match known.state {
            State::Idle { .. } => self.apply(at, Input::Drain { reason: DrainReason::Unload }, None, out),
            State::Handshaking { .. } | State::Loading { .. } if known.line.is_empty() => {
                self.apply(at, Input::Drain { reason: DrainReason::Unload }, None, out);
            }
            // With work, or waited for: the keep-alive of nothing does the rest.
            _ => {}
        }
    }

    fn pardoned(&mut self, model: &ModelId, out: &mut Outbox) {
        self.poisons.pardon(model);
        let Some(at) = self.models.find(model) else { return };
        self.models[at].history.pardon();
        self.apply(at, Input::Pardoned, None, out);
    }

    /// A person asked for a new process: the past is forgotten, and a living one goes once its work is done.
    fn restart(&mut self, model: &ModelId, out: &mut Outbox) {
        self.pardoned(model, out);
        let Some(at) = self.models.find(model) else { return };
        match self.models[at].state {
            State::Idle { .. } | State::Busy { .. } | State::Handshaking { .. } | State::Loading { .. } => {
                self.apply(at, Input::Drain { reason: DrainReason::Reload }, Some(Cause::Asked), out);
            }
            _ => {}
        }
    }

    /// A successor serves.
    fn replaced(&mut self, out: &mut Outbox) {
        self.is_replaced = true;
        for at in 0..self.models.len() {
            let model = &mut self.models[at];
            model.stay.keep_alive = KeepAlive::Unload;
            model.line.all_mut().for_each(|waiting| waiting.keep_alive = Some(KeepAlive::Unload));
            let id = model.id.clone();
            self.unload(&id, out);
        }
    }

    // --- what a worker says ---

    /// Only a load that moves pushes its deadline.
    fn progressed(&mut self, worker: &WorkerId, progress: (u64, u64), out: &mut Outbox) {
        let Some(at) = self.models.living(worker) else { return };
        if self.models[at].process.progress.replace(progress) != Some(progress) {
            self.apply(at, Input::Progress, None, out);
        }
    }

    fn ready(&mut self, worker: &WorkerId, mut ready: Ready, out: &mut Outbox) {
        let Some(at) = self.models.living(worker) else { return };
        let model = &self.models[at];
        if ready.slots == 0 {
            let cause = Cause::Protocol("ready without slots".to_owned());
            return self.apply(at, Input::Misbehaved, Some(cause), out);
        }
        if !matches!(model.state, State::Loading { .. }) {
            let cause = Cause::Protocol("ready out of turn".to_owned());
            return self.apply(at, Input::Ready { expires_at: None }, Some(cause), out);
        }
        let need = self.ledger.of(&worker.model).measured().max(ready.memory.total());
        let too_large = pressure::too_large(self.view(), model, need);
        if too_large.is_some() {
            return self.apply(at, Input::Kill, too_large, out);
        }
        let model = &mut self.models[at];
        ready.slots = ready.slots.min(limits::SLOTS_MAX);
        model.history.loaded(self.now.since(model.process.started));
        model.stay.last_used = self.now;
        model.incident = None;
        let expires_at = model.expires_at(self.now);
        self.ledger.report(&worker.model, ready.memory.total());
        (model.process.ready_bytes, model.process.ready) = (need, Some(ready));
        self.apply(at, Input::Ready { expires_at }, None, out);
        self.relieve(out);
    }

    /// Its own word counts from when it is ready, and is said again then.
    fn reported(&mut self, worker: &WorkerId, memory: MemoryReport, out: &mut Outbox) {
        let Some(at) = self.models.living(worker) else { return };
        let Some(ready) = &mut self.models[at].process.ready else { return };
        ready.memory = memory;
        self.ledger.report(&worker.model, memory.total());
        self.relieve(out);
    }

    fn sampled(&mut self, worker: &WorkerId, bytes: u64, out: &mut Outbox) {
        if self.models.living(worker).is_some() {
            self.ledger.sample(&worker.model, bytes, self.now);
            self.relieve(out);
        }
    }

    /// The machine's own complaint, in permille of the time.
    fn pressed(&mut self, permille: u16, out: &mut Outbox) {
        if self.config.heeds_pressure {
            let before = self.pressure;
            self.pressure.read_machine(permille.into());
            self.tell_pressure(before, out);
            self.relieve(out);
        }
    }

    /// Nobody gains by a worker that stands still while it owes something. One that is idle may be looked at.
    fn stopped(&mut self, worker: WorkerId, out: &mut Outbox) {
        let Some(at) = self.models.living(&worker) else { return };
        if !matches!(self.models[at].state, State::Idle { .. }) {
            out.push(Effect::Continue { worker });
        }
    }

    // --- time, and the end ---

    /// Everything whose time has come.
    fn elapsed(&mut self, out: &mut Outbox) {
        let now = self.now;
        out.0.extend(self.incidents.tell(now));
        for at in 0..self.models.len() {
            for waiting in self.models[at].line.take_late(now) {
                let failure = placement::waited_in_vain(self.view(), &self.models[at], &waiting.plan);
                self.fail(waiting.request, failure, out);
            }
            let model = &self.models[at];
            let is_over = |deadline: Option<Mono>| deadline.is_some_and(|deadline| deadline <= now);
            if is_over(model.state.deadline()) {
                let cause = model.state.cause_of_elapsed();
                self.apply(at, Input::Elapsed, cause, out);
            } else if is_over(model.given_up_at()) {
                self.apply(at, Input::Kill, Some(Cause::Asked), out);
            } else if is_over(model.cancel_deadline()) {
                self.apply(at, Input::Hung, Some(Cause::Silent), out);
            }
        }
    }

    /// First, or harder, request to leave.
    fn leave(&mut self, input: Input, out: &mut Outbox) {
        self.leaving = true;
        out.0.extend(self.incidents.tell(Mono(u64::MAX)));
        for at in 0..self.models.len() {
            for waiting in self.models[at].line.take(|_| true) {
                self.fail(waiting.request, failures::shutting_down(), out);
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

    /// After each event: whoever can be served is served, and room is made for whoever has no process yet.
    fn serve_and_start(&mut self, out: &mut Outbox) {
        if self.leaving {
            let reaped = self.view().processes().next().is_none();
            if reaped && !std::mem::replace(&mut self.finished, true) {
                out.push(Effect::Finished);
            }
            return;
        }
        if self.view().waiting() == 0 {
            return;
        }
        for at in 0..self.models.len() {
            self.serve(at, out);
        }
        self.make_room(out);
    }

    /// Grants to those first in line.
    fn serve(&mut self, at: usize, out: &mut Outbox) {
        let model = &self.models[at];
        if !model.state.accepts_work() || model.line.is_empty() {
            return;
        }
        self.answer_loads(at, out);
        loop {
            let model = &mut self.models[at];
            let Some(head) = model.line.head() else { return };
            if !model.serves(&head.plan) {
                return self.apply(at, Input::Drain { reason: DrainReason::Reload }, None, out);
            }
            if !model.has_free_slot() || model.line.must_wait(head) {
                return;
            }
            let Some(granted) = model.line.grant(self.now) else { return };
            let Kept::Run(request) = granted.job.clone() else {
                return out.never(format!("{} is a load that waits for a slot", granted.request));
            };
            model.stay.asked(&granted.client, granted.keep_alive, self.now);
            model.stay.priority = granted.plan.terms.priority;
            model.stay.last_used = self.now;
            self.totals.resumed += u64::from(granted.came_back);
            let worker = model.worker();
            self.apply(at, Input::Granted, None, out);
            out.push(Effect::Grant { worker, request });
        }
    }

    /// Loads need no slot, so they don't wait for one.
    fn answer_loads(&mut self, at: usize, out: &mut Outbox) {
        let model = &mut self.models[at];
        let mut line = std::mem::take(&mut model.line);
        let loads = line.take(|waiting| matches!(waiting.job, Kept::Load) && model.serves(&waiting.plan));
        model.line = line;
        if loads.is_empty() {
            return;
        }
        for waiting in loads {
            self.requests.remove(waiting.request);
            model.stay.asked(&waiting.client, waiting.keep_alive, self.now);
            model.stay.priority = waiting.plan.terms.priority;
            out.push(Effect::Loaded { request: waiting.request, worker: model.worker() });
        }
        model.stay.last_used = self.now;
        let expires_at = model.expires_at(self.now);
        self.apply(at, Input::Rearm { expires_at }, None, out);
    }

    fn make_room(&mut self, out: &mut Outbox) {
        let mut ahead = Ahead::default();
        for at in placement::order(self.view()) {
            if ahead.take_all(self.view()) {
                return;
            }
            if held_until(self.view(), &self.models[at]).is_some() {
                continue;
            }
            for (request, failure) in placement::hopeless(self.view(), &self.models[at]) {
                self.models[at].line.take(|waiting| waiting.request == request);
                self.fail(request, failure, out);
            }
            let Some(placement) = placement::place(self.view(), at, &ahead) else { continue };
            for &victim in &placement.victims {
                self.apply(victim, Input::Drain { reason: DrainReason::Room }, None, out);
            }
            match placement.room {
                Room::Here => self.apply(at, Input::Wanted, None, out),
                Room::OnTheWay | Room::Nowhere => ahead.note(&placement),
            }
        }
    }

    /// Reads the gauges and does what they ask for.
    fn relieve(&mut self, out: &mut Outbox) {
        let before = self.pressure;
        self.pressure.read_use(self.ledger.used_permille());
        self.tell_pressure(before, out);
        for at in 0..self.models.len() {
            let (own_limit, asked) = pressure::of_one(self.view(), at);
            self.models[at].process.own_limit = own_limit;
            self.ask(asked, out);
        }
        let mut pressure = self.pressure;
        let asked = pressure.asks(self.view());
        self.pressure = pressure;
        self.ask(asked, out);
    }

    fn ask(&mut self, asked: Vec<Demanded>, out: &mut Outbox) {
        for Demanded { at, ask, cause } in asked {
            match ask {
                Demand::Trim => out.push(Effect::Trim { worker: self.models[at].worker() }),
                Demand::Drain(reason) => self.apply(at, Input::Drain { reason }, cause, out),
                Demand::Kill => self.apply(at, Input::Kill, cause, out),
            }
        }
    }

    fn tell_pressure(&mut self, before: Pressure, out: &mut Outbox) {
        let (from, to) = (before.step(), self.pressure.step());
        if from == to {
            return;
        }
        for (count, step) in self.totals.relief.iter_mut().zip(crate::types::Step::TAKEN) {
            *count += u64::from(step > from && step <= to);
        }
        let (measured_bytes, limit_bytes) = (self.ledger.measured(), self.ledger.limit());
        out.push(Effect::Relief { from, to, measured_bytes, limit_bytes });
    }

    // --- one worker's life ---

    /// Makes a transition and does what it asks for. The cause is kept if this is what makes the worker leave.
    fn apply(&mut self, at: usize, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        let from = self.models[at].state;
        let over = pressure::drained_for(self.view(), &self.models[at]);
        let model = &mut self.models[at];
        let Some((to, action)) = life::next(from, input, self.now, &self.config.timeouts) else {
            return out.never(format!("{}: {input:?} in {from:?}", model.worker()));
        };
        let runs = model.line.running().len();
        if to.in_flight() > 0 && to.in_flight() != runs {
            out.never(format!("{}: counts {} but runs {runs}", model.worker(), to.in_flight()));
        }
        if action == Action::Spawn {
            // While it has no process yet, as when its room was found.
            self.prepare(at);
        }
        let model = &mut self.models[at];
        model.state = to;
        let told = model.process.note_way_out((from, to), over, cause, runs);
        let worker = model.worker();
        if from.name() != to.name() && action != Action::Settle {
            let reason = input.reason(from);
            out.push(Effect::Transition { worker, from: from.name(), to: to.name(), cause: told, reason });
        }
        match action {
            Action::Nothing | Action::Settle => {}
            Action::Spawn | Action::Load => self.start(at, action, out),
            Action::Push(push) => self.push(at, push, from, out),
        }
    }

    fn start(&mut self, at: usize, action: Action, out: &mut Outbox) {
        let model = &self.models[at];
        let worker = model.worker();
        let Some(plan) = model.process.plan.clone() else {
            return out.never(format!("{worker} has no plan"));
        };
        if action == Action::Load {
            return out.push(Effect::Load { worker, plan });
        }
        let holding = self.ledger.of(&worker.model);
        let others = self.ledger.total().saturating_sub(holding.bytes()).saturating_add(self.ledger.elsewhere());
        let ceiling_bytes = self.ledger.limit().map_or(u64::MAX, |limit| limit.saturating_sub(others));
        out.push(Effect::Spawn { worker, plan, reserved_bytes: holding.planned, ceiling_bytes });
    }

    fn push(&mut self, at: usize, push: Push, from: State, out: &mut Outbox) {
        // The server leaves, or the process doesn't even die.
        let unkillable = matches!(from, State::Exiting { rung: Rung::Pushed(Push::Kill), .. });
        if self.leaving || unkillable {
            self.fail_running(at, out);
        }
        out.push(Effect::Push { worker: self.models[at].worker(), push });
    }

    /// A new incarnation: its number, its plan, its memory.
    fn prepare(&mut self, at: usize) {
        let (view, model) = (self.view(), &self.models[at]);
        let mut plan = placement::next_plan(view, model);
        let planned = plan.as_ref().map_or(0, |plan| placement::need_of(view, model, plan));
        if let Some(plan) = &mut plan {
            plan.spec.memory_limit_bytes = planned;
            if let Some(level) = model.history.cpu_level {
                level.clone_into(&mut plan.spec.cpu_level);
            }
        }
        let model = &mut self.models[at];
        model.begin(plan, self.config.default_keep_alive, self.now);
        if let Some(class) = model.history.died.take() {
            model.history.restarts = model.history.restarts.saturating_add(1);
            *self.restarts.entry(class).or_default() += 1;
        }
        self.ledger.reserve(&model.id, planned);
    }

    /// Ends those that can't be resumed.
    fn fail_running(&mut self, at: usize, out: &mut Outbox) {
        let model = &mut self.models[at];
        let failure = failure_of_held(model.process.cause.as_ref().unwrap_or(&Cause::Asked), self.leaving, "");
        for request in model.line.stop().into_keys() {
            self.fail(request, failure.clone(), out);
        }
    }

    // --- its death ---

    /// The process is gone, or never was.
    fn ended(&mut self, worker: &WorkerId, exit: Cause, log_tail: &str, out: &mut Outbox) {
        let Some(at) = self.models.living(worker) else { return };
        let from = self.models[at].state;
        let failed_to_spawn = matches!(exit, Cause::SpawnFailed(_));
        if failed_to_spawn != (from == State::Spawning) {
            return out.never(format!("{worker}: {exit:?} in {from:?}"));
        }
        let model = &self.models[at];
        let death = Death::of(self.view(), model, exit, log_tail, &self.incidents, self.leaving);
        let verdict = verdict::judge(&death, &model.history, &model.line, &mut self.rng);
        let (cause, rest) = (death.cause, verdict.rest);
        self.models[at].history = verdict.history;
        self.let_go(at, verdict.held, out);
        if cause != Cause::Asked {
            self.totals.deaths += 1;
            self.relate(at, &cause, out);
        }
        let model = &mut self.models[at];
        self.ledger.release(&model.id);
        model.process = Process::default();
        if cause == Cause::Asked {
            model.stay.keep_alive = self.config.default_keep_alive;
        }
        let input = if failed_to_spawn { Input::SpawnFailed { rest } } else { Input::Exited { rest } };
        self.apply(at, input, None, out);
        self.relieve(out);
        let (worker, from, to) = (worker.clone(), from.name(), self.models[at].state.name());
        out.push(Effect::Transition { worker, from, to, cause: Some(cause), reason: None });
        self.settle_waiting(at, verdict.waiting, out);
    }

    /// Carries out what becomes of those that it held.
    fn let_go(&mut self, at: usize, sentences: Vec<Sentence>, out: &mut Outbox) {
        let model = &mut self.models[at];
        let (worker, mut held) = (model.worker(), model.line.stop());
        for Sentence { request, suspicion, fate, failure } in sentences {
            let Some(mut waiting) = held.remove(&request).map(|running| running.waiting) else { continue };
            if let (Fate::Suspect, Kept::Run(run)) = (fate, &waiting.job) {
                self.totals.suspects += 1;
                self.poisons.add(&worker.model, run, self.now);
            }
            if let Some(failure) = failure {
                self.fail(request, failure, out);
                continue;
            }
            waiting.deadline = self.now.plus_ms(self.config.queue_wait_ms);
            (waiting.came_back, waiting.suspicion) = (true, suspicion);
            self.models[at].line.readmit(waiting);
            out.push(Effect::Requeue { worker: worker.clone(), request });
        }
    }

    /// Those that wait stay, or hear that waiting is pointless.
    fn settle_waiting(&mut self, at: usize, sentences: Vec<Sentence>, out: &mut Outbox) {
        for Sentence { request, suspicion, failure, .. } in sentences {
            let line = &mut self.models[at].line;
            if let Some(failure) = failure {
                line.take(|waiting| waiting.request == request);
                self.fail(request, failure, out);
            } else if let Some(waiting) = line.waiting_mut(request) {
                waiting.suspicion = suspicion;
            }
        }
    }

    /// Looks whether the death that was recorded last for this model is one of several.
    fn relate(&mut self, at: usize, cause: &Cause, out: &mut Outbox) {
        let row = verdict::row(cause);
        if self.leaving || !row.shared {
            return;
        }
        out.0.extend(self.incidents.tell(self.now));
        let Some(incident) = self.incidents.join(&self.models[at].model, cause.class(), self.now) else { return };
        let membership = incident.membership;
        for member in &incident.models {
            let Some(place) = self.models.find(member) else { continue };
            let model = &mut self.models[place];
            let present = model.history.deaths.share(membership.number, cause.class(), membership.since);
            // What ends several at once is no evidence against those that were present.
            if row.blame == verdict::Blame::Requests {
                present.into_iter().for_each(|request| model.line.acquit(request));
            }
            if place == at || model.process.ready.is_none() {
                model.incident = Some(membership);
            }
        }
    }
}
