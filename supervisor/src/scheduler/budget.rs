//! The memory ledger: who holds how much, from `Wanted` until the process is reaped (I1).
//!
//! An entry is the largest of the plan, the worker's own report and the system's sample. Without a limit everything
//! fits, and the ledger is only kept for the view.

use ollmlx_proto::ModelId;
use std::collections::BTreeMap;

/// One worker's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// As estimated.
    pub(super) planned: u64,
    /// As the worker says.
    pub(super) reported: u64,
    /// As the system says, latest.
    pub(super) sampled: u64,
}

impl Holding {
    /// What counts.
    pub(super) fn bytes(&self) -> u64 {
        self.planned.max(self.reported).max(self.sampled)
    }

    /// How far it is above what was granted to it.
    pub(super) fn excess(&self) -> u64 {
        self.bytes() - self.planned
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    limit: Option<u64>,
    entries: BTreeMap<ModelId, Holding>,
    total: u64,
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

    /// Bytes over the limit.
    pub(super) fn excess(&self) -> u64 {
        self.limit.map_or(0, |limit| self.total.saturating_sub(limit))
    }

    /// Bytes missing for `need` more.
    pub(super) fn missing(&self, need: u64) -> u64 {
        self.limit.map_or(0, |limit| self.total.saturating_add(need).saturating_sub(limit))
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

    pub(super) fn sample(&mut self, model: &ModelId, bytes: u64) {
        if let Some(holding) = self.entries.get_mut(model) {
            holding.sampled = bytes;
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
        ledger.sample(&model, 50);
        assert_eq!((ledger.total(), ledger.of(&model).excess()), (70, 10));
        ledger.sample(&model, 120);
        assert_eq!(ledger.excess(), 20);
        ledger.release(&model);
        assert_eq!(ledger.total(), 0);
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let mut ledger = Ledger::new(None);
        ledger.reserve(&ModelId("m".to_owned()), u64::MAX);
        assert_eq!(ledger.missing(u64::MAX), 0);
    }
}
