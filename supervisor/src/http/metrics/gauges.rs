//! What the latest snapshot says, in metrics.

use std::collections::BTreeMap;

use crate::limits::MODEL_LABELS_MAX;

use super::exposition::Exposition;
use crate::types::{Snapshot, Step, WorkerView};

/// Everything that a snapshot says.
pub(in crate::http) fn write(out: &mut Exposition, snapshot: &Snapshot) {
    fates(out, snapshot);
    load(out, snapshot);
    memory(out, snapshot);
    relief(out, snapshot);
    memory_by_model(out, snapshot);
    load_by_model(out, snapshot);
}

/// What became of requests.
fn fates(out: &mut Exposition, snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    let incidents = "Times that workers of several models died together, of one cause.";
    out.single("ollmlx_incidents_total", "counter", incidents, totals.incidents as f64);
    let resumed = "Requests that went on in another process after theirs had died.";
    out.single("ollmlx_requests_resumed_total", "counter", resumed, totals.resumed as f64);
    let paused = "Times that a worker was told to wait for a client that reads slowly.";
    out.single("ollmlx_requests_paused_total", "counter", paused, totals.pauses as f64);
    let poisoned = "Requests that failed because two processes died of them.";
    out.single("ollmlx_requests_poisoned_total", "counter", poisoned, totals.suspects as f64);
}

fn load(out: &mut Exposition, snapshot: &Snapshot) {
    out.single("ollmlx_queue_length", "gauge", "Requests that wait.", snapshot.queue_len as f64);
    out.single("ollmlx_requests_in_flight", "gauge", "Requests that a worker computes.", snapshot.running as f64);
    let living = snapshot.workers.iter().filter(|view| view.pid.is_some());
    let loaded = living.filter(|view| matches!(view.state, "idle" | "busy" | "draining")).count();
    out.single("ollmlx_models_loaded", "gauge", "Models that can answer without a load.", loaded as f64);
}

fn memory(out: &mut Exposition, snapshot: &Snapshot) {
    let reserved = "Memory set aside for workers.";
    out.single("ollmlx_memory_reserved_bytes", "gauge", reserved, snapshot.reserved_bytes as f64);
    if let Some(limit) = snapshot.limit_bytes {
        out.single("ollmlx_memory_limit_bytes", "gauge", "Memory that workers may take.", limit as f64);
    }
    let elsewhere = "Memory that the server holds which this one replaces.";
    out.single("ollmlx_memory_predecessor_bytes", "gauge", elsewhere, snapshot.elsewhere_bytes as f64);
    let measured = "Memory that workers were found to take.";
    out.single("ollmlx_memory_measured_bytes", "gauge", measured, snapshot.measured_bytes as f64);
}

fn relief(out: &mut Exposition, snapshot: &Snapshot) {
    let step = Step::TAKEN.iter().filter(|step| **step <= snapshot.relief).count();
    let height = "Where the memory ladder stands: 0 calm, 1 hold, 2 trim, 3 evict, 4 drain, 5 kill.";
    out.single("ollmlx_memory_relief_step", "gauge", height, step as f64);
    out.family("ollmlx_memory_relief_total", "counter", "Times that a step of the memory ladder was entered.");
    for (step, count) in Step::TAKEN.iter().zip(snapshot.totals.relief) {
        out.sample("ollmlx_memory_relief_total", &[("step", step.name())], count as f64);
    }
}

fn memory_by_model(out: &mut Exposition, snapshot: &Snapshot) {
    by_model(out, snapshot, "ollmlx_worker_memory_bytes", "Memory of a worker.", |view| view.memory_bytes);
    let estimated = "What a worker was expected to take.";
    by_model(out, snapshot, "ollmlx_worker_memory_estimated_bytes", estimated, |view| view.account.estimate.total());
    let budget = "Set aside for a worker: the estimate and what earlier ones took above it.";
    by_model(out, snapshot, "ollmlx_worker_memory_budget_bytes", budget, |view| view.account.planned);
    let measured = "What a worker takes, by the system's count; by its report where there is none.";
    by_model(out, snapshot, "ollmlx_worker_memory_measured_bytes", measured, |view| view.account.measured);
}

fn load_by_model(out: &mut Exposition, snapshot: &Snapshot) {
    let in_flight = "Requests a worker computes.";
    by_model(out, snapshot, "ollmlx_worker_in_flight", in_flight, |view| view.in_flight as u64);
    let queued = "Requests waiting for a model.";
    by_model(out, snapshot, "ollmlx_worker_queue_length", queued, |view| view.queued as u64);
    let restarts = "Processes started in the place of one that died, by what it died of.";
    out.family("ollmlx_worker_restarts_total", "counter", restarts);
    for (cause, count) in &snapshot.restarts {
        out.sample("ollmlx_worker_restarts_total", &[("cause", cause)], *count as f64);
    }
    by_model(out, snapshot, "ollmlx_worker_up", "Whether a model has a process.", |view| u64::from(view.pid.is_some()));
}

/// A gauge with one sample per model.
fn by_model(out: &mut Exposition, snapshot: &Snapshot, name: &str, help: &str, value: impl Fn(&WorkerView) -> u64) {
    out.family(name, "gauge", help);
    // Two ids may have one name (a model that was created anew): one sample per name.
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for view in &snapshot.workers {
        let label = view.model.name.as_str();
        let label = if sums.len() < MODEL_LABELS_MAX || sums.contains_key(label) { label } else { "other" };
        *sums.entry(label).or_default() += value(view);
    }
    for (model, sum) in sums {
        out.sample(name, &[("model", model)], sum as f64);
    }
}
