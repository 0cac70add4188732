//! One scenario, run again and again with its first, second, third … effect failing. Each run must end cleanly.

use std::path::PathBuf;

use ollmlx_supervisor::scheduler::{Event, SchedulerConfig};
use ollmlx_supervisor::types::KeepAlive;

use crate::world::World;

/// Two models in the room of one, a reload, a cancel, a load job, an unload.
fn scenario(fails_at: Option<u64>) -> World {
    let config = SchedulerConfig { memory_limit: Some(100), ..SchedulerConfig::default() };
    let mut world = World::new(config, 1);
    world.fails_at = fails_at;
    let one = harness::model("one", PathBuf::from("one"));
    let two = harness::model("two", PathBuf::from("two"));
    for _ in 0..3 {
        world.arrive(harness::plan(&one, 2048, 60), false, None);
    }
    let leaver = world.arrive(harness::plan(&one, 2048, 60), false, None);
    settle(&mut world, 6);
    world.leave(leaver);
    world.arrive(harness::plan(&two, 2048, 70), false, Some(KeepAlive::Forever));
    settle(&mut world, 20);
    world.arrive(harness::plan(&two, 4096, 80), false, None);
    world.arrive(harness::plan(&two, 2048, 80), true, None);
    settle(&mut world, 20);
    world.tell(Event::Unload { model: two.id.clone() });
    settle(&mut world, 40);
    world
}

fn settle(world: &mut World, steps: usize) {
    for _ in 0..steps {
        let workers: Vec<_> = world.processes.keys().cloned().collect();
        let moved = workers.iter().fold(false, |moved, worker| world.proceed(worker) | moved);
        if !moved {
            world.jump();
        }
    }
}

#[test]
fn whichever_effect_fails_the_end_is_clean() {
    let mut world = scenario(None);
    assert_eq!(world.failures, Vec::new(), "nothing fails by itself");
    world.wind_down();
    let effects = world.effects;
    assert!(effects > 30, "{effects} effects");
    for nth in 1..=effects + 1 {
        let mut world = scenario(Some(nth));
        world.wind_down();
    }
    println!("{effects} effects failed one by one");
}
