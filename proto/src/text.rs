//! Other people's words, made fit to be told: a model's name, an answer, the last words of a process.
//!
//! On a terminal some characters act. An escape sequence may answer for the person who sits there, a carriage return hides
//! what stands before it, and a bidirectional override shows a text in another order than it has. [`printable`] and
//! [`printable_line`] write them out as JSON does (`\u001b`), so that a JSON text stays what it was.
//!
//! Joiners are left, though they have no width: they are part of scripts and of emoji, and act on nothing.

use std::borrow::Cow;

/// The text with everything written out that acts on a terminal, except ends of lines and tabs.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    // Ends of lines as other systems write them.
    let is_kept = |at: usize, letter: char| match letter {
        '\n' | '\t' => true,
        '\r' => text[at + 1..].starts_with('\n'),
        _ => false,
    };
    write_out(text, is_kept)
}

/// The same for a text that is to stay on its line: nothing is excepted.
#[must_use]
pub fn printable_line(text: &str) -> Cow<'_, str> {
    write_out(text, |_, _| false)
}

fn write_out(text: &str, is_kept: impl Fn(usize, char) -> bool) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for (at, letter) in text.char_indices() {
        if acts(letter) && !is_kept(at, letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(letter);
        }
    }
    Cow::Owned(out)
}

/// Control characters of both sets, separators of lines and paragraphs, what sets the direction of a text, and letters that
/// nobody sees but whoever copies them.
fn acts(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(letter, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with each absolute path cut to its last part: `/build/ggml/src/ggml.c:12: failed` becomes `ggml.c:12: failed`.
/// A crash names the source files of whoever built a library, and a log names where models lie; neither is a client's
/// business.
#[must_use]
pub fn without_folders(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        told.push_str(before);
        let begins = told.chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !"._-~%".contains(c));
        let quote = told.chars().next_back().filter(|c| matches!(c, '"' | '\'' | '`'));
        // In quotes a path may have spaces.
        let ends = |c: char| quote.map_or_else(|| c.is_whitespace() || "\"'`),;]>".contains(c), |quote| c == quote);
        let end = path.find(ends).unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        match path.trim_end_matches('/').rsplit_once('/') {
            Some((folder, file)) if begins && !folder.is_empty() && !names_host(path) => told.push_str(file),
            _ => told.push_str(path),
        }
        rest = after;
    }
    told.push_str(rest);
    told
}

/// Two slashes and a host, as in an address; a third one is a path again.
fn names_host(path: &str) -> bool {
    path.starts_with("//") && !path.starts_with("///")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_out() {
        for (text, expected) in [
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u001b[2J\\u001b]0;x\\u0007"),
            ("a\0\u{8}\u{7f}\u{9b}31m", "a\\u0000\\u0008\\u007f\\u009b31m"),
            ("\u{202e}gpj.exe\u{202c}\u{2066}x\u{2069}\u{2028}", "\\u202egpj.exe\\u202c\\u2066x\\u2069\\u2028"),
            ("\u{61c}a\u{200e}b\u{200f}\u{fff9}\u{e0041}", "\\u061ca\\u200eb\\u200f\\ufff9\\udb40\\udc41"),
            ("one\ntwo\tthree\r\nfour", "one\ntwo\tthree\r\nfour"),
            ("hidden\rshown\r", "hidden\\u000dshown\\u000d"),
            ("né 日本 👩\u{200d}👩 می\u{200c}شود", "né 日本 👩\u{200d}👩 می\u{200c}شود"),
        ] {
            assert_eq!(printable(text), expected);
        }
        assert_eq!(printable_line("a\n\tb\r\n"), "a\\u000a\\u0009b\\u000d\\u000a");
        assert!(matches!(printable("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn absolute_paths_keep_their_last_part_and_the_rest_stays() {
        for (text, expected) in [
            ("/root/x/llama.cpp/src/llama-model.cpp:1: GGML_ASSERT(a)", "llama-model.cpp:1: GGML_ASSERT(a)"),
            ("failed to open '/home/me/models/x.gguf': no such file", "failed to open 'x.gguf': no such file"),
            ("panicked at /build/a b/c.rs:1:2:\nwords", "panicked at a b/c.rs:1:2:\nwords"),
            ("12 tokens/s, and/or /x", "12 tokens/s, and/or /x"),
            ("see https://example.org/a/b", "see https://example.org/a/b"),
            ("file:///home/me/x.gguf {/home/me/x} |/home/me/x >/home/me/x", "file:x.gguf {x} |x >x"),
            ("/a/b/", "b"),
            ("", ""),
        ] {
            assert_eq!(without_folders(text), expected);
        }
    }
}
