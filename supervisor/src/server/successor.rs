//! The upgrade of a running server: a new program takes over the listening socket, the old one ends when its requests
//! have.
//!
//! The old server starts the program that lies at its own path now, with its own arguments, the socket as standard input
//! and a line between the two as standard output. The lock of the state folder comes through that line (see
//! [`super::claim`]), and the new one says `ready` there once it serves; only then does the old one stop to
//! accept. Both hold the same socket all the time, so a connection waits in its queue, and none is refused. A new
//! program that does not get that far is ended, and the old one goes on; what it says in the place of `ready` is told as
//! the reason, such as a line of the settings file that makes no sense. Until the old one has ended they divide the memory, see
//! [`super::handover`].
//!
//! Limit: the new server is another process. systemd is told which (see [`super::service`]) and follows it; launchd follows
//! only the process that it started, and when that ends it ends the new one as well, so there the service has to be
//! started anew. Models are loaded anew.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::{LAST_WORDS_BYTES_MAX, UPGRADE_LINGER_MS, UPGRADE_READY_MS};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

use super::claim::Claim;
use super::error::ServerError;
use super::handover::READY;
use crate::os::signal::Asked;
use crate::os::{descriptor, process, trusted_program};

/// Why no successor took over.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    /// It could not be started.
    #[error("the new program could not be started: {0}")]
    Start(#[from] std::io::Error),
    /// It ended first.
    #[error("the new server ended before it served ({0}); its reason is in the log")]
    Ended(std::process::ExitStatus),
    /// It said why.
    #[error("the new server did not start: {0}")]
    Refused(String),
    /// This server was asked to leave meanwhile.
    #[error("the server was asked to leave before the new one served")]
    Left,
    /// It said nothing.
    #[error("the new server was not ready within {} s", UPGRADE_READY_MS / 1000)]
    Late,
}

/// A successor that serves.
#[derive(Debug)]
pub(super) struct Takeover {
    /// Its process.
    pub(super) pid: u32,
    /// Where it is told what this server holds of the memory.
    pub(super) line: OwnedWriteHalf,
    /// That.
    pub(super) held: watch::Receiver<u64>,
}

/// How to start a successor.
#[derive(Debug)]
pub(super) struct Successor {
    program: PathBuf,
    socket: OwnedFd,
    claim: Claim,
    /// What this server holds of the memory.
    held: watch::Receiver<u64>,
}

impl Successor {
    /// Remembers the own path before anybody replaces the file.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(listener: &TcpListener, claim: Claim, held: watch::Receiver<u64>) -> Result<Self, ServerError> {
        let system = |step| move |source| ServerError::System { step, source };
        let program = std::env::current_exe().map_err(system("find the own program"))?;
        let socket = listener.as_fd().try_clone_to_owned().map_err(system("keep the socket"))?;
        Ok(Self { program, socket, claim, held })
    }

    /// Starts it and waits until it serves, or until `asked` says that this server is to leave.
    ///
    /// # Errors
    /// It does not serve; it is gone then.
    pub(super) async fn start(&self, asked: impl Future<Output = Option<Asked>>) -> Result<Takeover, UpgradeError> {
        let started = self.try_start(asked).await;
        if started.is_err() {
            // It may have written itself down before it failed.
            let claim = self.claim.clone();
            let _no_panic = tokio::task::spawn_blocking(move || claim.sign()).await;
        }
        started
    }

    async fn try_start(&self, asked: impl Future<Output = Option<Asked>>) -> Result<Takeover, UpgradeError> {
        trusted_program::check_successor(&self.program)?;
        let (ours, theirs) = UnixStream::pair()?;
        let lock = self.claim.descriptor();
        if let Some(lock) = lock {
            descriptor::send(&ours, lock)?;
        }
        ours.set_nonblocking(true)?;
        let (said, tells) = tokio::net::UnixStream::from_std(ours)?.into_split();
        let variables = [("OLLMLX_LISTEN_FD", "0"), ("OLLMLX_LOCK_FD", if lock.is_some() { "1" } else { "" })];
        let socket = self.socket.try_clone()?;
        let mut child = process::start_successor(&self.program, socket, theirs.into(), &variables)?;
        let mut said = BufReader::new(said.take(LAST_WORDS_BYTES_MAX));
        let mut word = String::new();
        let patience = Duration::from_millis(UPGRADE_READY_MS);
        let heard = tokio::select! {
            // One that serves already is not ended.
            biased;
            heard = tokio::time::timeout(patience, said.read_line(&mut word)) => heard,
            _ = asked => {
                child.kill().await?;
                return Err(UpgradeError::Left);
            }
        };
        if matches!(heard, Ok(Ok(_))) && word == READY {
            let pid = child.id().ok_or_else(|| std::io::Error::other("it was reaped at once"))?;
            return Ok(Takeover { pid, line: tells, held: self.held.clone() });
        }
        if heard.is_err() {
            child.kill().await?;
            return Err(UpgradeError::Late);
        }
        let linger = Duration::from_millis(UPGRADE_LINGER_MS);
        let status = match tokio::time::timeout(linger, child.wait()).await {
            Ok(status) => status?,
            Err(_) => {
                child.kill().await?;
                child.wait().await?
            }
        };
        match word.trim() {
            "" => Err(UpgradeError::Ended(status)),
            reason => Err(UpgradeError::Refused(reason.to_owned())),
        }
    }
}
