//! A model's own limit with numbers alone: it holds while the process lives, whether or not there is one for all, and
//! concerns nobody else.

use ollmlx_proto::{FailureKind, RequestId};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::scheduler::{Event, Push, SchedulerConfig};
use ollmlx_supervisor::types::{Cause, KeepAlive, Step};

use crate::relief::{self, later, load, model, reap, state, worker};
use crate::world::{Answer, Standing, World};

fn world() -> World {
    World::new(SchedulerConfig::default(), 1)
}

/// A request for a model of 500 that may take this much.
fn ask(world: &mut World, name: &str, own: Option<u64>, tokens: u32) -> RequestId {
    world.next_answer = Answer::of(tokens, None);
    let mut plan = harness::plan(&model(name), 2048, 500);
    plan.terms.limit = own;
    world.arrive(plan, false, Some(KeepAlive::ForMs(600_000)))
}

fn last_cause(world: &World) -> Cause {
    world.scheduler.snapshot().deaths[0].deaths.back().expect("it died").cause.clone()
}

#[test]
fn one_that_works_trims_drains_and_is_killed_at_the_marks_of_its_own_limit() {
    let mut world = world();
    ask(&mut world, "tight", Some(1000), u32::MAX);
    load(&mut world, "tight");
    let tight = worker(&world, "tight");
    for (bytes, trims) in [(949, 0), (950, 1), (940, 1), (960, 1), (899, 1), (950, 2), (1_019, 2)] {
        world.sample(&tight, bytes);
        assert_eq!((world.trims, state(&world, "tight")), (trims, "busy"), "{bytes}");
    }
    world.sample(&tight, 1_020);
    assert_eq!((state(&world, "tight"), world.processes[&tight].pushed), ("draining", None), "it has time to finish");
    later(&mut world, limits::RELIEF_DRAIN_MS);
    world.tell(Event::DeadlineElapsed);
    assert_eq!(world.processes[&tight].pushed, Some(Push::Term));
    reap(&mut world, &tight);
    let cause = Cause::OverOwnLimit { took: 1_020, limit: 1_000 };
    assert_eq!((last_cause(&world), cause.class(), world.resumed), (cause, "over-own-limit", 1));
    load(&mut world, "tight");
    let next = worker(&world, "tight");
    world.sample(&next, 1_100);
    assert_eq!(world.processes[&next].pushed, Some(Push::Kill));
    reap(&mut world, &next);
    assert_eq!(last_cause(&world), Cause::OverOwnLimit { took: 1_100, limit: 1_000 });
    let view = world.scheduler.snapshot();
    assert_eq!((view.relief, view.totals.relief), (Step::Calm, [0; 5]), "that of all was never near");
}

#[test]
fn one_that_finishes_in_time_goes_by_itself_and_is_told_apart() {
    let mut world = world();
    let request = ask(&mut world, "tight", Some(1000), 8);
    load(&mut world, "tight");
    let tight = worker(&world, "tight");
    world.sample(&tight, 1_050);
    assert_eq!(state(&world, "tight"), "draining");
    reap(&mut world, &tight);
    assert_eq!((world.requests[&request].0, world.resumed), (Standing::Ended, 0));
    assert_eq!(last_cause(&world), Cause::OverOwnLimit { took: 1_050, limit: 1_000 });
}

#[test]
fn what_runs_away_from_its_own_limit_is_killed_when_it_passes_that() {
    let mut world = world();
    let calm = relief::busy(&mut world, "calm", 500);
    ask(&mut world, "tight", Some(1000), u32::MAX);
    load(&mut world, "tight");
    let tight = worker(&world, "tight");
    for bytes in [700, 800, 900, 1_000] {
        later(&mut world, 250);
        world.sample(&tight, bytes);
        world.sample(&calm, 5_000);
        assert_eq!(world.processes[&tight].pushed, None, "{bytes}");
    }
    later(&mut world, 250);
    world.sample(&tight, 1_001);
    assert_eq!(world.processes[&tight].pushed, None, "it has stopped");
    later(&mut world, 250);
    world.sample(&tight, 1_019);
    later(&mut world, 100);
    world.sample(&tight, 1_030);
    assert_eq!(world.processes[&tight].pushed, Some(Push::Kill));
    assert_eq!(state(&world, "calm"), "busy", "whoever has no limit takes what it likes");
}

#[test]
fn an_idle_one_above_its_own_limit_goes_and_may_come_again_at_once() {
    let mut world = world();
    for _ in 0..2 * limits::DEATHS_MAX {
        ask(&mut world, "tight", Some(1000), 0);
        load(&mut world, "tight");
        let tight = worker(&world, "tight");
        while state(&world, "tight") != "idle" {
            world.proceed(&tight);
        }
        world.sample(&tight, 1_019);
        assert_eq!(state(&world, "tight"), "idle");
        world.sample(&tight, 1_020);
        assert_eq!(state(&world, "tight"), "exiting");
        reap(&mut world, &tight);
        assert_eq!(state(&world, "tight"), "absent");
    }
    assert_eq!(world.failures, []);
}

#[test]
fn a_load_above_its_own_limit_is_refused_with_numbers_and_refuses_nobody_else() {
    const MIB: u64 = 1 << 20;
    for sampled in [true, false] {
        let mut world = world();
        let tight = ask(&mut world, "m", Some(100 * MIB), 5);
        let free = ask(&mut world, "m", None, 5);
        let first = worker(&world, "m");
        if sampled {
            world.proceed(&first);
            world.sample(&first, 150 * MIB);
        } else {
            world.reports = Some(150 * MIB);
            load(&mut world, "m");
            world.reports = None;
        }
        assert_eq!(world.processes[&first].pushed, Some(Push::Kill));
        reap(&mut world, &first);
        assert_eq!(world.failures, [(tight, FailureKind::OutOfMemory)]);
        let words = last_cause(&world).words();
        assert_eq!(words, "model requires more memory (157.3 MB) than its own limit allows (104.8 MB)");
        load(&mut world, "m");
        let second = worker(&world, "m");
        world.sample(&second, 150 * MIB);
        assert_eq!((world.processes[&second].pushed, world.requests[&free].0), (None, Standing::Running));
    }
}
