//! What the scheduler makes of a death, with numbers alone: causes, in whatever order the end of a process is told.

use std::path::PathBuf;

use ollmlx_proto::{FailureKind, RequestId, WorkerId};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::scheduler::{Event, SchedulerConfig};
use ollmlx_supervisor::types::{Cause, Fate, Mono};

use crate::world::{Answer, Standing, World};

/// A world with one busy worker that is drained because it took more memory than there is.
fn over_budget() -> (World, WorkerId) {
    let mut world = World::new(SchedulerConfig { memory_limit: Some(100), ..SchedulerConfig::default() }, 1);
    let model = harness::model("m", PathBuf::from("m"));
    world.arrive(harness::plan(&model, 2048, 60), false, None);
    let worker = world.processes.keys().next().expect("it was started").clone();
    world.proceed(&worker);
    world.proceed(&worker);
    world.sample(&worker, 104);
    assert_eq!(world.scheduler.snapshot().workers[0].state, "draining");
    (world, worker)
}

fn die(world: &mut World, worker: &WorkerId, signal: i32) {
    world.processes.get_mut(worker).expect("it lives").dead = Some(Cause::Signalled { signal });
    while world.processes.contains_key(worker) {
        world.proceed(worker);
    }
}

#[test]
fn the_reason_of_a_drain_for_memory_survives_whatever_order_its_end_is_told_in() {
    for signal in [9, 15] {
        // The link ends first, and then the process.
        let (mut world, worker) = over_budget();
        die(&mut world, &worker, signal);
        assert_eq!(cause_of(&world), Cause::OverBudget);
        // The process ends and the link is never told of.
        let (mut world, worker) = over_budget();
        world.processes.get_mut(&worker).expect("it lives").link_closed = true;
        die(&mut world, &worker, signal);
        assert_eq!(cause_of(&world), Cause::OverBudget);
        // Its patience ends first.
        let (mut world, worker) = over_budget();
        world.jump();
        die(&mut world, &worker, signal);
        assert_eq!(cause_of(&world), Cause::OverBudget);
    }
}

fn cause_of(world: &World) -> Cause {
    let view = world.scheduler.snapshot();
    let record = &view.deaths[0].deaths[0];
    assert_eq!(record.requests[0].fate, Fate::Resumed);
    record.cause.clone()
}

#[test]
fn a_request_that_needs_more_memory_than_there_is_goes_on_once_only() {
    let (mut world, worker) = over_budget();
    die(&mut world, &worker, 15);
    let next = world.processes.keys().next().expect("it is started again").clone();
    world.proceed(&next);
    world.proceed(&next);
    world.sample(&next, 104);
    die(&mut world, &next, 15);
    assert_eq!(world.failures.last().map(|(_, kind)| *kind), Some(FailureKind::WorkerDied));
    let view = world.scheduler.snapshot();
    assert_eq!(view.deaths[0].count, 2);
}

/// The next worker of the only model, brought to where it runs the only request.
fn next_busy(world: &mut World) -> WorkerId {
    while world.processes.is_empty() {
        assert!(world.jump(), "it is tried again");
    }
    let worker = world.processes.keys().next().expect("it was started").clone();
    world.proceed(&worker);
    world.proceed(&worker);
    assert_eq!(world.scheduler.snapshot().workers[0].in_flight, 1);
    worker
}

fn one_request() -> (World, RequestId) {
    let mut world = World::new(SchedulerConfig::default(), 1);
    let model = harness::model("m", PathBuf::from("m"));
    let request = world.arrive(harness::plan(&model, 2048, 60), false, None);
    (world, request)
}

/// A tenth of what a request may lose to kills.
const COST_NS: u64 = limits::LOST_TO_KILLS_MS_MAX * 1_000_000 / 10;

/// Its worker is killed when that has cost it so much, its rest afterwards included.
fn killed_late(world: &mut World, signal: i32) {
    let worker = next_busy(world);
    world.now = Mono(world.now.0 + COST_NS);
    world.tell(Event::Heard { worker: worker.clone() });
    die(world, &worker, signal);
}

#[test]
fn kills_from_outside_are_no_evidence_until_they_have_cost_ten_minutes() {
    let (mut world, request) = one_request();
    for round in 1..10 {
        killed_late(&mut world, if round % 2 == 0 { 9 } else { 15 });
        assert_eq!(world.requests[&request].0, Standing::Waiting, "after {round} kills");
    }
    // One crash is no proof either, and takes nothing of the patience with kills.
    let worker = next_busy(&mut world);
    die(&mut world, &worker, 11);
    assert_eq!(world.requests[&request].0, Standing::Waiting);
    killed_late(&mut world, 9);
    assert_eq!(world.failures, [(request, FailureKind::WorkerDied)]);
    assert_eq!(world.sentenced, 0, "nobody says that the request did it");
}

#[test]
fn kills_in_quick_succession_end_nobody() {
    let (mut world, request) = one_request();
    for round in 1..=200 {
        let worker = next_busy(&mut world);
        die(&mut world, &worker, 9);
        assert_eq!(world.requests[&request].0, Standing::Waiting, "after {round} kills");
    }
}

#[test]
fn whoever_gets_on_between_kills_sits_through_any_number_of_them() {
    let (mut world, request) = one_request();
    world.answers.insert(request, Answer::of(10_000, None));
    for round in 1..=100 {
        let worker = next_busy(&mut world);
        // Fewer tokens than end probation.
        world.proceed(&worker);
        die(&mut world, &worker, 9);
        assert_eq!(world.requests[&request].0, Standing::Waiting, "after {round} kills");
    }
}

#[test]
fn kills_in_a_load_do_not_count_as_failed_loads() {
    let (mut world, request) = one_request();
    for round in 1..=10 {
        while world.processes.is_empty() {
            assert!(world.jump(), "it is tried again");
        }
        let worker = world.processes.keys().next().expect("it was started").clone();
        world.proceed(&worker);
        world.now = Mono(world.now.0 + COST_NS);
        die(&mut world, &worker, 9);
        assert_eq!(world.requests[&request].0 == Standing::Waiting, round < 10, "after {round} kills");
    }
}

#[test]
fn row_15_a_request_that_killed_twice_is_known_when_it_comes_again() {
    let mut world = World::new(SchedulerConfig::default(), 1);
    let model = harness::model("m", PathBuf::from("m"));
    world.text = "doom".to_owned();
    world.next_answer = Answer::of(60, Some(3));
    let plan = || harness::plan(&model, 2048, 60);
    world.arrive(plan(), false, None);
    assert_eq!(world.calm_down(), []);
    assert_eq!((world.sentenced, world.failures.len()), (1, 1));
    world.arrive(plan(), false, None);
    assert_eq!((world.sentenced, world.failures.len()), (1, 2), "refused at once, and nobody died for it");
    world.text = "gloom".to_owned();
    world.next_answer = Answer::of(5, None);
    let other = world.arrive(plan(), false, None);
    assert_eq!(world.requests[&other].0, Standing::Waiting, "another one is served");
    world.text = "doom".to_owned();
    world.pardon(&model.id);
    let pardoned = world.arrive(plan(), false, None);
    assert_eq!(world.requests[&pardoned].0, Standing::Waiting);
    assert_eq!((world.calm_down(), world.failures.len()), (Vec::new(), 2));
}

#[test]
fn what_the_system_kills_for_want_of_memory_counts_like_a_crash() {
    let (mut world, request) = one_request();
    for _ in 0..2 {
        let worker = next_busy(&mut world);
        world.processes.get_mut(&worker).expect("it lives").dead = Some(Cause::OutOfMemory);
        while world.processes.contains_key(&worker) {
            world.proceed(&worker);
        }
    }
    assert_eq!(world.failures, [(request, FailureKind::WorkerDied)]);
}

#[test]
fn a_stopped_worker_is_told_to_go_on_once_it_owes_something() {
    let (mut world, _) = one_request();
    let worker = next_busy(&mut world);
    world.processes.get_mut(&worker).expect("it lives").stopped = true;
    world.proceed(&worker);
    assert!(!world.processes[&worker].stopped);
    // It has nothing more to do.
    while world.proceed(&worker) {}
    assert_eq!(world.scheduler.snapshot().workers[0].state, "idle");
    world.processes.get_mut(&worker).expect("it lives").stopped = true;
    world.proceed(&worker);
    assert!(world.processes[&worker].stopped, "somebody may look at it");
}
