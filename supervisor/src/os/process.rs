//! Process groups and exit statuses.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::scheduler::Cause;

/// Sends a signal to the whole group of `pid`, which must be a group leader that we started and have not reaped. A group
/// that is gone is fine.
pub fn signal_group(pid: u32, signal: Signal) {
    // 0 would be our own group, 1 is init: neither is ever a worker.
    let Some(pid) = i32::try_from(pid).ok().filter(|&pid| pid > 1) else { return };
    if let Err(error) = killpg(Pid::from_raw(pid), signal)
        && error != nix::errno::Errno::ESRCH
    {
        tracing::warn!(pid, %signal, %error, "a worker's process group could not be signalled");
    }
}

/// What an exit status says.
#[must_use]
pub fn cause_of(status: ExitStatus) -> Cause {
    match (status.code(), status.signal()) {
        (Some(code), _) => Cause::Exited { code },
        (None, Some(signal)) => Cause::Signalled { signal },
        (None, None) => Cause::Exited { code: -1 },
    }
}
