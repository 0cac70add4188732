//! One moment of the scheduler, as a value: for `/api/ps`, `ollmlx ps`, `fit` and metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limits;
use ollmlx_proto::{MemoryReport, ModelId, WorkerId};

use super::{KeepAlive, KeyName, ModelDeaths, Mono, Shrink};
use crate::catalog::ModelRef;

/// Where the ladder stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Nothing is wrong.
    #[default]
    Calm,
    /// Nothing new without something old going.
    Hold,
    /// Caches go.
    Trim,
    /// Idle workers go.
    Evict,
    /// The worst worker goes, politely.
    Drain,
    /// The worst worker goes at once.
    Kill,
}

impl Step {
    /// All but calm, in order.
    pub const TAKEN: [Self; 5] = [Self::Hold, Self::Trim, Self::Evict, Self::Drain, Self::Kill];

    /// Lower-case name for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Hold => "hold",
            Self::Trim => "trim",
            Self::Evict => "evict",
            Self::Drain => "drain",
            Self::Kill => "kill",
        }
    }
}

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
    /// Bytes of these that the server holds, or may come to hold, which this one replaces.
    pub elsewhere_bytes: u64,
    /// Bytes measured of all workers.
    pub measured_bytes: u64,
    /// Where the memory ladder stands.
    pub relief: Step,
    /// What may be given up for a model that doesn't fit.
    pub shrink: Shrink,
    /// Processes that there may be at once.
    pub workers_max: usize,
    /// How long a request holds its slot, on the average of the last ones; told by the driver.
    pub service_ns: u64,
    /// Whether a successor serves.
    pub is_replaced: bool,
    /// Whether the server is leaving.
    pub leaving: bool,
    /// Models that died, whether or not they are among the workers, in order of model id.
    pub deaths: Vec<ModelDeaths>,
    /// Since the start.
    pub totals: Totals,
    /// Processes started in the place of one that died, by the class of its cause, since the start.
    pub restarts: BTreeMap<&'static str, u64>,
}

/// Counts since the start of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Processes that ended without being asked.
    pub deaths: u64,
    /// Requests that went on on another process; one that does so twice counts twice.
    pub resumed: u64,
    /// Requests that failed as the suspects of two deaths.
    pub suspects: u64,
    /// Requests that were paused since their clients read slowly; told by the links.
    pub pauses: u64,
    /// Times that workers of several models died together.
    pub incidents: u64,
    /// Times each step of the memory ladder was entered, see [`Step::TAKEN`].
    pub relief: [u64; 5],
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
    /// When it goes if nothing happens, where it is idle and does go.
    pub expires_at: Option<Mono>,
    /// How long it stays once it is idle.
    pub keep_alive: KeepAlive,
    /// Whether its process takes no more requests and ends.
    pub leaves: bool,
    /// Whether it stays then, too.
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
    /// How that comes about.
    pub account: Account,
    /// As its requests say.
    pub priority: i32,
    /// The key of whoever asked last, or of an earlier one who keeps it for ever.
    pub key: Option<KeyName>,
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
    /// CPU level that it is told to use since it died at a better one.
    pub cpu_level: Option<&'static str>,
}

/// What the ledger knows of one model's process. All in bytes; 0 is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Slots that it was planned with.
    pub slots: u16,
    /// Tokens of a slot's window, likewise.
    pub context_tokens: u32,
    /// Tokens of a pass, likewise.
    pub batch_tokens: u32,
    /// Type of the caches, likewise.
    pub kv_type: String,
    /// As estimated for that.
    pub estimate: MemoryReport,
    /// Set aside: the estimate and what earlier processes took above theirs.
    pub planned: u64,
    /// As the worker says, in parts.
    pub ready: MemoryReport,
    /// As it says.
    pub reported: u64,
    /// As the system says.
    pub sampled: u64,
    /// What it is known to take: as the system says, or the worker where the system has not said anything.
    pub measured: u64,
    /// The model's own limit.
    pub limit: Option<u64>,
    /// Whether slots or window are smaller than was asked for.
    pub shrunk: bool,
}

/// The id of a model with no process at all is enough to ask for one.
impl Snapshot {
    /// The view of one model.
    #[must_use]
    pub fn of(&self, model: &ModelId) -> Option<&WorkerView> {
        self.workers.iter().find(|view| view.worker.model == *model)
    }

    /// When somebody who is turned away may find a place: the time that those before take, as measured, in whole seconds.
    #[must_use]
    pub fn retry_after_s(&self) -> u64 {
        let rounds = (self.queue_len as u64).saturating_add(1).div_ceil(self.running.max(1) as u64);
        let wait_ns = self.service_ns.saturating_mul(rounds);
        wait_ns.div_ceil(1_000_000_000).clamp(1, limits::RETRY_AFTER_S_MAX)
    }

    /// The deaths of one model, if there were any.
    #[must_use]
    pub fn deaths_of(&self, model: &ModelId) -> Option<&ModelDeaths> {
        self.deaths.iter().find(|deaths| deaths.model.id == *model)
    }

    /// Names of the other models that died in an incident, as far as their records are kept.
    #[must_use]
    pub fn died_with(&self, model: &ModelId, incident: u64) -> Vec<&str> {
        let others = self.deaths.iter().filter(|other| other.model.id != *model);
        let shared = others.filter(|other| other.deaths.iter().any(|record| record.incident == Some(incident)));
        shared.map(|other| other.model.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_is_told_the_time_that_those_before_take() {
        let told = |service_s: u64, queue_len, running| {
            let service_ns = service_s * 1_000_000_000;
            Snapshot { service_ns, queue_len, running, ..Snapshot::default() }.retry_after_s()
        };
        assert_eq!(told(0, 500, 4), 1, "nothing was measured yet");
        assert_eq!(told(2, 0, 0), 2);
        assert_eq!(told(2, 7, 4), 4);
        assert_eq!(told(2, usize::MAX, 1), limits::RETRY_AFTER_S_MAX);
    }
}
