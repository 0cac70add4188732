//! Starting a process in a group of its own, signalling the group, reading how it ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It left with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.signal(), status.code()) {
            (Some(signal), _) => Self::Signal(signal),
            (None, code) => Self::Code(code.unwrap_or(-1)),
        }
    }
}

/// A started process and the one pipe that its standard output and error share.
#[derive(Debug)]
pub struct Started {
    /// The process; killed when this is dropped.
    pub child: Child,
    /// Its process id, and that of its group.
    pub pid: u32,
    /// What it prints.
    pub printed: pipe::Receiver,
}

/// What a service manager tells the service alone: whoever has these could speak for it.
const MANAGER_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The one place where a child process begins. It is none of the service manager's business.
#[expect(clippy::disallowed_methods, reason = "everybody else comes here")]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in MANAGER_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// A program that this process is to become: no child, so nobody waits for it.
#[expect(clippy::disallowed_methods, reason = "everybody else comes here")]
pub fn image(program: &Path, arguments: &[OsString]) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    command
}

/// Starts this program as a server. It inherits the environment except variables that begin with `private_prefix`, and gets
/// `variables`.
///
/// # Errors
/// The system's.
pub fn start_serving(program: &Path, private_prefix: &str, variables: &[(&str, OsString)]) -> io::Result<Started> {
    let mut command = command(program);
    command.arg("serve");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(private_prefix)) {
        command.env_remove(name);
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    start(command)
}

/// Starts a process in its own group, without standard input.
///
/// # Errors
/// The system's.
pub fn start(mut command: Command) -> io::Result<Started> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    command.process_group(0).kill_on_drop(true);
    let child = command.spawn()?;
    // Our copies of the pipe's far end go with the command, so that its end is the process's end.
    drop(command);
    let pid = child.id().ok_or_else(|| io::Error::other("the process was reaped at once"))?;
    let printed = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    Ok(Started { child, pid, printed })
}

/// Starts a successor of ourselves with the same arguments: `socket` is its standard input, `line` its standard output.
/// It outlives us, and is the service that we are.
///
/// # Errors
/// The system's.
pub fn start_successor(
    program: &Path,
    socket: OwnedFd,
    line: OwnedFd,
    variables: &[(&str, &str)],
) -> io::Result<Child> {
    let mut command = command(program);
    let of_the_service = std::env::vars_os().filter(|(name, _)| MANAGER_VARIABLES.iter().any(|known| name == known));
    command.args(std::env::args_os().skip(1)).envs(of_the_service).envs(variables.iter().copied());
    command.stdin(Stdio::from(socket)).stdout(Stdio::from(line));
    command.spawn()
}

/// The name of the file that a process runs; `None` where there is no such process of ours.
#[cfg(target_os = "linux")]
pub async fn name_of(pid: i32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_str()?;
    // Of a file that was replaced (proc_pid_exe(5)).
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// The name of the program that a process runs; `None` where there is no such process.
#[cfg(not(target_os = "linux"))]
pub async fn name_of(pid: i32) -> Option<String> {
    let told = command(Path::new("/bin/ps")).args(["-o", "comm=", "-p", &pid.to_string()]).output().await.ok()?;
    let path = String::from_utf8(told.stdout).ok()?;
    Some(Path::new(path.trim_end()).file_name()?.to_str()?.to_owned())
}

/// Sends SIGTERM to a group; a group that is gone is fine.
pub fn terminate_group(pid: u32) {
    signal_group(pid, Signal::SIGTERM);
}

/// Sends SIGKILL to a group; a group that is gone is fine.
pub fn kill_group(pid: u32) {
    signal_group(pid, Signal::SIGKILL);
}

/// Sends SIGCONT to a group; a group that is gone is fine.
pub fn continue_group(pid: u32) {
    signal_group(pid, Signal::SIGCONT);
}

/// Whether a signal stopped the process and none has continued it. A debugger's stop is another thing.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    // The name before the state is in parentheses and may hold anything (proc_pid_stat(5)).
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Whether a signal stopped the process and none has continued it.
#[cfg(target_os = "macos")]
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    use libproc::bsd_info::BSDInfo;
    use libproc::proc_pid::pidinfo;
    /// `SSTOP` of `sys/proc.h`.
    const STOPPED: u32 = 4;
    let info = i32::try_from(pid).ok().and_then(|pid| pidinfo::<BSDInfo>(pid, 0).ok());
    info.is_some_and(|info| info.pbi_status == STOPPED)
}

fn signal_group(pid: u32, signal: Signal) {
    // 0 would be our own group and 1 everybody's.
    if let Ok(group) = i32::try_from(pid)
        && group > 1
    {
        let _gone = killpg(Pid::from_raw(group), signal);
    }
}
