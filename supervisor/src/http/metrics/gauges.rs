//! What the latest snapshot says, in metrics.

use std::collections::BTreeMap;

use ollmlx_proto::limits::MODEL_LABELS_MAX;

use super::exposition::Exposition;
use crate::types::{Snapshot, Step, WorkerView};

impl Exposition {
    /// Everything that a snapshot says.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot) {
        self.fates(snapshot);
        self.load(snapshot);
        self.memory(snapshot);
        self.relief(snapshot);
        self.memory_by_model(snapshot);
        self.load_by_model(snapshot);
    }

    /// What became of requests.
    fn fates(&mut self, snapshot: &Snapshot) {
        let totals = &snapshot.totals;
        let incidents = "Times that workers of several models died together, of one cause.";
        self.single("ollmlx_incidents_total", "counter", incidents, totals.incidents as f64);
        let resumed = "Requests that went on in another process after theirs had died.";
        self.single("ollmlx_requests_resumed_total", "counter", resumed, totals.resumed as f64);
        let paused = "Times that a worker was told to wait for a client that reads slowly.";
        self.single("ollmlx_requests_paused_total", "counter", paused, totals.pauses as f64);
        let poisoned = "Requests that failed because two processes died of them.";
        self.single("ollmlx_requests_poisoned_total", "counter", poisoned, totals.suspects as f64);
    }

    fn load(&mut self, snapshot: &Snapshot) {
        self.single("ollmlx_queue_length", "gauge", "Requests that wait.", snapshot.queue_len as f64);
        self.single("ollmlx_requests_in_flight", "gauge", "Requests that a worker computes.", snapshot.running as f64);
        let living = snapshot.workers.iter().filter(|view| view.pid.is_some());
        let loaded = living.filter(|view| matches!(view.state, "idle" | "busy" | "draining")).count();
        self.single("ollmlx_models_loaded", "gauge", "Models that can answer without a load.", loaded as f64);
    }

    fn memory(&mut self, snapshot: &Snapshot) {
        let reserved = "Memory set aside for workers.";
        self.single("ollmlx_memory_reserved_bytes", "gauge", reserved, snapshot.reserved_bytes as f64);
        if let Some(limit) = snapshot.limit_bytes {
            self.single("ollmlx_memory_limit_bytes", "gauge", "Memory that workers may take.", limit as f64);
        }
        let elsewhere = "Memory that the server holds which this one replaces.";
        self.single("ollmlx_memory_predecessor_bytes", "gauge", elsewhere, snapshot.elsewhere_bytes as f64);
        let measured = "Memory that workers were found to take.";
        self.single("ollmlx_memory_measured_bytes", "gauge", measured, snapshot.measured_bytes as f64);
    }

    fn relief(&mut self, snapshot: &Snapshot) {
        let step = Step::TAKEN.iter().filter(|step| **step <= snapshot.relief).count();
        let height = "Where the memory ladder stands: 0 calm, 1 hold, 2 trim, 3 evict, 4 drain, 5 kill.";
        self.single("ollmlx_memory_relief_step", "gauge", height, step as f64);
        self.family("ollmlx_memory_relief_total", "counter", "Times that a step of the memory ladder was entered.");
        for (step, count) in Step::TAKEN.iter().zip(snapshot.totals.relief) {
            self.sample("ollmlx_memory_relief_total", &[("step", step.name())], count as f64);
        }
    }

    fn memory_by_model(&mut self, snapshot: &Snapshot) {
        self.by_model(snapshot, "ollmlx_worker_memory_bytes", "Memory of a worker.", |view| view.memory_bytes);
        let estimated = "What a worker was expected to take.";
        self.by_model(snapshot, "ollmlx_worker_memory_estimated_bytes", estimated, |view| {
            view.account.estimate.total()
        });
        let budget = "Set aside for a worker: the estimate and what earlier ones took above it.";
        self.by_model(snapshot, "ollmlx_worker_memory_budget_bytes", budget, |view| view.account.planned);
        let measured = "What a worker takes, by the system's count; by its report where there is none.";
        self.by_model(snapshot, "ollmlx_worker_memory_measured_bytes", measured, |view| view.account.measured);
    }

    fn load_by_model(&mut self, snapshot: &Snapshot) {
        let in_flight = "Requests a worker computes.";
        self.by_model(snapshot, "ollmlx_worker_in_flight", in_flight, |view| view.in_flight as u64);
        let queued = "Requests waiting for a model.";
        self.by_model(snapshot, "ollmlx_worker_queue_length", queued, |view| view.queued as u64);
        let restarts = "Processes started in the place of one that died, by what it died of.";
        self.family("ollmlx_worker_restarts_total", "counter", restarts);
        for (cause, count) in &snapshot.restarts {
            self.sample("ollmlx_worker_restarts_total", &[("cause", cause)], *count as f64);
        }
        self.by_model(snapshot, "ollmlx_worker_up", "Whether a model has a process.", |view| {
            u64::from(view.pid.is_some())
        });
    }

    /// A gauge with one sample per model.
    fn by_model(&mut self, snapshot: &Snapshot, name: &str, help: &str, value: impl Fn(&WorkerView) -> u64) {
        self.family(name, "gauge", help);
        // Two ids may have one name (a model that was created anew): one sample per name.
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for view in &snapshot.workers {
            let label = view.model.name.as_str();
            let label = if sums.len() < MODEL_LABELS_MAX || sums.contains_key(label) { label } else { "other" };
            *sums.entry(label).or_default() += value(view);
        }
        for (model, sum) in sums {
            self.sample(name, &[("model", model)], sum as f64);
        }
    }
}
