//! Which places of the machine a worker may see beside its model's files: where its libraries lie, what describes the
//! processor, the memory and the clock, and accelerators where there are any.

use std::path::PathBuf;

/// Libraries, and how they are found.
const LIBRARIES: [&str; 18] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/gnu/store",
    "/run/opengl-driver",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/usr/share/locale",
];
/// The machine, as far as one has to know it to compute. Of processes a worker sees itself, without the machine's connections that
/// lie there too. What the kernel has let go of meanwhile can't be found again by these rules, so this is for the start.
const MACHINE: [&str; 22] = [
    "/proc/self/cgroup",
    "/proc/self/fd",
    "/proc/self/maps",
    "/proc/self/mountinfo",
    "/proc/self/smaps",
    "/proc/self/stat",
    "/proc/self/statm",
    "/proc/self/status",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/null",
];
/// What accelerators' libraries read, where there is one.
const ACCELERATORS: [&str; 16] = [
    "/proc/devices",
    "/proc/modules",
    "/proc/driver/nvidia",
    "/proc/sys/vm",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices",
    "/sys/module",
    "/usr/local/cuda",
    "/opt/cuda",
    "/opt/rocm",
    "/opt/intel",
    "/usr/share/vulkan",
    "/etc/vulkan",
    "/etc/OpenCL",
];
/// How accelerators' devices begin.
const DEVICES: [&str; 6] = ["nvidia", "dri", "kfd", "dxg", "accel", "mali"];

/// Devices of accelerators.
fn accelerators() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let named = |name: &str| DEVICES.iter().any(|start| name.starts_with(start));
    entries.filter(|entry| entry.file_name().to_str().is_some_and(named)).map(|entry| entry.path()).collect()
}

/// Whether there is any.
pub(super) fn has_accelerator() -> bool {
    !accelerators().is_empty()
}

/// What may be written to as well: it keeps nothing.
pub(super) fn devices() -> Vec<PathBuf> {
    let mut devices = accelerators();
    devices.push(PathBuf::from("/dev/null"));
    devices
}

/// What may be read: these paths, and the machine's own places.
pub(super) fn readable(granted: &[PathBuf]) -> Vec<PathBuf> {
    let own = LIBRARIES.iter().chain(&MACHINE);
    let accelerators = if has_accelerator() { &ACCELERATORS[..] } else { &[] };
    own.chain(accelerators).map(PathBuf::from).chain(granted.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn nothing_of_people_is_among_the_machine_s_places() {
        let granted = PathBuf::from("/models/m");
        let paths = readable(std::slice::from_ref(&granted));
        assert!(paths.contains(&granted));
        for people in ["/", "/home", "/root", "/etc", "/tmp", "/var", "/proc", "/dev", "/dev/shm", "/run"] {
            assert!(!paths.iter().any(|path| path == Path::new(people)), "{people}");
        }
    }
}
