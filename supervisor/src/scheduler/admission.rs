//! Why a request is turned away at its arrival, before it waits for anything.

use ollmlx_proto::Failure;

use super::life::State;
use super::model::Model;
use super::view::View;
use super::{failures, placement};
use crate::types::LoadPlan;

/// Whether a request with this plan may come in. What the server knows of the request itself is asked elsewhere.
pub(super) fn admit(view: View<'_>, known: Option<&Model>, plan: &LoadPlan) -> Result<(), Failure> {
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
    if waits && !line_has_room(view, own) { Err(failures::queue_full()) } else { Ok(()) }
}

/// Whether one more may wait for a model that `own` wait for. Where the line is full those models still have room whose
/// part is less than an even one, up to twice the line in all: a flood on one model does not shut the others out.
fn line_has_room(view: View<'_>, own: usize) -> bool {
    let (most, waiting) = (view.config.queue_max, view.waiting());
    if waiting < most {
        return true;
    }
    let others = view.models.iter().filter(|model| !model.line.is_empty()).count();
    let lines = others + usize::from(own == 0);
    waiting < most.saturating_mul(2) && own < most.div_ceil(lines.max(1))
}

/// A request may want that its model takes no more than so much. One that is loaded is not loaded anew for that.
fn too_large_for(model: &Model, wanted: &LoadPlan) -> Option<Failure> {
    let limit = wanted.terms.limit?;
    let stays = model.state.has_process() && !model.state.is_leaving() && model.serves(wanted);
    let takes = model.process.plan.as_ref().filter(|_| stays)?.need();
    (takes > limit).then(|| failures::loaded_larger(takes, limit))
}
