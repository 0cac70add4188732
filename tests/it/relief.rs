//! The memory ladder with numbers alone: every step up and back, who goes, who stays, and who is told what.

use std::path::PathBuf;
use std::sync::Arc;

use ollmlx_proto::{FailureKind, RequestId, WorkerId};
use ollmlx_supervisor::catalog::ModelRef;
use ollmlx_supervisor::limits;
use ollmlx_supervisor::scheduler::{Event, Push, SchedulerConfig};
use ollmlx_supervisor::types::{Cause, Fate, KeepAlive, Mono, Step};

use crate::world::{Answer, Standing, World};

pub(crate) fn world(limit: u64) -> World {
    World::new(SchedulerConfig { memory_limit: Some(limit), ..SchedulerConfig::default() }, 1)
}

pub(crate) fn model(name: &str) -> Arc<ModelRef> {
    harness::model(name, PathBuf::from(name))
}

/// A request of so many tokens, and the worker that has it or loads for it.
pub(crate) fn ask(world: &mut World, name: &str, bytes: u64, tokens: u32) -> RequestId {
    world.next_answer = Answer::of(tokens, None);
    world.arrive(harness::plan(&model(name), 2048, bytes), false, Some(KeepAlive::ForMs(600_000)))
}

pub(crate) fn worker(world: &World, name: &str) -> WorkerId {
    let id = harness::id(name);
    world.processes.keys().find(|worker| worker.model == id).expect("it lives").clone()
}

pub(crate) fn load(world: &mut World, name: &str) {
    let worker = worker(world, name);
    while !world.processes[&worker].ready {
        world.proceed(&worker);
    }
}

/// Loaded and without work.
pub(crate) fn idle(world: &mut World, name: &str, bytes: u64) -> WorkerId {
    ask(world, name, bytes, 0);
    load(world, name);
    let worker = worker(world, name);
    while state(world, name) != "idle" {
        world.proceed(&worker);
    }
    worker
}

/// In the middle of an endless answer.
pub(crate) fn busy(world: &mut World, name: &str, bytes: u64) -> WorkerId {
    ask(world, name, bytes, u32::MAX);
    load(world, name);
    worker(world, name)
}

pub(crate) fn state(world: &World, name: &str) -> &'static str {
    world.scheduler.snapshot().of(&harness::id(name)).map_or("absent", |view| view.state)
}

pub(crate) fn reap(world: &mut World, worker: &WorkerId) {
    while world.processes.contains_key(worker) {
        world.proceed(worker);
    }
}

pub(crate) fn later(world: &mut World, ms: u64) {
    world.now = Mono(world.now.0 + ms * 1_000_000);
}

#[test]
fn a_trace_takes_every_step_up_and_back_without_flapping() {
    let mut world = world(1000);
    let still = idle(&mut world, "still", 200);
    let works = busy(&mut world, "works", 650);
    for (bytes, step) in [
        (690, Step::Calm),
        (720, Step::Hold),
        (690, Step::Hold),
        (720, Step::Hold),
        (760, Step::Trim),
        (740, Step::Trim),
        (760, Step::Trim),
        (805, Step::Evict),
        (760, Step::Evict),
        (805, Step::Evict),
    ] {
        world.sample(&works, bytes);
        assert_eq!(world.scheduler.snapshot().relief, step, "{bytes}");
    }
    assert_eq!(world.trims, 2, "each of them once");
    assert_eq!((state(&world, "still"), state(&world, "works")), ("exiting", "busy"));
    reap(&mut world, &still);
    assert_eq!(world.scheduler.snapshot().relief, Step::Calm);
    world.sample(&works, 1_025);
    assert_eq!(state(&world, "works"), "draining");
    world.sample(&works, 990);
    world.sample(&works, 1_099);
    assert_eq!(world.scheduler.snapshot().relief, Step::Drain);
    assert_eq!(world.processes[&works].pushed, None, "it has time to finish");
    world.sample(&works, 1_100);
    assert_eq!(world.processes[&works].pushed, Some(Push::Kill));
    reap(&mut world, &works);
    let all = [Step::Hold, Step::Trim, Step::Evict, Step::Calm, Step::Drain, Step::Kill, Step::Calm];
    assert_eq!(world.steps, all);
    let totals = world.scheduler.snapshot().totals;
    assert_eq!(totals.relief, [2, 2, 2, 1, 1], "each step that was entered, those that were leapt over too");
    assert_eq!(world.resumed, 1, "and the answer goes on");
}

#[test]
fn who_does_not_finish_in_time_is_ended_and_goes_on() {
    let mut world = world(1000);
    let works = busy(&mut world, "works", 500);
    world.sample(&works, 1_030);
    assert_eq!(state(&world, "works"), "draining");
    later(&mut world, limits::RELIEF_DRAIN_MS);
    world.tell(Event::DeadlineElapsed);
    assert_eq!(world.processes[&works].pushed, Some(Push::Term));
    reap(&mut world, &works);
    let deaths = world.scheduler.snapshot().deaths;
    assert_eq!(deaths[0].deaths[0].cause, Cause::OverBudget);
    assert_eq!(world.resumed, 1);
}

#[test]
fn what_runs_away_is_killed_when_it_passes_the_limit() {
    let mut world = world(1000);
    let works = busy(&mut world, "works", 500);
    for bytes in [700, 800, 900, 1_000] {
        later(&mut world, 250);
        world.sample(&works, bytes);
        assert_eq!(world.processes[&works].pushed, None, "nobody is touched up to the limit");
    }
    later(&mut world, 250);
    world.sample(&works, 1_030);
    assert_eq!(world.processes[&works].pushed, Some(Push::Kill));
}

#[test]
fn an_idle_one_does_not_go_for_one_that_is_far_above_its_plan() {
    let mut world = world(1000);
    idle(&mut world, "still", 200);
    let works = busy(&mut world, "works", 500);
    world.sample(&works, 810);
    assert_eq!(world.scheduler.snapshot().relief, Step::Evict);
    assert_eq!((state(&world, "still"), state(&world, "works")), ("idle", "busy"));
    world.sample(&works, 830);
    assert_eq!((state(&world, "still"), state(&world, "works")), ("idle", "draining"));
}

#[test]
fn a_balloon_ends_the_one_that_blew_it_up_and_nobody_else() {
    let mut world = world(1000);
    let (calm, wild) = (busy(&mut world, "calm", 400), busy(&mut world, "wild", 400));
    later(&mut world, 250);
    world.sample(&calm, 410);
    world.sample(&wild, 9_000);
    assert_eq!(world.processes[&wild].pushed, Some(Push::Kill));
    assert_eq!((world.processes[&calm].pushed, state(&world, "calm")), (None, "busy"));
    world.sample(&calm, 410);
    assert_eq!(world.processes[&calm].pushed, None, "the dead one counts as gone");
}

#[test]
fn while_memory_is_short_a_load_needs_that_another_goes_first() {
    let mut world = world(1000);
    let still = idle(&mut world, "still", 850);
    world.sample(&still, 910);
    ask(&mut world, "new", 50, 1);
    assert_eq!(state(&world, "still"), "exiting", "though the new one would fit beside it");
    assert_eq!(world.processes.len(), 1);
    reap(&mut world, &still);
    load(&mut world, "new");
    assert_eq!(world.scheduler.snapshot().relief, Step::Calm);
}

#[test]
fn pressure_of_the_machine_takes_idle_ones_one_by_one_and_kills_nobody() {
    let mut world = world(1000);
    let works = busy(&mut world, "works", 100);
    let one = idle(&mut world, "one", 100);
    later(&mut world, 1);
    let two = idle(&mut world, "two", 100);
    let pressed = |world: &mut World, permille| world.tell(Event::PressureSampled { permille });
    pressed(&mut world, 40);
    assert!(world.steps.is_empty());
    pressed(&mut world, 60);
    pressed(&mut world, 30);
    pressed(&mut world, 60);
    assert_eq!(world.steps, [Step::Hold]);
    pressed(&mut world, 250);
    pressed(&mut world, 250);
    assert_eq!((state(&world, "one"), state(&world, "two")), ("exiting", "idle"));
    reap(&mut world, &one);
    pressed(&mut world, 250);
    assert_eq!(state(&world, "two"), "idle", "the average follows slowly");
    later(&mut world, limits::PRESSURE_AGAIN_MS);
    pressed(&mut world, 250);
    assert_eq!(state(&world, "two"), "exiting");
    reap(&mut world, &two);
    later(&mut world, limits::PRESSURE_AGAIN_MS);
    pressed(&mut world, 1_000);
    assert_eq!(state(&world, "works"), "busy", "it takes no more than planned");
    pressed(&mut world, 0);
    assert_eq!(world.steps, [Step::Hold, Step::Evict, Step::Drain, Step::Calm]);
    world.sample(&works, 130);
    pressed(&mut world, 500);
    assert_eq!(state(&world, "works"), "draining", "now it does");
}

#[test]
fn a_model_that_takes_more_than_the_limit_in_its_load_is_refused_with_numbers() {
    for sampled in [true, false] {
        let mut world = world(100 << 20);
        let request = ask(&mut world, "huge", 60 << 20, 5);
        let huge = worker(&world, "huge");
        world.proceed(&huge);
        if sampled {
            world.sample(&huge, 150 << 20);
        } else {
            world.reports = Some(150 << 20);
            load(&mut world, "huge");
            world.reports = None;
        }
        assert_eq!(world.processes[&huge].pushed, Some(Push::Kill));
        reap(&mut world, &huge);
        assert_eq!(world.requests[&request].0, Standing::Ended);
        assert_eq!(world.failures, [(request, FailureKind::OutOfMemory)]);
        let deaths = world.scheduler.snapshot().deaths;
        let words = deaths[0].deaths[0].cause.words();
        assert_eq!(words, "model requires more memory (157.3 MB) than the limit allows (104.8 MB)");
        let again = ask(&mut world, "huge", 60 << 20, 5);
        assert_eq!(world.failures.last(), Some(&(again, FailureKind::Quarantined)), "at once");
        assert!(world.processes.is_empty(), "and without a process");
    }
}

#[test]
fn what_is_too_large_each_time_is_tried_ever_more_rarely() {
    let mut world = world(1000);
    let rest_s = |world: &mut World| {
        world.reports = Some(1001);
        ask(world, "huge", 600, 5);
        load(world, "huge");
        world.reports = None;
        let huge = worker(world, "huge");
        reap(world, &huge);
        let until = world.scheduler.snapshot().workers[0].rests_until.expect("it rests");
        until.since(world.now) / 1_000_000_000
    };
    let rests: Vec<u64> = (0..9)
        .map(|_| {
            let rest_s = rest_s(&mut world);
            world.jump();
            rest_s
        })
        .collect();
    assert_eq!(rests, [60, 120, 240, 480, 960, 1920, 3600, 3600, limits::TOO_LARGE_REST_S_MAX]);
    world.pardon(&harness::id("huge"));
    assert_eq!(rest_s(&mut world), limits::QUARANTINE_S, "a person wants it tried");
}

#[test]
fn row_20_what_leaks_is_replaced_while_it_idles_and_nobody_waits_for_that() {
    const MIB: u64 = 1 << 20;
    let mut world = World::new(SchedulerConfig::default(), 1);
    let leaks = idle(&mut world, "leaks", 1000 * MIB);
    world.sample(&leaks, 1256 * MIB);
    assert_eq!(state(&world, "leaks"), "idle", "within what plans may be wrong by");
    world.sample(&leaks, 1257 * MIB);
    assert_eq!(state(&world, "leaks"), "exiting");
    reap(&mut world, &leaks);
    let view = world.scheduler.snapshot();
    assert_eq!((&view.deaths[0].deaths[0].cause, view.totals.deaths), (&Cause::Leaked, 1));
    assert_eq!(state(&world, "leaks"), "absent");
    let next = busy(&mut world, "leaks", 1000 * MIB);
    world.sample(&next, 2000 * MIB);
    assert_eq!(state(&world, "leaks"), "busy", "not while it works");
    // An estimate that is far too low is no leak.
    world.reports = Some(900 * MIB);
    let large = idle(&mut world, "large", 300 * MIB);
    world.sample(&large, 1100 * MIB);
    assert_eq!(state(&world, "large"), "idle");
}

#[test]
fn what_needs_more_than_planned_gets_it_where_it_can_be_had() {
    let mut world = world(1000);
    let other = idle(&mut world, "other", 500);
    ask(&mut world, "needs", 400, u32::MAX);
    for death in 1..=2 {
        while !world.processes.keys().any(|worker| worker.model == harness::id("needs")) {
            assert!(world.jump(), "it is tried again");
        }
        load(&mut world, "needs");
        let needs = worker(&world, "needs");
        assert_eq!((world.processes[&needs].holds, state(&world, "other")), (400, "idle"), "death {death}");
        world.sample(&needs, 560);
        world.processes.get_mut(&needs).expect("it lives").dead = Some(Cause::OutOfMemory);
        reap(&mut world, &needs);
        assert_eq!(world.failures, []);
    }
    while state(&world, "other") == "idle" {
        assert!(world.jump(), "it is tried with more");
    }
    reap(&mut world, &other);
    let needs = worker(&world, "needs");
    let process = &world.processes[&needs];
    assert_eq!((process.holds, process.plan.spec.memory_limit_bytes), (560, 560), "and is told so");
}

#[test]
fn who_was_near_when_a_worker_died_of_its_memory_is_resumed_however_often() {
    let mut world = world(1000);
    let one = ask(&mut world, "leaks", 500, u32::MAX);
    let two = ask(&mut world, "leaks", 500, u32::MAX);
    for death in 1..=2 {
        if world.processes.is_empty() {
            world.jump();
        }
        load(&mut world, "leaks");
        let leaks = worker(&world, "leaks");
        assert_eq!(world.processes[&leaks].running.len(), 2, "both again");
        world.processes.get_mut(&leaks).expect("it lives").dead = Some(Cause::OutOfMemory);
        reap(&mut world, &leaks);
        assert_eq!(world.resumed, 2 * death);
    }
    let fates: Vec<Fate> =
        world.scheduler.snapshot().deaths[0].deaths[1].requests.iter().map(|held| held.fate).collect();
    assert_eq!(fates, [Fate::Resumed, Fate::Resumed]);
    // From now on each is alone, so that it can be told which of them needs what is not there.
    world.jump();
    load(&mut world, "leaks");
    let leaks = worker(&world, "leaks");
    assert_eq!(world.processes[&leaks].running.len(), 1);
    world.processes.get_mut(&leaks).expect("it lives").dead = Some(Cause::OutOfMemory);
    reap(&mut world, &leaks);
    assert_eq!(world.failures, [(one, FailureKind::WorkerDied)]);
    assert_eq!(world.requests[&two].0, Standing::Waiting);
}
