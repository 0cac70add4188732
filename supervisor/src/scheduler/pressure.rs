//! How near memory is to its limit, and what is asked of whom about it.
//!
//! Two scopes are held in the same way: all processes against the common limit, and each process of a model with a limit of
//! its own against that. What is measured counts, not what is reserved: reservations never exceed the limit. Each step is
//! entered at one mark and left at a lower one, so that a value that trembles around a mark changes nothing.
//!
//! | step | what is done while it lasts |
//! |---|---|
//! | hold | a load needs that another worker goes first, see `placement` |
//! | trim | workers are asked to drop what they only keep for reuse |
//! | evict | idle workers go |
//! | drain | the worker furthest above its plan takes no more and has a short time to finish |
//! | kill | it is killed |
//!
//! For all there is a second gauge, and the higher one counts: the time that processes of the machine lose by waiting for
//! memory. It never kills: it does not say whose fault it is.
//!
//! A worker that is on its way out counts as gone here, and as there until it is reaped when it is asked whether something
//! fits.
//!
//! Decision: a worker that grows so fast that it would be over the mark for killing within
//! [`limits::GROWTH_HORIZON_MS`] is killed as soon as the limit is passed. Rejected: draining it first, in which time it
//! takes as much as it likes.
//!
//! Decision: a model that is larger than a limit while it loads, or when it is ready, is given up at once and rests like one
//! that failed too often, each time for twice as long; whoever waits is told the numbers. Rejected: three attempts, each of
//! which presses everybody else out; and to remember for good what it took, which one load in a bad moment would make as
//! large as that.
//!
//! Decision: an idle worker above its own limit goes without counting as a failure, since it answered what it was asked. One
//! that works counts: a limit that is too low for what a model is asked ends in the same rest as any other death.

use crate::limits::{self, MEMORY_MARKS_PERMILLE};

use super::gauge::Gauge;
use super::ledger::{Holding, part, permille};
use super::life::{DrainReason, State};
use super::model::Model;
use super::placement::evict::{Candidate, Need, choose};
use super::view::View;
use crate::types::{Cause, Mono, Step};

/// Pressure on the memory of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pressure {
    /// What was measured of the workers, in permille of the limit.
    used: Gauge,
    /// What the machine says of itself, in permille of the time.
    machine: Gauge,
    /// When workers were last asked to drop caches, and what was measured then.
    trimmed: Option<(Mono, u64)>,
    /// When a worker last went because of the machine.
    relieved: Option<Mono>,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { used: Gauge::default(), machine: Gauge::of_machine(), trimmed: None, relieved: None }
    }
}

/// What is asked of one worker.
#[derive(Clone, Debug)]
pub(super) enum Demand {
    /// To drop its caches.
    Trim,
    /// To take no more.
    Drain(DrainReason),
    /// Nothing any more.
    Kill,
}

/// Of whom, what, and what it dies of if it does.
#[derive(Clone, Debug)]
pub(super) struct Demanded {
    /// Its place in the table.
    pub(super) at: usize,
    pub(super) ask: Demand,
    pub(super) cause: Option<Cause>,
}

/// One process of a scope.
#[derive(Clone, Copy)]
struct Member<'a> {
    at: usize,
    model: &'a Model,
    holding: Holding,
    state: State,
    /// It was told to go in this round.
    goes: bool,
    killed: bool,
}

impl Member<'_> {
    fn frees_soon(&self) -> bool {
        self.goes || self.state.frees_soon()
    }

    fn is_killed(&self) -> bool {
        self.killed || self.state.is_killed()
    }

    /// Nothing to do, and nobody waits for it: one that is just ready and waited for would be loaded again, without end.
    fn is_idle(&self) -> bool {
        !self.goes && matches!(self.state, State::Idle { .. }) && self.model.line.is_empty()
    }

    fn above_plan(&self) -> u64 {
        self.holding.measured().saturating_sub(self.holding.planned)
    }

    fn is_far_above(&self) -> bool {
        self.above_plan() > self.holding.planned / 4
    }
}

/// Whose memory is held against which limit.
struct Scope<'a> {
    limit: Option<u64>,
    /// By what is measured alone.
    step: Step,
    members: Vec<Member<'a>>,
    /// A single one, against its model's own limit.
    is_own: bool,
    asked: Vec<Demanded>,
}

/// What one worker is asked because of its own memory: a load that is over a limit, leaked memory, and its model's own limit.
/// Returns where its gauge stands then.
pub(super) fn of_one(view: View<'_>, at: usize) -> (Gauge, Vec<Demanded>) {
    let model = &view.models[at];
    let holding = view.holding(model);
    let mut gauge = model.process.own_limit;
    let before = gauge.step();
    let limit = model.own_limit();
    if let Some(limit) = limit {
        gauge.read(permille(holding.measured(), limit));
    }
    if matches!(model.state, State::Loading { .. }) {
        let cause = too_large(view, model, holding.measured());
        return (
            gauge,
            cause.map(|cause| Demanded { at, ask: Demand::Kill, cause: Some(cause) }).into_iter().collect(),
        );
    }
    if has_leaked(model, holding) {
        let ask = Demand::Drain(DrainReason::Reload);
        return (gauge, vec![Demanded { at, ask, cause: Some(Cause::Leaked) }]);
    }
    if limit.is_none() || model.state.pid().is_none() || model.state.is_killed() {
        return (gauge, Vec::new());
    }
    let step = gauge.step();
    let mut scope = Scope { limit, step, members: vec![member(view, at)], is_own: true, asked: Vec::new() };
    scope.kill_worst();
    if scope.asked.is_empty() && step >= Step::Drain {
        scope.drain_worst();
    }
    if scope.asked.is_empty() && step >= Step::Trim && before < Step::Trim {
        scope.trim();
    }
    (gauge, scope.asked)
}

/// One that keeps much more than it needs goes while nobody misses it. What is wrong with an estimate shows when the
/// process is ready, and is no leak.
fn has_leaked(model: &Model, holding: Holding) -> bool {
    let usual = holding.planned.max(model.process.ready_bytes);
    let slack = (usual / 100).saturating_mul(limits::LEAK_PERCENT).max(limits::LEAK_BYTES_MIN);
    let is_idle = matches!(model.state, State::Idle { .. }) && model.line.is_empty();
    is_idle && holding.is_sampled() && holding.measured() > usual.saturating_add(slack)
}

/// What one dies of that needs so much for its load alone; nothing where it may take that.
pub(super) fn too_large(view: View<'_>, model: &Model, need: u64) -> Option<Cause> {
    let limit = view.ledger.limit().unwrap_or(u64::MAX);
    let own = model.own_limit().unwrap_or(u64::MAX);
    (need > limit.min(own)).then_some(Cause::TooLarge { need, limit, own })
}

/// What one dies of that is drained for its memory.
pub(super) fn drained_for(view: View<'_>, model: &Model) -> Option<Cause> {
    let own = || model.own_limit().map(|limit| Cause::OverOwnLimit { took: view.holding(model).peak, limit });
    match model.state {
        State::Draining { reason: DrainReason::OverBudget, .. } => Some(Cause::OverBudget),
        State::Draining { reason: DrainReason::OverOwnLimit, .. } => own(),
        _ => None,
    }
}

fn member(view: View<'_>, at: usize) -> Member<'_> {
    let model = &view.models[at];
    Member { at, model, holding: view.holding(model), state: model.state, goes: false, killed: false }
}

impl Pressure {
    /// Where it stands.
    pub(super) fn step(self) -> Step {
        self.used.step().max(self.machine.step())
    }

    /// Reads what is used of the limit, in permille.
    pub(super) fn read_use(&mut self, permille: u64) {
        self.used.read(permille);
    }

    /// Reads the time that the machine loses to waiting for memory, in permille.
    pub(super) fn read_machine(&mut self, permille: u64) {
        self.machine.read(permille);
    }

    /// What is asked of whom because of the memory of all.
    pub(super) fn asks(&mut self, view: View<'_>) -> Vec<Demanded> {
        if self.step() < Step::Trim {
            self.trimmed = None;
            return Vec::new();
        }
        let members = (0..view.models.len()).filter(|&at| view.models[at].state.has_process());
        let members = members.map(|at| member(view, at)).collect();
        let step = self.used.step();
        let mut scope = Scope { limit: view.ledger.limit(), step, members, is_own: false, asked: Vec::new() };
        if self.is_worse(&scope, view.now) {
            self.trimmed = Some((view.now, scope.measured()));
            scope.trim();
        }
        if self.step() >= Step::Evict {
            self.evict_idle(&mut scope, view);
        }
        if self.step() >= Step::Drain {
            self.drain(&mut scope, view.now);
        }
        if step >= Step::Drain {
            scope.kill_worst();
        }
        scope.asked
    }

    /// Once for each time that it gets worse: memory that is full as planned is not to cost caches for ever.
    fn is_worse(self, scope: &Scope<'_>, now: Mono) -> bool {
        let worse = scope.limit.unwrap_or(u64::MAX) / 20;
        self.trimmed.is_none_or(|(last, then)| {
            now >= last.plus_ms(limits::TRIM_AGAIN_MS) && scope.measured() >= then.saturating_add(worse)
        })
    }

    fn evict_idle(&mut self, scope: &mut Scope<'_>, view: View<'_>) {
        let excess = scope.excess(Step::Evict);
        if excess == 0 && !self.may_act(scope, view.now) || excess > 0 && scope.is_one_worker_s_fault(excess) {
            return;
        }
        let able = |pinned| {
            let idle = scope.members.iter().filter(move |one| one.is_idle() && view.is_pinned(one.model) == pinned);
            // What its going frees is what is measured.
            idle.map(|one| Candidate { bytes: one.holding.measured(), ..Candidate::of(view, one.at) })
                .collect::<Vec<_>>()
        };
        let (mut idle, pinned) = (able(false), able(true));
        if excess == 0 {
            // What others need is no reason to break a promise.
            idle = choose(idle, Need { bytes: 0, places: 1 }).unwrap_or_default();
            self.acted(!idle.is_empty(), view.now);
        } else if let Some(enough) = choose(idle.clone(), Need { bytes: excess, places: 0 }) {
            idle = enough;
        } else {
            let all: u64 = idle.iter().map(|candidate| candidate.bytes).sum();
            let missing = Need { bytes: excess.saturating_sub(all), places: 0 };
            let more = choose(pinned.clone(), missing).unwrap_or(pinned);
            idle.extend(more);
        }
        for victim in idle {
            scope.ask(victim.at, Demand::Drain(DrainReason::Relief), None);
        }
    }

    fn drain(&mut self, scope: &mut Scope<'_>, now: Mono) {
        if scope.excess(Step::Drain) == 0 {
            // Nobody's fault, unless somebody is far above what it was given.
            let is_guilty = scope.worst(|one| one.state.works()).is_some_and(|one| one.is_far_above());
            if !is_guilty || !self.may_act(scope, now) {
                return;
            }
            self.acted(true, now);
        }
        scope.drain_worst();
    }

    /// What the machine says lags behind what was done about it.
    fn may_act(self, scope: &Scope<'_>, now: Mono) -> bool {
        let rested = |last: Mono| now >= last.plus_ms(limits::PRESSURE_AGAIN_MS);
        !scope.members.iter().any(Member::frees_soon) && self.relieved.is_none_or(rested)
    }

    fn acted(&mut self, acted: bool, now: Mono) {
        if acted {
            self.relieved = Some(now);
        }
    }
}

impl<'a> Scope<'a> {
    fn sum(&self, of: impl Fn(&Member<'a>) -> u64) -> u64 {
        self.members.iter().fold(0, |sum: u64, one| sum.saturating_add(of(one)))
    }

    fn measured(&self) -> u64 {
        self.sum(|one| one.holding.measured())
    }

    fn measured_above(&self, mark_permille: u64) -> u64 {
        self.limit.map_or(0, |limit| self.measured().saturating_sub(part(limit, mark_permille)))
    }

    fn ask(&mut self, at: usize, ask: Demand, cause: Option<Cause>) {
        if let Some(one) = self.members.iter_mut().find(|one| one.at == at) {
            one.goes |= !matches!(ask, Demand::Trim);
            one.killed |= matches!(ask, Demand::Kill);
        }
        self.asked.push(Demanded { at, ask, cause });
    }

    fn trim(&mut self) {
        let able = |state| matches!(state, State::Idle { .. } | State::Busy { .. } | State::Draining { .. });
        let able: Vec<usize> = self.members.iter().filter(|one| able(one.state)).map(|one| one.at).collect();
        able.into_iter().for_each(|at| self.ask(at, Demand::Trim, None));
    }

    /// Measured bytes that must go to leave this step, those of leaving workers counted as gone.
    fn excess(&self, step: Step) -> u64 {
        let coming = self.sum(|one| if one.frees_soon() { one.holding.measured() } else { 0 });
        if self.step >= step { self.measured_above(leave_mark(step)).saturating_sub(coming) } else { 0 }
    }

    /// Whether one worker is so far above its plan that the others would go for nothing but its appetite. One that died of
    /// it before is given what it needs, if that can be.
    fn is_one_worker_s_fault(&self, excess: u64) -> bool {
        let worst = self.worst(|one| one.state.works());
        worst
            .is_some_and(|one| one.above_plan() >= excess && one.model.history.appetite.is_none() && one.is_far_above())
    }

    /// The one furthest above its plan; among equals the largest.
    fn worst(&self, may_go: impl Fn(&Member<'a>) -> bool) -> Option<Member<'a>> {
        let able = self.members.iter().filter(|one| !one.goes && may_go(one));
        able.max_by_key(|one| (one.above_plan(), one.holding.measured(), one.at)).copied()
    }

    fn drain_worst(&mut self) {
        let is_own = self.is_own;
        let may_go = |one: &Member<'a>| one.state.works() || is_own && matches!(one.state, State::Idle { .. });
        let Some(one) = self.worst(may_go) else { return };
        let reason = if is_own { DrainReason::OverOwnLimit } else { DrainReason::OverBudget };
        self.ask(one.at, Demand::Drain(reason), Some(self.cause(&one)));
    }

    /// Over the hard mark, or soon there.
    fn kill_worst(&mut self) {
        while self.must_kill() {
            let lives = self.members.iter().filter(|one| one.state.pid().is_some() && !one.is_killed());
            let worst = lives.max_by_key(|one| (one.above_plan(), one.holding.measured(), one.at)).copied();
            let Some(one) = worst else { return };
            self.ask(one.at, Demand::Kill, Some(self.cause(&one)));
        }
    }

    fn must_kill(&self) -> bool {
        let Some(limit) = self.limit else { return false };
        let dying = self.sum(|one| if one.is_killed() { one.holding.measured() } else { 0 });
        let left = self.measured().saturating_sub(dying);
        // A load only takes what it was given.
        let is_as_planned = |one: &Member<'a>| {
            matches!(one.state, State::Loading { .. }) && one.holding.measured() <= one.holding.planned
        };
        let growth = self.sum(|one| if one.is_killed() || is_as_planned(one) { 0 } else { one.holding.growth });
        let soon = growth.saturating_mul(limits::GROWTH_HORIZON_MS) / 1_000;
        let runs_away = left.saturating_add(soon) > part(limit, enter_mark(Step::Kill));
        left > part(limit, leave_mark(Step::Kill)) && (self.step == Step::Kill || runs_away)
    }

    fn cause(&self, one: &Member<'a>) -> Cause {
        match self.limit {
            Some(limit) if self.is_own => Cause::OverOwnLimit { took: one.holding.peak, limit },
            _ => Cause::OverBudget,
        }
    }
}

fn mark(step: Step, which: usize) -> u64 {
    let index = Step::TAKEN.iter().position(|taken| *taken == step).unwrap_or(0);
    MEMORY_MARKS_PERMILLE[index][which]
}

fn enter_mark(step: Step) -> u64 {
    mark(step, 0)
}

fn leave_mark(step: Step) -> u64 {
    mark(step, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_taken_up_and_down_and_none_twice() {
        let mut pressure = Pressure::default();
        let mut seen = vec![Step::Calm];
        for permille in (0..=1_200).chain((0..1_200).rev()) {
            pressure.read_use(permille);
            if seen.last() != Some(&pressure.step()) {
                seen.push(pressure.step());
            }
        }
        let up = [Step::Calm].into_iter().chain(Step::TAKEN);
        let down = Step::TAKEN.into_iter().rev().skip(1).chain([Step::Calm]);
        assert_eq!(seen, up.chain(down).collect::<Vec<_>>());
    }

    #[test]
    fn a_value_that_trembles_around_a_mark_changes_nothing() {
        for (index, [enter, leave]) in MEMORY_MARKS_PERMILLE.into_iter().enumerate() {
            let mut pressure = Pressure::default();
            pressure.read_use(enter);
            assert_eq!(pressure.step(), Step::TAKEN[index]);
            for permille in [enter - 1, enter, leave, enter - 1, leave] {
                pressure.read_use(permille);
                assert_eq!(pressure.step(), Step::TAKEN[index], "{permille}");
            }
            pressure.read_use(leave - 1);
            assert!(pressure.step() < Step::TAKEN[index]);
        }
    }

    #[test]
    fn a_leap_skips_steps_and_pressure_never_kills() {
        let mut pressure = Pressure::default();
        pressure.read_use(5_000);
        assert_eq!(pressure.step(), Step::Kill);
        pressure.read_use(0);
        assert_eq!(pressure.step(), Step::Calm);
        pressure.read_machine(1_000);
        assert_eq!((pressure.step(), pressure.used.step()), (Step::Drain, Step::Calm));
        pressure.read_machine(0);
        assert_eq!(pressure.step(), Step::Calm);
    }
}
