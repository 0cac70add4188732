//! Who waits, who runs, who is refused.
//!
//! Each model has one line, all joined to one load: first in, first out for whoever asks alone. Where several ask, whoever
//! holds fewest slots is next, and of equals the one whose last turn is longest ago: keys first, then the addresses that
//! use one key. Those whose worker died come back to the front, the most suspicious first. Whoever holds a slot stays in the line's book until its worker confirms the end, since it may
//! come back.
//!
//! A suspect is run with nobody but those above suspicion, and nobody joins it; one that was present at
//! [`crate::limits::POISON_DEATHS_MAX`] deaths runs quite alone. Decision: suspects may run beside cleared ones, at the price of one more
//! death before a guilty one is alone. Rejected: each alone to its end, which makes seven innocent streams wait for each
//! other after every SIGKILL from outside.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::limits::{CLIENTS_REMEMBERED_MAX, LOAD_FOR_NOBODY_MS, REQUEST_BYTES_KEPT_MAX, REQUEST_BYTES_SHARE};
use ollmlx_proto::{ModelId, Request, RequestId};

use super::suspicion::Suspicion;
use crate::types::{Caller, Job, KeepAlive, KeyName, LoadPlan, Mono};

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
    pub(super) client: Caller,
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

/// When each of several got its last slot, as a number that rises; of those that had none for long it isn't known.
#[derive(Clone, Debug, Default)]
struct Turns {
    last: u64,
    keys: BTreeMap<Option<KeyName>, u64>,
    clients: BTreeMap<Caller, u64>,
}

impl Turns {
    fn take(&mut self, client: &Caller) {
        self.last += 1;
        self.keys.insert(client.key.clone(), self.last);
        self.clients.insert(client.clone(), self.last);
        if self.clients.len() > CLIENTS_REMEMBERED_MAX {
            let is_recent = |turn: &u64| self.last - turn < CLIENTS_REMEMBERED_MAX as u64 / 2;
            self.keys.retain(|_, turn| is_recent(turn));
            self.clients.retain(|_, turn| is_recent(turn));
        }
    }
}

/// Those that want one model.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// Those that came back, then the others as they came.
    waiting: VecDeque<Waiting>,
    /// Which of them is next.
    next: usize,
    turns: Turns,
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
        self.choose();
    }

    /// Puts one whose worker died before all that are new, less suspicious or came later.
    pub(super) fn readmit(&mut self, waiting: Waiting) {
        let rank = |one: &Waiting| (!one.came_back, Reverse(one.suspicion.deaths), one.arrived, one.request);
        let index = self.waiting.iter().position(|other| rank(other) >= rank(&waiting)).unwrap_or(self.waiting.len());
        self.waiting.insert(index, waiting);
        self.choose();
    }

    /// When the first of them has waited too long. Those that never ran wait equally long, and so the first of them is
    /// the first to be late; those that came back are before them.
    pub(super) fn deadline(&self) -> Option<Mono> {
        let first_new = self.waiting.iter().position(|waiting| !waiting.came_back).unwrap_or(self.waiting.len());
        self.waiting.iter().take(first_new + 1).map(|waiting| waiting.deadline).min()
    }

    /// Who is next.
    pub(super) fn head(&self) -> Option<&Waiting> {
        self.waiting.get(self.next)
    }

    /// Finds out who is next, after every change.
    fn choose(&mut self) {
        self.next = 0;
        if self.waiting.front().is_none_or(|first| first.came_back) {
            return;
        }
        let (mut keys, mut clients) = (BTreeMap::new(), BTreeMap::new());
        for Running { waiting, .. } in self.running.values() {
            *keys.entry(&waiting.client.key).or_insert(0_usize) += 1;
            *clients.entry(&waiting.client).or_insert(0_usize) += 1;
        }
        let rank = |(_, waiting): &(usize, &Waiting)| {
            let client = &waiting.client;
            let of_key = (keys.get(&client.key).copied(), self.turns.keys.get(&client.key).copied());
            (of_key, clients.get(client).copied(), self.turns.clients.get(client).copied())
        };
        self.next = self.waiting.iter().enumerate().min_by_key(rank).map_or(0, |(index, _)| index);
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

    /// The next one gets a slot.
    pub(super) fn grant(&mut self, now: Mono) -> Option<&Waiting> {
        let waiting = self.waiting.remove(self.next)?;
        let request = waiting.request;
        self.turns.take(&waiting.client);
        self.running.insert(request, Running { waiting, granted: now, cancel_deadline: None });
        self.choose();
        self.running.get(&request).map(|running| &running.waiting)
    }

    /// One that ran has ended.
    pub(super) fn end(&mut self, request: RequestId) -> Option<Running> {
        let ended = self.running.remove(&request);
        self.choose();
        ended
    }

    /// Nobody runs any more.
    pub(super) fn stop(&mut self) -> BTreeMap<RequestId, Running> {
        let stopped = std::mem::take(&mut self.running);
        self.choose();
        stopped
    }

    /// Takes one out that waits, since its client left. Returns whether it did.
    pub(super) fn leave(&mut self, request: RequestId, now: Mono) -> bool {
        let Some(index) = self.waiting.iter().position(|waiting| waiting.request == request) else { return false };
        self.left_at = Some(now);
        let left = self.waiting.remove(index).is_some();
        self.choose();
        left
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
        self.choose();
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

    /// How to load for those that wait, as far as they are of the next one's kind: with the largest window that anyone asks
    /// for, and on the terms of whoever asks for it. It can't do without what any of them can't do without, which may be
    /// more than these terms allow.
    pub(super) fn plan(&self) -> Option<Box<LoadPlan>> {
        let wider = |one: &LoadPlan, other: &LoadPlan| one.spec.context_tokens > other.spec.context_tokens;
        let head = &self.head()?.plan;
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
/// after a death, and the sum is bounded by [`REQUEST_BYTES_KEPT_MAX`]. Of those a key, or an address without one, may have no
/// more than [`REQUEST_BYTES_SHARE`] times what is left for others after it: three quarters where it is alone.
#[derive(Debug, Default)]
pub(super) struct Requests {
    of: BTreeMap<RequestId, (ModelId, usize, Caller)>,
    bytes: usize,
    shares: BTreeMap<Caller, usize>,
}

impl Requests {
    pub(super) fn has(&self, request: RequestId) -> bool {
        self.of.contains_key(&request)
    }

    /// The model that it wants.
    pub(super) fn model_of(&self, request: RequestId) -> Option<&ModelId> {
        self.of.get(&request).map(|(model, ..)| model)
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether one of so many bytes may be kept as well.
    pub(super) fn has_room(&self, bytes: usize, client: &Caller) -> bool {
        let left = REQUEST_BYTES_KEPT_MAX.checked_sub(self.bytes.saturating_add(bytes));
        let own = self.shares.get(&holder(client)).copied().unwrap_or(0);
        left.is_some_and(|left| own + bytes <= left * REQUEST_BYTES_SHARE)
    }

    pub(super) fn insert(&mut self, request: RequestId, model: ModelId, (bytes, client): (usize, &Caller)) {
        let holder = holder(client);
        *self.shares.entry(holder.clone()).or_default() += bytes;
        self.of.insert(request, (model, bytes, holder));
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, request: RequestId) {
        let Some((_, bytes, holder)) = self.of.remove(&request) else { return };
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&holder) {
            *share -= bytes;
            if *share == 0 {
                self.shares.remove(&holder);
            }
        }
    }
}

/// All addresses that use a key are one.
fn holder(client: &Caller) -> Caller {
    Caller { key: client.key.clone(), address: if client.key.is_some() { 0 } else { client.address } }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::scheduler::verdict::tests::waiting;

    /// A line of requests with these ids, of a key and an address.
    fn line(clients: &[(u64, &str, u64)]) -> Line {
        let mut line = Line::default();
        for (id, key, address) in clients {
            let client = Caller { key: (!key.is_empty()).then(|| KeyName::new(key)), address: *address };
            line.push(Waiting { client, ..waiting(*id, Suspicion::default()) });
        }
        line
    }

    /// The order in which they are served in one slot.
    fn served(line: &mut Line) -> Vec<u64> {
        let next = |line: &mut Line| {
            let request = line.grant(Mono(0)).map(|granted| granted.request)?;
            line.end(request);
            Some(request.0)
        };
        std::iter::from_fn(|| next(line)).collect()
    }

    #[test]
    fn one_client_is_served_as_it_came() {
        assert_eq!(served(&mut line(&[(1, "", 7), (2, "", 7), (3, "", 7)])), [1, 2, 3]);
    }

    #[test]
    fn keys_have_turns_and_within_a_key_its_addresses() {
        let flood = [(1, "a", 1), (2, "a", 1), (3, "a", 1), (4, "a", 2), (5, "b", 1), (6, "b", 1), (7, "", 1)];
        assert_eq!(served(&mut line(&flood)), [1, 5, 7, 4, 6, 2, 3]);
    }

    #[test]
    fn whoever_holds_fewest_slots_is_next() {
        let mut line = line(&[(1, "a", 1), (2, "a", 1), (3, "a", 1)]);
        line.grant(Mono(0));
        line.grant(Mono(0));
        let late = Caller { key: Some(KeyName::new("b")), address: 1 };
        line.push(Waiting { client: late, ..waiting(9, Suspicion::default()) });
        assert_eq!(line.head().map(|head| head.request.0), Some(9));
        let left = line.leave(RequestId(9), Mono(0));
        assert_eq!((left, line.head().map(|head| head.request.0)), (true, Some(3)));
    }

    #[test]
    fn one_that_came_back_is_before_whoever_has_had_less() {
        let mut line = line(&[(2, "b", 1), (3, "", 1)]);
        let back = Caller { key: Some(KeyName::new("a")), address: 1 };
        line.readmit(Waiting { client: back, came_back: true, ..waiting(9, Suspicion::default()) });
        assert_eq!(served(&mut line), [9, 2, 3]);
    }

    #[test]
    fn turns_of_a_crowd_are_forgotten_and_the_latest_are_not() {
        let (mut line, crowd) = (Line::default(), CLIENTS_REMEMBERED_MAX as u64 + 1);
        for address in 0..crowd {
            line.push(Waiting { client: Caller { key: None, address }, ..waiting(address, Suspicion::default()) });
            line.grant(Mono(0));
            line.end(RequestId(address));
            assert!(line.turns.clients.len() <= CLIENTS_REMEMBERED_MAX);
        }
        assert_eq!(line.turns.clients.len(), CLIENTS_REMEMBERED_MAX / 2);
        assert!(line.turns.clients.contains_key(&Caller { key: None, address: crowd - 1 }));
    }

    #[test]
    fn the_last_byte_is_kept_and_one_more_is_not() {
        let mut requests = Requests::default();
        let model = ModelId("m".to_owned());
        let (one, other) = (Caller::default(), Caller { key: Some(KeyName::new("a")), address: 1 });
        let most = REQUEST_BYTES_KEPT_MAX / 4 * 3;
        assert!(requests.has_room(most, &one) && !requests.has_room(most + 1, &one));
        requests.insert(RequestId(1), model.clone(), (most, &one));
        assert!(!requests.has_room(1, &one) && !requests.has_room(1, &Caller { key: None, ..one.clone() }));
        // Three quarters of what is left, and so on.
        let rest = REQUEST_BYTES_KEPT_MAX / 16 * 3;
        assert!(requests.has_room(rest, &other) && !requests.has_room(rest + 1, &other));
        requests.insert(RequestId(3), model.clone(), (rest, &other));
        assert!(!requests.has_room(1, &Caller { address: 2, ..other.clone() }), "of one key");
        assert!(requests.has_room(1, &Caller { address: 2, ..one.clone() }), "another address without one");
        requests.remove(RequestId(3));
        requests.remove(RequestId(1));
        requests.remove(RequestId(1));
        assert!(requests.has_room(most, &one) && requests.shares.is_empty());
        requests.insert(RequestId(2), model, (5, &one));
        assert_eq!((requests.len(), requests.has(RequestId(2)), requests.model_of(RequestId(1))), (1, true, None));
    }
}
