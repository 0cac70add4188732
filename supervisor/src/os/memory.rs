//! How much memory there is, how much a process holds, and how long processes wait for some.
//!
//! What a worker holds is *measured* as its private memory (anonymous pages, shared memory, what of it was swapped out)
//! and the resident pages of files, among them weights that are mapped and not copied: they count once, in the process
//! that maps them, and where several of our workers map one file each of them is charged its part.
//!
//! On macOS it is the kernel's "footprint", which counts what the GPU holds as well; the worker's own report of what it
//! holds goes beside it. How short memory is, macOS says in three levels only.

#[cfg(target_os = "linux")]
pub use self::linux::{footprint, oom_kill_count, pressure, resident_bytes, total_bytes};
#[cfg(target_os = "macos")]
pub use self::macos::{footprint, oom_kill_count, pressure, resident_bytes, total_bytes};

/// Whether what the system counts for a process is all that it takes, but for what is on an accelerator.
pub const SEES_ALL: bool = cfg!(target_os = "linux");

/// What one process holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Its own: nobody else can have it.
    pub private: u64,
    /// Resident pages of files.
    pub file: u64,
}

impl Footprint {
    /// Its part of all this where so many of our processes, itself included, map the same files.
    #[must_use]
    pub fn share(self, mapped_by: usize) -> u64 {
        let mapped_by = u64::try_from(mapped_by).unwrap_or(u64::MAX).max(1);
        self.private.saturating_add(self.file / mapped_by)
    }
}

/// The kernel's measure of how long processes have waited for memory in the last ten seconds: the part of the time in
/// which all of them did, in permille, as `/proc/pressure/memory` tells it.
#[must_use]
pub fn parse_pressure(text: &str) -> Option<u16> {
    let line = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let percent: f64 = line.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some((percent * 10.0) as u16)
}

/// What a warning of macOS counts for: caches are dropped.
#[cfg(any(target_os = "macos", test))]
const WARNING_PERMILLE: u16 = 100;
/// The same where it calls memory critical: idle models go, and nobody else, since it doesn't say who is to blame.
#[cfg(any(target_os = "macos", test))]
const CRITICAL_PERMILLE: u16 = 200;

/// The same of macOS's level: 1 is normal, 2 a warning, 4 critical.
#[cfg(any(target_os = "macos", test))]
fn permille_of_level(level: u64) -> Option<u16> {
    match level {
        1 => Some(0),
        2 => Some(WARNING_PERMILLE),
        4 => Some(CRITICAL_PERMILLE),
        _ => None,
    }
}

/// Sums the `name: number kB` lines of these names, in bytes; `None` where the first is missing.
#[cfg(any(target_os = "linux", test))]
fn sum_of_kib(text: &str, names: [&str; 3]) -> Option<u64> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let [first, rest @ ..] = names;
    let kib = rest.iter().fold(value(first)?, |sum, name| sum.saturating_add(value(name).unwrap_or(0)));
    kib.checked_mul(1024)
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::unistd::{SysconfVar, sysconf};

    use super::{Footprint, parse_pressure, sum_of_kib};

    /// Bytes of physical memory; `None` where the system doesn't say.
    #[must_use]
    pub fn total_bytes() -> Option<u64> {
        sum_of_kib(&std::fs::read_to_string("/proc/meminfo").ok()?, ["MemTotal", "", ""])
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

    /// What a process holds; `None` where it is gone or the system doesn't say.
    ///
    /// The kernel keeps these sums, so reading them costs some microseconds whatever the process holds; `smaps_rollup`
    /// would walk every page, with the process's own allocations waiting meanwhile.
    #[must_use]
    pub fn footprint(pid: u32) -> Option<Footprint> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let private = sum_of_kib(&text, ["RssAnon", "RssShmem", "VmSwap"])?;
        Some(Footprint { private, file: sum_of_kib(&text, ["RssFile", "", ""])? })
    }

    /// The pressure on the machine, in permille; `None` where the kernel doesn't say.
    #[must_use]
    pub fn pressure() -> Option<u16> {
        parse_pressure(&std::fs::read_to_string("/proc/pressure/memory").ok()?)
    }
}

#[cfg(target_os = "macos")]
mod macos {
    use libproc::pid_rusage::{RUsageInfoV2, pidrusage};
    use sysctl::{Ctl, CtlValue, Sysctl as _};

    use super::{Footprint, permille_of_level};

    /// A whole number of the kernel's.
    fn number(name: &str) -> Option<u64> {
        match Ctl::new(name).ok()?.value().ok()? {
            CtlValue::U64(value) | CtlValue::Ulong(value) => Some(value),
            CtlValue::Uint(value) | CtlValue::U32(value) => Some(value.into()),
            CtlValue::Long(value) | CtlValue::S64(value) => u64::try_from(value).ok(),
            CtlValue::Int(value) | CtlValue::S32(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    fn usage(pid: u32) -> Option<RUsageInfoV2> {
        pidrusage(i32::try_from(pid).ok()?).ok()
    }

    /// Bytes of physical memory; `None` where the system doesn't say.
    #[must_use]
    pub fn total_bytes() -> Option<u64> {
        number("hw.memsize").filter(|bytes| *bytes > 0)
    }

    /// How many processes the system has killed because memory ran out: it doesn't say.
    #[must_use]
    pub fn oom_kill_count() -> Option<u64> {
        None
    }

    /// Resident bytes of a process; `None` where it is gone or the system doesn't say.
    #[must_use]
    pub fn resident_bytes(pid: u32) -> Option<u64> {
        usage(pid).map(|usage| usage.ri_resident_size).filter(|bytes| *bytes > 0)
    }

    /// What a process holds; `None` where it is gone. The kernel's own sum for it is what it counts against the process:
    /// dirty pages, compressed ones, and what a GPU holds for it; mapped files are resident beyond that.
    #[must_use]
    pub fn footprint(pid: u32) -> Option<Footprint> {
        let usage = usage(pid)?;
        let private = usage.ri_phys_footprint;
        Some(Footprint { private, file: usage.ri_resident_size.saturating_sub(private) }).filter(|_| private > 0)
    }

    /// The pressure on the machine, in permille; `None` where the kernel doesn't say.
    #[must_use]
    pub fn pressure() -> Option<u16> {
        permille_of_level(number("kern.memorystatus_vm_pressure_level")?)
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::PRESSURE_MARKS_PERMILLE;

    use super::*;

    #[test]
    fn this_process_holds_some_but_not_all_memory() {
        let own = resident_bytes(std::process::id()).unwrap();
        assert!(own > 0 && own < total_bytes().unwrap());
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn what_is_touched_is_measured() {
        let before = footprint(std::process::id()).unwrap().private;
        let ballast = std::hint::black_box(vec![7_u8; 1 << 30]);
        let after = footprint(std::process::id()).unwrap().private;
        // What other tests of this process give back meanwhile is less than the rest.
        assert!(after >= before + (600 << 20), "{before} {after}");
        drop(ballast);
        assert_eq!(footprint(u32::MAX), None);
    }

    #[test]
    fn a_file_that_several_map_is_shared_between_them() {
        let footprint = Footprint { private: 10, file: 90 };
        assert_eq!([0, 1, 2, 3].map(|count| footprint.share(count)), [100, 100, 55, 40]);
    }

    #[test]
    fn the_levels_of_macos_are_steps_of_the_ladder() {
        let [_, [trim, _], [evict, _], [drain, _]] = PRESSURE_MARKS_PERMILLE;
        assert_eq!([0, 1, 2, 3].map(permille_of_level), [None, Some(0), u16::try_from(trim).ok(), None]);
        let critical = u64::from(permille_of_level(4).unwrap());
        assert!((evict..drain).contains(&critical));
    }

    #[test]
    fn kernel_texts_are_read() {
        let pressure =
            "some avg10=12.00 avg60=0.1 avg300=0.00 total=9\nfull avg10=3.25 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(parse_pressure(pressure), Some(32));
        assert_eq!(parse_pressure("some avg10=12.00 avg60=0.1\n"), None);
        assert_eq!(parse_pressure("full avg10=101.00\n"), None);
        let status = "VmRSS:\t  100 kB\nRssAnon:\t   60 kB\nRssFile:\t   30 kB\nRssShmem:\t   10 kB\nVmSwap:\t 5 kB\n";
        assert_eq!(sum_of_kib(status, ["RssAnon", "RssShmem", "VmSwap"]), Some(75 * 1024));
        assert_eq!(sum_of_kib(status, ["RssGone", "RssAnon", "VmSwap"]), None);
    }
}
