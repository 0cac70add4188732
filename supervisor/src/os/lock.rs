//! A file that one process at a time holds, and in which it says who it is.
//!
//! The lock is that of flock(2). It belongs to an open file and not to a process: it is free when the last descriptor of
//! that opening is closed, by whatever death, and a descriptor that is sent to another process carries it over with no
//! moment in which it is free. So nothing here ever unlocks; `nix`'s own lock does when it is dropped, and would take it
//! from a successor. Children that are started meanwhile don't get the descriptor.
//!
//! What stands in the file decides nothing. It may be left over, be rubbish, or be missing.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use super::folder::Folder;

/// Bytes that are read of what a server writes down about itself: some 80.
const CLAIM_BYTES_MAX: u64 = 1024;
/// Bytes of a date as people write it.
const DATE_BYTES_MAX: usize = 40;

/// What a holder says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Holder {
    fn text(&self) -> String {
        let Self { pid, started, address } = self;
        format!("pid = {pid}\naddress = {address}\nstarted = {started}\n")
    }

    /// `None` where anything is missing or could not have been written by us: it goes to somebody's terminal.
    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        let is_date = |text: &&str| {
            text.len() <= DATE_BYTES_MAX
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-:.".contains(&byte))
        };
        Some(Self {
            pid: value("pid")?.parse().ok().filter(|pid| *pid > 0)?,
            started: value("started").filter(is_date)?.to_owned(),
            address: value("address")?.parse().ok()?,
        })
    }
}

/// What came of trying to take a lock.
#[derive(Debug)]
pub enum Taking {
    /// We hold it.
    Ours(Lock),
    /// Somebody else does, who may have said who it is.
    Theirs(Option<Holder>),
}

/// A held lock. Dropped, it stays held for as long as another process has the same opening.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes it unless somebody has it. Blocking, but not for the lock. A link in the file's place is not followed.
    ///
    /// # Errors
    /// The file can't be opened, or not be locked where it is.
    pub fn take(folder: &Folder, name: &str) -> io::Result<Taking> {
        // Made for its owner alone: whoever can read it could lock it as well.
        let mut file = folder.open_or_create(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Taking::Ours(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(Taking::Theirs(read(&mut file))),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes over what another process held, if that is a lock on this file.
    ///
    /// # Errors
    /// The system's.
    pub fn adopt(descriptor: OwnedFd, path: &Path) -> io::Result<Option<Self>> {
        let file = File::from(descriptor);
        let ours = file.metadata()?;
        let there = match std::fs::symlink_metadata(path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Ok(None);
        }
        // Whoever holds it may lock it again, so this says only that nobody else does.
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Writes down who holds it. Blocking.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sign(&self, holder: &Holder) -> io::Result<()> {
        let text = holder.text();
        self.file.write_all_at(text.as_bytes(), 0)?;
        // The first line of a name counts, so the rest of a longer text was no harm meanwhile.
        self.file.set_len(text.len() as u64)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn read(file: &mut File) -> Option<Holder> {
    let mut bytes = Vec::new();
    file.take(CLAIM_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Holder::parse(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn holder(pid: u32) -> Holder {
        Holder { pid, started: "2026-11-26T07:00:00Z".to_owned(), address: "127.0.0.1:11434".parse().unwrap() }
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        (folder, path)
    }

    fn take(path: &Path) -> io::Result<Taking> {
        Lock::take(&Folder::open(path.parent().unwrap())?, path.file_name().unwrap().to_str().unwrap())
    }

    /// A child that another test starts has a copy of every descriptor until it has become another program.
    fn taken(path: &Path) -> Lock {
        let mut held_by = None;
        for _ in 0..1_000_000 {
            match take(path).unwrap() {
                Taking::Ours(lock) => return lock,
                Taking::Theirs(holder) => held_by = holder,
            }
            std::thread::yield_now();
        }
        panic!("it is held by {held_by:?}");
    }

    fn held_by(path: &Path) -> Option<Holder> {
        match take(path).unwrap() {
            Taking::Ours(_) => panic!("it was free"),
            Taking::Theirs(holder) => holder,
        }
    }

    #[test]
    fn row_36_a_lock_is_held_by_one_who_is_named_until_it_is_dropped() {
        let (_folder, path) = place();
        let lock = taken(&path);
        assert_eq!(held_by(&path), None, "it has not said who it is");
        lock.sign(&holder(4711)).unwrap();
        assert_eq!(held_by(&path), Some(holder(4711)));
        lock.sign(&holder(7)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), holder(7).text(), "nothing is left of a longer text");
        drop(lock);
        taken(&path);
    }

    #[test]
    fn row_36_what_stands_in_the_file_is_no_obstacle() {
        let (_folder, path) = place();
        for rubbish in [&b"\xff\x00\x1b[2J"[..], b"pid = 1\n", &[b'x'; 4096], holder(1).text().as_bytes()] {
            fs::write(&path, rubbish).unwrap();
            let lock = taken(&path);
            assert_eq!(held_by(&path).is_some(), rubbish.starts_with(b"pid = 1\naddress"), "{rubbish:?}");
            lock.sign(&holder(2)).unwrap();
            assert_eq!(held_by(&path), Some(holder(2)));
        }
    }

    #[test]
    fn row_36_only_what_a_server_may_have_written_is_shown() {
        let text = holder(5).text();
        assert_eq!(Holder::parse(&text), Some(holder(5)));
        for (from, to) in
            [("5", "0"), ("5", "-5"), ("127.0.0.1", "\u{1b}[31m"), ("07:00", "\u{7}"), ("started", "begun")]
        {
            assert_eq!(Holder::parse(&text.replacen(from, to, 1)), None, "{to:?}");
        }
    }

    #[test]
    fn row_36_a_lock_that_was_handed_on_outlives_whoever_took_it() {
        let (folder, path) = place();
        let first = taken(&path);
        let handed = first.as_fd().try_clone_to_owned().unwrap();
        let second = Lock::adopt(handed, &path).unwrap().expect("the same file");
        drop(first);
        assert_eq!(held_by(&path), None);
        second.sign(&holder(9)).unwrap();
        assert_eq!(held_by(&path), Some(holder(9)));
        // Of another folder, or of a file that somebody has removed, it is no lock.
        let elsewhere = folder.path().join("other");
        assert!(Lock::adopt(second.as_fd().try_clone_to_owned().unwrap(), &elsewhere).unwrap().is_none());
        fs::write(&elsewhere, "").unwrap();
        assert!(Lock::adopt(second.as_fd().try_clone_to_owned().unwrap(), &elsewhere).unwrap().is_none());
        drop(second);
        taken(&path);
    }

    #[test]
    fn row_36_where_there_can_be_no_lock_the_system_says_so() {
        let (folder, path) = place();
        fs::create_dir(&path).unwrap();
        assert!(take(&path).is_err(), "a folder");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(take(&folder.path().join("file/below")).is_err(), "below a file");
    }

    #[test]
    fn s07_a_link_in_its_place_is_not_followed() {
        let (folder, path) = place();
        let victim = folder.path().join("victim");
        fs::write(&victim, "somebody's").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(take(&path).is_err());
        let elsewhere = taken(&victim);
        assert!(Lock::adopt(elsewhere.as_fd().try_clone_to_owned().unwrap(), &path).unwrap().is_none());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "somebody's");
    }
}
