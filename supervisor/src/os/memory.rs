//! How much memory there is and how much a process holds.
//!
//! Limit: on macOS the kernel's "footprint" would be the better figure, because it counts what the GPU holds; nothing safe
//! reads it, so there it is the resident size, and the worker's own report of what it holds goes beside it.

#[cfg(target_os = "linux")]
pub use self::linux::{oom_kill_count, resident_bytes, total_bytes};
#[cfg(target_os = "macos")]
pub use self::macos::{oom_kill_count, resident_bytes, total_bytes};

#[cfg(target_os = "linux")]
mod linux {
    use nix::unistd::{SysconfVar, sysconf};

    /// Bytes of physical memory; `None` where the system doesn't say.
    #[must_use]
    pub fn total_bytes() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }

    /// How many processes the system has killed since its start because memory ran out, its control groups' memory included;
    /// `None` where it doesn't say.
    #[must_use]
    pub fn oom_kill_count() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/vmstat").ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
    }

    /// Resident bytes of a process; `None` where it is gone or the system doesn't say.
    #[must_use]
    pub fn resident_bytes(pid: u32) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
        pages.checked_mul(u64::try_from(page_bytes).ok()?)
    }
}

#[cfg(target_os = "macos")]
mod macos {
    use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

    /// Bytes of physical memory; `None` where the system doesn't say.
    #[must_use]
    pub fn total_bytes() -> Option<u64> {
        let mut system = System::new().ok()?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        Some(system.total_memory()).filter(|bytes| *bytes > 0)
    }

    /// How many processes the system has killed because memory ran out: it doesn't say.
    #[must_use]
    pub fn oom_kill_count() -> Option<u64> {
        None
    }

    /// Resident bytes of a process; `None` where it is gone or the system doesn't say.
    #[must_use]
    pub fn resident_bytes(pid: u32) -> Option<u64> {
        let pid = Pid::from_u32(pid);
        let mut system = System::new().ok()?;
        let what = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
        Some(system.process(pid)?.memory()).filter(|bytes| *bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_some_but_not_all_memory() {
        let own = resident_bytes(std::process::id()).unwrap();
        assert!(own > 0 && own < total_bytes().unwrap());
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
