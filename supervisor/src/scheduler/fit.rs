//! Whether a plan can ever have its room, and how it is made smaller until it can.
//!
//! A plan may take what the limit leaves beside pinned models, and no more than its model's own limit. What others hold
//! that are not pinned is no obstacle: they make room, now or after what they run. So the answer doesn't depend on who is
//! loaded at the moment, except for pins.
//!
//! Pinned is a model that a client keeps for ever (`keep_alive` -1) on a server where that isn't the rule. Decision: it is
//! not evicted, and who can't be loaded beside it is refused and told so. Rejected: evicting it last, which surprises
//! whoever pinned it, at a moment when nobody looks. Where every model stays for ever by default, none is pinned.
//!
//! Decision: what was learned of a model makes it smaller where that is allowed, and is else forgotten as far as it doesn't
//! fit: the estimate alone decides whether a model is refused. Rejected: refusing it for what earlier processes took, with
//! which a leak of the past keeps a model out for good.
//!
//! Made smaller are slots first, since they change no answer, then the window, down to what the request needs.

use std::cmp::Reverse;

use ollmlx_proto::Failure;

use super::lifecycle::State;
use super::model::Model;
use super::{Scheduler, cause};
use crate::types::{KeepAlive, LoadPlan};

impl Scheduler {
    /// Whether it stays whatever others need.
    pub(super) fn is_pinned(&self, model: &Model) -> bool {
        model.keep_alive == KeepAlive::Forever && self.config.default_keep_alive != KeepAlive::Forever
    }

    /// Bytes to set aside for a model loaded like this: its plan, or what the last process took that died of its memory, as
    /// far as there is so much beside pinned models.
    pub(super) fn need_of(&self, at: usize, plan: &LoadPlan) -> u64 {
        let model = &self.models[at];
        let Some(appetite) = model.appetite else { return plan.need() };
        let pins = self.models.iter().filter(|other| other.id != model.id && self.is_pinned(other));
        let pinned = pins.fold(0_u64, |sum, other| sum.saturating_add(self.ledger.of(&other.id).bytes()));
        let available = self.ledger.limit().map_or(u64::MAX, |limit| limit.saturating_sub(pinned));
        let available = available.min(plan.terms.limit.unwrap_or(u64::MAX));
        plan.need().max(appetite.min(available))
    }

    /// How to load a model for those that wait for it: for all that are like the first of them or, where what they want
    /// together can't be had, for the first alone. `None` where not even that can.
    pub(super) fn next_plan(&self, at: usize) -> Option<Box<LoadPlan>> {
        let queue = &self.models[at].queue;
        let joint = queue.plan().and_then(|plan| self.fitted(plan).ok());
        joint.or_else(|| self.fitted(queue.head()?.plan.clone()).ok())
    }

    /// What one hears that has waited too long for this plan: if it is memory that it waited for, who has it.
    pub(super) fn waited_in_vain(&self, at: usize, plan: &LoadPlan) -> Failure {
        let smaller = match self.smaller(plan) {
            Ok(smaller) => smaller,
            Err(failure) => return failure,
        };
        let need = self.need_of(at, smaller.as_ref().unwrap_or(plan));
        if self.models[at].state != State::Absent || self.ledger.missing(need) == 0 {
            return cause::waited_too_long();
        }
        let all = self.models.iter().filter(|model| model.state.has_process());
        let mut held: Vec<_> =
            all.map(|model| (model.model.name.as_str(), self.ledger.of(&model.id).bytes())).collect();
        if self.ledger.elsewhere() > 0 {
            held.push(("the server being replaced", self.ledger.elsewhere()));
        }
        held.sort_by_key(|&(_, bytes)| Reverse(bytes));
        cause::waited_for_memory(need, self.ledger.limit().unwrap_or(u64::MAX), &held)
    }

    /// The plan as it can be loaded once everything that may go has gone.
    pub(super) fn fitted(&self, plan: Box<LoadPlan>) -> Result<Box<LoadPlan>, Failure> {
        Ok(self.smaller(&plan)?.map_or(plan, Box::new))
    }

    /// The smaller or more modest plan that can be loaded in the place of this one; `None` where this one can.
    pub(super) fn smaller(&self, plan: &LoadPlan) -> Result<Option<LoadPlan>, Failure> {
        let stays = |model: &&Model| {
            self.is_pinned(model) && model.id != plan.model.id && model.state.has_process() && !model.state.is_leaving()
        };
        let pins = || self.models.iter().filter(stays).map(|model| (model, self.ledger.of(&model.id).bytes()));
        let held = || pins().map(|(model, bytes)| (model.model.name.as_str(), bytes)).collect::<Vec<_>>();
        let (count, pinned) =
            pins().fold((0, 0_u64), |(count, sum), (_, bytes)| (count + 1, sum.saturating_add(bytes)));
        if count >= self.config.workers_max.max(1) {
            return Err(cause::places_are_pinned(self.config.workers_max, &held()));
        }
        let (limit, own) = (self.ledger.limit().unwrap_or(u64::MAX), plan.terms.limit.unwrap_or(u64::MAX));
        let available = limit.saturating_sub(pinned).min(own);
        let need = plan.need();
        if need <= available {
            return Ok(None);
        }
        if let Some(smaller) = plan.shrunk(self.config.shrink, available) {
            return Ok(Some(smaller));
        }
        let capped = plan.capped(available);
        if capped.need() <= available {
            return Ok(Some(capped));
        }
        let most = own.min(limit);
        let never = plan.capped(most).need() > most && plan.shrunk(self.config.shrink, most).is_none();
        Err(if never { cause::can_never_fit(need, limit, own) } else { cause::pinned(need, limit, &held()) })
    }
}
