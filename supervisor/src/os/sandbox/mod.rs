//! Walls around a process of ours that reads what strangers made: it may compute and nothing else.
//!
//! ```text
//! server ── starts ─► ollmlx launch … ── becomes ─► worker
//!                     dials the server's socket     has it as its standard input
//!                     walls itself in               can't get out, nor can what it runs
//! ```
//!
//! The walls are those of the system (`linux`, `macos`) and hold across `exec`, so the launcher, which is this same program and
//! still harmless, puts them up around itself and then becomes the worker: its process id stays. A child could not do so
//! between `fork` and `exec` without `unsafe`.
//!
//! What a worker needs of the system is found out by the server, once for a program ([`libraries`]); the launcher is told.
//!
//! Decision: the user stays. Engines open their files by path, so another user could not read models that are ours alone. What
//! root can do beyond other users goes with the capabilities.

mod environment;
mod launch;
mod libraries;
mod links;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod macos;
mod terms;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::process::Command;

#[cfg(not(target_os = "linux"))]
use self::macos as system;
#[cfg(target_os = "linux")]
use linux as system;

pub use terms::{Launch, Policy, Walls};

use super::process;

/// The program that runs, whatever lies at its path by now.
const RUNNING: &str = "/proc/self/exe";
/// Tells a worker that it is walled in, and what is asked of the last wall, which it puts up itself.
const TOLD: &str = "OLLMLX_SANDBOX";

/// What one process may do beside computing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files and folders that it may read: those of its model.
    pub read: Vec<PathBuf>,
    /// A socket that is dialled for it and becomes its standard input.
    pub socket: Option<PathBuf>,
    /// Memory of its own that it may have; `None` is as much as there is.
    pub data_bytes_max: Option<u64>,
}

/// Starts walled-in processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Launcher {
    policy: Policy,
    program: PathBuf,
    landlock_abi_max: Option<i32>,
    /// Models' folders that we have made ourselves lie below this one; their links are honest.
    own: Option<PathBuf>,
    walls: Walls,
    libraries: Arc<libraries::Libraries>,
}

impl Default for Launcher {
    fn default() -> Self {
        Self::new(Policy::Off, own_program())
    }
}

impl Launcher {
    /// With this program as launcher, which must be ours, and whatever walls the system has.
    #[must_use]
    pub fn new(policy: Policy, program: PathBuf) -> Self {
        Self { policy, program, landlock_abi_max: None, own: None, walls: Walls::default(), libraries: Arc::default() }
    }

    /// With ourselves as launcher. Tries the walls, in a thread that ends with them. Of Landlock no more is used than was there in
    /// the given version. Links of models' folders below `own` are honest. Blocking.
    #[must_use]
    pub fn tried(policy: Policy, landlock_abi_max: Option<i32>, own: PathBuf) -> Self {
        let walls = match policy {
            Policy::Off => Walls::default(),
            Policy::Auto | Policy::Require => system::tried(landlock_abi_max),
        };
        Self { landlock_abi_max, own: Some(own), walls, ..Self::new(policy, own_program()) }
    }

    /// Finds out what the programs of a folder need, which is asked for at their start. Blocking.
    pub fn learn(&self, folder: &Path) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|_| self.policy != Policy::Off);
        let is_worker = |name: &str| name.starts_with("ollmlx-worker-");
        for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_worker)) {
            self.libraries.of(&entry.path());
        }
    }

    /// What is asked of the walls.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The walls that stand around what is started.
    #[must_use]
    pub fn walls(&self) -> &Walls {
        &self.walls
    }

    /// A command that starts the program; arguments may follow. It has a clean environment and no more of its own.
    ///
    /// # Errors
    /// A wall that is required is missing.
    pub fn command(&self, program: &Path, grants: Grants) -> io::Result<Command> {
        if self.policy == Policy::Require && !self.walls.missing.is_empty() {
            let missing = self.walls.missing.join("; ");
            let text = format!(
                "worker_sandbox is \"require\" and this system lacks {missing}; \"auto\" starts workers without it"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let mut command = if self.policy == Policy::Off && grants.socket.is_none() {
            // There is nothing to be done for it.
            process::command(program)
        } else {
            let mut command = process::command(&by_its_path(&self.program));
            command.args(self.launch(program, grants).to_arguments());
            command
        };
        command.env_clear().envs(environment::allowed());
        // Where llama.cpp crashes, it would start whichever debugger is found.
        command.env("GGML_NO_BACKTRACE", "1");
        if self.policy != Policy::Off {
            command.env(TOLD, self.policy.as_str());
        }
        Ok(command)
    }

    fn launch(&self, program: &Path, grants: Grants) -> Launch {
        let Grants { mut read, socket, data_bytes_max } = grants;
        let mut loader = None;
        if self.policy != Policy::Off {
            let needed = self.libraries.of(program);
            let links: Vec<PathBuf> = read.iter().flat_map(|path| links::linked(path, self.own.as_deref())).collect();
            read.extend(links);
            read.extend(needed.files);
            loader = needed.loader;
        }
        Launch {
            policy: self.policy,
            landlock_abi_max: self.landlock_abi_max,
            socket,
            read,
            loader,
            data_bytes_max,
            program: program.to_owned(),
            arguments: Vec::new(),
        }
    }
}

/// Whether this process is the machine's own user.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ourselves, as what we are: the file at our path may be a newer one by now.
fn own_program() -> PathBuf {
    let running = PathBuf::from(RUNNING);
    if running.exists() { running } else { std::env::current_exe().unwrap_or(running) }
}

/// The same program by its own path, as lists of processes should show it, as long as it still lies there.
fn by_its_path(program: &Path) -> PathBuf {
    let own = if program == Path::new(RUNNING) { std::env::current_exe().ok() } else { None };
    let file = |path: &Path| path.metadata().ok().map(|file| (file.dev(), file.ino()));
    own.filter(|own| file(own).is_some() && file(own) == file(program)).unwrap_or_else(|| program.to_owned())
}
