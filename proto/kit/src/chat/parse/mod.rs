//! The text of an answer to content, thinking and tool calls, piece by piece.
//!
//! One parser serves all models: [`formats`] has the tables of their markers, [`tagged`] the state machine for answers
//! with markers in them, [`harmony`] the one for answers made of channels, and [`calls`], [`markup`] and [`literal`]
//! read the inside of a tool call.
//!
//! Promises, tested in `tests`: how the text is split into pieces does not change the result; text that is not
//! recognised, calls that are malformed included, comes out as content, unchanged; what is held back is bounded.

use std::collections::BTreeSet;

use ollmlx_proto::{Chat, JsonText, ThinkMode, TokenId};
use serde_json::Value;

mod calls;
mod formats;
mod harmony;
mod literal;
mod markup;
mod tagged;

#[cfg(test)]
mod tests;

pub(super) use formats::{Detected, THINK_WORDS, detect, knows_thinking};

use calls::{Call, Tools};
use harmony::Harmony;
use tagged::Tagged;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// The answer.
    Content(String),
    /// The reasoning before it.
    Thinking(String),
    /// A whole tool call.
    ToolCall {
        /// The tool.
        name: String,
        /// A JSON object.
        arguments: JsonText,
    },
}

/// The parser of one answer.
pub struct OutputParser {
    kind: Kind,
    controls: BTreeSet<TokenId>,
}

enum Kind {
    Passthrough,
    Tagged(Box<Tagged>),
    Harmony(Box<Harmony>),
}

impl OutputParser {
    /// Everything is content.
    #[must_use]
    pub fn passthrough() -> Self {
        Self { kind: Kind::Passthrough, controls: BTreeSet::new() }
    }

    /// Calls are looked for only where the chat has tools and more than one turn; thinking only where the template
    /// knows it and the client did not turn it off.
    pub(super) fn new(detected: &Detected, chat: &Chat, thinking_open: bool) -> Self {
        let with_calls = !chat.tools.is_empty() && !chat.single_turn;
        let tools = Tools::new(if with_calls { &chat.tools } else { &[] });
        if detected.harmony {
            return Self { kind: Kind::Harmony(Box::new(Harmony::new(tools))), controls: detected.controls.clone() };
        }
        let think = detected.think.filter(|_| chat.think != ThinkMode::Off || thinking_open);
        let formats = if with_calls { detected.formats.as_slice() } else { &[] };
        if think.is_none() && formats.is_empty() {
            return Self::passthrough();
        }
        let tagged = Tagged::new(think, thinking_open, formats, tools);
        Self { kind: Kind::Tagged(Box::new(tagged)), controls: detected.controls.clone() }
    }

    /// Control tokens that are markers for this parser: feed their spelling ([`crate::vocab::Vocab::spelling`]) to
    /// [`OutputParser::push`], where other control tokens add nothing.
    #[must_use]
    pub fn visible_controls(&self) -> &BTreeSet<TokenId> {
        &self.controls
    }

    /// Takes some more text, complete characters only.
    #[must_use]
    pub fn push(&mut self, text: &str) -> Vec<Parsed> {
        let mut out = Vec::new();
        match &mut self.kind {
            Kind::Passthrough => add(&mut out, Part::Content, text),
            Kind::Tagged(tagged) => tagged.push(text, &mut out),
            Kind::Harmony(harmony) => harmony.push(text, &mut out),
        }
        out
    }

    /// The answer is over: releases what was held back.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Parsed> {
        let mut out = Vec::new();
        match &mut self.kind {
            Kind::Passthrough => {}
            Kind::Tagged(tagged) => tagged.finish(&mut out),
            Kind::Harmony(harmony) => harmony.finish(&mut out),
        }
        out
    }

    /// Whether the model is thinking now, so that an output grammar must wait.
    #[must_use]
    pub fn in_thinking(&self) -> bool {
        match &self.kind {
            Kind::Passthrough => false,
            Kind::Tagged(tagged) => tagged.in_thinking(),
            Kind::Harmony(harmony) => harmony.in_thinking(),
        }
    }
}

impl From<Call> for Parsed {
    fn from(call: Call) -> Self {
        Self::ToolCall { name: call.name, arguments: JsonText(Value::Object(call.arguments).to_string()) }
    }
}

/// Where text belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Content,
    Thinking,
}

/// Appends text, joined to the last piece if that is of the same part.
fn add(out: &mut Vec<Parsed>, part: Part, text: &str) {
    if text.is_empty() {
        return;
    }
    match (out.last_mut(), part) {
        (Some(Parsed::Content(last)), Part::Content) | (Some(Parsed::Thinking(last)), Part::Thinking) => {
            last.push_str(text);
        }
        (_, Part::Content) => out.push(Parsed::Content(text.to_owned())),
        (_, Part::Thinking) => out.push(Parsed::Thinking(text.to_owned())),
    }
}

/// Where the longest end of `text` begins that could be the beginning of one of `markers`.
fn held_from<'a>(text: &str, markers: impl Iterator<Item = &'a str>) -> usize {
    let mut from = text.len();
    for marker in markers {
        let longest = marker.len().saturating_sub(1).min(text.len());
        let found = (1..=longest)
            .rev()
            .map(|length| text.len() - length)
            .find(|start| text.is_char_boundary(*start) && marker.starts_with(&text[*start..]));
        from = from.min(found.unwrap_or(from));
    }
    from
}

/// The largest character boundary that is at most `index`.
fn floor_boundary(text: &str, index: usize) -> usize {
    text.floor_char_boundary(index)
}
