//! What the scheduler shows of a moment, and whether that is as it must be.

use super::life::State;
use super::model::Model;
use super::view::View;
use crate::types::{Account, Snapshot, WorkerView};

/// All that can be read off the models.
pub(super) fn of(view: View<'_>) -> Snapshot {
    let shown = |model: &&Model| model.state != State::Absent || !model.line.is_empty();
    Snapshot {
        workers: view.models.iter().filter(shown).map(|model| worker(view, model)).collect(),
        queue_len: view.waiting(),
        running: view.models.iter().map(|model| model.line.running().len()).sum(),
        reserved_bytes: view.ledger.total(),
        limit_bytes: view.ledger.limit(),
        elsewhere_bytes: view.ledger.elsewhere(),
        measured_bytes: view.ledger.measured(),
        relief: view.step,
        shrink: view.config.shrink,
        workers_max: view.workers_max(),
        deaths: view.models.iter().filter_map(Model::deaths).collect(),
        ..Snapshot::default()
    }
}

fn worker(view: View<'_>, model: &Model) -> WorkerView {
    let ready = model.process.ready.as_ref();
    let expires_at = match model.state {
        State::Idle { expires_at, .. } => expires_at,
        _ => None,
    };
    let rests_until = match model.state {
        State::Backoff { until } | State::Quarantined { until } => Some(until),
        _ => None,
    };
    let planned = || model.process.plan.as_ref().map_or(0, |plan| plan.spec.context_tokens);
    WorkerView {
        worker: model.worker(),
        model: model.model.clone(),
        state: model.state.name(),
        pid: model.state.pid(),
        expires_at,
        keep_alive: model.stay.keep_alive,
        leaves: model.state.is_leaving(),
        pinned: view.is_pinned(model) && !model.state.is_leaving(),
        in_flight: model.line.running().len(),
        queued: model.line.len(),
        slots: ready.map_or(0, |ready| ready.slots),
        context_tokens: ready.map_or_else(planned, |ready| ready.context_tokens),
        memory_bytes: view.bytes(model),
        account: account(view, model),
        priority: model.stay.priority,
        key: model.stay.client.key.clone(),
        accelerator_bytes: ready.map_or(0, |ready| ready.accelerator_bytes),
        device: ready.map_or_else(String::new, |ready| ready.device.clone()),
        restarts: model.history.restarts,
        last_death: model.history.last_death.clone(),
        rests_until,
        cpu_level: model.history.cpu_level,
    }
}

fn account(view: View<'_>, model: &Model) -> Account {
    let holding = view.holding(model);
    let known = Account {
        planned: holding.planned,
        ready: model.process.ready.as_ref().map(|ready| ready.memory).unwrap_or_default(),
        reported: holding.reported,
        sampled: holding.sampled,
        measured: holding.measured(),
        ..Account::default()
    };
    let Some(plan) = &model.process.plan else { return known };
    let spec = &plan.spec;
    Account {
        slots: spec.slots,
        context_tokens: spec.context_tokens,
        batch_tokens: spec.batch_tokens,
        kv_type: spec.kv_type.clone(),
        estimate: plan.memory,
        limit: plan.terms.limit,
        shrunk: plan.terms.shrunk,
        ..known
    }
}

/// Looks for a broken invariant.
///
/// # Errors
/// Says what is wrong.
pub(super) fn check(view: View<'_>, known: usize) -> Result<(), String> {
    let mut total = 0;
    for model in view.models {
        let (worker, runs) = (model.worker(), model.line.running().len());
        if view.ledger.holds(&model.id) != model.state.has_process() {
            return Err(format!("I1: {worker} in {:?} and its memory disagree", model.state));
        }
        total += view.bytes(model);
        let pinned = matches!(model.state, State::Idle { expires_at: None, .. });
        let timeless = pinned || matches!(model.state, State::Absent | State::Spawning);
        if model.state.deadline().is_none() != timeless {
            return Err(format!("I3: {worker} in {:?} has no deadline", model.state));
        }
        if model.state.in_flight() != runs && !matches!(model.state, State::Exiting { .. }) {
            return Err(format!("I5: {worker} in {:?} runs {runs}", model.state));
        }
        let slots = model.process.ready.as_ref().map_or(0, |ready| usize::from(ready.slots));
        if runs > slots {
            return Err(format!("{worker} runs {runs} in {slots} slots"));
        }
    }
    if view.ledger.limit().is_some_and(|limit| view.ledger.planned() > limit) {
        return Err(format!("plans of {} bytes are over the limit", view.ledger.planned()));
    }
    let running: usize = view.models.iter().map(|model| model.line.running().len()).sum();
    let queued = view.waiting();
    if total != view.ledger.total() || queued + running != known {
        return Err(format!("sums: {total} bytes, {queued} queued, {running} running, {known} known"));
    }
    Ok(())
}
