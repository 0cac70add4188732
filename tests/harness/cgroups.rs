//! A pretend tree of control groups in a folder, with the kernel's rules as far as the supervisor depends on them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use ollmlx_supervisor::os::worker_cgroup::CgroupTree;

/// The tree. Nothing runs in it: a process is a number in a group's `cgroup.procs`.
#[derive(Debug)]
pub struct FakeTree {
    root: PathBuf,
    /// What new groups say in `memory.events`.
    pub events: Mutex<String>,
    /// Whether processes that move to another group must wait, as they do while the kernel is busy.
    pub is_busy: Mutex<bool>,
    /// It is not any more.
    pub calm: Condvar,
    /// All that was ever made.
    pub made: Mutex<BTreeSet<PathBuf>>,
}

impl FakeTree {
    /// A root group with these controllers and these processes.
    ///
    /// # Panics
    /// The folder is not writable.
    #[must_use]
    pub fn new(root: &Path, controllers: &str, processes: &[u32]) -> Self {
        let tree = Self {
            root: root.to_owned(),
            events: Mutex::default(),
            is_busy: Mutex::default(),
            calm: Condvar::new(),
            made: Mutex::default(),
        };
        tree.populate(root, controllers);
        fs::write(root.join("cgroup.procs"), processes.iter().map(|pid| format!("{pid}\n")).collect::<String>())
            .expect("writable");
        tree
    }

    fn populate(&self, folder: &Path, controllers: &str) {
        let events = self.events.lock().expect("not poisoned").clone();
        for (file, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            ("cgroup.procs", ""),
            ("cgroup.kill", ""),
        ] {
            fs::write(folder.join(file), text).expect("writable");
        }
        if controllers.split(' ').any(|name| name == "memory") {
            for (file, text) in [
                ("memory.max", "max"),
                ("memory.oom.group", "0"),
                ("memory.events", events.as_str()),
                ("memory.current", "0"),
                ("memory.stat", ""),
            ] {
                fs::write(folder.join(file), text).expect("writable");
            }
        }
    }

    /// The processes of a group.
    ///
    /// # Panics
    /// There is no such group.
    #[must_use]
    pub fn processes(&self, folder: &Path) -> Vec<u32> {
        let text = fs::read_to_string(folder.join("cgroup.procs")).expect("a group");
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    fn leave_all(&self, pid: &str) -> io::Result<()> {
        let groups = self.groups(&self.root)?.into_iter().map(|name| self.root.join(name));
        for group in groups.chain([self.root.clone()]) {
            let file = group.join("cgroup.procs");
            let rest: String = fs::read_to_string(&file)?
                .lines()
                .filter(|line| *line != pid)
                .fold(String::new(), |rest, line| rest + line + "\n");
            fs::write(file, rest)?;
        }
        Ok(())
    }
}

fn busy() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "busy")
}

impl CgroupTree for FakeTree {
    fn read(&self, file: &Path) -> io::Result<String> {
        fs::read_to_string(file)
    }

    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        let folder = file.parent().expect("files are in groups");
        if !file.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        match file.file_name().and_then(|name| name.to_str()) {
            Some("cgroup.subtree_control") => {
                if !self.processes(folder).is_empty() {
                    return Err(busy());
                }
                fs::write(file, value.trim_start_matches('+'))
            }
            Some("cgroup.procs") => {
                if !fs::read_to_string(folder.join("cgroup.subtree_control"))?.is_empty() {
                    return Err(busy());
                }
                let is_busy = self.is_busy.lock().expect("not poisoned");
                // A test that fails meanwhile ends all the same.
                drop(self.calm.wait_timeout_while(is_busy, Duration::from_secs(30), |busy| *busy));
                self.leave_all(value)?;
                fs::write(file, fs::read_to_string(file)? + value + "\n")
            }
            Some("cgroup.kill") => fs::write(folder.join("cgroup.procs"), ""),
            _ => fs::write(file, value),
        }
    }

    fn make(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir(folder)?;
        let given = fs::read_to_string(folder.parent().expect("below the root").join("cgroup.subtree_control"))?;
        self.populate(folder, &given);
        self.made.lock().expect("not poisoned").insert(folder.to_owned());
        Ok(())
    }

    fn remove(&self, folder: &Path) -> io::Result<()> {
        // Processes that have really ended are in no group any more.
        let living = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        if self.processes(folder).iter().any(living) {
            return Err(busy());
        }
        fs::remove_dir_all(folder)
    }

    fn groups(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        let folders = entries.into_iter().filter(|entry| entry.path().is_dir());
        Ok(folders.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}
