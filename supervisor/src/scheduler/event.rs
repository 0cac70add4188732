//! Everything the scheduler is told. Each message from the shell that concerns a process names its incarnation.

use std::sync::Arc;

use ollmlx_proto::{Failure, MemoryReport, ModelId, Request, RequestId, WorkerId};

use crate::catalog::{Correction, ModelRef};

/// Nanoseconds since the supervisor started: the only time the core sees. Unlike `std::time::Instant` it can be
/// written down, so that a log of `(Mono, Event)` is a reproducer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// This much later.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to here; 0 where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How long a model stays after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This many milliseconds.
    ForMs(u64),
    /// Until it must make room or the server ends.
    Forever,
    /// Not at all.
    Unload,
}

/// How a model is to be loaded, and what that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadPlan {
    /// The model.
    pub model: Arc<ModelRef>,
    /// What the worker is told.
    pub spec: ollmlx_proto::LoadSpec,
    /// Estimated bytes.
    pub memory: MemoryReport,
    /// What else decides over its room.
    pub terms: Terms,
}

/// What decides, beside the estimate, over a model's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What earlier processes took above their estimate.
    pub learned: Correction,
    /// Bytes that this model may take, where it has a limit of its own; held while its process lives, see `own_limit`.
    pub limit: Option<u64>,
    /// Models of a lower one make room first.
    pub priority: i32,
    /// Window that the request can't do without, in tokens; at most the plan's.
    pub context_least: u32,
    /// Whether slots or window are smaller than was asked for.
    pub shrunk: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { learned: Correction::default(), limit: None, priority: 0, context_least: u32::MAX, shrunk: false }
    }
}

/// What may be given up for a model that doesn't fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shrink {
    /// Nothing: it is refused.
    #[default]
    Nothing,
    /// Slots: fewer requests at once.
    Slots,
    /// Slots, then the window, down to what the request needs.
    Context,
}

/// What a client wants of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// That it is loaded.
    Load,
    /// That it answers.
    Run(Box<Request>),
}

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We asked for it, and it went.
    Asked,
    /// It left with this status without being asked.
    Exited {
        /// Exit status.
        code: i32,
    },
    /// A signal killed it, not ours.
    Signalled {
        /// Number and name, such as `11 SIGSEGV`.
        signal: i32,
    },
    /// It never said hello.
    NoHello,
    /// Its hello was refused.
    HelloRefused(String),
    /// Its load made no progress.
    LoadStalled,
    /// Its load failed, in its own words.
    LoadFailed(Failure),
    /// It was silent while it had work.
    Silent,
    /// It broke the protocol.
    Protocol(String),
    /// Its engine failed one request after the other.
    Unhealthy,
    /// It closed the link without being asked.
    LinkLost,
    /// The process could not be started.
    SpawnFailed(String),
    /// It took more memory than there is.
    OverBudget,
    /// It took more memory than its model's own limit allows.
    OverOwnLimit {
        /// Bytes it took.
        took: u64,
        /// Bytes it may take.
        limit: u64,
    },
    /// It kept much more than it may while it had nothing to do.
    Leaked,
    /// The system killed it, since memory ran out: the machine's, or what its control group may take.
    OutOfMemory,
    /// It took more than the whole limit, or its model's own, before it could answer anything.
    TooLarge {
        /// Bytes it took.
        need: u64,
        /// Bytes there are; `u64::MAX` is no limit.
        limit: u64,
        /// Bytes that its model may take, likewise.
        own: u64,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A client's job passed the door.
    Arrived {
        /// Its id.
        request: RequestId,
        /// What for.
        job: Job,
        /// How to load the model if it isn't there.
        plan: Box<LoadPlan>,
        /// `None` where the client said nothing: the last one said for this worker, or the default, holds.
        keep_alive: Option<KeepAlive>,
    },
    /// The client is gone (its ticket was dropped).
    Left {
        /// Whose.
        request: RequestId,
    },
    /// `stop`, or `keep_alive: 0` without work: unload as soon as nothing runs.
    Unload {
        /// Which.
        model: ModelId,
    },
    /// The model's files changed or a person asked: forget its deaths.
    Pardoned {
        /// Which.
        model: ModelId,
    },
    /// A person asked for a new process: forget the deaths, end backoff and quarantine, and let a living process
    /// finish what it runs and go. The next request, or one that waits, starts the new one.
    Restart {
        /// Which.
        model: ModelId,
    },
    /// Answer to [`super::Effect::Spawn`].
    Spawned {
        /// Which.
        worker: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// Answer to [`super::Effect::Spawn`].
    SpawnFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// It dialled in and its hello was good.
    Hello {
        /// Which.
        worker: WorkerId,
    },
    /// It dialled in and its hello was not good; or it broke the protocol later.
    Misbehaved {
        /// Which.
        worker: WorkerId,
        /// `HelloRefused` or `Protocol`.
        cause: Cause,
    },
    /// Its load goes on.
    LoadProgress {
        /// Which.
        worker: WorkerId,
        /// Done.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// Its load is done.
    Ready {
        /// Which.
        worker: WorkerId,
        /// What it says.
        ready: ollmlx_proto::Ready,
    },
    /// Its load failed.
    LoadFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        failure: Failure,
    },
    /// Sign of life of its engine thread; at most once a second.
    Heard {
        /// Which.
        worker: WorkerId,
    },
    /// The worker confirmed the end of a request: its slot is free.
    Ended {
        /// Which.
        worker: WorkerId,
        /// Whose.
        request: RequestId,
    },
    /// A request that came back after a death has produced [`ollmlx_proto::limits::PROBATION_TOKENS`] tokens more.
    Cleared {
        /// Where.
        worker: WorkerId,
        /// Which.
        request: RequestId,
    },
    /// A request that came back after a death has produced a token.
    Gained {
        /// Where.
        worker: WorkerId,
        /// Which.
        request: RequestId,
    },
    /// The socket closed.
    LinkClosed {
        /// Which.
        worker: WorkerId,
    },
    /// The process is reaped.
    Exited {
        /// Which.
        worker: WorkerId,
        /// Exit status or signal: `Exited` or `Signalled`.
        cause: Cause,
        /// Last lines of its standard error.
        log_tail: String,
    },
    /// Its own word came, after the one with which it was ready.
    MemoryReported {
        /// Which.
        worker: WorkerId,
        /// What it says.
        memory: MemoryReport,
    },
    /// As the system counts; where that sees only a part, its own word, if that is larger.
    MemorySampled {
        /// Which.
        worker: WorkerId,
        /// Resident bytes.
        bytes: u64,
    },
    /// How long the processes of the machine wait for memory.
    PressureSampled {
        /// Of the time.
        permille: u16,
    },
    /// Somebody stopped the process (SIGSTOP), and it has not been continued.
    Stopped {
        /// Which.
        worker: WorkerId,
    },
    /// The time [`super::Scheduler::next_deadline`] named has come. The only timer event.
    DeadlineElapsed,
    /// A successor serves. Those that are here are served to their end, and no model stays for others.
    Replaced,
    /// What the server that this one replaces still holds, or may come to hold.
    ElsewhereHeld {
        /// Bytes.
        bytes: u64,
    },
    /// The server is to leave: nothing new, running requests may end.
    ShutdownAsked,
    /// The server is to leave now.
    ShutdownForced,
}
