//! Rows of the catalogue of faults that no other file proves: each test has its row's number in its name, and
//! `docs_every_row_of_the_faults_is_proven_or_told` keeps the table whole.

use std::path::PathBuf;

use harness::script::{Load, Misfortune, Script};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ollmlx_proto::{FailureKind, FinishReason};
use ollmlx_supervisor::scheduler::SchedulerConfig;
use ollmlx_supervisor::types::{Cause, Job, KeepAlive, LoadPlan};
use tokio::io::AsyncReadExt;

use crate::house::{Answer, House, PATIENCE, endless, first_delta};
use crate::world::World;

const CALM: &str = "01234";

fn pid_of(pid: Option<u32>) -> Pid {
    Pid::from_raw(i32::try_from(pid.expect("a process")).unwrap())
}

/// The cause of the first death of a model.
fn cause(house: &House, plan: &LoadPlan) -> Option<Cause> {
    let view = house.handle.snapshot();
    view.deaths_of(&plan.model.id).map(|model| model.deaths[0].cause.clone())
}

#[tokio::test]
async fn row_09_a_process_that_fails_every_request_and_stays_up_is_replaced() {
    let house = House::open(|_| {}).await;
    // Before its first token: nothing shows that the engine works.
    let script = Script { misfortune: Some((0, Misfortune::Fail)), unlucky_until: 1, ..Script::default() };
    let plan = house.plan("sick", &script);
    for _ in 0..ollmlx_supervisor::limits::ENGINE_FAILURES_MAX {
        assert_eq!(house.run(&plan).await.kind(), FailureKind::EngineFailed);
    }
    assert_eq!(house.run(&plan).await.text, CALM);
    assert_eq!(cause(&house, &plan), Some(Cause::Unhealthy));
    house.close().await;
}

#[tokio::test]
async fn row_09_failures_among_answers_are_no_reason_to_replace_a_process() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("moody", &Script { poison: Some((0, Misfortune::Fail)), ..Script::default() });
    for _ in 0..4 {
        let mut ticket = house.ask_for(&plan, "poison").await;
        assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::EngineFailed);
        assert_eq!(house.run(&plan).await.text, CALM);
    }
    assert_eq!(cause(&house, &plan), None);
    house.close().await;
}

#[tokio::test]
async fn row_12_a_slow_load_that_moves_is_waited_for() {
    let house = House::open(|config| config.scheduler.timeouts.load_stall_ms = 400).await;
    let plan = house.plan("disk", &Script { progress: 16, progress_interval_ms: 50, ..Script::default() });
    assert_eq!(house.run(&plan).await.text, CALM);
    assert_eq!(cause(&house, &plan), None);
    house.close().await;
}

#[tokio::test]
async fn row_13_a_long_prompt_that_moves_is_waited_for() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    let plan = house.plan("prompt", &Script { prefill: 16, interval_ms: 50, ..Script::default() });
    assert_eq!(house.run(&plan).await.text, CALM);
    assert_eq!(cause(&house, &plan), None);
    house.close().await;
}

#[tokio::test]
async fn row_14_a_model_that_always_dies_is_quarantined_in_sight_and_others_are_served() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("loop", &Script { misfortune: Some((0, Misfortune::Segfault)), ..Script::default() });
    let calm = house.plan("calm", &Script::default());
    let kinds = [FailureKind::WorkerDied, FailureKind::Quarantined];
    let mut last = FailureKind::WorkerDied;
    // Each request costs it two processes, the second of which is the request's own fault; the same one again would be known.
    for words in 0.. {
        if last != FailureKind::WorkerDied {
            break;
        }
        let mut fails = house.ask_for(&plan, &words.to_string()).await;
        let (fails, answers) = tokio::join!(Answer::of(&mut fails), house.run(&calm));
        assert_eq!(answers.text, CALM);
        last = fails.kind();
        assert!(kinds.contains(&last), "{last:?}");
    }
    let view = house.handle.snapshot();
    assert_eq!(view.of(&plan.model.id).unwrap().state, "quarantined");
    house.close().await;
}

#[tokio::test]
async fn row_18_the_dead_are_reaped_and_counted_once() {
    let house = House::open(|_| {}).await;
    for (index, misfortune) in [Misfortune::Kill, Misfortune::Exit, Misfortune::Segfault].into_iter().enumerate() {
        let script = Script { misfortune: Some((40, misfortune)), unlucky_until: 1, tokens: 50, ..Script::default() };
        let plan = house.plan(&format!("{misfortune:?}"), &script);
        let mut ticket = house.ask(&plan).await;
        let pid = pid_of(house.until_worker(&plan, |worker| worker.in_flight > 0).await.pid);
        assert_eq!(Answer::of(&mut ticket).await.finished, Some(FinishReason::Stop));
        // A zombie could still be signalled.
        assert_eq!(kill(pid, None), Err(Errno::ESRCH), "{misfortune:?}");
        assert_eq!(house.handle.snapshot().totals.deaths, index as u64 + 1);
    }
    house.close().await;
}

#[tokio::test]
async fn row_19_a_child_of_a_dead_worker_goes_with_it_and_delays_nobody() {
    let house = House::open(|_| {}).await;
    let hold = house.folder.path().join("hold");
    let listener = tokio::net::UnixListener::bind(&hold).unwrap();
    let misfortune = Some((2, Misfortune::Orphan));
    let plan = house.plan("parent", &Script { hold: Some(hold), misfortune, unlucky_until: 1, ..Script::default() });
    let accept = async {
        let (own, _) = listener.accept().await.unwrap();
        let (child, _) = listener.accept().await.unwrap();
        drop(own);
        child
    };
    let (answer, mut child) = tokio::join!(house.run(&plan), accept);
    assert_eq!((answer.text.as_str(), cause(&house, &plan)), (CALM, Some(Cause::Exited { code: 3 })));
    // Its end of this connection closes with it, long before it would end by itself.
    let ended = tokio::time::timeout(PATIENCE, child.read(&mut [0])).await.expect("the child ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
    house.close().await;
}

#[tokio::test]
async fn row_26_a_process_that_answers_strangers_without_end_is_replaced() {
    let house = House::open(|_| {}).await;
    let misfortune = Some((2, Misfortune::Strays));
    let plan = house.plan("strays", &Script { misfortune, unlucky_until: 1, tokens: 60, ..Script::default() });
    let answer = house.run(&plan).await;
    assert_eq!(answer.tokens, (0..60).collect::<Vec<_>>());
    assert!(matches!(cause(&house, &plan), Some(Cause::Protocol(why)) if why.contains("nobody made")));
    house.close().await;
}

#[tokio::test]
async fn row_28_a_flood_of_words_costs_no_memory_and_is_no_control() {
    let house = House::open(|_| {}).await;
    let misfortune = Some((2, Misfortune::Flood));
    let plan = house.plan("flood", &Script { misfortune, unlucky_until: 1, ..Script::default() });
    assert_eq!(house.run(&plan).await.text, CALM);
    let view = house.handle.snapshot();
    let tail = &view.deaths_of(&plan.model.id).unwrap().deaths[0].log_tail;
    assert!(tail.len() <= ollmlx_supervisor::limits::DEATH_LOG_BYTES_MAX, "{} bytes", tail.len());
    house.close().await;
}

#[tokio::test]
async fn row_76_a_request_that_meets_the_end_of_its_model_is_served() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("short", &Script { interval_ms: 0, ..Script::default() });
    for keep_alive in [KeepAlive::Unload, KeepAlive::ForMs(1)] {
        for index in 0..25 {
            let mut ticket =
                house.handle.submit(Job::Run(harness::request(0, "")), plan.clone(), Some(keep_alive)).await;
            let answer = Answer::of(&mut ticket).await;
            assert_eq!((answer.failure, answer.text.as_str()), (None, CALM), "{index}");
        }
    }
    assert_eq!(house.handle.snapshot().totals.deaths, 0);
    house.close().await;
}

#[tokio::test]
async fn row_77_first_requests_share_one_load_and_its_failure() {
    let house = House::open(|_| {}).await;
    for load in [Load::Good, Load::Refuse] {
        let plan = house.plan(&format!("{load:?}"), &Script { load, load_delay_ms: 100, ..Script::default() });
        let mut tickets = Vec::new();
        for _ in 0..6 {
            tickets.push(house.ask(&plan).await);
        }
        for ticket in &mut tickets {
            let failure = Answer::of(ticket).await.failure.map(|failure| failure.kind);
            assert_eq!(failure, (load == Load::Refuse).then_some(FailureKind::ModelInvalid));
        }
        let view = house.handle.snapshot();
        assert_eq!(view.of(&plan.model.id).unwrap().worker.incarnation.0, 1, "{load:?}");
    }
    house.close().await;
}

#[test]
fn row_78_a_load_waits_until_the_memory_is_seen_to_return() {
    let config = SchedulerConfig { memory_limit: Some(100), ..SchedulerConfig::default() };
    let mut world = World::new(config, 1);
    let [one, two] = ["one", "two"].map(|name| harness::model(name, PathBuf::from(name)));
    world.arrive(harness::plan(&one, 2048, 60), false, None);
    let proceed = |world: &mut World| {
        let workers: Vec<_> = world.processes.keys().cloned().collect();
        workers.iter().fold(false, |moved, worker| world.proceed(worker) | moved)
    };
    while proceed(&mut world) {}
    world.arrive(harness::plan(&two, 2048, 70), false, None);
    let mut steps = 0;
    while world.processes.keys().any(|worker| worker.model == one.id) {
        assert_eq!(world.processes.len(), 1, "the second has no process while the first has one");
        steps += 1;
        assert!(proceed(&mut world) || world.jump());
    }
    assert!(steps > 0, "it did not vanish at once");
    assert!(world.processes.keys().any(|worker| worker.model == two.id), "then it is loaded at once");
    world.wind_down();
}

#[tokio::test]
async fn row_79_a_busy_model_is_not_cut_off_for_another_which_waits_for_a_bounded_time() {
    let house = House::open(|config| {
        config.scheduler.workers_max = 1;
        config.scheduler.queue_wait_ms = 500;
    })
    .await;
    let (busy, other) = (house.plan("busy", &endless()), house.plan("other", &Script::default()));
    let mut running = house.ask(&busy).await;
    first_delta(&mut running).await;
    let refused = house.run(&other).await;
    assert_eq!((refused.kind(), refused.granted), (FailureKind::Busy, false));
    first_delta(&mut running).await;
    let mut waits = house.ask(&other).await;
    drop(running);
    assert_eq!(Answer::of(&mut waits).await.text, CALM);
    house.close().await;
}

#[tokio::test]
async fn row_82_two_workers_that_die_at_once_are_both_replaced_and_told_as_one_incident() {
    let house = House::open(|_| {}).await;
    let script = Script { tokens: 60, interval_ms: 3, ..Script::default() };
    let plans = [house.plan("one", &script), house.plan("two", &script)];
    let mut tickets = [house.ask(&plans[0]).await, house.ask(&plans[1]).await];
    for ticket in &mut tickets {
        first_delta(ticket).await;
    }
    for plan in &plans {
        let pid = pid_of(house.until_worker(plan, |worker| worker.pid.is_some()).await.pid);
        kill(pid, Signal::SIGKILL).unwrap();
    }
    for ticket in &mut tickets {
        assert_eq!(Answer::of(ticket).await.tokens, (1..60).collect::<Vec<_>>());
    }
    let view = house.handle.snapshot();
    assert_eq!((view.totals.deaths, view.totals.incidents), (2, 1));
    for (plan, other) in [(&plans[0], "two"), (&plans[1], "one")] {
        let died = view.deaths_of(&plan.model.id).unwrap();
        assert_eq!(died.deaths[0].incident, Some(1));
        assert_eq!(view.died_with(&plan.model.id, 1), [other]);
    }
    house.close().await;
}
