//! What the scheduler makes of a death, with numbers alone: causes, in whatever order the end of a process is told.

use std::path::PathBuf;

use ollmlx_proto::{FailureKind, WorkerId};
use ollmlx_supervisor::scheduler::{Cause, Event, Fate, SchedulerConfig};

use crate::world::World;

/// A world with one busy worker that is drained because it took more memory than there is.
fn over_budget() -> (World, WorkerId) {
    let mut world = World::new(SchedulerConfig { memory_limit: Some(100), ..SchedulerConfig::default() }, 1);
    let model = harness::model("m", PathBuf::from("m"));
    world.arrive(harness::plan(&model, 2048, 60), false, None);
    let worker = world.processes.keys().next().expect("it was started").clone();
    world.proceed(&worker);
    world.proceed(&worker);
    world.tell(Event::MemorySampled { worker: worker.clone(), bytes: 120 });
    assert_eq!(world.scheduler.snapshot(world.now).workers[0].state, "draining");
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
    let view = world.scheduler.snapshot(world.now);
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
    world.tell(Event::MemorySampled { worker: next.clone(), bytes: 120 });
    die(&mut world, &next, 15);
    assert_eq!(world.failures.last().map(|(_, kind)| *kind), Some(FailureKind::WorkerDied));
    let view = world.scheduler.snapshot(world.now);
    assert_eq!(view.deaths[0].count, 2);
}
