//! How long a model rests after a death: doubling, capped, jittered, and quarantine when there were too many.
//!
//! The jitter comes from a small seeded generator of our own, so that a recorded log of events replays exactly.

use std::collections::VecDeque;

use ollmlx_proto::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, DEATHS_MAX, DEATHS_WINDOW_S, QUARANTINE_S};

use super::event::Mono;
use super::lifecycle::Rest;

/// SplitMix64: small, seeded, good enough to spread restarts.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// From a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }
}

/// The deaths of one model within the window, oldest first; never more than [`DEATHS_MAX`].
#[derive(Clone, Debug, Default)]
pub(super) struct DeathTally {
    deaths: VecDeque<Mono>,
}

impl DeathTally {
    /// Counts a death and says where the model rests. The first one in a calm window costs nothing.
    pub(super) fn record(&mut self, now: Mono, rng: &mut Rng) -> Rest {
        while self.deaths.front().is_some_and(|&death| now.since(death) >= DEATHS_WINDOW_S * 1_000_000_000) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        while self.deaths.len() > DEATHS_MAX {
            self.deaths.pop_front();
        }
        let count = self.deaths.len();
        if count >= DEATHS_MAX {
            return Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000));
        }
        let Some(doublings) = count.checked_sub(2) else { return Rest::None };
        let base_ms = BACKOFF_MS_MIN.saturating_mul(1 << doublings.min(32)).min(BACKOFF_MS_MAX);
        // Between three and five quarters, so that models that died together don't come back together.
        let jittered_ms = base_ms * 3 / 4 + rng.draw() % (base_ms / 2 + 1);
        Rest::Backoff(now.plus_ms(jittered_ms.min(BACKOFF_MS_MAX)))
    }

    /// It works after all: only the last death still counts.
    pub(super) fn calm(&mut self) {
        self.deaths.drain(..self.deaths.len().saturating_sub(1));
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.deaths.clear();
    }

    /// Whether there was none.
    pub(super) fn is_empty(&self) -> bool {
        self.deaths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_14_delays_double_and_end_in_quarantine() {
        let mut tally = DeathTally::default();
        let mut rng = Rng::new(1);
        let now = Mono(5);
        assert_eq!(tally.record(now, &mut rng), Rest::None);
        for doubling in 0..(DEATHS_MAX - 2) as u32 {
            let base_ms = BACKOFF_MS_MIN << doubling;
            let Rest::Backoff(until) = tally.record(now, &mut rng) else { panic!("rests") };
            let delay_ms = until.since(now) / 1_000_000;
            assert!((base_ms * 3 / 4..=base_ms * 5 / 4).contains(&delay_ms), "{delay_ms} for {base_ms}");
        }
        assert_eq!(tally.record(now, &mut rng), Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000)));
        // I6: one failure in probation is enough.
        let later = now.plus_ms(QUARANTINE_S * 1000 + 1);
        assert!(matches!(tally.record(later, &mut rng), Rest::Quarantine(_)));
        // A calm window forgets.
        let calm = later.plus_ms(DEATHS_WINDOW_S * 1000);
        assert_eq!(tally.record(calm, &mut rng), Rest::None);
    }
}
