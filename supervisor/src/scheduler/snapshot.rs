//! What the scheduler shows: read-only views for `/api/ps`, `ollmlx ps` and metrics.

use super::Scheduler;
use super::lifecycle::State;
use super::model::Model;

use crate::types::{Account, KeepAlive, Mono, Snapshot, WorkerView};

impl Scheduler {
    /// What it is like now. Absent models that nobody waits for are left out.
    #[must_use]
    pub fn snapshot(&self, _now: Mono) -> Snapshot {
        let shown = |model: &&Model| model.state != State::Absent || !model.queue.is_empty();
        Snapshot {
            workers: self.models.iter().filter(shown).map(|model| self.view(model)).collect(),
            queue_len: self.queue_len,
            running: self.models.iter().map(|model| model.running.len()).sum(),
            reserved_bytes: self.ledger.total(),
            limit_bytes: self.ledger.limit(),
            elsewhere_bytes: self.ledger.elsewhere(),
            measured_bytes: self.ledger.measured(),
            relief: self.ladder.step(),
            shrink: self.config.shrink,
            workers_max: self.config.workers_max.max(1),
            pins_hold: self.config.default_keep_alive != KeepAlive::Forever,
            service_ns: 0,
            is_replaced: self.is_replaced,
            leaving: self.leaving,
            deaths: self.models.iter().filter_map(Model::deaths).collect(),
            totals: self.totals,
            restarts: self.restarts.clone(),
        }
    }

    fn view(&self, model: &Model) -> WorkerView {
        let ready = model.ready.as_ref();
        let expires_at = match model.state {
            State::Idle { expires_at, .. } => expires_at,
            _ => None,
        };
        let rests_until = match model.state {
            State::Backoff { until } | State::Quarantined { until } => Some(until),
            _ => None,
        };
        let planned = || model.plan.as_ref().map_or(0, |plan| plan.spec.context_tokens);
        WorkerView {
            worker: model.worker(),
            model: model.model.clone(),
            state: model.state.name(),
            pid: model.state.pid(),
            expires_at,
            pinned: model.keep_alive == KeepAlive::Forever,
            in_flight: model.running.len(),
            queued: model.queue.len(),
            slots: ready.map_or(0, |ready| ready.slots),
            context_tokens: ready.map_or_else(planned, |ready| ready.context_tokens),
            memory_bytes: self.ledger.of(&model.id).bytes(),
            account: self.account(model),
            priority: model.priority,
            accelerator_bytes: ready.map_or(0, |ready| ready.accelerator_bytes),
            device: ready.map_or_else(String::new, |ready| ready.device.clone()),
            restarts: model.restarts,
            last_death: model.last_death.clone(),
            rests_until,
            cpu_level: model.cpu_level,
        }
    }

    fn account(&self, model: &Model) -> Account {
        let holding = self.ledger.of(&model.id);
        let known = Account {
            planned: holding.planned,
            ready: model.ready.as_ref().map(|ready| ready.memory).unwrap_or_default(),
            reported: holding.reported,
            sampled: holding.sampled,
            measured: holding.measured(),
            ..Account::default()
        };
        let Some(plan) = &model.plan else { return known };
        let spec = &plan.spec;
        Account {
            slots: spec.slots,
            context_tokens: spec.context_tokens,
            batch_tokens: spec.batch_tokens,
            kv_type: spec.kv_type.clone(),
            estimate: plan.memory,
            limit: plan.terms.limit,
            shrunk: plan.terms.shrunk,
            ..known
        }
    }

    /// Looks for a broken invariant: for the simulation, after each step.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut total = 0;
        for model in &self.models {
            let worker = model.worker();
            if self.ledger.holds(&model.id) != model.state.has_process() {
                return Err(format!("I1: {worker} in {:?} and its memory disagree", model.state));
            }
            total += self.ledger.of(&model.id).bytes();
            let pinned = matches!(model.state, State::Idle { expires_at: None, .. });
            let timeless = pinned || matches!(model.state, State::Absent | State::Spawning);
            if model.state.deadline().is_none() != timeless {
                return Err(format!("I3: {worker} in {:?} has no deadline", model.state));
            }
            let counted = model.state.in_flight() == model.running.len();
            if !counted && !matches!(model.state, State::Exiting { .. }) {
                return Err(format!("I5: {worker} in {:?} runs {}", model.state, model.running.len()));
            }
            let slots = model.ready.as_ref().map_or(0, |ready| usize::from(ready.slots));
            if model.running.len() > slots {
                return Err(format!("{worker} runs {} in {slots} slots", model.running.len()));
            }
        }
        if self.ledger.limit().is_some_and(|limit| self.ledger.planned() > limit) {
            return Err(format!("plans of {} bytes are over the limit", self.ledger.planned()));
        }
        let queued: usize = self.models.iter().map(|model| model.queue.len()).sum();
        let running: usize = self.models.iter().map(|model| model.running.len()).sum();
        if total != self.ledger.total() || queued != self.queue_len || queued + running != self.homes.len() {
            return Err(format!("sums: {total} bytes, {queued} queued, {running} running, {} known", self.homes.len()));
        }
        Ok(())
    }
}
