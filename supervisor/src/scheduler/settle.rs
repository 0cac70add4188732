//! Transitions, and what a death means: for the memory it held, for those it ran, for those that wait, and for when
//! the model may be tried again.
//!
//! Those it ran are let go when the process is reaped, not before: until then an end that raced the death still counts,
//! and no second process could hold the memory. They come back to the front of the line as suspects. A suspect is run
//! with nobody but those above suspicion, and nobody joins it; it is above suspicion again after
//! [`limits::PROBATION_TOKENS`] more tokens, or when it ends. One that was present at [`limits::POISON_DEATHS_MAX`]
//! deaths is run quite alone, and only one that was alone when its worker died again is sentenced.
//!
//! Decision: suspects may run beside cleared ones, at the price of one more death before a guilty one is alone. Rejected:
//! each alone to its end, which makes seven innocent streams wait for each other after every SIGKILL from outside.
//!
//! Decision: the death that sentences a request isn't counted against the model, and one that moves on has shown that its
//! model works. A model whose workers die of everything is still quarantined, because each request's first death counts.
//!
//! Decision: SIGKILL, SIGTERM and the like from outside are no evidence against a request, since nothing that it makes the
//! engine compute can send them; nor against the model, which rests for a moment and is never quarantined for
//! them. Rejected: counting every death alike, with which somebody's `kill` in a loop sentences innocent requests. What the
//! system kills for want of memory is no evidence against its requests either, until one dies of it alone for the second
//! time; where the system doesn't say so, [`KILLS_MAX`] bounds the loop.

use ollmlx_proto::{Failure, Incarnation, RequestId, WorkerId, limits};

use super::ladder::Ladder;
use super::level;
use super::lifecycle::{self, Action, DrainReason, Input, Rest, Rung, State};
use super::model::Running;
use super::queue::Kept;
use super::record::last_lines;
use super::{Effect, Outbox, Push, Scheduler, cause};

use crate::types::{After, Cause, DeathRecord, Fate, HeldRequest};

/// Failed loads that a waiting request sits through.
const LOADS_FAILED_MAX: u32 = 3;
/// Deaths from outside without progress in between that a request sits through: whoever kills this often means it, or
/// it is a system that kills for want of memory and doesn't say so.
const KILLS_MAX: u32 = 30;
/// How long a model rests whose own worker says that trying again is pointless: its files may be repaired any moment,
/// but a client in a loop must not start processes in one.
const PERMANENT_REST_MS: u64 = 1_000;

/// Why a state ends when its time is over. `None` keeps the cause that is known.
pub(super) fn cause_of_elapsed(state: State) -> Option<Cause> {
    match state {
        State::Handshaking { .. } => Some(Cause::NoHello),
        State::Loading { .. } => Some(Cause::LoadStalled),
        State::Idle { .. } => Some(Cause::Asked),
        State::Busy { .. } => Some(Cause::Silent),
        State::Draining { reason, .. } if reason.is_hurry() => None,
        State::Draining { reason: DrainReason::Leaving, .. } => Some(Cause::Asked),
        State::Draining { .. } => Some(Cause::Silent),
        State::Exiting { .. } | State::Absent | State::Spawning | State::Backoff { .. } | State::Quarantined { .. } => {
            None
        }
    }
}

fn after(rest: Rest) -> After {
    match rest {
        Rest::None => After::Ready,
        Rest::Backoff(until) => After::Backoff(until),
        Rest::Quarantine(until) => After::Quarantine(until),
    }
}

/// What there is to know of a death.
#[derive(Clone, Copy)]
struct Death<'a> {
    why: &'a Cause,
    log_tail: &'a str,
    rest: Rest,
    guilty: Option<RequestId>,
    /// Whether it held one request only.
    alone: bool,
    /// Whether the next process gets more memory than this one.
    gives_more: bool,
}

impl Scheduler {
    /// Makes a transition and does what it asks for. The cause is kept if this is what makes the worker leave.
    pub(super) fn apply(&mut self, at: usize, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        let from = self.models[at].state;
        let over = self.over(at, from);
        let model = &mut self.models[at];
        let Some((to, action)) = lifecycle::next(from, input, self.now, &self.config.timeouts) else {
            return out.never(format!("{}: {input:?} in {from:?}", model.worker()));
        };
        model.state = to;
        if to.has_process() && to.in_flight() > 0 && to.in_flight() != model.running.len() {
            out.never(format!("{}: counts {} but runs {}", model.worker(), to.in_flight(), model.running.len()));
        }
        if action == Action::Spawn {
            self.prepare(at);
        }
        let model = &mut self.models[at];
        let hurries = matches!(to, State::Draining { reason, .. } if reason.is_hurry());
        if (hurries || matches!(to, State::Exiting { .. })) && !matches!(from, State::Exiting { .. }) {
            // Those that end in a hurry were there as well.
            let before = model.left_from.map_or(0, |(_, count)| count);
            model.left_from = Some((from.name(), before.max(model.running.len())));
        }
        let mut told = cause.clone();
        if matches!(to, State::Exiting { .. }) {
            let why = match (over, cause) {
                // What ends its link in this state is most likely the system, for the same reason.
                (Some(over), None | Some(Cause::LinkLost)) => over,
                (_, cause) => cause.unwrap_or(Cause::Asked),
            };
            told = Some(model.cause.get_or_insert(why).clone());
        }
        if from.name() != to.name() && action != Action::Settle {
            let reason = match input {
                Input::Drain { reason } => Some(reason.words()),
                Input::Elapsed if matches!(from, State::Idle { .. }) => Some("its keep-alive is over"),
                _ => None,
            };
            let (worker, from, to) = (model.worker(), from.name(), to.name());
            out.push(Effect::Transition { worker, from, to, cause: told, reason });
        }
        let worker = model.worker();
        match action {
            Action::Nothing | Action::Settle => {}
            Action::Spawn | Action::Load => {
                let Some(plan) = model.plan.clone() else {
                    return out.never(format!("{worker} has no plan"));
                };
                let holding = self.ledger.of(&worker.model);
                let others =
                    self.ledger.total().saturating_sub(holding.bytes()).saturating_add(self.ledger.elsewhere());
                let ceiling_bytes = self.ledger.limit().map_or(u64::MAX, |limit| limit.saturating_sub(others));
                let reserved_bytes = holding.planned;
                out.push(match action {
                    Action::Spawn => Effect::Spawn { worker, plan, reserved_bytes, ceiling_bytes },
                    _ => Effect::Load { worker, plan },
                });
            }
            Action::Push(push) => {
                let unkillable = matches!(from, State::Exiting { rung: Rung::Pushed(Push::Kill), .. });
                if self.leaving || unkillable {
                    self.fail_running(at, out);
                }
                out.push(Effect::Push { worker, push });
            }
        }
    }

    /// A new incarnation: its number, its plan, its memory.
    fn prepare(&mut self, at: usize) {
        let mut plan = self.next_plan(at);
        let planned = plan.as_ref().map_or(0, |plan| self.need_of(at, plan));
        if let Some(plan) = &mut plan {
            plan.spec.memory_limit_bytes = planned;
        }
        let model = &mut self.models[at];
        model.own_ladder = Ladder::default();
        model.incarnation = Incarnation(model.incarnation.0.saturating_add(1));
        model.plan = plan;
        if let (Some(plan), Some(level)) = (&mut model.plan, model.cpu_level) {
            level.clone_into(&mut plan.spec.cpu_level);
        }
        model.ready = None;
        model.left_from = None;
        model.progress = None;
        model.cause = None;
        model.last_used = self.now;
        model.started = self.now;
        model.priority = model.plan.as_ref().map_or(0, |plan| plan.terms.priority);
        if let Some(class) = model.died.take() {
            model.restarts = model.restarts.saturating_add(1);
            *self.restarts.entry(class).or_default() += 1;
        }
        self.ledger.reserve(&model.id, planned);
    }

    /// Ends those that can't be resumed: the server leaves, or the process doesn't even die.
    pub(super) fn fail_running(&mut self, at: usize, out: &mut Outbox) {
        let failure = self.failure_of_held(self.models[at].cause.as_ref().unwrap_or(&Cause::Asked), "");
        for request in std::mem::take(&mut self.models[at].running).into_keys() {
            self.homes.remove(request);
            out.push(Effect::Fail { request, failure: failure.clone() });
        }
    }

    /// What one dies of that is drained for its memory.
    fn over(&self, at: usize, state: State) -> Option<Cause> {
        match state {
            State::Draining { reason: DrainReason::OverBudget, .. } => Some(Cause::OverBudget),
            State::Draining { reason: DrainReason::OverOwnLimit, .. } => self.over_own_limit(at),
            _ => None,
        }
    }

    fn failure_of_held(&self, why: &Cause, log_tail: &str) -> Failure {
        match why {
            Cause::Asked if self.leaving => cause::shutting_down(),
            _ => cause::died_running(why, log_tail),
        }
    }

    /// The process is gone, or never was.
    pub(super) fn ended(&mut self, worker: &WorkerId, exit: Cause, log_tail: &str, out: &mut Outbox) {
        let Some(at) = self.living(worker) else { return };
        let model = &mut self.models[at];
        let from = model.state;
        let failed_to_spawn = matches!(exit, Cause::SpawnFailed(_));
        if failed_to_spawn != (from == State::Spawning) {
            return out.never(format!("{worker}: {exit:?} in {from:?}"));
        }
        let lingers = matches!(from, State::Exiting { rung: Rung::Linger, .. });
        let known = model.cause.take();
        let why = match (known, self.over(at, from)) {
            (Some(known), _) if !(lingers && known == Cause::LinkLost) => known,
            // The system's way to say the same.
            (_, Some(over)) if matches!(exit, Cause::Signalled { .. } | Cause::OutOfMemory) => over,
            // Its own end says more than the end of its link.
            _ => exit,
        };
        let model = &mut self.models[at];
        model.cause = Some(why.clone());
        let was_loading = model.ready.is_none();
        let (state, aboard) = model.left_from.take().unwrap_or((from.name(), model.running.len()));
        let guilty = self.guilty(at, &why, aboard);
        let answered = aboard == 0 && matches!(why, Cause::OverOwnLimit { .. });
        let rest = if guilty.is_some() || answered { Rest::None } else { self.rest_after(at, &why) };
        let alone = aboard.max(self.models[at].running.len()) == 1;
        let gives_more = self.remember_appetite(at, &why);
        let requests = self.let_go(at, Death { why: &why, log_tail, rest, guilty, alone, gives_more }, out);
        if why != Cause::Asked {
            self.totals.deaths += 1;
            let model = &mut self.models[at];
            model.cpu_level = if was_loading { level::after(model, &why) } else { model.cpu_level };
            let (worker, at, log_tail) = (worker.clone(), self.now, last_lines(log_tail));
            let (cause, after, cpu_level) = (why.clone(), after(rest), model.cpu_level);
            let incident = None;
            model.deaths.push(DeathRecord { worker, at, state, cause, log_tail, requests, after, cpu_level, incident });
        }
        self.relate(at, &why, out);
        let model = &mut self.models[at];
        self.ledger.release(&model.id);
        model.plan = None;
        model.ready = None;
        if why == Cause::Asked {
            model.keep_alive = self.config.default_keep_alive;
        } else {
            model.died = Some(why.class());
            model.last_death = Some(why.words());
        }
        let input = if failed_to_spawn { Input::SpawnFailed { rest } } else { Input::Exited { rest } };
        self.apply(at, input, None, out);
        self.relieve(out);
        let model = &mut self.models[at];
        model.cause = None;
        let to = model.state.name();
        let (worker, from, cause, reason) = (worker.clone(), from.name(), Some(why.clone()), None);
        out.push(Effect::Transition { worker, from, to, cause, reason });
        if why != Cause::Asked {
            self.fail_waiting_after(at, &why, was_loading, log_tail, out);
        }
    }

    /// What one took that died of its memory for the second time is set aside for the next, if it can be had and is no more
    /// than an estimate may be wrong by: what leaks or balloons once is not to press everybody else out. Returns whether
    /// there is something new to try.
    fn remember_appetite(&mut self, at: usize, why: &Cause) -> bool {
        let (holding, limit) = (self.ledger.of(&self.models[at].id), self.ledger.limit().unwrap_or(u64::MAX));
        let model = &mut self.models[at];
        let limit = limit.min(model.own_limit().unwrap_or(u64::MAX));
        match why {
            Cause::OverBudget | Cause::OverOwnLimit { .. } | Cause::OutOfMemory => {
                model.memory_deaths = model.memory_deaths.saturating_add(1)
            }
            Cause::Asked => (model.memory_deaths, model.appetite) = (0, None),
            _ => return false,
        }
        let is_plausible =
            holding.peak > holding.planned && holding.peak <= holding.planned.saturating_mul(2).min(limit);
        let gives_more = model.memory_deaths >= 2 && model.appetite.is_none() && is_plausible;
        if gives_more {
            model.appetite = Some(holding.peak);
        }
        gives_more
    }

    /// Who is to blame: the one that was alone, at the second death at least.
    fn guilty(&self, at: usize, why: &Cause, aboard: usize) -> Option<RequestId> {
        let running = &self.models[at].running;
        let (request, held) = running.first_key_value()?;
        let alone = aboard.max(running.len()) == 1;
        let known = held.waiting.deaths + 1 >= limits::POISON_DEATHS_MAX;
        (alone
            && known
            && *why != Cause::Asked
            && !why.is_from_outside()
            && !why.is_memory()
            && held.cancel_deadline.is_none()
            && !self.dies_with_others(at, why)
            && !self.leaving)
            .then_some(*request)
    }

    /// Says what becomes of those that it held.
    fn let_go(&mut self, at: usize, death: Death<'_>, out: &mut Outbox) -> Vec<HeldRequest> {
        let worker = self.models[at].worker();
        let mut fates = Vec::new();
        for (request, Running { mut waiting, cancel_deadline }) in std::mem::take(&mut self.models[at].running) {
            let (from_outside, for_memory) = (death.why.is_from_outside(), death.why.is_memory());
            waiting.deaths += u32::from(*death.why != Cause::Asked && !from_outside && !for_memory);
            waiting.kills += u32::from(from_outside);
            waiting.memory_deaths += u32::from(for_memory);
            let deaths = waiting.deaths + waiting.memory_deaths;
            let (fate, failure) = if death.guilty == Some(request) {
                self.totals.suspects += 1;
                if let Kept::Run(run) = &waiting.job {
                    self.poisons.add(&worker.model, run, self.now);
                }
                (Fate::Suspect, cause::poison(death.why, death.log_tail))
            } else if self.leaving || death.why.is_permanent() {
                (Fate::Failed, self.failure_of_held(death.why, death.log_tail))
            } else if cancel_deadline.is_some() {
                (Fate::ClientGone, cause::client_gone())
            } else if for_memory
                && death.alone
                && !death.gives_more
                && waiting.memory_deaths >= limits::POISON_DEATHS_MAX
            {
                // A leak is gone with its process; what a new one needs for this alone is not there.
                (Fate::Failed, self.failure_of_held(death.why, death.log_tail))
            } else if waiting.kills >= KILLS_MAX {
                (Fate::Failed, self.failure_of_held(death.why, death.log_tail))
            } else if let Rest::Quarantine(until) = death.rest {
                (Fate::Failed, cause::quarantined(Some(&death.why.words()), until, self.now))
            } else {
                waiting.deadline = self.now.plus_ms(self.config.queue_wait_ms);
                (waiting.came_back, waiting.loads_failed) = (true, 0);
                self.queue_len += 1;
                self.models[at].queue.readmit(waiting);
                out.push(Effect::Requeue { worker: worker.clone(), request });
                fates.push(HeldRequest { request, deaths, fate: Fate::Resumed });
                continue;
            };
            self.homes.remove(request);
            out.push(Effect::Fail { request, failure });
            fates.push(HeldRequest { request, deaths, fate });
        }
        fates
    }

    /// Where the model rests. Deaths nobody asked for are counted, except those that would only repeat themselves.
    fn rest_after(&mut self, at: usize, why: &Cause) -> Rest {
        let model = &mut self.models[at];
        match why {
            Cause::Asked | Cause::Leaked => Rest::None,
            _ if self.leaving => Rest::None,
            Cause::LoadFailed(_) if why.is_permanent() => Rest::Backoff(self.now.plus_ms(PERMANENT_REST_MS)),
            Cause::HelloRefused(_) => Rest::Quarantine(self.now.plus_ms(limits::QUARANTINE_S * 1000)),
            Cause::TooLarge { need, limit, .. } if need > limit => {
                let doublings = model.too_large.min(u64::BITS / 2);
                model.too_large = model.too_large.saturating_add(1);
                let rest_s = limits::QUARANTINE_S.saturating_mul(1 << doublings).min(limits::TOO_LARGE_REST_S_MAX);
                Rest::Quarantine(self.now.plus_ms(rest_s * 1000))
            }
            // Its own limit may be that of one request, and is no reason to refuse all others.
            Cause::TooLarge { .. } => model.tally.record_kill(self.now, &mut self.rng),
            _ if why.is_from_outside() => model.tally.record_kill(self.now, &mut self.rng),
            _ => model.tally.record(self.now, &mut self.rng),
        }
    }

    /// Those that wait stay, unless waiting is pointless.
    fn fail_waiting_after(&mut self, at: usize, why: &Cause, was_loading: bool, log_tail: &str, out: &mut Outbox) {
        let model = &mut self.models[at];
        let all = why.is_permanent() || matches!(model.state, State::Quarantined { .. });
        let from_outside = why.is_from_outside();
        // Others may do with a higher limit, or none.
        let is_too_large =
            |own: Option<u64>| matches!(why, Cause::TooLarge { need, .. } if own.is_some_and(|own| own < *need));
        let failed = model.queue.take(|waiting| {
            waiting.loads_failed += u32::from(was_loading && !from_outside);
            waiting.kills += u32::from(was_loading && from_outside);
            let hopeless = all || is_too_large(waiting.plan.terms.limit);
            hopeless || waiting.loads_failed >= LOADS_FAILED_MAX || waiting.kills >= KILLS_MAX
        });
        let failure = match model.state {
            State::Quarantined { until } if !was_loading => {
                cause::quarantined(model.last_death.as_deref(), until, self.now)
            }
            _ => cause::load_failed(why, log_tail),
        };
        for waiting in failed {
            self.fail_waiting(waiting.request, failure.clone(), out);
        }
    }
}
