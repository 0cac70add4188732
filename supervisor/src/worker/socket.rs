//! The local socket that workers dial: a private folder, a listener, and the first frame of whoever dials in.
//!
//! Only the same user gets as far as a hello, and a hello must come within its deadline. Whether the token is the
//! right one is for the driver to say, which knows whom it started. A folder left behind by a killed supervisor is
//! removed by the next one, once dialling its socket shows that nobody is there.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::limits::ACCEPT_RETRY_MS;
use interprocess::local_socket::tokio::{Listener, Stream};
use interprocess::local_socket::traits::StreamCommon;
use interprocess::local_socket::traits::tokio::Listener as _;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName};
use ollmlx_proto::frame::Decoder;
use ollmlx_proto::{FromWorker, WorkerHello};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::warn;

use crate::os::folder::Folder;

/// Bytes of a socket's path, its closing zero included, on the strictest system (macOS).
const PATH_BYTES_MAX: usize = 104;
/// Strangers heard out at once.
const HANDSHAKES_MAX: usize = 32;
/// Folders looked at when sweeping.
const SWEEP_MAX: usize = 256;
const FOLDER_PREFIX: &str = "ollmlx-";
const SOCKET_NAME: &str = "w.sock";

/// Someone of our own user who said hello.
pub struct IncomingHello {
    /// The connection.
    pub stream: Arc<Stream>,
    /// What came after the hello.
    pub decoder: Decoder,
    /// The hello.
    pub hello: WorkerHello,
    /// Its process id, where the system tells.
    pub peer_pid: Option<u32>,
}

/// The open listener. Dropping it removes the folder.
pub struct WorkerListener {
    listener: Listener,
    folder: SocketFolder,
}

struct SocketFolder(PathBuf);

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(self.0.join(SOCKET_NAME));
        let _gone = std::fs::remove_dir(&self.0);
    }
}

impl WorkerListener {
    /// Makes the folder and listens in it. Without a base the temporary folder is taken.
    ///
    /// # Errors
    /// The system's.
    pub fn open(base: Option<&Path>, token: u64) -> io::Result<Self> {
        let base = match base {
            Some(base) => base.to_owned(),
            None => std::env::temp_dir(),
        };
        let name = format!("{FOLDER_PREFIX}{}-{:04x}", std::process::id(), token & 0xffff);
        let fits = |base: &Path| base.join(&name).join(SOCKET_NAME).as_os_str().len() < PATH_BYTES_MAX;
        let base = if fits(&base) && base.is_dir() { base } else { PathBuf::from("/tmp") };
        sweep(&base);
        let folder = base.join(&name);
        // Fails where it exists, so that it is ours and nobody else can have put anything into it.
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let folder = SocketFolder(folder);
        let path = folder.0.join(SOCKET_NAME);
        let name = path.clone().to_fs_name::<GenericFilePath>()?;
        let listener = ListenerOptions::new().name(name).create_tokio()?;
        // The folder is the lock; this says the same to whoever looks at the socket alone.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, folder })
    }

    /// What workers dial.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.0.join(SOCKET_NAME)
    }

    /// Lets in until the driver is gone.
    pub async fn serve(self, hellos: mpsc::Sender<IncomingHello>, hello_timeout_ms: u64) {
        let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut guests = JoinSet::new();
        loop {
            tokio::select! {
                () = hellos.closed() => return,
                Some(_) = guests.join_next() => {}
                accepted = self.listener.accept(), if room.available_permits() > 0 => match accepted {
                    Ok(stream) => {
                        let (hellos, room) = (hellos.clone(), room.clone());
                        guests.spawn(async move {
                            let _place = room.acquire_owned().await;
                            let patience = Duration::from_millis(hello_timeout_ms);
                            match tokio::time::timeout(patience, greet(stream)).await {
                                Ok(Ok(incoming)) => drop(hellos.send(incoming).await),
                                Ok(Err(error)) => warn!(%error, "stranger at the worker socket dropped"),
                                Err(_late) => warn!("stranger at the worker socket said nothing"),
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "worker socket did not accept");
                        tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                    }
                },
            }
        }
    }
}

async fn greet(stream: Stream) -> io::Result<IncomingHello> {
    let peer = stream.peer_creds()?;
    if peer.euid() != Some(nix::unistd::geteuid().as_raw()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user"));
    }
    let peer_pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    let mut decoder = Decoder::new();
    let mut buffer = [0; 1024];
    loop {
        match decoder.next_message::<FromWorker>().map_err(io::Error::other)? {
            Some(FromWorker::Hello(hello)) => {
                return Ok(IncomingHello { stream: Arc::new(stream), decoder, hello, peer_pid });
            }
            Some(_) => return Err(io::Error::other("the first frame is not a hello")),
            None => {}
        }
        let count = (&stream).read(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder.push(&buffer[..count]);
        if decoder.is_mid_frame() && buffered_too_much(&decoder) {
            return Err(io::Error::other("the first frame is too long for a hello"));
        }
    }
}

/// A hello is small; a stranger is not allowed to fill our memory with the start of a large frame.
fn buffered_too_much(decoder: &Decoder) -> bool {
    decoder.buffered_bytes() > 64 * 1024
}

/// Removes what killed supervisors of this user left behind.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    let uid = nix::unistd::geteuid().as_raw();
    for entry in entries.take(SWEEP_MAX).flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_ours(name)) else { continue };
        let ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
        // Held, so that nothing else takes its place before it is removed.
        let Ok(folder) = Folder::open(base).and_then(|base| base.child(name)) else { continue };
        let dial = || std::os::unix::net::UnixStream::connect(entry.path().join(SOCKET_NAME));
        if ours && folder.is_socket(SOCKET_NAME) && dial().is_err() {
            let _gone = folder.remove(SOCKET_NAME);
            let _gone = std::fs::remove_dir(entry.path());
        }
    }
}

/// Whether a server makes folders of this name: its process, and four digits of luck.
fn is_ours(name: &str) -> bool {
    let parts = name.strip_prefix(FOLDER_PREFIX).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(pid, luck)| {
        !pid.is_empty()
            && pid.bytes().all(|byte| byte.is_ascii_digit())
            && luck.len() == 4
            && luck.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Whether two tokens are the same, in a time that doesn't depend on where they differ.
#[must_use]
pub fn same_token(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let differences = one.iter().zip(other).fold(0, |differences, (a, b)| differences | (a ^ b));
    std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn row_29_the_folder_is_private_and_what_a_dead_one_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let dead = base.path().join("ollmlx-1-0001");
        std::fs::create_dir(&dead).unwrap();
        drop(std::os::unix::net::UnixListener::bind(dead.join(SOCKET_NAME)).unwrap());
        let listener = WorkerListener::open(Some(base.path()), 7).unwrap();
        assert!(!dead.exists());
        let folder = listener.path().parent().unwrap().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let other = WorkerListener::open(Some(base.path()), 8).unwrap();
        assert!(folder.exists(), "a living one is left alone");
        drop((listener, other));
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn s03_only_what_a_server_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let stays =
            ["ollmlx-notes", "ollmlx-1-00012", "ollmlx-x-0001", "ollmlx-2-0001"].map(|name| base.path().join(name));
        for folder in &stays[..3] {
            std::fs::create_dir(folder).unwrap();
            drop(std::os::unix::net::UnixListener::bind(folder.join(SOCKET_NAME)).unwrap());
        }
        std::fs::create_dir(&stays[3]).unwrap();
        std::fs::write(stays[3].join(SOCKET_NAME), "no socket").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(elsewhere.path().join(SOCKET_NAME)).unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), base.path().join("ollmlx-3-0001")).unwrap();
        drop(WorkerListener::open(Some(base.path()), 7).unwrap());
        assert!(stays.iter().all(|folder| folder.join(SOCKET_NAME).exists()));
        assert!(elsewhere.path().join(SOCKET_NAME).exists(), "a link is nobody's folder");
    }

    #[tokio::test]
    async fn row_31_a_folder_too_deep_for_a_socket_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("deep".repeat(30));
        std::fs::create_dir(&deep).unwrap();
        let listener = WorkerListener::open(Some(&deep), 9).unwrap();
        assert!(listener.path().as_os_str().len() < PATH_BYTES_MAX, "{}", listener.path().display());
        std::os::unix::net::UnixStream::connect(listener.path()).unwrap();
    }

    #[test]
    fn tokens_are_the_same_or_not() {
        let mut other = [7; 32];
        assert!(same_token(&[7; 32], &other));
        other[31] = 8;
        assert!(!same_token(&[7; 32], &other));
    }

    #[tokio::test]
    async fn s25_only_this_user_can_reach_the_socket() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let listener = WorkerListener::open(Some(base.path()), 7).expect("the listener opens");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let socket = listener.path();
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().expect("a folder")), 0o700);
    }
}
