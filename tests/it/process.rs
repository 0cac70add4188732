//! The driver with real processes: the fake worker does what its script says, good or bad. No test sleeps; each waits for
//! an item, a view or the end of a socket, and a time-out only turns a hang into a failure.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use harness::script::{Load, Misfortune, Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ollmlx_proto::frame::{self, Decoder};
use ollmlx_proto::{FailureKind, FinishReason, FromWorker, Incarnation, ToWorker, WorkerHello, WorkerId, version};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::types::{Cause, Job, KeepAlive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::{Answer, House, PATIENCE, endless, first_delta};

#[tokio::test]
async fn tokens_stream_and_the_worker_stays_for_the_next_request() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("good", &Script::default());
    for _ in 0..2 {
        let answer = house.run(&plan).await;
        assert_eq!((answer.granted, answer.text.as_str()), (true, "01234"));
        assert_eq!((answer.tokens.len(), answer.finished), (5, Some(FinishReason::Stop)));
    }
    let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!((view.worker.incarnation.0, view.restarts), (1, 0));
    house.close().await;
}

#[tokio::test]
async fn a_load_job_ends_with_loaded_and_unload_ends_the_worker() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("load", &Script::default());
    let mut ticket = house.handle.submit(Job::Load, plan.clone(), Some(KeepAlive::Forever)).await;
    let answer = Answer::of(&mut ticket).await;
    assert!(answer.granted && answer.loaded);
    let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert!(view.keep_alive == KeepAlive::Forever && view.expires_at.is_none());
    house.handle.unload(plan.model.id.clone()).await;
    house.until(|view| view.workers.is_empty()).await;
    house.close().await;
}

#[tokio::test]
async fn row_01_04_a_worker_that_dies_is_restarted_and_its_cause_is_told() {
    for (misfortune, words) in [
        (Misfortune::Segfault, "killed by SIGSEGV"),
        (Misfortune::Abort, "killed by SIGABRT: fake: assertion failed"),
        (Misfortune::Kill, "killed by SIGKILL"),
        (Misfortune::Exit, "exited with status 3"),
    ] {
        let house = House::open(|_| {}).await;
        let script = Script { misfortune: Some((2, misfortune)), unlucky_until: 1, ..Script::default() };
        let plan = house.plan("crash", &script);
        assert_eq!(house.run(&plan).await.text, "01234");
        let view = house.until_worker(&plan, |worker| worker.state == "idle").await;
        assert_eq!((view.worker.incarnation.0, view.restarts), (2, 1));
        assert!(words.starts_with(&view.last_death.unwrap()));
        house.close().await;
    }
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_killed_and_replaced() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    let script = Script { misfortune: Some((1, Misfortune::Hang)), unlucky_until: 1, ..Script::default() };
    let plan = house.plan("hang", &script);
    assert_eq!(house.run(&plan).await.text, "01234");
    let deaths = house.handle.snapshot().deaths_of(&plan.model.id).unwrap().deaths.clone();
    assert_eq!(deaths[0].cause, Cause::Silent);
    house.close().await;
}

#[tokio::test]
async fn row_23_24_25_a_worker_that_breaks_the_protocol_is_killed_and_others_go_on() {
    let house = House::open(|config| config.frame_timeout_ms = 300).await;
    let calm = house.plan("calm", &endless());
    let mut other = house.ask(&calm).await;
    first_delta(&mut other).await;
    for (name, misfortune) in [("p1", Misfortune::Garbage), ("p2", Misfortune::Oversize), ("p3", Misfortune::HalfFrame)]
    {
        let script = Script { misfortune: Some((1, misfortune)), unlucky_until: 1, ..Script::default() };
        let plan = house.plan(name, &script);
        assert_eq!(house.run(&plan).await.text, "01234", "{misfortune:?}");
        let deaths = house.handle.snapshot().deaths_of(&plan.model.id).unwrap().deaths.clone();
        assert!(matches!(deaths[0].cause, Cause::Protocol(_)), "{:?}", deaths[0].cause);
        house.handle.unload(plan.model.id.clone()).await;
        house.until(|view| view.of(&plan.model.id).is_none()).await;
    }
    first_delta(&mut other).await;
    assert_eq!(house.handle.snapshot().of(&calm.model.id).unwrap().restarts, 0);
    drop(other);
    house.close().await;
}

#[tokio::test]
async fn row_26_outputs_of_unknown_requests_are_dropped() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("stray", &Script { misfortune: Some((1, Misfortune::Stray)), ..Script::default() });
    assert_eq!(house.run(&plan).await.text, "01234");
    house.close().await;
}

#[tokio::test]
async fn row_17_a_worker_that_heeds_nothing_is_killed() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("deaf", &Script { ignore_term: true, ignore_drain: true, ..Script::default() });
    assert_eq!(house.run(&plan).await.text, "01234");
    house.handle.unload(plan.model.id.clone()).await;
    house.until_worker(&plan, |worker| worker.state == "exiting").await;
    house.until(|view| view.workers.is_empty()).await;
    house.close().await;
}

#[tokio::test]
async fn the_death_of_one_worker_leaves_the_other_alone() {
    let house = House::open(|_| {}).await;
    let script = Script { tokens: 40, interval_ms: 5, ..Script::default() };
    let (one, two) = (house.plan("one", &script), house.plan("two", &endless()));
    let (mut first, mut second) = (house.ask(&one).await, house.ask(&two).await);
    first_delta(&mut first).await;
    first_delta(&mut second).await;
    let pid = house.until_worker(&one, |worker| worker.state == "busy").await.pid.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let answer = Answer::of(&mut first).await;
    assert_eq!((answer.failure, answer.tokens.last()), (None, Some(&39)));
    first_delta(&mut second).await;
    assert_eq!(house.handle.snapshot().of(&two.model.id).unwrap().restarts, 0);
    drop(second);
    house.close().await;
}

#[tokio::test]
async fn row_47_a_dropped_ticket_frees_its_slot_and_the_worker_stays() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("drop", &endless());
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let before = house.until_worker(&plan, |worker| worker.in_flight == 1).await;
    drop(ticket);
    let after = house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!((before.pid, before.worker), (after.pid, after.worker));
    house.close().await;
}

#[tokio::test]
async fn a_cancel_that_is_not_heeded_counts_as_hung() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    let plan = house.plan("stubborn", &Script { ignore_cancel: true, ..endless() });
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    drop(ticket);
    house.until(|view| view.workers.is_empty()).await;
    house.close().await;
}

#[tokio::test]
async fn row_32_49_a_slow_reader_gets_everything_merged() {
    let house = House::open(|_| {}).await;
    let tokens = 2_000;
    let plan = house.plan("slow", &Script { tokens, interval_ms: 0, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    // The worker is done before a single item is read.
    house.until_worker(&plan, |worker| worker.state == "busy").await;
    house.until_worker(&plan, |worker| worker.state == "idle").await;
    let answer = Answer::of(&mut ticket).await;
    assert_eq!(answer.tokens, (0..tokens).collect::<Vec<_>>());
    assert_eq!(answer.finished, Some(FinishReason::Stop));
    assert!(answer.deltas <= limits::OUTPUT_QUEUE_LEN_MAX + 2, "{} deltas", answer.deltas);
    house.close().await;
}

#[tokio::test]
async fn row_49_a_reader_that_is_too_slow_is_cut_off_and_its_slot_is_freed() {
    let house = House::open(|_| {}).await;
    let script = Script { tokens: 0, interval_ms: 0, padding_bytes: 60_000, ignore_pause: true, ..Script::default() };
    let plan = house.plan("drip", &script);
    let mut ticket = house.ask(&plan).await;
    house.until_worker(&plan, |worker| worker.state == "busy").await;
    house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::ClientTooSlow);
    house.close().await;
}

#[tokio::test]
async fn row_32_49_a_slow_reader_s_request_is_paused_and_nobody_else_s() {
    // Shorter than the wait below, longer than a busy machine keeps a process that has work from it.
    let silence_ms = 3_000;
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = silence_ms).await;
    let tokens = 3_000;
    // Some 12 MB, more than is held for a client.
    let script = Script { tokens, interval_ms: 0, padding_bytes: 4_000, ..Script::default() };
    let plan = house.plan("pause", &script);
    let mut slow = house.ask(&plan).await;
    house.until(|view| view.totals.pauses >= 1).await;
    for _ in 0..3 {
        assert_eq!(house.run(&plan).await.tokens, (0..tokens).collect::<Vec<_>>(), "the slot beside it is as quick");
    }
    // Nothing but the pause is left, for longer than silence would be borne.
    let alone = house.until_worker(&plan, |worker| worker.in_flight == 1).await;
    tokio::time::timeout(Duration::from_millis(2 * silence_ms), house.until(|view| view.totals.deaths > 0))
        .await
        .expect_err("it stays");
    let answer = Answer::of(&mut slow).await;
    assert_eq!(answer.tokens, (0..tokens).collect::<Vec<_>>());
    assert_eq!(answer.finished, Some(FinishReason::Stop));
    let worker = house.until_worker(&plan, |worker| worker.in_flight == 0).await.worker;
    assert_eq!(worker, alone.worker, "the same process");
    house.close().await;
}

#[tokio::test]
async fn row_32_49_a_paused_request_survives_its_worker_and_its_client_may_leave() {
    let house = House::open(|_| {}).await;
    let script = Script { tokens: 3_000, interval_ms: 0, padding_bytes: 4_000, ..Script::default() };
    let plan = house.plan("pause", &script);
    let mut slow = house.ask(&plan).await;
    let leaves = house.ask(&plan).await;
    house.until(|view| view.totals.pauses >= 2).await;
    let pid = house.until_worker(&plan, |worker| worker.pid.is_some()).await.pid.unwrap();
    drop(leaves);
    house.until_worker(&plan, |worker| worker.in_flight == 1).await;
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    // What waits for its client is more than enough to pause it on the next process as well.
    house.until(|view| view.totals.pauses >= 3).await;
    assert_eq!(Answer::of(&mut slow).await.tokens, (0..3_000).collect::<Vec<_>>());
    house.close().await;
}

#[tokio::test]
async fn a_deadline_frees_the_slot_of_a_client_that_takes_nothing() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("late", &endless());
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    ticket.end_by(tokio::time::Instant::now() + Duration::from_millis(100));
    // Nobody asks for its items meanwhile, as when the client's connection is full.
    house.until_worker(&plan, |worker| worker.state == "idle").await;
    assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::DeadlineExceeded);
    house.close().await;
}

#[tokio::test]
async fn row_27_bad_hellos_are_refused_with_their_cause() {
    let house = House::open(|config| config.scheduler.timeouts.hello_ms = 300).await;
    let refused = format!("hello refused: it speaks protocol versions [9999], not {}", version::PROTOCOL_VERSION);
    for (name, words) in [
        ("hello-version", refused.as_str()),
        ("hello-token", "exited with status 0"),
        ("hello-never", "did not say hello in time"),
    ] {
        let answer = house.run(&house.plan(name, &Script::default())).await;
        assert_eq!(answer.kind(), FailureKind::LoadFailed);
        assert!(answer.public().contains(words), "{}", answer.public());
        assert!(!answer.granted);
    }
    let refused = house.run(&house.plan("hello-version", &Script::default())).await;
    assert_eq!(refused.kind(), FailureKind::Quarantined, "what can't ever work is not tried again at once");
    house.close().await;
}

#[tokio::test]
async fn row_11_12_failed_loads_tell_their_cause() {
    let house = House::open(|config| config.scheduler.timeouts.load_stall_ms = 300).await;
    for (load, kind, words, incarnations) in [
        (Load::Refuse, FailureKind::ModelInvalid, "fake: bad magic", 1),
        (Load::Crash, FailureKind::LoadFailed, "exited with status 9: fake: cannot load", 3),
        (Load::Hang, FailureKind::LoadStalled, "loading made no progress", 3),
    ] {
        let plan = house.plan(&format!("{load:?}"), &Script { load, ..Script::default() });
        let answer = house.run(&plan).await;
        assert_eq!(answer.kind(), kind, "{}", answer.public());
        assert!(answer.public().contains(words), "{}", answer.public());
        let view = house.handle.snapshot();
        assert_eq!(view.of(&plan.model.id).unwrap().worker.incarnation.0, incarnations, "{load:?}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_load_that_fails_once_is_tried_again_for_those_who_wait() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("once", &Script { load: Load::Crash, unlucky_until: 1, ..Script::default() });
    assert_eq!(house.run(&plan).await.text, "01234");
    house.close().await;
}

#[tokio::test]
async fn row_40_a_missing_program_is_named() {
    let house = House::open(|config| config.worker_dir = Some(PathBuf::from("/nonexistent"))).await;
    let answer = house.run(&house.plan("none", &Script::default())).await;
    assert!(answer.public().contains("its program ollmlx-worker-gguf is not installed"), "{}", answer.public());
    house.close().await;
}

#[tokio::test]
async fn row_45_leaving_refuses_those_who_wait_and_lets_the_running_end() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("leave", &Script { tokens: 60, interval_ms: 5, ..Script::default() });
    let (mut one, mut two) = (house.ask(&plan).await, house.ask(&plan).await);
    first_delta(&mut one).await;
    first_delta(&mut two).await;
    let mut waits = house.ask(&plan).await;
    house.until_worker(&plan, |worker| worker.queued == 1).await;
    house.handle.shutdown(false).await;
    assert_eq!(Answer::of(&mut waits).await.kind(), FailureKind::ShuttingDown);
    assert_eq!(Answer::of(&mut one).await.finished, Some(FinishReason::Stop));
    assert_eq!(Answer::of(&mut two).await.finished, Some(FinishReason::Stop));
    tokio::time::timeout(PATIENCE, house.handle.finished()).await.expect("it finishes");
    assert_eq!(house.run(&plan).await.kind(), FailureKind::ShuttingDown, "after the end as well");
    house.driver.join().await.unwrap();
}

#[tokio::test]
async fn row_46_a_forced_end_cuts_the_running_off() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("forced", &Script { ignore_term: true, ignore_drain: true, ..endless() });
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    house.handle.shutdown(false).await;
    house.until_worker(&plan, |worker| worker.state == "draining").await;
    house.handle.shutdown(true).await;
    assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::ShuttingDown);
    house.close().await;
}

/// The socket of a house.
fn socket_of(folder: &Path) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let sockets = entries.map(|entry| entry.path().join("w.sock"));
    sockets.into_iter().find(|path| path.exists()).expect("a socket")
}

#[tokio::test]
async fn row_30_an_impostor_is_dropped_and_the_real_worker_is_served() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("real", &Script { load_delay_ms: 200, ..Script::default() });
    let mut ticket = house.ask(&plan).await;
    house.until_worker(&plan, |worker| worker.pid.is_some()).await;
    let worker = WorkerId { model: plan.model.id.clone(), incarnation: Incarnation(1) };
    let hello = WorkerHello {
        versions: version::PROTOCOL_VERSIONS.to_vec(),
        build: "x".to_owned(),
        worker,
        pid: 1,
        token: [7; 32],
    };
    let mut bytes = Vec::new();
    frame::encode(&FromWorker::Hello(hello), &mut bytes).unwrap();
    for knock in [bytes.as_slice(), &[255; 64], &[]] {
        let mut stream = tokio::net::UnixStream::connect(socket_of(house.folder.path())).await.unwrap();
        stream.write_all(knock).await.unwrap();
        if knock.is_empty() {
            stream.shutdown().await.unwrap();
        }
        let mut heard = Vec::new();
        // Dropped, with or without a reset.
        let _reset = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("it is dropped");
        let mut decoder = Decoder::new();
        decoder.push(&heard);
        assert_eq!(decoder.next_message::<ToWorker>(), Ok(None), "an impostor hears nothing");
    }
    assert_eq!(Answer::of(&mut ticket).await.text, "01234");
    house.close().await;
}

#[tokio::test]
async fn row_33_a_killed_supervisor_leaves_no_worker() {
    let folder = tempfile::Builder::new().prefix("oh").tempdir_in("/tmp").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_fake-worker"));
    harness::link_workers(folder.path(), program);
    let hold = folder.path().join("hold");
    let listener = tokio::net::UnixListener::bind(&hold).unwrap();
    let script = folder.path().join("script");
    Script { hold: Some(hold), ignore_term: true, ..endless() }.write(&script);
    let mut supervisor = std::process::Command::new(program)
        .args([Path::new("supervise"), folder.path(), &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut held, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("a worker").unwrap();
    let mut line = String::new();
    BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    // The worker's end of this socket closes with its process.
    let ended = tokio::time::timeout(PATIENCE, held.read(&mut [0])).await.expect("the worker ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
}
