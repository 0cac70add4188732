//! Long texts to tokens: in slices, and no more of them than are wanted.
//!
//! What a tokenizer takes at once can't be stopped on its way, and some need time or stack by its square. So it gets a
//! long text in slices, with a look at the watch before each, and none behind the last token that a window has use for.
//!
//! A slice ends at a *seam*: before a space behind a word, or behind the single line end between two words, where no token
//! of the vocabulary reaches across. Tokenizers split, merge and match within words, so both sides have the tokens
//! that they have together. [`Seams::new`] tries that out on the tokenizer itself, and uses what holds. Some tokenizers put
//! a space before whatever they are given; those get all slices but the first behind a line end, whose tokens are
//! taken away again.
//!
//! A text without a seam is parted all the same, after [`RUN_BYTES_MAX`] bytes, or after [`FLAT_RUN_BYTES_MAX`] of nothing but
//! white space or digits, for which the patterns of some vocabularies need time by the square. There, and nowhere else,
//! the tokens may be others than those of the whole, of which they are the same text. Sooner still where a token has more
//! than [`LONG_TOKEN_BYTES`]: some tokenizers try every beginning of the longest at every letter. No published one has such.

use std::ops::Range;

use ollmlx_proto::{Failure, TokenId};

use super::prepare::Watch;
use crate::engine::Tokenizer;
use crate::limits::{
    CONTROL_BYTES_MAX, FLAT_RUN_BYTES_MAX, LONG_TOKEN_BYTES, LONG_TOKEN_RUN_BYTES_MAX, RUN_BYTES_MAX, SLICE_BYTES,
};
use crate::vocab::{TokenKind, Vocab};

/// What a tokenizer may put before a slice.
const LEADS: [&str; 2] = ["", "\n"];
/// What may be on both sides of a seam.
const WORDS: [(&str, &str); 6] = [("the", "end"), ("a", "1"), ("7", "é"), ("漢", "字"), ("x", "-"), ("is)", "Not")];

/// A text, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
    /// See [`crate::chat::RenderedPrompt::cuts`].
    pub(super) cuts: &'a [usize],
    /// Whether the markers that the vocabulary puts around a text are added.
    pub(super) add_special: bool,
}

impl Text<'_> {
    /// Between the cuts; one that is empty where all is.
    fn pieces(&self) -> impl DoubleEndedIterator<Item = Range<usize>> {
        let (len, cuts) = (self.text.len(), self.cuts);
        let bound = move |index: usize| cuts.get(index).copied().unwrap_or(len);
        let piece = move |index: usize| if index == 0 { 0..bound(0) } else { bound(index - 1)..bound(index) };
        (0..=cuts.len()).map(piece).filter(move |piece| !piece.is_empty() || len == 0)
    }
}

/// Where the texts of one model may be parted.
#[derive(Debug)]
pub(super) struct Seams {
    before_space: bool,
    after_line: bool,
    run_bytes_max: usize,
    /// By byte: a control token ends with it, or goes on with a space after it.
    ends_control: [bool; 256],
    /// By byte: a control token begins with it, or goes on with it after a line end.
    begins_control: [bool; 256],
    /// One of [`LEADS`], and its tokens.
    lead: &'static str,
    lead_tokens: Vec<TokenId>,
    /// What the vocabulary puts around a text.
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

impl Seams {
    /// Looks at the vocabulary, and tries the tokenizer.
    pub(super) fn new(tokenizer: &dyn Tokenizer, vocab: &Vocab) -> Self {
        let (before, after) = frame(tokenizer);
        let mut seams = Self {
            before_space: false,
            after_line: false,
            run_bytes_max: RUN_BYTES_MAX,
            ends_control: [false; 256],
            begins_control: [false; 256],
            lead: "",
            lead_tokens: Vec::new(),
            before,
            after,
        };
        if vocab.bytes.iter().any(|bytes| bytes.len() > LONG_TOKEN_BYTES) {
            seams.run_bytes_max = LONG_TOKEN_RUN_BYTES_MAX;
        }
        let (mut before_space, mut after_line) = (true, true);
        for (bytes, kind) in vocab.bytes.iter().zip(&vocab.kinds) {
            let crossing = bytes.windows(2).map(|pair| (pair[0], pair[1]));
            match kind {
                TokenKind::Text | TokenKind::Unused => {
                    for (one, next) in crossing {
                        before_space &= next != b' ' || one.is_ascii_whitespace();
                        after_line &= one != b'\n' || next.is_ascii_whitespace();
                    }
                }
                TokenKind::Control | TokenKind::UserDefined => {
                    for (one, next) in crossing {
                        seams.ends_control[usize::from(one)] |= next == b' ';
                        seams.begins_control[usize::from(next)] |= one == b'\n';
                    }
                    bytes.first().into_iter().for_each(|byte| seams.begins_control[usize::from(*byte)] = true);
                    bytes.last().into_iter().for_each(|byte| seams.ends_control[usize::from(*byte)] = true);
                }
            }
        }
        for lead in LEADS {
            let Ok(lead_tokens) = tokenizer.tokenize(lead, false, true) else { continue };
            (seams.lead, seams.lead_tokens) = (lead, lead_tokens);
            let (space, line) = (seams.hold(tokenizer, &["", " ", "  "], " "), seams.hold(tokenizer, &["\n"], ""));
            if space || line {
                (seams.before_space, seams.after_line) = (before_space && space, after_line && line);
                return seams;
            }
        }
        (seams.lead, seams.lead_tokens) = ("", Vec::new());
        seams
    }

    /// Whether words with these between them have the same tokens when they are parted before `right`.
    fn hold(&self, tokenizer: &dyn Tokenizer, between: &[&str], right: &str) -> bool {
        let tokens = |text: &str| tokenizer.tokenize(text, false, true).ok();
        WORDS.iter().all(|(one, other)| {
            between.iter().all(|between| {
                let (left, right) = match right {
                    "" => (format!("{one}{between}"), (*other).to_owned()),
                    _ => ((*one).to_owned(), format!("{between}{right}{other}")),
                };
                let parted = tokens(&left).zip(self.joined(tokenizer, &right).ok()).map(|(a, b)| [a, b].concat());
                parted.is_some() && parted == tokens(&format!("{left}{right}"))
            })
        })
    }

    /// The tokens that a text has behind another.
    fn joined(&self, tokenizer: &dyn Tokenizer, text: &str) -> Result<Vec<TokenId>, Failure> {
        if self.lead.is_empty() {
            return tokenizer.tokenize(text, false, true);
        }
        let mut tokens = tokenizer.tokenize(&[self.lead, text].concat(), false, true)?;
        if tokens.starts_with(&self.lead_tokens) {
            tokens.drain(..self.lead_tokens.len());
        }
        Ok(tokens)
    }

    /// The marker that ends a text with markers, if there is one.
    pub(super) fn last_marker(&self) -> Option<TokenId> {
        self.after.last().copied()
    }

    /// The slices of a part of a text, in their order.
    fn slices(&self, text: &str, part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut start = part.start;
        std::iter::from_fn(move || {
            let slice = start..self.slice_end(&text[..part.end], start);
            start = slice.end;
            (!slice.is_empty()).then_some(slice)
        })
    }

    /// Where the slice that begins at `start` ends; behind it unless the text does.
    fn slice_end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        let slice_bytes = SLICE_BYTES.min(self.run_bytes_max / 2);
        let mut flat = 1;
        for at in start + 1..bytes.len() {
            let kind = flat_kind(bytes[at]);
            flat = if kind.is_some() && kind == flat_kind(bytes[at - 1]) { flat + 1 } else { 1 };
            if flat > FLAT_RUN_BYTES_MAX {
                return at;
            }
            if at - start >= slice_bytes && self.is_seam(text, at) {
                return at;
            }
            if at - start >= self.run_bytes_max {
                return self.forced(text, start, at);
            }
        }
        bytes.len()
    }

    fn is_seam(&self, text: &str, at: usize) -> bool {
        let bytes = text.as_bytes();
        let is_word = |character: Option<char>| character.is_some_and(|it| !it.is_whitespace());
        match (bytes[at - 1], bytes[at]) {
            (before, b' ') => {
                self.before_space && !self.ends_control[usize::from(before)] && is_word(text[..at].chars().next_back())
            }
            (b'\n', next) => {
                self.after_line
                    && !self.begins_control[usize::from(next)]
                    && is_word(text[at..].chars().next())
                    && is_word(text[..at - 1].chars().next_back())
            }
            _ => false,
        }
    }

    /// Without a seam, but in no character, and before what might be the spelling of a control token.
    fn forced(&self, text: &str, start: usize, at: usize) -> usize {
        let bytes = text.as_bytes();
        let nearest = start.max(at.saturating_sub(CONTROL_BYTES_MAX)) + 1;
        let control = (nearest..=at).rev().find(|&place| self.begins_control[usize::from(bytes[place])]);
        text.floor_char_boundary(control.unwrap_or(at))
    }
}

/// Runs of these may need time by the square.
fn flat_kind(byte: u8) -> Option<bool> {
    match byte {
        b'0'..=b'9' => Some(true),
        byte if byte.is_ascii_whitespace() => Some(false),
        _ => None,
    }
}

/// What the vocabulary puts before and behind a text.
fn frame(tokenizer: &dyn Tokenizer) -> (Vec<TokenId>, Vec<TokenId>) {
    let tokens = |add| tokenizer.tokenize("a", add, true).unwrap_or_default();
    let (bare, framed) = (tokens(false), tokens(true));
    match framed.windows(bare.len().max(1)).position(|part| part == bare) {
        Some(place) => (framed[..place].to_vec(), framed[place + bare.len()..].to_vec()),
        None => (Vec::new(), Vec::new()),
    }
}

/// Reads texts with one model's tokenizer.
pub(super) struct Reader<'a> {
    pub(super) tokenizer: &'a dyn Tokenizer,
    pub(super) seams: &'a Seams,
    pub(super) watch: &'a Watch,
}

impl Reader<'_> {
    /// The tokens of a text from its beginning: all of them, or `enough` and some more.
    ///
    /// # Errors
    /// The tokenizer refused the text, or the watch ended it.
    pub(super) fn first(&self, text: Text<'_>, enough: usize) -> Result<Vec<TokenId>, Failure> {
        let Text { text: whole, cuts, add_special } = text;
        if cuts.is_empty() && self.seams.slice_end(whole, 0) == whole.len() {
            self.watch.slice(whole.len())?;
            return self.tokenizer.tokenize(whole, add_special, true);
        }
        let (before, after) = self.frame(add_special);
        let mut tokens = before.to_vec();
        for piece in text.pieces() {
            for slice in self.seams.slices(whole, piece.clone()) {
                if tokens.len() >= enough {
                    return Ok(tokens);
                }
                tokens.append(&mut self.slice(whole, &piece, slice)?);
            }
        }
        tokens.extend_from_slice(after);
        Ok(tokens)
    }

    /// The last `count` tokens of a text that has so many.
    ///
    /// # Errors
    /// As [`Reader::first`].
    pub(super) fn last(&self, text: Text<'_>, count: usize) -> Result<Vec<TokenId>, Failure> {
        let (before, after) = self.frame(text.add_special);
        let mut parts = vec![after.to_vec()];
        let mut found = after.len();
        'pieces: for piece in text.pieces().rev() {
            let slices: Vec<_> = self.seams.slices(text.text, piece.clone()).collect();
            for slice in slices.into_iter().rev() {
                if found >= count {
                    break 'pieces;
                }
                let tokens = self.slice(text.text, &piece, slice)?;
                found += tokens.len();
                parts.push(tokens);
            }
        }
        parts.push(before.to_vec());
        parts.reverse();
        let tokens = parts.concat();
        Ok(tokens[tokens.len().saturating_sub(count)..].to_vec())
    }

    fn frame(&self, add_special: bool) -> (&[TokenId], &[TokenId]) {
        if add_special { (&self.seams.before, &self.seams.after) } else { (&[], &[]) }
    }

    fn slice(&self, text: &str, piece: &Range<usize>, slice: Range<usize>) -> Result<Vec<TokenId>, Failure> {
        self.watch.slice(slice.len())?;
        match slice.start == piece.start {
            true => self.tokenizer.tokenize(&text[slice], false, true),
            false => self.seams.joined(self.tokenizer, &text[slice]),
        }
    }
}
