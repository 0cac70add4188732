//! Monotonic time since the supervisor started, and the wall clock that belongs to it.

use std::time::{Duration, Instant, SystemTime};

use crate::scheduler::Mono;

/// One clock per supervisor; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Starts at zero now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), wall: SystemTime::now() }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// When `at` is, for timers.
    #[must_use]
    pub fn instant_of(&self, at: Mono) -> Instant {
        // A far future is as good as never; an overflow must not panic.
        self.started.checked_add(Duration::from_nanos(at.0)).unwrap_or(self.started)
    }

    /// When `at` is on the wall clock that held at the start, for listings.
    #[must_use]
    pub fn wall_of(&self, at: Mono) -> SystemTime {
        self.wall.checked_add(Duration::from_nanos(at.0)).unwrap_or(self.wall)
    }
}
