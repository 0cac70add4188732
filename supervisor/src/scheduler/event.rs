//! Everything the scheduler is told. Each message from the shell that concerns a process names its incarnation.

use ollmlx_proto::{Failure, MemoryReport, ModelId, RequestId, WorkerId};

use crate::types::{Caller, Cause, Job, KeepAlive, LoadPlan};

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
        /// Who asks.
        client: Caller,
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
    /// A request that came back after a death has produced [`crate::limits::PROBATION_TOKENS`] tokens more.
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
