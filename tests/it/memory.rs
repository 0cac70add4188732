//! Memory limits with real processes, which really take what they are told to take. What is asserted is who goes and who
//! stays; how fast that is, is measured where the real workers are tested.

use harness::script::Script;
use ollmlx_proto::{FailureKind, FinishReason};
use ollmlx_supervisor::types::{Cause, Fate, LoadPlan, Step};

use crate::house::{Answer, House, endless, first_delta};

const MIB: usize = 1 << 20;

async fn limited(mib: u64) -> House {
    House::open(|config| {
        config.scheduler.memory_limit = Some(mib << 20);
        // Whatever the machine suffers from is not what is tested.
        config.scheduler.heeds_pressure = false;
    })
    .await
}

/// With a plan of so many megabytes.
fn plan(house: &House, name: &str, script: &Script, mib: u64) -> LoadPlan {
    let plan = house.plan(name, script);
    LoadPlan { memory: harness::plan(&plan.model, 1, mib << 20).memory, ..plan }
}

#[tokio::test]
async fn a_leak_ends_its_worker_and_the_answer_goes_on() {
    let house = limited(256).await;
    let (tokens, leak) = (500, MIB);
    let script = Script { tokens, interval_ms: 4, leak_bytes_per_token: leak, unlucky_until: 1, ..Script::default() };
    let (leaky, calm) = (plan(&house, "leaky", &script, 50), plan(&house, "calm", &endless(), 50));
    let mut other = house.ask(&calm).await;
    first_delta(&mut other).await;
    let answer = house.run(&leaky).await;
    assert_eq!((answer.tokens, answer.finished), ((0..tokens).collect(), Some(FinishReason::Stop)));
    let view = house.handle.snapshot();
    let record = &view.deaths_of(&leaky.model.id).unwrap().deaths[0];
    assert_eq!((&record.cause, record.requests[0].fate), (&Cause::OverBudget, Fate::Resumed));
    assert!(view.totals.relief[3] > 0, "{:?}", view.totals);
    first_delta(&mut other).await;
    assert_eq!(view.of(&calm.model.id).unwrap().restarts, 0);
    drop(other);
    house.close().await;
}

#[tokio::test]
async fn a_balloon_ends_only_the_worker_that_blew_it_up() {
    let house = limited(256).await;
    let script =
        Script { tokens: 300, interval_ms: 4, balloon: Some((5, 1024 * MIB)), unlucky_until: 1, ..Script::default() };
    let (wild, calm) = (plan(&house, "wild", &script, 50), plan(&house, "calm", &endless(), 50));
    let mut other = house.ask(&calm).await;
    first_delta(&mut other).await;
    assert_eq!(house.run(&wild).await.tokens, (0..300).collect::<Vec<_>>());
    let view = house.handle.snapshot();
    assert_eq!(view.deaths_of(&wild.model.id).unwrap().deaths[0].cause, Cause::OverBudget);
    first_delta(&mut other).await;
    assert_eq!(view.of(&calm.model.id).unwrap().restarts, 0);
    drop(other);
    house.close().await;
}

#[tokio::test]
async fn a_worker_that_drops_its_caches_when_asked_need_not_go() {
    let house = limited(512).await;
    let plan = plan(&house, "cache", &Script { cache_bytes: 490 * MIB, ..endless() }, 300);
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let view = house.until(|view| view.totals.relief[1] > 0 && view.relief == Step::Calm).await;
    let worker = view.of(&plan.model.id).unwrap();
    assert_eq!((worker.state, worker.restarts, view.totals.relief), ("busy", 0, [1, 1, 0, 0, 0]));
    drop(ticket);
    house.close().await;
}

#[tokio::test]
async fn a_worker_that_takes_more_than_the_limit_when_it_is_ready_is_given_up_with_numbers() {
    let house = limited(64).await;
    let plan = plan(&house, "huge", &Script { leak_bytes: 100 * MIB, ..endless() }, 30);
    let answer = house.run(&plan).await;
    assert_eq!(answer.kind(), FailureKind::OutOfMemory);
    assert!(answer.public().contains("than the limit allows (67.1 MB)"), "{}", answer.public());
    let again = house.run(&plan).await;
    assert_eq!(again.kind(), FailureKind::Quarantined);
    assert!(again.public().contains("than the limit allows (67.1 MB)"), "{}", again.public());
    assert_eq!(house.handle.snapshot().of(&plan.model.id).unwrap().worker.incarnation.0, 1, "tried once");
    house.close().await;
}

#[tokio::test]
async fn a_model_that_can_never_fit_is_refused_without_a_process() {
    let house = limited(64).await;
    let plan = plan(&house, "never", &Script::default(), 65);
    let answer = house.run(&plan).await;
    assert_eq!(answer.kind(), FailureKind::OutOfMemory);
    assert!(answer.public().contains("(68.2 MB) than the limit allows (67.1 MB)"), "{}", answer.public());
    let view = house.handle.snapshot();
    assert!(view.workers.is_empty() && view.deaths.is_empty());
    house.close().await;
}

#[tokio::test]
async fn two_models_that_do_not_fit_together_alternate_and_nobody_fails() {
    let house = limited(100).await;
    let plans = [plan(&house, "one", &Script::default(), 60), plan(&house, "two", &Script::default(), 60)];
    for _ in 0..4 {
        let mut tickets = Vec::new();
        for plan in &plans {
            tickets.push(house.ask(plan).await);
            tickets.push(house.ask(plan).await);
        }
        for ticket in &mut tickets {
            assert_eq!(Answer::of(ticket).await.text, "01234");
        }
    }
    assert!(house.handle.snapshot().deaths.is_empty());
    house.close().await;
}

#[tokio::test]
async fn ten_first_requests_for_five_models_in_room_for_two_are_all_answered() {
    let house = limited(100).await;
    let plans: Vec<LoadPlan> =
        ["a", "b", "c", "d", "e"].iter().map(|name| plan(&house, name, &Script::default(), 45)).collect();
    let mut tickets = Vec::new();
    for plan in plans.iter().chain(&plans) {
        tickets.push(house.ask(plan).await);
    }
    for ticket in &mut tickets {
        assert_eq!(Answer::of(ticket).await.text, "01234");
    }
    let view = house.handle.snapshot();
    assert!(view.deaths.is_empty() && view.reserved_bytes <= 100 << 20, "{}", view.reserved_bytes);
    house.close().await;
}
