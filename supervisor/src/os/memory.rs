//! What processes take, as the operating system sees it.

/// Resident bytes of a process; `None` where the system does not tell or the process is gone.
///
/// Linux: `/proc/<pid>/statm`. macOS: not read yet (its `proc_pid_rusage` has no safe binding here); the worker's own report
/// stands alone there.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(page_bytes())
}

fn page_bytes() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}
