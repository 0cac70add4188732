//! After each event: whoever can be served is served, and room is made for whoever has no process yet.
//!
//! Whether a model should be up is derived from its line, never stored. The line over all models is one: the request
//! that has waited longest gets room first. Others may slip past it into room that it can't use, until it has waited
//! for [`super::SchedulerConfig::yield_after_ms`]; then busy workers whose own line is younger give way: they finish what
//! they run and take no more. From then on, or once its room is on the way, only those pass that it doesn't wait longer for.
//! Models that died together wait for each other, see `incident`.
//!
//! Decision: room that somebody's patience is to bring is no reason to spare idle workers, nor to leave room empty that is
//! there: what a draining worker still runs may take for ever. Rejected: nobody passes one whose room is on the way, with
//! which a single endless answer holds up every model that isn't loaded.

use super::evict::{Candidate, Need, choose};
use super::lifecycle::{DrainReason, Input, State};
use super::model::{Model, Running};
use super::queue::Kept;
use super::relief::is_going;
use super::{Effect, Outbox, Scheduler};

use crate::types::{Mono, Step};

/// A model without a process that somebody waits for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// The first in its line.
    arrived: Mono,
    /// Whether busy workers give way to it.
    has_waited: bool,
    /// What it needs.
    bytes: u64,
}

/// Whether a model can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Here,
    OnTheWay,
    Nowhere,
}

impl Scheduler {
    pub(super) fn settle_wants(&mut self, out: &mut Outbox) {
        if self.leaving {
            let reaped = !self.models.iter().any(|model| model.state.has_process());
            if reaped && !std::mem::replace(&mut self.finished, true) {
                out.push(Effect::Finished);
            }
            return;
        }
        if self.queue_len == 0 {
            return;
        }
        for at in 0..self.models.len() {
            self.serve(at, out);
        }
        self.make_room(out);
    }

    /// Grants to those first in line.
    fn serve(&mut self, at: usize, out: &mut Outbox) {
        let model = &self.models[at];
        if !model.state.accepts_work() || model.queue.is_empty() {
            return;
        }
        self.answer_loads(at, out);
        loop {
            let model = &mut self.models[at];
            let Some(head) = model.queue.head() else { return };
            if !model.serves(&head.plan) {
                return self.apply(at, Input::Drain { reason: DrainReason::Reload }, None, out);
            }
            if !model.has_free_slot() || model.must_wait(head) {
                return;
            }
            let Some(waiting) = model.queue.pop() else { return };
            self.queue_len -= 1;
            let Kept::Run(request) = waiting.job.clone() else {
                out.never(format!("{} is a load that waits for a slot", waiting.request));
                continue;
            };
            model.keep_alive = waiting.keep_alive.unwrap_or(model.keep_alive);
            model.priority = waiting.plan.terms.priority;
            model.last_used = self.now;
            self.totals.resumed += u64::from(waiting.came_back);
            model.running.insert(waiting.request, Running { waiting, cancel_deadline: None });
            let worker = model.worker();
            self.apply(at, Input::Granted, None, out);
            out.push(Effect::Grant { worker, request });
        }
    }

    /// Loads need no slot, so they don't wait for one.
    fn answer_loads(&mut self, at: usize, out: &mut Outbox) {
        let model = &mut self.models[at];
        let mut queue = std::mem::take(&mut model.queue);
        let loads = queue.take(|waiting| matches!(waiting.job, Kept::Load) && model.serves(&waiting.plan));
        model.queue = queue;
        if loads.is_empty() {
            return;
        }
        for waiting in loads {
            self.queue_len -= 1;
            self.homes.remove(waiting.request);
            model.keep_alive = waiting.keep_alive.unwrap_or(model.keep_alive);
            model.priority = waiting.plan.terms.priority;
            out.push(Effect::Loaded { request: waiting.request, worker: model.worker() });
        }
        model.last_used = self.now;
        let expires_at = model.expires_at(self.now);
        self.apply(at, Input::Rearm { expires_at }, None, out);
    }

    fn make_room(&mut self, out: &mut Outbox) {
        let absent = self.models.iter().enumerate().filter(|(_, model)| model.state == State::Absent);
        let mut order: Vec<(Mono, usize)> =
            absent.filter_map(|(at, model)| Some((model.queue.head()?.arrived, at))).collect();
        order.sort_unstable();
        self.rank_incidents(&mut order);
        // Who waits on, and the bytes of each and of all before it.
        let mut ahead: Vec<u64> = Vec::new();
        for (_, at) in order {
            if ahead.len() > self.places_without_work() {
                return;
            }
            if self.held_until(&self.models[at]).is_some() {
                continue;
            }
            self.refuse_hopeless(at, out);
            let Some(arrived) = self.models[at].queue.head().map(|head| head.arrived) else { continue };
            let Some(plan) = self.next_plan(at) else { continue };
            let has_waited = self.now.since(arrived) >= self.config.yield_after_ms.saturating_mul(1_000_000);
            let wanted = Wanted { arrived, has_waited, bytes: self.need_of(at, &plan) };
            match self.room_for(wanted, &ahead, out) {
                Room::Here => self.apply(at, Input::Wanted, None, out),
                Room::Nowhere if !has_waited => {}
                Room::OnTheWay | Room::Nowhere => ahead.push(claimed(&ahead).saturating_add(wanted.bytes)),
            }
        }
    }

    /// Looks for room, and evicts where that is enough. Only for the first in line do busy ones give way.
    fn room_for(&mut self, wanted: Wanted, ahead: &[u64], out: &mut Outbox) -> Room {
        let Wanted { arrived, has_waited, bytes } = wanted;
        let need = self.need(bytes, 1);
        let (soon, soon_places) = self.freed_by(is_going);
        let is_idle = |model: &Model| !self.is_pinned(model) && matches!(model.state, State::Idle { .. });
        let idle = choose(self.candidates(is_idle), need.after(soon, soon_places));
        if let Some(victims) = idle.filter(|victims| self.delays_nobody(ahead, bytes, victims)) {
            self.give_way(&victims, out);
            return if need.is_met() { Room::Here } else { Room::OnTheWay };
        }
        let (bytes, count) = (claimed(ahead).saturating_add(bytes), ahead.len() + 1);
        let (coming, coming_places) = self.freed_by(State::is_leaving);
        let need = self.need(bytes, count).after(coming, coming_places);
        if need.is_met() {
            return Room::OnTheWay;
        }
        let gives_way = |model: &Model| match model.state {
            State::Busy { .. } => {
                has_waited && !self.is_pinned(model) && model.queue.head().is_none_or(|head| head.arrived > arrived)
            }
            _ => is_idle(model),
        };
        let Some(victims) = choose(self.candidates(gives_way), need).filter(|_| ahead.is_empty()) else {
            return Room::Nowhere;
        };
        self.give_way(&victims, out);
        Room::OnTheWay
    }

    fn give_way(&mut self, victims: &[Candidate], out: &mut Outbox) {
        for victim in victims {
            self.apply(victim.at, Input::Drain { reason: DrainReason::Room }, None, out);
        }
    }

    /// What is missing for so many processes that take so much together.
    fn need(&self, bytes: u64, count: usize) -> Need {
        // While the ladder holds, one comes for one that goes, if any may go.
        let one_for_one = self.ladder.step() >= Step::Hold && self.movable().next().is_some();
        let places = (self.processes() + count).saturating_sub(self.config.workers_max.max(1));
        Need { bytes: self.ledger.missing(bytes), places: places.max(if one_for_one { count } else { 0 }) }
    }

    /// Whether those ahead wait no longer if somebody takes so much in the place of these: each waits for some processes to
    /// go, and whichever of them are enough for it must still be enough.
    fn delays_nobody(&self, ahead: &[u64], bytes: u64, victims: &[Candidate]) -> bool {
        let more = bytes.saturating_sub(victims.iter().fold(0, |sum: u64, victim| sum.saturating_add(victim.bytes)));
        let places = self.config.workers_max.max(1).saturating_sub(self.processes()) + victims.len();
        let (coming, _) = self.freed_by(State::is_leaving);
        ahead.iter().enumerate().all(|(index, &claimed)| {
            let missing = self.ledger.missing(claimed);
            let leaving = self.models.iter().filter(|model| model.state.is_leaving());
            // Where that is not enough it may be anybody.
            let others = self.movable().filter(|model| coming < missing && !model.state.is_leaving());
            let freed = leaving.chain(others).map(|model| self.ledger.of(&model.id).bytes());
            let freed = freed.chain([self.ledger.elsewhere()]);
            places > index && is_still_enough(freed, missing, more)
        })
    }

    fn processes(&self) -> usize {
        self.models.iter().filter(|model| model.state.has_process()).count()
    }

    /// Processes that go if others need it.
    fn movable(&self) -> impl Iterator<Item = &Model> {
        self.models.iter().filter(|model| model.state.has_process() && !self.is_pinned(model))
    }

    /// Places for processes that are empty, or could be at once.
    fn places_without_work(&self) -> usize {
        let idle = self.movable().filter(|model| matches!(model.state, State::Idle { .. }));
        self.config.workers_max.max(1).saturating_sub(self.processes()) + idle.count()
    }

    /// Others may have been pinned while they waited.
    fn refuse_hopeless(&mut self, at: usize, out: &mut Outbox) {
        let mut queue = std::mem::take(&mut self.models[at].queue);
        let mut failures = Vec::new();
        let hopeless = queue.take(|waiting| match self.smaller(&waiting.plan) {
            Ok(_) => false,
            Err(failure) => {
                failures.push(failure);
                true
            }
        });
        self.models[at].queue = queue;
        for (waiting, failure) in hopeless.into_iter().zip(failures) {
            self.fail_waiting(waiting.request, failure, out);
        }
    }

    /// Bytes and places that those in such a state have.
    fn freed_by(&self, is_in: impl Fn(State) -> bool) -> (u64, usize) {
        let leaving = self.models.iter().filter(|model| is_in(model.state));
        leaving.fold((0, 0), |(bytes, places): (u64, usize), model| {
            (bytes.saturating_add(self.ledger.of(&model.id).bytes()), places + 1)
        })
    }

    pub(super) fn candidates(&self, may_go: impl Fn(&Model) -> bool) -> Vec<Candidate> {
        let able = self.models.iter().enumerate().filter(|(_, model)| may_go(model));
        able.map(|(at, model)| Candidate {
            at,
            busy: matches!(model.state, State::Busy { .. }),
            bytes: self.ledger.of(&model.id).bytes(),
            priority: model.priority,
            keep_alive: model.keep_alive,
            idle_ns: self.now.since(model.last_used),
            load_ns: model.load_ns,
            last_used: model.last_used,
        })
        .collect()
    }
}

/// What the last of those ahead and all before it will take.
fn claimed(ahead: &[u64]) -> u64 {
    ahead.last().copied().unwrap_or(0)
}

/// Whether whichever of these are enough for what is missing are enough for that and more: those of which one alone would not
/// be must not be enough together either. It is too careful where only several large ones are enough.
fn is_still_enough(freed: impl Iterator<Item = u64>, missing: u64, more: u64) -> bool {
    let small = freed.filter(|&bytes| bytes < missing.saturating_add(more));
    more == 0 || small.fold(0, u64::saturating_add) < missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_enough_for_others_is_never_taken_from_them() {
        let mut said_so = 0;
        for case in 0..7_u64.pow(5) {
            let number = |place: u32| case / 7_u64.pow(place) % 7;
            let (freed, missing, more) = ([number(0), number(1), number(2)], number(3) + 1, number(4));
            let mut sums =
                (0..8).map(|set| (0..3).filter(|one| (set >> one) & 1 == 1).map(|one| freed[one]).sum::<u64>());
            let is_harmless = sums.all(|sum| sum < missing || sum >= missing + more);
            let says_so = is_still_enough(freed.into_iter(), missing, more);
            assert!(is_harmless || !says_so, "{freed:?} for {missing} and {more}");
            let alone = freed[1] == 0 && freed[2] == 0;
            assert!(
                !alone || says_so == is_harmless,
                "one alone is judged exactly: {freed:?} for {missing} and {more}"
            );
            said_so += u64::from(says_so && more > 0);
        }
        assert!(said_so > 0);
    }
}
