//! How long a model rests after its worker died, and what is remembered of its deaths.

use std::collections::VecDeque;

use super::SchedulerConfig;
use super::event::Mono;

/// A small seeded generator (SplitMix64): jitter only, never secrets. The seed makes a run repeatable.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}

/// Deaths that nobody asked for, within the window.
#[derive(Clone, Debug, Default)]
pub struct DeathTally {
    deaths: VecDeque<Mono>,
}

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Wait until then.
    Backoff(Mono),
    /// Too many: wait until then, and refuse meanwhile.
    Quarantine(Mono),
}

impl DeathTally {
    /// Deaths that still count.
    #[must_use]
    pub fn count(&self) -> usize {
        self.deaths.len()
    }

    /// Forgets all.
    pub fn forget(&mut self) {
        self.deaths.clear();
    }

    /// Records a death and says what follows. The first one of a calm model costs no wait; then the wait doubles up
    /// to its cap, with a quarter of jitter, so that models that died of one cause do not start together.
    pub fn record(&mut self, now: Mono, config: &SchedulerConfig, rng: &mut Rng) -> Rest {
        let window_ns = config.deaths_window_ms.saturating_mul(1_000_000);
        while self.deaths.front().is_some_and(|&death| now.since(death) > window_ns) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let count = self.deaths.len();
        if count >= config.deaths_max {
            // Only as many as decide are kept, so that the tally is bounded.
            while self.deaths.len() > config.deaths_max {
                self.deaths.pop_front();
            }
            return Rest::Quarantine(now.plus_ms(config.quarantine_ms));
        }
        if count == 1 {
            return Rest::Backoff(now);
        }
        let doublings = u32::try_from(count - 2).unwrap_or(u32::MAX).min(32);
        let delay = config.backoff_ms_min.saturating_mul(1 << doublings).min(config.backoff_ms_max);
        let jitter = rng.below(delay / 2 + 1);
        Rest::Backoff(now.plus_ms(delay - delay / 4 + jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_is_jittered_and_ends_in_quarantine() {
        let config = SchedulerConfig::default();
        let mut tally = DeathTally::default();
        let mut rng = Rng::new(1);
        let now = Mono(1_000_000_000);
        assert_eq!(tally.record(now, &config, &mut rng), Rest::Backoff(now));
        for expected_ms in [250, 500, 1000] {
            let Rest::Backoff(until) = tally.record(now, &config, &mut rng) else { panic!("too early") };
            let waited_ms = until.since(now) / 1_000_000;
            assert!((expected_ms * 3 / 4..=expected_ms * 5 / 4).contains(&waited_ms), "{waited_ms} for {expected_ms}");
        }
        assert_eq!(tally.record(now, &config, &mut rng), Rest::Quarantine(now.plus_ms(config.quarantine_ms)));
    }

    #[test]
    fn old_deaths_do_not_count() {
        let config = SchedulerConfig::default();
        let mut tally = DeathTally::default();
        let mut rng = Rng::new(1);
        for death in 0..20 {
            let now = Mono(0).plus_ms(death * (config.deaths_window_ms + 1));
            assert_eq!(tally.record(now, &config, &mut rng), Rest::Backoff(now));
        }
    }
}
