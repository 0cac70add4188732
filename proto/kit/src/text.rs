//! Tokens to text: whole characters only, and never part of a stop string.
//!
//! Both pieces are incremental and total: any token sequence and any split of a text give the same output, and the
//! cost of a token does not depend on how many came before.

use std::sync::Arc;

use ollmlx_proto::TokenId;

use crate::vocab::Vocab;

/// Bytes of the longest UTF-8 character.
const CHARACTER_BYTES_MAX: usize = 4;

/// Turns tokens into complete characters. At most three bytes are held back; what can never become a character is
/// replaced by U+FFFD, what is merely unfinished at the end is dropped.
#[derive(Debug)]
pub struct Detokenizer {
    vocab: Arc<Vocab>,
    pending: Vec<u8>,
}

impl Detokenizer {
    /// At the start of an answer.
    #[must_use]
    pub fn new(vocab: Arc<Vocab>) -> Self {
        Self { vocab, pending: Vec::with_capacity(2 * CHARACTER_BYTES_MAX) }
    }

    /// The characters that `token` completes.
    pub fn push(&mut self, token: TokenId) -> String {
        self.pending.extend_from_slice(self.vocab.text_bytes(token));
        take_characters(&mut self.pending)
    }
}

/// Moves the whole characters out of `pending` and leaves an unfinished one in it.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest: &[u8] = pending;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("the decoder just called it valid"));
                let Some(invalid) = error.error_len() else {
                    rest = after;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[invalid..];
            }
        }
    }
    let consumed = pending.len() - rest.len();
    pending.drain(..consumed);
    text
}

/// Finds stop strings in a text that comes in pieces, and holds back what could be the beginning of one.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is certain not to be part of a stop string.
    pub text: String,
    /// The stop string that was found; nothing follows.
    pub stopped: Option<String>,
}

impl StopMatcher {
    /// Watches for `stops`; empty ones are ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes a piece. The earliest stop string wins; of two that begin together, the one that ends first.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.stops.is_empty() {
            return StopStep { text: piece.to_owned(), stopped: None };
        }
        self.held.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop.len(), stop)))
            .min_by_key(|&(at, length, _)| (at, length));
        if let Some((at, _, stop)) = found {
            // A longer stop string that began earlier may still be on its way; the certain one is taken.
            let stopped = Some(stop.clone());
            self.held.truncate(at);
            return StopStep { text: std::mem::take(&mut self.held), stopped };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        StopStep { text: std::mem::replace(&mut self.held, held), stopped: None }
    }

    /// The end of the text: what was held back belongs to it after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` that `text` ends with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.as_bytes().ends_with(&stop.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::TokenKind;

    fn bytes_vocab() -> Arc<Vocab> {
        let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain([b"<end>".to_vec()]).collect();
        let mut kinds = vec![TokenKind::Text; 256];
        kinds.push(TokenKind::Control);
        Arc::new(Vocab { bytes, kinds, ..Vocab::default() })
    }

    fn detokenize(bytes: &[u8]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(bytes_vocab());
        bytes.iter().map(|&byte| detokenizer.push(u32::from(byte))).collect()
    }

    #[test]
    fn characters_come_whole() {
        assert_eq!(detokenize("é".as_bytes()), ["", "é"]);
        assert_eq!(detokenize("🏳️‍🌈".as_bytes()).concat(), "🏳️‍🌈");
        for piece in detokenize("a🏳️‍🌈b".as_bytes()) {
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
        }
    }

    #[test]
    fn what_can_never_be_a_character_is_replaced_at_once() {
        assert_eq!(detokenize(&[0xff, b'a']), ["\u{fffd}", "a"]);
        assert_eq!(detokenize(&[0xe2, 0x28]).concat(), "\u{fffd}(");
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_not_text() {
        assert_eq!(detokenize(&[b'a', 0xf0, 0x9f, 0x8f]).concat(), "a");
    }

    #[test]
    fn control_tokens_and_strangers_are_not_text() {
        let mut detokenizer = Detokenizer::new(bytes_vocab());
        assert_eq!(detokenizer.push(256), "");
        assert_eq!(detokenizer.push(4_000_000), "");
    }

    /// Feeds `text` in pieces of every size and expects the same each time.
    fn check_stops(text: &str, stops: &[&str], expect: &str, stopped: Option<&str>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        for size in 1..=text.chars().count().max(1) {
            let mut matcher = StopMatcher::new(&stops);
            let (mut seen, mut hit) = (String::new(), None);
            let characters: Vec<char> = text.chars().collect();
            for piece in characters.chunks(size) {
                let step = matcher.push(&piece.iter().collect::<String>());
                seen.push_str(&step.text);
                hit = step.stopped;
                if hit.is_some() {
                    break;
                }
            }
            if hit.is_none() {
                seen.push_str(&matcher.finish());
            }
            assert_eq!((seen.as_str(), hit.as_deref()), (expect, stopped), "{text:?} in pieces of {size}");
        }
    }

    #[test]
    fn a_stop_string_is_found_in_any_split_and_never_shown() {
        check_stops("10, 11, 12, 13, 14", &["3,"], "10, 11, 12, 1", Some("3,"));
        check_stops("aaab", &["aab"], "a", Some("aab"));
        check_stops("hello", &["xyz"], "hello", None);
        check_stops("almost <|en", &["<|end|>"], "almost <|en", None);
        check_stops("größer", &["ßer"], "grö", Some("ßer"));
        check_stops("anything", &["", "\n"], "anything", None);
        check_stops("", &["x"], "", None);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        check_stops("one two three", &["three", "two"], "one ", Some("two"));
    }
}
