//! The gate: who is let in, who is refused at once; and leaving, for clients and for the whole server.

use ollmlx_proto::{Failure, FailureKind, ModelId, RequestId};

use super::event::{Cause, Job, KeepAlive, LoadPlan, Mono};
use super::lifecycle::{Input, State};
use super::model::{Model, Waiting};
use super::{Effect, Outbox, Scheduler};

/// Ollama's words, with its two spaces.
const BUSY: &str = "server busy, please try again.  maximum pending requests exceeded";

impl Scheduler {
    pub(super) fn arrived(
        &mut self,
        now: Mono,
        request: RequestId,
        job: Job,
        plan: LoadPlan,
        keep_alive: Option<KeepAlive>,
        out: &mut Outbox,
    ) {
        if self.requests.contains_key(&request) {
            out.push(Effect::Never { what: format!("{request} arrived twice") });
            return;
        }
        if let Some(failure) = self.refusal(now, &plan) {
            out.push(Effect::Fail { request, failure });
            return;
        }
        let id = plan.model.id.clone();
        let default = self.config.keep_alive;
        let model = self.models.entry(id.clone()).or_insert_with(|| Model::new(plan.clone(), default, now));
        if !model.state.is_live() && model.queue.is_empty() {
            // A new life: what an earlier one was told is forgotten.
            model.keep_alive = default;
        }
        if let Some(keep_alive) = keep_alive {
            model.keep_alive = keep_alive;
        }
        model.unload_asked = false;
        let deadline = now.plus_ms(self.config.queue_wait_ms);
        model.queue.push_back(Waiting { request, job, plan, deadline });
        self.requests.insert(request, id);
    }

    /// Why a request is not let in.
    fn refusal(&self, now: Mono, plan: &LoadPlan) -> Option<Failure> {
        if self.leaving {
            return Some(Failure::new(FailureKind::ShuttingDown, "the server is shutting down"));
        }
        let waiting: usize = self.models.values().map(|model| model.queue.len()).sum();
        if waiting >= self.config.queue_len_max {
            return Some(Failure::new(FailureKind::Busy, BUSY));
        }
        let needs = plan.memory.total();
        if !self.ledger.could_fit(needs) {
            let limit = self.ledger.limit().unwrap_or(0);
            let text = format!(
                "model requires more memory ({:.1} GB) than the limit allows ({:.1} GB); use a smaller model, a smaller \
                 num_ctx or fewer parallel requests",
                needs as f64 / 1e9,
                limit as f64 / 1e9
            );
            return Some(Failure::new(FailureKind::OutOfMemory, text));
        }
        let model = self.models.get(&plan.model.id)?;
        match model.state {
            State::Quarantined { until } if until > now => {
                let cause = model.last_death.clone().unwrap_or_default();
                Some(super::quarantine_failure(&cause, until.since(now) / 1_000_000))
            }
            _ => None,
        }
    }

    /// The client is gone. A waiting request is forgotten; a running one is cancelled, and keeps its slot until the
    /// worker confirms (law b).
    pub(super) fn left(&mut self, request: RequestId, out: &mut Outbox) {
        let Some(id) = self.requests.get(&request).cloned() else { return };
        let Some(model) = self.models.get_mut(&id) else { return };
        if let Some(present) = model.running.get_mut(&request) {
            if std::mem::replace(present, false) {
                let worker = model.worker(&id);
                out.push(Effect::Cancel { worker, request });
            }
            return;
        }
        model.queue.retain(|waiting| waiting.request != request);
        self.requests.remove(&request);
    }

    pub(super) fn unload(&mut self, id: &ModelId) {
        if let Some(model) = self.models.get_mut(id) {
            model.unload_asked = true;
        }
    }

    pub(super) fn pardon(&mut self, now: Mono, id: &ModelId, out: &mut Outbox) {
        let Some(model) = self.models.get_mut(id) else { return };
        model.tally.forget();
        model.load_failures = 0;
        model.restarts = 0;
        model.last_death = None;
        let worker = model.worker(id);
        self.hear(now, &worker, Input::Pardoned, None, out);
    }

    /// Nothing new is let in, who waits is told, who runs may end.
    pub(super) fn shut_down(&mut self, now: Mono, out: &mut Outbox) {
        self.leaving = true;
        let failure = Failure::new(FailureKind::ShuttingDown, "the server is shutting down");
        let ids: Vec<ModelId> = self.models.keys().cloned().collect();
        let deadline = now.plus_ms(self.config.drain_timeout_ms);
        for id in ids {
            self.refuse_queue(&id, &failure, out);
            let Some(model) = self.models.get(&id) else { continue };
            let worker = model.worker(&id);
            match model.state {
                State::Busy { .. } | State::Draining { .. } => {
                    self.hear(now, &worker, Input::Drain { deadline }, Some(Cause::Asked), out);
                }
                State::Absent | State::Spawning | State::Backoff { .. } | State::Quarantined { .. } => {}
                _ => self.hear(now, &worker, Input::Leave, Some(Cause::Asked), out),
            }
        }
    }

    /// No more patience.
    pub(super) fn shut_down_now(&mut self, now: Mono, out: &mut Outbox) {
        self.shut_down(now, out);
        let live: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| model.state.pid().is_some())
            .map(|(id, model)| model.worker(id))
            .collect();
        for worker in live {
            self.hear(now, &worker, Input::Kill, Some(Cause::Asked), out);
        }
    }
}
