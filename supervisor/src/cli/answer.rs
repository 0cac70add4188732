//! Puts a streamed answer on the screen: the thinking between its two marks, the content wrapped. Writes to whatever it is
//! given; never to standard error.

use std::io::{self, Write};

use ollmlx_proto::text::printable;
use serde_json::Value;

use super::human;
use super::wrap::Wrapper;

const GREY: &str = "\x1b[38;5;245m";
const PLAIN: &str = "\x1b[0m";

/// How an answer is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Wrap at this column.
    pub columns_max: Option<usize>,
    /// Whether the thinking is left out.
    pub thinking: Thoughts,
    /// Whether colours may be used.
    pub colours: Colours,
}

/// What becomes of the thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoughts {
    /// Printed.
    Shown,
    /// Left out.
    Hidden,
}

/// Whether escape sequences may be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// On a terminal.
    On,
    /// In a pipe or file.
    Off,
}

/// One answer on its way to the screen.
#[derive(Debug)]
pub struct AnswerPrinter<W: Write> {
    out: W,
    look: Look,
    wrapper: Wrapper,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Thinking,
    Content,
}

impl<W: Write> AnswerPrinter<W> {
    /// Nothing printed yet.
    pub fn new(out: W, look: Look) -> Self {
        Self { out, look, wrapper: Wrapper::new(look.columns_max), stage: Stage::Start }
    }

    /// Some of the thinking.
    ///
    /// # Errors
    /// The output is gone.
    pub fn thinking(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() || self.look.thinking == Thoughts::Hidden {
            return Ok(());
        }
        if self.stage == Stage::Start {
            self.stage = Stage::Thinking;
            let colour = self.colour(GREY);
            writeln!(self.out, "{colour}Thinking...")?;
        }
        self.text(text)
    }

    /// Some of the answer.
    ///
    /// # Errors
    /// The output is gone.
    pub fn content(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.end_thinking()?;
        self.stage = Stage::Content;
        self.text(text)
    }

    /// The answer is over.
    ///
    /// # Errors
    /// The output is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.end_thinking()?;
        let rest = self.wrapper.finish();
        self.out.write_all(rest.as_bytes())?;
        self.out.flush()
    }

    fn end_thinking(&mut self) -> io::Result<()> {
        if self.stage != Stage::Thinking {
            return Ok(());
        }
        self.stage = Stage::Content;
        let rest = self.wrapper.finish();
        let colour = self.colour(PLAIN);
        write!(self.out, "{rest}\n...done thinking.\n\n{colour}")
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        // What a model says must not act on a terminal; a program gets it as it is.
        let text = match self.look.colours {
            Colours::On => self.wrapper.push(&printable(text)),
            Colours::Off => self.wrapper.push(text),
        };
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn colour(&self, code: &'static str) -> &'static str {
        match self.look.colours {
            Colours::On => code,
            Colours::Off => "",
        }
    }
}

/// The lines of `--verbose`, from the last line of a stream. Each only where there is something to say.
#[must_use]
pub fn timings(last: &Value) -> String {
    let number = |key: &str| last[key].as_u64().unwrap_or(0);
    let mut out = String::new();
    let mut push = |label: &str, text: String| out.push_str(&format!("{:<22}{text}\n", format!("{label}:")));
    for (label, key) in [("total duration", "total_duration"), ("load duration", "load_duration")] {
        if number(key) > 0 {
            push(label, human::go_duration(number(key)));
        }
    }
    for (label, count, duration) in [
        ("prompt eval", number("prompt_eval_count"), number("prompt_eval_duration")),
        ("eval", number("eval_count"), number("eval_duration")),
    ] {
        if count > 0 {
            push(&format!("{label} count"), format!("{count} token(s)"));
        }
        if duration > 0 {
            push(&format!("{label} duration"), human::go_duration(duration));
        }
        if count > 0 && duration > 0 {
            push(&format!("{label} rate"), format!("{:.2} tokens/s", count as f64 / (duration as f64 / 1e9)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn print(look: Look, parts: &[(&str, &str)]) -> String {
        let mut out = Vec::new();
        let mut printer = AnswerPrinter::new(&mut out, look);
        for (thinking, content) in parts {
            printer.thinking(thinking).unwrap();
            printer.content(content).unwrap();
        }
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    const PIPE: Look = Look { columns_max: None, thinking: Thoughts::Shown, colours: Colours::Off };

    #[test]
    fn thinking_stands_between_its_marks() {
        let text = print(PIPE, &[("hm", ""), (" so", ""), ("", "42"), ("", "!")]);
        assert_eq!(text, "Thinking...\nhm so\n...done thinking.\n\n42!");
    }

    #[test]
    fn an_answer_can_not_act_on_a_terminal() {
        let parts = [("\u{1b}[8mhid", ""), ("", "a\u{1b}]52;c;eA==\u{7}\tb\n"), ("", "\u{202e}c")];
        let text = print(Look { colours: Colours::On, ..PIPE }, &parts);
        let shown = "\\u001b[8mhid\n...done thinking.\n\n\u{1b}[0ma\\u001b]52;c;eA==\\u0007\tb\n\\u202ec";
        assert_eq!(text, format!("{GREY}Thinking...\n{shown}"));
        assert!(print(PIPE, &parts).contains("a\u{1b}]52;c;eA==\u{7}\tb"), "a program gets it as it is");
    }

    #[test]
    fn thinking_can_be_hidden() {
        let look = Look { thinking: Thoughts::Hidden, ..PIPE };
        assert_eq!(print(look, &[("hm", ""), ("", "42")]), "42");
    }

    #[test]
    fn an_answer_that_is_all_thinking_is_closed() {
        assert_eq!(print(PIPE, &[("hm", "")]), "Thinking...\nhm\n...done thinking.\n\n");
    }

    #[test]
    fn timings_have_ollama_s_labels() {
        let last = json!({"total_duration": 1_520_000_000u64, "load_duration": 31_000_000, "prompt_eval_count": 26,
            "prompt_eval_duration": 120_000_000, "eval_count": 80, "eval_duration": 1_300_000_000u64});
        let expect = "\
total duration:       1.52s
load duration:        31ms
prompt eval count:    26 token(s)
prompt eval duration: 120ms
prompt eval rate:     216.67 tokens/s
eval count:           80 token(s)
eval duration:        1.3s
eval rate:            61.54 tokens/s
";
        assert_eq!(timings(&last), expect);
        assert_eq!(timings(&json!({"done": true})), "");
    }
}
