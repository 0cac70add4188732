//! The state of one request that generates: from a token to what the client is told of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ollmlx_proto::{
    Delta, Failure, FailureKind, FinishReason, Finished, Logprobs, Output, Part, Request, RequestId, Timings, TokenId,
    TokenLogprob, ToolCall, Usage, Work,
};

use super::prompt::Prepared;
use crate::chat::{OutputParser, Parsed};
use crate::grammar::Grammar;
use crate::sampler::{Sampler, logprobs};
use crate::text::{Detokenizer, StopMatcher};
use crate::vocab::Vocab;

/// A generation without `max_tokens` ends after this many windows: a guard against runaways.
const WINDOWS_MAX: usize = 10;

/// One request in a slot.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: RequestId,
    pub(super) cancelled: bool,
    /// What must be in the slot's cache before the next token can be chosen: prompt, then tokens of an earlier
    /// incarnation.
    pub(super) prompt: Vec<TokenId>,
    /// Length of the prompt proper.
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    /// Chosen, not yet computed.
    pub(super) next: Option<TokenId>,
    /// This request's context.
    pub(super) window: usize,
    pub(super) keep: usize,
    pub(super) shift: bool,
    pub(super) arrived: Instant,
    pub(super) started: Instant,
    pub(super) decoding_since: Option<Instant>,
    generated: Vec<TokenId>,
    generated_max: usize,
    history: Vec<TokenId>,
    vocab: Arc<Vocab>,
    visible_controls: BTreeSet<TokenId>,
    sampler: Sampler,
    grammar: Option<Grammar>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    parser: OutputParser,
    logprobs: Option<Logprobs>,
    tool_calls: u32,
    wants_context: bool,
}

/// What a run is given beside its request and its prompt.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) grammar: Option<Grammar>,
    /// This request's context in tokens.
    pub(super) window: usize,
    /// Tokens at the start that a slide never drops.
    pub(super) keep: usize,
    pub(super) arrived: Instant,
}

/// How a token leaves the request.
#[derive(Debug)]
pub(super) enum Fate {
    /// It goes on.
    Goes,
    /// It has ended; the terminal output is among the others.
    Ended,
}

/// Collects the outputs of one request.
pub(super) struct Emit<'a> {
    pub(super) id: RequestId,
    pub(super) out: &'a mut Vec<(RequestId, Output)>,
    /// Replays say nothing.
    pub(super) silent: bool,
}

impl Emit<'_> {
    pub(super) fn say(&mut self, output: Output) {
        if !self.silent {
            self.out.push((self.id, output));
        }
    }
}

impl Run {
    /// A request with its prompt. `produced` is replayed by [`Run::replay`].
    pub(super) fn new(request: &Request, prepared: Prepared, vocab: &Arc<Vocab>, given: Given) -> Self {
        let Given { grammar, window, keep, arrived } = given;
        let Prepared { tokens: prompt, parser } = prepared;
        let runaway = window.saturating_mul(WINDOWS_MAX);
        let visible_controls = parser.visible_controls().clone();
        Self {
            id: request.id,
            cancelled: false,
            prompt_tokens: prompt.len(),
            cached_tokens: 0,
            next: None,
            window,
            keep,
            shift: request.limits.shift,
            arrived,
            started: arrived,
            decoding_since: None,
            generated: Vec::new(),
            generated_max: request.limits.max_tokens.map_or(runaway, |max| (max as usize).min(runaway)),
            history: prompt.clone(),
            prompt,
            vocab: Arc::clone(vocab),
            visible_controls,
            sampler: Sampler::new(request.sampling.clone()),
            grammar,
            detokenizer: Detokenizer::new(Arc::clone(vocab)),
            stops: StopMatcher::new(&request.stop),
            parser,
            logprobs: request.logprobs,
            tool_calls: 0,
            wants_context: matches!(&request.work, Work::Chat(chat) if chat.single_turn),
        }
    }

    /// Takes the tokens of an earlier incarnation: the state moves on, nothing is said.
    ///
    /// # Errors
    /// They do not belong to this request.
    pub(super) fn replay(&mut self, produced: &[TokenId]) -> Result<(), Failure> {
        let mut unheard = Vec::new();
        for &token in produced {
            if token as usize >= self.vocab.len() {
                return Err(Failure::new(FailureKind::Internal, "a produced token is outside the vocabulary"));
            }
            self.make_room();
            self.prompt.push(token);
            let mut emit = Emit { id: self.id, out: &mut unheard, silent: true };
            if matches!(self.accept(token, None, &mut emit)?, Fate::Ended) {
                return Err(Failure::new(FailureKind::Internal, "the request had ended already"));
            }
        }
        self.next = None;
        Ok(())
    }

    /// Where a calm run would have slid its window, the replayed one does.
    fn make_room(&mut self) {
        if self.prompt.len() >= self.window {
            let (keep, discard) = self.slide(self.prompt.len());
            self.prompt.drain(keep..keep + discard);
        }
    }

    /// What a slide of a window with `len` tokens keeps at the start and then discards; at least one token goes.
    pub(super) fn slide(&self, len: usize) -> (usize, usize) {
        let keep = self.keep.min(len.saturating_sub(2));
        (keep, ((len - keep) / 2).max(1))
    }

    /// Chooses the next token from `logits`, which are changed in place.
    ///
    /// # Errors
    /// The grammar failed, or no token is possible.
    pub(super) fn choose(&mut self, logits: &mut [f32], emit: &mut Emit<'_>) -> Result<Fate, Failure> {
        if self.generated.len() >= self.generated_max {
            return self.finish(FinishReason::Length, None, emit);
        }
        let raw = self.logprobs.map(|wanted| (wanted.top as usize, logits.to_vec()));
        self.sampler.penalize(logits, &self.history);
        if !self.parser.in_thinking()
            && let Some(grammar) = &mut self.grammar
        {
            grammar.mask(logits)?;
        }
        let Some(token) = self.sampler.choose(logits, self.generated.len() as u64) else {
            let text = "the model's output is not a number; the model or its quantisation may be damaged";
            return Err(Failure::new(FailureKind::EngineFailed, text));
        };
        let entry = raw.map(|(top, raw)| logprobs(&raw, token, top, &self.vocab));
        self.accept(token, entry, emit)
    }

    /// Takes a token: text, stop strings, parser, grammar, limits.
    fn accept(&mut self, token: TokenId, entry: Option<TokenLogprob>, emit: &mut Emit<'_>) -> Result<Fate, Failure> {
        if self.vocab.ends.contains(&token) {
            return self.finish(FinishReason::Stop, None, emit);
        }
        if !self.parser.in_thinking()
            && let Some(grammar) = &mut self.grammar
        {
            grammar.accept(token)?;
        }
        self.generated.push(token);
        self.history.push(token);
        let text = if self.visible_controls.contains(&token) {
            self.vocab.spelling_lossy(token)
        } else {
            self.detokenizer.push(token)
        };
        let step = self.stops.push(&text);
        let parsed = if step.text.is_empty() { Vec::new() } else { self.parser.push(&step.text) };
        self.tell(parsed, Some((token, entry)), emit);
        if step.stopped.is_some() {
            return self.finish(FinishReason::Stop, step.stopped, emit);
        }
        if self.grammar.as_ref().is_some_and(Grammar::is_done) {
            return self.finish(FinishReason::Stop, None, emit);
        }
        if self.generated.len() >= self.generated_max {
            return self.finish(FinishReason::Length, None, emit);
        }
        self.next = Some(token);
        Ok(Fate::Goes)
    }

    /// Says what the parser made of the text. The token rides on the first delta.
    fn tell(&mut self, parsed: Vec<Parsed>, token: Option<(TokenId, Option<TokenLogprob>)>, emit: &mut Emit<'_>) {
        let (mut tokens, mut entries) = (Vec::new(), Vec::new());
        if let Some((token, entry)) = token {
            tokens.push(token);
            entries.extend(entry);
        }
        for piece in parsed {
            let (text, part) = match piece {
                Parsed::Content(text) => (text, Part::Content),
                Parsed::Thinking(text) => (text, Part::Thinking),
                Parsed::ToolCall { name, arguments } => {
                    let call = ToolCall { index: self.tool_calls, name, arguments };
                    self.tool_calls += 1;
                    emit.say(Output::ToolCall(call));
                    continue;
                }
            };
            let (tokens, logprobs) = (std::mem::take(&mut tokens), std::mem::take(&mut entries));
            emit.say(Output::Delta(Delta { tokens, text, part, logprobs }));
        }
        if !tokens.is_empty() {
            let part = if self.parser.in_thinking() { Part::Thinking } else { Part::Content };
            emit.say(Output::Delta(Delta { tokens, text: String::new(), part, logprobs: entries }));
        }
    }

    /// Ends the request: what was held back comes out, then the terminal output.
    pub(super) fn finish(
        &mut self,
        reason: FinishReason,
        stop_string: Option<String>,
        emit: &mut Emit<'_>,
    ) -> Result<Fate, Failure> {
        if stop_string.is_none() {
            let held = self.stops.finish();
            let parsed = if held.is_empty() { Vec::new() } else { self.parser.push(&held) };
            self.tell(parsed, None, emit);
        }
        let parsed = self.parser.finish();
        self.tell(parsed, None, emit);
        let reason = match reason {
            FinishReason::Stop if self.tool_calls > 0 => FinishReason::ToolCalls,
            other => other,
        };
        let context = if self.wants_context { self.history.clone() } else { Vec::new() };
        emit.say(Output::Finished(Finished {
            reason,
            stop_string,
            usage: self.usage(),
            timings: self.timings(),
            context,
        }));
        Ok(Fate::Ended)
    }

    fn usage(&self) -> Usage {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage {
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached_tokens),
            completion_tokens: count(self.generated.len()),
        }
    }

    fn timings(&self) -> Timings {
        let nanoseconds = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
        };
        let now = Instant::now();
        let decoding_since = self.decoding_since.unwrap_or(now);
        Timings {
            queue_ns: nanoseconds(self.arrived, self.started),
            prefill_ns: nanoseconds(self.started, decoding_since),
            decode_ns: nanoseconds(decoding_since, now),
        }
    }
}
