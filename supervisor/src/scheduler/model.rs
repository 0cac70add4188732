//! What the scheduler knows of one model: its life, its line, its present process and its past.

use std::collections::BTreeMap;
use std::sync::Arc;

use ollmlx_proto::{Incarnation, ModelId, Ready, RequestId, WorkerId, limits};

use super::backoff::DeathTally;
use super::incident::Membership;
use super::ladder::Ladder;
use super::lifecycle::State;
use super::queue::{Queue, Waiting, serves};
use super::record::Deaths;
use crate::catalog::ModelRef;

use crate::types::{Cause, KeepAlive, LoadPlan, ModelDeaths, Mono};

/// A request that holds a slot.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// As it waited, and will again if its worker dies.
    pub(super) waiting: Waiting,
    /// Its client left; the worker must confirm the end by then.
    pub(super) cancel_deadline: Option<Mono>,
}

/// One model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) id: ModelId,
    pub(super) model: Arc<ModelRef>,
    /// Of its present or last process.
    pub(super) incarnation: Incarnation,
    pub(super) state: State,
    pub(super) queue: Queue,
    /// Who holds a slot. In step with the state's count, except while a lost link lingers.
    pub(super) running: BTreeMap<RequestId, Running>,
    /// How the present process was told to load.
    pub(super) plan: Option<Box<LoadPlan>>,
    /// What it said when it was ready.
    pub(super) ready: Option<Ready>,
    pub(super) progress: Option<(u64, u64)>,
    /// Why it is on its way out.
    pub(super) cause: Option<Cause>,
    /// The state it was in before that, and how many it ran then.
    pub(super) left_from: Option<(&'static str, usize)>,
    pub(super) keep_alive: KeepAlive,
    pub(super) last_used: Mono,
    /// As the last request said.
    pub(super) priority: i32,
    /// When its present process was wanted.
    pub(super) started: Mono,
    /// When somebody left its line last.
    pub(super) left_alone: Option<Mono>,
    /// What its last load took, in nanoseconds; 0 where none has ended.
    pub(super) load_ns: u64,
    pub(super) tally: DeathTally,
    pub(super) restarts: u32,
    /// The class of cause that the last process died of, if that was unasked.
    pub(super) died: Option<&'static str>,
    pub(super) last_death: Option<String>,
    pub(super) deaths: Deaths,
    /// The incident that its last processes died in.
    pub(super) incident: Option<Membership>,
    /// Processes that died of their memory since one ended otherwise.
    pub(super) memory_deaths: u32,
    /// Bytes that the last of several such took.
    pub(super) appetite: Option<u64>,
    /// Bytes that its present process was found to take when it was ready.
    pub(super) ready_bytes: u64,
    /// Where it stands with its own limit.
    pub(super) own_ladder: Ladder,
    /// Processes in a row that took more than the whole limit in their load.
    pub(super) too_large: u32,
    /// Lower CPU level that its processes are told to use, since one died in its start at a better one.
    pub(super) cpu_level: Option<&'static str>,
}

impl Model {
    pub(super) fn new(model: Arc<ModelRef>, keep_alive: KeepAlive) -> Self {
        Self {
            id: model.id.clone(),
            model,
            incarnation: Incarnation(0),
            state: State::Absent,
            queue: Queue::default(),
            running: BTreeMap::new(),
            plan: None,
            ready: None,
            progress: None,
            cause: None,
            left_from: None,
            keep_alive,
            last_used: Mono(0),
            priority: 0,
            started: Mono(0),
            load_ns: 0,
            tally: DeathTally::default(),
            restarts: 0,
            left_alone: None,
            died: None,
            last_death: None,
            deaths: Deaths::default(),
            incident: None,
            memory_deaths: 0,
            appetite: None,
            ready_bytes: 0,
            own_ladder: Ladder::default(),
            too_large: 0,
            cpu_level: None,
        }
    }

    pub(super) fn worker(&self) -> WorkerId {
        WorkerId { model: self.id.clone(), incarnation: self.incarnation }
    }

    /// Bytes that its present process may take, where it has a limit of its own.
    pub(super) fn own_limit(&self) -> Option<u64> {
        self.plan.as_ref().and_then(|plan| plan.terms.limit)
    }

    /// When an idle worker goes, counted from now.
    pub(super) fn expires_at(&self, now: Mono) -> Option<Mono> {
        match self.keep_alive {
            KeepAlive::ForMs(ms) => Some(now.plus_ms(ms)),
            KeepAlive::Forever => None,
            KeepAlive::Unload => Some(now),
        }
    }

    /// Whether the process can serve what asks for `wanted`.
    pub(super) fn serves(&self, wanted: &LoadPlan) -> bool {
        let context_tokens = self.ready.as_ref().map_or(0, |ready| ready.context_tokens);
        self.plan.as_ref().is_some_and(|loaded| serves(loaded, context_tokens, wanted))
    }

    pub(super) fn has_free_slot(&self) -> bool {
        let slots = self.ready.as_ref().map_or(0, |ready| usize::from(ready.slots));
        self.state.accepts_work() && self.running.len() < slots
    }

    /// The last death that it was present at is no evidence against it: once, until it has got ahead. Two that kill the workers
    /// of two models at the same time again and again would never be alone otherwise.
    pub(super) fn acquit(&mut self, request: RequestId) {
        let running = self.running.get_mut(&request).map(|running| &mut running.waiting);
        if let Some(waiting) = running.or_else(|| self.queue.find(request)) {
            let pardoned = u32::from(!std::mem::replace(&mut waiting.was_acquitted, true));
            waiting.deaths = waiting.deaths.saturating_sub(pardoned);
        }
    }

    /// When its load is given up, since nobody waits for it any more.
    pub(super) fn given_up_at(&self) -> Option<Mono> {
        let loads = matches!(self.state, State::Handshaking { .. } | State::Loading { .. });
        let alone = self.left_alone.filter(|_| loads && self.queue.is_empty() && self.running.is_empty());
        alone.map(|at| at.plus_ms(limits::LOAD_FOR_NOBODY_MS))
    }

    /// For the view: nothing where it never died.
    pub(super) fn deaths(&self) -> Option<ModelDeaths> {
        let Deaths { records, count } = &self.deaths;
        let model = self.model.clone();
        (*count > 0).then(|| ModelDeaths { model, deaths: records.clone(), count: *count })
    }

    /// Whether one that runs is on probation: then nobody joins it.
    pub(super) fn has_suspect(&self) -> bool {
        self.running.values().any(|running| running.waiting.deaths > 0 || running.waiting.must_be_alone())
    }

    /// Probation: one suspect at a time, nobody joins it, and one that was present at two deaths runs alone.
    pub(super) fn must_wait(&self, head: &Waiting) -> bool {
        self.has_suspect() || (head.must_be_alone() && !self.running.is_empty())
    }

    /// Whether nothing would be lost by forgetting it.
    pub(super) fn is_forgettable(&self) -> bool {
        self.state == State::Absent && self.queue.is_empty() && self.tally.is_empty()
    }
}
