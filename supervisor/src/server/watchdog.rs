//! A server that stands still is ended, so that the system's service manager starts it again.
//!
//! A task asks the driver for a sign of life once a second; a thread of its own, which needs neither the runtime nor a lock,
//! counts its own seconds without one. It counts and does not look at a clock: a machine that slept, or a process that was
//! stopped, has counted nothing meanwhile. Workers see the end of their sockets and go by themselves.
//!
//! A service manager that wants signs of life of its own gets one for each of the driver's that is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limits::{SERVICE_PULSE_MS_MIN, WATCHDOG_MISSED_MAX, WATCHDOG_TICK_MS};

use super::service::Pulse;
use crate::driver::Handle;
use crate::os::stderr;

const TICK: Duration = Duration::from_millis(WATCHDOG_TICK_MS);
/// However impatient a service manager is.
const TICK_MIN: Duration = Duration::from_millis(SERVICE_PULSE_MS_MIN);

/// Signs of life, and how long there was none.
#[derive(Debug, Default)]
struct Count {
    last: u64,
    missed: u32,
}

impl Count {
    /// One tick later. Whether it has stood still for too long.
    fn is_stuck(&mut self, beats: u64) -> bool {
        self.missed = if beats == self.last { self.missed.saturating_add(1) } else { 0 };
        self.last = beats;
        self.missed >= WATCHDOG_MISSED_MAX
    }
}

/// Watches this driver from now on. What it returns asks for signs of life and must run from now on: without, the process ends.
///
/// # Errors
/// The system has no thread for it.
pub(super) fn watch(handle: Handle, mut pulse: Pulse) -> std::io::Result<impl Future<Output = ()> + Send> {
    let beats = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&beats);
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        let mut count = Count::default();
        // Nobody ever sends.
        let (_kept, never) = std::sync::mpsc::channel::<()>();
        while never.recv_timeout(TICK).is_err() {
            if count.is_stuck(seen.load(Ordering::Relaxed)) {
                // Past the logger, which may be part of what stands still.
                stderr::tell(format_args!(
                    "ollmlx: the server has given no sign of life for {WATCHDOG_MISSED_MAX} s and is ended"
                ));
                std::process::abort();
            }
        }
    })?;
    Ok(async move {
        let mut tick = tokio::time::interval(pulse.every().map_or(TICK, |every| every.clamp(TICK_MIN, TICK)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            handle.ping().await;
            beats.fetch_add(1, Ordering::Relaxed);
            pulse.beat();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_35_only_a_row_of_ticks_without_a_sign_counts() {
        let mut count = Count::default();
        for beats in 1..1000 {
            assert!(!count.is_stuck(beats));
        }
        let mut ticks = (1..).take_while(|_| !count.is_stuck(999));
        assert_eq!(ticks.by_ref().count(), WATCHDOG_MISSED_MAX as usize - 1);
        assert!(!count.is_stuck(1000), "a late sign is one");
        assert_eq!(count.missed, 0);
    }
}
