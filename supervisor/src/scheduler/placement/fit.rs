//! Whether a plan can ever have its room, and how it is made smaller until it can.
//!
//! A plan may take what the limit leaves beside pinned models, and no more than its model's own limit. What others hold
//! that are not pinned is no obstacle: they make room, now or after what they run. So the answer doesn't depend on who is
//! loaded at the moment, except for pins.
//!
//! Pinned is a model that a client keeps for ever (`keep_alive` -1) on a server where that isn't the rule, within half of the
//! places and half of the memory. Decision: it is not evicted, and who can't be loaded beside it is refused and told so; beyond
//! that share they give way like all others. Rejected: evicting it last, which surprises whoever pinned it, at a moment when
//! nobody looks; and holding all of them, with which a few clients shut out everybody else.
//!
//! Decision: what was learned of a model makes it smaller where that is allowed, and is else forgotten as far as it doesn't
//! fit: the estimate alone decides whether a model is refused. Rejected: refusing it for what earlier processes took, with
//! which a leak of the past keeps a model out for good.
//!
//! Made smaller are slots first, since they change no answer, then the window, down to what the request needs.

use ollmlx_proto::Failure;

use crate::scheduler::failures;
use crate::scheduler::model::Model;
use crate::scheduler::view::View;
use crate::types::{LoadPlan, Shrink};

/// Why a plan can't have its room, whoever else goes.
#[derive(Debug)]
pub(in crate::scheduler) enum Misfit<'a> {
    /// It takes more than a limit.
    Never { need: u64, limit: u64, own: u64 },
    /// Models that are kept for ever are in the way.
    Pinned { need: u64, limit: u64, held: Vec<(&'a str, u64)> },
    /// As many models as may be loaded are kept for ever.
    PlacesPinned { workers_max: usize, held: Vec<(&'a str, u64)> },
}

impl Misfit<'_> {
    /// What a client hears of it.
    pub(in crate::scheduler) fn failure(&self) -> Failure {
        match self {
            Self::Never { need, limit, own } => failures::can_never_fit(*need, *limit, *own),
            Self::Pinned { need, limit, held } => failures::pinned(*need, *limit, held),
            Self::PlacesPinned { workers_max, held } => failures::places_are_pinned(*workers_max, held),
        }
    }
}

/// What stays, whoever needs its place, when this model is to be loaded: names and bytes.
fn pins<'a>(view: View<'a>, plan: &LoadPlan) -> Vec<(&'a str, u64)> {
    let stays = |model: &&Model| view.is_pinned(model) && model.id != plan.model.id && !model.state.is_leaving();
    view.processes().filter(stays).map(|model| (model.model.public_name(), view.bytes(model))).collect()
}

/// Bytes that a plan may have at most: what pinned models leave, and no more than its own limit.
pub(in crate::scheduler) fn available(view: View<'_>, plan: &LoadPlan) -> u64 {
    let pinned = pins(view, plan).into_iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(bytes));
    let limit = view.ledger.limit().unwrap_or(u64::MAX).saturating_sub(pinned);
    limit.min(plan.terms.limit.unwrap_or(u64::MAX))
}

/// The smaller or more modest plan that can be loaded in the place of this one; `None` where this one can.
pub(in crate::scheduler) fn smaller<'a>(
    view: View<'a>,
    plan: &LoadPlan,
    shrink: Shrink,
) -> Result<Option<LoadPlan>, Misfit<'a>> {
    let held = pins(view, plan);
    if held.len() >= view.workers_max() {
        return Err(Misfit::PlacesPinned { workers_max: view.config.workers_max, held });
    }
    let (limit, own) = (view.ledger.limit().unwrap_or(u64::MAX), plan.terms.limit.unwrap_or(u64::MAX));
    let (available, need) = (available(view, plan), plan.need());
    if need <= available {
        return Ok(None);
    }
    let smaller = plan.shrunk(shrink, available).unwrap_or_else(|| plan.capped(available));
    if smaller.need() <= available {
        return Ok(Some(smaller));
    }
    let most = own.min(limit);
    let never = plan.capped(most).need() > most && plan.shrunk(shrink, most).is_none();
    Err(if never { Misfit::Never { need, limit, own } } else { Misfit::Pinned { need, limit, held } })
}

/// The plan as it can be loaded once everything that may go has gone; `None` where it can't.
fn fitted(view: View<'_>, plan: Box<LoadPlan>) -> Option<Box<LoadPlan>> {
    Some(smaller(view, &plan, view.config.shrink).ok()?.map_or(plan, Box::new))
}

/// How to load a model for those that wait for it: for all that are like the first of them or, where what they want
/// together can't be had, for the first alone. `None` where not even that can.
pub(in crate::scheduler) fn next_plan(view: View<'_>, model: &Model) -> Option<Box<LoadPlan>> {
    let joint = model.line.plan().and_then(|plan| fitted(view, plan));
    joint.or_else(|| fitted(view, model.line.head()?.plan.clone()))
}

/// Bytes to set aside for a model loaded like this: its plan, or what the last process took that died of its memory, as
/// far as there is so much beside pinned models.
pub(in crate::scheduler) fn need_of(view: View<'_>, model: &Model, plan: &LoadPlan) -> u64 {
    let Some(appetite) = model.history.appetite else { return plan.need() };
    let pins = view.models.iter().filter(|other| other.id != model.id && view.is_pinned(other));
    let pinned = pins.fold(0_u64, |sum, other| sum.saturating_add(view.bytes(other)));
    let available = view.ledger.limit().map_or(u64::MAX, |limit| limit.saturating_sub(pinned));
    plan.need().max(appetite.min(available.min(plan.terms.limit.unwrap_or(u64::MAX))))
}
