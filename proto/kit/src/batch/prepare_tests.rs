//! Requests that are slow to make ready: nobody else is held up, and each of them ends.
//!
//! The toy's tokenizer waits at a gate, so that slow is as long as a test wants it to be.

use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use super::prepare::Part;
use super::tests::{Book, drive, note, toy};
use super::toy::{Toy, complete};
use super::*;
use crate::limits::{PREPARATIONS_MAX, TOKENIZE_TIME};

/// A batcher that waits for no preparation, and the gate of its tokenizer.
fn gated(toy: Toy) -> (Batcher<Toy>, SyncSender<()>) {
    let (open, gate) = sync_channel(100);
    let mut batcher = Batcher::new(Toy { gate: Some(Arc::new(Mutex::new(gate))), ..toy });
    batcher.patience = Duration::ZERO;
    (batcher, open)
}

/// Steps until it is so.
fn until(batcher: &mut Batcher<Toy>, book: &mut Book, so: impl Fn(&Book) -> bool) {
    let begun = Instant::now();
    while !so(book) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is never so");
        let mut out = Vec::new();
        assert_eq!(batcher.step(&mut out).expect("the engine is not broken"), StepOutcome::Busy);
        note(book, &mut out);
    }
}

fn tokens(book: &Book, id: u64) -> usize {
    book.get(&id).map_or(0, |told| told.tokens.len())
}

#[test]
fn companions_get_a_token_of_every_step_while_another_request_is_made_ready() {
    let (mut batcher, open) = gated(toy());
    let mut book = Book::new();
    let mut long = complete(1, "a companion");
    long.limits.max_tokens = Some(200);
    batcher.run(long);
    until(&mut batcher, &mut book, |book| tokens(book, 1) > 0);
    batcher.run(complete(2, "!wait"));
    let (passes, before) = (batcher.engine().passes.len(), tokens(&book, 1));
    until(&mut batcher, &mut book, |book| tokens(book, 1) == before + 100);
    assert_eq!(batcher.engine().passes.len(), passes + 100, "one pass for each");
    assert!(!book.contains_key(&2));
    drop(open);
    drive(&mut batcher, &mut book);
    assert_eq!(tokens(&book, 2), 16);
}

#[test]
fn a_quick_request_starts_before_slow_ones_that_came_earlier() {
    let (mut batcher, open) = gated(toy());
    let mut book = Book::new();
    for id in 1..PREPARATIONS_MAX as u64 {
        batcher.run(complete(id, "!wait"));
    }
    batcher.run(complete(99, "quick"));
    until(&mut batcher, &mut book, |book| book.get(&99).is_some_and(|told| told.tokens.len() == 16));
    assert_eq!(book.len(), 1, "nobody else is ready");
    drop(open);
    drive(&mut batcher, &mut book);
    assert!((1..PREPARATIONS_MAX as u64).all(|id| tokens(&book, id) == 16));
}

#[test]
fn who_takes_too_long_is_answered_and_its_thread_is_waited_for_by_nobody() {
    let (mut batcher, open) = gated(toy());
    let mut book = Book::new();
    batcher.run(complete(1, "!wait"));
    let mut out = Vec::new();
    batcher.step(&mut out).expect("fine");
    assert_eq!(out, [], "its time is not over");
    while !batcher
        .arrivals
        .iter()
        .any(|it| matches!(&it.stage, Stage::Preparing(watch) if watch.part() == Part::Tokens))
    {
        std::thread::yield_now();
    }
    batcher.give_up_slow(Instant::now() + TOKENIZE_TIME + Duration::from_secs(1));
    assert_eq!(batcher.step(&mut out).expect("fine"), StepOutcome::Idle, "nothing is left to do");
    note(&mut book, &mut out);
    assert_eq!(book[&1].failed().kind, FailureKind::InvalidRequest);
    assert!(book[&1].failed().public.contains("takes longer than 4 s"), "{}", book[&1].failed().public);
    drop(open);
    batcher.run(complete(2, "next"));
    drive(&mut batcher, &mut book);
    assert_eq!(tokens(&book, 2), 16);
}

#[test]
fn a_cancel_is_answered_while_its_request_is_made_ready() {
    let (mut batcher, open) = gated(toy());
    let mut book = Book::new();
    batcher.run(complete(1, "!wait"));
    let mut out = Vec::new();
    batcher.step(&mut out).expect("fine");
    batcher.cancel(RequestId(1));
    assert_eq!(batcher.step(&mut out).expect("fine"), StepOutcome::Idle);
    note(&mut book, &mut out);
    assert_eq!(book[&1].finished().reason, FinishReason::Cancelled);
    drop(open);
}

#[test]
fn no_more_are_made_ready_at_once_than_there_are_places() {
    let (mut batcher, open) = gated(toy());
    let mut book = Book::new();
    for id in 0..=PREPARATIONS_MAX as u64 {
        batcher.run(complete(id, "!wait"));
    }
    let mut out = Vec::new();
    batcher.step(&mut out).expect("fine");
    let waits = |arrival: &&Arrival| matches!(arrival.stage, Stage::Waiting(_));
    assert_eq!(
        batcher.arrivals.iter().filter(waits).map(|arrival| arrival.id.0).collect::<Vec<_>>(),
        [PREPARATIONS_MAX as u64]
    );
    drop(open);
    drive(&mut batcher, &mut book);
    assert_eq!(book.len(), PREPARATIONS_MAX + 1);
}

#[test]
fn waiting_for_what_is_made_ready_is_a_sign_of_life() {
    let (mut batcher, open) = gated(toy());
    batcher.run(complete(1, "!wait"));
    let before = batcher.steps();
    let mut out = Vec::new();
    for _ in 0..3 {
        assert_eq!(batcher.step(&mut out).expect("fine"), StepOutcome::Busy);
    }
    assert_eq!((batcher.steps(), batcher.engine().passes.len()), (before + 3, 0));
    drop(open);
    drive(&mut batcher, &mut Book::new());
}
