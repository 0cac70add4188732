//! Which program serves a model and what it is told through its environment.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use ollmlx_proto::WorkerId;

use crate::os::process::{self, Started};
use crate::os::sandbox::{Grants, Launcher};
use crate::os::trusted_program;

/// The program of a backend: in the given folder, or beside our own program.
///
/// # Errors
/// There is none.
pub fn program(worker_dir: Option<&Path>, backend: &str) -> io::Result<PathBuf> {
    let name = format!("ollmlx-worker-{backend}");
    let folder = match worker_dir {
        Some(folder) => folder.to_owned(),
        None => {
            let own = std::env::current_exe()?;
            own.parent().map(Path::to_owned).ok_or_else(|| io::Error::other("our own program has no folder"))?
        }
    };
    let path = folder.join(&name);
    if path.is_file() {
        trusted_program::check_worker(&path)?;
        Ok(path)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("its program {name} is not installed")))
    }
}

/// What a worker is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct Introduction<'a> {
    /// Who it is.
    pub worker: &'a WorkerId,
    /// Proves that we started it.
    pub token: &'a [u8; 32],
    /// What it must do wrong, see [`ollmlx_proto::fault`].
    pub fault: Option<&'a str>,
}

/// Starts the worker behind its walls; it may do what it is granted.
///
/// # Errors
/// The system's, or a wall that is required is missing.
pub fn start(
    launcher: &Launcher,
    program: &Path,
    grants: Grants,
    introduction: Introduction<'_>,
) -> io::Result<Started> {
    let Introduction { worker, token, fault } = introduction;
    let mut hex = String::with_capacity(64);
    for byte in token {
        write!(hex, "{byte:02x}").map_err(io::Error::other)?;
    }
    let mut command = launcher.command(program, grants)?;
    command.env("OLLMLX_TOKEN", hex).env("OLLMLX_MODEL", &worker.model.0);
    command.env("OLLMLX_INCARNATION", worker.incarnation.0.to_string());
    if let Some(fault) = fault {
        command.env("OLLMLX_FAULT", fault);
    }
    process::start(command)
}
