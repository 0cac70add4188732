//! A worker's death is nobody's problem: real processes are killed and the client hears a pause, or, where the request
//! itself is the killer, one honest error while its companions go on.

use harness::script::{Load, Misfortune, Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ollmlx_proto::{Embed, FailureKind, FinishReason, Work};
use ollmlx_supervisor::driver::Ticket;
use ollmlx_supervisor::limits::PROBATION_TOKENS;
use ollmlx_supervisor::types::{Cause, Fate, Job, LoadPlan};

use crate::house::{Answer, House, endless, first_delta};

const TOKENS: u32 = 12;

fn pieces(count: u32) -> String {
    (0..count).map(|index| index.to_string()).collect()
}

/// Whole, once, and counted once.
fn assert_calm(answer: &Answer, tokens: u32, what: &str) {
    assert_eq!(answer.failure, None, "{what}");
    assert_eq!((answer.text.as_str(), answer.beginnings), (pieces(tokens).as_str(), 1), "{what}");
    assert_eq!(answer.tokens, (0..tokens).collect::<Vec<_>>(), "{what}");
    assert_eq!(answer.finished, Some(FinishReason::Stop), "{what}");
    let usage = answer.end.as_ref().unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, tokens), "{what}");
}

async fn kill_worker(house: &House, plan: &LoadPlan, signal: Signal) {
    let pid = house.until_worker(plan, |worker| worker.in_flight > 0 && worker.pid.is_some()).await.pid.unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Reads on until this many tokens have come, and returns them.
async fn tokens(ticket: &mut Ticket, count: usize) {
    for _ in 0..count {
        first_delta(ticket).await;
    }
}

#[tokio::test]
async fn row_04_killed_at_every_index_of_an_answer_the_client_hears_the_calm_stream() {
    let house = House::open(|_| {}).await;
    for index in 0..=TOKENS {
        for misfortune in [Misfortune::Kill, Misfortune::Abort, Misfortune::Exit] {
            let script =
                Script { tokens: TOKENS, misfortune: Some((index, misfortune)), unlucky_until: 1, ..Script::default() };
            let plan = house.plan(&format!("k{index}-{misfortune:?}"), &script);
            let answer = house.run(&plan).await;
            assert_calm(&answer, TOKENS, &format!("{misfortune:?} at {index}"));
            let view = house.handle.snapshot();
            let record = &view.deaths_of(&plan.model.id).unwrap().deaths[0];
            assert_eq!((record.state, record.requests.len()), ("busy", 1));
            assert_eq!((record.requests[0].request, record.requests[0].fate), (answer.request, Fate::Resumed));
            house.handle.unload(plan.model.id.clone()).await;
        }
    }
    assert_eq!(house.handle.snapshot().totals.resumed, 3 * u64::from(TOKENS + 1));
    house.close().await;
}

#[tokio::test]
async fn killed_again_and_again_beyond_probation_the_answer_still_comes() {
    let house = House::open(|_| {}).await;
    let tokens_of_all = 300;
    let plan = house.plan("again", &Script { tokens: tokens_of_all, interval_ms: 2, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    let mut before = 0;
    for _ in 0..6 {
        // Past probation, so that no death is held against the request or the model.
        before += PROBATION_TOKENS + 5;
        tokens(&mut ticket, PROBATION_TOKENS + 5).await;
        kill_worker(&house, &plan, Signal::SIGKILL).await;
    }
    let rest = Answer::of(&mut ticket).await;
    assert_eq!(rest.tokens, (u32::try_from(before).unwrap()..tokens_of_all).collect::<Vec<_>>());
    assert_eq!((rest.failure, rest.finished), (None, Some(FinishReason::Stop)));
    house.close().await;
}

#[tokio::test]
async fn row_15_a_request_that_kills_twice_fails_alone_and_says_so() {
    let house = House::open(|_| {}).await;
    let script = Script { tokens: 60, interval_ms: 1, poison: Some((3, Misfortune::Abort)), ..Script::default() };
    let mut plan = house.plan("poison", &script);
    plan.spec.slots = 8;
    let mut tickets = Vec::new();
    for index in 0..8 {
        tickets.push(house.ask_for(&plan, if index == 2 { "poison" } else { "" }).await);
    }
    let mut failed = 0;
    for (index, ticket) in tickets.iter_mut().enumerate() {
        let answer = Answer::of(ticket).await;
        if index == 2 {
            failed += 1;
            assert_eq!(answer.kind(), FailureKind::WorkerDied);
            let words = "the model's worker died twice while working on this request";
            assert!(answer.public().contains(words), "{}", answer.public());
            assert!(answer.public().contains("killed by SIGABRT: fake: assertion failed"), "{}", answer.public());
            assert_eq!(answer.text, pieces(3), "what came before is heard");
        } else {
            assert_calm(&answer, 60, &format!("companion {index}"));
        }
    }
    assert_eq!(failed, 1);
    let view = house.handle.snapshot();
    assert_eq!(view.totals.suspects, 1);
    assert!(view.totals.deaths <= 3, "{} deaths", view.totals.deaths);
    house.close().await;
}

#[tokio::test]
async fn row_06_07_08_a_hung_worker_is_killed_and_its_requests_go_on() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    for misfortune in [Misfortune::Hang, Misfortune::Spin, Misfortune::Beat] {
        let script = Script { misfortune: Some((2, misfortune)), unlucky_until: 1, ..Script::default() };
        let plan = house.plan(&format!("{misfortune:?}"), &script);
        let (mut one, mut two) = (house.ask(&plan).await, house.ask(&plan).await);
        assert_calm(&Answer::of(&mut one).await, 5, "one");
        assert_calm(&Answer::of(&mut two).await, 5, "two");
        let record = house.handle.snapshot().deaths_of(&plan.model.id).unwrap().deaths[0].clone();
        assert_eq!((record.cause, record.requests.len()), (Cause::Silent, 2), "{misfortune:?}");
    }
    house.close().await;
}

#[tokio::test]
async fn row_05_a_stopped_worker_is_replaced() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    let plan = house.plan("stopped", &Script { tokens: 50, interval_ms: 3, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    tokens(&mut ticket, 4).await;
    kill_worker(&house, &plan, Signal::SIGSTOP).await;
    let rest = Answer::of(&mut ticket).await;
    assert_eq!(rest.tokens, (4..50).collect::<Vec<_>>());
    assert_eq!(rest.finished, Some(FinishReason::Stop));
    house.close().await;
}

#[tokio::test]
async fn a_stopped_worker_is_continued_where_it_was() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("continued", &Script { tokens: 50, interval_ms: 3, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    tokens(&mut ticket, 4).await;
    kill_worker(&house, &plan, Signal::SIGSTOP).await;
    let rest = Answer::of(&mut ticket).await;
    assert_eq!(rest.tokens, (4..50).collect::<Vec<_>>());
    assert_eq!((rest.finished, house.handle.snapshot().totals.deaths), (Some(FinishReason::Stop), 0));
    house.close().await;
}

#[tokio::test]
async fn a_request_that_hangs_twice_fails_as_hung() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 300).await;
    let plan = house.plan("hangs", &Script { misfortune: Some((1, Misfortune::Hang)), ..Script::default() });
    let answer = house.run(&plan).await;
    assert_eq!((answer.kind(), answer.text.as_str()), (FailureKind::WorkerHung, "0"));
    assert!(answer.public().contains("died twice"), "{}", answer.public());
    house.close().await;
}

#[tokio::test]
async fn row_81_a_client_that_left_before_the_death_is_not_resumed() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 600).await;
    let plan = house.plan("left", &Script { ignore_cancel: true, ..endless() });
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let request = ticket.request();
    drop(ticket);
    let view = house.until(|view| view.deaths_of(&plan.model.id).is_some()).await;
    let record = &view.deaths_of(&plan.model.id).unwrap().deaths[0];
    assert_eq!((record.requests[0].request, record.requests[0].fate), (request, Fate::ClientGone));
    house.until(|view| view.workers.is_empty()).await;
    assert_eq!(house.handle.snapshot().totals.resumed, 0);
    house.close().await;
}

#[tokio::test]
async fn row_48_a_client_that_leaves_during_the_restart_is_let_go() {
    let house = House::open(|_| {}).await;
    let script = Script { load_delay_ms: 300, misfortune: Some((2, Misfortune::Kill)), ..Script::default() };
    let plan = house.plan("restart", &script);
    let mut ticket = house.ask(&plan).await;
    tokens(&mut ticket, 2).await;
    house.until_worker(&plan, |worker| worker.worker.incarnation.0 == 2 && worker.queued == 1).await;
    drop(ticket);
    // It is loaded sooner than it is given up.
    let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!((view.queued, view.in_flight), (0, 0));
    house.close().await;
}

#[tokio::test]
async fn a_request_that_can_not_go_on_in_time_is_told() {
    let house = House::open(|config| config.scheduler.queue_wait_ms = 700).await;
    let script = Script { load_delay_ms: 400, misfortune: Some((2, Misfortune::Kill)), ..Script::default() };
    let plan = house.plan("late", &script);
    let mut ticket = house.ask(&plan).await;
    tokens(&mut ticket, 2).await;
    // The next load takes for ever.
    Script { load: Load::Hang, ..Script::default() }.write(&plan.model.weights[0]);
    let answer = Answer::of(&mut ticket).await;
    assert_eq!(answer.kind(), FailureKind::Busy);
    house.close().await;
}

#[tokio::test]
async fn a_load_that_is_refused_after_the_death_is_told() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("spoilt", &Script { misfortune: Some((2, Misfortune::Kill)), ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    tokens(&mut ticket, 1).await;
    Script { load: Load::Refuse, ..Script::default() }.write(&plan.model.weights[0]);
    assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::ModelInvalid);
    house.close().await;
}

#[tokio::test]
async fn vectors_are_computed_again() {
    let house = House::open(|_| {}).await;
    let script = Script { misfortune: Some((0, Misfortune::Kill)), unlucky_until: 1, ..Script::default() };
    let plan = house.plan("vectors", &script);
    let mut request = harness::request(0, "");
    let inputs = vec!["a".to_owned(), "b".to_owned()];
    request.work = Work::Embed(Embed { inputs, truncate: true, normalize: true, dimensions: None });
    let mut ticket = house.handle.submit(Job::Run(request), plan, None).await;
    let answer = Answer::of(&mut ticket).await;
    assert_eq!((answer.vectors, answer.failure), (2, None));
    house.close().await;
}

#[tokio::test]
async fn those_who_wait_are_served_after_those_who_ran() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("line", &Script { tokens: 40, interval_ms: 3, ..Script::default() });
    let mut tickets = Vec::new();
    for _ in 0..4 {
        tickets.push(house.ask(&plan).await);
    }
    first_delta(&mut tickets[0]).await;
    kill_worker(&house, &plan, Signal::SIGSEGV).await;
    for (index, ticket) in tickets.iter_mut().enumerate() {
        let answer = Answer::of(ticket).await;
        assert_eq!((answer.failure, answer.finished), (None, Some(FinishReason::Stop)), "{index}");
        assert_eq!(answer.tokens, (u32::from(index == 0)..40).collect::<Vec<_>>(), "{index}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_slow_client_hears_all_of_it_across_a_death() {
    let house = House::open(|_| {}).await;
    let script = Script {
        tokens: 900,
        interval_ms: 0,
        misfortune: Some((600, Misfortune::Kill)),
        unlucky_until: 1,
        ..Script::default()
    };
    let plan = house.plan("slow-death", &script);
    let mut ticket = house.ask(&plan).await;
    // Nothing is read before the second worker is done: the backlog crosses with its request.
    house.until_worker(&plan, |worker| worker.worker.incarnation.0 == 2 && worker.state == "idle").await;
    let answer = Answer::of(&mut ticket).await;
    assert_calm(&answer, 900, "slow");
    house.close().await;
}

#[tokio::test]
async fn a_worker_that_dies_at_start_is_tried_at_a_lower_cpu_level() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("illegal", &Script { load: Load::Illegal, ..Script::default() });
    assert_calm(&house.run(&plan).await, 5, "lower");
    let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!(view.cpu_level, Some("x64"));
    house.handle.unload(plan.model.id.clone()).await;
    house.until(|view| view.workers.is_empty()).await;
    assert_calm(&house.run(&plan).await, 5, "remembered");
    assert_eq!(house.handle.snapshot().totals.deaths, 2);
    house.close().await;
}

#[tokio::test]
async fn a_restart_by_hand_ends_a_quarantine_and_replaces_a_process() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("hello-version", &Script::default());
    assert_eq!(house.run(&plan).await.kind(), FailureKind::LoadFailed);
    assert_eq!(house.run(&plan).await.kind(), FailureKind::Quarantined);
    house.handle.restart(plan.model.id.clone()).await;
    assert_eq!(house.run(&plan).await.kind(), FailureKind::LoadFailed, "it is tried again");
    let plan = house.plan("fine", &Script { tokens: 40, interval_ms: 3, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    house.handle.restart(plan.model.id.clone()).await;
    assert_eq!(Answer::of(&mut ticket).await.tokens.len(), 39, "what runs may end");
    house.until(|view| view.of(&plan.model.id).is_none()).await;
    house.run(&plan).await;
    let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!((view.worker.incarnation.0, view.restarts), (2, 0));
    house.close().await;
}
