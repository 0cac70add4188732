//! What the scheduler knows of one model: its life, its line, its present process and its past; and the table of all.

use std::sync::Arc;

use crate::limits;
use ollmlx_proto::{Incarnation, ModelId, Ready, WorkerId};

use super::gauge::Gauge;
use super::history::History;
use super::life::State;
use super::line::{Line, serves};
use crate::catalog::ModelRef;
use crate::types::{Caller, Cause, KeepAlive, LoadPlan, ModelDeaths, Mono};

/// The present process, or the last one until it is reaped.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// How it was told to load.
    pub(super) plan: Option<Box<LoadPlan>>,
    /// What it said when it was ready.
    pub(super) ready: Option<Ready>,
    /// Bytes that it was found to take then.
    pub(super) ready_bytes: u64,
    /// Of its load: done, and of how much.
    pub(super) progress: Option<(u64, u64)>,
    /// When it was wanted.
    pub(super) started: Mono,
    /// Why it is on its way out.
    pub(super) cause: Option<Cause>,
    /// The state it was in before that, and how many it ran then.
    pub(super) left_from: Option<(&'static str, usize)>,
    /// Where it stands with its model's own limit.
    pub(super) own_limit: Gauge,
}

impl Process {
    /// Keeps why it leaves, and from where, at the transition that makes it. Returns the cause that is told of.
    pub(super) fn note_way_out(
        &mut self,
        (from, to): (State, State),
        over: Option<Cause>,
        cause: Option<Cause>,
        runs: usize,
    ) -> Option<Cause> {
        let leaves = matches!(to, State::Exiting { .. });
        let hurries = matches!(to, State::Draining { reason, .. } if reason.is_hurry());
        if (hurries || leaves) && !matches!(from, State::Exiting { .. }) {
            // Those that end in a hurry were there as well.
            let before = self.left_from.map_or(0, |(_, count)| count);
            self.left_from = Some((from.name(), before.max(runs)));
        }
        if !leaves {
            return cause;
        }
        let why = match (over, cause) {
            // What ends its link in this state is most likely the system, for the same reason.
            (Some(over), None | Some(Cause::LinkLost)) => over,
            (_, cause) => cause.unwrap_or(Cause::Asked),
        };
        Some(self.cause.get_or_insert(why).clone())
    }
}

/// How much a model is wanted, when others need its place.
#[derive(Clone, Debug)]
pub(super) struct Stay {
    pub(super) keep_alive: KeepAlive,
    /// Whose word that is: whoever asked last, unless an earlier one keeps it for ever.
    pub(super) client: Caller,
    /// When they said it.
    pub(super) said: Mono,
    /// As the last request said.
    pub(super) priority: i32,
    /// When it last got or ended a request.
    pub(super) last_used: Mono,
}

impl Stay {
    /// A request of this client is served; it may have said how long the model stays after it. As long as the word of another key
    /// holds, nobody shortens it, nor takes it for theirs by repeating it.
    pub(super) fn asked(&mut self, client: &Caller, keep_alive: Option<KeepAlive>, now: Mono) {
        let asked = keep_alive.unwrap_or(self.keep_alive);
        let is_others = self.client.key.is_some() && self.client.key != client.key;
        let holds = now < self.said.plus_ms(self.keep_alive.ms());
        if is_others && holds && asked.ms() <= self.keep_alive.ms() {
            return;
        }
        self.said = now;
        if keep_alive.is_some() || self.keep_alive != KeepAlive::Forever {
            self.client = client.clone();
        }
        self.keep_alive = asked;
    }
}

/// One model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) id: ModelId,
    pub(super) model: Arc<ModelRef>,
    /// Of its present or last process.
    pub(super) incarnation: Incarnation,
    pub(super) state: State,
    pub(super) line: Line,
    pub(super) process: Process,
    pub(super) stay: Stay,
    pub(super) history: History,
    /// The incident that its last processes died in.
    pub(super) incident: Option<Membership>,
}

/// That a model died with others; until a process of it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) number: u64,
    /// The first of the deaths.
    pub(super) since: Mono,
}

impl Model {
    fn new(model: Arc<ModelRef>, keep_alive: KeepAlive) -> Self {
        Self {
            id: model.id.clone(),
            model,
            incarnation: Incarnation(0),
            state: State::Absent,
            line: Line::default(),
            process: Process::default(),
            stay: Stay { keep_alive, client: Caller::default(), said: Mono(0), priority: 0, last_used: Mono(0) },
            history: History::default(),
            incident: None,
        }
    }

    pub(super) fn worker(&self) -> WorkerId {
        WorkerId { model: self.id.clone(), incarnation: self.incarnation }
    }

    /// A new process with this plan. Nobody's word holds but that of whoever is next, where nobody wants it to stay longer.
    pub(super) fn begin(&mut self, plan: Option<Box<LoadPlan>>, default: KeepAlive, now: Mono) {
        self.incarnation = Incarnation(self.incarnation.0.saturating_add(1));
        if let Some(next) = self.line.head().filter(|_| self.stay.keep_alive == default) {
            self.stay.client = next.client.clone();
        }
        self.stay.priority = plan.as_ref().map_or(0, |plan| plan.terms.priority);
        self.stay.last_used = now;
        self.process = Process { plan, started: now, ..Process::default() };
    }

    /// Bytes that its present process may take, where it has a limit of its own.
    pub(super) fn own_limit(&self) -> Option<u64> {
        self.process.plan.as_ref().and_then(|plan| plan.terms.limit)
    }

    /// When an idle worker goes, counted from now.
    pub(super) fn expires_at(&self, now: Mono) -> Option<Mono> {
        match self.stay.keep_alive {
            KeepAlive::ForMs(ms) => Some(now.plus_ms(ms)),
            KeepAlive::Forever => None,
            KeepAlive::Unload => Some(now),
        }
    }

    /// Whether the process can serve what asks for `wanted`.
    pub(super) fn serves(&self, wanted: &LoadPlan) -> bool {
        let context_tokens = self.process.ready.as_ref().map_or(0, |ready| ready.context_tokens);
        self.process.plan.as_ref().is_some_and(|loaded| serves(loaded, context_tokens, wanted))
    }

    pub(super) fn has_free_slot(&self) -> bool {
        let slots = self.process.ready.as_ref().map_or(0, |ready| usize::from(ready.slots));
        self.state.accepts_work() && self.line.running().len() < slots
    }

    /// When its load is given up, since nobody waits for it any more.
    pub(super) fn given_up_at(&self) -> Option<Mono> {
        let loads = matches!(self.state, State::Handshaking { .. } | State::Loading { .. });
        self.line.given_up_at().filter(|_| loads)
    }

    /// When the first of those that were cancelled must be let go; one on its way out is waited for in any case.
    pub(super) fn cancel_deadline(&self) -> Option<Mono> {
        self.line.cancel_deadline().filter(|_| !matches!(self.state, State::Exiting { .. }))
    }

    /// For the view: nothing where it never died.
    pub(super) fn deaths(&self) -> Option<ModelDeaths> {
        let deaths = &self.history.deaths;
        let (model, records) = (self.model.clone(), deaths.records.clone());
        (deaths.count > 0).then_some(ModelDeaths { model, deaths: records, count: deaths.count })
    }

    /// Whether nothing would be lost by forgetting it.
    fn is_forgettable(&self) -> bool {
        self.state == State::Absent && self.line.is_empty() && self.history.is_empty()
    }
}

/// All models, in order of id; a place is stable within a step.
#[derive(Debug, Default)]
pub(super) struct Models(Vec<Model>);

impl std::ops::Deref for Models {
    type Target = [Model];

    fn deref(&self) -> &[Model] {
        &self.0
    }
}

impl std::ops::DerefMut for Models {
    fn deref_mut(&mut self) -> &mut [Model] {
        &mut self.0
    }
}

impl Models {
    pub(super) fn find(&self, model: &ModelId) -> Option<usize> {
        self.0.binary_search_by(|known| known.id.cmp(model)).ok()
    }

    /// The place of a living process; `None` for one that is gone, whose late words are dropped.
    pub(super) fn living(&self, worker: &WorkerId) -> Option<usize> {
        let at = self.find(&worker.model)?;
        let model = &self.0[at];
        (model.incarnation == worker.incarnation && model.state.has_process()).then_some(at)
    }

    /// The place of a model, known or new. The table stays bounded: the absent model that was used longest ago goes.
    pub(super) fn place_of(&mut self, model: &Arc<ModelRef>, keep_alive: KeepAlive) -> usize {
        if let Some(at) = self.find(&model.id) {
            return at;
        }
        if self.0.len() >= limits::MODELS_REMEMBERED_MAX {
            let absent = self.0.iter().enumerate().filter(|(_, model)| model.is_forgettable());
            if let Some((at, _)) = absent.min_by_key(|(_, model)| model.stay.last_used) {
                self.0.remove(at);
            }
        }
        let at = self.0.partition_point(|known| known.id < model.id);
        self.0.insert(at, Model::new(Arc::clone(model), keep_alive));
        at
    }
}
