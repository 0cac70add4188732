//! What the deaths of its workers say of one request.
//!
//! A request is above suspicion again after [`limits::PROBATION_TOKENS`] more tokens, or when it ends.
//!
//! Decision: kills from outside are bounded by the time that a request loses to them without a token between. Rejected: by
//! their number, with which a slow machine, where a load takes longer than the time to the next kill, ends requests that a
//! quick one serves.

use crate::limits::{self, LOADS_FAILED_MAX, LOST_TO_KILLS_MS_MAX, POISON_DEATHS_MAX};

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspicion {
    /// Deaths it has been present at since it was last above suspicion.
    pub(super) deaths: u32,
    /// It was let off one of them, since others died at the same time.
    was_acquitted: bool,
    /// Times its worker was ended for its memory since it last got ahead.
    pub(super) memory_deaths: u32,
    /// Loads it has seen fail.
    pub(super) loads_failed: u32,
    /// Nanoseconds lost to kills from outside since its last token, those in its loads included.
    lost_ns: u64,
}

impl Suspicion {
    /// Its worker died, and that may be its fault.
    pub(super) fn saw_death(&mut self) {
        self.deaths = self.deaths.saturating_add(1);
    }

    /// Its worker was ended for its memory.
    pub(super) fn saw_memory_death(&mut self) {
        self.memory_deaths = self.memory_deaths.saturating_add(1);
    }

    /// Its worker, or one that loaded for it, was killed from outside, which cost it so much.
    pub(super) fn lost(&mut self, ns: u64) {
        self.lost_ns = self.lost_ns.saturating_add(ns);
    }

    /// A load for it failed.
    pub(super) fn saw_failed_load(&mut self) {
        self.loads_failed = self.loads_failed.saturating_add(1);
    }

    /// It got a token in spite of those who kill its workers: it sits through any number of them.
    pub(super) fn gained(&mut self) {
        self.lost_ns = 0;
    }

    /// One death that it was present at is no evidence against it: once, until it has got ahead. Two that kill the workers of
    /// two models at the same time again and again would never be alone otherwise.
    pub(super) fn acquit(&mut self) {
        let pardoned = u32::from(!std::mem::replace(&mut self.was_acquitted, true));
        self.deaths = self.deaths.saturating_sub(pardoned);
    }

    /// Whether its next death, if it is one of that kind, must be nobody else's.
    pub(super) fn must_be_alone(self) -> bool {
        self.deaths.max(self.memory_deaths) >= POISON_DEATHS_MAX
    }

    /// Whether nobody joins it.
    pub(super) fn is_on_probation(self) -> bool {
        self.deaths > 0 || self.must_be_alone()
    }

    /// Whether kills have cost it more than it may lose.
    pub(super) fn has_lost_too_much(self) -> bool {
        self.lost_ns >= LOST_TO_KILLS_MS_MAX * 1_000_000
    }

    /// Whether it has waited for enough loads that failed.
    pub(super) fn has_seen_enough_loads(self) -> bool {
        self.loads_failed >= LOADS_FAILED_MAX
    }
}

const _: () = assert!(limits::PROBATION_TOKENS > 0, "a suspect must get ahead to be cleared");
