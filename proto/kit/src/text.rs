//! Tokens to text: whole characters only, and never a stop string.
//!
//! Both types are incremental and give the same result however their input is split. [`Detokenizer`] holds at most
//! three bytes, [`StopMatcher`] less than the longest stop string. Neither knows of requests, channels or tool calls.

/// Turns the bytes of tokens into complete characters.
///
/// Bytes that can't become a character any more turn into U+FFFD at once; bytes that still can are held. Whoever
/// stops in the middle of a character drops the rest: a replacement character would be an invention.
#[derive(Debug, Default)]
pub struct Detokenizer {
    held: Vec<u8>,
}

impl Detokenizer {
    /// At the start of an answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `text` the characters that are complete with `bytes`.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            match std::str::from_utf8(&self.held[start..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.held.clear();
                    return;
                }
                Err(error) => {
                    let valid = start + error.valid_up_to();
                    text.push_str(std::str::from_utf8(&self.held[start..valid]).expect("valid up to here"));
                    let Some(invalid) = error.error_len() else {
                        self.held.drain(..valid);
                        return;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    start = valid + invalid;
                }
            }
        }
    }

    /// Bytes that wait for the rest of their character, at most three.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.held
    }
}

/// Finds the first stop string in a stream of text, and holds back whatever could begin one.
///
/// "First" is the one that ends first, as if the text came character by character; of several that end together, the
/// longest.
#[derive(Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Watches for `stops`; empty strings never match.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes `text` and appends to `out` what is certainly not part of a stop string. Returns the stop string that
    /// was hit; the matcher is of no use then.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<&str> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        self.held.push_str(text);
        if let Some((start, which)) = self.first_hit() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Some(&self.stops[which]);
        }
        let safe = self.held.len() - self.longest_beginning();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// The stop string that is spelled exactly like a control token, which never becomes text. Model files name theirs
    /// among the stop strings.
    #[must_use]
    pub fn control(&self, spelling: &[u8]) -> Option<&str> {
        self.stops.iter().map(String::as_str).find(|stop| stop.as_bytes() == spelling)
    }

    /// The text that was held back in vain, at the end of generation.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn first_hit(&self) -> Option<(usize, usize)> {
        let hits = self.stops.iter().enumerate().filter_map(|(which, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, which))
        });
        hits.min().map(|(_, start, which)| (start, which))
    }

    /// Bytes of the longest suffix of the held text that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let beginning = |stop: &String| {
            let longest = held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&bytes| stop.as_bytes().starts_with(&held[held.len() - bytes..]))
        };
        self.stops.iter().filter_map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detokenize(pieces: &[&[u8]]) -> (String, usize) {
        let mut detokenizer = Detokenizer::new();
        let mut text = String::new();
        for piece in pieces {
            detokenizer.push(piece, &mut text);
            assert!(detokenizer.held().len() <= 3, "at most three bytes are held");
        }
        (text, detokenizer.held().len())
    }

    /// Every way to cut `whole` into up to three pieces.
    fn for_every_split(whole: &[u8], mut check: impl FnMut(&[&[u8]])) {
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                check(&[&whole[..first], &whole[first..second], &whole[second..]]);
            }
        }
        check(&whole.chunks(1).collect::<Vec<_>>());
    }

    #[test]
    fn characters_survive_any_split() {
        let whole = "aé€🏳️‍🌈z".as_bytes();
        for_every_split(whole, |pieces| {
            assert_eq!(detokenize(pieces), ("aé€🏳️‍🌈z".to_owned(), 0), "{pieces:?}");
        });
    }

    #[test]
    fn invalid_bytes_are_replaced_as_the_standard_library_does_whatever_the_split() {
        let samples: [&[u8]; 5] =
            [b"a\xffb", b"\xe2\x82a", b"\xf0\x9f\xe2\x82\xac", b"\xc0\xaf\xed\xa0\x80x", b"\x80\x80\xf4\x90z"];
        for whole in samples {
            let expected = String::from_utf8_lossy(whole);
            for_every_split(whole, |pieces| assert_eq!(detokenize(pieces).0, expected, "{pieces:?}"));
        }
    }

    #[test]
    fn a_character_cut_at_the_end_is_held_not_replaced() {
        assert_eq!(detokenize(&[b"ok\xf0\x9f\x8f"]), ("ok".to_owned(), 3));
    }

    fn stop(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            if let Some(hit) = matcher.push(piece, &mut out) {
                return (out, Some(hit.to_owned()));
            }
        }
        out.push_str(&matcher.finish());
        (out, None)
    }

    #[test]
    fn stop_strings_are_found_across_any_split_and_never_emitted() {
        let cases: [(&[&str], &str, &str, Option<&str>); 8] = [
            (&["3,"], " 12, 13, 14", " 12, 1", Some("3,")),
            (&["aab"], "aaaab!", "aa", Some("aab")),
            (&["abc", "b"], "xabc", "xa", Some("b")),
            (&["bc", "abc"], "xabcd", "x", Some("abc")),
            (&["€€"], "a€é€€", "a€é", Some("€€")),
            (&["never", "END"], "the EN", "the EN", None),
            (&[""], "text", "text", None),
            (&[], "text", "text", None),
        ];
        for (stops, text, expected, hit) in cases {
            let boundaries: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            for &first in &boundaries {
                for &second in boundaries.iter().filter(|&&at| at >= first) {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    let expected = (expected.to_owned(), hit.map(str::to_owned));
                    assert_eq!(stop(stops, &pieces), expected, "{stops:?} in {pieces:?}");
                }
            }
        }
    }

    #[test]
    fn no_more_is_held_back_than_could_begin_a_stop_string() {
        let mut matcher = StopMatcher::new(&["</end>".to_owned()]);
        let mut out = String::new();
        assert_eq!(matcher.push("hello <", &mut out), None);
        assert_eq!(out, "hello ");
        assert_eq!(matcher.push("b", &mut out), None);
        assert_eq!(out, "hello <b");
    }
}
