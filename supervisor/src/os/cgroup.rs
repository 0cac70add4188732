//! Where this process stands in the system's control groups, and how much memory they leave it.
//!
//! Everything is files. Other systems than Linux have none of them, so there every answer is "nothing".

use std::fs;
use std::path::{Path, PathBuf};

/// Values at least this large are v1's way to say that there is no limit.
const V1_UNLIMITED: u64 = 1 << 62;

/// Which of the two interfaces a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One tree for all controllers.
    V2,
    /// The tree of the memory controller.
    V1Memory,
}

/// A group and the folder at which its tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The interface.
    pub kind: CgroupVersion,
    /// Where the tree begins, as far as this process can see.
    pub mount: PathBuf,
    /// The group's own folder, at or below that.
    pub path: PathBuf,
    /// Whether `path` is that for sure; where the process is outside of what is mounted, it is only where the mount begins.
    pub is_own: bool,
}

impl Cgroup {
    /// This process's own group; `None` where there is none of that kind.
    #[must_use]
    pub fn own(kind: CgroupVersion) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        locate(kind, &groups, &mounts)
    }

    /// The least limit of memory from here up, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        let file = match self.kind {
            CgroupVersion::V2 => "memory.max",
            CgroupVersion::V1Memory => "memory.limit_in_bytes",
        };
        let above = self.path.ancestors().take_while(|folder| folder.starts_with(&self.mount));
        above.filter_map(|folder| read_number(&folder.join(file))).filter(|bytes| *bytes < V1_UNLIMITED).min()
    }
}

/// The least limit of memory that any control group sets to this process, in bytes.
#[must_use]
pub fn limit_bytes() -> Option<u64> {
    let groups = [CgroupVersion::V2, CgroupVersion::V1Memory].into_iter().filter_map(Cgroup::own);
    groups.filter_map(|group| group.limit_bytes()).min()
}

/// A file with one number; `None` where there is none, `max` for one.
fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Finds a process's group by the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn locate(kind: CgroupVersion, groups: &str, mounts: &str) -> Option<Cgroup> {
    let of_kind = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match kind {
            CgroupVersion::V2 => id == "0" && controllers.is_empty(),
            CgroupVersion::V1Memory => controllers.split(',').any(|name| name == "memory"),
        };
        found.then(|| path.to_owned())
    };
    let path = groups.lines().find_map(of_kind)?;
    let (root, mount) = mounts.lines().find_map(|line| mount_of(kind, line))?;
    // Without a namespace of its own, a container's path is that of the host, and the mount shows the part below its root.
    let below = path.strip_prefix(root.trim_end_matches('/')).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_own = below.is_some();
    let below = below.unwrap_or_default().trim_start_matches('/');
    if below.split('/').any(|part| part == "..") {
        return None;
    }
    let mount = PathBuf::from(mount);
    let path = if below.is_empty() { mount.clone() } else { mount.join(below) };
    Some(Cgroup { kind, mount, path, is_own })
}

/// Root and mount point, where a line of `mountinfo` is of this kind.
fn mount_of(kind: CgroupVersion, line: &str) -> Option<(&str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, mount) = (fields.next()?, fields.next()?);
    let mut right = right.split(' ');
    let (system, options) = (right.next()?, right.nth(1)?);
    let found = match kind {
        CgroupVersion::V2 => system == "cgroup2",
        CgroupVersion::V1Memory => system == "cgroup" && options.split(',').any(|name| name == "memory"),
    };
    found.then_some((root, mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_GROUPS: &str = "4:memory:/job/7\n3:cpuset:/\n0::/user.slice\n";
    const HYBRID_MOUNTS: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn both_kinds_of_groups_are_found_side_by_side() {
        let v2 = locate(CgroupVersion::V2, HYBRID_GROUPS, HYBRID_MOUNTS).unwrap();
        assert_eq!(v2.path, Path::new("/sys/fs/cgroup/unified/user.slice"));
        let v1 = locate(CgroupVersion::V1Memory, HYBRID_GROUPS, HYBRID_MOUNTS).unwrap();
        assert_eq!(v1.path, Path::new("/sys/fs/cgroup/memory/job/7"));
        assert_eq!(locate(CgroupVersion::V1Memory, "0::/\n", HYBRID_MOUNTS), None);
    }

    #[test]
    fn a_container_s_own_root_is_where_its_mount_is() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let at = |groups: &str| locate(CgroupVersion::V2, groups, mounts).map(|group| group.path);
        assert_eq!(at("0::/docker/abc\n"), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(at("0::/docker/abc/inner\n"), Some(PathBuf::from("/sys/fs/cgroup/inner")));
        assert_eq!(at("0::/docker/abcdef\n"), Some(PathBuf::from("/sys/fs/cgroup")), "another one");
        assert_eq!(at("0::/../other\n"), Some(PathBuf::from("/sys/fs/cgroup")), "outside of what is shown");
        assert_eq!(at("0::/docker/abc/../x\n"), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let tree = tempfile::tempdir().unwrap();
        let inner = tree.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let group = |kind| Cgroup { kind, mount: tree.path().to_owned(), path: inner.clone(), is_own: true };
        assert_eq!(group(CgroupVersion::V2).limit_bytes(), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(tree.path().join("a/memory.max"), "5000\n").unwrap();
        fs::write(tree.path().join("memory.max"), "7000\n").unwrap();
        assert_eq!(group(CgroupVersion::V2).limit_bytes(), Some(5000));
        fs::write(inner.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(group(CgroupVersion::V1Memory).limit_bytes(), None);
        fs::write(tree.path().join("a/memory.limit_in_bytes"), "4096\n").unwrap();
        assert_eq!(group(CgroupVersion::V1Memory).limit_bytes(), Some(4096));
    }

    #[test]
    fn a_limit_of_this_process_is_a_real_one() {
        assert!(limit_bytes().is_none_or(|bytes| bytes > 0 && bytes < V1_UNLIMITED));
    }
}
