//! Word wrap of a streamed text for a terminal. Pure.
//!
//! A word is held back until it ends, and then put where it fits; so nothing is ever taken back with escape sequences
//! (Ollama prints a word's characters at once and erases them when the line is full).

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Below this many columns wrapping does more harm than good.
const COLUMNS_MIN: usize = 10;

/// A text on its way to the screen.
#[derive(Debug)]
pub struct Wrapper {
    columns_max: Option<usize>,
    column: usize,
    word: String,
}

impl Wrapper {
    /// Wraps at this many columns; `None` or fewer than 10 never wraps.
    #[must_use]
    pub fn new(columns_max: Option<usize>) -> Self {
        Self { columns_max: columns_max.filter(|columns| *columns >= COLUMNS_MIN), column: 0, word: String::new() }
    }

    /// What may be printed now that this text has arrived.
    #[must_use]
    pub fn push(&mut self, text: &str) -> String {
        let Some(columns_max) = self.columns_max else { return text.to_owned() };
        let mut out = String::new();
        for character in text.chars() {
            match character {
                '\n' => {
                    self.place_word(&mut out, columns_max);
                    out.push('\n');
                    self.column = 0;
                }
                ' ' => {
                    self.place_word(&mut out, columns_max);
                    if self.column < columns_max {
                        out.push(' ');
                        self.column += 1;
                    } else {
                        out.push('\n');
                        self.column = 0;
                    }
                }
                _ => {
                    self.word.push(character);
                    // Scripts without spaces, and very long words, are shown as they come.
                    if character.width() == Some(2) || self.word.width() >= columns_max {
                        self.place_word(&mut out, columns_max);
                    }
                }
            }
        }
        out
    }

    /// The word held back; the text is over.
    #[must_use]
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        if let Some(columns_max) = self.columns_max {
            self.place_word(&mut out, columns_max);
        }
        self.column = 0;
        out
    }

    fn place_word(&mut self, out: &mut String, columns_max: usize) {
        let width = self.word.width();
        if self.column > 0 && self.column + width > columns_max {
            if out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
            self.column = 0;
        }
        out.push_str(&self.word);
        self.column += width;
        self.word.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(columns: usize, parts: &[&str]) -> String {
        let mut wrapper = Wrapper::new(Some(columns));
        let mut out: String = parts.iter().map(|part| wrapper.push(part)).collect();
        out.push_str(&wrapper.finish());
        out
    }

    #[test]
    fn words_move_to_the_next_line_whole() {
        assert_eq!(wrap(12, &["one two three four"]), "one two\nthree four");
    }

    #[test]
    fn where_the_text_was_cut_into_pieces_does_not_matter() {
        let text = "a few words that are quite short and evencontainaverylongone\nand a second line ";
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let squash = |text: String| text.replace(" \n", "\n");
        assert_eq!(squash(wrap(20, &pieces)), squash(wrap(20, &[text])));
        assert!(wrap(20, &[text]).lines().all(|line| line.trim_end().width() <= 20));
    }

    #[test]
    fn nothing_is_lost() {
        let text = "日本語のとても長い文章です and then some English words\n\nend";
        let flat = |text: &str| text.replace(['\n', ' '], "");
        assert_eq!(flat(&wrap(14, &[text])), flat(text));
    }

    #[test]
    fn narrow_screens_and_pipes_get_the_text_as_it_is() {
        let mut wrapper = Wrapper::new(Some(9));
        assert_eq!(wrapper.push("one two three four"), "one two three four");
        let mut wrapper = Wrapper::new(None);
        assert_eq!(wrapper.push("one two three four"), "one two three four");
        assert_eq!(wrapper.finish(), "");
    }
}
