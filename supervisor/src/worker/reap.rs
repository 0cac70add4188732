//! One task per process: passes signals on, reads what it prints, waits for its end.
//!
//! Signals go through the task that reaps, so that none is ever sent to a process id that is somebody else's by now.

use std::time::Duration;

use crate::limits::LAST_WORDS_MS;
use ollmlx_proto::WorkerId;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use super::link::Phase;
use super::log_book::{self, LogBook};
use super::log_tail::LogTail;
use super::{Report, Reported};
use crate::os::clock::Clock;
use crate::os::process::{self, Exit, Started};

/// A signal to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSignal {
    /// SIGTERM to the group.
    Terminate,
    /// SIGKILL to the group.
    Kill,
    /// SIGCONT to the group.
    Continue,
}

/// Signals waiting to be passed on.
pub const SIGNALS_LEN_MAX: usize = 8;

/// Runs until the process is reaped, then reports it. The link's own end is reported before. It is not reaped before `cgroup_made`
/// has ended, since its id is used until then.
pub async fn run(
    worker: WorkerId,
    started: Started,
    (mut signals, mut cgroup_made): (mpsc::Receiver<GroupSignal>, oneshot::Receiver<()>),
    mut link: watch::Receiver<Phase>,
    reports: mpsc::Sender<Reported>,
    clock: Clock,
    book: watch::Sender<LogBook>,
) {
    let Started { mut child, pid, mut printed } = started;
    let mut tail = LogTail::default();
    let (mut silent, mut is_placed) = (false, false);
    let exit = loop {
        tokio::select! {
            // All are cancel-safe.
            _ended = &mut cgroup_made, if !is_placed => is_placed = true,
            ended = child.wait(), if is_placed => break ended.map_or(Exit::Code(-1), Exit::from),
            more = read_some(&mut printed, &mut tail, &worker, clock, &book), if !silent => silent = !more,
            Some(signal) = signals.recv() => match signal {
                GroupSignal::Terminate => process::terminate_group(pid),
                GroupSignal::Kill => process::kill_group(pid),
                GroupSignal::Continue => process::continue_group(pid),
            },
        }
    };
    // Whatever it started goes as well. Its id can't be taken again this soon.
    process::kill_group(pid);
    let last_words = async {
        while !silent {
            silent = !read_some(&mut printed, &mut tail, &worker, clock, &book).await;
        }
        // An error means that there is no link any more.
        let _ended = link.wait_for(|phase| *phase != Phase::Open).await;
    };
    // Somebody else may hold the pipe open: then what is known must do.
    let _complete = tokio::time::timeout(Duration::from_millis(LAST_WORDS_MS), last_words).await;
    if tail.suppressed() > 0 {
        debug!(model = %worker.model, incarnation = worker.incarnation.0, lines = tail.suppressed(), "suppressed");
    }
    let _driver_gone = reports.send((worker, Report::Exited { exit, log_tail: tail.text() })).await;
}

/// Reads once; `false` at the end.
async fn read_some(
    printed: &mut pipe::Receiver,
    tail: &mut LogTail,
    worker: &WorkerId,
    clock: Clock,
    book: &watch::Sender<LogBook>,
) -> bool {
    let mut buffer = [0; 4096];
    match printed.read(&mut buffer).await {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            let now_ns = clock.now_ns();
            let lines = tail.push(&buffer[..count], now_ns);
            log_book::write(book, worker, &lines, now_ns);
            for line in lines {
                debug!(model = %worker.model, incarnation = worker.incarnation.0, line, "worker printed");
            }
            true
        }
    }
}
