//! The promise of batching: whatever is computed together, reused, cut short or resumed, each answer is the one it
//! would be alone.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ollmlx_proto::{
    Chat, ContentPart, Delta, Embed, Limits, Logprobs, Message, Part, Role, ThinkMode, TokenLogprob, Work,
};

use super::toy::{BOS, EOS, Toy, after, complete};
use super::*;
use crate::limits::ARRIVALS_LEN_MAX;

pub(super) fn toy() -> Toy {
    Toy::new(4, 4096, 256)
}

/// What one request said, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    started: Option<Started>,
    pub(super) tokens: Vec<TokenId>,
    pub(super) text: String,
    logprobs: Vec<TokenLogprob>,
    end: Option<Output>,
}

impl Told {
    pub(super) fn finished(&self) -> &Finished {
        match &self.end {
            Some(Output::Finished(finished)) => finished,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn failed(&self) -> &Failure {
        match &self.end {
            Some(Output::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn vectors(&self) -> &[Vec<f32>] {
        match &self.end {
            Some(Output::Embedded(embedded)) => &embedded.vectors,
            other => panic!("{other:?}"),
        }
    }

    /// What must not depend on company.
    fn answer(&self) -> (&[TokenId], &str, FinishReason) {
        (&self.tokens, &self.text, self.finished().reason)
    }
}

/// Its steps take no time, whatever else the machine does.
pub(super) fn timeless(toy: Toy) -> Batcher<Toy> {
    static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
    Batcher { clock: || *NOW, ..Batcher::new(toy) }
}

pub(super) type Book = BTreeMap<u64, Told>;

pub(super) fn note(book: &mut Book, out: &mut Outputs) {
    for (id, output) in out.drain(..) {
        let told = book.entry(id.0).or_default();
        assert_eq!(told.end, None, "{id} speaks after its end");
        match output {
            Output::Started(started) => {
                assert!(told.started.replace(started).is_none() && told.tokens.is_empty());
            }
            Output::Delta(Delta { tokens, text, logprobs, .. }) => {
                told.tokens.extend(tokens);
                told.text.push_str(&text);
                told.logprobs.extend(logprobs);
            }
            Output::Prefill { done, total } => assert!(done <= total),
            end if end.is_terminal() => told.end = Some(end),
            other => panic!("{other:?}"),
        }
    }
}

fn step(batcher: &mut Batcher<Toy>, book: &mut Book) -> StepOutcome {
    let mut out = Vec::new();
    let outcome = batcher.step(&mut out).expect("the engine is not broken");
    note(book, &mut out);
    for (slot, cache) in batcher.slots.iter().zip(&batcher.engine().caches) {
        if slot.job.is_some() || slot.computed > 0 {
            assert_eq!(slot.tokens[..slot.computed], cache[..], "batcher and engine agree");
        }
    }
    outcome
}

pub(super) fn drive(batcher: &mut Batcher<Toy>, book: &mut Book) {
    for _ in 0..100_000 {
        if step(batcher, book) == StepOutcome::Idle {
            assert!(batcher.is_idle());
            return;
        }
    }
    panic!("never idle");
}

pub(super) fn alone_on(toy: Toy, request: &Request) -> Told {
    let mut batcher = Batcher::new(toy);
    let mut book = Book::new();
    batcher.run(request.clone());
    drive(&mut batcher, &mut book);
    book.remove(&request.id.0).expect("it ended")
}

fn alone(request: &Request) -> Told {
    alone_on(toy(), request)
}

fn sampled(id: u64, prompt: &str, max_tokens: u32) -> Request {
    let mut request = complete(id, prompt);
    request.sampling.temperature = 0.9;
    request.sampling.seed = id;
    request.sampling.repeat_penalty = 1.1;
    request.limits.max_tokens = Some(max_tokens);
    request
}

#[test]
fn an_answer_has_its_tokens_its_text_and_its_counts() {
    let told = alone(&complete(1, "hello"));
    let finished = told.finished();
    assert_eq!(finished.reason, FinishReason::Length);
    assert_eq!((finished.usage.prompt_tokens, finished.usage.completion_tokens), (6, 16));
    assert_eq!(told.started, Some(Started { slot: SlotId(0), prompt_tokens: 6, cached_tokens: 0 }));
    assert_eq!(told.tokens.len(), 16);
    let bytes: Vec<u8> = told.tokens.iter().map(|&token| token as u8).collect();
    let mut text = String::new();
    crate::text::Detokenizer::new().push(&bytes, &mut text);
    assert_eq!(told.text, text, "the unfinished tail is dropped");
    assert!(finished.context.is_empty());
}

#[test]
fn batching_equals_alone() {
    let requests: Vec<Request> = (1..=12)
        .map(|id| sampled(id, &"once upon a time ".repeat(id as usize * id as usize % 37), 5 + id as u32 * 7 % 40))
        .collect();
    for batch_tokens in [1, 7, 64, 2048] {
        let mut batcher = Batcher::new(Toy::new(4, 4096, batch_tokens));
        let mut book = Book::new();
        // Ragged joins: one more every other step; leaves come by themselves.
        for request in &requests {
            batcher.run(request.clone());
            step(&mut batcher, &mut book);
            step(&mut batcher, &mut book);
        }
        drive(&mut batcher, &mut book);
        for request in &requests {
            assert_eq!(book[&request.id.0].answer(), alone(request).answer(), "{} by {batch_tokens}", request.id);
        }
    }
}

#[test]
fn a_step_gives_every_generating_slot_one_token_and_prompts_the_rest() {
    let mut batcher = timeless(Toy::new(4, 8192, 1024));
    let mut book = Book::new();
    batcher.run(complete(1, "a"));
    batcher.run(complete(2, "b"));
    step(&mut batcher, &mut book);
    let mut long = complete(3, &"x".repeat(1299));
    long.limits.context_tokens = 8192;
    batcher.run(long);
    batcher.run(complete(4, &"y".repeat(99)));
    // One without prompts tells what it takes. Then their part doubles: a quarter to the oldest, the rest to the shortest.
    for expected in [
        &[1, 1][..],
        &[1, 1, 2, 6],
        &[1, 1, 4, 12],
        &[1, 1, 8, 24],
        &[1, 1, 16, 48],
        &[1, 1, 10, 118],
        &[1, 1, 1, 256],
        &[1, 1, 1, 512],
        &[1, 1, 1, 384],
        &[1, 1, 1, 1],
    ] {
        step(&mut batcher, &mut book);
        let mut shares: Vec<usize> =
            batcher.engine().passes.last().expect("computed").iter().map(|&(_, tokens)| tokens).collect();
        shares.sort_unstable();
        assert_eq!(shares, expected);
    }
    drive(&mut batcher, &mut book);
    let mut batcher = Batcher::new(Toy::new(4, 4096, 1024));
    batcher.run(complete(1, &"x".repeat(1500)));
    step(&mut batcher, &mut Book::new());
    assert_eq!(batcher.engine().passes, [vec![(0, 1024)]], "nobody waits: the whole batch");
}

#[test]
fn row_49_a_paused_request_computes_nothing_and_its_answer_is_the_same() {
    let requests = [sampled(1, "one", 40), sampled(2, "two", 40), sampled(3, "three", 40)];
    let mut batcher = Batcher::new(Toy::new(2, 4096, 64));
    let mut book = Book::new();
    requests.iter().for_each(|request| batcher.run(request.clone()));
    // One before its first step, and one that is not even admitted.
    batcher.pause(requests[0].id, true);
    batcher.pause(requests[2].id, true);
    for _ in 0..20 {
        assert_eq!(step(&mut batcher, &mut book), StepOutcome::Busy);
    }
    assert!(book[&1].tokens.is_empty() && book[&2].tokens.len() >= 19);
    let mut steps = 0;
    while step(&mut batcher, &mut book) == StepOutcome::Busy {
        steps += 1;
        assert!(steps < 100, "it stands still when all are paused");
    }
    assert!(book[&2].end.is_some() && book[&3].tokens.is_empty());
    let computed = batcher.steps();
    assert_eq!(step(&mut batcher, &mut book), StepOutcome::Paused);
    assert_eq!(batcher.steps(), computed);
    batcher.pause(requests[0].id, false);
    while book[&1].end.is_none() {
        step(&mut batcher, &mut book);
    }
    assert_eq!(step(&mut batcher, &mut book), StepOutcome::Paused);
    batcher.pause(requests[2].id, false);
    drive(&mut batcher, &mut book);
    for request in &requests {
        assert_eq!(book[&request.id.0].answer(), alone(request).answer(), "{}", request.id);
    }
}

#[test]
fn embeddings_wait_for_no_paused_request() {
    let mut batcher = Batcher::new(Toy::new(2, 4096, 64));
    let mut book = Book::new();
    batcher.run(sampled(1, "one", 40));
    step(&mut batcher, &mut book);
    batcher.pause(RequestId(1), true);
    assert_eq!(step(&mut batcher, &mut book), StepOutcome::Paused);
    batcher.run(embed(2, &["a"]));
    drive(&mut batcher, &mut book);
    assert_eq!((book[&1].tokens.len(), book[&2].vectors().len()), (40, 1));
}

#[test]
fn a_resumed_request_goes_on_as_if_nothing_had_happened() {
    let mut request = sampled(9, "tell me a tale", 60);
    request.stop = vec!["zz".to_owned(), "é".to_owned()];
    request.logprobs = Some(Logprobs { top: 1 });
    let calm = alone(&request);
    for done in 0..calm.tokens.len() {
        // What was delivered by then.
        let mut batcher = Batcher::new(toy());
        let mut before = Book::new();
        batcher.run(request.clone());
        while before.get(&9).map_or(0, |told| told.tokens.len()) < done {
            step(&mut batcher, &mut before);
        }
        let before = before.remove(&9).unwrap_or_default();
        let resumed = alone(&after(&request, &calm.tokens[..done]));
        assert_eq!([&calm.tokens[..done], &resumed.tokens].concat(), calm.tokens, "{done}");
        assert_eq!(before.text.clone() + &resumed.text, calm.text, "{done}");
        assert_eq!(calm.logprobs[done..], resumed.logprobs, "{done}");
        assert_eq!(resumed.finished().usage, calm.finished().usage, "{done}");
        assert_eq!(resumed.finished().reason, calm.finished().reason, "{done}");
    }
    // The end was reached, but nobody had been told.
    let mut request = complete(9, "tell me");
    let calm = alone(&request);
    request.progress.produced = calm.tokens.clone();
    let resumed = alone(&request);
    assert_eq!((resumed.tokens.len(), resumed.text.as_str()), (0, ""));
    assert_eq!(resumed.finished().usage, calm.finished().usage);
}

#[test]
fn a_resumed_request_has_the_same_window_as_before() {
    let mut request = sampled(3, "a window that slides", 200);
    request.limits.context_tokens = 48;
    let calm = alone(&request);
    assert_eq!(calm.tokens.len(), 200, "it slid");
    for done in [1, 26, 27, 28, 29, 60, 150, 199] {
        let resumed = alone(&after(&request, &calm.tokens[..done]));
        assert_eq!(resumed.tokens, calm.tokens[done..], "{done}");
    }
}

#[test]
fn cancelled_requests_end_and_leave_no_trace() {
    let requests: Vec<Request> = (1..=7).map(|id| sampled(id, &"abc".repeat(id as usize * 60), 30)).collect();
    let mut batcher = Batcher::new(Toy::new(3, 4096, 64));
    let mut book = Book::new();
    requests.iter().for_each(|request| batcher.run(request.clone()));
    batcher.cancel(RequestId(99));
    batcher.cancel(RequestId(6));
    step(&mut batcher, &mut book);
    assert_eq!(book[&6].finished().reason, FinishReason::Cancelled, "while it waits");
    batcher.cancel(RequestId(3));
    step(&mut batcher, &mut book);
    assert_eq!(book[&3].finished().reason, FinishReason::Cancelled, "while its prompt is computed");
    while book[&1].tokens.len() < 5 {
        step(&mut batcher, &mut book);
    }
    batcher.cancel(RequestId(1));
    step(&mut batcher, &mut book);
    let finished = book[&1].finished();
    assert_eq!((finished.reason, finished.usage.completion_tokens), (FinishReason::Cancelled, 5));
    drive(&mut batcher, &mut book);
    for id in [2, 4, 5, 7] {
        assert_eq!(book[&id].answer(), alone(&requests[id as usize - 1]).answer(), "{id}");
    }
    batcher.run(requests[0].clone());
    drive(&mut batcher, &mut Book::new());
}

#[test]
fn the_beginning_of_a_prompt_is_computed_once() {
    for (cut_at, cached) in [(1, 22), (8, 16), (0, 0)] {
        let mut batcher = Batcher::new(Toy { cut_at, ..toy() });
        let mut book = Book::new();
        batcher.run(complete(1, "the same long prefix, then A"));
        drive(&mut batcher, &mut book);
        let request = complete(2, "the same long prefix, and B");
        batcher.run(request.clone());
        drive(&mut batcher, &mut book);
        assert_eq!(book[&2].answer(), alone(&request).answer());
        assert_eq!(book[&2].started.as_ref().expect("it started").cached_tokens, cached + u32::from(cut_at == 1));
        assert_eq!(book[&2].finished().usage.cached_tokens, cached + u32::from(cut_at == 1));
    }
}

#[test]
fn the_next_turn_of_a_conversation_reuses_prompt_and_answer() {
    let mut batcher = Batcher::new(toy());
    let mut book = Book::new();
    batcher.run(complete(1, "question?"));
    drive(&mut batcher, &mut book);
    // Only if the answer is text that tokenises to itself; the toy's letters do.
    let next = format!("question?{} and then?", book[&1].text);
    batcher.run(complete(2, &next));
    drive(&mut batcher, &mut book);
    let cached = book[&2].finished().usage.cached_tokens;
    assert!(cached >= 10 + book[&1].text.len() as u32 - 1, "only the last token was not computed: {cached}");
    assert_eq!(book[&2].answer(), alone(&complete(2, &next)).answer());
    batcher.run(complete(3, &next));
    drive(&mut batcher, &mut book);
    let usage = book[&3].finished().usage;
    assert_eq!(usage.cached_tokens, usage.prompt_tokens - 1, "one token is always computed");
}

#[test]
fn a_busy_slot_lends_its_prefix() {
    let prefix = "a system prompt that all share, and it is long enough";
    for can_copy in [true, false] {
        let mut batcher = Batcher::new(Toy { can_copy, ..toy() });
        let mut book = Book::new();
        let requests: Vec<Request> = (1..=4).map(|id| sampled(id, &format!("{prefix} {id}"), 20)).collect();
        for request in &requests {
            batcher.run(request.clone());
            step(&mut batcher, &mut book);
        }
        drive(&mut batcher, &mut book);
        assert_eq!(batcher.engine().copies, if can_copy { 3 } else { 0 });
        for request in &requests {
            assert_eq!(book[&request.id.0].answer(), alone(request).answer());
        }
    }
}

#[test]
fn the_end_token_ends_and_appears_nowhere() {
    let mut request = complete(1, "end");
    request.logprobs = Some(Logprobs { top: 3 });
    request.limits.max_tokens = None;
    let told = alone_on(Toy { end_logit: 7.9, ..toy() }, &request);
    let finished = told.finished();
    assert_eq!((finished.reason, finished.stop_string.as_deref()), (FinishReason::Stop, None));
    assert!(!told.tokens.contains(&EOS) && !told.text.contains("</s>"));
    assert_eq!(finished.usage.completion_tokens as usize, told.tokens.len());
    assert_eq!(told.logprobs.len(), told.tokens.len());
    assert!(told.logprobs.iter().all(|entry| entry.top.len() == 3 && entry.top[0].logprob >= entry.logprob));
    assert_eq!(told.logprobs.iter().map(|entry| TokenId::from(entry.bytes[0])).collect::<Vec<_>>(), told.tokens);
}

#[test]
fn a_stop_string_ends_and_is_named_but_not_said() {
    let calm = alone(&complete(1, "count"));
    let stop: String = calm.text.chars().skip(5).take(3).collect();
    let mut request = complete(1, "count");
    request.stop = vec!["nothing of the kind".to_owned(), stop.clone()];
    let told = alone(&request);
    let finished = told.finished();
    assert_eq!((finished.reason, finished.stop_string.as_deref()), (FinishReason::Stop, Some(stop.as_str())));
    assert_eq!(told.text, calm.text[..calm.text.find(&stop).expect("it is there")]);
    assert_eq!(finished.usage.completion_tokens as usize, told.tokens.len());
}

#[test]
fn a_control_token_that_is_named_as_a_stop_string_ends_too() {
    let mut toy = toy();
    let mut vocab = Vocab::clone(&toy.facts.vocab);
    vocab.ends.clear();
    toy.facts.vocab = Arc::new(vocab);
    toy.end_logit = 7.9;
    let mut request = complete(1, "end");
    request.limits.max_tokens = None;
    request.stop = vec!["</s>".to_owned()];
    let told = alone_on(toy, &request);
    assert_eq!((told.finished().reason, told.finished().stop_string.as_deref()), (FinishReason::Stop, Some("</s>")));
    assert!(!told.text.contains("</s>"));
}

#[test]
fn text_held_for_a_stop_string_is_said_at_the_end() {
    let calm = alone(&complete(1, "count"));
    let mut request = complete(1, "count");
    request.stop = vec![format!("{}!", calm.text)];
    assert_eq!(alone(&request).text, calm.text);
}

#[test]
fn zero_tokens_are_zero_tokens() {
    let mut request = complete(1, "nothing");
    request.limits.max_tokens = Some(0);
    let told = alone(&request);
    assert_eq!((told.tokens.len(), told.finished().reason), (0, FinishReason::Length));
    assert_eq!(told.finished().usage.prompt_tokens, 8);
}

#[test]
fn an_empty_prompt_is_the_beginning_of_a_sequence() {
    assert_eq!(alone(&complete(1, "")).finished().usage.prompt_tokens, 1);
}

#[test]
fn a_full_window_slides_or_ends() {
    let mut request = complete(1, "0123456789");
    request.limits = Limits { max_tokens: None, context_tokens: 32, truncate: true, shift: true, keep_tokens: 4 };
    let told = alone(&request);
    assert_eq!((told.tokens.len(), told.finished().reason), (320, FinishReason::Length), "the runaway guard");
    let rigid = alone_on(Toy { can_shift: false, ..toy() }, &request);
    request.limits.shift = false;
    let stopped = alone(&request);
    assert_eq!(stopped.answer(), rigid.answer());
    // The last token need not be computed, so one more than the window holds.
    assert_eq!((stopped.tokens.len(), stopped.finished().reason), (32 - 11 + 1, FinishReason::Length));
    assert_eq!(stopped.tokens, told.tokens[..22]);
}

#[test]
fn a_window_that_slid_is_not_reused_beyond_what_it_kept() {
    let mut batcher = Batcher::new(Toy::new(1, 32, 256));
    let mut book = Book::new();
    let mut request = complete(1, "0123456789");
    request.limits.max_tokens = Some(40);
    batcher.run(request);
    drive(&mut batcher, &mut book);
    assert_eq!(batcher.engine().caches[0], [BOS, 48, 49, 50, 51]);
}

#[test]
fn a_long_prompt_is_cut_or_refused() {
    let mut request = complete(1, &"abcdefghij".repeat(10));
    request.limits.context_tokens = 50;
    // Kept are 4 and the first of all, so 50 − (50 − 5) / 2.
    assert_eq!(alone(&request).finished().usage.prompt_tokens, 28);
    request.limits.truncate = false;
    assert_eq!(alone(&request).failed().kind, FailureKind::ContextExceeded);
    request.limits.context_tokens = 102;
    assert_eq!(alone(&request).finished().usage.prompt_tokens, 101);
    request.limits.context_tokens = 101;
    assert_eq!(alone(&request).failed().kind, FailureKind::ContextExceeded);
}

pub(super) fn message(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![ContentPart::Text(text.to_owned())],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    }
}

pub(super) fn chat(id: u64, messages: Vec<Message>) -> Request {
    let chat = Chat {
        messages,
        tools: Vec::new(),
        think: ThinkMode::Unset,
        template: None,
        single_turn: false,
        context: Vec::new(),
        suffix: None,
        render_only: false,
    };
    Request { work: Work::Chat(chat), ..complete(id, "") }
}

pub(super) fn with_chat(mut request: Request, change: impl FnOnce(&mut Chat)) -> Request {
    match &mut request.work {
        Work::Chat(chat) => change(chat),
        other => panic!("{other:?}"),
    }
    request
}

#[test]
fn the_oldest_turns_of_a_chat_go_first() {
    let turn = |number: usize| {
        let role = if number.is_multiple_of(2) { Role::User } else { Role::Assistant };
        message(role, &format!("message number {number}, which is of some length"))
    };
    let mut messages: Vec<Message> = (0..21).map(turn).collect();
    messages.insert(0, message(Role::System, "obey"));
    let mut request = chat(1, messages.clone());
    request.limits.context_tokens = 400;
    let told = alone(&request);
    let prompt = told.finished().usage.prompt_tokens;
    assert!((300..400).contains(&prompt), "as much as fits, and not a cut: {prompt}");
    // The same as if the client had sent only what is left.
    let survivors = |kept: usize| [&messages[..1], &messages[messages.len() - kept..]].concat();
    let mut equal: Vec<usize> = Vec::new();
    for kept in 1..21 {
        let mut shorter = chat(2, survivors(kept));
        shorter.limits = request.limits;
        shorter.limits.truncate = false;
        let mut batcher = Batcher::new(toy());
        let mut book = Book::new();
        batcher.run(shorter);
        drive(&mut batcher, &mut book);
        if matches!(&book[&2].end, Some(Output::Finished(_))) && book[&2].answer() == told.answer() {
            equal.push(kept);
        }
    }
    assert_eq!(equal.len(), 1, "{equal:?}");
}

#[test]
fn the_context_of_a_single_turn_is_prompt_and_answer() {
    let first = with_chat(chat(1, vec![message(Role::User, "one")]), |chat| chat.single_turn = true);
    let told = alone(&first);
    let context = told.finished().context.clone();
    assert_eq!(context.len() as u32, told.finished().usage.prompt_tokens + 16);
    assert_eq!(context[context.len() - 16..], told.tokens);
    let second = with_chat(chat(2, vec![message(Role::User, "two")]), |chat| {
        chat.single_turn = true;
        chat.context = context.clone();
    });
    let told = alone(&second);
    assert_eq!(told.finished().context[..context.len()], context);
    assert!(!told.finished().context[context.len()..].contains(&BOS), "it begins only once");
    let strange = with_chat(second, |chat| chat.context = vec![1, 258]);
    assert_eq!(alone(&strange).failed().kind, FailureKind::InvalidRequest);
}

#[test]
fn rendering_only_computes_nothing() {
    let request = with_chat(chat(1, vec![message(Role::User, "look at me")]), |chat| chat.render_only = true);
    let mut batcher = Batcher::new(toy());
    let mut book = Book::new();
    batcher.run(request);
    drive(&mut batcher, &mut book);
    assert!(matches!(&book[&1].end, Some(Output::Rendered(text)) if text.contains("look at me")));
    assert_eq!(batcher.steps(), 0);
}

#[test]
fn row_55_images_are_refused() {
    let mut picture = message(Role::User, "what is this?");
    picture.content.push(ContentPart::Image(vec![1, 2, 3]));
    assert_eq!(alone(&chat(1, vec![picture])).failed().kind, FailureKind::Unsupported);
}

#[test]
fn a_tokenizer_that_refuses_fails_one_request() {
    assert_eq!(alone(&complete(1, "!refuse")).failed().public, "refused");
}

#[test]
fn a_failed_pass_fails_those_in_it_and_nobody_else() {
    let mut batcher = Batcher::new(Toy::new(3, 4096, 256));
    let mut book = Book::new();
    batcher.run(complete(1, "one"));
    batcher.run(complete(2, "two"));
    step(&mut batcher, &mut book);
    batcher.engine.inner_mut().failures.push_back(Some(EngineError::Failed("bad luck".to_owned())));
    step(&mut batcher, &mut book);
    for id in [1, 2] {
        assert_eq!(
            (book[&id].failed().kind, book[&id].failed().detail.as_str()),
            (FailureKind::EngineFailed, "bad luck")
        );
    }
    batcher.run(complete(3, "one"));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&3].answer(), alone(&complete(3, "one")).answer(), "no damaged cache was reused");
}

#[test]
fn a_broken_engine_is_an_error() {
    let mut batcher = Batcher::new(toy());
    batcher.run(complete(1, "one"));
    batcher.engine.inner_mut().failures.push_back(Some(EngineError::Broken("gone".to_owned())));
    let broken = batcher.step(&mut Vec::new()).expect_err("broken");
    assert_eq!(broken.detail, "gone");
}

#[test]
fn nonsense_from_the_model_fails_one_request() {
    let mut batcher = Batcher::new(Toy { nan_after: Some(TokenId::from(b'!')), ..toy() });
    let mut book = Book::new();
    batcher.run(complete(1, "fine"));
    batcher.run(complete(2, "not fine!"));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&2].failed().kind, FailureKind::EngineFailed);
    assert_eq!(book[&1].answer(), alone(&complete(1, "fine")).answer());
}

#[test]
fn a_full_cache_drops_what_is_idle_then_takes_turns_then_fails_the_one_that_does_not_fit() {
    let mut batcher = timeless(Toy { room: 120, ..toy() });
    let mut book = Book::new();
    batcher.run(complete(1, &"a".repeat(80)));
    drive(&mut batcher, &mut book);
    batcher.run(complete(2, &"b".repeat(80)));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&2].finished().reason, FinishReason::Length, "the idle cache made room");
    batcher.run(complete(3, &"c".repeat(40)));
    batcher.run(complete(4, &"d".repeat(40)));
    batcher.run(complete(5, &"e".repeat(200)));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&5].failed().public, "no room in the key-value cache");
    for (id, letter) in [(3, "c"), (4, "d")] {
        assert_eq!(book[&id].answer(), alone(&complete(id, &letter.repeat(40))).answer());
    }
}

fn embed(id: u64, inputs: &[&str]) -> Request {
    let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
    let work = Work::Embed(Embed { inputs, truncate: true, normalize: false, dimensions: None });
    Request { work, ..complete(id, "") }
}

fn with_embed(mut request: Request, change: impl FnOnce(&mut Embed)) -> Request {
    match &mut request.work {
        Work::Embed(embed) => change(embed),
        other => panic!("{other:?}"),
    }
    request
}

fn embedder() -> Toy {
    let mut toy = Toy::new(2, 16, 32);
    toy.facts.embedding = true;
    toy
}

#[test]
fn embeddings_come_in_order_whatever_shares_a_pass() {
    let requests = [
        embed(1, &["a", "bb", "ccc"]),
        embed(2, &["dddddddddd", "e", "ffffffffff", "gggggggggg", "h"]),
        embed(3, &[]),
        embed(4, &["i"]),
    ];
    let mut batcher = Batcher::new(embedder());
    let mut book = Book::new();
    requests.iter().for_each(|request| batcher.run(request.clone()));
    drive(&mut batcher, &mut book);
    for request in &requests {
        assert_eq!(book[&request.id.0].vectors(), alone_on(embedder(), request).vectors());
    }
    assert_eq!(book[&1].vectors().iter().map(|vector| vector[0]).collect::<Vec<_>>(), [3.0, 4.0, 5.0]);
    assert!(book[&3].vectors().is_empty());
    assert!(batcher.engine().passes.iter().all(|pass| pass.iter().map(|(_, tokens)| tokens).sum::<usize>() <= 32));
    assert_eq!(batcher.engine().passes.len(), 2);
    let halves = Toy { room: 1, ..embedder() };
    assert_eq!(alone_on(halves, &requests[1]).vectors(), book[&2].vectors(), "one by one where there is no room");
}

#[test]
fn long_inputs_are_cut_before_the_marker_at_their_end_or_refused() {
    let long = embed(1, &["abcdefghijklmnopqrst"]);
    let told = alone_on(embedder(), &long);
    let vector = &told.vectors()[0];
    assert_eq!((vector[0], vector[3]), (16.0, EOS as f32));
    let refused = alone_on(embedder(), &with_embed(long, |embed| embed.truncate = false));
    assert_eq!(refused.failed().public, "the input length exceeds the context length");
}

#[test]
fn vectors_are_cut_then_normalised() {
    let request = with_embed(embed(1, &["ab"]), |embed| {
        embed.normalize = true;
        embed.dimensions = Some(2);
    });
    let told = alone_on(embedder(), &request);
    let vector = &told.vectors()[0];
    assert_eq!(vector.len(), 2);
    assert!((vector[0].powi(2) + vector[1].powi(2) - 1.0).abs() < 1e-6);
    let all = with_embed(request, |embed| embed.dimensions = Some(9));
    assert_eq!(alone_on(embedder(), &all).vectors()[0].len(), 4);
}

#[test]
fn one_bad_embedding_fails_alone() {
    let mut batcher = Batcher::new(Toy { nan_after: Some(TokenId::from(b'!')), ..embedder() });
    let mut book = Book::new();
    batcher.run(embed(1, &["a"]));
    batcher.run(embed(2, &["b!"]));
    batcher.run(embed(3, &["c"]));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&2].failed().public, "embedding contains NaN or Inf values");
    assert_eq!((book[&1].vectors().len(), book[&3].vectors().len()), (1, 1));

    // A computation that fails together is tried apart.
    let failed = || Some(EngineError::Failed("bad".to_owned()));
    batcher.engine.inner_mut().failures.extend([failed(), None, failed()]);
    batcher.run(embed(4, &["a"]));
    batcher.run(embed(5, &["b"]));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&4].vectors().len(), 1);
    assert_eq!(book[&5].failed().kind, FailureKind::EngineFailed);
}

#[test]
fn embedding_models_do_not_generate_and_cancelled_embeddings_end() {
    assert_eq!(alone_on(embedder(), &complete(1, "x")).failed().kind, FailureKind::Unsupported);
    let mut batcher = Batcher::new(embedder());
    let mut book = Book::new();
    batcher.run(embed(1, &["aaaaaaaaaaaa"; 20]));
    step(&mut batcher, &mut book);
    batcher.cancel(RequestId(1));
    step(&mut batcher, &mut book);
    assert_eq!(book[&1].finished().reason, FinishReason::Cancelled);
    assert!(batcher.is_idle());
}

#[test]
fn embeddings_wait_for_generation_and_generation_for_them() {
    let mut batcher = Batcher::new(toy());
    let mut book = Book::new();
    batcher.run(complete(1, "first"));
    step(&mut batcher, &mut book);
    batcher.run(embed(2, &["second"]));
    batcher.run(complete(3, "third"));
    step(&mut batcher, &mut book);
    assert!(!book.contains_key(&3), "what came later does not overtake");
    while !book.contains_key(&2) {
        assert!(!book.contains_key(&3));
        step(&mut batcher, &mut book);
    }
    assert!(book[&1].end.is_some());
    drive(&mut batcher, &mut book);
    assert_eq!(book[&1].answer(), alone(&complete(1, "first")).answer());
    assert_eq!(book[&3].answer(), alone(&complete(3, "third")).answer());
}

#[test]
fn too_many_arrivals_are_answered_not_kept() {
    let mut batcher = Batcher::new(toy());
    let mut book = Book::new();
    for id in 0..=ARRIVALS_LEN_MAX as u64 {
        batcher.run(complete(id, "x"));
    }
    drive(&mut batcher, &mut book);
    assert_eq!(book[&(ARRIVALS_LEN_MAX as u64)].failed().kind, FailureKind::Busy);
    assert!((0..ARRIVALS_LEN_MAX as u64).all(|id| book[&id].end.is_some()));
}

#[test]
fn a_delta_says_where_its_text_belongs() {
    let mut batcher = Batcher::new(toy());
    let mut out = Vec::new();
    batcher.run(complete(1, "x"));
    while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
    let parts = out.iter().filter_map(|(_, output)| match output {
        Output::Delta(delta) => Some((delta.part, delta.tokens.len())),
        _ => None,
    });
    assert!(parts.into_iter().all(|part| part == (Part::Content, 1)));
}
