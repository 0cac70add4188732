//! Why a request is turned away at its arrival, before it waits for anything.

use std::collections::BTreeMap;

use ollmlx_proto::Failure;

use super::life::State;
use super::model::Model;
use super::view::View;
use super::{failures, placement};
use crate::types::{Caller, LoadPlan};

/// Whether a request with this plan may come in. What the server knows of the request itself is asked elsewhere.
pub(super) fn admit(view: View<'_>, known: Option<&Model>, plan: &LoadPlan, client: &Caller) -> Result<(), Failure> {
    if let Some(model) = known {
        if let State::Quarantined { until } = model.state {
            return Err(failures::quarantined(model.history.last_death.as_deref(), until, view.now));
        }
        if let Some(failure) = too_large_for(model, plan) {
            return Err(failure);
        }
    }
    let is_served = known.is_some_and(|model| model.state.accepts_work() && model.serves(plan));
    if !is_served {
        placement::smaller(view, plan, view.config.shrink).map_err(|misfit| misfit.failure())?;
    }
    // One that doesn't have to wait is not turned away because others do.
    let waits = !known.is_some_and(|model| is_served && model.line.is_empty() && model.has_free_slot());
    let own = known.map_or(0, |model| model.line.len());
    if waits && !line_has_room(view, own, client) { Err(failures::queue_full()) } else { Ok(()) }
}

/// Whether one more of a client may wait for a model that `own` wait for. Where the line is full those still have room whose
/// part is less than an even one, up to twice the line in all, so that a flood does not shut the others out. Whose part that
/// is, is asked of keys; where one key has the whole line, of the addresses that use it, or of models.
fn line_has_room(view: View<'_>, own: usize, client: &Caller) -> bool {
    let (most, waiting) = (view.config.queue_max, view.waiting());
    if waiting < most {
        return true;
    }
    if waiting >= most.saturating_mul(2) {
        return false;
    }
    let is_less_than_even = |own: usize, others: usize| {
        let parts = others + usize::from(own == 0);
        (own < most.div_ceil(parts.max(1)), parts > 1)
    };
    let (mut keys, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for Caller { key, address } in view.models.iter().flat_map(|model| model.line.waiting()).map(|one| &one.client) {
        *keys.entry(key).or_insert(0_usize) += 1;
        if *key == client.key {
            *addresses.entry(address).or_insert(0_usize) += 1;
        }
    }
    let of_key = keys.get(&client.key).copied().unwrap_or(0);
    if let (has_room, true) = is_less_than_even(of_key, keys.len()) {
        return has_room;
    }
    let of_address = addresses.get(&client.address).copied().unwrap_or(0);
    let models = view.models.iter().filter(|model| !model.line.is_empty()).count();
    let by_address = is_less_than_even(of_address, addresses.len());
    by_address == (true, true) || is_less_than_even(own, models).0
}

/// A request may want that its model takes no more than so much. One that is loaded is not loaded anew for that.
fn too_large_for(model: &Model, wanted: &LoadPlan) -> Option<Failure> {
    let limit = wanted.terms.limit?;
    let stays = model.state.has_process() && !model.state.is_leaving() && model.serves(wanted);
    let takes = model.process.plan.as_ref().filter(|_| stays)?.need();
    (takes > limit).then(|| failures::loaded_larger(takes, limit))
}
