//! The signals that a server listens to.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP: each asks the server to leave.
#[derive(Debug)]
pub struct Leave {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Leave {
    /// Starts to listen; from here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and names it. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
