//! How long a model rests after a death: doubling, capped, jittered, and quarantine when there were too many.
//!
//! The jitter comes from a small seeded generator of our own, so that a recorded log of events replays exactly.

use std::collections::VecDeque;

use ollmlx_proto::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, DEATHS_MAX, DEATHS_WINDOW_S, QUARANTINE_S};

use super::lifecycle::Rest;

use crate::types::Mono;

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

/// The deaths of one model within the window, oldest first; never more than [`DEATHS_MAX`] of each kind.
#[derive(Clone, Debug, Default)]
pub(super) struct DeathTally {
    deaths: VecDeque<Mono>,
    /// Those that somebody outside caused.
    kills: VecDeque<Mono>,
}

/// Counts one more, and says how many there are within the window.
fn count(deaths: &mut VecDeque<Mono>, now: Mono) -> usize {
    while deaths.front().is_some_and(|&death| now.since(death) >= DEATHS_WINDOW_S * 1_000_000_000) {
        deaths.pop_front();
    }
    deaths.push_back(now);
    while deaths.len() > DEATHS_MAX {
        deaths.pop_front();
    }
    deaths.len()
}

/// The rest after this many deaths.
fn backoff(count: usize, now: Mono, rng: &mut Rng) -> Rest {
    let Some(doublings) = count.checked_sub(2) else { return Rest::None };
    let base_ms = BACKOFF_MS_MIN.saturating_mul(1 << doublings.min(32)).min(BACKOFF_MS_MAX);
    // Between three and five quarters, so that models that died together don't come back together.
    let jittered_ms = base_ms * 3 / 4 + rng.draw() % (base_ms / 2 + 1);
    Rest::Backoff(now.plus_ms(jittered_ms.min(BACKOFF_MS_MAX)))
}

impl DeathTally {
    /// Counts a death and says where the model rests. The first one in a calm window costs nothing.
    pub(super) fn record(&mut self, now: Mono, rng: &mut Rng) -> Rest {
        match count(&mut self.deaths, now) {
            DEATHS_MAX.. => Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000)),
            count => backoff(count, now, rng),
        }
    }

    /// Counts a death that somebody outside caused: it says nothing of the model, so it rests only to keep a storm of
    /// restarts from the machine, and no longer each time: whoever is killed every few seconds needs them.
    pub(super) fn record_kill(&mut self, now: Mono, rng: &mut Rng) -> Rest {
        backoff(count(&mut self.kills, now).min(2), now, rng)
    }

    /// It works after all: of its own deaths only the last still counts.
    pub(super) fn calm(&mut self) {
        self.deaths.drain(..self.deaths.len().saturating_sub(1));
        self.kills.clear();
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.deaths.clear();
        self.kills.clear();
    }

    /// Whether there was none.
    pub(super) fn is_empty(&self) -> bool {
        self.deaths.is_empty() && self.kills.is_empty()
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

    #[test]
    fn kills_from_outside_never_end_in_quarantine_and_progress_forgets_them() {
        let mut tally = DeathTally::default();
        let mut rng = Rng::new(1);
        let now = Mono(5);
        assert_eq!(tally.record_kill(now, &mut rng), Rest::None);
        let longest_ms = BACKOFF_MS_MIN * 5 / 4;
        for _ in 0..3 * DEATHS_MAX {
            let Rest::Backoff(until) = tally.record_kill(now, &mut rng) else { panic!("rests") };
            assert!(until.since(now) / 1_000_000 <= longest_ms);
        }
        assert_eq!(tally.record(now, &mut rng), Rest::None, "its own deaths are another count");
        tally.calm();
        assert_eq!(tally.record_kill(now, &mut rng), Rest::None);
    }
}
