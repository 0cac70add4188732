//! Workers that die together: the pretend world's own account of it, and row 82 with numbers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ollmlx_proto::{Failure, FailureKind, ModelId, Retry, WorkerId};
use ollmlx_supervisor::limits::{INCIDENT_OVER_MS, INCIDENT_STAGGER_MS, INCIDENT_WINDOW_MS};
use ollmlx_supervisor::scheduler::SchedulerConfig;
use ollmlx_supervisor::types::{Cause, Mono};

use crate::world::{Answer, World};

/// Deaths of one class within the window.
#[derive(Debug)]
struct Group {
    class: &'static str,
    since: Mono,
    models: BTreeSet<ModelId>,
    told: bool,
}

/// What must hold of incidents, from nothing but deaths, starts and ends of loads.
#[derive(Debug, Default)]
pub(crate) struct Together {
    groups: Vec<Group>,
    /// Those that died with others and have not been ready since, and which group that was.
    bound: BTreeMap<ModelId, usize>,
    numbers: BTreeSet<u64>,
    pub(crate) is_leaving: bool,
}

fn is_shared(cause: &Cause) -> bool {
    match cause {
        Cause::Asked | Cause::Leaked | Cause::SpawnFailed(_) | Cause::HelloRefused(_) => false,
        Cause::OverBudget | Cause::OverOwnLimit { .. } | Cause::OutOfMemory | Cause::TooLarge { .. } => false,
        Cause::LoadFailed(failure) => failure.retry != Retry::Never,
        _ => true,
    }
}

impl Together {
    /// A process is gone. `ready` are the models that have one which is ready.
    pub(crate) fn died(&mut self, model: ModelId, cause: &Cause, now: Mono, ready: &BTreeSet<ModelId>) {
        if self.is_leaving || !is_shared(cause) {
            return;
        }
        let open = |group: &Group| group.class == cause.class() && now < group.since.plus_ms(INCIDENT_WINDOW_MS);
        let index = self.groups.iter().position(open).unwrap_or(self.groups.len());
        if index == self.groups.len() {
            let class = cause.class();
            self.groups.push(Group { class, since: now, models: BTreeSet::new(), told: false });
        }
        let models = &mut self.groups[index].models;
        models.insert(model);
        if models.len() > 1 {
            self.bound.extend(models.iter().filter(|model| !ready.contains(model)).map(|model| (model.clone(), index)));
        }
    }

    pub(crate) fn is_ready(&mut self, model: &ModelId) {
        self.bound.remove(model);
    }

    /// A process is started beside these that load, each since then.
    pub(crate) fn check_start(&self, model: &ModelId, loading: Vec<(&ModelId, Mono)>, now: Mono) {
        let Some(group) = self.bound.get(model) else { return };
        if now >= self.groups[*group].since.plus_ms(INCIDENT_OVER_MS) {
            return;
        }
        for (other, started) in loading.into_iter().filter(|(other, _)| self.bound.get(other) == Some(group)) {
            let late = now >= started.plus_ms(INCIDENT_STAGGER_MS);
            assert!(late, "{model} and {other} died together and load together");
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.groups.iter().filter(|group| group.models.len() > 1).count() as u64
    }

    /// The log hears of it, once.
    pub(crate) fn told(&mut self, number: u64, names: Vec<String>) {
        assert!(self.numbers.insert(number) && number <= self.count(), "incident {number} is a new one");
        let models: BTreeSet<ModelId> = names.iter().map(|name| harness::id(name)).collect();
        assert_eq!(models.len(), names.len(), "each is named once");
        let group = self.groups.iter_mut().find(|group| !group.told && group.models == models);
        group.unwrap_or_else(|| panic!("{names:?} did not die together")).told = true;
    }

    pub(crate) fn check_told(&self) {
        let silent = self.groups.iter().find(|group| group.models.len() > 1 && !group.told);
        assert!(silent.is_none(), "never told of: {silent:?}");
    }
}

const ABORT: Cause = Cause::Signalled { signal: 6 };

/// Models that answer, each with so many requests; the workers in the order of the models.
fn busy(clients: &[(&str, usize)]) -> (World, Vec<WorkerId>) {
    let mut world = World::new(SchedulerConfig { workers_max: 8, ..SchedulerConfig::default() }, 1);
    world.next_answer = Answer::of(40, None);
    for (name, count) in clients {
        let model = harness::model(name, PathBuf::from(name));
        for _ in 0..*count {
            world.arrive(harness::plan(&model, 2048, 10), false, None);
        }
    }
    let workers = clients.iter().map(|(name, _)| worker_of(&world, name).expect("it was started")).collect();
    for worker in &workers {
        get_ready(&mut world, worker);
    }
    (world, workers)
}

fn worker_of(world: &World, name: &str) -> Option<WorkerId> {
    world.processes.keys().find(|worker| worker.model == harness::id(name)).cloned()
}

/// Its hello, and the end of its load.
fn get_ready(world: &mut World, worker: &WorkerId) {
    while !world.processes[worker].ready {
        world.proceed(worker);
    }
}

/// Names of the models that have a process.
fn up(world: &World) -> Vec<&'static str> {
    ["a", "b", "c"].into_iter().filter(|name| worker_of(world, name).is_some()).collect()
}

/// Number of the incident in which a model died last.
fn incident(world: &World, name: &str) -> Option<u64> {
    let view = world.scheduler.snapshot();
    view.deaths_of(&harness::id(name)).and_then(|model| model.deaths.back()?.incident)
}

#[test]
fn row_82_what_dies_at_once_is_one_incident_and_comes_back_one_by_one_by_who_is_waited_for() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 2), ("c", 4)]);
    world.strike(&workers, &ABORT);
    // The first was on its way before anybody knew.
    for next in ["a", "c", "b"] {
        let worker = worker_of(&world, next).unwrap_or_else(|| panic!("{next} is next: {:?}", up(&world)));
        let loading = world.processes.values().filter(|process| !process.ready).count();
        assert_eq!(loading, 1, "{next} loads alone");
        get_ready(&mut world, &worker);
    }
    assert_eq!(up(&world), ["a", "b", "c"]);
    let view = world.scheduler.snapshot();
    assert_eq!((view.totals.incidents, view.totals.deaths), (1, 3));
    for (name, others) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
        assert_eq!(incident(&world, name), Some(1));
        assert_eq!(view.died_with(&harness::id(name), 1), others);
    }
    assert_eq!(world.calm_down(), []);
    assert_eq!(world.failures, [], "every answer is whole");
    world.wind_down();
}

#[test]
fn row_82_what_dies_together_twice_is_no_reason_to_sentence_anybody() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 1)]);
    world.strike(&workers, &ABORT);
    // Neither has produced a token: one more death alone would be a verdict.
    for name in ["a", "b"] {
        let worker = worker_of(&world, name).expect("it was started");
        get_ready(&mut world, &worker);
    }
    world.now = world.now.plus_ms(INCIDENT_WINDOW_MS);
    let again: Vec<WorkerId> = ["a", "b"].iter().filter_map(|name| worker_of(&world, name)).collect();
    assert_eq!(again.len(), 2);
    world.strike(&again, &ABORT);
    assert_eq!((world.sentenced, world.failures.as_slice()), (0, &[][..]));
    assert_eq!(world.scheduler.snapshot().totals.incidents, 2);
    assert_eq!(world.calm_down(), []);
    assert_eq!(world.failures, [], "every answer is whole");
    world.wind_down();
}

#[test]
fn row_82_a_slow_load_holds_the_others_back_for_a_bounded_time() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 2), ("c", 1)]);
    world.strike(&workers, &ABORT);
    assert_eq!(up(&world), ["a"]);
    let struck = world.now;
    assert!(world.jump());
    assert_eq!(world.now, struck.plus_ms(INCIDENT_WINDOW_MS), "then it is told");
    world.together.check_told();
    for (count, expected) in [(1, vec!["a", "b"]), (2, vec!["a", "b", "c"])] {
        while up(&world) != expected {
            assert!(world.jump(), "time alone brings the next");
        }
        assert_eq!(world.now, struck.plus_ms(count * INCIDENT_STAGGER_MS));
    }
    world.wind_down();
}

#[test]
fn row_82_a_load_that_fails_makes_way_at_once() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 1)]);
    world.strike(&workers, &ABORT);
    let first = worker_of(&world, "a").expect("it loads");
    world.strike(&[first], &Cause::Exited { code: 3 });
    assert_eq!(up(&world), ["b"], "the other one rests after its second death");
    assert_eq!((incident(&world, "a"), incident(&world, "b")), (None, Some(1)), "that was another cause");
    world.wind_down();
}

#[test]
fn row_82_one_that_is_back_already_holds_nobody_and_still_belongs_to_it() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 1), ("c", 1)]);
    world.strike(&workers[..1], &ABORT);
    let back = worker_of(&world, "a").expect("it is started at once");
    get_ready(&mut world, &back);
    assert_eq!(incident(&world, "a"), None);
    world.now = world.now.plus_ms(INCIDENT_WINDOW_MS - 1);
    world.strike(&workers[1..], &ABORT);
    assert_eq!(up(&world), ["a", "b"]);
    assert!(["a", "b", "c"].iter().all(|name| incident(&world, name) == Some(1)));
    world.wind_down();
}

#[test]
fn row_82_other_times_other_causes_and_ends_of_their_own_are_no_incident() {
    let later = |ms: u64, first: Cause, second: Cause| {
        let (mut world, workers) = busy(&[("a", 1), ("b", 1)]);
        world.strike(&workers[..1], &first);
        world.now = world.now.plus_ms(ms);
        world.strike(&workers[1..], &second);
        let count = world.scheduler.snapshot().totals.incidents;
        assert_eq!(incident(&world, "b"), (count > 0).then_some(1));
        let both_load = up(&world) == ["a", "b"];
        assert!(count > 0 || both_load, "nobody waits for anybody");
        world.wind_down();
        count
    };
    assert_eq!(later(INCIDENT_WINDOW_MS - 1, ABORT, ABORT), 1);
    assert_eq!(later(INCIDENT_WINDOW_MS, ABORT, ABORT), 0);
    assert_eq!(later(0, ABORT, Cause::Signalled { signal: 11 }), 0);
    assert_eq!(later(0, Cause::OutOfMemory, Cause::OutOfMemory), 0);
    assert_eq!(later(0, Cause::Exited { code: 1 }, Cause::Exited { code: 2 }), 1, "the class counts");
}

#[test]
fn row_82_files_that_can_not_be_loaded_are_no_incident() {
    let mut world = World::new(SchedulerConfig { workers_max: 8, ..SchedulerConfig::default() }, 1);
    for name in ["a", "b"] {
        let model = harness::model(name, PathBuf::from(name));
        world.arrive(harness::plan(&model, 2048, 10), false, None);
        let worker = worker_of(&world, name).expect("it was started");
        world.proceed(&worker);
        world.fail_load(&worker, FailureKind::ModelInvalid);
        while world.processes.contains_key(&worker) {
            world.proceed(&worker);
        }
    }
    assert_eq!(Failure::new(FailureKind::ModelInvalid, "").retry, Retry::Never);
    let view = world.scheduler.snapshot();
    assert_eq!((view.totals.deaths, view.totals.incidents), (2, 0));
    world.wind_down();
}

#[test]
fn row_82_long_after_it_they_are_started_without_regard_to_each_other() {
    let (mut world, workers) = busy(&[("a", 1), ("b", 1)]);
    for worker in &workers {
        while world.proceed(worker) {}
    }
    // They idle, and nobody waits for them.
    world.strike(&workers, &ABORT);
    assert_eq!((up(&world), incident(&world, "b")), (Vec::new(), Some(1)));
    world.now = world.now.plus_ms(INCIDENT_OVER_MS);
    for name in ["a", "b"] {
        world.arrive(harness::plan(&harness::model(name, PathBuf::from(name)), 2048, 10), false, None);
    }
    assert_eq!(up(&world), ["a", "b"]);
    world.wind_down();
}
