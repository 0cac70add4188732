//! How much memory there is and how much a process holds.
//!
//! Limit: on macOS the footprint of another process needs an unsafe call, which this crate forbids; there the
//! answer is `None` and the worker's own report counts.

/// Bytes of physical memory; `None` where the system doesn't say.
#[must_use]
pub fn total_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

/// Resident bytes of a process; `None` where it is gone or the system doesn't say.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
        pages.checked_mul(u64::try_from(page_bytes).ok()?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_some_but_not_all_memory() {
        let own = resident_bytes(std::process::id()).unwrap();
        assert!(own > 0 && own < total_bytes().unwrap());
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
