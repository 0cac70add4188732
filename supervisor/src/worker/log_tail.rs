//! The last of what a worker printed, and a rationed copy of it for the log.

use std::collections::VecDeque;

use crate::limits::LOG_TAIL_BYTES_MAX;

/// Lines of one worker that reach our own log within a second.
const LINES_PER_SECOND_MAX: u32 = 50;
/// Bytes of one line in our own log.
const LINE_BYTES_MAX: usize = 1024;

/// A ring of bytes with an eye for lines.
#[derive(Debug, Default)]
pub struct LogTail {
    bytes: VecDeque<u8>,
    line: Vec<u8>,
    second: u64,
    lines_this_second: u32,
    suppressed: u64,
}

impl LogTail {
    /// Takes what was printed at a time and returns the lines that may be logged.
    pub fn push(&mut self, printed: &[u8], now_ns: u64) -> Vec<String> {
        let kept = &printed[printed.len().saturating_sub(LOG_TAIL_BYTES_MAX)..];
        let over = (self.bytes.len() + kept.len()).saturating_sub(LOG_TAIL_BYTES_MAX);
        self.bytes.drain(..over);
        self.bytes.extend(kept);
        let second = now_ns / 1_000_000_000;
        if std::mem::replace(&mut self.second, second) != second {
            self.lines_this_second = 0;
        }
        let mut lines = Vec::new();
        for &byte in printed {
            if byte != b'\n' {
                if self.line.len() < LINE_BYTES_MAX {
                    self.line.push(byte);
                }
                continue;
            }
            if self.lines_this_second < LINES_PER_SECOND_MAX {
                self.lines_this_second += 1;
                lines.push(String::from_utf8_lossy(&self.line).into_owned());
            } else {
                self.suppressed += 1;
            }
            self.line.clear();
        }
        lines
    }

    /// Lines that were not logged.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// All that is kept.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_bytes_are_kept() {
        let mut tail = LogTail::default();
        tail.push(&vec![b'a'; LOG_TAIL_BYTES_MAX], 0);
        tail.push(b"end", 0);
        let text = tail.text();
        assert_eq!(text.len(), LOG_TAIL_BYTES_MAX);
        assert!(text.ends_with("aend"));
    }

    #[test]
    fn row_28_a_flood_is_rationed_by_the_second() {
        let mut tail = LogTail::default();
        let flood = "line\n".repeat(1000);
        assert_eq!(tail.push(flood.as_bytes(), 0).len(), LINES_PER_SECOND_MAX as usize);
        assert_eq!(tail.suppressed(), 1000 - u64::from(LINES_PER_SECOND_MAX));
        assert_eq!(tail.push(b"more\n", 1_000_000_000), vec!["more".to_owned()]);
    }
}
