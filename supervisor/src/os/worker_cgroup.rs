//! A control group for each worker: the kernel itself keeps it to its memory, and says when it had to end it.
//!
//! Only where the server's own group (version 2) was handed to it: it can be written to, and has the memory controller to
//! give on. A group that gives controllers on holds no processes itself, so the server moves into a leaf,
//! [`SERVER_LEAF`], beside the workers' groups. A group with other processes in it, such as a login session, can't be used
//! and is left as it was.
//!
//! Groups of workers are named after the server's process, so that the next one can tell whose is left over.
//!
//! The tree is behind a trait because few machines have one that a test may change; `./dev vm` makes one that has.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cgroup::{Cgroup, CgroupVersion};

/// Where the server itself stays.
const SERVER_LEAF: &str = "ollmlx-server";
/// What groups of workers begin with.
const WORKER_PREFIX: &str = "ollmlx-worker-";

/// Control files and folders.
pub trait CgroupTree: Debug + Send + Sync {
    /// The text of a file.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, file: &Path) -> io::Result<String>;
    /// Writes one value.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;
    /// Makes a group.
    ///
    /// # Errors
    /// The system's.
    fn make(&self, folder: &Path) -> io::Result<()>;
    /// Removes a group that holds no process.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, folder: &Path) -> io::Result<()>;
    /// Names of the groups in a group.
    ///
    /// # Errors
    /// The system's.
    fn groups(&self, folder: &Path) -> io::Result<Vec<String>>;
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub struct SystemTree;

/// The system's words say what, and not where.
fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl CgroupTree for SystemTree {
    fn read(&self, file: &Path) -> io::Result<String> {
        std::fs::read_to_string(file).map_err(|error| named(&error, file))
    }

    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        use std::io::Write as _;
        let opened = std::fs::OpenOptions::new().write(true).open(file);
        opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|error| named(&error, file))
    }

    fn make(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir(folder).map_err(|error| named(&error, folder))
    }

    fn remove(&self, folder: &Path) -> io::Result<()> {
        std::fs::remove_dir(folder).map_err(|error| named(&error, folder))
    }

    fn groups(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        let folders = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        Ok(folders.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// The group in which those of the workers are made.
#[derive(Clone, Debug)]
pub struct CgroupParent {
    tree: Arc<dyn CgroupTree>,
    folder: PathBuf,
    owner: u32,
}

impl CgroupParent {
    /// In this process's own group.
    ///
    /// # Errors
    /// Why that can't be used, for the log.
    pub fn open() -> io::Result<Self> {
        let none = || {
            io::Error::new(io::ErrorKind::Unsupported, "the server is in no control group of version 2 that it can see")
        };
        let group = Cgroup::own(CgroupVersion::V2).filter(|group| group.is_own).ok_or_else(none)?;
        let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
        Self::open_in(Arc::new(SystemTree), &group.path, std::process::id(), lives)
    }

    /// In this group, which holds the process `owner`.
    ///
    /// # Errors
    /// Why that can't be used.
    pub fn open_in(tree: Arc<dyn CgroupTree>, own: &Path, owner: u32, lives: impl Fn(u32) -> bool) -> io::Result<Self> {
        // A server that was started by another one is in its leaf already.
        let folder = match (own.file_name(), own.parent()) {
            (Some(name), Some(parent)) if name == SERVER_LEAF => parent,
            _ => own,
        };
        let parent = Self { tree, folder: folder.to_owned(), owner };
        parent.give_memory_on(own)?;
        parent.sweep(lives);
        Ok(parent)
    }

    /// The group itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn gives(&self, file: &str) -> io::Result<bool> {
        Ok(self.tree.read(&self.folder.join(file))?.split_ascii_whitespace().any(|name| name == "memory"))
    }

    fn give_memory_on(&self, own: &Path) -> io::Result<()> {
        if !self.gives("cgroup.controllers")? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the memory controller was not handed to the server",
            ));
        }
        if self.gives("cgroup.subtree_control")? {
            return Ok(());
        }
        let give = || self.tree.write(&self.folder.join("cgroup.subtree_control"), "+memory");
        if give().is_ok() {
            return Ok(());
        }
        let leaf = self.folder.join(SERVER_LEAF);
        match self.tree.make(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let pid = self.owner.to_string();
        self.tree.write(&leaf.join("cgroup.procs"), &pid).inspect_err(|_| {
            let _best_effort = self.tree.remove(&leaf);
        })?;
        give().inspect_err(|_| {
            // Others are in there as well: as it was, if that is possible.
            let _best_effort = self.tree.write(&own.join("cgroup.procs"), &pid).and_then(|()| self.tree.remove(&leaf));
        })
    }

    /// Ends and removes what servers that are gone have left.
    fn sweep(&self, lives: impl Fn(u32) -> bool) {
        for name in self.tree.groups(&self.folder).unwrap_or_default() {
            let Some(owner) = name.strip_prefix(WORKER_PREFIX).and_then(|rest| rest.split('-').next()) else {
                continue;
            };
            // One of our own id was made by an earlier process: this one has made none yet.
            if owner.parse().is_ok_and(|owner: u32| owner == self.owner || !lives(owner)) {
                let folder = self.folder.join(name);
                // Those in it see the end of their socket as well; what can't go now goes with the next server.
                let _emptied = self.tree.write(&folder.join("cgroup.kill"), "1");
                let _removed = self.tree.remove(&folder);
            }
        }
    }

    /// A group for one process, limited to so many bytes. The number is never used twice.
    ///
    /// # Errors
    /// The system's.
    pub fn cgroup(&self, number: u64, pid: u32, bytes_max: u64) -> io::Result<WorkerCgroup> {
        let folder = self.folder.join(format!("{WORKER_PREFIX}{}-{number}", self.owner));
        self.tree.make(&folder)?;
        let cgroup = WorkerCgroup { tree: Arc::clone(&self.tree), folder };
        cgroup.limit(bytes_max)?;
        // Its helpers go with it.
        cgroup.tree.write(&cgroup.folder.join("memory.oom.group"), "1")?;
        // What it may not have in memory it must not have in a swap file either; kernels without one have no such file.
        let _no_swap = cgroup.tree.write(&cgroup.folder.join("memory.swap.max"), "0");
        cgroup.tree.write(&cgroup.folder.join("cgroup.procs"), &pid.to_string())?;
        Ok(cgroup)
    }
}

/// One worker's group; removed when this is dropped, which must be after the process was reaped.
#[derive(Debug)]
pub struct WorkerCgroup {
    tree: Arc<dyn CgroupTree>,
    folder: PathBuf,
}

impl WorkerCgroup {
    /// Sets its limit.
    ///
    /// # Errors
    /// The system's.
    pub fn limit(&self, bytes_max: u64) -> io::Result<()> {
        self.tree.write(&self.folder.join("memory.max"), &bytes_max.to_string())
    }

    /// What is charged to it, without cached files that nothing maps, which the kernel drops when it needs the room.
    #[must_use]
    pub fn measured(&self) -> Option<u64> {
        let current: u64 = self.tree.read(&self.folder.join("memory.current")).ok()?.trim().parse().ok()?;
        let stat = self.tree.read(&self.folder.join("memory.stat")).ok()?;
        let of = |name: &str| -> u64 {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        let unmapped = of("file").saturating_sub(of("file_mapped").max(of("shmem")));
        Some(current.saturating_sub(unmapped))
    }

    /// Whether the kernel has ended a process of it for its memory.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        let events = self.tree.read(&self.folder.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.is_some_and(|kills| kills > 0)
    }
}

impl Drop for WorkerCgroup {
    fn drop(&mut self) {
        // What its processes left behind is ended; where that takes a moment, the next server sweeps the empty group.
        if self.tree.remove(&self.folder).is_err() {
            let _emptied = self.tree.write(&self.folder.join("cgroup.kill"), "1");
            let _removed = self.tree.remove(&self.folder);
        }
    }
}
