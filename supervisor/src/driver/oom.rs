//! Whether a SIGKILL was the system's. It doesn't say so; its count of the processes that it killed for want of memory does.
//!
//! Decision: the count is compared with that of a moment ago. Rejected: with that of the process's start, by which one such kill
//! of anybody, days ago, makes every later `kill -9` the system's.

use nix::sys::signal::Signal;

use crate::os::process::Exit;
use crate::types::{Cause, Mono};

/// Between two counts that are kept, so that one is older than this: a large process takes a while to be gone once it is
/// killed.
const APART_NS: u64 = 1_000_000_000;

/// The count of the last moments; `None` where the system keeps none.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    /// Between one and some two seconds ago.
    before: Option<u64>,
    last: Option<u64>,
    at: Mono,
}

impl OomKills {
    /// Nobody has looked for a while.
    pub(super) fn begin(now: Mono, count: Option<u64>) -> Self {
        Self { before: count, last: count, at: now }
    }

    /// Takes the count of this moment.
    pub(super) fn look(&mut self, now: Mono, count: Option<u64>) {
        if now.since(self.at) >= APART_NS {
            *self = Self { before: self.last, last: count, at: now };
        }
    }

    /// Why a process ended. A SIGKILL while the count grew is taken for one of those; where there is none, for somebody's.
    pub(super) fn cause_of(&self, exit: Exit, count: Option<u64>) -> Cause {
        match exit {
            Exit::Code(code) => Cause::Exited { code },
            Exit::Signal(signal) if signal == Signal::SIGKILL as i32 && count > self.before => Cause::OutOfMemory,
            Exit::Signal(signal) => Cause::Signalled { signal },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal(9);

    fn at(ms: u64) -> Mono {
        Mono(0).plus_ms(ms)
    }

    #[test]
    fn a_sigkill_is_the_system_s_where_its_count_of_such_has_grown() {
        let known = OomKills::begin(at(0), Some(3));
        assert_eq!(known.cause_of(KILLED, Some(4)), Cause::OutOfMemory);
        assert_eq!(known.cause_of(KILLED, Some(3)), Cause::Signalled { signal: 9 });
        assert_eq!(known.cause_of(Exit::Signal(11), Some(4)), Cause::Signalled { signal: 11 });
        assert_eq!(known.cause_of(Exit::Code(3), Some(4)), Cause::Exited { code: 3 });
        assert_eq!(OomKills::begin(at(0), None).cause_of(KILLED, None), Cause::Signalled { signal: 9 });
    }

    #[test]
    fn one_of_long_ago_is_no_reason_and_one_of_just_now_is_however_often_one_looks() {
        let mut known = OomKills::begin(at(0), Some(3));
        for ms in (1_000..1_500).step_by(250) {
            known.look(at(ms), Some(4));
            assert_eq!(known.cause_of(KILLED, Some(4)), Cause::OutOfMemory, "{ms}");
        }
        known.look(at(2_000), Some(4));
        assert_eq!(known.cause_of(KILLED, Some(4)), Cause::Signalled { signal: 9 });
        assert_eq!(known.cause_of(KILLED, Some(5)), Cause::OutOfMemory);
    }
}
