//! The local socket that workers dial into, in a folder that only this user can enter.
//!
//! Whoever dials must run as the same user and say hello in time; the driver then compares process id and token. A
//! stranger is dropped without an answer.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use interprocess::local_socket::tokio::prelude::*;
use interprocess::local_socket::tokio::{Listener, Stream};
use interprocess::local_socket::{GenericFilePath, ListenerOptions};
use ollmlx_proto::frame::Decoder;
use ollmlx_proto::limits::HELLO_TIMEOUT_MS;
use ollmlx_proto::{FromWorker, WorkerHello};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const FOLDER_PREFIX: &str = "ollmlx-";
const SOCKET_NAME: &str = "workers";
/// macOS allows 104 bytes for a socket's path, the final zero included.
const PATH_BYTES_MAX: usize = 103;
/// Connections that have not said hello yet.
const STRANGERS_MAX: usize = 32;
const READ_BYTES: usize = 4096;

/// The listening socket and its folder, which is removed with it.
#[derive(Debug)]
pub struct WorkerSocket {
    listener: Listener,
    folder: TempDir,
}

/// Someone who runs as the same user and has said hello.
#[derive(Debug)]
pub struct Dialled {
    /// What it says it is.
    pub hello: WorkerHello,
    /// Its process id as the system tells it, where it does.
    pub peer_pid: Option<u32>,
    /// The connection.
    pub stream: Stream,
    /// What of it has been read already.
    pub decoder: Decoder,
}

impl WorkerSocket {
    /// Makes the folder and listens. `base` is where; `None` is the temporary folder.
    ///
    /// # Errors
    /// The folder or the socket can't be made.
    pub fn bind(base: Option<&Path>) -> io::Result<Self> {
        let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
        remove_stale(&base);
        let folder = tempfile::Builder::new()
            .prefix(FOLDER_PREFIX)
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(&base)?;
        let path = folder.path().join(SOCKET_NAME);
        if path.as_os_str().len() > PATH_BYTES_MAX {
            let text = format!("the socket's path {} is longer than {PATH_BYTES_MAX} bytes", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let name = path.to_fs_name::<GenericFilePath>()?;
        let listener = ListenerOptions::new().name(name).create_tokio()?;
        Ok(Self { listener, folder })
    }

    /// What workers are told to dial.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(SOCKET_NAME)
    }

    /// Accepts until `dialled` closes. Failures to accept are logged and survived.
    pub async fn accept(self, dialled: mpsc::Sender<Dialled>) {
        let mut greeting = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if greeting.len() < STRANGERS_MAX => match accepted {
                    Ok(stream) => {
                        greeting.spawn(greet(stream, dialled.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a worker's connection could not be accepted");
                        tokio::task::yield_now().await;
                    }
                },
                Some(_) = greeting.join_next(), if !greeting.is_empty() => {}
                () = dialled.closed() => return,
            }
        }
    }
}

/// Removes folders of supervisors that are gone: ours by name and owner, and nobody answers at their socket.
fn remove_stale(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    let own = nix::unistd::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX)
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own);
        let socket = path.join(SOCKET_NAME);
        if !ours || std::fs::symlink_metadata(&socket).is_err() {
            continue;
        }
        if let Err(error) = std::os::unix::net::UnixStream::connect(&socket)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            tracing::debug!(path = %path.display(), "a stale socket folder was removed");
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

async fn greet(stream: Stream, dialled: mpsc::Sender<Dialled>) {
    let timeout = Duration::from_millis(HELLO_TIMEOUT_MS);
    match tokio::time::timeout(timeout, hear_hello(stream)).await {
        Ok(Ok(greeted)) => {
            let _ = dialled.send(greeted).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, "a stranger at the worker socket was dropped"),
        Err(_) => tracing::warn!("a connection to the worker socket said nothing and was dropped"),
    }
}

async fn hear_hello(mut stream: Stream) -> io::Result<Dialled> {
    let refused = |text: &str| io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned());
    let creds = stream.peer_creds()?;
    if creds.euid() != Some(nix::unistd::geteuid().as_raw()) {
        return Err(refused("it runs as another user"));
    }
    let peer_pid = creds.pid().and_then(|pid| u32::try_from(pid).ok());
    let mut decoder = Decoder::new();
    let mut bytes = [0; READ_BYTES];
    loop {
        match decoder.next_message::<FromWorker>() {
            Ok(Some(FromWorker::Hello(hello))) => return Ok(Dialled { hello, peer_pid, stream, decoder }),
            Ok(Some(_)) => return Err(refused("its first frame was no hello")),
            Ok(None) => {}
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder.push(&bytes[..count]);
    }
}
