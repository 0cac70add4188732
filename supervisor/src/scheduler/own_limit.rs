//! A model's own limit, held while its process lives: for that one worker the ladder's marks of its own limit count, as those of
//! the common one do for all together. A load that is above it is given up in `relief`.
//!
//! Decision: an idle worker above it goes without counting as a failure, since it answered what it was asked. One that
//! works counts: a limit that is too low for what a model is asked ends in the same rest as any other death.

use ollmlx_proto::limits;

use super::budget::{part, permille};
use super::lifecycle::{DrainReason, Input, Rung, State};
use super::relief::{enter_mark, works};
use super::{Effect, Outbox, Push, Scheduler};

use crate::types::{Cause, Step};

impl Scheduler {
    pub(super) fn hold_own_limits(&mut self, out: &mut Outbox) {
        for at in 0..self.models.len() {
            if let Some(limit) = self.models[at].own_limit() {
                self.hold_own_limit(at, limit, out);
            }
        }
    }

    fn hold_own_limit(&mut self, at: usize, limit: u64, out: &mut Outbox) {
        let model = &mut self.models[at];
        let (state, holding) = (model.state, self.ledger.of(&model.id));
        let before = model.own_ladder.by_use();
        model.own_ladder.used(permille(holding.measured(), limit));
        let step = model.own_ladder.by_use();
        let is_killed = matches!(state, State::Exiting { rung: Rung::Pushed(Push::Kill), .. });
        if state.pid().is_none() || matches!(state, State::Loading { .. }) || is_killed {
            return;
        }
        let soon = holding.growth.saturating_mul(limits::GROWTH_HORIZON_MS) / 1_000;
        let hard = part(limit, enter_mark(Step::Kill));
        let runs_away = holding.measured() > limit && holding.measured().saturating_add(soon) > hard;
        if step == Step::Kill || runs_away {
            let cause = self.over_own_limit(at);
            self.apply(at, Input::Kill, cause, out);
        } else if step >= Step::Drain && (works(state) || matches!(state, State::Idle { .. })) {
            let cause = self.over_own_limit(at);
            self.apply(at, Input::Drain { reason: DrainReason::OverOwnLimit }, cause, out);
        } else if step >= Step::Trim && before < Step::Trim && (state.accepts_work() || state.in_flight() > 0) {
            out.push(Effect::Trim { worker: model.worker() });
        }
    }

    /// How far it is above its own limit, where it has one.
    pub(super) fn over_own_limit(&self, at: usize) -> Option<Cause> {
        let model = &self.models[at];
        model.own_limit().map(|limit| Cause::OverOwnLimit { took: self.ledger.of(&model.id).peak, limit })
    }
}
