//! The memory ledger: who holds how much, from `Wanted` until the process is reaped (I1).
//!
//! What is *reserved* is the largest of the plan, the worker's own report and the latest sample: what somebody else
//! can't have. The plans alone never exceed the limit. What is *measured* is the latest sample, or the report where there
//! was none: what is really taken. Without a limit everything fits, and the ledger is only kept for the view.

use ollmlx_proto::ModelId;
use std::collections::BTreeMap;

use crate::types::Mono;

/// One worker's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// As estimated.
    pub(super) planned: u64,
    /// As the worker says.
    pub(super) reported: u64,
    /// The most that the system ever said.
    pub(super) peak: u64,
    /// As the system says, latest.
    pub(super) sampled: u64,
    /// The sample that the next growth is counted from, and when it was.
    base: Option<(Mono, u64)>,
    /// How much more it took in a second, between the last samples that were far enough apart.
    pub(super) growth: u64,
}

/// Samples that are closer together than this say nothing of a growth, in nanoseconds.
const GROWTH_NS_MIN: u64 = 50_000_000;

impl Holding {
    /// What counts.
    pub(super) fn bytes(&self) -> u64 {
        self.planned.max(self.reported).max(self.sampled)
    }

    /// What it is known to take.
    pub(super) fn measured(&self) -> u64 {
        if self.base.is_some() { self.sampled } else { self.reported }
    }

    /// Whether the system has said anything.
    pub(super) fn is_sampled(&self) -> bool {
        self.base.is_some()
    }

    fn sample(&mut self, bytes: u64, now: Mono) {
        self.sampled = bytes;
        self.peak = self.peak.max(bytes);
        let Some((at, before)) = self.base else {
            self.base = Some((now, bytes));
            return;
        };
        let span_ns = now.since(at);
        if span_ns >= GROWTH_NS_MIN {
            let more = u128::from(bytes.saturating_sub(before)) * 1_000_000_000 / u128::from(span_ns);
            self.growth = u64::try_from(more).unwrap_or(u64::MAX);
            self.base = Some((now, bytes));
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    limit: Option<u64>,
    entries: BTreeMap<ModelId, Holding>,
    total: u64,
    /// Not ours, and not to be had.
    elsewhere: u64,
}

impl Ledger {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Bytes there are, where limited.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes reserved.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of the limit that the server has which this one replaces.
    pub(super) fn elsewhere(&self) -> u64 {
        self.elsewhere
    }

    /// More than the limit is all of it; without a limit it doesn't matter.
    pub(super) fn hold_elsewhere(&mut self, bytes: u64) {
        self.elsewhere = self.limit.map_or(0, |limit| bytes.min(limit));
    }

    /// Bytes promised by plans.
    pub(super) fn planned(&self) -> u64 {
        self.entries.values().fold(0, |sum: u64, holding| sum.saturating_add(holding.planned))
    }

    /// Bytes that were measured.
    pub(super) fn measured(&self) -> u64 {
        self.entries.values().fold(0, |sum: u64, holding| sum.saturating_add(holding.measured()))
    }

    /// What is measured, as a part of the limit.
    pub(super) fn used_permille(&self) -> u64 {
        self.limit.map_or(0, |limit| permille(self.measured(), limit))
    }

    /// Bytes missing for `need` more.
    pub(super) fn missing(&self, need: u64) -> u64 {
        let taken = self.total.saturating_add(self.elsewhere);
        self.limit.map_or(0, |limit| taken.saturating_add(need).saturating_sub(limit))
    }

    /// What one holds.
    pub(super) fn of(&self, model: &ModelId) -> Holding {
        self.entries.get(model).copied().unwrap_or_default()
    }

    pub(super) fn holds(&self, model: &ModelId) -> bool {
        self.entries.contains_key(model)
    }

    pub(super) fn reserve(&mut self, model: &ModelId, planned: u64) {
        self.entries.insert(model.clone(), Holding { planned, ..Holding::default() });
        self.sum();
    }

    pub(super) fn report(&mut self, model: &ModelId, bytes: u64) {
        if let Some(holding) = self.entries.get_mut(model) {
            holding.reported = bytes;
        }
        self.sum();
    }

    pub(super) fn sample(&mut self, model: &ModelId, bytes: u64, now: Mono) {
        if let Some(holding) = self.entries.get_mut(model) {
            holding.sample(bytes, now);
        }
        self.sum();
    }

    pub(super) fn release(&mut self, model: &ModelId) {
        self.entries.remove(model);
        self.sum();
    }

    fn sum(&mut self) {
        self.total = self.entries.values().fold(0, |sum: u64, holding| sum.saturating_add(holding.bytes()));
    }
}

pub(super) fn part(limit: u64, permille: u64) -> u64 {
    u64::try_from(u128::from(limit) * u128::from(permille) / 1_000).unwrap_or(u64::MAX)
}

pub(super) fn permille(bytes: u64, limit: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000 / u128::from(limit.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_78_the_largest_of_plan_report_and_sample_counts_until_release() {
        let mut ledger = Ledger::new(Some(100));
        let model = ModelId("m".to_owned());
        ledger.reserve(&model, 60);
        assert_eq!((ledger.missing(40), ledger.missing(41)), (0, 1));
        ledger.report(&model, 70);
        assert_eq!((ledger.total(), ledger.measured()), (70, 70));
        ledger.sample(&model, 50, Mono(1));
        assert_eq!((ledger.total(), ledger.measured(), ledger.planned()), (70, 50, 60));
        ledger.sample(&model, 120, Mono(1));
        assert_eq!((ledger.total(), ledger.used_permille()), (120, 1_200));
        ledger.release(&model);
        assert_eq!(ledger.total(), 0);
    }

    #[test]
    fn growth_is_told_by_the_second_and_shrinking_is_none() {
        let mut ledger = Ledger::new(Some(100));
        let model = ModelId("m".to_owned());
        ledger.reserve(&model, 60);
        let ms = |ms: u64| Mono(ms * 1_000_000);
        ledger.sample(&model, 20, ms(0));
        ledger.sample(&model, 30, ms(250));
        assert_eq!(ledger.of(&model).growth, 40);
        ledger.sample(&model, 90, ms(251));
        assert_eq!((ledger.of(&model).growth, ledger.measured()), (40, 90), "too close together");
        ledger.sample(&model, 10, ms(500));
        assert_eq!(ledger.of(&model).growth, 0);
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let mut ledger = Ledger::new(None);
        ledger.reserve(&ModelId("m".to_owned()), u64::MAX);
        assert_eq!(ledger.missing(u64::MAX), 0);
    }
}
