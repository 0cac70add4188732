//! The shell around a worker process: its socket, its start, its frames, its end. What to do about any of it is decided
//! elsewhere; this module reports.
//!
//! | file | |
//! |---|---|
//! | `socket` | the local socket, and who may dial in |
//! | `spawn` | command, group, environment |
//! | `link` | frames in and out; outputs to the request they belong to |
//! | `sink` | one request's way to its client, which may be slow |
//! | `reap` | waits for the end, passes signals on |
//! | `log_book` | what all of them printed, for who asks |
//! | `log_tail` | the last of what it printed |

pub mod link;
pub mod log_book;
pub mod log_tail;
pub mod reap;
pub mod sink;
pub mod socket;
pub mod spawn;

use ollmlx_proto::{Failure, MemoryReport, Ready, RequestId, ToWorker, WorkerId};

use crate::os::process::Exit;
use sink::Summary;

/// What the shell of a worker reports.
#[derive(Debug)]
pub enum Report {
    /// It lives in a control group of its own now, or can't.
    CgroupMade(std::io::Result<crate::os::worker_cgroup::WorkerCgroup>),
    /// The files of its model are those that were planned for; it may be told this.
    Unchanged(ToWorker),
    /// The load goes on.
    LoadProgress {
        /// Done.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// The load is done.
    Ready(Ready),
    /// The load failed.
    LoadFailed(Failure),
    /// Its own count of its memory.
    Memory(MemoryReport),
    /// Its engine lives; at most once an interval.
    Heard,
    /// A request ended on the worker's side.
    Ended {
        /// Which.
        request: RequestId,
        /// How.
        summary: Summary,
    },
    /// A request's client reads too slowly; it has been told and is to be cancelled.
    TooSlow(RequestId),
    /// A request's client reads slowly, and its worker has been told to wait for it.
    Paused(RequestId),
    /// A request could not be put into a frame; its client has been told.
    Unsendable(RequestId),
    /// A request that came back has got its first token of the present worker.
    Gained(RequestId),
    /// A request that came back has got past the place where its last worker died.
    Cleared(RequestId),
    /// Answer to [`link::LinkCommand::Park`].
    Parked {
        /// Which.
        request: RequestId,
        /// The way to its client; `None` where that is gone or has heard its end.
        sink: Option<Box<sink::ClientSink>>,
    },
    /// It broke the protocol; nothing more is read from it.
    Misbehaved(String),
    /// Its engine failed several requests in a row; nothing more is read from it.
    Unhealthy,
    /// The socket closed.
    LinkClosed,
    /// It is reaped.
    Exited {
        /// How.
        exit: Exit,
        /// The last of what it printed.
        log_tail: String,
    },
}

/// A report and whom it is about.
pub type Reported = (WorkerId, Report);
