//! Starts a worker in its own process group and watches over its output and its end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ollmlx_proto::WorkerId;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::log_tail::LogTail;
use crate::catalog::Backend;
use crate::os::process::cause_of;
use crate::scheduler::Cause;

/// A grandchild may hold the pipes open after the worker is gone; its output is waited for this long.
const PIPE_GRACE: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 8192;

/// What a worker is told by its environment.
#[derive(Debug)]
pub struct Summons<'a> {
    /// Who it is to be.
    pub worker: &'a WorkerId,
    /// Which binary.
    pub backend: Backend,
    /// Folder of the binaries.
    pub worker_dir: &'a Path,
    /// Where to dial.
    pub socket: &'a Path,
    /// What to say there.
    pub token: &'a [u8; 32],
}

/// A started process, to be reaped by [`Started::reap`].
#[derive(Debug)]
pub struct Started {
    /// Its process id, which is its group as well.
    pub pid: u32,
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

/// Path of a backend's binary.
#[must_use]
pub fn binary(worker_dir: &Path, backend: Backend) -> PathBuf {
    worker_dir.join(match backend {
        Backend::Gguf => "ollmlx-worker-gguf",
        Backend::Mlx => "ollmlx-worker-mlx",
    })
}

/// Starts a worker.
///
/// # Errors
/// The binary is missing or the system has no room; the text names the path.
pub fn start(summons: &Summons<'_>) -> io::Result<Started> {
    let path = binary(summons.worker_dir, summons.backend);
    let token: String = summons.token.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut child = command(&path)
        .env("OLLMLX_SOCKET", summons.socket)
        .env("OLLMLX_TOKEN", token)
        .env("OLLMLX_MODEL", &summons.worker.model.0)
        .env("OLLMLX_INCARNATION", summons.worker.incarnation.0.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let pid = child.id().ok_or_else(|| io::Error::other("the process ended before it began"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    Ok(Started { pid, child, stdout, stderr })
}

fn command(path: &Path) -> Command {
    Command::new(path)
}

impl Started {
    /// Reads its output and waits for its end. Returns how it ended and its last lines.
    pub async fn reap(mut self, worker: WorkerId) -> (Cause, String) {
        let mut tail = LogTail::default();
        let (mut out, mut err) = (self.stdout.take(), self.stderr.take());
        let (mut out_bytes, mut err_bytes) = ([0; READ_BYTES], [0; READ_BYTES]);
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                count = read(&mut out, &mut out_bytes) => note(&mut tail, &worker, &mut out, &out_bytes[..count]),
                count = read(&mut err, &mut err_bytes) => note(&mut tail, &worker, &mut err, &err_bytes[..count]),
            }
        };
        let rest = async {
            while out.is_some() || err.is_some() {
                tokio::select! {
                    count = read(&mut out, &mut out_bytes) => note(&mut tail, &worker, &mut out, &out_bytes[..count]),
                    count = read(&mut err, &mut err_bytes) => note(&mut tail, &worker, &mut err, &err_bytes[..count]),
                }
            }
        };
        let _ = tokio::time::timeout(PIPE_GRACE, rest).await;
        // Whatever it started dies with it.
        crate::os::process::signal_group(self.pid, nix::sys::signal::Signal::SIGKILL);
        let cause = match status {
            Ok(status) => cause_of(status),
            Err(error) => {
                tracing::error!(%worker, %error, "a worker could not be waited for");
                Cause::Exited { code: -1 }
            }
        };
        (cause, tail.finish())
    }
}

/// Reads some; a closed pipe never answers again.
async fn read<R: AsyncRead + Unpin>(pipe: &mut Option<R>, bytes: &mut [u8]) -> usize {
    match pipe {
        Some(open) => open.read(bytes).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn note<R>(tail: &mut LogTail, worker: &WorkerId, pipe: &mut Option<R>, bytes: &[u8]) {
    if bytes.is_empty() {
        *pipe = None;
        return;
    }
    for line in tail.push(bytes) {
        tracing::debug!(model = %worker.model, incarnation = worker.incarnation.0, line, "a worker said");
    }
}
