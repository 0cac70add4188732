//! The memory ledger: who owns which bytes.
//!
//! Bytes are reserved before a process is started and released when it is reaped (I1), never on "asked to leave".

use std::collections::BTreeMap;

use ollmlx_proto::ModelId;

/// Reservations by model; one process per model at a time.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    reserved: BTreeMap<ModelId, u64>,
    limit: Option<u64>,
}

impl Ledger {
    /// An empty ledger; `None` is no limit.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        Self { reserved: BTreeMap::new(), limit }
    }

    /// All that is reserved, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.reserved.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// What `model` has reserved.
    #[must_use]
    pub fn of(&self, model: &ModelId) -> u64 {
        self.reserved.get(model).copied().unwrap_or(0)
    }

    /// Whether `bytes` more would fit now.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| self.total().saturating_add(bytes) <= limit)
    }

    /// Whether `bytes` would fit an empty machine.
    #[must_use]
    pub fn could_fit(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| bytes <= limit)
    }

    /// Reserves for a process that is about to start.
    pub fn reserve(&mut self, model: &ModelId, bytes: u64) {
        self.reserved.insert(model.clone(), bytes);
    }

    /// Corrects upwards what turned out to be more; unknown models have no process and stay unknown.
    pub fn raise(&mut self, model: &ModelId, bytes: u64) {
        if let Some(reserved) = self.reserved.get_mut(model) {
            *reserved = (*reserved).max(bytes);
        }
    }

    /// The process is reaped.
    pub fn release(&mut self, model: &ModelId) {
        self.reserved.remove(model);
    }
}
