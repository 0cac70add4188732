//! The waiting room of one model: first in, first out, all joined to one load. Those whose worker died come back to the
//! front, the most suspicious first.

use std::collections::VecDeque;
use std::sync::Arc;

use ollmlx_proto::limits::POISON_DEATHS_MAX;
use ollmlx_proto::{Request, RequestId};

use crate::types::{KeepAlive, LoadPlan, Mono};

/// What a request is kept as: one prompt, however often it is granted.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Load,
    Run(Arc<Request>),
}

/// One that waits, or holds a slot and may come back.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    pub(super) job: Kept,
    pub(super) plan: Box<LoadPlan>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) arrived: Mono,
    /// When it has waited too long.
    pub(super) deadline: Mono,
    /// Loads it has seen fail.
    pub(super) loads_failed: u32,
    /// Times its worker was ended for its memory since it last got ahead.
    pub(super) memory_deaths: u32,
    /// It held a slot before.
    pub(super) came_back: bool,
    /// Deaths it has been present at since it was last above suspicion.
    pub(super) deaths: u32,
    /// It was let off one of them, since others died at the same time.
    pub(super) was_acquitted: bool,
    /// The same for deaths that somebody outside caused, those in its load included.
    pub(super) kills: u32,
}

impl Waiting {
    /// Whether its next death, if it is one of that kind, must be nobody else's.
    pub(super) fn must_be_alone(&self) -> bool {
        self.deaths.max(self.memory_deaths) >= POISON_DEATHS_MAX
    }
}

/// Those that wait for one model.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    line: VecDeque<Waiting>,
}

/// Whether a worker loaded as `loaded` can serve what asks for `wanted`. A smaller window is served by a larger one,
/// so that two clients with different windows don't reload the model in turns. One that was made smaller to fit serves
/// whoever can do with that.
pub(super) fn serves(loaded: &LoadPlan, context_tokens: u32, wanted: &LoadPlan) -> bool {
    let needed = if loaded.terms.shrunk {
        wanted.terms.context_least.min(wanted.spec.context_tokens)
    } else {
        wanted.spec.context_tokens
    };
    loaded.spec.context_tokens.max(context_tokens) >= needed && same_kind(loaded, wanted)
}

fn same_kind(one: &LoadPlan, other: &LoadPlan) -> bool {
    one.spec.embedding == other.spec.embedding && one.spec.adapters == other.spec.adapters
}

fn wider(one: &LoadPlan, other: &LoadPlan) -> bool {
    one.spec.context_tokens > other.spec.context_tokens
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

    /// Puts one whose worker died before all that are less suspicious or came later.
    pub(super) fn readmit(&mut self, waiting: Waiting) {
        let goes_after = |other: &Waiting| {
            (std::cmp::Reverse(other.deaths), other.arrived, other.request)
                < (std::cmp::Reverse(waiting.deaths), waiting.arrived, waiting.request)
        };
        let index = self.line.iter().position(|other| !goes_after(other)).unwrap_or(self.line.len());
        self.line.insert(index, waiting);
    }

    /// When the first of them has waited too long. Those that never ran wait equally long, and so the first of them is
    /// the first to be late; those that came back are before them.
    pub(super) fn deadline(&self) -> Option<Mono> {
        let mut first = None;
        for waiting in &self.line {
            first = Some(first.map_or(waiting.deadline, |first: Mono| first.min(waiting.deadline)));
            if !waiting.came_back {
                break;
            }
        }
        first
    }

    pub(super) fn head(&self) -> Option<&Waiting> {
        self.line.front()
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        self.line.pop_front()
    }

    pub(super) fn find(&mut self, request: RequestId) -> Option<&mut Waiting> {
        self.line.iter_mut().find(|waiting| waiting.request == request)
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

    /// How to load for those that wait, as far as they are of the first one's kind: with the largest window that anyone asks
    /// for, and on the terms of whoever asks for it. It can't do without what any of them can't do without, which may be
    /// more than these terms allow.
    pub(super) fn plan(&self) -> Option<Box<LoadPlan>> {
        let head = &self.line.front()?.plan;
        let alike = || self.line.iter().map(|waiting| &waiting.plan).filter(|plan| same_kind(head, plan));
        let needed = alike().map(|plan| plan.terms.context_least.min(plan.spec.context_tokens)).max();
        let mut plan = alike().reduce(|best, plan| if wider(plan, best) { plan } else { best }).cloned()?;
        plan.terms.context_least = needed.unwrap_or(plan.spec.context_tokens);
        Some(plan)
    }
}
