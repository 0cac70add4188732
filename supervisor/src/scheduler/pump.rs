//! After every event: who can be granted is granted, who must be started is started, who is in the way goes.
//!
//! Desire is derived here from the queues and never stored. Eviction takes idle workers only, the one unused for longest
//! first; a busy worker is never thrown out for another model, its own drain is waited for.

use ollmlx_proto::{ModelId, RequestId};

use super::event::{Cause, Job, KeepAlive, Mono};
use super::lifecycle::{Input, State};
use super::model::Waiting;
use super::snapshot::{Snapshot, WorkerView};
use super::{Effect, Outbox, Scheduler};

impl Scheduler {
    pub(super) fn pump(&mut self, now: Mono, out: &mut Outbox) {
        if self.leaving {
            return;
        }
        // Longest-waiting model first, so that no model starves another.
        let mut waiting: Vec<(RequestId, ModelId)> = self
            .models
            .iter()
            .filter_map(|(id, model)| model.queue.front().map(|head| (head.request, id.clone())))
            .collect();
        waiting.sort();
        for (_, id) in waiting {
            self.serve(now, &id, out);
        }
        self.unload_idle(now, out);
    }

    /// Does for one model what its state allows.
    fn serve(&mut self, now: Mono, id: &ModelId, out: &mut Outbox) {
        while let Some(model) = self.models.get_mut(id) {
            let Some(head) = model.queue.front() else { return };
            let worker = model.worker(id);
            if model.state.accepts_work() {
                if !model.serves(&head.plan) {
                    // It is reloaded in the larger form once what runs has ended.
                    let deadline = now.plus_ms(self.config.queue_wait_ms);
                    self.hear(now, &worker, Input::Drain { deadline }, Some(Cause::Asked), out);
                    return;
                }
                if matches!(head.job, Job::Run(_)) && model.state.in_flight() >= model.slots() {
                    return;
                }
                let Some(head) = model.queue.pop_front() else { return };
                self.grant(now, id, head, out);
                continue;
            }
            if matches!(model.state, State::Absent) {
                self.start(now, id, out);
            }
            return;
        }
    }

    fn grant(&mut self, now: Mono, id: &ModelId, head: Waiting, out: &mut Outbox) {
        let Some(model) = self.models.get_mut(id) else { return };
        model.used_at = now;
        let worker = model.worker(id);
        match head.job {
            Job::Load => {
                self.requests.remove(&head.request);
                let expires_at = model.expires_at(now);
                out.push(Effect::Loaded { request: head.request, worker: worker.clone() });
                self.hear(now, &worker, Input::Rearm { expires_at }, None, out);
            }
            Job::Run(request) => {
                model.running.insert(head.request, true);
                self.hear(now, &worker, Input::Granted, None, out);
                out.push(Effect::Grant { worker, request });
            }
        }
    }

    /// Starts a process for `id` if there is room, else shows an idle one the door and waits.
    fn start(&mut self, now: Mono, id: &ModelId, out: &mut Outbox) {
        let Some(model) = self.models.get(id) else { return };
        // The plan of the largest window among those who wait, so that it is loaded once.
        let largest = model.queue.iter().max_by_key(|waiting| waiting.plan.spec.context_tokens);
        let Some(plan) = largest.map(|waiting| waiting.plan.clone()) else { return };
        let live = self.models.values().filter(|model| model.state.is_live()).count();
        if live >= self.config.workers_max || !self.ledger.fits(plan.memory.total()) {
            self.evict(now, out);
            return;
        }
        self.ledger.reserve(id, plan.memory.total());
        let Some(model) = self.models.get_mut(id) else { return };
        model.incarnation.0 = model.incarnation.0.wrapping_add(1);
        model.plan = plan.clone();
        model.ending = None;
        let worker = model.worker(id);
        self.hear(now, &worker, Input::Wanted, None, out);
        out.push(Effect::Spawn { worker, plan: Box::new(plan) });
    }

    /// Shows the idle worker that was unused for longest the door; none where one is leaving already.
    fn evict(&mut self, now: Mono, out: &mut Outbox) {
        let leaving = self.models.values().any(|model| matches!(model.state, State::Exiting { .. }));
        if leaving {
            return;
        }
        let victim = self
            .models
            .iter()
            .filter(|(_, model)| matches!(model.state, State::Idle { .. }) && model.queue.is_empty())
            .min_by_key(|(_, model)| (model.keep_alive == KeepAlive::Forever, model.used_at))
            .map(|(id, model)| model.worker(id));
        if let Some(worker) = victim {
            self.hear(now, &worker, Input::Leave, Some(Cause::Asked), out);
        }
    }

    /// Idle workers that were asked to unload go now.
    fn unload_idle(&mut self, now: Mono, out: &mut Outbox) {
        let asked: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| {
                let wanted_gone = model.unload_asked || model.keep_alive == KeepAlive::Unload;
                wanted_gone && model.queue.is_empty() && matches!(model.state, State::Idle { .. })
            })
            .map(|(id, model)| model.worker(id))
            .collect();
        for worker in asked {
            self.hear(now, &worker, Input::Leave, Some(Cause::Asked), out);
        }
    }

    /// The latest view of everything.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let workers = self
            .models
            .iter()
            .map(|(id, model)| {
                let ready = model.ready.as_ref();
                let (expires_at, pinned) = match model.state {
                    State::Idle { expires_at, .. } => (expires_at, expires_at.is_none()),
                    _ => (None, model.keep_alive == KeepAlive::Forever),
                };
                let rests_until = match model.state {
                    State::Backoff { until } | State::Quarantined { until } => Some(until),
                    _ => None,
                };
                WorkerView {
                    worker: model.worker(id),
                    model: std::sync::Arc::clone(&model.plan.model),
                    state: model.state.name(),
                    pid: model.state.pid(),
                    expires_at,
                    pinned,
                    in_flight: model.running.len(),
                    queued: model.queue.len(),
                    slots: ready.map_or(model.plan.spec.slots, |ready| ready.slots),
                    context_tokens: ready.map_or(model.plan.spec.context_tokens, |ready| ready.context_tokens),
                    memory_bytes: self.ledger.of(id).max(model.sampled_bytes),
                    accelerator_bytes: ready.map_or(0, |ready| ready.accelerator_bytes),
                    device: ready.map(|ready| ready.device.clone()).unwrap_or_default(),
                    restarts: model.restarts,
                    last_death: model.last_death.clone(),
                    rests_until,
                }
            })
            .collect();
        Snapshot {
            workers,
            queue_len: self.models.values().map(|model| model.queue.len()).sum(),
            running: self.models.values().map(|model| model.running.len()).sum(),
            reserved_bytes: self.ledger.total(),
            limit_bytes: self.ledger.limit(),
            leaving: self.leaving,
        }
    }
}
