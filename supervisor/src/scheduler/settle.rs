//! Transitions, and what a death means: for the memory it held, for those it ran, for those that wait, and for when
//! the model may be tried again.

use ollmlx_proto::{Incarnation, WorkerId};

use super::event::Cause;
use super::lifecycle::{self, Action, DrainReason, Input, Rest, Rung, State};
use super::{Effect, Outbox, Scheduler, cause};

/// Failed loads that a waiting request sits through.
const LOADS_FAILED_MAX: u32 = 3;
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
        State::Draining { reason: DrainReason::OverBudget, .. } => Some(Cause::OverBudget),
        State::Draining { reason: DrainReason::Leaving, .. } => Some(Cause::Asked),
        State::Draining { .. } => Some(Cause::Silent),
        State::Exiting { .. } | State::Absent | State::Spawning | State::Backoff { .. } | State::Quarantined { .. } => {
            None
        }
    }
}

impl Scheduler {
    /// Makes a transition and does what it asks for. The cause is kept if this is what makes the worker leave.
    pub(super) fn apply(&mut self, at: usize, input: Input, cause: Option<Cause>, out: &mut Outbox) {
        let model = &mut self.models[at];
        let from = model.state;
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
        if matches!(to, State::Exiting { .. }) && model.cause.is_none() {
            let drained = match from {
                State::Draining { reason: DrainReason::OverBudget, .. } => Cause::OverBudget,
                _ => Cause::Asked,
            };
            model.cause = Some(cause.unwrap_or(drained));
        }
        if from.name() != to.name() && action != Action::Settle {
            let cause = if matches!(to, State::Exiting { .. }) { model.cause.clone() } else { None };
            out.push(Effect::Transition { worker: model.worker(), from: from.name(), to: to.name(), cause });
        }
        let worker = model.worker();
        match action {
            Action::Nothing | Action::Settle => {}
            Action::Spawn | Action::Load => {
                let Some(plan) = model.plan.clone() else {
                    return out.never(format!("{worker} has no plan"));
                };
                out.push(match action {
                    Action::Spawn => Effect::Spawn { worker, plan },
                    _ => Effect::Load { worker, plan },
                });
            }
            Action::Push(push) => {
                self.fail_running(at, None, out);
                out.push(Effect::Push { worker, push });
            }
        }
    }

    /// A new incarnation: its number, its plan, its memory.
    fn prepare(&mut self, at: usize) {
        let model = &mut self.models[at];
        model.incarnation = Incarnation(model.incarnation.0.saturating_add(1));
        model.plan = model.queue.plan();
        model.ready = None;
        model.progress = None;
        model.cause = None;
        model.last_used = self.now;
        model.restarts = model.restarts.saturating_add(u32::from(std::mem::take(&mut model.died)));
        let planned = model.plan.as_ref().map_or(0, |plan| plan.memory.total());
        self.ledger.reserve(&model.id, planned);
    }

    /// Ends those that hold a slot of a worker that won't answer any more.
    fn fail_running(&mut self, at: usize, log_tail: Option<&str>, out: &mut Outbox) {
        let model = &mut self.models[at];
        let why = model.cause.clone().unwrap_or(Cause::Asked);
        let failure = match (&why, self.leaving) {
            (Cause::Asked, true) => cause::shutting_down(),
            _ => cause::died_running(&why, log_tail.unwrap_or_default()),
        };
        for (request, _) in std::mem::take(&mut model.running) {
            self.homes.remove(&request);
            out.push(Effect::Fail { request, failure: failure.clone() });
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
        let why = match model.cause.take() {
            Some(known) if !(lingers && known == Cause::LinkLost) => known,
            // Its own end says more than the end of its link.
            _ => exit,
        };
        model.cause = Some(why.clone());
        let was_loading = model.ready.is_none();
        self.fail_running(at, Some(log_tail), out);
        let rest = self.rest_after(at, &why);
        let model = &mut self.models[at];
        self.ledger.release(&model.id);
        model.plan = None;
        model.ready = None;
        if why == Cause::Asked {
            model.keep_alive = self.config.default_keep_alive;
        } else {
            model.died = true;
            model.last_death = Some(why.words());
        }
        let input = if failed_to_spawn { Input::SpawnFailed { rest } } else { Input::Exited { rest } };
        self.apply(at, input, None, out);
        let model = &mut self.models[at];
        model.cause = None;
        let to = model.state.name();
        out.push(Effect::Transition { worker: worker.clone(), from: from.name(), to, cause: Some(why.clone()) });
        if why != Cause::Asked {
            self.fail_waiting_after(at, &why, was_loading, log_tail, out);
        }
    }

    /// Where the model rests. Deaths nobody asked for are counted, except those that would only repeat themselves.
    fn rest_after(&mut self, at: usize, why: &Cause) -> Rest {
        let model = &mut self.models[at];
        match why {
            Cause::Asked => Rest::None,
            _ if self.leaving => Rest::None,
            Cause::LoadFailed(_) if why.is_permanent() => Rest::Backoff(self.now.plus_ms(PERMANENT_REST_MS)),
            Cause::HelloRefused(_) => Rest::Quarantine(self.now.plus_ms(ollmlx_proto::limits::QUARANTINE_S * 1000)),
            _ => model.tally.record(self.now, &mut self.rng),
        }
    }

    /// Those that wait stay, unless waiting is pointless.
    fn fail_waiting_after(&mut self, at: usize, why: &Cause, was_loading: bool, log_tail: &str, out: &mut Outbox) {
        let model = &mut self.models[at];
        let all = why.is_permanent() || matches!(model.state, State::Quarantined { .. });
        let failed = model.queue.take(|waiting| {
            waiting.loads_failed += u32::from(was_loading);
            all || waiting.loads_failed >= LOADS_FAILED_MAX
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
