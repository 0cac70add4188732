//! One server for one state folder: the second one says who is there and leaves, before it has touched anything.
//!
//! A file in the folder is locked for as long as the server lives. A successor gets the same lock from its predecessor (see
//! [`super::successor`]), so that it is never free between the two.
//!
//! Decision: where the folder can't be written to or its file system has no locks, the server starts with a warning.
//! Rejected: to refuse, since reading models from a read-only home is fine, and so is one server on a network file system.
//!
//! In the folder a server follows no link under a name that it writes to, for what it leads to is somebody's: where there is one it
//! does not start. The folder itself may be a link.
//!
//! Limit: what is shared is noticed by the state folder alone. Two servers with state folders of their own may have the same
//! store, as those of `ollmlx chaos` do, which only read it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use super::error::ServerError;
use crate::config::Config;
use crate::os::descriptor;
use crate::os::folder::Folder;
use crate::os::lock::{Holder, Lock, Taking};
use crate::os::wall::{rfc3339_utc, wall_now};

/// The file's name in the state folder.
pub(super) const FILE: &str = "serve.lock";
/// What a server writes in the state folder.
const WRITTEN: [&str; 4] = [FILE, "learned.json", "cards", "views"];

/// Our right to the folder, as far as there can be one.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    lock: Option<Arc<Lock>>,
    ours: Holder,
}

impl Claim {
    /// Takes the folder for the server at this address, or takes it over from a predecessor. Blocking.
    ///
    /// # Errors
    /// Another server has it, or the predecessor's lock did not arrive.
    pub(super) fn stake(config: &Config, address: SocketAddr) -> Result<Self, ServerError> {
        let now = rfc3339_utc(wall_now());
        let started = now.split_once('.').map_or(now.clone(), |(seconds, _)| format!("{seconds}Z"));
        let ours = Holder { pid: std::process::id(), started, address };
        if config.inherits_lock {
            let path = config.state_dir.join(FILE);
            let inherit = || Lock::adopt(descriptor::receive(io::stdout())?, &path);
            let lock = inherit().map_err(|source| ServerError::System { step: "take the lock over", source })?;
            if let Some(lock) = lock {
                // The predecessor's name stays in it until we serve.
                return Ok(Self { lock: Some(Arc::new(lock)), ours });
            }
        }
        let lock = take(&config.state_dir)?.map(Arc::new);
        let claim = Self { lock, ours };
        claim.sign();
        Ok(claim)
    }

    /// Writes down that it is us. Blocking.
    pub(super) fn sign(&self) {
        let Some(lock) = &self.lock else { return };
        if let Err(error) = lock.sign(&self.ours) {
            tracing::warn!(%error, "the state folder's lock does not say whose it is");
        }
    }

    /// What a successor must get.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(|lock| lock.as_fd())
    }
}

/// The folder's lock; `None` where there can't be one.
fn take(folder: &Path) -> Result<Option<Lock>, ServerError> {
    let held = Folder::make(folder);
    if let Ok(held) = &held
        && let Some(name) = WRITTEN.into_iter().find(|name| held.is_link(name))
    {
        return Err(ServerError::Linked { folder: folder.display().to_string(), name });
    }
    match held.and_then(|held| Lock::take(&held, FILE)) {
        Ok(Taking::Ours(lock)) => Ok(Some(lock)),
        Ok(Taking::Theirs(holder)) => Err(occupied(folder, holder.as_ref())),
        Err(error) => {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "the state folder can't be locked; a second server on it is not noticed");
            Ok(None)
        }
    }
}

fn occupied(folder: &Path, holder: Option<&Holder>) -> ServerError {
    let (who, upgrade) = match holder {
        Some(Holder { pid, started, address }) => {
            let near = near(*address);
            (format!("process {pid} at {address}, since {started}"), format!("OLLMLX_HOST={near} ollmlx upgrade"))
        }
        None => ("it has not said which process it is".to_owned(), "ollmlx upgrade".to_owned()),
    };
    ServerError::Occupied { folder: folder.display().to_string(), who, upgrade }
}

/// Where a server that listens at this address is found from here.
fn near(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Sources;

    fn config(state_dir: &Path) -> Config {
        let flags = [("state_dir".to_owned(), state_dir.display().to_string())].into();
        Config::from_sources(&Sources { flags, ..Sources::default() }).unwrap()
    }

    fn address() -> SocketAddr {
        "127.0.0.1:4321".parse().unwrap()
    }

    #[test]
    fn row_36_the_second_server_is_told_who_has_the_folder_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder.path().join("not/yet/there"));
        let first = Claim::stake(&config, address()).unwrap();
        let error = Claim::stake(&config, address()).unwrap_err();
        assert!(!error.is_of_settings(), "it may be free later");
        let text = error.to_string();
        for part in [
            &format!("process {} at 127.0.0.1:4321, since 2", std::process::id()),
            "not/yet/there",
            "OLLMLX_HOST=127.0.0.1:4321 ollmlx upgrade",
            "--state-dir",
            "OLLMLX_STATE_DIR=",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        drop(first);
        Claim::stake(&config, address()).unwrap();
    }

    #[test]
    fn a_server_that_listens_everywhere_is_found_here() {
        let near = |text: &str| super::near(text.parse().unwrap()).to_string();
        assert_eq!(near("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(near("[::]:80"), "[::1]:80");
        assert_eq!(near("192.0.2.1:80"), "192.0.2.1:80");
    }

    #[test]
    fn row_36_a_holder_that_has_not_said_who_it_is_holds_it_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let held = Folder::open(folder.path()).unwrap();
        let Taking::Ours(_lock) = Lock::take(&held, FILE).unwrap() else { panic!("it was free") };
        let text = Claim::stake(&config(folder.path()), address()).unwrap_err().to_string();
        assert!(text.contains("has not said which process"), "{text}");
    }

    #[test]
    fn s07_a_link_under_a_name_that_is_written_keeps_the_server_from_starting() {
        for name in WRITTEN {
            let folder = tempfile::tempdir().unwrap();
            let (state, victim) = (folder.path().join("state"), folder.path().join("victim"));
            fs::write(&victim, "somebody's").unwrap();
            fs::create_dir(&state).unwrap();
            symlink(&victim, state.join(name)).unwrap();
            // The folder itself may be one.
            symlink("state", folder.path().join("link")).unwrap();
            let error = Claim::stake(&config(&folder.path().join("link")), address()).unwrap_err();
            let text = error.to_string();
            assert!(error.is_of_settings() && text.contains(name) && text.contains("--state-dir"), "{text}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "somebody's");
            fs::remove_file(state.join(name)).unwrap();
            Claim::stake(&config(&folder.path().join("link")), address()).unwrap();
        }
    }

    #[test]
    fn row_36_a_folder_that_can_t_be_locked_is_used_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let claim = Claim::stake(&config(&file), address()).unwrap();
        assert!(claim.descriptor().is_none());
        claim.sign();
    }
}
