//! The launcher's own part: dial, wall in, become the worker.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

#[cfg(target_os = "linux")]
use super::linux as system;
#[cfg(not(target_os = "linux"))]
use super::macos as system;
use super::terms::{Launch, Policy};
use crate::limits::MODEL_LINKS_MAX;
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

    fn walled(mut self, program: &Path) -> io::Result<Command> {
        // A dump would hold what others have asked.
        limit(Resource::Core, 0)?;
        // Not a byte of any file.
        limit(Resource::Fsize, 0)?;
        if let Some(bytes) = self.data_bytes_max {
            limit(Resource::Data, bytes)?;
        }
        let links: Vec<PathBuf> = self.read.iter().flat_map(|path| linked(path)).collect();
        self.read.extend(links);
        let missing = system::wall_in(&self, program);
        if self.policy == Policy::Require && !missing.is_empty() {
            let text = format!("worker_sandbox is \"require\" and this system lacks {}", missing.join("; "));
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(system::command(&self, program))
    }
}

/// Sets both limits, so that nobody raises it again.
fn limit(resource: Resource, bytes: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
}

/// Files that links in a model's folder lead to. That they may be followed was seen to by whoever found the folder.
fn linked(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders, mut seen) = (Vec::new(), vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            match entry.file_type() {
                _ if seen > MODEL_LINKS_MAX => return found,
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_symlink() => {
                    found.extend(entry.path().canonicalize().ok().filter(|path| path.is_file()));
                }
                _ => {}
            }
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_a_folder_are_followed_to_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (model, blobs) = (folder.path().join("model"), folder.path().join("blobs"));
        for made in [&model, &blobs] {
            std::fs::create_dir(made).unwrap();
        }
        std::fs::write(blobs.join("weights"), "w").unwrap();
        std::fs::create_dir(model.join("deep")).unwrap();
        for (name, to) in [("deep/a.safetensors", "../../blobs/weights"), ("up", ".."), ("gone", "../nothing")] {
            std::os::unix::fs::symlink(to, model.join(name)).unwrap();
        }
        assert_eq!(linked(&model), [blobs.join("weights").canonicalize().unwrap()]);
        assert!(linked(&blobs.join("weights")).is_empty() && linked(&folder.path().join("nothing")).is_empty());
    }
}
