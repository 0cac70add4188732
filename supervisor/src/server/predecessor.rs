//! What a server does that another one started to take its place: it takes the socket over, and says on the line between
//! the two that it serves, or why it doesn't (see [`super::successor`] for the other end).

use std::fmt::Display;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use tokio::net::TcpListener;

use super::error::ServerError;
use super::handover::READY;
use crate::config::Sources;

/// Takes the socket that a predecessor hands over as standard input.
///
/// # Errors
/// There is none.
pub(super) fn inherit() -> Result<TcpListener, ServerError> {
    let take = || {
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        // Nothing else is to see it there.
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    take().map_err(|source| ServerError::System { step: "take the socket over", source })
}

/// Tells the predecessor that we serve.
pub(super) fn say_ready() {
    let said = std::io::stdout().write_all(READY.as_bytes()).and_then(|()| std::io::stdout().flush());
    if let Err(error) = said {
        tracing::warn!(%error, "the old server did not hear that this one serves");
    }
    // The line's far end goes with the predecessor.
    if let Err(error) = nix::unistd::dup2_stdout(std::io::stderr()) {
        tracing::warn!(%error, "standard output stays a line to nobody");
    }
}

/// Tells the predecessor, if there is one, why this server does not start. Once it serves nobody listens any more.
pub fn say_why(error: &impl Display) {
    if Sources::from_process().inherits_socket() {
        let line = error.to_string().replace('\n', " ") + "\n";
        // Standard error has it as well.
        let _nobody_listens = std::io::stdout().write_all(line.as_bytes());
    }
}
