//! What policies see: everything, and nothing that they could change.

use std::cmp::Reverse;

use ollmlx_proto::ModelId;

use super::config::SchedulerConfig;
use super::ledger::{Holding, Ledger};
use super::life::State;
use super::model::Model;
use crate::limits::PINNED_SHARE;
use crate::types::{KeepAlive, Mono, Step};

/// One moment.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) models: &'a [Model],
    pub(super) ledger: &'a Ledger,
    pub(super) config: &'a SchedulerConfig,
    /// Where pressure on the memory of all stands.
    pub(super) step: Step,
    pub(super) now: Mono,
}

impl<'a> View<'a> {
    pub(super) fn holding(self, model: &Model) -> Holding {
        self.ledger.of(&model.id)
    }

    /// Bytes that nobody else may have because of it.
    pub(super) fn bytes(self, model: &Model) -> u64 {
        self.holding(model).bytes()
    }

    /// Whether it stays whatever others need: a client keeps it, and it is within the share of such models, last used first.
    pub(super) fn is_pinned(self, model: &Model) -> bool {
        if !self.is_kept_by_client(model) {
            return false;
        }
        let stays = |other: &Model| self.is_kept_by_client(other) && !other.state.is_leaving();
        let is_later = |other: &&Model| stays(other) && self.recency(other) > self.recency(model);
        let later = || self.processes().filter(is_later).map(|other| self.bytes(other));
        let (places, bytes) = (1 + later().count(), later().fold(self.bytes(model), u64::saturating_add));
        let bytes_max = self.ledger.limit().map_or(u64::MAX, |limit| limit / PINNED_SHARE as u64);
        places == 1 || places <= self.workers_max().div_ceil(PINNED_SHARE) && bytes <= bytes_max
    }

    /// Whether a client keeps it for ever, on a server where that isn't the rule.
    fn is_kept_by_client(self, model: &Model) -> bool {
        model.stay.keep_alive == KeepAlive::Forever && self.config.default_keep_alive != KeepAlive::Forever
    }

    /// Rises with use; no two models have the same.
    fn recency(self, model: &Model) -> (bool, Mono, &ModelId) {
        (model.state.in_flight() > 0, model.stay.last_used, &model.id)
    }

    /// Requests that wait, over all models.
    pub(super) fn waiting(self) -> usize {
        self.models.iter().map(|model| model.line.len()).sum()
    }

    /// Models with a process.
    pub(super) fn processes(self) -> impl Iterator<Item = &'a Model> {
        self.models.iter().filter(|model| model.state.has_process())
    }

    /// Processes that there may be.
    pub(super) fn workers_max(self) -> usize {
        self.config.workers_max.max(1)
    }

    /// Bytes and places that those in such a state have.
    pub(super) fn freed_by(self, is_in: impl Fn(State) -> bool) -> (u64, usize) {
        let leaving = self.models.iter().filter(|model| is_in(model.state));
        leaving
            .fold((0, 0), |(bytes, places): (u64, usize), model| (bytes.saturating_add(self.bytes(model)), places + 1))
    }

    /// Who holds the memory, the largest first.
    pub(super) fn holders(self) -> Vec<(&'a str, u64)> {
        let mut held: Vec<_> = self.processes().map(|model| (model.model.public_name(), self.bytes(model))).collect();
        if self.ledger.elsewhere() > 0 {
            held.push(("the server being replaced", self.ledger.elsewhere()));
        }
        held.sort_by_key(|&(_, bytes)| Reverse(bytes));
        held
    }
}
