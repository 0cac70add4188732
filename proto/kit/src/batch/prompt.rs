//! A request to its prompt tokens: render, tokenise, and shorten what is too long as Ollama does.

use ollmlx_proto::{Chat, Complete, ContentPart, Failure, FailureKind, Limits, Role, TokenId, Work};

use crate::chat::{ChatFormat, OutputParser, RenderedPrompt};
use crate::engine::{Engine, EngineFacts};

/// Ollama's words, which clients match on.
const TOO_LONG: &str = "the prompt is longer than the context length currently available to the model; shorten the \
                        prompt, adjust the context length in settings, or use a model with a longer context length";

/// A prompt, ready to be computed.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Not empty, and at least one shorter than the window.
    pub(super) tokens: Vec<TokenId>,
    /// Splits the answer.
    pub(super) parser: OutputParser,
}

/// What a request that computes text leads to.
#[derive(Debug)]
pub(super) enum Preparation {
    /// Tokens to compute.
    Prompt(Box<Prepared>),
    /// The rendered prompt is all that was asked for.
    Rendered(String),
}

/// Renders, tokenises and shortens. `window` is the request's context in tokens.
///
/// # Errors
/// The template failed, the prompt is empty or too long, or an id is outside the vocabulary.
pub(super) fn prepare<E: Engine>(
    engine: &E,
    format: &ChatFormat,
    work: &Work,
    limits: &Limits,
    window: usize,
) -> Result<Preparation, Failure> {
    let (tokens, parser) = match work {
        Work::Chat(chat) => {
            let (rendered, tokens) = fit_chat(engine, format, chat, limits, window)?;
            if chat.render_only {
                return Ok(Preparation::Rendered(rendered.text));
            }
            let parser = format.parser(chat, &rendered);
            (tokens, parser)
        }
        Work::Complete(complete) => (complete_tokens(engine, format, complete)?, OutputParser::passthrough()),
        Work::Embed(_) => {
            return Err(Failure::new(FailureKind::Internal, "an embedding request has no prompt"));
        }
    };
    let mut tokens = tokens;
    if tokens.is_empty() {
        let vocab = &engine.facts().vocab;
        let start = vocab.bos.or(vocab.eos);
        tokens.push(start.ok_or_else(|| Failure::new(FailureKind::InvalidRequest, "empty prompt"))?);
    }
    if tokens.len() >= window {
        if !limits.truncate || window < 2 {
            return Err(too_long(tokens.len(), window));
        }
        cut(&mut tokens, window, keep_tokens(limits, engine.facts(), tokens_len_hint(limits, window)));
    }
    Ok(Preparation::Prompt(Box::new(Prepared { tokens, parser })))
}

fn too_long(tokens: usize, window: usize) -> Failure {
    Failure::new(FailureKind::ContextExceeded, TOO_LONG)
        .with_detail(format!("{tokens} prompt tokens, window of {window}"))
}

/// All of the prompt where `keep_tokens` is negative.
fn tokens_len_hint(limits: &Limits, window: usize) -> usize {
    usize::try_from(limits.keep_tokens).unwrap_or(window)
}

/// How many tokens at the start survive a cut or a slide.
pub(super) fn keep_tokens(limits: &Limits, facts: &EngineFacts, prompt_tokens: usize) -> usize {
    let bos = usize::from(facts.vocab.add_bos);
    usize::try_from(limits.keep_tokens).map_or(prompt_tokens, |keep| keep.saturating_add(bos))
}

/// Ollama's cut: the first `keep` tokens, then the tail, so that about half the rest of the window stays free.
fn cut(tokens: &mut Vec<TokenId>, window: usize, keep: usize) {
    let keep = keep.min(window - 1);
    let left = window - ((window - keep) / 2).max(1);
    let tail = left.saturating_sub(keep).max(1);
    let keep = keep.min(left - tail);
    let cut_to = tokens.len() - tail;
    tokens.drain(keep..cut_to);
}

fn complete_tokens<E: Engine>(engine: &E, format: &ChatFormat, complete: &Complete) -> Result<Vec<TokenId>, Failure> {
    match &complete.suffix {
        Some(suffix) => {
            let rendered = format.render_suffix(&complete.prompt, suffix, &engine.facts().vocab)?;
            tokenize_rendered(engine, &rendered, true)
        }
        None => engine.tokenize(&complete.prompt, true, true),
    }
}

/// Pieces between the cuts are tokenised apart, so that no control token that a user typed is parsed.
fn tokenize_rendered<E: Engine>(
    engine: &E,
    rendered: &RenderedPrompt,
    at_start: bool,
) -> Result<Vec<TokenId>, Failure> {
    let mut tokens = Vec::new();
    let mut from = 0;
    for &to in rendered.cuts.iter().chain([&rendered.text.len()]) {
        let Some(piece) = rendered.text.get(from..to) else {
            return Err(Failure::new(FailureKind::Internal, "a cut is not at a character"));
        };
        if !piece.is_empty() || from == 0 {
            tokens.extend(engine.tokenize(piece, rendered.add_special && at_start && from == 0, true)?);
        }
        from = to;
    }
    Ok(tokens)
}

fn chat_tokens<E: Engine>(
    engine: &E,
    format: &ChatFormat,
    chat: &Chat,
) -> Result<(RenderedPrompt, Vec<TokenId>), Failure> {
    let rendered = match &chat.suffix {
        Some(suffix) => format.render_suffix(&last_text(chat), suffix, &engine.facts().vocab)?,
        None => format.render(chat)?,
    };
    let vocab_len = engine.facts().vocab.len();
    if let Some(&stranger) = chat.context.iter().find(|&&token| token as usize >= vocab_len) {
        let text = format!("context holds {stranger}, which is outside the model's vocabulary of {vocab_len} tokens");
        return Err(Failure::new(FailureKind::InvalidRequest, text));
    }
    let mut tokens = chat.context.clone();
    tokens.extend(tokenize_rendered(engine, &rendered, chat.context.is_empty())?);
    Ok((rendered, tokens))
}

fn last_text(chat: &Chat) -> String {
    let parts = chat.messages.last().map_or(&[][..], |message| &message.content);
    parts
        .iter()
        .map(|part| match part {
            ContentPart::Text(text) => text.as_str(),
            ContentPart::Image(_) => "",
        })
        .collect()
}

/// Drops the oldest turns until the prompt fits; system turns and the last one always survive.
fn fit_chat<E: Engine>(
    engine: &E,
    format: &ChatFormat,
    chat: &Chat,
    limits: &Limits,
    window: usize,
) -> Result<(RenderedPrompt, Vec<TokenId>), Failure> {
    let whole = chat_tokens(engine, format, chat)?;
    if whole.1.len() < window || !limits.truncate {
        return Ok(whole);
    }
    let droppable = chat.messages.iter().rev().skip(1).filter(|message| message.role != Role::System).count();
    // The prompt shrinks with every dropped turn, so the smallest number that fits is found by halving.
    let (mut fails, mut works) = (0, droppable);
    let mut best = None;
    while fails < works {
        let middle = usize::midpoint(fails, works);
        let tried = chat_tokens(engine, format, &without_oldest(chat, middle));
        match tried {
            Ok(fitting) if fitting.1.len() < window => {
                works = middle;
                best = Some(fitting);
            }
            // A template may refuse a conversation that begins with the wrong role.
            Ok(_) | Err(_) => fails = middle + 1,
        }
    }
    match best {
        Some(fitting) => Ok(fitting),
        None if droppable == 0 => Ok(whole),
        None => chat_tokens(engine, format, &without_oldest(chat, droppable)).or(Ok(whole)),
    }
}

fn without_oldest(chat: &Chat, count: usize) -> Chat {
    let last = chat.messages.len().saturating_sub(1);
    let mut left = count;
    let mut shorter = chat.clone();
    let mut index = 0;
    shorter.messages.retain(|message| {
        let drop = index < last && left > 0 && message.role != Role::System;
        index += 1;
        left -= usize::from(drop);
        !drop
    });
    shorter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_the_start_and_the_tail_and_leaves_room() {
        let mut tokens: Vec<TokenId> = (0..100).collect();
        cut(&mut tokens, 20, 4);
        assert_eq!(tokens.len(), 20 - (20 - 4) / 2);
        assert_eq!(tokens[..4], [0, 1, 2, 3]);
        assert_eq!(tokens[4..], [92, 93, 94, 95, 96, 97, 98, 99]);
    }

    #[test]
    fn a_cut_survives_any_window_and_any_keep() {
        for window in 2..40 {
            for keep in [0, 1, 5, 1_000_000, usize::MAX] {
                let mut tokens: Vec<TokenId> = (0..200).collect();
                cut(&mut tokens, window, keep);
                assert!(!tokens.is_empty() && tokens.len() < window, "window {window}, keep {keep}: {}", tokens.len());
                assert_eq!(tokens.last(), Some(&199));
            }
        }
    }
}
