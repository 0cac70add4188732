//! The gate: a request leaves it granted, queued, joined to a load, or refused. And the way out for a client that
//! leaves.

use std::sync::Arc;

use ollmlx_proto::{Failure, RequestId, limits};

use super::lifecycle::State;
use super::model::Model;
use super::queue::{Kept, Waiting};
use super::{Effect, Outbox, Scheduler, cause};

use crate::types::{Job, KeepAlive, LoadPlan};

impl Scheduler {
    pub(super) fn arrived(
        &mut self,
        request: RequestId,
        job: Job,
        plan: Box<LoadPlan>,
        keep_alive: Option<KeepAlive>,
        out: &mut Outbox,
    ) {
        if self.homes.has(request) {
            return out.never(format!("{request} arrived twice"));
        }
        let bytes = match &job {
            Job::Load => 0,
            Job::Run(run) => run.bytes(),
        };
        let crowded = (!self.homes.has_room(bytes)).then(cause::queue_full);
        if let Some(failure) = self.refusal(&job, &plan).or(crowded) {
            return out.push(Effect::Fail { request, failure });
        }
        let at = self.place_of(&plan);
        let keep_alive = self.keep_alive(keep_alive);
        let model = &mut self.models[at];
        model.model = plan.model.clone();
        let arrived = self.now;
        let deadline = arrived.plus_ms(self.config.queue_wait_ms);
        self.homes.insert(request, model.id.clone(), bytes);
        self.queue_len += 1;
        let job = match job {
            Job::Load => Kept::Load,
            Job::Run(run) => Kept::Run(Arc::from(run)),
        };
        let waiting = Waiting {
            request,
            job,
            plan,
            keep_alive,
            arrived,
            deadline,
            loads_failed: 0,
            memory_deaths: 0,
            came_back: false,
            deaths: 0,
            was_acquitted: false,
            kills: 0,
        };
        model.queue.push(waiting);
    }

    /// Why it is turned away at once.
    fn refusal(&self, job: &Job, plan: &LoadPlan) -> Option<Failure> {
        if self.leaving {
            return Some(cause::shutting_down());
        }
        if let Job::Run(run) = job
            && let Some(until) = self.poisons.until(&plan.model.id, run, self.now)
        {
            return Some(cause::known_poison(until, self.now));
        }
        let known = self.find(&plan.model.id).ok().map(|at| &self.models[at]);
        if let Some(model) = known
            && let State::Quarantined { until } = model.state
        {
            return Some(cause::quarantined(model.last_death.as_deref(), until, self.now));
        }
        if let Some(failure) = known.and_then(|model| too_large_for(model, plan)) {
            return Some(failure);
        }
        let is_served = known.is_some_and(|model| model.state.accepts_work() && model.serves(plan));
        if !is_served && let Err(failure) = self.smaller(plan) {
            return Some(failure);
        }
        // One that doesn't have to wait is not turned away because others do.
        let waits = !known.is_some_and(|model| is_served && model.queue.is_empty() && model.has_free_slot());
        let own = known.map_or(0, |model| model.queue.len());
        (waits && !self.line_has_room(own)).then(cause::queue_full)
    }

    /// Whether one more may wait for a model that `own` wait for. Where the line is full those models still have room whose
    /// part is less than an even one, up to twice the line in all: a flood on one model does not shut the others out.
    fn line_has_room(&self, own: usize) -> bool {
        let most = self.config.queue_max;
        if self.queue_len < most {
            return true;
        }
        let others = self.models.iter().filter(|model| !model.queue.is_empty()).count();
        let lines = others + usize::from(own == 0);
        self.queue_len < most.saturating_mul(2) && own < most.div_ceil(lines.max(1))
    }

    fn place_of(&mut self, plan: &LoadPlan) -> usize {
        match self.find(&plan.model.id) {
            Ok(at) => at,
            Err(_) => {
                self.forget_one();
                let at = self.find(&plan.model.id).unwrap_or_else(|at| at);
                self.models.insert(at, Model::new(plan.model.clone(), self.config.default_keep_alive));
                at
            }
        }
    }

    /// Keeps the table bounded: the absent model that was used longest ago goes.
    fn forget_one(&mut self) {
        if self.models.len() >= limits::MODELS_REMEMBERED_MAX {
            let absent = self.models.iter().enumerate().filter(|(_, model)| model.is_forgettable());
            if let Some((at, _)) = absent.min_by_key(|(_, model)| model.last_used) {
                self.models.remove(at);
            }
        }
    }

    pub(super) fn left(&mut self, request: RequestId, out: &mut Outbox) {
        // One that has ended may still be reported as gone.
        let Some(home) = self.homes.get(request) else { return };
        let Ok(at) = self.find(home) else { return out.never(format!("{request} has no home")) };
        let model = &mut self.models[at];
        if model.queue.remove(request).is_some() {
            self.homes.remove(request);
            self.queue_len -= 1;
            model.left_alone = Some(self.now);
        } else if let Some(running) = model.running.get_mut(&request) {
            if running.cancel_deadline.is_none() {
                // One that is silent is found by that. This is for one that goes on and does not hear, and it may be in the
                // middle of a step that takes its time.
                let silence_ms = self.config.timeouts.silence_ms;
                let patience_ms = silence_ms.saturating_mul(limits::CANCEL_SILENCES);
                let patience_ms = patience_ms.min(silence_ms.max(limits::CANCEL_MS_MAX));
                running.cancel_deadline = Some(self.now.plus_ms(patience_ms));
                // One whose worker is dying is let go when that is reaped.
                if !matches!(model.state, State::Exiting { .. }) {
                    out.push(Effect::Cancel { worker: model.worker(), request });
                }
            }
        } else {
            out.never(format!("{request} is neither waiting nor running"));
        }
    }

    /// Ends one that is out of the line already.
    pub(super) fn fail_waiting(&mut self, request: RequestId, failure: Failure, out: &mut Outbox) {
        self.homes.remove(request);
        self.queue_len -= 1;
        out.push(Effect::Fail { request, failure });
    }
}

/// A request may want that its model takes no more than so much. One that is loaded is not loaded anew for that.
fn too_large_for(model: &Model, wanted: &LoadPlan) -> Option<Failure> {
    let limit = wanted.terms.limit?;
    let stays = model.state.has_process() && !model.state.is_leaving() && model.serves(wanted);
    let takes = model.plan.as_ref().filter(|_| stays)?.need();
    (takes > limit).then(|| cause::loaded_larger(takes, limit))
}
