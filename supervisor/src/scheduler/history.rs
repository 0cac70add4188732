//! What the deaths of its processes leave of one model: how often it failed lately, what it took, which instructions its CPU
//! may not have, and the records that `ollmlx why` shows.
//!
//! A death that nobody asked for is followed by a rest: doubling, capped, jittered, and quarantine when there were too many.
//! The jitter comes from a small seeded generator of our own, so that a recorded log of events replays exactly.
//!
//! Bounded: [`DEATH_RECORDS_MAX`] records, [`DEATH_LOG_BYTES_MAX`] of log each. No prompt and no output is in it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits::{
    BACKOFF_MS_MAX, BACKOFF_MS_MIN, DEATH_LOG_BYTES_MAX, DEATH_RECORDS_MAX, DEATHS_MAX, DEATHS_WINDOW_S,
    LOADS_FAILED_MAX, QUARANTINE_S, TOO_LARGE_REST_S_MAX,
};
use nix::sys::signal::Signal;
use ollmlx_proto::RequestId;

use super::ledger::Holding;
use super::life::Rest;
use crate::types::{Cause, DeathRecord, Fate, Mono};

/// The past of one model. See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) tally: DeathTally,
    pub(super) deaths: Deaths,
    /// Processes started beyond the first that were not asked to leave.
    pub(super) restarts: u32,
    /// The class of cause that the last process died of, if that was unasked.
    pub(super) died: Option<&'static str>,
    /// The cause of the last death that nobody asked for, in words.
    pub(super) last_death: Option<String>,
    /// What its last load took, in nanoseconds; 0 where none has ended.
    pub(super) load_ns: u64,
    /// Processes that died of their memory since one ended otherwise.
    memory_deaths: u32,
    /// Bytes that the last of several such took.
    pub(super) appetite: Option<u64>,
    /// Processes in a row that took more than the whole limit in their load.
    too_large: u32,
    /// Lower CPU level that its processes are told to use, since one died in its start at a better one.
    pub(super) cpu_level: Option<&'static str>,
}

impl History {
    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_empty(&self) -> bool {
        self.tally.is_empty()
    }

    /// The model's files changed, or a person asked: the deaths are forgotten, their records are not.
    pub(super) fn pardon(&mut self) {
        self.tally.clear();
        (self.cpu_level, self.memory_deaths, self.appetite, self.too_large) = (None, 0, None, 0);
    }

    /// A process is ready, after so long.
    pub(super) fn loaded(&mut self, ns: u64) {
        (self.too_large, self.load_ns) = (0, ns.max(1));
    }

    /// A process that was asked to leave has left.
    pub(super) fn left_in_peace(&mut self) {
        (self.memory_deaths, self.appetite) = (0, None);
    }

    /// What one took that died of its memory for the second time is set aside for the next, if it can be had and is no more
    /// than an estimate may be wrong by: what leaks or balloons once is not to press everybody else out. Returns whether
    /// there is something new to try.
    pub(super) fn remember_appetite(&mut self, holding: Holding, limit: u64) -> bool {
        self.memory_deaths = self.memory_deaths.saturating_add(1);
        let is_plausible =
            holding.peak > holding.planned && holding.peak <= holding.planned.saturating_mul(2).min(limit);
        let gives_more = self.memory_deaths >= 2 && self.appetite.is_none() && is_plausible;
        if gives_more {
            self.appetite = Some(holding.peak);
        }
        gives_more
    }

    /// Each load of one that is larger than there is room presses others out: it rests ever longer, at last for an hour.
    pub(super) fn rest_since_too_large(&mut self, now: Mono) -> Rest {
        let doublings = self.too_large.min(u64::BITS / 2);
        self.too_large = self.too_large.saturating_add(1);
        let rest_s = QUARANTINE_S.saturating_mul(1 << doublings).min(TOO_LARGE_REST_S_MAX);
        Rest::Quarantine(now.plus_ms(rest_s * 1000))
    }

    /// A process died of this before it was ready. A signal may mean that it was given instructions that its CPU doesn't
    /// have, whatever the CPU says of itself: the next one is told to use fewer. That holds until the model is pardoned or
    /// the server ends; it isn't written down, because a new kernel or machine is a new chance.
    pub(super) fn lower_cpu_level(&mut self, cause: &Cause) {
        let suspicious = match cause {
            Cause::Signalled { signal } => matches!(
                Signal::try_from(*signal),
                Ok(Signal::SIGILL | Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGBUS | Signal::SIGFPE)
            ),
            // The level itself may be one that this CPU doesn't have.
            Cause::LoadFailed(_) => self.cpu_level.is_some(),
            _ => false,
        };
        if suspicious {
            let tried = self.cpu_level.and_then(|tried| CPU_LEVELS.iter().position(|level| *level == tried));
            self.cpu_level = CPU_LEVELS.get(tried.map_or(0, |tried| tried + 1)).copied();
        }
    }
}

/// Below the best level that the worker finds by itself: one that every CPU of the last ten years has, and one that
/// every CPU of this kind has.
const CPU_LEVELS: &[&str] =
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) { &["haswell", "x64"] } else { &[] };

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
    /// Of them, those before the process was ready.
    loads: VecDeque<Mono>,
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

    /// Counts a death before the process was ready. Whatever its files do to it they do each time, so fewer are enough,
    /// whoever asks for the model; each on the level of CPU that the last one left.
    pub(super) fn record_load(&mut self, now: Mono, rng: &mut Rng) -> Rest {
        let loads = count(&mut self.loads, now);
        match self.record(now, rng) {
            _ if loads >= LOADS_FAILED_MAX as usize => Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000)),
            rest => rest,
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
        self.loads.clear();
        self.kills.clear();
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.deaths.clear();
        self.loads.clear();
        self.kills.clear();
    }

    /// Whether there was none.
    pub(super) fn is_empty(&self) -> bool {
        self.deaths.is_empty() && self.kills.is_empty()
    }
}

/// The ring of one model. Shared with snapshots, which cost a count each.
#[derive(Clone, Debug, Default)]
pub(super) struct Deaths {
    pub(super) records: Arc<VecDeque<DeathRecord>>,
    pub(super) count: u64,
}

impl Deaths {
    pub(super) fn push(&mut self, record: DeathRecord) {
        let records = Arc::make_mut(&mut self.records);
        while records.len() >= DEATH_RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(record);
        self.count += 1;
    }

    /// Those of this class, from then on, are a part of this incident. Returns the requests that were present at one that
    /// was not known to be, and go on.
    pub(super) fn share(&mut self, incident: u64, class: &str, since: Mono) -> Vec<RequestId> {
        let mut present = Vec::new();
        for record in Arc::make_mut(&mut self.records).iter_mut().rev().take_while(|record| record.at >= since) {
            if record.cause.class() == class && record.incident.replace(incident).is_none() {
                let resumed = record.requests.iter().filter(|held| held.fate == Fate::Resumed);
                present.extend(resumed.map(|held| held.request));
            }
        }
        present
    }
}

/// The last whole lines of a log, as far as they fit.
pub(super) fn last_lines(log_tail: &str) -> String {
    let text = log_tail.trim_end();
    if text.len() <= DEATH_LOG_BYTES_MAX {
        return text.to_owned();
    }
    let from = text.ceil_char_boundary(text.len() - DEATH_LOG_BYTES_MAX);
    let kept = &text[from..];
    kept.split_once('\n').map_or(kept, |(_, whole)| whole).to_owned()
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::{Incarnation, ModelId, WorkerId};

    use super::*;
    use crate::types::After;

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
    fn the_third_death_in_its_start_puts_a_model_in_quarantine() {
        let (mut tally, mut rng, now) = (DeathTally::default(), Rng::new(1), Mono(5));
        let quarantine = Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000));
        let rests: Vec<Rest> = (0..LOADS_FAILED_MAX).map(|_| tally.record_load(now, &mut rng)).collect();
        assert_eq!((rests[0], rests[2]), (Rest::None, quarantine));
        assert!(matches!(rests[1], Rest::Backoff(_)), "{rests:?}");
        tally.calm();
        assert!(matches!(tally.record_load(now, &mut rng), Rest::Backoff(_)), "one that works starts anew");
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

    fn record(incarnation: u32) -> DeathRecord {
        DeathRecord {
            worker: WorkerId { model: ModelId("m".to_owned()), incarnation: Incarnation(incarnation) },
            at: Mono(1),
            state: "busy",
            cause: Cause::Silent,
            log_tail: String::new(),
            requests: Vec::new(),
            after: After::Ready,
            cpu_level: None,
            incident: None,
        }
    }

    #[test]
    fn the_ring_is_bounded_and_counts_what_it_forgets() {
        let mut deaths = Deaths::default();
        for incarnation in 0..=DEATH_RECORDS_MAX as u32 {
            deaths.push(record(incarnation));
        }
        assert_eq!((deaths.records.len(), deaths.count), (DEATH_RECORDS_MAX, DEATH_RECORDS_MAX as u64 + 1));
        assert_eq!(deaths.records[0].worker.incarnation.0, 1);
    }

    #[test]
    fn a_long_log_is_cut_at_a_line() {
        let line = "é".repeat(40) + "\n";
        let log = line.repeat(DEATH_LOG_BYTES_MAX / line.len() + 9);
        let kept = last_lines(&log);
        assert!(kept.len() <= DEATH_LOG_BYTES_MAX && kept.lines().all(|kept| kept.len() == line.len() - 1));
        assert_eq!(last_lines("one\ntwo\n\n"), "one\ntwo");
    }
}
