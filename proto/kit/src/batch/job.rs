//! One generating request: from logits to outputs.
//!
//! A token passes sampler, detokeniser, stop strings and the parser of the chat format, in this order. Every token
//! appears in exactly one delta; an end token appears nowhere and is not counted, so that usage, deltas and log
//! probabilities agree. Knows nothing of slots and engines.

use std::time::Instant;

use ollmlx_proto::{
    Delta, Failure, FailureKind, FinishReason, Finished, Output, Part, Request, RequestId, Timings, TokenId,
    TokenLogprob, ToolCall, Usage,
};

use super::prompt::Prompt;
use crate::chat::{OutputParser, Parsed};
use crate::grammar::Grammar;
use crate::limits::{RUNAWAY_WINDOWS, SLIDE_TOKENS_MIN};
use crate::sampler::{Choice, SampleError, Sampler, Scratch};
use crate::text::{Detokenizer, StopMatcher};
use crate::vocab::Vocab;

/// One generating request.
pub(super) struct Job {
    pub(super) id: RequestId,
    pub(super) cancelled: bool,
    /// Its client reads too slowly.
    pub(super) paused: bool,
    pub(super) clock: Stopwatch,
    pub(super) usage: Usage,
    pub(super) window: usize,
    /// Tokens at the start that a slide keeps; `None` where the window must not slide.
    pub(super) slide_keep: Option<usize>,
    max_tokens: u32,
    sampler: Sampler,
    grammar: Option<Grammar>,
    logprobs: Option<u8>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    parser: OutputParser,
    tool_calls: u32,
    /// Outputs to come that an earlier worker has told already.
    pub(super) heard: usize,
    /// Prompt and answer, where they are reported at the end.
    context: Option<Vec<TokenId>>,
}

/// When what happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch {
    pub(super) arrived: Instant,
    /// The first prompt token was computed.
    pub(super) prefill: Option<Instant>,
    /// The first token was chosen.
    pub(super) decode: Option<Instant>,
    /// The client last heard of the prefill.
    pub(super) told: Instant,
}

impl Stopwatch {
    pub(super) fn new(arrived: Instant) -> Self {
        Self { arrived, prefill: None, decode: None, told: arrived }
    }

    pub(super) fn timings(&self) -> Timings {
        let now = Instant::now();
        let prefill = self.prefill.unwrap_or(now);
        let decode = self.decode.unwrap_or(now);
        let ns = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
        };
        Timings { queue_ns: ns(self.arrived, prefill), prefill_ns: ns(prefill, decode), decode_ns: ns(decode, now) }
    }
}

/// Why an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) reason: FinishReason,
    pub(super) stop_string: Option<String>,
}

impl Ending {
    pub(super) fn because(reason: FinishReason) -> Self {
        Self { reason, stop_string: None }
    }
}

impl Job {
    /// At the start of its answer.
    pub(super) fn new(request: &Request, prompt: Prompt, grammar: Option<Grammar>, arrived: Instant) -> Self {
        let Prompt { tokens, window, keep, parser, wants_context } = prompt;
        let window_tokens = u32::try_from(window).unwrap_or(u32::MAX);
        let mut sampler = Sampler::new(&request.sampling, window_tokens);
        sampler.accept_prompt(&tokens);
        let slide_keep = keep.min(window.saturating_sub(SLIDE_TOKENS_MIN));
        let runaway = window_tokens.saturating_mul(RUNAWAY_WINDOWS);
        Self {
            id: request.id,
            cancelled: false,
            paused: false,
            clock: Stopwatch::new(arrived),
            usage: Usage { prompt_tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX), ..Usage::default() },
            window,
            slide_keep: request.limits.shift.then_some(slide_keep),
            max_tokens: request.limits.max_tokens.map_or(runaway, |most| most.min(runaway)),
            sampler,
            grammar,
            logprobs: request.logprobs.map(|logprobs| logprobs.top),
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(&request.stop),
            parser,
            tool_calls: 0,
            heard: 0,
            context: wants_context.then_some(tokens),
        }
    }

    /// Whether no more tokens may be generated.
    pub(super) fn is_full(&self) -> bool {
        self.usage.completion_tokens >= self.max_tokens
    }

    /// Tokens after `slide_keep` that a slide of a window with `filled` tokens drops; `None` where it must not slide.
    pub(super) fn slide(&self, filled: usize) -> Option<(usize, usize)> {
        self.slide_keep.map(|keep| (keep, (filled.saturating_sub(keep) / 2).max(1)))
    }

    /// Chooses the next token. `logits` are spoilt.
    pub(super) fn sample(
        &mut self,
        logits: &mut [f32],
        vocab: &Vocab,
        scratch: &mut Scratch,
    ) -> Result<Choice, Failure> {
        let constrained = !self.parser.in_thinking();
        let grammar = self.grammar.as_mut().filter(|_| constrained);
        let logprobs = self.logprobs.map(|top| (top, vocab));
        let choice = self.sampler.sample(logits, grammar, logprobs, scratch).map_err(|error| match error {
            SampleError::Grammar(failure) => failure,
            SampleError::NothingAllowed if self.grammar.is_some() => {
                Failure::new(FailureKind::GrammarFailed, "the output format leaves no token to choose")
            }
            error => Failure::new(FailureKind::EngineFailed, error.to_string()),
        })?;
        if !vocab.ends.contains(&choice.token) {
            // Nobody can have heard what a new token leads to.
            self.heard = 0;
        }
        Ok(choice)
    }

    /// Takes the next token of the answer, says what it leads to, and tells whether it is the last.
    ///
    /// # Errors
    /// The grammar refused it.
    pub(super) fn accept(
        &mut self,
        choice: Choice,
        vocab: &Vocab,
        say: &mut dyn FnMut(Output),
    ) -> Result<Option<Ending>, Failure> {
        let Choice { token, logprob } = choice;
        if vocab.ends.contains(&token) {
            self.mark_end(token, vocab, say);
            return Ok(Some(Ending::because(FinishReason::Stop)));
        }
        self.usage.completion_tokens += 1;
        self.sampler.accept(token);
        if let Some(context) = &mut self.context {
            context.push(token);
        }
        let constrained = !self.parser.in_thinking();
        let mut complete = false;
        if let Some(grammar) = self.grammar.as_mut().filter(|_| constrained) {
            grammar.accept(token)?;
            complete = grammar.is_done();
        }
        let bytes = self.bytes(token, vocab);
        let mut characters = String::new();
        self.detokenizer.push(bytes, &mut characters);
        let mut text = String::new();
        let mut stop_string = self.stops.push(&characters, &mut text).map(str::to_owned);
        if bytes.is_empty() {
            stop_string = stop_string.or_else(|| self.stops.control(vocab.spelling(token)).map(str::to_owned));
        }
        let parsed = self.parser.push(&text);
        self.speak(parsed, Some((token, logprob)), say);
        Ok(match stop_string {
            Some(_) => Some(Ending { reason: FinishReason::Stop, stop_string }),
            None if complete => Some(Ending::because(FinishReason::Stop)),
            None if self.is_full() => Some(Ending::because(FinishReason::Length)),
            None => None,
        })
    }

    /// Says what was held back, and the end.
    pub(super) fn finish(mut self, ending: Ending, say: &mut dyn FnMut(Output)) {
        if ending.reason != FinishReason::Cancelled {
            // After a stop string in the text nothing is held.
            let held = self.stops.finish();
            let mut parsed = self.parser.push(&held);
            parsed.append(&mut self.parser.finish());
            self.speak(parsed, None, say);
        }
        let reason = match ending.reason {
            FinishReason::Stop if self.tool_calls > 0 => FinishReason::ToolCalls,
            reason => reason,
        };
        say(Output::Finished(Finished {
            reason,
            stop_string: ending.stop_string,
            usage: self.usage,
            timings: self.clock.timings(),
            context: self.context.unwrap_or_default(),
        }));
    }

    /// What a token adds to the text: control tokens only where they are markers that the parser takes out again.
    fn bytes<'a>(&self, token: TokenId, vocab: &'a Vocab) -> &'a [u8] {
        match vocab.text_bytes(token) {
            [] if self.parser.visible_controls().contains(&token) => vocab.spelling(token),
            bytes => bytes,
        }
    }

    /// Shows the parser an end token that is a marker as well.
    fn mark_end(&mut self, token: TokenId, vocab: &Vocab, say: &mut dyn FnMut(Output)) {
        if self.parser.visible_controls().contains(&token) {
            let text = self.stops.finish() + &vocab.spelling_lossy(token);
            let parsed = self.parser.push(&text);
            self.speak(parsed, None, say);
        }
    }

    /// Turns what the parser found into outputs; the first delta carries the token.
    fn speak(
        &mut self,
        parsed: Vec<Parsed>,
        token: Option<(TokenId, Option<TokenLogprob>)>,
        say: &mut dyn FnMut(Output),
    ) {
        let heard = &mut self.heard;
        let mut say = |output: Output| match heard.checked_sub(1) {
            Some(left) => *heard = left,
            None => say(output),
        };
        let resting = if self.parser.in_thinking() { Part::Thinking } else { Part::Content };
        let mut open = token.map(|(token, logprob)| Delta {
            tokens: vec![token],
            text: String::new(),
            part: resting,
            logprobs: logprob.into_iter().collect(),
        });
        for piece in parsed {
            let (part, text) = match piece {
                Parsed::Content(text) => (Part::Content, text),
                Parsed::Thinking(text) => (Part::Thinking, text),
                Parsed::ToolCall { name, arguments } => {
                    if let Some(delta) = open.take() {
                        say(Output::Delta(delta));
                    }
                    let index = self.tool_calls;
                    self.tool_calls += 1;
                    say(Output::ToolCall(ToolCall { index, name, arguments }));
                    continue;
                }
            };
            open = match open.take() {
                Some(mut delta) if delta.text.is_empty() || delta.part == part => {
                    delta.part = part;
                    delta.text.push_str(&text);
                    Some(delta)
                }
                before => {
                    if let Some(delta) = before {
                        say(Output::Delta(delta));
                    }
                    Some(Delta { tokens: Vec::new(), text, part, logprobs: Vec::new() })
                }
            };
        }
        if let Some(delta) = open
            && !(delta.tokens.is_empty() && delta.text.is_empty())
        {
            say(Output::Delta(delta));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ollmlx_proto::JsonText;

    use super::super::toy;
    use super::*;

    pub(in super::super) fn some_job() -> Job {
        let prompt =
            Prompt { tokens: vec![1], window: 64, keep: 0, parser: OutputParser::passthrough(), wants_context: false };
        Job::new(&toy::complete(1, "x"), prompt, None, Instant::now())
    }

    fn spoken(parsed: Vec<Parsed>, token: Option<TokenId>) -> Vec<Output> {
        let mut said = Vec::new();
        some_job().speak(parsed, token.map(|token| (token, None)), &mut |output| said.push(output));
        said
    }

    fn delta(tokens: &[TokenId], text: &str, part: Part) -> Output {
        Output::Delta(Delta { tokens: tokens.to_vec(), text: text.to_owned(), part, logprobs: Vec::new() })
    }

    fn call() -> Parsed {
        Parsed::ToolCall { name: "add".to_owned(), arguments: JsonText("{}".to_owned()) }
    }

    fn called(index: u32) -> Output {
        Output::ToolCall(ToolCall { index, name: "add".to_owned(), arguments: JsonText("{}".to_owned()) })
    }

    #[test]
    fn a_token_travels_in_exactly_one_delta_even_without_text() {
        assert_eq!(spoken(vec![], Some(7)), [delta(&[7], "", Part::Content)]);
        assert_eq!(spoken(vec![], None), []);
        assert_eq!(
            spoken(
                vec![Parsed::Thinking("a".into()), Parsed::Thinking("b".into()), Parsed::Content("c".into())],
                Some(7)
            ),
            [delta(&[7], "ab", Part::Thinking), delta(&[], "c", Part::Content)]
        );
    }

    #[test]
    fn tool_calls_keep_their_place_and_count_up() {
        assert_eq!(
            spoken(vec![call(), Parsed::Content("and".into()), call()], Some(7)),
            [delta(&[7], "", Part::Content), called(0), delta(&[], "and", Part::Content), called(1)]
        );
    }

    #[test]
    fn an_answer_with_tool_calls_ends_so_unless_it_was_cut() {
        for (reason, expected) in
            [(FinishReason::Stop, FinishReason::ToolCalls), (FinishReason::Length, FinishReason::Length)]
        {
            let mut job = some_job();
            job.speak(vec![call()], None, &mut |_| {});
            let mut said = Vec::new();
            job.finish(Ending::because(reason), &mut |output| said.push(output));
            assert!(matches!(said.as_slice(), [Output::Finished(finished)] if finished.reason == expected));
        }
    }
}
