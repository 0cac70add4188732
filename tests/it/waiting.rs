//! Those that wait: how many may, for whom, and what is done for those that have left.

use harness::script::{Load, Script};
use ollmlx_proto::FailureKind;

use crate::house::{Answer, House};

fn slow() -> Script {
    Script { load: Load::Hang, ..Script::default() }
}

#[tokio::test]
async fn row_51_a_flood_on_one_model_does_not_shut_the_others_out() {
    let house = House::open(|config| config.scheduler.queue_max = 4).await;
    let (flooded, other) = (house.plan("flooded", &slow()), house.plan("other", &Script::default()));
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(house.ask(&flooded).await);
    }
    house.until(|view| view.queue_len == 4).await;
    assert_eq!(house.run(&flooded).await.kind(), FailureKind::Busy, "its line is full");
    let answer = house.run(&other).await;
    assert_eq!((answer.failure, answer.finished.is_some()), (None, true));
    // What the others have is bounded as well: an even part each.
    let stuck = house.plan("stuck", &slow());
    for _ in 0..2 {
        waiting.push(house.ask(&stuck).await);
    }
    house.until(|view| view.queue_len == 6).await;
    assert_eq!(house.run(&stuck).await.kind(), FailureKind::Busy);
    drop(waiting);
    house.close().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_its_request_is_read_leaves_nothing_behind() {
    let house = House::open(|_| {}).await;
    let (ghost, other) = (house.plan("ghost", &slow()), house.plan("other", &Script::default()));
    // One thread: the driver has read neither when the client is gone.
    drop(house.ask(&ghost).await);
    assert_eq!(house.run(&other).await.failure, None);
    let view = house.handle.snapshot();
    assert_eq!(view.queue_len, 0);
    assert!(view.of(&ghost.model.id).is_none(), "nothing is loaded for nobody: {:?}", view.of(&ghost.model.id));
    house.close().await;
}

#[tokio::test]
async fn row_48_a_load_that_nobody_waits_for_any_more_is_given_up() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("left", &slow());
    let (first, second) = (house.ask(&plan).await, house.ask(&plan).await);
    house.until_worker(&plan, |worker| worker.state == "loading" && worker.queued == 2).await;
    drop(first);
    house.until_worker(&plan, |worker| worker.queued == 1 && worker.state == "loading").await;
    drop(second);
    house.until(|view| view.of(&plan.model.id).is_none()).await;
    let view = house.handle.snapshot();
    assert_eq!((view.reserved_bytes, view.totals.deaths), (0, 0));
    // Whoever comes next begins anew.
    Script::default().write(&plan.model.weights[0]);
    let mut again = house.ask(&plan).await;
    assert_eq!(Answer::of(&mut again).await.failure, None);
    house.close().await;
}
