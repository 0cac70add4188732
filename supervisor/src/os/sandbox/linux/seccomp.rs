//! Which system calls a worker may make: a list of those that computing takes. All others, also those that kernels will come to
//! have, fail with EPERM, as if the user might not; nothing is killed for having asked.
//!
//! The list is for engines and their libraries at work. What only a start needs (`execve`) the worker itself forbids once it has
//! started, see the kit's `sandbox`.

use std::collections::BTreeMap;
use std::io;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::places;

/// Without a condition: they touch only this process, its memory, what it has open, or its clock.
const ALLOWED: &[i64] = &[
    // What is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_recvfrom,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_membarrier,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    // Threads of its own.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Its signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    // Time and luck.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_getrandom,
    // Who and where it is.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_capget,
    // Landlock has a say where it is.
    libc::SYS_execve,
];

/// Older names for the same, where the machine has them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[i64] = &[];

/// Threads only: no process, no namespace, nobody who watches.
const CLONE_LOOKED_AT: i32 = libc::CLONE_THREAD
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE;
/// What opening may not ask for. Accelerators are written to, so there it is Landlock alone that keeps existing files whole.
const OPEN_TO_READ: i32 = libc::O_ACCMODE | OPEN_DEVICES;
const OPEN_DEVICES: i32 = libc::O_CREAT | libc::O_TRUNC | O_NAMELESS;
/// A file without a name. The flag of that name has another one in it, for folders.
const O_NAMELESS: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
/// Controls of a descriptor and of the terminal that it may be.
const IOCTLS: [u64; 6] = [libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX, libc::FIONCLEX, libc::TCGETS, libc::TIOCGWINSZ];
/// Where accelerators are, all are allowed but those that type for others, let the kernel signal others, or change a file that
/// is only read: its attributes, its seal, and what lies in a folder.
const IOCTLS_DENIED: [u64; 10] = [
    libc::TIOCSTI,
    libc::TIOCLINUX,
    FIOSETOWN,
    SIOCSPGRP,
    FS_IOC_SETFLAGS,
    FS_IOC_FSSETXATTR,
    FS_IOC_ENABLE_VERITY,
    BTRFS_IOC_SUBVOL_CREATE,
    BTRFS_IOC_SNAP_CREATE_V2,
    BTRFS_IOC_SUBVOL_CREATE_V2,
];
/// `linux/fs.h`, `linux/fsverity.h`, `linux/btrfs.h`.
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
const FS_IOC_ENABLE_VERITY: u64 = 0x4080_6685;
const BTRFS_IOC_SUBVOL_CREATE: u64 = 0x5000_940e;
const BTRFS_IOC_SNAP_CREATE_V2: u64 = 0x5000_9417;
const BTRFS_IOC_SUBVOL_CREATE_V2: u64 = 0x5000_9418;
/// `asm-generic/sockios.h`.
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
/// Of a descriptor, not of its owner, its locks or its leases.
const FCNTLS: [i32; 6] =
    [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
/// Of threads and memory; the last wall is put up with the others.
const PRCTLS: [i32; 9] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_CAPBSET_READ,
    libc::PR_GET_SECCOMP,
    libc::PR_SET_THP_DISABLE,
    libc::PR_SET_VMA,
];
/// Also for all threads at once.
const SECCOMP_FLAGS_DENIED: u64 = !libc::SECCOMP_FILTER_FLAG_TSYNC;

type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

fn rule(conditions: &[Condition]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.iter().cloned();
    let built: Result<Vec<_>, _> = conditions
        .map(|(index, length, operator, value)| SeccompCondition::new(index, length, operator, value))
        .collect();
    SeccompRule::new(built?)
}

/// One rule for each value that the argument may have.
fn one_of(index: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| rule(&[(index, Dword, Eq, u64::from(value.cast_unsigned()))])).collect()
}

/// Bits of the argument that must be as in `value`.
fn masked(index: u8, bits: i32, value: i32) -> Condition {
    (index, Dword, MaskedEq(u64::from(bits.cast_unsigned())), u64::from(value.cast_unsigned()))
}

/// For the process of this id, which may signal itself.
fn allowed(pid: u32, has_accelerator: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_OLD).map(|call| (*call, Vec::new())).collect();
    let open = if has_accelerator { OPEN_DEVICES } else { OPEN_TO_READ };
    let itself = (0, Dword, Eq, u64::from(pid));
    let ioctls = if has_accelerator {
        let denied: Vec<Condition> = IOCTLS_DENIED.iter().map(|control| (1, Dword, Ne, *control)).collect();
        vec![rule(&denied)?]
    } else {
        IOCTLS.iter().map(|control| rule(&[(1, Dword, Eq, *control)])).collect::<Result<_, _>>()?
    };
    let mut prctls = one_of(0, &PRCTLS)?;
    prctls.push(rule(&[(0, Dword, Eq, libc::PR_SET_DUMPABLE as u64), (1, Qword, Eq, 0)])?);
    let conditional = [
        (libc::SYS_openat, vec![rule(&[masked(2, open, 0)])?]),
        (libc::SYS_clone, vec![rule(&[masked(0, CLONE_LOOKED_AT, libc::CLONE_THREAD)])?]),
        (libc::SYS_kill, vec![rule(std::slice::from_ref(&itself))?]),
        (libc::SYS_tgkill, vec![rule(&[itself])?]),
        (libc::SYS_ioctl, ioctls),
        // Memory of its own, or a file's. What is neither is counted by no limit of a process.
        (libc::SYS_mmap, vec![rule(&[masked(3, libc::MAP_SHARED, 0)])?, rule(&[masked(3, libc::MAP_ANONYMOUS, 0)])?]),
        (libc::SYS_fcntl, one_of(1, &FCNTLS)?),
        (libc::SYS_prctl, prctls),
        // Its own limits, to be read.
        (libc::SYS_prlimit64, vec![rule(&[(0, Dword, Eq, 0), (2, Qword, Eq, 0)])?]),
        // Its calling thread's own.
        (libc::SYS_sched_setaffinity, vec![rule(&[(0, Dword, Eq, 0)])?]),
        // To whom the socket is connected.
        (libc::SYS_sendto, vec![rule(&[(4, Qword, Eq, 0)])?]),
        (
            libc::SYS_setsockopt,
            vec![rule(&[(1, Dword, Eq, libc::SOL_SOCKET as u64), (2, Dword, Eq, libc::SO_SNDTIMEO as u64)])?],
        ),
        (
            libc::SYS_seccomp,
            vec![rule(&[
                (0, Dword, Eq, u64::from(libc::SECCOMP_SET_MODE_FILTER)),
                (1, Qword, MaskedEq(SECCOMP_FLAGS_DENIED), 0),
            ])?],
        ),
    ];
    rules.extend(conditional);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![rule(&[masked(1, open, 0)])?]);
    Ok(rules)
}

fn compiled(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matched, machine)?.try_into()
}

/// The filters, in the order in which they are put up.
fn filters(pid: u32, has_accelerator: bool) -> Result<[BpfProgram; 2], BackendError> {
    let errno = |code: i32| SeccompAction::Errno(code.cast_unsigned());
    // Its flags lie in memory, where no filter sees them. Told that there is no such call, libraries take `clone`.
    let unseen = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unseen = compiled(unseen, SeccompAction::Allow, errno(libc::ENOSYS))?;
    let mut rules = allowed(pid, has_accelerator)?;
    rules.insert(libc::SYS_clone3, Vec::new());
    Ok([unseen, compiled(rules, errno(libc::EPERM), SeccompAction::Allow)?])
}

/// Puts the wall up around the calling thread, and so around all that comes of it. Only behind Landlock are devices opened to be
/// written to.
pub(super) fn apply(is_confined: bool) -> io::Result<()> {
    let filters = filters(std::process::id(), is_confined && places::has_accelerator()).map_err(io::Error::other)?;
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
