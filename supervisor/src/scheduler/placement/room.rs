//! Who gets room now, and who waits.
//!
//! Whether a model should be up is derived from its line, never stored. The line over all models is one: the request
//! that has waited longest gets room first. Others may slip past it into room that it can't use, until it has waited
//! for [`crate::scheduler::SchedulerConfig::yield_after_ms`]; then busy workers whose own line is younger give way: they finish what
//! they run and take no more. From then on, or once its room is on the way, only those pass that it doesn't wait longer for.
//! Models that died together wait for each other, see `verdict::incident`.
//!
//! Decision: room that somebody's patience is to bring is no reason to spare idle workers, nor to leave room empty that is
//! there: what a draining worker still runs may take for ever. Rejected: nobody passes one whose room is on the way, with
//! which a single endless answer holds up every model that isn't loaded.

use ollmlx_proto::{Failure, RequestId};

use super::evict::{Candidate, Need, choose};
use super::fit::{need_of, next_plan, smaller};
use crate::scheduler::failures;
use crate::scheduler::life::State;
use crate::scheduler::model::Model;
use crate::scheduler::verdict::incident;
use crate::scheduler::view::View;
use crate::types::{LoadPlan, Mono, Step};

/// Whether a model can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scheduler) enum Room {
    /// At once.
    Here,
    /// Once those have gone that are to go.
    OnTheWay,
    /// Nobody goes for it yet.
    Nowhere,
}

/// What is done for one that waits.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Placement {
    pub(in crate::scheduler) room: Room,
    /// Who goes for it.
    pub(in crate::scheduler) victims: Vec<usize>,
    /// What it needs, where those behind it must leave it that.
    claim: Option<u64>,
}

/// A model without a process that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The first in its line.
    pub(super) arrived: Mono,
    /// Whether busy workers give way to it.
    pub(super) has_waited: bool,
    /// What it needs.
    pub(super) bytes: u64,
    /// Its own process that goes first: its place in the table, and what it holds.
    pub(super) own: Option<(usize, u64)>,
}

/// Who waits on: the bytes of each and of all before it.
#[derive(Clone, Debug, Default)]
pub(in crate::scheduler) struct Ahead(Vec<u64>);

impl Ahead {
    /// Whether nobody behind them can be placed: more wait than there are places that are empty, or could be at once.
    pub(in crate::scheduler) fn take_all(&self, view: View<'_>) -> bool {
        let idle = movable(view).filter(|model| matches!(model.state, State::Idle { .. })).count();
        self.0.len() > view.workers_max().saturating_sub(view.processes().count()) + idle
    }

    /// Keeps what this one is to have.
    pub(in crate::scheduler) fn note(&mut self, placement: &Placement) {
        if let Some(bytes) = placement.claim {
            self.0.push(self.claimed().saturating_add(bytes));
        }
    }

    /// What the last of them and all before it will take.
    fn claimed(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }
}

/// Those that wait for a process, in the order in which they get one.
pub(in crate::scheduler) fn order(view: View<'_>) -> Vec<usize> {
    let absent = view.models.iter().enumerate().filter(|(_, model)| model.state == State::Absent);
    let mut order: Vec<(Mono, usize)> =
        absent.filter_map(|(at, model)| Some((model.line.head()?.arrived, at))).collect();
    order.sort_unstable();
    incident::rank(view, &mut order);
    order.into_iter().map(|(_, at)| at).collect()
}

/// Those of one line who wait in vain, since others have been pinned in the meantime.
pub(in crate::scheduler) fn hopeless(view: View<'_>, model: &Model) -> Vec<(RequestId, Failure)> {
    let misfit = |plan: &LoadPlan| smaller(view, plan, view.config.shrink).err().map(|misfit| misfit.failure());
    model.line.waiting().filter_map(|waiting| Some((waiting.request, misfit(&waiting.plan)?))).collect()
}

/// What one hears that has waited too long for this plan: if it is memory that it waited for, who has it.
pub(in crate::scheduler) fn waited_in_vain(view: View<'_>, model: &Model, plan: &LoadPlan) -> Failure {
    let smaller = match smaller(view, plan, view.config.shrink) {
        Ok(smaller) => smaller,
        Err(misfit) => return misfit.failure(),
    };
    let need = need_of(view, model, smaller.as_ref().unwrap_or(plan));
    if model.state != State::Absent || view.ledger.missing(need) == 0 {
        return failures::waited_too_long();
    }
    failures::waited_for_memory(need, view.ledger.limit().unwrap_or(u64::MAX), &view.holders())
}

/// Looks for room for one that somebody waits for.
pub(in crate::scheduler) fn place(view: View<'_>, at: usize, ahead: &Ahead) -> Option<Placement> {
    let model = &view.models[at];
    let arrived = model.line.head()?.arrived;
    let plan = next_plan(view, model)?;
    let has_waited = view.now.since(arrived) >= view.config.yield_after_ms.saturating_mul(1_000_000);
    Some(room_for(view, Wanted { arrived, has_waited, bytes: need_of(view, model, &plan), own: None }, ahead))
}

/// Only for the first in line do busy ones give way.
pub(super) fn room_for(view: View<'_>, wanted: Wanted, ahead: &Ahead) -> Placement {
    let found = |room, victims: Vec<Candidate>| {
        let waits = room == Room::OnTheWay || room == Room::Nowhere && wanted.has_waited;
        let victims = victims.into_iter().map(|victim| victim.at).collect();
        Placement { room, victims, claim: waits.then_some(wanted.bytes) }
    };
    let need = need(view, wanted, wanted.bytes, 1);
    let (soon, soon_places) = view.freed_by(State::frees_soon);
    let is_other = |at: usize| wanted.own.is_none_or(|(own, _)| own != at);
    let is_idle = |model: &Model| !view.is_pinned(model) && matches!(model.state, State::Idle { .. });
    let idle = choose(candidates(view, |at, model| is_other(at) && is_idle(model)), need.less(soon, soon_places));
    if let Some(victims) = idle.filter(|victims| delays_nobody(view, ahead, wanted.bytes, victims)) {
        return found(if need.is_met() { Room::Here } else { Room::OnTheWay }, victims);
    }
    let (bytes, count) = (ahead.claimed().saturating_add(wanted.bytes), ahead.0.len() + 1);
    let (coming, coming_places) = view.freed_by(State::is_leaving);
    let need = self::need(view, wanted, bytes, count).less(coming, coming_places);
    if need.is_met() {
        return found(Room::OnTheWay, Vec::new());
    }
    let is_younger = |model: &Model| model.line.head().is_none_or(|head| head.arrived > wanted.arrived);
    let gives_way = |at: usize, model: &Model| match model.state {
        State::Busy { .. } => wanted.has_waited && is_other(at) && !view.is_pinned(model) && is_younger(model),
        _ => is_other(at) && is_idle(model),
    };
    match choose(candidates(view, gives_way), need).filter(|_| ahead.0.is_empty()) {
        Some(victims) => found(Room::OnTheWay, victims),
        None => found(Room::Nowhere, Vec::new()),
    }
}

/// What is missing for so many processes that take so much together, once the one's own process has gone.
fn need(view: View<'_>, wanted: Wanted, bytes: u64, count: usize) -> Need {
    // While memory is nearly full, one comes for one that goes, if any may go.
    let one_for_one = view.step >= Step::Hold && movable(view).next().is_some();
    let (own_places, own_bytes) = wanted.own.map_or((0, 0), |(_, bytes)| (1, bytes));
    let places = (view.processes().count() + count).saturating_sub(view.workers_max() + own_places);
    let bytes = view.ledger.missing(bytes.saturating_sub(own_bytes));
    Need { bytes, places: places.max(if one_for_one { count } else { 0 }) }
}

/// Whether those ahead wait no longer if somebody takes so much in the place of these: each waits for some processes to
/// go, and whichever of them are enough for it must still be enough.
fn delays_nobody(view: View<'_>, ahead: &Ahead, bytes: u64, victims: &[Candidate]) -> bool {
    let more = bytes.saturating_sub(victims.iter().fold(0, |sum: u64, victim| sum.saturating_add(victim.bytes)));
    let places = view.workers_max().saturating_sub(view.processes().count()) + victims.len();
    let (coming, _) = view.freed_by(State::is_leaving);
    ahead.0.iter().enumerate().all(|(index, &claimed)| {
        let missing = view.ledger.missing(claimed);
        let leaving = view.models.iter().filter(|model| model.state.is_leaving());
        // Where that is not enough it may be anybody.
        let others = movable(view).filter(|model| coming < missing && !model.state.is_leaving());
        let freed = leaving.chain(others).map(|model| view.bytes(model));
        let freed = freed.chain([view.ledger.elsewhere()]);
        places > index && is_still_enough(freed, missing, more)
    })
}

/// Processes that go if others need it.
fn movable(view: View<'_>) -> impl Iterator<Item = &Model> {
    view.processes().filter(move |model| !view.is_pinned(model))
}

fn candidates(view: View<'_>, may_go: impl Fn(usize, &Model) -> bool) -> Vec<Candidate> {
    let able = view.models.iter().enumerate().filter(|&(at, model)| may_go(at, model));
    able.map(|(at, _)| Candidate::of(view, at)).collect()
}

/// Whether whichever of these are enough for what is missing are enough for that and more: those of which one alone would not
/// be must not be enough together either. It is too careful where only several large ones are enough.
fn is_still_enough(freed: impl Iterator<Item = u64>, missing: u64, more: u64) -> bool {
    let small = freed.filter(|&bytes| bytes < missing.saturating_add(more));
    more == 0 || small.fold(0, u64::saturating_add) < missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_enough_for_others_is_never_taken_from_them() {
        let mut said_so = 0;
        for case in 0..7_u64.pow(5) {
            let number = |place: u32| case / 7_u64.pow(place) % 7;
            let (freed, missing, more) = ([number(0), number(1), number(2)], number(3) + 1, number(4));
            let mut sums =
                (0..8).map(|set| (0..3).filter(|one| (set >> one) & 1 == 1).map(|one| freed[one]).sum::<u64>());
            let is_harmless = sums.all(|sum| sum < missing || sum >= missing + more);
            let says_so = is_still_enough(freed.into_iter(), missing, more);
            assert!(is_harmless || !says_so, "{freed:?} for {missing} and {more}");
            let alone = freed[1] == 0 && freed[2] == 0;
            assert!(
                !alone || says_so == is_harmless,
                "one alone is judged exactly: {freed:?} for {missing} and {more}"
            );
            said_so += u64::from(says_so && more > 0);
        }
        assert!(said_so > 0);
    }
}
