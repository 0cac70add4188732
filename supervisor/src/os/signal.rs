//! What the process was started to ignore.

/// Whether SIGHUP was ignored before the program began, as by `nohup`: it is to outlive its terminal then.
#[cfg(target_os = "linux")]
#[must_use]
pub fn ignores_hang_up() -> bool {
    // A hexadecimal mask, the first signal its lowest bit (proc_pid_status(5)).
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (nix::sys::signal::Signal::SIGHUP as u32 - 1)) != 0)
}

/// The same as far as it can be told: `nohup` leaves standard error on no terminal, and without a terminal nobody hangs up.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn ignores_hang_up() -> bool {
    use std::io::IsTerminal as _;
    !std::io::stderr().is_terminal()
}
