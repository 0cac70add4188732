//! Tests of the way of one answer to its client.

use std::task::Waker;

use ollmlx_proto::{JsonText, Part, ToolCall};

use super::*;

fn delta(text: &str) -> Output {
    Output::Delta(Delta { tokens: vec![1], text: text.to_owned(), part: Part::Content, logprobs: Vec::new() })
}

fn flush(sink: &mut ClientSink) {
    let _pending = sink.poll_flush(&mut Context::from_waker(Waker::noop()));
}

/// A sink with this many bytes waiting, and what is heard of it.
fn waiting(bytes: usize) -> (ClientSink, mpsc::Receiver<TicketItem>) {
    let (client, heard) = mpsc::channel(1);
    let mut sink = ClientSink::new(client);
    sink.begin(0);
    for _ in 0..2 {
        assert_eq!(sink.output(delta(&"x".repeat(bytes)), 1), Ok(()));
    }
    (sink, heard)
}

const MS: u64 = 1_000_000;

#[test]
fn row_49_the_worker_is_to_wait_for_a_slow_client_until_it_has_caught_up() {
    let (mut sink, mut heard) = waiting(CLIENT_BACKLOG_PAUSE_BYTES / 2);
    assert_eq!(sink.pace(5), None, "not slow enough");
    assert_eq!(sink.output(delta(&"x".repeat(CLIENT_BACKLOG_PAUSE_BYTES / 2)), 1), Ok(()));
    assert_eq!(sink.pace(6), Some(Flow::Pause));
    assert_eq!(sink.pace(6), Some(Flow::Pause), "until the worker has been told");
    sink.paced(Flow::Pause, 7 * MS);
    assert_eq!((sink.pace(8), sink.is_paused()), (None, true));
    assert_eq!(sink.pause_ends_ns(), Some((7 + CLIENT_WRITE_TIMEOUT_MS) * MS));
    assert!(heard.try_recv().is_ok());
    flush(&mut sink);
    assert_eq!(sink.pace(9), Some(Flow::Continue), "nothing waits here any more");
    sink.paced(Flow::Continue, 9 * MS);
    assert_eq!((sink.pace(9), sink.is_paused(), sink.pause_ends_ns()), (None, false, None));
}

#[test]
fn row_49_a_client_that_takes_a_little_now_and_then_has_a_limit_in_all() {
    let (mut sink, mut heard) = waiting(2 * CLIENT_BACKLOG_PAUSE_BYTES);
    // Another kind, so that there are two to take.
    let call = ToolCall { index: 0, name: "f".to_owned(), arguments: JsonText("{}".to_owned()) };
    assert_eq!(sink.output(Output::ToolCall(call), 1), Ok(()));
    sink.paced(Flow::Pause, 0);
    heard.try_recv().unwrap();
    flush(&mut sink);
    let took = CLIENT_WRITE_TIMEOUT_MS * MS - 1;
    assert_eq!((sink.pace(took), sink.pause_ends_ns()), (None, Some(took + CLIENT_WRITE_TIMEOUT_MS * MS)));
    sink.paced(Flow::Continue, (CLIENT_PAUSE_MS_MAX - 5) * MS);
    let again = CLIENT_PAUSE_MS_MAX * MS;
    sink.paced(Flow::Pause, again);
    assert_eq!(sink.pause_ends_ns(), Some(again + 5 * MS));
}

#[test]
fn what_waits_of_a_prompt_does_not_keep_a_pause_alive() {
    let (mut sink, mut heard) = waiting(2 * CLIENT_BACKLOG_PAUSE_BYTES);
    sink.paced(Flow::Pause, 1);
    for done in 1..4 {
        assert_eq!(sink.output(Output::Prefill { done, total: 9 }, 2), Ok(()));
    }
    for _ in 0..3 {
        heard.try_recv().unwrap();
        flush(&mut sink);
    }
    assert_eq!((sink.pace(3), sink.backlog_bytes), (Some(Flow::Continue), 0));
}

#[test]
fn whoever_comes_back_from_a_death_is_paused_when_its_probation_is_over() {
    let (mut sink, _heard) = waiting(2 * CLIENT_BACKLOG_PAUSE_BYTES);
    sink.paced(Flow::Pause, 1);
    sink.begin(2);
    assert_eq!((sink.pace(2), sink.is_paused()), (None, false), "the next worker does not know it");
    for token in 1..=PROBATION_TOKENS {
        assert_eq!((sink.pace(3), sink.output(delta("y"), 3)), (None, Ok(())), "others wait for its token {token}");
    }
    assert_eq!(sink.pace(4), None, "its end is to be told first");
    assert!(sink.take_cleared());
    assert_eq!(sink.pace(4), Some(Flow::Pause));
}

#[test]
fn who_hears_nothing_more_is_not_waited_for() {
    let (mut sink, heard) = waiting(2 * CLIENT_BACKLOG_PAUSE_BYTES);
    sink.paced(Flow::Pause, 1);
    sink.give_up();
    assert_eq!((sink.pace(2), sink.pause_ends_ns()), (Some(Flow::Continue), None));
    drop(heard);
}

#[test]
fn deltas_of_a_slow_client_are_merged_and_none_is_lost() {
    let (client, mut heard) = mpsc::channel(1);
    let mut sink = ClientSink::new(client);
    for text in ["a", "b", "c"] {
        assert_eq!(sink.output(delta(text), 1), Ok(()));
    }
    assert_eq!(heard.try_recv().unwrap(), TicketItem::Output(delta("a")));
    flush(&mut sink);
    let Ok(TicketItem::Output(Output::Delta(merged))) = heard.try_recv() else { panic!("merged") };
    assert_eq!((merged.text.as_str(), merged.tokens.len()), ("bc", 2));
    assert_eq!((sink.produced.len(), sink.backlog_bytes), (3, 0));
}

#[test]
fn a_backlog_at_the_limit_is_kept_and_one_byte_more_ends_it() {
    let (client, mut heard) = mpsc::channel(1);
    let mut sink = ClientSink::new(client);
    assert_eq!(sink.output(delta("first"), 1), Ok(()));
    let most = "x".repeat(CLIENT_BACKLOG_BYTES_MAX - 4);
    assert_eq!(sink.output(delta(&most), 1), Ok(()));
    assert_eq!(sink.output(delta(""), 1), Err(TooSlow), "its token has four bytes");
    assert_eq!(sink.output(delta("more"), 1), Ok(()), "is dropped");
    assert!(heard.try_recv().is_ok());
    flush(&mut sink);
    let Ok(TicketItem::Failed(failure)) = heard.try_recv() else { panic!("told") };
    assert_eq!(failure.kind, FailureKind::ClientTooSlow);
    assert!(sink.is_done());
}

#[test]
fn patience_with_exactness_ends_where_workers_die_before_a_token() {
    let (client, _heard) = mpsc::channel(64);
    let mut sink = ClientSink::new(client);
    let mut patience = |tokens: usize| {
        for _ in 0..tokens {
            assert_eq!(sink.output(delta("a"), 1), Ok(()));
        }
        assert_eq!(sink.has_gained(), tokens > 0);
        sink.begin(1);
        assert_eq!(sink.progress(false).replay_exact_ms, 0, "nobody can tell");
        sink.progress(true).replay_exact_ms
    };
    assert_eq!([0, 3, 0, 0, 0, 1, 0].map(&mut patience), [5000, 5000, 1250, 312, 78, 5000, 1250]);
    for _ in 0..40 {
        patience(0);
    }
    assert_eq!(patience(0), 0);
}

#[test]
fn two_workers_make_one_answer_and_its_durations_leave_the_pause_out() {
    let (client, mut heard) = mpsc::channel(64);
    let mut sink = ClientSink::new(client);
    let started =
        |cached_tokens| Output::Started(Started { slot: ollmlx_proto::SlotId(0), prompt_tokens: 9, cached_tokens });
    sink.begin(100);
    assert_eq!(sink.output(started(4), 110), Ok(()));
    for (text, now_ns) in [("a", 150), ("b", 160), ("c", 170)] {
        assert_eq!(sink.output(delta(text), now_ns), Ok(()));
    }
    sink.begin(5_000);
    assert_eq!(sink.output(started(0), 5_001), Ok(()));
    for index in 1..=PROBATION_TOKENS {
        assert!(!sink.take_cleared(), "{index}");
        assert_eq!(sink.output(delta("d"), 6_000), Ok(()));
    }
    assert!(sink.take_cleared() && !sink.take_cleared(), "once");
    let own = ollmlx_proto::Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 19 };
    let timings = ollmlx_proto::Timings { queue_ns: 1, prefill_ns: 900, decode_ns: 30 };
    let (reason, context) = (FinishReason::Stop, Vec::new());
    let end = Finished { reason, stop_string: None, usage: own, timings, context };
    assert_eq!(sink.output(Output::Finished(end), 6_100), Ok(()));
    let mut begun = 0;
    let mut last = None;
    while let Ok(item) = heard.try_recv() {
        begun += usize::from(matches!(item, TicketItem::Output(Output::Started(_))));
        last = Some(item);
    }
    let Some(TicketItem::Output(Output::Finished(end))) = last else { panic!("it ends") };
    assert_eq!((begun, end.usage.cached_tokens, end.usage.completion_tokens), (1, 4, 19));
    assert_eq!((end.timings.prefill_ns, end.timings.decode_ns), (50, 20 + 30));
}

#[test]
fn nothing_follows_the_terminal_item_and_a_gone_client_is_noticed() {
    let (client, mut heard) = mpsc::channel(4);
    let mut sink = ClientSink::new(client);
    sink.fail(Failure::new(FailureKind::WorkerDied, "first"));
    sink.fail(Failure::new(FailureKind::WorkerDied, "second"));
    assert!(matches!(heard.try_recv(), Ok(TicketItem::Failed(failure)) if failure.public == "first"));
    assert!(heard.try_recv().is_err());
    let (client, heard) = mpsc::channel(4);
    let mut sink = ClientSink::new(client);
    drop(heard);
    assert_eq!(sink.output(delta("a"), 1), Ok(()));
    assert!(sink.is_done());
}
