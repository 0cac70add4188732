//! Keeps control tokens that a client typed from being parsed as such.
//!
//! A prompt is one text, of which the tokenizer parses control tokens. So every place in a client's text that spells
//! such a token gets a *cut*: the tokenizer never sees both sides of it together. To find these places again after a
//! template has moved, trimmed or quoted the text, one private-use character that occurs nowhere else is put inside
//! each of them before rendering, and taken out afterwards.
//!
//! Guarded are all control tokens, and of the user-defined ones those that look like markup and have a meaning for the
//! template or between bars (`<tool_call>`, `<|tool|>`). Plain user-defined tokens (runs of newlines, `<h1>`) stay
//! whole: they are text, and a cut would change how ordinary prompts are tokenized.
//!
//! Cost: one automaton over all spellings, so time is linear in the text.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::view::Conversation;
use crate::vocab::{TokenKind, Vocab};

/// The private-use area of the basic plane.
const MARKS: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{f8ff}';

/// Whether `character` may be a mark, so that it must not be escaped on its way through a template.
pub(super) fn may_be_mark(character: char) -> bool {
    MARKS.contains(&character)
}

/// Knows the spellings of one vocabulary.
pub(super) struct Guard {
    finder: Option<AhoCorasick>,
    /// Marks that the template itself uses.
    taken: BTreeSet<char>,
    tags: &'static [&'static str],
}

impl Guard {
    /// `template` is the source that will be rendered; `tags` are spellings that an earlier answer may contain.
    pub(super) fn new(vocab: &Vocab, template: &str, tags: &'static [&'static str]) -> Self {
        let spellings = vocab.bytes.iter().zip(&vocab.kinds).filter_map(|(bytes, kind)| {
            let text = std::str::from_utf8(bytes).ok()?;
            let guarded = match kind {
                TokenKind::Control => !text.trim().is_empty(),
                TokenKind::UserDefined => is_markup(text, template),
                TokenKind::Text | TokenKind::Unused => false,
            };
            (guarded && text.chars().nth(1).is_some()).then_some(text)
        });
        // Building fails above 2^31 states only, more than any vocabulary that loads.
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(spellings).ok();
        let taken = template.chars().filter(|c| may_be_mark(*c)).collect();
        Self { finder, taken, tags }
    }

    /// Puts a mark into every spelling of the client's texts. Returns the mark, if one was needed.
    pub(super) fn mark(&self, conversation: &mut Conversation) -> Option<char> {
        let finder = self.finder.as_ref()?;
        let mut taken = self.taken.clone();
        let mut any = false;
        conversation.visit(&mut |text, _| {
            taken.extend(text.chars().filter(|c| may_be_mark(*c)));
            any = any || finder.is_match(text.as_str());
        });
        if !any {
            return None;
        }
        let mark = MARKS.into_iter().find(|c| !taken.contains(c))?;
        conversation.visit(&mut |text, from_model| {
            let spared = if from_model { self.tags } else { &[] };
            if let Some(marked) = mark_text(finder, text, mark, spared) {
                *text = marked;
            }
        });
        Some(mark)
    }

    /// The same for a prompt and what follows the insertion point.
    pub(super) fn mark_texts(&self, texts: [&str; 2]) -> ([String; 2], Option<char>) {
        let unmarked = texts.map(str::to_owned);
        let Some(finder) = self.finder.as_ref() else { return (unmarked, None) };
        let taken: BTreeSet<char> = texts.iter().flat_map(|text| text.chars()).filter(|c| may_be_mark(*c)).collect();
        let Some(mark) = MARKS.into_iter().find(|c| !taken.contains(c)) else { return (unmarked, None) };
        (unmarked.map(|text| mark_text(finder, &text, mark, &[]).unwrap_or(text)), Some(mark))
    }
}

fn is_markup(text: &str, template: &str) -> bool {
    let bracketed = (text.starts_with('<') && text.ends_with('>')) || (text.starts_with('[') && text.ends_with(']'));
    bracketed && (text.contains(['|', '｜']) || template.contains(text))
}

/// One mark after the first character of each spelling; `None` where there is none. After a match the search goes on
/// right behind the mark, since a cut may uncover a spelling that overlapped the first.
fn mark_text(finder: &AhoCorasick, text: &str, mark: char, spared: &[&str]) -> Option<String> {
    let mut marked = String::new();
    let mut from = 0;
    let mut search = 0;
    while let Some(found) = finder.find(&text[search..]) {
        let start = search + found.start();
        let first = text[start..].chars().next().map_or(1, char::len_utf8);
        if let Some(tag) = spared.iter().find(|tag| text[start..].starts_with(**tag)) {
            search = start + tag.len();
            continue;
        }
        search = start + first;
        marked.push_str(&text[from..search]);
        marked.push(mark);
        from = search;
    }
    if marked.is_empty() {
        return None;
    }
    marked.push_str(&text[from..]);
    Some(marked)
}

/// Takes the marks out of a rendered text and returns where they were.
pub(super) fn take_marks(rendered: &str, mark: Option<char>) -> (String, Vec<usize>) {
    let Some(mark) = mark else { return (rendered.to_owned(), Vec::new()) };
    let mut text = String::with_capacity(rendered.len());
    let mut cuts = Vec::new();
    for (index, piece) in rendered.split(mark).enumerate() {
        if index > 0 && cuts.last() != Some(&text.len()) {
            cuts.push(text.len());
        }
        text.push_str(piece);
    }
    (text, cuts)
}
