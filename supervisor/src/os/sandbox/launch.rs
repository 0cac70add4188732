//! The launcher's own part: dial, wall in, become the worker.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[cfg(target_os = "linux")]
use super::linux as system;
#[cfg(not(target_os = "linux"))]
use super::macos as system;
use super::terms::{Launch, Policy};
use crate::os::process;

impl Launch {
    /// Becomes the program. Returns only where that failed.
    ///
    /// # Errors
    /// The socket can't be dialled, a wall that is required can't be put up, or the program can't be started.
    pub fn run(self) -> io::Result<Infallible> {
        let program = self.program.canonicalize().map_err(|error| at(&self.program, &error))?;
        if let Some(socket) = &self.socket {
            let stream = UnixStream::connect(socket).map_err(|error| at(socket, &error))?;
            rustix::stdio::dup2_stdin(&stream)?;
        }
        // Ours are closed by `exec` anyway; whoever started the server may have left others open.
        close_fds::CloseFdsBuilder::new().cloexecfrom(3);
        let command = match self.policy {
            Policy::Off => process::image(&program, &self.arguments),
            Policy::Auto | Policy::Require => self.walled(&program)?,
        };
        become_it(command, &program)
    }

    fn walled(self, program: &Path) -> io::Result<Command> {
        // A dump would hold what others have asked.
        limit(Resource::Core, 0)?;
        // Not a byte of any file.
        limit(Resource::Fsize, 0)?;
        if let Some(bytes) = self.data_bytes_max {
            limit(Resource::Data, bytes)?;
        }
        let missing = system::wall_in(&self, program);
        if self.policy == Policy::Require && !missing.is_empty() {
            let text = format!("worker_sandbox is \"require\" and this system lacks {}", missing.join("; "));
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(system::command(&self, program))
    }
}

/// Sets both limits, so that nobody raises it again. A lower one that is there stays.
fn limit(resource: Resource, bytes: u64) -> io::Result<()> {
    let bytes = getrlimit(resource).maximum.map_or(bytes, |there| there.min(bytes));
    Ok(setrlimit(resource, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
}

fn become_it(mut command: Command, program: &Path) -> io::Result<Infallible> {
    let error = command.exec();
    let hint = "; only programs of the machine's own format can be walled in, a script needs worker_sandbox \"off\"";
    let hint = if error.kind() == io::ErrorKind::PermissionDenied { hint } else { "" };
    Err(io::Error::new(error.kind(), format!("{}: {error}{hint}", program.display())))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
