//! The filters are asked here, as the kernel would ask them, since most of what they deny can't be tried without `unsafe`.

use super::*;

const PID: u32 = 4711;

/// What comes of a call: nothing, or the error.
type Verdict = Result<(), i32>;

/// `seccomp_data`: number, machine, instruction pointer, arguments.
fn data(call: i64, arguments: [u64; 6]) -> Vec<u8> {
    let machine: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let mut bytes = i32::try_from(call).unwrap().to_ne_bytes().to_vec();
    bytes.extend(machine.to_ne_bytes());
    bytes.extend(0_u64.to_ne_bytes());
    bytes.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    bytes
}

/// The part of the kernel's classic BPF that filters are made of (`linux/filter.h`).
fn action(filter: &BpfProgram, data: &[u8]) -> u32 {
    let (mut accumulator, mut next) = (0_u32, 0_usize);
    loop {
        let instruction = &filter[next];
        let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        next += 1;
        match instruction.code {
            0x20 => {
                let at = instruction.k as usize;
                accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x05 => next += instruction.k as usize,
            0x15 => next += jump(accumulator == instruction.k),
            0x25 => next += jump(accumulator > instruction.k),
            0x35 => next += jump(accumulator >= instruction.k),
            0x54 => accumulator &= instruction.k,
            0x06 => return instruction.k,
            other => panic!("an instruction that is not known here: {other:#x}"),
        }
    }
}

/// The strictest answer counts; of two errors that of the newest filter.
fn asked(has_accelerator: bool, call: i64, arguments: [u64; 6]) -> Verdict {
    let data = data(call, arguments);
    let filters = filters(PID, has_accelerator).unwrap();
    let mut verdict = Ok(());
    for filter in &filters {
        match action(filter, &data) {
            0x7fff_0000 => {}
            error if error & 0xffff_0000 == 0x0005_0000 => verdict = Err(i32::try_from(error & 0xffff).unwrap()),
            other => panic!("an answer that is not known here: {other:#x}"),
        }
    }
    verdict
}

fn call(number: i64, arguments: &[u64]) -> Verdict {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    asked(false, number, all)
}

const DENIED: Verdict = Err(libc::EPERM);

#[test]
fn what_computing_takes_is_allowed() {
    let pid = u64::from(PID);
    for (number, arguments) in [
        (libc::SYS_read, &[3][..]),
        (libc::SYS_mmap, &[0, 4096, 3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64]),
        (libc::SYS_mmap, &[0, 4096, 1, libc::MAP_SHARED as u64, 5]),
        (libc::SYS_futex, &[]),
        (libc::SYS_openat, &[libc::AT_FDCWD as u64, 1, libc::O_CLOEXEC as u64]),
        (
            libc::SYS_openat,
            &[libc::AT_FDCWD as u64, 1, (libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NONBLOCK) as u64],
        ),
        // As glibc starts a thread.
        (libc::SYS_clone, &[0x003d_0f00]),
        (libc::SYS_execve, &[1]),
        // abort() and raise().
        (libc::SYS_tgkill, &[pid, 4712, libc::SIGABRT as u64]),
        (libc::SYS_kill, &[pid, libc::SIGKILL as u64]),
        (libc::SYS_prlimit64, &[0, 3, 0, 1]),
        (libc::SYS_ioctl, &[3, libc::FIONREAD]),
        (libc::SYS_prctl, &[libc::PR_SET_NAME as u64]),
        (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 0]),
        (libc::SYS_seccomp, &[1, libc::SECCOMP_FILTER_FLAG_TSYNC]),
        (libc::SYS_setsockopt, &[0, libc::SOL_SOCKET as u64, libc::SO_SNDTIMEO as u64]),
    ] {
        assert_eq!(call(number, arguments), Ok(()), "{number} {arguments:x?}");
    }
    assert_eq!(
        call(libc::SYS_clone3, &[1, 88]),
        Err(libc::ENOSYS),
        "libraries then take `clone`, which can be looked at"
    );
}

#[test]
fn what_reaches_out_of_the_process_is_denied() {
    let other = u64::from(PID) + 1;
    let open = |flags: i32| vec![libc::AT_FDCWD as u64, 1, flags as u64];
    for (number, arguments) in [
        // Sockets.
        (libc::SYS_socket, vec![libc::AF_INET as u64]),
        (libc::SYS_socketpair, vec![]),
        (libc::SYS_connect, vec![0]),
        (libc::SYS_bind, vec![0]),
        (libc::SYS_listen, vec![0]),
        (libc::SYS_accept4, vec![0]),
        (libc::SYS_sendmsg, vec![0]),
        (libc::SYS_recvmsg, vec![0]),
        (libc::SYS_sendto, vec![0, 1, 1, 0, 0x7fff_0000_0000, 16]),
        (libc::SYS_setsockopt, vec![0, libc::SOL_SOCKET as u64, libc::SO_ATTACH_FILTER as u64]),
        // Processes.
        (libc::SYS_clone, vec![libc::SIGCHLD as u64]),
        (libc::SYS_clone, vec![(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64]),
        (libc::SYS_clone, vec![(libc::CLONE_THREAD | libc::CLONE_NEWUSER) as u64 & 0xffff_ffff]),
        (libc::SYS_execveat, vec![3]),
        (libc::SYS_setsid, vec![]),
        (libc::SYS_setpgid, vec![]),
        // Others.
        (libc::SYS_kill, vec![other, 9]),
        (libc::SYS_kill, vec![0, 9]),
        (libc::SYS_kill, vec![u64::MAX, 9]),
        (libc::SYS_kill, vec![(-i64::from(PID)).cast_unsigned(), 9]),
        (libc::SYS_tgkill, vec![other, other, 9]),
        (libc::SYS_tkill, vec![other, 9]),
        (libc::SYS_rt_sigqueueinfo, vec![other, 9]),
        (libc::SYS_rt_tgsigqueueinfo, vec![other, other, 9]),
        (libc::SYS_pidfd_open, vec![other]),
        (libc::SYS_pidfd_send_signal, vec![3, 9]),
        (libc::SYS_pidfd_getfd, vec![3, 9]),
        (libc::SYS_ptrace, vec![16, other]),
        (libc::SYS_process_vm_readv, vec![other]),
        (libc::SYS_process_vm_writev, vec![other]),
        (libc::SYS_process_madvise, vec![3]),
        (libc::SYS_kcmp, vec![other]),
        (libc::SYS_prlimit64, vec![other, 7, 0, 1]),
        (libc::SYS_prlimit64, vec![0, 7, 0x7fff_0000_0000]),
        (libc::SYS_setrlimit, vec![7]),
        (libc::SYS_setpriority, vec![0, other]),
        (libc::SYS_sched_setaffinity, vec![other]),
        (libc::SYS_sched_setscheduler, vec![other]),
        (libc::SYS_ioprio_set, vec![1, other]),
        (libc::SYS_move_pages, vec![other]),
        (libc::SYS_fcntl, vec![0, libc::F_SETOWN as u64, other]),
        (libc::SYS_fcntl, vec![0, libc::F_SETLEASE as u64]),
        (libc::SYS_ioctl, vec![0, libc::TIOCSTI]),
        (libc::SYS_ioctl, vec![3, FS_IOC_SETFLAGS]),
        (libc::SYS_ioctl, vec![3, FS_IOC_ENABLE_VERITY]),
        (libc::SYS_ioctl, vec![0, 0x8912]), // SIOCGIFCONF
        (libc::SYS_mmap, vec![0, 4096, 3, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64]),
        (libc::SYS_mmap, vec![0, 4096, 3, (libc::MAP_SHARED_VALIDATE | libc::MAP_ANONYMOUS) as u64]),
        (libc::SYS_ioctl, vec![0, libc::TIOCSTI | 1 << 32]),
        (libc::SYS_ioctl, vec![0, FIOSETOWN]),
        (libc::SYS_prctl, vec![libc::PR_SET_DUMPABLE as u64, 1]),
        (libc::SYS_prctl, vec![libc::PR_SET_PTRACER as u64, other]),
        (libc::SYS_prctl, vec![libc::PR_SET_SECCOMP as u64]),
        (libc::SYS_seccomp, vec![1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER]),
        // Files.
        (libc::SYS_openat, open(libc::O_WRONLY)),
        (libc::SYS_openat, open(libc::O_RDWR)),
        (libc::SYS_openat, open(libc::O_CREAT)),
        (libc::SYS_openat, open(libc::O_TRUNC)),
        (libc::SYS_openat, open(libc::O_TMPFILE | libc::O_RDWR)),
        (libc::SYS_openat2, vec![0]),
        (libc::SYS_open_by_handle_at, vec![0]),
        (libc::SYS_truncate, vec![]),
        (libc::SYS_ftruncate, vec![]),
        (libc::SYS_fallocate, vec![]),
        (libc::SYS_mkdirat, vec![]),
        (libc::SYS_mknodat, vec![]),
        (libc::SYS_unlinkat, vec![]),
        (libc::SYS_renameat2, vec![]),
        (libc::SYS_linkat, vec![]),
        (libc::SYS_symlinkat, vec![]),
        (libc::SYS_fchmodat, vec![]),
        (libc::SYS_fchownat, vec![]),
        (libc::SYS_setxattr, vec![]),
        (libc::SYS_utimensat, vec![]),
        (libc::SYS_memfd_create, vec![]),
        (libc::SYS_inotify_init1, vec![]),
        // The kernel.
        (libc::SYS_unshare, vec![]),
        (libc::SYS_setns, vec![]),
        (libc::SYS_mount, vec![]),
        (libc::SYS_umount2, vec![]),
        (libc::SYS_pivot_root, vec![]),
        (libc::SYS_chroot, vec![]),
        (libc::SYS_open_tree, vec![]),
        (libc::SYS_fsopen, vec![]),
        (libc::SYS_bpf, vec![]),
        (libc::SYS_keyctl, vec![]),
        (libc::SYS_add_key, vec![]),
        (libc::SYS_request_key, vec![]),
        (libc::SYS_io_uring_setup, vec![]),
        (libc::SYS_io_uring_enter, vec![]),
        (libc::SYS_io_uring_register, vec![]),
        (libc::SYS_userfaultfd, vec![]),
        (libc::SYS_perf_event_open, vec![]),
        (libc::SYS_personality, vec![]),
        (libc::SYS_setuid, vec![]),
        (libc::SYS_setresuid, vec![]),
        (libc::SYS_capset, vec![]),
        (libc::SYS_shmget, vec![]),
        (libc::SYS_msgget, vec![]),
        (libc::SYS_semget, vec![]),
        (libc::SYS_mq_open, vec![]),
        (libc::SYS_kexec_load, vec![]),
        (libc::SYS_init_module, vec![]),
        (libc::SYS_reboot, vec![]),
        (libc::SYS_syslog, vec![]),
        (libc::SYS_acct, vec![]),
        (libc::SYS_quotactl, vec![]),
        (libc::SYS_clock_settime, vec![]),
        (libc::SYS_sethostname, vec![]),
        // What kernels will come to have, and the other numbers of the same machine.
        (999, vec![]),
        (0x4000_0000, vec![]),
    ] {
        assert_eq!(call(number, &arguments), DENIED, "{number} {arguments:x?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn older_names_are_looked_at_as_well() {
    for number in
        [libc::SYS_fork, libc::SYS_vfork, libc::SYS_creat, libc::SYS_mkdir, libc::SYS_unlink, libc::SYS_rename]
    {
        assert_eq!(call(number, &[]), DENIED, "{number}");
    }
    assert_eq!(call(libc::SYS_open, &[1, libc::O_CLOEXEC as u64]), Ok(()));
    assert_eq!(call(libc::SYS_open, &[1, libc::O_WRONLY as u64]), DENIED);
}

#[test]
fn where_there_are_accelerators_devices_can_be_opened_for_writing_and_nothing_can_be_made() {
    let open = |flags: i32| asked(true, libc::SYS_openat, [libc::AT_FDCWD as u64, 1, flags as u64, 0, 0, 0]);
    assert_eq!(open(libc::O_RDWR | libc::O_CLOEXEC), Ok(()));
    for flags in [libc::O_CREAT | libc::O_RDWR, libc::O_TRUNC | libc::O_WRONLY, libc::O_TMPFILE | libc::O_RDWR] {
        assert_eq!(open(flags), DENIED, "{flags:o}");
    }
}
