//! Which program serves a model and what it is told through its environment.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use ollmlx_proto::WorkerId;

use crate::os::process::{self, Started};
use crate::os::trusted_program;

/// Variables with this prefix are ours; a worker gets only those it needs.
const PRIVATE_PREFIX: &str = "OLLMLX_";

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

/// Starts the worker. `fault` is what it must do wrong, see [`ollmlx_proto::fault`].
///
/// # Errors
/// The system's.
pub fn start(
    program: &Path,
    socket: &Path,
    worker: &WorkerId,
    token: &[u8; 32],
    fault: Option<&str>,
) -> io::Result<Started> {
    let mut hex = String::with_capacity(64);
    for byte in token {
        write!(hex, "{byte:02x}").map_err(io::Error::other)?;
    }
    let mut variables = vec![
        ("OLLMLX_SOCKET", socket.as_os_str().to_owned()),
        ("OLLMLX_TOKEN", OsString::from(hex)),
        ("OLLMLX_MODEL", OsString::from(&worker.model.0)),
        ("OLLMLX_INCARNATION", OsString::from(worker.incarnation.0.to_string())),
    ];
    // Where llama.cpp crashes, it would start whichever debugger is found.
    variables.push(("GGML_NO_BACKTRACE", OsString::from("1")));
    variables.extend(fault.map(|fault| ("OLLMLX_FAULT", OsString::from(fault))));
    process::start(program, PRIVATE_PREFIX, &variables)
}
