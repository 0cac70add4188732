//! Who makes room: a pure choice among candidates.
//!
//! The order is: lowest priority first; then the shortest keep-alive, as in Ollama; then whoever costs least to have back
//! for what its going frees: idle time times bytes, divided by the time that its load took. Of two equal ones in size and
//! load that is the one used longest ago; a large model that loads in no time goes before a small one that takes a
//! minute. Decision: idle time is part of the product. Rejected: cost alone, which evicts the model in use again and
//! again because it is cheap to load.
//!
//! Idle workers come before busy ones. A busy one is only a candidate when the one that waits has waited long, and
//! then it is drained, never killed. Nothing is evicted unless it is enough.

use std::cmp::Reverse;

use crate::scheduler::life::State;
use crate::scheduler::view::View;
use crate::types::{KeepAlive, Mono};

/// One that could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scheduler) struct Candidate {
    /// Its place in the scheduler's table.
    pub(in crate::scheduler) at: usize,
    /// Whether it works.
    pub(in crate::scheduler) busy: bool,
    /// What its going frees.
    pub(in crate::scheduler) bytes: u64,
    /// As its requests say.
    pub(in crate::scheduler) priority: i32,
    /// How long it would stay.
    pub(in crate::scheduler) keep_alive: KeepAlive,
    /// Since then, in nanoseconds.
    pub(in crate::scheduler) idle_ns: u64,
    /// What its load took, in nanoseconds; 0 where that isn't known.
    pub(in crate::scheduler) load_ns: u64,
    /// When it last got or ended a request.
    pub(in crate::scheduler) last_used: Mono,
}

impl Candidate {
    pub(in crate::scheduler) fn of(view: View<'_>, at: usize) -> Self {
        let model = &view.models[at];
        let wished = model.stay.keep_alive;
        // Whoever is kept for ever beyond the share of such models is one like all others.
        let is_surplus = wished == KeepAlive::Forever && !view.is_pinned(model);
        Self {
            at,
            busy: matches!(model.state, State::Busy { .. }),
            bytes: view.bytes(model),
            priority: model.stay.priority,
            keep_alive: if is_surplus { view.config.default_keep_alive } else { wished },
            idle_ns: view.now.since(model.stay.last_used),
            load_ns: model.history.load_ns,
            last_used: model.stay.last_used,
        }
    }
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scheduler) struct Need {
    /// Bytes.
    pub(in crate::scheduler) bytes: u64,
    /// Places for processes.
    pub(in crate::scheduler) places: usize,
}

impl Need {
    /// Whether nothing is.
    pub(in crate::scheduler) fn is_met(&self) -> bool {
        self.bytes == 0 && self.places == 0
    }

    /// What is missing once so much has gone.
    pub(in crate::scheduler) fn less(self, bytes: u64, places: usize) -> Self {
        Self { bytes: self.bytes.saturating_sub(bytes), places: self.places.saturating_sub(places) }
    }
}

fn rank(candidate: &Candidate) -> (bool, i32, u64, Reverse<u128>, Mono, usize) {
    let stay_ms = match candidate.keep_alive {
        KeepAlive::Unload => 0,
        KeepAlive::ForMs(ms) => ms,
        KeepAlive::Forever => u64::MAX,
    };
    let gain = u128::from(candidate.idle_ns) * u128::from(candidate.bytes) / u128::from(candidate.load_ns.max(1));
    (candidate.busy, candidate.priority, stay_ms, Reverse(gain), candidate.last_used, candidate.at)
}

/// The fewest of the best that are enough, or `None` where all of them are not.
pub(in crate::scheduler) fn choose(mut candidates: Vec<Candidate>, need: Need) -> Option<Vec<Candidate>> {
    candidates.sort_by_key(rank);
    let mut victims = Vec::new();
    let mut missing = need;
    for candidate in candidates {
        if missing.is_met() {
            break;
        }
        missing = missing.less(candidate.bytes, 1);
        victims.push(candidate);
    }
    if !missing.is_met() {
        return None;
    }
    // A small early victim may have become needless by a large later one.
    let mut index = 0;
    while index < victims.len() {
        let others = victims.iter().enumerate().filter(|(other, _)| *other != index);
        let freed: u64 = others.map(|(_, victim)| victim.bytes).sum();
        if need.less(freed, victims.len() - 1).is_met() {
            victims.remove(index);
        } else {
            index += 1;
        }
    }
    Some(victims)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(at: usize, bytes: u64, keep_alive: KeepAlive, last_used: u64) -> Candidate {
        let idle_ns = 1000 - last_used;
        let last_used = Mono(last_used);
        Candidate { at, busy: false, bytes, priority: 0, keep_alive, idle_ns, load_ns: 5, last_used }
    }

    fn chosen(candidates: &[Candidate], bytes: u64, places: usize) -> Option<Vec<usize>> {
        let victims = choose(candidates.to_vec(), Need { bytes, places })?;
        Some(victims.into_iter().map(|victim| victim.at).collect())
    }

    #[test]
    fn shortest_keep_alive_then_least_recently_used_goes_first() {
        let all = [
            candidate(0, 10, KeepAlive::Forever, 1),
            candidate(1, 10, KeepAlive::ForMs(9), 3),
            candidate(2, 10, KeepAlive::ForMs(9), 2),
        ];
        assert_eq!(chosen(&all, 0, 1), Some(vec![2]));
        assert_eq!(chosen(&all, 20, 0), Some(vec![2, 1]));
        assert_eq!(chosen(&all, 30, 0), Some(vec![2, 1, 0]));
        assert_eq!(chosen(&all, 31, 0), None, "nothing goes unless it is enough");
    }

    #[test]
    fn priority_goes_before_all_and_the_cost_of_having_it_back_before_age() {
        let five = KeepAlive::ForMs(9);
        let dear = Candidate { priority: 1, ..candidate(0, 10, KeepAlive::Unload, 1) };
        assert_eq!(chosen(&[dear, candidate(1, 10, KeepAlive::Forever, 900)], 0, 1), Some(vec![1]));
        // Twice as old, but it takes ten times as long to load.
        let slow = Candidate { load_ns: 50, ..candidate(0, 10, five, 200) };
        assert_eq!(chosen(&[slow, candidate(1, 10, five, 600)], 0, 1), Some(vec![1]));
        // Four times as old is not ten times as large.
        assert_eq!(chosen(&[candidate(0, 10, five, 200), candidate(1, 100, five, 800)], 0, 1), Some(vec![1]));
        assert_eq!(chosen(&[candidate(0, 10, five, 200), candidate(1, 30, five, 800)], 0, 1), Some(vec![0]));
    }

    #[test]
    fn idle_goes_before_busy_and_needless_victims_stay() {
        let busy = Candidate { busy: true, ..candidate(0, 50, KeepAlive::Unload, 0) };
        let all = [busy, candidate(1, 10, KeepAlive::ForMs(9), 1)];
        assert_eq!(chosen(&all, 10, 1), Some(vec![1]));
        assert_eq!(chosen(&all, 50, 0), Some(vec![0]));
    }
}
