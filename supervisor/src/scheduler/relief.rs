//! What is done about too much memory, by the step of the [`super::ladder`].
//!
//! What is measured counts here, not what is reserved. A worker that is on its way out counts as gone when it is asked
//! what else must go, and as there until it is reaped when it is asked whether something fits.
//!
//! Decision: a worker that grows so fast that it would be over the mark for killing within
//! [`limits::GROWTH_HORIZON_MS`] is killed as soon as the limit is passed. Rejected: draining it first, in which time it
//! takes as much as it likes.
//!
//! Decision: a model that is larger than the whole limit while it loads, or when it is ready, is given up at once and rests
//! like one that failed too often, each time for twice as long; whoever waits is told the numbers. Rejected: three attempts,
//! each of which presses everybody else out; and to remember for good what it took, which one load in a bad moment would
//! make as large as that.

use ollmlx_proto::limits;

use super::evict::{Need, choose};
use super::lifecycle::{DrainReason, Input, Rung, State};
use super::model::Model;
use super::{Effect, Outbox, Push, Scheduler};

use crate::types::{Cause, Mono, Step};

impl Scheduler {
    /// Reads the gauges and does what the step asks for.
    pub(super) fn relieve(&mut self, out: &mut Outbox) {
        let before = self.ladder.step();
        self.ladder.used(self.ledger.used_permille());
        let step = self.ladder.step();
        if step != before {
            self.took(before, step, out);
        }
        self.give_up_what_never_fits(out);
        self.hold_own_limits(out);
        if step >= Step::Trim {
            self.trim(out);
        } else {
            self.trimmed = None;
        }
        if step >= Step::Evict {
            self.evict_idle(out);
        }
        if step >= Step::Drain {
            self.drain_worst(out);
        }
        if self.ladder.by_use() >= Step::Drain {
            self.kill_worst(out);
        }
    }

    /// The machine's own complaint, in permille of the time.
    pub(super) fn pressed(&mut self, permille: u16, out: &mut Outbox) {
        let before = self.ladder.step();
        self.ladder.pressed(permille.into());
        let step = self.ladder.step();
        if step != before {
            self.took(before, step, out);
        }
        self.relieve(out);
    }

    fn took(&mut self, from: Step, to: Step, out: &mut Outbox) {
        for (count, step) in self.totals.relief.iter_mut().zip(Step::TAKEN) {
            *count += u64::from(step > from && step <= to);
        }
        let (measured_bytes, limit_bytes) = (self.ledger.measured(), self.ledger.limit());
        out.push(Effect::Relief { from, to, measured_bytes, limit_bytes });
    }

    /// A load that alone is over a limit can only fail.
    fn give_up_what_never_fits(&mut self, out: &mut Outbox) {
        for at in 0..self.models.len() {
            let need = self.ledger.of(&self.models[at].id).measured();
            let too_large = self.too_large(at, need);
            if matches!(self.models[at].state, State::Loading { .. }) && too_large.is_some() {
                self.apply(at, Input::Kill, too_large, out);
            }
        }
    }

    /// What one dies of that needs so much for its load alone; nothing where it may take that.
    pub(super) fn too_large(&self, at: usize, need: u64) -> Option<Cause> {
        let limit = self.ledger.limit().unwrap_or(u64::MAX);
        let own = self.models[at].own_limit().unwrap_or(u64::MAX);
        (need > limit.min(own)).then_some(Cause::TooLarge { need, limit, own })
    }

    /// Once for each time that it gets worse: a house that is full as planned is not to lose its caches for ever.
    fn trim(&mut self, out: &mut Outbox) {
        let measured = self.ledger.measured();
        let worse = self.ledger.limit().unwrap_or(u64::MAX) / 20;
        if self.trimmed.is_some_and(|(last, then)| {
            self.now < last.plus_ms(limits::TRIM_AGAIN_MS) || measured < then.saturating_add(worse)
        }) {
            return;
        }
        self.trimmed = Some((self.now, measured));
        let able = |state| matches!(state, State::Idle { .. } | State::Busy { .. } | State::Draining { .. });
        for model in self.models.iter().filter(|model| able(model.state)) {
            out.push(Effect::Trim { worker: model.worker() });
        }
    }

    /// Measured bytes that must go to leave this step, those of leaving workers counted as gone.
    fn excess(&self, step: Step) -> u64 {
        let leaving = self.models.iter().filter(|model| is_going(model.state));
        let coming: u64 = leaving.map(|model| self.ledger.of(&model.id).measured()).sum();
        let used_more = self.ladder.by_use() >= step;
        if used_more { self.ledger.measured_above(leave_mark(step)).saturating_sub(coming) } else { 0 }
    }

    fn evict_idle(&mut self, out: &mut Outbox) {
        let excess = self.excess(Step::Evict);
        if excess == 0 && !self.may_act_on_pressure() {
            return;
        }
        if excess > 0 && self.is_one_worker_s_fault(excess) {
            return;
        }
        // One that is just ready, and waited for, is not idle: it would be loaded again for those who wait, without end.
        let is_idle = |model: &Model| matches!(model.state, State::Idle { .. }) && model.queue.is_empty();
        let mut idle = self.candidates(|model| is_idle(model) && !self.is_pinned(model));
        let mut pinned = self.candidates(|model| is_idle(model) && self.is_pinned(model));
        for candidate in idle.iter_mut().chain(&mut pinned) {
            candidate.bytes = self.ledger.of(&self.models[candidate.at].id).measured();
        }
        if excess == 0 {
            // What others need is no reason to break a promise.
            idle = choose(idle, Need { bytes: 0, places: 1 }).unwrap_or_default();
            self.acted_on_pressure(!idle.is_empty());
        } else if let Some(enough) = choose(idle.clone(), Need { bytes: excess, places: 0 }) {
            idle = enough;
        } else {
            let all: u64 = idle.iter().map(|candidate| candidate.bytes).sum();
            let missing = Need { bytes: excess.saturating_sub(all), places: 0 };
            let more = choose(pinned.clone(), missing).unwrap_or(pinned);
            idle.extend(more);
        }
        for victim in idle {
            self.apply(victim.at, Input::Drain { reason: DrainReason::Relief }, None, out);
        }
    }

    /// Whether one worker is so far above its plan that the others would go for nothing but its appetite.
    fn is_one_worker_s_fault(&self, excess: u64) -> bool {
        let worst = self.worst(works);
        // One that died of it before is given what it needs, if that can be.
        let is_new = |at: usize| self.models[at].appetite.is_none();
        worst.is_some_and(|(above, at)| above >= excess && is_new(at) && self.is_far_above(at, above))
    }

    fn is_far_above(&self, at: usize, above: u64) -> bool {
        above > self.ledger.of(&self.models[at].id).planned / 4
    }

    fn drain_worst(&mut self, out: &mut Outbox) {
        let Some((above, at)) = self.worst(works) else { return };
        if self.excess(Step::Drain) == 0 {
            // Nobody's fault, unless somebody is far above what it was given.
            if !self.is_far_above(at, above) || !self.may_act_on_pressure() {
                return;
            }
            self.acted_on_pressure(true);
        }
        self.apply(at, Input::Drain { reason: DrainReason::OverBudget }, Some(Cause::OverBudget), out);
    }

    /// Over the hard mark, or soon there.
    fn kill_worst(&mut self, out: &mut Outbox) {
        let killed = |state| matches!(state, State::Exiting { rung: Rung::Pushed(Push::Kill), .. });
        loop {
            let dying = self.models.iter().filter(|model| killed(model.state));
            let (dying_bytes, dying_growth) = dying.fold((0_u64, 0_u64), |(bytes, growth), model| {
                let holding = self.ledger.of(&model.id);
                (bytes.saturating_add(holding.measured()), growth.saturating_add(holding.growth))
            });
            // A load only takes what it was given.
            let loading = self.models.iter().filter(|model| matches!(model.state, State::Loading { .. }));
            let loads = loading.map(|model| self.ledger.of(&model.id)).filter(|load| load.measured() <= load.planned);
            let loading_growth = loads.fold(0_u64, |sum, load| sum.saturating_add(load.growth));
            let growth = self.ledger.growth().saturating_sub(dying_growth).saturating_sub(loading_growth);
            let soon = growth.saturating_mul(limits::GROWTH_HORIZON_MS) / 1_000;
            let left = self.ledger.measured_above(leave_mark(Step::Kill)).saturating_sub(dying_bytes);
            let hard = self.ladder.by_use() == Step::Kill;
            let runs_away = self.ledger.would_be_above(dying_bytes, soon, enter_mark(Step::Kill));
            if left == 0 || !(hard || runs_away) {
                return;
            }
            let lives = |state: State| state.pid().is_some() && !killed(state);
            let Some((_, at)) = self.worst(lives) else { return };
            self.apply(at, Input::Kill, Some(Cause::OverBudget), out);
        }
    }

    /// The one furthest above its plan; among equals the largest.
    fn worst(&self, may_go: impl Fn(State) -> bool) -> Option<(u64, usize)> {
        let able = self.models.iter().enumerate().filter(|(_, model)| may_go(model.state));
        let ranked = able.map(|(at, model)| {
            let holding = self.ledger.of(&model.id);
            (holding.measured().saturating_sub(holding.planned), holding.measured(), at)
        });
        ranked.max().map(|(above, _, at)| (above, at))
    }

    /// Pressure lags behind what was done about it.
    fn may_act_on_pressure(&self) -> bool {
        let leaving = self.models.iter().any(|model| is_going(model.state));
        let rested = |last: Mono| self.now >= last.plus_ms(limits::PRESSURE_AGAIN_MS);
        !leaving && self.relieved.is_none_or(rested)
    }

    fn acted_on_pressure(&mut self, acted: bool) {
        if acted {
            self.relieved = Some(self.now);
        }
    }
}

/// Whether its memory is free soon: one that may finish what it runs, however long, is not counted on.
pub(super) fn is_going(state: State) -> bool {
    match state {
        State::Draining { reason, .. } => !reason.is_patient(),
        state => state.is_leaving(),
    }
}

/// Whether it computes, and can be told to stop that.
pub(super) fn works(state: State) -> bool {
    match state {
        State::Loading { .. } | State::Busy { .. } => true,
        State::Draining { reason, .. } => reason.is_patient(),
        _ => false,
    }
}

fn mark(step: Step, which: usize) -> u64 {
    let index = Step::TAKEN.iter().position(|taken| *taken == step).unwrap_or(0);
    limits::MEMORY_MARKS_PERMILLE[index][which]
}

pub(super) fn enter_mark(step: Step) -> u64 {
    mark(step, 0)
}

fn leave_mark(step: Step) -> u64 {
    mark(step, 1)
}
