//! Logging: one set-up.
//!
//! Events are facts in the past tense, values are fields. Prompts, outputs and secrets are never logged above trace.
//!
//! An event is one line, and what it quotes must not act on the terminal that it may be read on. The formatter writes out the
//! escape sequences of others; what it leaves is done here, where its own colours must stay.

use std::io::{self, Write};

use ollmlx_proto::text::printable_line;
use tracing::level_filters::LevelFilter;

/// Sends events of at least this level to standard error. A second call changes nothing.
pub fn init(level: LevelFilter) {
    use std::io::IsTerminal;
    let colour = io::stderr().is_terminal();
    let set = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| OneLine(io::stderr()))
        .with_ansi(colour)
        .with_target(false)
        // It would say so by `eprintln!`, which panics where standard error can't be written to: a closed terminal, a full
        // disk or the end of whoever read it would end the task that logs, and the server with it.
        .log_internal_errors(false)
        .try_init();
    // Only tests call this twice; the first subscriber stays.
    drop(set);
}

/// Gets one event at a time.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut parts = line.split('\u{1b}');
        let mut shown = printable_line(parts.next().unwrap_or_default()).into_owned();
        for part in parts {
            shown.push_str(if is_colour(part) { "\u{1b}" } else { "\\u001b" });
            shown.push_str(&printable_line(part));
        }
        shown.push('\n');
        self.0.write_all(shown.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether what follows an escape character makes it a colour, and nothing that acts on a terminal.
fn is_colour(after: &str) -> bool {
    let codes = after.strip_prefix('[').map(|codes| codes.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    codes.is_some_and(|rest| rest.starts_with('m'))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_and_keeps_its_own_colours_only() {
        let (kept, hostile) = (Kept::default(), "a\u{1b}[2J\rb\u{9b}1m\n2026 INFO forged \u{202e}c");
        let writer = kept.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || OneLine(writer.clone())).with_ansi(true).finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!(model = %hostile, text = hostile, "{hostile}"));
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(text.contains("\u{1b}[32m INFO"), "{text:?}");
        assert!(!text.contains(['\r', '\u{9b}', '\u{202e}']) && !text.contains("\u{1b}[2J"), "{text:?}");
    }
}
