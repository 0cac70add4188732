//! The state machine for answers made of channels (gpt-oss).
//!
//! An answer is a row of messages, each a header, `<|message|>` and a body that a control token ends. The prompt ended
//! with `<|start|>assistant`, so the answer begins inside a header:
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
//! ```
//!
//! A header that never becomes a message is content, unchanged.

use super::calls::{self, Tools};
use super::{Parsed, Part, add, floor_boundary, held_from};
use crate::limits;

/// All control tokens that mean something here.
pub(super) const MARKERS: [&str; 7] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];
/// Those that end a body.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"];
/// What a header may begin with.
const HEADS: [&str; 5] = ["<|start|>", "<|channel|>", "to=", "assistant", MESSAGE];
const MESSAGE: &str = "<|message|>";

/// The parser's state.
pub(super) struct Harmony {
    tools: Tools,
    state: State,
    held: String,
}

enum State {
    /// Between messages, or before the first.
    Header,
    Body(Part),
    /// The arguments of a call; the header in front of them is kept for the case that they are malformed.
    Call {
        name: String,
        body: usize,
        searched: usize,
    },
    /// The answer has no channels.
    Plain,
}

impl Harmony {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, state: State::Header, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Parsed>) {
        self.held.push_str(text);
        while self.step(out, false) {}
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Parsed>) {
        while self.step(out, true) {}
    }

    pub(super) fn in_thinking(&self) -> bool {
        matches!(self.state, State::Body(Part::Thinking))
    }

    /// Returns whether to go on.
    fn step(&mut self, out: &mut Vec<Parsed>, last: bool) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match &self.state {
            State::Header => self.step_header(last),
            State::Body(part) => {
                let part = *part;
                self.step_body(out, part, last)
            }
            State::Call { name, body, searched } => {
                let (name, body, searched) = (name.clone(), *body, *searched);
                self.step_call(out, &name, body, searched, last)
            }
            State::Plain => {
                add(out, Part::Content, &self.held);
                self.held.clear();
                false
            }
        }
    }

    fn step_header(&mut self, last: bool) -> bool {
        let head = &self.held[..floor_boundary(&self.held, limits::CALL_HEAD_BYTES_MAX)];
        let text = head.trim_start();
        // A header begins with a marker or a recipient; an answer that begins otherwise has no channels.
        let begins = HEADS.iter().any(|word| text.starts_with(word));
        let may_begin = HEADS.iter().any(|word| word.starts_with(text));
        if begins && let Some(at) = head.find(MESSAGE) {
            self.begin_message(at);
            return true;
        }
        let is_cut_off = last && (text.is_empty() || MARKERS.iter().any(|marker| text.starts_with(marker)));
        if is_cut_off && head.len() == self.held.len() {
            self.held.clear();
            return false;
        }
        let overflows = head.len() < self.held.len();
        if last || overflows || !(begins || may_begin) {
            self.state = State::Plain;
            return true;
        }
        false
    }

    /// The header ends at `at`.
    fn begin_message(&mut self, at: usize) {
        let header = &self.held[..at];
        let body = at + MESSAGE.len();
        let recipient = header.split("to=").nth(1).map(|word| word.split(['<', ' ', '\n']).next().unwrap_or(word));
        let channel = header.split("<|channel|>").nth(1).unwrap_or("final").trim_start();
        self.state = match recipient.filter(|_| !self.tools.is_empty()) {
            Some(name) => {
                let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
                State::Call { name, body, searched: body }
            }
            None if channel.starts_with("analysis") => State::Body(Part::Thinking),
            None => State::Body(Part::Content),
        };
        if matches!(self.state, State::Body(_)) {
            self.held.drain(..body);
        }
    }

    fn step_body(&mut self, out: &mut Vec<Parsed>, part: Part, last: bool) -> bool {
        match first_end(&self.held) {
            Some((at, marker)) => {
                add(out, part, &self.held[..at]);
                self.held.drain(..at + skipped(marker));
                self.state = State::Header;
                true
            }
            None => {
                let end = if last { self.held.len() } else { held_from(&self.held, ENDS.into_iter()) };
                add(out, part, &self.held[..end]);
                self.held.drain(..end);
                false
            }
        }
    }

    fn step_call(&mut self, out: &mut Vec<Parsed>, name: &str, body: usize, searched: usize, last: bool) -> bool {
        let limit = floor_boundary(&self.held, body + limits::TOOL_CALL_BYTES_MAX);
        let text = &self.held[..limit];
        let (end, after) = match first_end(&text[searched..]) {
            Some((at, marker)) => (searched + at, searched + at + skipped(marker)),
            None if self.held.len() > limit => {
                add(out, Part::Content, &self.held[..limit]);
                self.held.drain(..limit);
                self.state = State::Body(Part::Content);
                return true;
            }
            None if last => (self.held.len(), self.held.len()),
            None => {
                let searched = searched.max(floor_boundary(text, text.len().saturating_sub(16)));
                self.state = State::Call { name: name.to_owned(), body, searched };
                return false;
            }
        };
        match calls::named(name, &self.held[body..end]) {
            Some(call) => out.push(call.into()),
            None => add(out, Part::Content, &self.held[..end]),
        }
        self.held.drain(..after);
        self.state = State::Header;
        true
    }
}

/// `<|start|>` and `<|channel|>` end a body and begin the next header.
fn skipped(marker: &str) -> usize {
    if matches!(marker, "<|start|>" | "<|channel|>") { 0 } else { marker.len() }
}

fn first_end(text: &str) -> Option<(usize, &'static str)> {
    ENDS.iter().filter_map(|marker| text.find(marker).map(|at| (at, *marker))).min_by_key(|(at, _)| *at)
}
