//! What the killer and the clients of one model know of each other: when its worker was struck, and whether all that
//! ran then have got on since.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Tokens after which a stream has got on: the server holds a crash against a request until it is 16 tokens past it, and
/// some of what comes may have been on its way already.
const GOT_ON_TOKENS: u32 = 32;
/// What was on its way when a worker was struck comes within this.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// One model's.
#[derive(Debug, Default)]
pub(crate) struct Ward {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    strikes: Vec<Instant>,
    /// Streams that are open, and the tokens each must still get before it has got on.
    owing: BTreeMap<u64, u32>,
}

impl Ward {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with it has failed the run anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream begins.
    pub(crate) fn open(&self, stream: u64) {
        self.lock().owing.insert(stream, 0);
    }

    /// It has got this many tokens more.
    pub(crate) fn got(&self, stream: u64, tokens: usize) {
        if let Some(owing) = self.lock().owing.get_mut(&stream) {
            *owing = owing.saturating_sub(u32::try_from(tokens).unwrap_or(u32::MAX));
        }
    }

    /// It has ended.
    pub(crate) fn close(&self, stream: u64) {
        self.lock().owing.remove(&stream);
    }

    /// The worker is about to be struck.
    pub(crate) fn strike(&self, now: Instant) {
        let mut inner = self.lock();
        inner.strikes.push(now);
        inner.owing.values_mut().for_each(|owing| *owing = GOT_ON_TOKENS);
    }

    /// Whether something is being streamed, and every stream has got on since the last strike.
    pub(crate) fn is_calm(&self) -> bool {
        let inner = self.lock();
        !inner.owing.is_empty() && inner.owing.values().all(|owing| *owing == 0)
    }

    /// The pause that each strike meant to a stream whose events came at these times, the first of which is its start.
    pub(crate) fn pauses(&self, events: &[Instant]) -> Vec<Duration> {
        let [first, .., last] = events else { return Vec::new() };
        let inner = self.lock();
        let during = inner.strikes.iter().filter(|strike| *first <= **strike && **strike < *last);
        during.filter_map(|&strike| longest_gap(events, strike)).collect()
    }

    /// Whether a strike fell into this time.
    pub(crate) fn was_struck(&self, from: Instant, to: Instant) -> bool {
        self.lock().strikes.iter().any(|strike| from <= *strike && *strike <= to)
    }
}

/// The longest time without an event that began soon after the strike, or lasted when it came.
fn longest_gap(events: &[Instant], strike: Instant) -> Option<Duration> {
    let gaps = events.windows(2).filter(|pair| pair[0] <= strike + ON_ITS_WAY && strike <= pair[1]);
    gaps.map(|pair| pair[1] - pair[0]).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, ms: &[u64]) -> Vec<Instant> {
        ms.iter().map(|ms| base + Duration::from_millis(*ms)).collect()
    }

    #[test]
    fn a_pause_is_the_longest_gap_a_strike_led_to() {
        let base = Instant::now();
        let ward = Ward::default();
        ward.strike(base + Duration::from_millis(105));
        // A token was on its way; the true gap comes after it, and a later one is not its fault.
        let events = at(base, &[0, 100, 110, 900, 920, 3_000]);
        assert_eq!(ward.pauses(&events), [Duration::from_millis(790)]);
        assert_eq!(ward.pauses(&at(base, &[200, 300])), [], "it came later");
        assert!(ward.was_struck(base, base + Duration::from_millis(106)));
    }

    #[test]
    fn it_is_calm_when_every_stream_that_was_struck_has_got_on_or_ended() {
        let ward = Ward::default();
        assert!(!ward.is_calm(), "nothing runs");
        ward.open(1);
        ward.open(2);
        assert!(ward.is_calm());
        ward.strike(Instant::now());
        ward.open(3);
        ward.got(1, GOT_ON_TOKENS as usize);
        assert!(!ward.is_calm());
        ward.close(2);
        assert!(ward.is_calm(), "the third came later");
    }
}
