//! Monotonic time as nanoseconds since the start, and the wall clock that belongs to it.

use std::time::{Duration, Instant, SystemTime};

/// A started clock. All copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall: SystemTime,
}

impl Clock {
    /// Zero is now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "everybody else gets values")]
    pub fn start() -> Self {
        Self { started: Instant::now(), started_wall: SystemTime::now() }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The instant of a monotonic time.
    #[must_use]
    pub fn instant_of(&self, ns: u64) -> Instant {
        self.started + Duration::from_nanos(ns)
    }

    /// The wall clock now, in seconds since 1970. Leaps since the start don't count.
    #[must_use]
    pub fn unix_seconds(&self) -> i64 {
        let since = self.wall_of(self.now_ns()).duration_since(SystemTime::UNIX_EPOCH);
        since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
    }

    /// The wall clock of a monotonic time, past or to come. Leaps of the wall clock since the start don't count.
    #[must_use]
    pub fn wall_of(&self, ns: u64) -> SystemTime {
        self.started_wall + Duration::from_nanos(ns)
    }
}

/// This instant, for what only compares ages.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "everybody else gets values")]
pub fn instant_now() -> Instant {
    Instant::now()
}
