//! What the scheduler shows: read-only views for `/api/ps`, `ollmlx ps` and metrics.

use std::sync::Arc;

use ollmlx_proto::{ModelId, WorkerId};

use super::event::Mono;
use crate::catalog::ModelRef;

/// One moment of the scheduler.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Workers and resting models, in order of model id.
    pub workers: Vec<WorkerView>,
    /// Requests waiting over all models.
    pub queue_len: usize,
    /// Requests running.
    pub running: usize,
    /// Bytes reserved.
    pub reserved_bytes: u64,
    /// Bytes there are, where a limit is set.
    pub limit_bytes: Option<u64>,
    /// Whether the server is leaving.
    pub leaving: bool,
}

/// One model that has, or had, a process.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Its current or last process.
    pub worker: WorkerId,
    /// What it serves, as it was asked for.
    pub model: Arc<ModelRef>,
    /// State name: `loading`, `idle`, `busy`, `draining`, `exiting`, `backoff`, `quarantined` …
    pub state: &'static str,
    /// Process id where there is one.
    pub pid: Option<u32>,
    /// When it goes if nothing happens; `None` is never or not now.
    pub expires_at: Option<Mono>,
    /// Whether it stays for ever.
    pub pinned: bool,
    /// Requests it runs.
    pub in_flight: usize,
    /// Requests that wait for it.
    pub queued: usize,
    /// Slots, once ready.
    pub slots: u16,
    /// Window of a slot, once ready, else as planned.
    pub context_tokens: u32,
    /// Bytes it holds: the largest of plan, report and sample.
    pub memory_bytes: u64,
    /// Of these, on an accelerator.
    pub accelerator_bytes: u64,
    /// Where it computes.
    pub device: String,
    /// Processes started beyond the first that were not asked to leave.
    pub restarts: u32,
    /// Cause of the last death that nobody asked for, in words.
    pub last_death: Option<String>,
    /// Until when it rests, in backoff or quarantine.
    pub rests_until: Option<Mono>,
}

/// The id of a model with no process at all is enough to ask for one.
impl Snapshot {
    /// The view of one model.
    #[must_use]
    pub fn of(&self, model: &ModelId) -> Option<&WorkerView> {
        self.workers.iter().find(|view| view.worker.model == *model)
    }
}
