//! `ollmlx upgrade`, and the server's side of it: a new program takes over the listening socket, the old one ends when
//! its requests have.
//!
//! The old server starts the program that lies at its own path now, with its own arguments, the socket as standard input
//! and a line between the two as standard output. The lock of the state folder comes through that line (see
//! [`super::claim`]), and the new one says `ready` there once it serves; only then does the old one stop to
//! accept. Both hold the same socket all the time, so a connection waits in its queue, and none is refused. A new
//! program that does not get that far is ended, and the old one goes on; what it says in the place of `ready` is told as
//! the reason, such as a line of the settings file that makes no sense. Until the old one has ended they divide the memory, see
//! [`super::estate`].
//!
//! Limit: the new server is another process. systemd is told which (see [`super::service`]) and follows it; launchd follows
//! only the process that it started, and when that ends it ends the new one as well, so there the service has to be
//! started anew. Models are loaded anew.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ollmlx_proto::limits::{LAST_WORDS_BYTES_MAX, UPGRADE_LINGER_MS, UPGRADE_READY_MS};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::args::UpgradeArgs;
use super::claim::Claim;
use super::client::Client;
use super::error::CliError;
use super::estate;
use super::output::{print, print_json};
use super::serve::Asked;
use crate::config::Sources;
use crate::os::{descriptor, process};

const READY: &str = "ready\n";

/// Why no successor took over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
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

/// What a server's process is called, if nobody renamed the program.
const NAME: &str = "ollmlx";

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
    pub(super) fn new(listener: &TcpListener, claim: Claim, held: watch::Receiver<u64>) -> Result<Self, CliError> {
        let system = |step| move |source| CliError::System { step, source };
        let program = std::env::current_exe().map_err(system("find the own program"))?;
        let socket = listener.as_fd().try_clone_to_owned().map_err(system("keep the socket"))?;
        Ok(Self { program, socket, claim, held })
    }

    /// Starts it and waits until it serves, or until `asked` says that this server is to leave; returns its process id.
    ///
    /// # Errors
    /// It does not serve; it is gone then.
    pub(super) async fn start(&self, asked: impl Future<Output = Option<Asked>>) -> Result<u32, UpgradeError> {
        let started = self.try_start(asked).await;
        if started.is_err() {
            // It may have written itself down before it failed.
            let claim = self.claim.clone();
            let _no_panic = tokio::task::spawn_blocking(move || claim.sign()).await;
        }
        started
    }

    async fn try_start(&self, asked: impl Future<Output = Option<Asked>>) -> Result<u32, UpgradeError> {
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
            // Ends with this server.
            tokio::spawn(estate::tell(tells, self.held.clone()));
            return child.id().ok_or_else(|| std::io::Error::other("it was reaped at once").into());
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

/// Takes the socket that a predecessor hands over as standard input.
///
/// # Errors
/// There is none.
pub fn inherit() -> Result<TcpListener, CliError> {
    let take = || {
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        // Nothing else is to see it there.
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    take().map_err(|source| CliError::System { step: "take the socket over", source })
}

/// Tells the predecessor that we serve.
pub fn say_ready() {
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
pub fn say_why(error: &CliError) {
    if Sources::from_process().inherits_socket() {
        let line = error.to_string().replace('\n', " ") + "\n";
        // Standard error has it as well.
        let _nobody_listens = std::io::stdout().write_all(line.as_bytes());
    }
}

/// Asks the running server, by signal, so that only its own user can.
///
/// # Errors
/// No server on this machine, or it could not be replaced.
pub async fn run(client: &Client, args: UpgradeArgs) -> Result<(), CliError> {
    // The signal goes to the process that the answer names, which means nothing on another machine.
    if !client.is_local() {
        let text = "the server is on another machine; run `ollmlx upgrade` there, or with OLLMLX_HOST at 127.0.0.1";
        return Err(CliError::Usage(text.to_owned()));
    }
    let before = client.get("/api/ollmlx/server").await?;
    let old = pid_of(&before)?;
    // A port that is forwarded looks local as well; another program would die of the signal.
    let own = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let name = process::name_of(old).await;
    if name.is_none() || (name.as_deref() != Some(NAME) && name != own) {
        let text = format!(
            "process {old}, which the server says it is, is no ollmlx on this machine; run `ollmlx upgrade` there"
        );
        return Err(CliError::Usage(text));
    }
    kill(Pid::from_raw(old), Signal::SIGUSR2)
        .map_err(|error| CliError::System { step: "signal the server", source: error.into() })?;
    // Its own deadline, and a little for the way.
    let rounds = UPGRADE_READY_MS / 100 + 50;
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(now) = client.get("/api/ollmlx/server").await else { continue };
        if pid_of(&now)? != old {
            let line = format!("upgraded: process {old} handed over to {}\n", now["pid"]);
            return if args.json { print_json(&now) } else { print(&line) };
        }
        if let Some(error) = now["upgrade_error"].as_str() {
            return Err(CliError::Usage(format!("the old server goes on: {error}")));
        }
    }
    Err(CliError::Usage("the server did not say what became of the upgrade; see its log".to_owned()))
}

fn pid_of(answer: &Value) -> Result<i32, CliError> {
    let pid = answer["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
    pid.ok_or(CliError::BadAnswer("it names no process"))
}
