//! Who waits, who runs, who is refused.
//!
//! Each model has one line: first in, first out, all joined to one load. Those whose worker died come back to the front, the
//! most suspicious first. Whoever holds a slot stays in the line's book until its worker confirms the end, since it may
//! come back.
//!
//! A suspect is run with nobody but those above suspicion, and nobody joins it; one that was present at
//! [`crate::limits::POISON_DEATHS_MAX`] deaths runs quite alone. Decision: suspects may run beside cleared ones, at the price of one more
//! death before a guilty one is alone. Rejected: each alone to its end, which makes seven innocent streams wait for each
//! other after every SIGKILL from outside.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::limits::{LOAD_FOR_NOBODY_MS, REQUEST_BYTES_KEPT_MAX};
use ollmlx_proto::{ModelId, Request, RequestId};

use super::suspicion::Suspicion;
use crate::types::{Client, Job, KeepAlive, LoadPlan, Mono};

/// What a request is kept as: one prompt, however often it is granted.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Load,
    Run(Arc<Request>),
}

impl Kept {
    pub(super) fn new(job: Job) -> Self {
        match job {
            Job::Load => Self::Load,
            Job::Run(run) => Self::Run(Arc::from(run)),
        }
    }
}

/// One that waits, or holds a slot and may come back.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) request: RequestId,
    pub(super) job: Kept,
    pub(super) plan: Box<LoadPlan>,
    pub(super) keep_alive: Option<KeepAlive>,
    /// Who asks.
    pub(super) client: Client,
    pub(super) arrived: Mono,
    /// When it has waited too long.
    pub(super) deadline: Mono,
    /// It held a slot before.
    pub(super) came_back: bool,
    /// What the deaths of its workers say of it.
    pub(super) suspicion: Suspicion,
}

/// A request that holds a slot.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// As it waited, and will again if its worker dies.
    pub(super) waiting: Waiting,
    /// When it got the slot.
    pub(super) granted: Mono,
    /// Its client left; the worker must confirm the end by then.
    pub(super) cancel_deadline: Option<Mono>,
}

/// Those that want one model.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<Waiting>,
    /// Who holds a slot. In step with the state's count, except while a lost link lingers.
    running: BTreeMap<RequestId, Running>,
    /// When somebody left it last.
    left_at: Option<Mono>,
}

impl Line {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Puts one whose worker died before all that are less suspicious or came later.
    pub(super) fn readmit(&mut self, waiting: Waiting) {
        let rank = |one: &Waiting| (Reverse(one.suspicion.deaths), one.arrived, one.request);
        let index = self.waiting.iter().position(|other| rank(other) >= rank(&waiting)).unwrap_or(self.waiting.len());
        self.waiting.insert(index, waiting);
    }

    /// When the first of them has waited too long. Those that never ran wait equally long, and so the first of them is
    /// the first to be late; those that came back are before them.
    pub(super) fn deadline(&self) -> Option<Mono> {
        let first_new = self.waiting.iter().position(|waiting| !waiting.came_back).unwrap_or(self.waiting.len());
        self.waiting.iter().take(first_new + 1).map(|waiting| waiting.deadline).min()
    }

    pub(super) fn head(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    pub(super) fn running(&self) -> &BTreeMap<RequestId, Running> {
        &self.running
    }

    /// Every request that it knows, to change what it wants or what is thought of it.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.waiting.iter_mut().chain(self.running.values_mut().map(|running| &mut running.waiting))
    }

    /// One that holds a slot.
    pub(super) fn running_mut(&mut self, request: RequestId) -> Option<&mut Waiting> {
        self.running.get_mut(&request).map(|running| &mut running.waiting)
    }

    /// One that waits.
    pub(super) fn waiting_mut(&mut self, request: RequestId) -> Option<&mut Waiting> {
        self.waiting.iter_mut().find(|waiting| waiting.request == request)
    }

    /// The first one gets a slot.
    pub(super) fn grant(&mut self, now: Mono) -> Option<&Waiting> {
        let waiting = self.waiting.pop_front()?;
        let request = waiting.request;
        self.running.insert(request, Running { waiting, granted: now, cancel_deadline: None });
        self.running.get(&request).map(|running| &running.waiting)
    }

    /// One that ran has ended.
    pub(super) fn end(&mut self, request: RequestId) -> Option<Running> {
        self.running.remove(&request)
    }

    /// Nobody runs any more.
    pub(super) fn stop(&mut self) -> BTreeMap<RequestId, Running> {
        std::mem::take(&mut self.running)
    }

    /// Takes one out that waits, since its client left. Returns whether it did.
    pub(super) fn leave(&mut self, request: RequestId, now: Mono) -> bool {
        let Some(index) = self.waiting.iter().position(|waiting| waiting.request == request) else { return false };
        self.left_at = Some(now);
        self.waiting.remove(index).is_some()
    }

    /// The client of one that runs left. Returns whether that is news.
    pub(super) fn cancel(&mut self, request: RequestId, deadline: Mono) -> Option<bool> {
        let running = self.running.get_mut(&request)?;
        let is_news = running.cancel_deadline.is_none();
        running.cancel_deadline.get_or_insert(deadline);
        Some(is_news)
    }

    /// When the first of those that were cancelled must be let go.
    pub(super) fn cancel_deadline(&self) -> Option<Mono> {
        self.running.values().filter_map(|running| running.cancel_deadline).min()
    }

    /// Takes out those that wait and `leaves` says, in order.
    pub(super) fn take(&mut self, mut leaves: impl FnMut(&mut Waiting) -> bool) -> Vec<Waiting> {
        let (mut gone, mut stay) = (Vec::new(), VecDeque::new());
        for mut waiting in std::mem::take(&mut self.waiting) {
            if leaves(&mut waiting) {
                gone.push(waiting);
            } else {
                stay.push_back(waiting);
            }
        }
        self.waiting = stay;
        gone
    }

    /// Takes out those that have waited too long.
    pub(super) fn take_late(&mut self, now: Mono) -> Vec<Waiting> {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        self.left_at = Some(now);
        self.take(|waiting| waiting.deadline <= now)
    }

    /// When a load is given up, since nobody waits for it any more.
    pub(super) fn given_up_at(&self) -> Option<Mono> {
        let left_at = self.left_at.filter(|_| self.waiting.is_empty() && self.running.is_empty());
        left_at.map(|at| at.plus_ms(LOAD_FOR_NOBODY_MS))
    }

    /// Probation: one suspect at a time, nobody joins it, and one that was present at two deaths runs alone.
    pub(super) fn must_wait(&self, head: &Waiting) -> bool {
        let has_suspect = self.running.values().any(|running| running.waiting.suspicion.is_on_probation());
        has_suspect || (head.suspicion.must_be_alone() && !self.running.is_empty())
    }

    /// The last death that it was present at is no evidence against it.
    pub(super) fn acquit(&mut self, request: RequestId) {
        if let Some(waiting) = self.all_mut().find(|waiting| waiting.request == request) {
            waiting.suspicion.acquit();
        }
    }

    /// How to load for those that wait, as far as they are of the first one's kind: with the largest window that anyone asks
    /// for, and on the terms of whoever asks for it. It can't do without what any of them can't do without, which may be
    /// more than these terms allow.
    pub(super) fn plan(&self) -> Option<Box<LoadPlan>> {
        let wider = |one: &LoadPlan, other: &LoadPlan| one.spec.context_tokens > other.spec.context_tokens;
        let head = &self.waiting.front()?.plan;
        let alike = || self.waiting.iter().map(|waiting| &waiting.plan).filter(|plan| same_kind(head, plan));
        let needed = alike().map(|plan| plan.terms.context_least.min(plan.spec.context_tokens)).max();
        let mut plan = alike().reduce(|best, plan| if wider(plan, best) { plan } else { best }).cloned()?;
        plan.terms.context_least = needed.unwrap_or(plan.spec.context_tokens);
        Some(plan)
    }
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

/// Where each living request is, and how many bytes all of them take: each is kept until its end, so that it can go on
/// after a death, and the sum is bounded by [`REQUEST_BYTES_KEPT_MAX`].
#[derive(Debug, Default)]
pub(super) struct Requests {
    of: BTreeMap<RequestId, (ModelId, usize)>,
    bytes: usize,
}

impl Requests {
    pub(super) fn has(&self, request: RequestId) -> bool {
        self.of.contains_key(&request)
    }

    /// The model that it wants.
    pub(super) fn model_of(&self, request: RequestId) -> Option<&ModelId> {
        self.of.get(&request).map(|(model, _)| model)
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether one of so many bytes may be kept as well.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= REQUEST_BYTES_KEPT_MAX
    }

    pub(super) fn insert(&mut self, request: RequestId, model: ModelId, bytes: usize) {
        self.of.insert(request, (model, bytes));
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, request: RequestId) {
        if let Some((_, bytes)) = self.of.remove(&request) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_is_kept_and_one_more_is_not() {
        let mut requests = Requests::default();
        let model = ModelId("m".to_owned());
        requests.insert(RequestId(1), model.clone(), REQUEST_BYTES_KEPT_MAX - 1);
        assert!(requests.has_room(1) && !requests.has_room(2));
        requests.remove(RequestId(1));
        requests.remove(RequestId(1));
        assert!(requests.has_room(REQUEST_BYTES_KEPT_MAX));
        requests.insert(RequestId(2), model, 5);
        assert_eq!((requests.len(), requests.has(RequestId(2)), requests.model_of(RequestId(1))), (1, true, None));
    }
}
