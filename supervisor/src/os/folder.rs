//! A folder that is held open, and what lies below it. Everything is reached from the descriptor by names, so that nobody can
//! put a link in the way between a look and what follows from it.
//!
//! What is asked for by its name alone is never a link. What [`Folder::find`] is asked for may be one, or lie behind some, as
//! long as each leads to a place in the folder: the way is walked part by part, and what was looked at is what is opened. The path to
//! the folder itself is its owner's own business: it may lead over links, to another disk for example.
//!
//! What is made is its owner's alone from its first moment. The mode of what is there already is left as it is.
//!
//! Decision: the way is walked here, on every system alike. Rejected: openat2(2), which exists on Linux only and takes an absolute
//! link for one that leads out wherever it leads.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::rng;

/// Links on one way, as the kernel counts them (path_resolution(7)).
pub(super) const LINKS_MAX: usize = 40;
/// Of a folder.
const HELD: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Of a file below: not through a link, and not waiting for the other end of a pipe.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// What a new folder may be used for, and by whom.
const FOLDER_MODE: u32 = 0o700;

/// A folder that is held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    held: Arc<OwnedFd>,
    path: PathBuf,
}

/// What was found below a folder, at the end of all links.
#[derive(Debug)]
pub enum Place {
    /// A folder.
    Folder(Folder),
    /// Anything else.
    Leaf(Leaf),
}

/// What is no folder: a file, most of the time.
#[derive(Debug)]
pub struct Leaf {
    folder: Folder,
    name: OsString,
    kind: FileType,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A file that is being written. Dropped, it is gone.
#[derive(Debug)]
pub struct Draft {
    folder: Folder,
    name: String,
    file: File,
    is_kept: bool,
}

impl Folder {
    /// Opens it; the path to it may lead over links.
    ///
    /// # Errors
    /// There is none, or the system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(rustix::fs::open(path, HELD, Mode::empty())?, path.to_owned()))
    }

    /// The same; what is missing of the path is made.
    ///
    /// # Errors
    /// The system's.
    pub fn make(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)?;
        Self::open(path)
    }

    fn of(held: OwnedFd, path: PathBuf) -> Self {
        Self { held: Arc::new(held), path }
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of this name.
    ///
    /// # Errors
    /// There is none, or something else.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        self.enter(OsStr::new(checked(name)?))
    }

    /// The folder of this name, which is made where there is none.
    ///
    /// # Errors
    /// There is something else, or the system's.
    pub fn make_child(&self, name: &str) -> io::Result<Self> {
        match self.make_new(name) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.child(name)
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// There is something of this name, or the system's.
    pub fn make_new(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.held, checked(name)?, Mode::RWXU)?)
    }

    /// What lies there, links followed as long as they stay in this folder.
    ///
    /// # Errors
    /// Nothing, or of kind `PermissionDenied` where a link leads out.
    pub fn find(&self, below: &Path) -> io::Result<Place> {
        let mut way: Vec<Self> = Vec::new();
        let mut left = parts(below)?;
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == ".." {
                way.pop().ok_or_else(leads_out)?;
                continue;
            }
            let here = way.last().unwrap_or(self);
            let leaf = here.look(&part)?;
            match leaf.kind {
                FileType::Directory => {
                    let entered = here.enter(&part)?;
                    way.push(entered);
                }
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = here.target(&part)?;
                    if target.is_absolute() {
                        left.extend(parts(&self.inside(&target)?)?);
                        way.clear();
                    } else {
                        left.extend(parts(&target)?);
                    }
                }
                _ if left.is_empty() => return Ok(Place::Leaf(leaf)),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok(Place::Folder(way.pop().unwrap_or_else(|| self.clone())))
    }

    /// A folder below, links followed likewise.
    ///
    /// # Errors
    /// As of [`Self::find`], or there is something else.
    pub fn find_folder(&self, below: &Path) -> io::Result<Self> {
        match self.find(below)? {
            Place::Folder(folder) => Ok(folder),
            Place::Leaf(_) => Err(Errno::NOTDIR.into()),
        }
    }

    /// A regular file below, links followed likewise.
    ///
    /// # Errors
    /// As of [`Self::find`], or there is something else.
    pub fn find_file(&self, below: &Path) -> io::Result<Leaf> {
        match self.find(below)? {
            Place::Leaf(leaf) if leaf.is_file() => Ok(leaf),
            _ => Err(not_regular()),
        }
    }

    /// Its names, without `.` and `..`. Those that are no text are an error of their own.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<impl Iterator<Item = io::Result<String>> + use<>> {
        let entries = Dir::read_from(&self.held)?;
        let names = entries.map(|entry| {
            let name = entry.map(|entry| entry.file_name().to_owned())?;
            name.into_string().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        Ok(names.filter(|name| !matches!(name.as_deref(), Ok("." | ".."))))
    }

    /// Where the link of this name leads.
    ///
    /// # Errors
    /// It is none.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        self.target(OsStr::new(checked(name)?))
    }

    /// Whether nothing has this name, not even a link that leads nowhere.
    #[must_use]
    pub fn names_nothing(&self, name: &str) -> bool {
        self.look(OsStr::new(name)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a link has this name.
    #[must_use]
    pub fn is_link(&self, name: &str) -> bool {
        self.look(OsStr::new(name)).is_ok_and(|leaf| leaf.kind == FileType::Symlink)
    }

    /// Whether a socket has this name.
    #[must_use]
    pub fn is_socket(&self, name: &str) -> bool {
        self.look(OsStr::new(name)).is_ok_and(|leaf| leaf.kind == FileType::Socket)
    }

    /// Makes a link.
    ///
    /// # Errors
    /// There is something of this name, or the system's.
    pub fn link(&self, name: &str, target: &Path) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.held, checked(name)?)?)
    }

    /// Opens the file of this name to read and write it, and makes it where there is none.
    ///
    /// # Errors
    /// It is a link or anything else that is no regular file, or the system's.
    pub fn open_or_create(&self, name: &str) -> io::Result<File> {
        let flags = FILE | OFlags::RDWR | OFlags::CREATE;
        let file = match rustix::fs::openat(&self.held, checked(name)?, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "there is a link")),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
    }

    /// Begins a file whose name nobody can guess, between these two.
    ///
    /// # Errors
    /// The system's.
    pub fn draft(&self, prefix: &str, suffix: &str) -> io::Result<Draft> {
        let name = format!("{prefix}{:016x}{suffix}", rng::luck());
        let flags = FILE | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = rustix::fs::openat(&self.held, checked(&name)?, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Draft { folder: self.clone(), name, file: file.into(), is_kept: false })
    }

    /// Removes what has this name and is no folder; a link, not what it leads to.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.held, checked(name)?, AtFlags::empty())?)
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// It isn't empty, or the system's.
    pub fn remove_folder(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.held, checked(name)?, AtFlags::REMOVEDIR)?)
    }

    /// Gives something another name in this folder. A file that has that is replaced, a folder only where it is empty.
    ///
    /// # Errors
    /// The system's.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.held, checked(from)?, &self.held, checked(to)?)?)
    }

    fn enter(&self, name: &OsStr) -> io::Result<Self> {
        let held = rustix::fs::openat(&self.held, name, HELD | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self::of(held, self.path.join(name)))
    }

    fn look(&self, name: &OsStr) -> io::Result<Leaf> {
        let stat = rustix::fs::statat(&self.held, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Leaf { folder: self.clone(), name: name.to_owned(), kind: FileType::from_raw_mode(stat.st_mode), bytes })
    }

    fn target(&self, name: &OsStr) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.held, name, Vec::new())?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// What an absolute path is below this folder, by its text: the way there is walked all the same.
    fn inside(&self, target: &Path) -> io::Result<PathBuf> {
        let real = self.path.canonicalize()?;
        let below = target.strip_prefix(&self.path).or_else(|_| target.strip_prefix(&real));
        below.map(Path::to_owned).map_err(|_| leads_out())
    }
}

/// The folder of the hub's cache that another one is a snapshot of: `models--owner--name/snapshots/<revision>`. Links of a snapshot
/// may lead to whatever lies in it.
#[must_use]
pub fn cache_of(snapshot: &Path) -> Option<&Path> {
    let snapshots = snapshot.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
    let cache = snapshots.parent()?;
    cache.file_name()?.to_str()?.starts_with("models--").then_some(cache)
}

impl Leaf {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    /// Where it lies, links resolved.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// Opens the regular file that it is, and says what it is by now.
    ///
    /// # Errors
    /// It is another thing, or has become one.
    pub fn open(&self) -> io::Result<(File, Metadata)> {
        let file = File::from(rustix::fs::openat(&self.folder.held, &self.name, FILE | OFlags::RDONLY, Mode::empty())?);
        let facts = file.metadata()?;
        if facts.is_file() { Ok((file, facts)) } else { Err(not_regular()) }
    }
}

impl Draft {
    /// Writes it through to the disk and gives it its name, in the place of what has it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn publish(mut self, name: &str) -> io::Result<()> {
        self.file.sync_all()?;
        self.folder.rename(&self.name, name)?;
        self.is_kept = true;
        // The name itself; not every file system can do this, and the content is safe already.
        let _ = rustix::fs::fsync(self.folder.held.as_fd());
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            let _gone = self.folder.remove(&self.name);
        }
    }
}

/// The bytes of an open file, if they are no more than these.
///
/// # Errors
/// Of kind `FileTooLarge`, or the system's.
pub fn read_bounded(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes"));
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max { Err(too_large()) } else { Ok(bytes) }
}

/// A name is one part of a path. Whoever makes one of a stranger's text has parsed that before; this holds it.
fn checked(name: &str) -> io::Result<&str> {
    let mut parts = Path::new(name).components();
    let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    is_name.then_some(name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this is no name of a file"))
}

/// The parts of a relative path, the last one first.
fn parts(path: &Path) -> io::Result<Vec<OsString>> {
    let parts = path.components().rev().filter(|part| *part != Component::CurDir);
    parts
        .map(|part| match part {
            Component::Normal(_) | Component::ParentDir => Ok(part.as_os_str().to_owned()),
            Component::RootDir | Component::Prefix(_) | Component::CurDir => Err(leads_out()),
        })
        .collect()
}

fn leads_out() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a link leads out of the folder")
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "not a regular file")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn content(folder: &Folder, below: &str) -> io::Result<String> {
        let (file, _) = folder.find_file(Path::new(below))?.open()?;
        Ok(String::from_utf8(read_bounded(file, 100)?).unwrap())
    }

    #[test]
    fn s07_links_are_followed_inside_and_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "inside").unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let at = root.display();
        for (name, target, expected) in [
            ("a/b/up", "../../file".to_owned(), true),
            ("a/b/round", "../../a/../a/b/up".to_owned(), true),
            ("absolute", format!("{at}/file"), true),
            ("a/whole", format!("{at}/a/b/up"), true),
            ("out", "../secret".to_owned(), false),
            ("a/b/far", "../../../secret".to_owned(), false),
            ("a/elsewhere", "/etc/hostname".to_owned(), false),
            ("beside", format!("{at}/../secret"), false),
            ("loop", "loop".to_owned(), false),
            ("a/in", "../file/x".to_owned(), false),
        ] {
            symlink(target, root.join(name)).unwrap();
            let folder = Folder::open(&root).unwrap();
            assert_eq!(content(&folder, name).is_ok_and(|text| text == "inside"), expected, "{name}");
        }
        let folder = Folder::open(&root).unwrap();
        for path in ["../secret", "a/../../secret", "/etc/hostname", "", "a"] {
            assert!(content(&folder, path).is_err(), "{path}");
        }
        assert_eq!(folder.find_file(Path::new("a/b/round")).unwrap().path(), root.join("file"));
        // The folder itself may be a link.
        symlink(&root, outside.path().join("link")).unwrap();
        assert_eq!(content(&Folder::open(&outside.path().join("link")).unwrap(), "a/b/up").unwrap(), "inside");
    }

    #[test]
    fn s07_what_takes_a_file_s_place_after_the_look_is_not_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "harmless").unwrap();
        let folder = Folder::open(&root).unwrap();
        let found = folder.find_file(Path::new("sub/file")).unwrap();
        fs::remove_file(root.join("sub/file")).unwrap();
        symlink(outside.path().join("secret"), root.join("sub/file")).unwrap();
        assert!(found.open().is_err());
        // Nor does a folder count that took the place of one that is held.
        fs::rename(root.join("sub"), root.join("former")).unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "other").unwrap();
        assert!(found.open().is_err(), "the folder is the one that was looked at");
    }

    #[test]
    fn what_is_made_is_its_owner_s_and_what_is_there_keeps_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/store");
        let folder = Folder::make(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
        let child = folder.make_child("child").unwrap();
        let mut draft = child.draft(".new-", ".tmp").unwrap();
        draft.write_all(b"text").unwrap();
        draft.publish("file").unwrap();
        assert_eq!((mode(&path.join("child")), mode(&path.join("child/file"))), (0o700, 0o600));
        drop(folder.open_or_create("lock").unwrap());
        assert_eq!(mode(&path.join("lock")), 0o600);
        for (name, bits) in [("child/file", 0o644), ("child", 0o755)] {
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(bits)).unwrap();
        }
        drop(folder.make_child("child").unwrap().open_or_create("file").unwrap());
        assert_eq!((mode(&path.join("child")), mode(&path.join("child/file"))), (0o755, 0o644));
        drop(child.draft(".new-", "").unwrap());
        assert_eq!(child.names().unwrap().map(Result::unwrap).collect::<Vec<_>>(), ["file"], "an unfinished one goes");
    }

    #[test]
    fn a_link_is_neither_entered_nor_written_through_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("real", root.path().join("link")).unwrap();
        fs::write(root.path().join("victim"), "text").unwrap();
        symlink("victim", root.path().join("lock")).unwrap();
        symlink("absent", root.path().join("dangling")).unwrap();
        assert!(folder.child("link").is_err() && folder.make_child("link").is_err());
        assert!(folder.open_or_create("lock").is_err() && folder.open_or_create("dangling").is_err());
        assert!(!root.path().join("absent").exists());
        for name in ["", ".", "..", "a/b", "/", "real/"] {
            assert!(folder.child(name).is_err() && folder.remove(name).is_err(), "{name:?}");
        }
        folder.draft("", "").unwrap().publish("lock").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("victim")).unwrap(), "text", "the link was replaced");
    }

    #[test]
    fn only_regular_files_are_opened_and_nobody_waits_for_a_pipe() {
        let root = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&root.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let Place::Leaf(pipe) = folder.find(Path::new("pipe")).unwrap() else { panic!("it is no folder") };
        assert!(pipe.open().is_err() && folder.open_or_create("pipe").is_err());
        fs::write(root.path().join("ten"), "0123456789").unwrap();
        let read = |most| read_bounded(folder.find_file(Path::new("ten")).unwrap().open().unwrap().0, most);
        assert_eq!(read(10).unwrap().len(), 10);
        assert_eq!(read(9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
