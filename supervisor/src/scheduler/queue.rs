//! The waiting room of one model: first in, first out, all joined to one load.

use std::collections::VecDeque;

use ollmlx_proto::RequestId;

use super::event::{Job, KeepAlive, LoadPlan, Mono};

/// One that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    pub(super) job: Job,
    pub(super) plan: Box<LoadPlan>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) arrived: Mono,
    /// When it has waited too long.
    pub(super) deadline: Mono,
    /// Loads it has seen fail.
    pub(super) loads_failed: u32,
}

/// Those that wait for one model. Every wait is equally long, so the first in line is the first to be late.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    line: VecDeque<Waiting>,
}

/// Whether a worker loaded as `loaded` can serve what asks for `wanted`. A smaller window is served by a larger one,
/// so that two clients with different windows don't reload the model in turns.
pub(super) fn serves(loaded: &LoadPlan, context_tokens: u32, wanted: &LoadPlan) -> bool {
    loaded.spec.context_tokens.max(context_tokens) >= wanted.spec.context_tokens && same_kind(loaded, wanted)
}

fn same_kind(one: &LoadPlan, other: &LoadPlan) -> bool {
    one.spec.embedding == other.spec.embedding && one.spec.adapters == other.spec.adapters
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.line.push_back(waiting);
    }

    pub(super) fn head(&self) -> Option<&Waiting> {
        self.line.front()
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        self.line.pop_front()
    }

    /// Takes one out of the line.
    pub(super) fn remove(&mut self, request: RequestId) -> Option<Waiting> {
        let index = self.line.iter().position(|waiting| waiting.request == request)?;
        self.line.remove(index)
    }

    /// Takes out all that `leaves` says, in order.
    pub(super) fn take(&mut self, mut leaves: impl FnMut(&mut Waiting) -> bool) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let mut index = 0;
        while index < self.line.len() {
            if leaves(&mut self.line[index]) {
                taken.extend(self.line.remove(index));
            } else {
                index += 1;
            }
        }
        taken
    }

    /// How to load for those that wait: as the first in line asks, with the largest window that anyone of its kind asks
    /// for.
    pub(super) fn plan(&self) -> Option<Box<LoadPlan>> {
        let head = &self.line.front()?.plan;
        let alike = self.line.iter().map(|waiting| &waiting.plan).filter(|plan| same_kind(head, plan));
        alike
            .reduce(|best, plan| if plan.spec.context_tokens > best.spec.context_tokens { plan } else { best })
            .cloned()
    }
}
