//! The state machine for answers with markers in them.
//!
//! ```text
//!            open tag (only at the beginning)          close tag
//! Content ───────────────────────────────▶ Thinking ────────────▶ Content
//! Content ──begin of a call──▶ Call ──end, well-formed──▶ Content
//!                              Call ──malformed or too long──▶ Content (text unchanged)
//! ```
//!
//! White space is dropped at the borders: after an open tag, around a close tag and around calls. So trailing space is
//! held back where a marker could follow. Every decision depends on the text alone, not on how it was split: each
//! limit is a position in the text.

use super::calls::{JsonScan, Tools};
use super::formats::{Begin, CallFormat, End, ThinkTags};
use super::{Parsed, Part, add, floor_boundary, held_from};
use crate::limits;

/// The parser's state.
pub(super) struct Tagged {
    think: Option<&'static ThinkTags>,
    formats: Vec<&'static CallFormat>,
    tools: Tools,
    state: State,
    /// Text not yet decided on.
    held: String,
    /// Nothing but white space so far: thinking and bare calls may begin.
    fresh: bool,
    /// A bare call came, another may follow.
    after_bare: bool,
    /// White space is dropped until something else comes.
    skip_space: bool,
    /// In a run of white space too long to be held.
    long_space: bool,
    trailer: &'static str,
}

enum State {
    Content,
    Thinking,
    Call(Capture),
}

/// A call in the making; its text is in `held`, with the space before it.
struct Capture {
    format: &'static CallFormat,
    /// Where in `held` the inside begins.
    body: usize,
    /// Everything before is searched.
    searched: usize,
    tries: u32,
    scan: Option<JsonScan>,
}

/// What one step did.
enum Step {
    /// Something; go on.
    Went,
    /// More text is needed.
    Waits,
}

impl Tagged {
    pub(super) fn new(
        think: Option<&'static ThinkTags>,
        thinking_open: bool,
        formats: &[&'static CallFormat],
        tools: Tools,
    ) -> Self {
        let state = if think.is_some() && thinking_open { State::Thinking } else { State::Content };
        Self {
            think,
            formats: formats.to_vec(),
            tools,
            skip_space: matches!(state, State::Thinking),
            state,
            held: String::new(),
            fresh: true,
            after_bare: false,
            long_space: false,
            trailer: "",
        }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Parsed>) {
        self.held.push_str(text);
        while let Step::Went = self.step(out, false) {}
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Parsed>) {
        while let Step::Went = self.step(out, true) {}
    }

    pub(super) fn in_thinking(&self) -> bool {
        matches!(self.state, State::Thinking)
    }

    fn step(&mut self, out: &mut Vec<Parsed>, last: bool) -> Step {
        if self.held.is_empty() {
            return Step::Waits;
        }
        match &self.state {
            State::Content => self.step_content(out, last),
            State::Thinking => self.step_thinking(out, last),
            State::Call(_) => self.step_call(out, last),
        }
    }

    fn step_content(&mut self, out: &mut Vec<Parsed>, last: bool) -> Step {
        if let Some(step) = self.step_border(last) {
            return step;
        }
        if self.fresh || self.after_bare {
            match self.step_fresh(last) {
                Fresh::Call(format, start) => return self.begin(format, start, start),
                Fresh::Thinking(end) => {
                    self.held.drain(..end);
                    (self.fresh, self.skip_space, self.state) = (false, true, State::Thinking);
                    return Step::Went;
                }
                Fresh::Unknown => return Step::Waits,
                Fresh::Neither => (self.fresh, self.after_bare) = (false, false),
            }
        }
        let first = self
            .formats
            .iter()
            .filter_map(|format| match format.begin {
                Begin::Marker(marker) => self.held.find(marker).map(|at| (at, marker, *format)),
                Begin::BareObject | Begin::BareCalls => None,
            })
            .min_by_key(|(at, ..)| *at);
        if let Some((at, marker, format)) = first {
            let start = self.release(out, Part::Content, at, true);
            return self.begin(format, start, start + marker.len());
        }
        let markers = self.formats.iter().filter_map(|format| match format.begin {
            Begin::Marker(marker) => Some(marker),
            Begin::BareObject | Begin::BareCalls => None,
        });
        let end = if last { self.held.len() } else { held_from(&self.held, markers.clone()) };
        let holds_space = !last && markers.count() > 0;
        self.release(out, Part::Content, end, holds_space);
        Step::Waits
    }

    fn step_thinking(&mut self, out: &mut Vec<Parsed>, last: bool) -> Step {
        if let Some(step) = self.step_border(last) {
            return step;
        }
        let Some(tags) = self.think else {
            self.state = State::Content;
            return Step::Went;
        };
        if let Some(at) = self.held.find(tags.close) {
            let start = self.release(out, Part::Thinking, at, true);
            self.held.drain(..start + tags.close.len());
            (self.fresh, self.long_space) = (true, false);
            // Bare calls may begin here, thinking not again.
            (self.think, self.skip_space, self.state) = (None, true, State::Content);
            return Step::Went;
        }
        let end = if last { self.held.len() } else { held_from(&self.held, std::iter::once(tags.close)) };
        self.release(out, Part::Thinking, end, !last);
        Step::Waits
    }

    /// Drops space, and the trailer of a call, where they are to be dropped. `None`: nothing is left to drop.
    fn step_border(&mut self, last: bool) -> Option<Step> {
        if !self.skip_space {
            return None;
        }
        let kept = self.held.trim_start();
        self.held.drain(..self.held.len() - kept.len());
        if self.held.is_empty() {
            return Some(Step::Waits);
        }
        if !self.trailer.is_empty() {
            if self.held.starts_with(self.trailer) {
                self.held.drain(..self.trailer.len());
                self.trailer = "";
                return Some(Step::Went);
            }
            if self.trailer.starts_with(self.held.as_str()) && !last {
                return Some(Step::Waits);
            }
            self.trailer = "";
        }
        self.skip_space = false;
        None
    }

    /// What begins at the beginning of the answer.
    fn step_fresh(&self, last: bool) -> Fresh {
        let mut text = self.held.trim_start();
        if self.held.len() - text.len() > limits::HELD_SPACE_BYTES_MAX {
            return Fresh::Neither;
        }
        if self.after_bare {
            text = text.trim_start_matches([';', ',']).trim_start();
        }
        let start = self.held.len() - text.len();
        let unknown = if last { Fresh::Neither } else { Fresh::Unknown };
        if text.is_empty() {
            return unknown;
        }
        if let Some(tags) = self.think.filter(|_| !self.after_bare) {
            if text.starts_with(tags.open) {
                return Fresh::Thinking(start + tags.open.len());
            }
            if tags.open.starts_with(text) {
                return unknown;
            }
        }
        for format in &self.formats {
            match format.begin {
                Begin::BareObject if text.starts_with('{') => return Fresh::Call(format, start),
                Begin::BareCalls => match begins_calls(text) {
                    Some(true) => return Fresh::Call(format, start),
                    None => return unknown,
                    Some(false) => {}
                },
                Begin::BareObject | Begin::Marker(_) => {}
            }
        }
        Fresh::Neither
    }

    fn begin(&mut self, format: &'static CallFormat, start: usize, body: usize) -> Step {
        // A bare call's first character is part of it.
        debug_assert!(start <= body);
        self.state = State::Call(Capture { format, body, searched: body, tries: 0, scan: None });
        Step::Went
    }

    fn step_call(&mut self, out: &mut Vec<Parsed>, last: bool) -> Step {
        let State::Call(mut capture) = std::mem::replace(&mut self.state, State::Content) else {
            return Step::Waits;
        };
        let limit = floor_boundary(&self.held, capture.body + limits::TOOL_CALL_BYTES_MAX);
        match capture.find_end(&self.held[..limit]) {
            Found::End { body, after } => match (capture.format.read)(&self.held[capture.body..body], &self.tools) {
                Some(calls) => {
                    emit(out, calls);
                    self.held.drain(..after);
                    self.after_call(&capture);
                }
                None if capture.goes_on(&self.held[capture.body..body], after) => self.state = State::Call(capture),
                None => self.give_up(out, after),
            },
            Found::No(at) => self.give_up(out, at),
            Found::Unknown if self.held.len() > limit => self.give_up(out, limit),
            Found::Unknown if last => match (capture.format.read)(&self.held[capture.body..], &self.tools) {
                Some(calls) => {
                    emit(out, calls);
                    self.held.clear();
                    self.after_call(&capture);
                }
                None => self.give_up(out, self.held.len()),
            },
            Found::Unknown => {
                self.state = State::Call(capture);
                return Step::Waits;
            }
        }
        Step::Went
    }

    fn after_call(&mut self, capture: &Capture) {
        self.fresh = false;
        self.skip_space = true;
        self.trailer = capture.format.trailer;
        self.after_bare = capture.format.begin == Begin::BareObject;
    }

    /// Text up to `end` is content after all.
    fn give_up(&mut self, out: &mut Vec<Parsed>, end: usize) {
        add(out, Part::Content, &self.held[..end]);
        self.held.drain(..end);
        (self.fresh, self.after_bare, self.long_space) = (false, false, false);
    }

    /// Emits the text before `end`, less the space at its end if `holds_space`, and forgets it. Returns where `end`
    /// is now.
    fn release(&mut self, out: &mut Vec<Parsed>, part: Part, end: usize, holds_space: bool) -> usize {
        let text = &self.held[..end];
        let lead = if self.long_space { text.len() - text.trim_start().len() } else { 0 };
        let solid = text.trim_end().len().max(lead);
        let emitted = if !holds_space || end - solid > limits::HELD_SPACE_BYTES_MAX { end } else { solid };
        if emitted > 0 {
            // Still in the run if all of it was space, or if it was just given up.
            self.long_space = (self.long_space && lead == emitted) || (emitted == end && solid < end && holds_space);
            add(out, part, &text[..emitted]);
            self.held.drain(..emitted);
        }
        end - emitted
    }
}

/// What [`Tagged::step_fresh`] saw.
enum Fresh {
    Call(&'static CallFormat, usize),
    Thinking(usize),
    Unknown,
    Neither,
}

/// What [`Capture::find_end`] saw.
enum Found {
    End {
        body: usize,
        after: usize,
    },
    /// It is no call; text up to here is content.
    No(usize),
    Unknown,
}

impl Capture {
    fn find_end(&mut self, text: &str) -> Found {
        match self.format.end {
            End::Answer => Found::Unknown,
            End::Marker(marker) => match text[self.searched..].find(marker) {
                Some(at) => Found::End { body: self.searched + at, after: self.searched + at + marker.len() },
                None => {
                    // A marker may still begin in the last bytes.
                    let overlap = text.len().saturating_sub(marker.len());
                    self.searched = self.searched.max(floor_boundary(text, overlap));
                    Found::Unknown
                }
            },
            End::Balanced => self.find_balance(text),
        }
    }

    fn find_balance(&mut self, text: &str) -> Found {
        if self.scan.is_none() {
            let body = &text[self.body..];
            let head = &body[..floor_boundary(body, limits::CALL_HEAD_BYTES_MAX)];
            let trimmed = head.trim_start();
            let value =
                if trimmed.starts_with('[') && !trimmed.starts_with("[CALL_ID]") && !trimmed.starts_with("[ARGS]") {
                    Some(head.len() - trimmed.len())
                } else {
                    head.find('{')
                };
            match value {
                Some(at) => (self.scan, self.searched) = (Some(JsonScan::default()), self.body + at),
                None if head.len() < body.len() => return Found::No(self.body + head.len()),
                None => return Found::Unknown,
            }
        }
        let Some(scan) = self.scan.as_mut() else { return Found::Unknown };
        match scan.push(&text.as_bytes()[self.searched..]) {
            Some(length) => {
                let end = self.searched + length;
                Found::End { body: end, after: end }
            }
            None => {
                self.searched = text.len();
                Found::Unknown
            }
        }
    }

    /// Whether an end marker was inside a JSON string, so that the real one is still to come.
    fn goes_on(&mut self, body: &str, after: usize) -> bool {
        self.searched = after;
        self.tries += 1;
        self.format.json
            && matches!(self.format.end, End::Marker(_))
            && self.tries < limits::END_TRIES_MAX
            && JsonScan::ends_in_string(body)
    }
}

fn emit(out: &mut Vec<Parsed>, calls: Vec<super::calls::Call>) {
    out.extend(calls.into_iter().map(Parsed::from));
}

/// Whether `text` begins a Python list of calls, `[name(`; `None` if it is too short to tell.
fn begins_calls(text: &str) -> Option<bool> {
    let Some(rest) = text.strip_prefix('[') else { return Some(false) };
    let rest = rest.trim_start();
    let name = rest.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'));
    match name.chars().next() {
        _ if rest.len() - name.len() > 128 => Some(false),
        None => None,
        Some('(') => Some(rest.len() > name.len()),
        Some(_) => Some(false),
    }
}
