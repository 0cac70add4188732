//! Work to prompt tokens: rendering, tokenising, and shortening what does not fit.
//!
//! Shortening follows Ollama: the oldest turns of a chat are dropped until the rest fits, system messages and the last
//! message always stay; then, if the window may slide, the tokens are cut in the middle. Of a text that does not fit only
//! what stays becomes tokens, and as much as shows that it does not fit ([`super::slices`]). Knows nothing of slots.

use ollmlx_proto::limits::CONTEXT_TOKENS_MIN;
use ollmlx_proto::{
    Chat, Complete, ContentPart, Failure, FailureKind, Limits, Request, Role, TokenId, UnixSeconds, Work,
};

use super::prepare::{Bench, Part, Watch};
use super::slices::{Reader, Text};
use crate::chat::{OutputParser, RenderedPrompt};
use crate::contract::{ONLY_EMBEDDINGS, PROMPT_TOO_LONG};
use crate::engine::EngineFacts;

/// What a request's work turned into.
pub(super) enum Prepared {
    /// Only the text was wanted.
    Rendered(String),
    /// To be computed.
    Prompt(Prompt),
}

/// A prompt that fits its window.
pub(super) struct Prompt {
    /// Not empty, and less than `window`.
    pub(super) tokens: Vec<TokenId>,
    /// Tokens of this request's window.
    pub(super) window: usize,
    /// Tokens at the start that a slide keeps.
    pub(super) keep: usize,
    /// Reads the answer.
    pub(super) parser: OutputParser,
    /// Whether the tokens are reported at the end.
    pub(super) wants_context: bool,
}

/// What this needs of the batcher.
pub(super) struct Renderer<'a> {
    pub(super) bench: &'a Bench,
    pub(super) watch: &'a Watch,
    /// When it was asked.
    pub(super) asked_at: UnixSeconds,
}

/// A rendered prompt and its first tokens: all of them, or at least a window's.
struct Read<'a> {
    /// Tokens of an earlier exchange, in front.
    context: &'a [TokenId],
    rendered: RenderedPrompt,
    tokens: Vec<TokenId>,
}

impl Renderer<'_> {
    /// Turns work into a prompt.
    ///
    /// # Errors
    /// The template failed, the prompt does not fit, or something in it is impossible.
    pub(super) fn prepare(&self, request: &Request) -> Result<Prepared, Failure> {
        let facts = &self.bench.facts;
        if facts.embedding {
            return Err(Failure::new(FailureKind::Unsupported, ONLY_EMBEDDINGS));
        }
        let window = window(&request.limits, facts);
        let (mut read, parser, wants_context) = match &request.work {
            Work::Chat(chat) if chat.render_only => {
                return self.render(chat).map(|rendered| Prepared::Rendered(rendered.text));
            }
            Work::Chat(chat) => self.chat(chat, &request.limits, window)?,
            Work::Complete(complete) => {
                (self.read(&[], self.complete(complete)?, window)?, OutputParser::passthrough(), false)
            }
            Work::Embed(_) => return Err(Failure::new(FailureKind::Internal, "embeddings have no prompt")),
        };
        let tokens = self.never_empty(std::mem::take(&mut read.tokens))?;
        let keep = keep(&request.limits, facts, tokens.len());
        let tokens = fit(tokens, keep, window, &request.limits, |count| self.last(&read, count))?;
        Ok(Prepared::Prompt(Prompt { tokens, window, keep, parser, wants_context }))
    }

    fn complete(&self, complete: &Complete) -> Result<RenderedPrompt, Failure> {
        match complete.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            None => Ok(RenderedPrompt {
                text: complete.prompt.clone(),
                cuts: Vec::new(),
                add_special: true,
                thinking_open: false,
            }),
            Some(suffix) => self.bench.format.render_suffix(&complete.prompt, suffix, &self.bench.facts.vocab),
        }
    }

    fn chat<'a>(
        &self,
        chat: &'a Chat,
        limits: &Limits,
        window: usize,
    ) -> Result<(Read<'a>, OutputParser, bool), Failure> {
        self.check(chat)?;
        let read = self.read(&chat.context, self.render(chat)?, window)?;
        if !limits.truncate || read.tokens.len() < window || chat.suffix.is_some() {
            let parser = self.bench.format.parser(chat, &read.rendered);
            return Ok((read, parser, chat.single_turn));
        }
        let (read, parser) = match self.drop_turns(chat, window)? {
            Some(shorter) => shorter,
            None => {
                let parser = self.bench.format.parser(chat, &read.rendered);
                (read, parser)
            }
        };
        Ok((read, parser, chat.single_turn))
    }

    fn check(&self, chat: &Chat) -> Result<(), Failure> {
        let mut parts = chat.messages.iter().flat_map(|message| &message.content);
        if parts.any(|part| matches!(part, ContentPart::Image(_))) {
            return Err(Failure::new(FailureKind::Unsupported, "this model does not support image input"));
        }
        let size = self.bench.facts.vocab.len();
        match chat.context.iter().find(|&&token| token as usize >= size) {
            None => Ok(()),
            Some(token) => Err(Failure::new(
                FailureKind::InvalidRequest,
                format!("context holds {token}, but the model has only {size} tokens"),
            )),
        }
    }

    /// The tokens of a prompt, as many as show whether it fits.
    fn read<'a>(
        &self,
        context: &'a [TokenId],
        mut rendered: RenderedPrompt,
        window: usize,
    ) -> Result<Read<'a>, Failure> {
        if context.is_empty() {
            let tokens = self.first(text(&rendered), window)?;
            return Ok(Read { context, rendered, tokens });
        }
        rendered.add_special = false;
        let mut tokens = context.to_vec();
        if context.len() < window {
            let new = self.first(text(&rendered), window - context.len() + 1)?;
            tokens.extend_from_slice(self.without_beginning(&new));
        }
        Ok(Read { context, rendered, tokens })
    }

    /// The last tokens of a prompt that has more than so many.
    fn last(&self, read: &Read<'_>, count: usize) -> Result<Vec<TokenId>, Failure> {
        self.watch.enter(Part::Tokens)?;
        let mut new = self.reader().last(text(&read.rendered), count)?;
        if new.len() < count && !read.context.is_empty() {
            new = self.without_beginning(&new).to_vec();
        }
        let before = read.context.len().saturating_sub(count - new.len());
        Ok([&read.context[before..], &new].concat())
    }

    /// A template that prints the beginning-of-sequence token does so once too often behind an earlier exchange.
    fn without_beginning<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        tokens.strip_prefix(self.bench.facts.vocab.bos.as_slice()).unwrap_or(tokens)
    }

    /// Drops as few of the oldest messages as will do. Templates may refuse some of the shorter chats (roles that
    /// do not alternate); those count as too long. `None` where no chat works.
    fn drop_turns<'a>(&self, chat: &'a Chat, window: usize) -> Result<Option<(Read<'a>, OutputParser)>, Failure> {
        let last = chat.messages.len().saturating_sub(1);
        let droppable: Vec<usize> = (0..last).filter(|&index| chat.messages[index].role != Role::System).collect();
        let attempt = |dropped: usize| -> Result<Option<(Read<'a>, Chat)>, Failure> {
            let gone = &droppable[..dropped];
            let kept = chat.messages.iter().enumerate().filter(|(index, _)| gone.binary_search(index).is_err());
            let shorter = Chat { messages: kept.map(|(_, message)| message.clone()).collect(), ..chat.clone() };
            let rendered = match self.render(&shorter) {
                Ok(rendered) => rendered,
                // Time that is over is no word of the template on this chat.
                Err(_) => return self.watch.check().map(|()| None),
            };
            Ok(Some((self.read(&chat.context, rendered, window)?, shorter)))
        };
        let (mut too_few, mut enough) = (0, droppable.len());
        while enough > too_few + 1 {
            let middle = too_few.midpoint(enough);
            let fits = attempt(middle)?.is_some_and(|(read, _)| read.tokens.len() < window);
            if fits { enough = middle } else { too_few = middle }
        }
        let best = (enough..=droppable.len()).find_map(|dropped| attempt(dropped).transpose()).transpose()?;
        Ok(best.map(|(read, shorter)| {
            let parser = self.bench.format.parser(&shorter, &read.rendered);
            (read, parser)
        }))
    }

    fn render(&self, chat: &Chat) -> Result<RenderedPrompt, Failure> {
        self.watch.enter(Part::Template)?;
        self.bench.format.render(chat, self.asked_at)
    }

    /// The tokens of a text, control tokens among them: all of them, or `enough` and some more.
    pub(super) fn first(&self, text: Text<'_>, enough: usize) -> Result<Vec<TokenId>, Failure> {
        self.watch.enter(Part::Tokens)?;
        self.reader().first(text, enough)
    }

    fn reader(&self) -> Reader<'_> {
        let Bench { tokenizer, seams, .. } = self.bench;
        Reader { tokenizer: &**tokenizer, seams, watch: self.watch }
    }

    /// The engine can't continue nothing: an empty prompt is the beginning of a sequence.
    fn never_empty(&self, tokens: Vec<TokenId>) -> Result<Vec<TokenId>, Failure> {
        let vocab = &self.bench.facts.vocab;
        match vocab.bos.or(vocab.eos) {
            _ if !tokens.is_empty() => Ok(tokens),
            Some(beginning) => Ok(vec![beginning]),
            None => Err(Failure::new(FailureKind::InvalidRequest, "the prompt is empty")),
        }
    }
}

/// The request's window: what it asked for, within what its slot has.
pub(super) fn window(limits: &Limits, facts: &EngineFacts) -> usize {
    limits.context_tokens.max(CONTEXT_TOKENS_MIN).min(facts.context_tokens) as usize
}

fn keep(limits: &Limits, facts: &EngineFacts, prompt: usize) -> usize {
    match usize::try_from(limits.keep_tokens) {
        Ok(keep) => keep + usize::from(facts.vocab.add_bos),
        Err(_) => prompt,
    }
}

fn text(rendered: &RenderedPrompt) -> Text<'_> {
    Text { text: &rendered.text, cuts: &rendered.cuts, add_special: rendered.add_special }
}

/// Cuts tokens out of the middle where that is allowed: the first `keep` stay, and so many of the last that about half
/// of the rest of the window is free. `tokens` are all, or a window's at least; `last` brings the last of all.
fn fit(
    tokens: Vec<TokenId>,
    keep: usize,
    window: usize,
    limits: &Limits,
    last: impl FnOnce(usize) -> Result<Vec<TokenId>, Failure>,
) -> Result<Vec<TokenId>, Failure> {
    if tokens.len() < window {
        return Ok(tokens);
    }
    if !(limits.truncate && limits.shift) {
        return Err(Failure::new(FailureKind::ContextExceeded, PROMPT_TOO_LONG)
            .with_detail(format!("{} prompt tokens or more, window of {window}", tokens.len())));
    }
    let keep = keep.min(window.saturating_sub(1));
    let target = window - ((window - keep) / 2).max(1);
    Ok([&tokens[..keep], &last(target - keep)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { max_tokens: None, context_tokens: 10, truncate: true, shift: true, keep_tokens: 4 }
    }

    /// [`super::fit`] where all tokens are there.
    fn fit(tokens: Vec<TokenId>, keep: usize, window: usize, limits: &Limits) -> Result<Vec<TokenId>, Failure> {
        let all = tokens.clone();
        super::fit(tokens, keep, window, limits, |count| Ok(all[all.len() - count..].to_vec()))
    }

    #[test]
    fn the_cut_follows_ollamas_arithmetic() {
        let tokens: Vec<TokenId> = (0..30).collect();
        // 10 − (10 − 4) / 2 = 7 tokens: 4 from the start, 3 from the end.
        assert_eq!(fit(tokens.clone(), 4, 10, &limits()), Ok(vec![0, 1, 2, 3, 27, 28, 29]));
        assert_eq!(fit(tokens.clone(), 0, 10, &limits()), Ok(vec![25, 26, 27, 28, 29]));
        assert_eq!(fit(tokens.clone(), 30, 10, &limits()), Ok((0..9).collect()), "all of it: what fits");
        assert_eq!(fit(tokens[..9].to_vec(), 4, 10, &limits()), Ok((0..9).collect()), "nine fit");
        assert_eq!(fit(tokens[..10].to_vec(), 4, 10, &limits()), Ok(vec![0, 1, 2, 3, 7, 8, 9]), "ten do not");
    }

    #[test]
    fn without_leave_to_cut_a_long_prompt_is_refused() {
        for limits in [Limits { truncate: false, ..limits() }, Limits { shift: false, ..limits() }] {
            let refused = fit((0..10).collect(), 4, 10, &limits).expect_err("too long");
            assert_eq!((refused.kind, refused.public.as_str()), (FailureKind::ContextExceeded, PROMPT_TOO_LONG));
            assert!(fit((0..9).collect(), 4, 10, &limits).is_ok());
        }
    }
}
