//! The signals that ask a process to leave, and what it was started to ignore.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal to leave comes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A person or a service manager.
    BySomebody,
    /// The end of the terminal.
    ByHangUp,
}

/// The signals that ask a program to leave.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone. `None` where that is to be ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Subscribes; from then on they don't end the process by themselves.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: (!ignores_hang_up()).then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// The next one that asks the server to leave; `None` when there can be no more. Cancel-safe.
    pub async fn asked(&mut self) -> Option<Asked> {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = self.interrupt.recv() => heard.map(|()| Asked::BySomebody),
            heard = self.terminate.recv() => heard.map(|()| Asked::BySomebody),
            heard = hang_up => heard.map(|()| Asked::ByHangUp),
        }
    }
}

/// SIGUSR2, which asks a server for a successor.
///
/// # Errors
/// The system refuses.
pub fn upgrades() -> io::Result<Signal> {
    signal(SignalKind::user_defined2())
}

/// Whether SIGHUP was ignored before the program began, as by `nohup`: it is to outlive its terminal then.
#[cfg(target_os = "linux")]
#[must_use]
pub fn ignores_hang_up() -> bool {
    // A hexadecimal mask, the first signal its lowest bit (proc_pid_status(5)).
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (nix::sys::signal::Signal::SIGHUP as u32 - 1)) != 0)
}

/// The same as far as it can be told: `nohup` leaves standard error on no terminal, and without a terminal nobody hangs up.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn ignores_hang_up() -> bool {
    use std::io::IsTerminal as _;
    !std::io::stderr().is_terminal()
}
