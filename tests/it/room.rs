//! Who gets room while others wait for it: whoever can be served alone is served, whatever else is in the line, and nobody
//! waits for what others wait for unless they would wait longer.

use std::path::PathBuf;

use ollmlx_proto::{FailureKind, RequestId, WorkerId};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::scheduler::{Event, SchedulerConfig};
use ollmlx_supervisor::types::{LoadPlan, Mono, Shrink};

use crate::fits;
use crate::world::{Answer, Standing, World};

fn world(limit: u64) -> World {
    World::new(SchedulerConfig { memory_limit: Some(limit), ..SchedulerConfig::default() }, 1)
}

fn ask_like(world: &mut World, plan: LoadPlan, tokens: u32) -> RequestId {
    world.now = world.now.plus_ms(1);
    world.next_answer = Answer::of(tokens, None);
    world.arrive(plan, false, None)
}

fn ask(world: &mut World, name: &str, bytes: u64, tokens: u32) -> RequestId {
    let model = harness::model(name, PathBuf::from(name));
    ask_like(world, harness::plan(&model, 2048, bytes), tokens)
}

fn worker(world: &World, name: &str) -> Option<WorkerId> {
    let id = harness::id(name);
    world.processes.keys().find(|worker| worker.model == id).cloned()
}

/// Loads it, and goes on until it is in this state.
fn until(world: &mut World, name: &str, state: &str) -> WorkerId {
    let worker = worker(world, name).expect("it was started");
    let like = |world: &World| world.scheduler.snapshot().of(&worker.model).is_some_and(|it| it.state == state);
    while !like(world) {
        assert!(world.proceed(&worker), "{name} gets {state}");
    }
    worker
}

/// In the middle of an endless answer.
fn busy(world: &mut World, name: &str, bytes: u64) -> (WorkerId, RequestId) {
    let request = ask(world, name, bytes, u32::MAX);
    (until(world, name, "busy"), request)
}

/// It takes no more and finishes what it runs.
fn restart(world: &mut World, name: &str) {
    world.tell(Event::Restart { model: harness::id(name) });
}

/// Its client leaves and its process goes.
fn end(world: &mut World, (worker, request): &(WorkerId, RequestId)) {
    world.leave(*request);
    while world.processes.contains_key(worker) {
        world.proceed(worker);
    }
}

fn runs(world: &World, name: &str) -> bool {
    worker(world, name).is_some_and(|worker| world.processes[&worker].pushed.is_none())
}

#[test]
fn two_that_can_only_be_had_one_after_the_other_are() {
    let mut world = World::new(
        SchedulerConfig {
            memory_limit: Some(2000),
            workers_max: 1,
            shrink: Shrink::Context,
            ..SchedulerConfig::default()
        },
        1,
    );
    ask(&mut world, "other", 100, 40);
    until(&mut world, "other", "busy");
    let mut modest = fits::plan("m", 1, 800, 100);
    modest.terms.limit = Some(300);
    ask_like(&mut world, modest, 1);
    ask_like(&mut world, fits::plan("m", 1, 800, 800), 1);
    ask(&mut world, "bystander", 100, 1);
    assert_eq!(world.calm_down(), []);
    assert_eq!(world.failures, [], "each is served");
    let loads: Vec<_> = world.begun.iter().map(|plan| (plan.model.name.as_str(), plan.spec.context_tokens)).collect();
    assert_eq!(loads[..2], [("other", 2048), ("m", 223)], "as the first in line wants it: {loads:?}");
    assert!(loads.contains(&("m", 800)), "and then as the second does: {loads:?}");
}

#[test]
fn what_fits_passes_one_that_waits_for_a_worker_to_finish() {
    let mut world = world(700);
    let leaves = busy(&mut world, "a", 532);
    restart(&mut world, "a");
    ask(&mut world, "b", 483, 1);
    ask(&mut world, "c", 84, u32::MAX);
    assert!(runs(&world, "c") && !runs(&world, "b"), "there is room for it now, and then for the other");
    end(&mut world, &leaves);
    assert!(runs(&world, "b"), "beside it");
}

#[test]
fn who_would_make_others_wait_longer_does_not_pass_them() {
    let mut world = world(700);
    let leaves = busy(&mut world, "a", 400);
    restart(&mut world, "a");
    ask(&mut world, "b", 500, 1);
    ask(&mut world, "c", 201, 1);
    assert!(!runs(&world, "c"), "beside it there would be no room for the other");
    ask(&mut world, "d", 200, 1);
    assert!(runs(&world, "d"), "there is, to the last byte");
    end(&mut world, &leaves);
    assert!(runs(&world, "b") && !runs(&world, "c"));
}

#[test]
fn the_first_to_finish_is_enough_for_whom_it_was_enough_before() {
    let mut world = world(700);
    let small = busy(&mut world, "a", 200);
    busy(&mut world, "b", 300);
    restart(&mut world, "a");
    restart(&mut world, "b");
    ask(&mut world, "c", 400, 1);
    ask(&mut world, "d", 100, 1);
    assert!(!runs(&world, "d"), "both that finish would be enough for the two, the smaller one wouldn't");
    end(&mut world, &small);
    assert!(runs(&world, "c") && !runs(&world, "d"));
}

#[test]
fn an_idle_one_goes_rather_than_that_somebody_waits_for_an_answer_to_end() {
    let mut world = world(900);
    busy(&mut world, "a", 532);
    ask(&mut world, "still", 200, 0);
    let still = until(&mut world, "still", "idle");
    restart(&mut world, "a");
    ask(&mut world, "b", 300, 1);
    while world.processes.contains_key(&still) {
        assert!(world.proceed(&still), "it was asked to go");
    }
    assert!(runs(&world, "b"));
}

#[test]
fn an_idle_one_goes_for_whoever_is_not_first_in_line_as_well() {
    let mut world = world(900);
    let leaves = busy(&mut world, "a", 600);
    ask(&mut world, "still", 200, 0);
    let still = until(&mut world, "still", "idle");
    restart(&mut world, "a");
    ask(&mut world, "b", 500, 1);
    assert_eq!(world.processes[&still].pushed, None, "it would not be enough");
    ask(&mut world, "c", 250, u32::MAX);
    while world.processes.contains_key(&still) {
        assert!(world.proceed(&still), "for this one it is");
    }
    assert!(runs(&world, "c") && !runs(&world, "b"));
    end(&mut world, &leaves);
    assert!(runs(&world, "b"));
}

#[test]
fn what_fits_passes_one_that_waits_for_a_busy_model_with_an_older_line() {
    let mut world = world(700);
    world.slots = 1;
    busy(&mut world, "a", 532);
    ask(&mut world, "a", 532, 1);
    ask(&mut world, "b", 483, 1);
    world.now = world.now.plus_ms(limits::YIELD_AFTER_MS);
    ask(&mut world, "c", 84, 1);
    let state = world.scheduler.snapshot().of(&harness::id("a")).expect("it lives").state;
    assert_eq!(state, "busy", "its own line was there first");
    assert!(runs(&world, "c") && !runs(&world, "b"));
    ask(&mut world, "d", 85, 1);
    assert!(!runs(&world, "d"));
}

#[test]
fn who_has_waited_too_long_for_memory_is_told_who_has_it() {
    const MIB: u64 = 1 << 20;
    let mut world =
        World::new(SchedulerConfig { memory_limit: Some(700 * MIB), workers_max: 8, ..SchedulerConfig::default() }, 1);
    let mut large = None;
    for (name, bytes) in [("a", 10), ("b", 20), ("c", 30), ("d", 500)] {
        large = Some(busy(&mut world, name, bytes * MIB).0);
    }
    let waits = ask(&mut world, "e", 483 * MIB, 1);
    world.now = Mono(world.now.plus_ms(limits::QUEUE_WAIT_MS_MAX).0 + 1);
    world.tell(Event::Heard { worker: large.expect("the last one") });
    world.tell(Event::DeadlineElapsed);
    assert_eq!((world.failures.last(), world.requests[&waits].0), (Some(&(waits, FailureKind::Busy)), Standing::Ended));
    let expect = "server busy, please try again.  the request waited too long for its turn: model requires more memory \
                  (506.5 MB) than is available (146.8 MB of 734 MB): d (524.3 MB), c (31.5 MB), b (21 MB) and 1 more; wait \
                  for them to end, or end one with ollmlx stop";
    assert_eq!(world.last_words, expect);
}
