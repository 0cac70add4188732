//! Starts a server as a child process, waits until it accepts, and makes sure that it is gone in the end.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// From its start until it accepted a connection.
    pub(crate) accepted_after: Duration,
}

impl Server {
    /// Runs `command`, which must be told to listen on `address`.
    pub(crate) async fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let program = command.get_program().to_owned();
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, address, accepted_after: Duration::ZERO };
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{} left with {status} before it accepted", program.display());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("{} did not accept within {START_TIMEOUT:?}", program.display());
            }
            tokio::time::sleep(POLL).await;
        }
        server.accepted_after = started.elapsed();
        Ok(server)
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Resident bytes of the process itself (Linux).
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        memory_field(self.child.id(), "VmRSS:")
    }

    /// Descriptors that the process itself has open (Linux).
    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// The most bytes that its largest child ever had resident (Linux).
    pub(crate) fn worker_peak_bytes(&self) -> Result<u64> {
        let parent = self.child.id().to_string();
        let mut largest = None;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Others come and go meanwhile.
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            let of_ours = status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent));
            if of_ours {
                largest = largest.max(memory_field(pid, "VmHWM:").ok());
            }
        }
        largest.context("the server has no child")
    }
}

/// A field of a process's status, in bytes.
fn memory_field(pid: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find(|line| line.starts_with(key)).with_context(|| format!("no {key} line"))?;
    let kib: u64 = line.split_whitespace().nth(1).with_context(|| format!("{key} without a value"))?.parse()?;
    Ok(kib * 1024)
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < STOP_TIMEOUT {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// `ollmlx serve` from `bin_dir`, with a home of its own.
pub(crate) fn ollmlx(bin_dir: &Path, home: &Path, address: SocketAddr, slots: usize, threads: usize) -> Command {
    let mut command = Command::new(bin_dir.join("ollmlx"));
    command
        .arg("serve")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("OLLAMA_HOST", address.to_string())
        .env("OLLAMA_MODELS", home.join("models"))
        .env("OLLMLX_STATE_DIR", home.join("state"))
        .env("OLLAMA_NUM_PARALLEL", slots.to_string())
        .env("OLLAMA_CONTEXT_LENGTH", CONTEXT_TOKENS.to_string())
        .env("OLLMLX_THREADS", threads.to_string());
    command
}

/// `llama-server` with as many slots and as much context each.
pub(crate) fn llama_server(program: &Path, model: &Path, address: SocketAddr, slots: usize, threads: usize) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--model")
        .arg(model)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--parallel", &slots.to_string()])
        .args(["--ctx-size", &(slots * CONTEXT_TOKENS).to_string()])
        .args(["--threads", &threads.to_string(), "--threads-batch", &threads.to_string()]);
    command
}

/// `mlx_lm.server` of this Python; it batches by itself.
pub(crate) fn mlx_lm_server(python: &Path, model: &Path, address: SocketAddr, threads: usize) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "mlx_lm", "server", "--model"])
        .arg(model)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .env("HF_HUB_OFFLINE", "1")
        .env("OPENBLAS_NUM_THREADS", threads.to_string());
    command
}

/// Window of one slot.
pub(crate) const CONTEXT_TOKENS: usize = 2048;
