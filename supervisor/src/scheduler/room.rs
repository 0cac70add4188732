//! After each event: whoever can be served is served, and room is made for whoever has no process yet.
//!
//! Whether a model should be up is derived from its line, never stored. The line over all models is one: the request
//! that has waited longest gets room first. Others may slip past it into room that it can't use, until it has waited
//! for [`super::SchedulerConfig::yield_after_ms`]; then nobody passes, and busy workers whose own line is younger
//! give way: they finish what they run and take no more. Models that died together wait for each other, see `incident`.

use super::evict::{Candidate, Need, choose};
use super::ladder::Step;
use super::lifecycle::{DrainReason, Input, State};
use super::model::Running;
use super::queue::Kept;
use super::{Effect, Mono, Outbox, Scheduler};

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
        for (arrived, at) in order {
            if self.held_until(&self.models[at]).is_some() {
                continue;
            }
            let has_waited = self.now.since(arrived) >= self.config.yield_after_ms.saturating_mul(1_000_000);
            match self.room_for(at, arrived, has_waited, out) {
                Room::Here => self.apply(at, Input::Wanted, None, out),
                // What is on the way is this one's.
                Room::OnTheWay => return,
                Room::Nowhere if has_waited => return,
                Room::Nowhere => {}
            }
        }
    }

    /// Looks for room, and evicts where that is enough.
    fn room_for(&mut self, at: usize, arrived: Mono, may_drain_busy: bool, out: &mut Outbox) -> Room {
        self.refuse_hopeless(at, out);
        let Some(plan) = self.models[at].queue.plan().and_then(|plan| self.fitted(plan).ok()) else {
            return Room::Nowhere;
        };
        let processes = self.models.iter().filter(|model| model.state.has_process()).count();
        // While the ladder holds, one comes for one that goes, if any may go.
        let may_go = |model: &super::Model| model.state.has_process() && !self.is_pinned(model);
        let one_for_one = self.ladder.step() >= Step::Hold && self.models.iter().any(may_go);
        let need = Need {
            bytes: self.ledger.missing(self.need_of(at, &plan)),
            places: (processes + 1).saturating_sub(self.config.workers_max.max(1)).max(usize::from(one_for_one)),
        };
        if need.is_met() {
            return Room::Here;
        }
        let (bytes, places) = self.coming();
        let need = need.after(bytes, places);
        if need.is_met() {
            return Room::OnTheWay;
        }
        let candidates = self.candidates(|model| match model.state {
            _ if self.is_pinned(model) => false,
            State::Idle { .. } => true,
            State::Busy { .. } => may_drain_busy && model.queue.head().is_none_or(|head| head.arrived > arrived),
            _ => false,
        });
        let Some(victims) = choose(candidates, need) else { return Room::Nowhere };
        for victim in victims {
            self.apply(victim.at, Input::Drain { reason: DrainReason::Room }, None, out);
        }
        Room::OnTheWay
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

    /// What those on their way out will free.
    fn coming(&self) -> (u64, usize) {
        let leaving = self.models.iter().filter(|model| model.state.is_leaving());
        leaving.fold((0, 0), |(bytes, places), model| (bytes + self.ledger.of(&model.id).bytes(), places + 1))
    }

    pub(super) fn candidates(&self, may_go: impl Fn(&super::Model) -> bool) -> Vec<Candidate> {
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
