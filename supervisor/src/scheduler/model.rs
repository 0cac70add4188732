//! What the scheduler knows of one model: its worker's state, its queue, its past.

use std::collections::{BTreeMap, VecDeque};

use ollmlx_proto::{Failure, FailureKind, Incarnation, ModelId, Ready, RequestId, WorkerId};

use super::backoff::DeathTally;
use super::event::{Cause, Job, KeepAlive, LoadPlan, Mono};
use super::lifecycle::State;

/// A request that waits for its model.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    pub(super) job: Job,
    pub(super) plan: LoadPlan,
    pub(super) deadline: Mono,
}

/// One model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) state: State,
    pub(super) incarnation: Incarnation,
    /// How it is loaded, or how it will be.
    pub(super) plan: LoadPlan,
    pub(super) queue: VecDeque<Waiting>,
    /// Requests the worker has, and whether their clients are still there.
    pub(super) running: BTreeMap<RequestId, bool>,
    pub(super) keep_alive: KeepAlive,
    pub(super) unload_asked: bool,
    pub(super) ready: Option<Ready>,
    /// Why the process is on its way out, if we decided that.
    pub(super) ending: Option<Cause>,
    pub(super) tally: DeathTally,
    /// Loads that failed in a row.
    pub(super) load_failures: u32,
    pub(super) restarts: u32,
    pub(super) last_death: Option<String>,
    pub(super) used_at: Mono,
    pub(super) sampled_bytes: u64,
}

impl Model {
    pub(super) fn new(plan: LoadPlan, keep_alive: KeepAlive, now: Mono) -> Self {
        Self {
            state: State::Absent,
            incarnation: Incarnation(0),
            plan,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            keep_alive,
            unload_asked: false,
            ready: None,
            ending: None,
            tally: DeathTally::default(),
            load_failures: 0,
            restarts: 0,
            last_death: None,
            used_at: now,
            sampled_bytes: 0,
        }
    }

    pub(super) fn worker(&self, id: &ModelId) -> WorkerId {
        WorkerId { model: id.clone(), incarnation: self.incarnation }
    }

    pub(super) fn slots(&self) -> usize {
        self.ready.as_ref().map_or(0, |ready| usize::from(ready.slots.max(1)))
    }

    /// When it leaves, counted from `now`.
    pub(super) fn expires_at(&self, now: Mono) -> Option<Mono> {
        match self.keep_alive {
            KeepAlive::ForMs(ms) => Some(now.plus_ms(ms)),
            KeepAlive::Forever => None,
            KeepAlive::Unload => Some(now),
        }
    }

    /// Whether `plan` can be served by what is loaded. A smaller window can: the request itself carries its window.
    pub(super) fn serves(&self, plan: &LoadPlan) -> bool {
        let loaded = &self.plan.spec;
        let wanted = &plan.spec;
        wanted.context_tokens <= loaded.context_tokens
            && wanted.adapters == loaded.adapters
            && wanted.embedding == loaded.embedding
            && wanted.weights == loaded.weights
    }
}

/// A cause in words, for clients and listings.
pub(super) fn words(cause: &Cause) -> String {
    match cause {
        Cause::Asked => "asked to leave".to_owned(),
        Cause::Exited { code } => format!("left with status {code}"),
        Cause::Signalled { signal } => format!("killed by {}", signal_name(*signal)),
        Cause::NoHello => "did not report after its start".to_owned(),
        Cause::HelloRefused(reason) => format!("was refused: {reason}"),
        Cause::LoadStalled => "its load made no progress".to_owned(),
        Cause::LoadFailed(failure) => failure.public.clone(),
        Cause::Silent => "fell silent while it had work".to_owned(),
        Cause::Protocol(reason) => format!("broke the protocol: {reason}"),
        Cause::LinkLost => "closed its connection".to_owned(),
        Cause::SpawnFailed(reason) => format!("could not be started: {reason}"),
        Cause::OverBudget => "took more memory than it may".to_owned(),
    }
}

/// The usual signals' names; numbers are those of Linux and macOS, where they agree.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// What a client whose request was running is told. Ollama's words, then the cause.
pub(super) fn death_failure(cause: &Cause, log_line: &str) -> Failure {
    let (kind, text) = match cause {
        Cause::Silent => (FailureKind::WorkerHung, "the model stopped responding and was restarted; try again"),
        _ => (
            FailureKind::WorkerDied,
            "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check \
             ollama server logs for details",
        ),
    };
    let mut public = format!("{text}: {}", words(cause));
    if !log_line.is_empty() {
        public.push_str(": ");
        public.push_str(log_line);
    }
    Failure::new(kind, public)
}

/// What a client that waited for a load is told.
pub(super) fn load_failure(cause: &Cause, log_line: &str) -> Failure {
    match cause {
        Cause::LoadFailed(failure) => failure.clone(),
        Cause::LoadStalled => Failure::new(
            FailureKind::LoadStalled,
            "timed out waiting for the model to load: it made no progress; raise OLLAMA_LOAD_TIMEOUT if its disk is slow",
        ),
        other => {
            let mut public = format!("the model's worker {} while it loaded", words(other));
            if !log_line.is_empty() {
                public.push_str(": ");
                public.push_str(log_line);
            }
            Failure::new(FailureKind::LoadFailed, public)
        }
    }
}
