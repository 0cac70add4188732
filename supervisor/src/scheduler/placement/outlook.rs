//! What would become of a request that came now, before anything is loaded: by the same rules that decide when it comes.

use super::fit::{self, Misfit, need_of};
use super::room::{Ahead, Room, Wanted, order, place, room_for};
use crate::scheduler::life::State;
use crate::scheduler::model::Model;
use crate::scheduler::view::View;
use crate::types::{LoadPlan, Outlook, Prospect, Shrink, WishedLoad};

/// See the module's documentation.
pub(in crate::scheduler) fn outlook(view: View<'_>, wished: &WishedLoad) -> Outlook {
    let plan = &wished.plan;
    let own = view.models.iter().position(|model| model.id == plan.model.id);
    // Whoever asks for a number of slots wants to know of that.
    let shrink = if wished.wish.slots.is_some() { Shrink::Nothing } else { view.config.shrink };
    let fitted = fit::smaller(view, plan, shrink);
    let smaller = fitted.as_ref().ok().cloned().flatten();
    let prospect = match own.map(|at| &view.models[at]) {
        Some(model) if is_served(model, wished) => Prospect::Loaded,
        model => match &fitted {
            Err(Misfit::Never { .. }) => Prospect::Never,
            _ if model.is_some_and(|model| matches!(model.state, State::Quarantined { .. })) => Prospect::Rests,
            Err(Misfit::Pinned { .. } | Misfit::PlacesPinned { .. }) => Prospect::Pinned,
            Ok(_) => room(view, own, smaller.as_ref().unwrap_or(plan)),
        },
    };
    // One that is there is not made any smaller.
    let smaller = smaller.filter(|_| prospect != Prospect::Loaded);
    Outlook { prospect, at_most: fit::available(view, plan), smaller }
}

/// Whether its process can serve that. Requests don't say how many slots there should be, nor of which type the caches; who
/// asks for that here wants to know of it.
fn is_served(model: &Model, wished: &WishedLoad) -> bool {
    let loaded = model.process.plan.as_ref().map(|plan| &plan.spec);
    model.state.accepts_work()
        && model.serves(&wished.plan)
        && wished.wish.slots.is_none_or(|asked| loaded.is_some_and(|spec| spec.slots >= asked))
        && wished.wish.kv_type.as_ref().is_none_or(|asked| loaded.is_some_and(|spec| spec.kv_type == *asked))
}

/// Those who wait already come first.
fn room(view: View<'_>, own: Option<usize>, plan: &LoadPlan) -> Prospect {
    let mut ahead = Ahead::default();
    for at in order(view).into_iter().filter(|at| Some(*at) != own) {
        if let Some(placement) = place(view, at, &ahead) {
            ahead.note(&placement);
        }
    }
    let model = own.map(|at| &view.models[at]);
    let bytes = model.map_or_else(|| plan.need(), |model| need_of(view, model, plan));
    // Its own process goes once what it runs has ended.
    if model.is_some_and(|model| model.state.in_flight() > 0) {
        return Prospect::AfterOthers;
    }
    let goes = own.filter(|&at| view.models[at].state.has_process());
    let own = goes.map(|at| (at, view.bytes(&view.models[at])));
    let wanted = Wanted { arrived: view.now, has_waited: false, bytes, own };
    let placement = room_for(view, wanted, &ahead);
    let is_busy = |at: &usize| matches!(view.models[*at].state, State::Busy { .. });
    let frees_at_once = || {
        let slow = view.models.iter().filter(|model| model.state.is_leaving() && model.state.in_flight() > 0);
        slow.count() == 0 && view.ledger.elsewhere() == 0
    };
    match placement.room {
        Room::Here => Prospect::Now,
        Room::OnTheWay if !placement.victims.is_empty() && !placement.victims.iter().any(is_busy) => {
            Prospect::AfterEviction
        }
        Room::OnTheWay if placement.victims.is_empty() && frees_at_once() => Prospect::AfterEviction,
        Room::OnTheWay | Room::Nowhere => Prospect::AfterOthers,
    }
}
