//! The last lines of a worker's output, kept for the record of its death.

use std::collections::VecDeque;

use ollmlx_proto::limits::LOG_TAIL_BYTES_MAX;

/// Longest line that is kept; the rest of a longer one is dropped.
const LINE_BYTES_MAX: usize = 4096;

/// A bounded tail of lines.
#[derive(Debug, Default)]
pub struct LogTail {
    lines: VecDeque<String>,
    bytes: usize,
    partial: Vec<u8>,
}

impl LogTail {
    /// Takes output as it comes; returns the lines it completes, for the log.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut complete = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                complete.extend(self.end_line());
            } else if self.partial.len() < LINE_BYTES_MAX {
                self.partial.push(byte);
            }
        }
        complete
    }

    /// All that is kept, oldest first.
    pub fn finish(&mut self) -> String {
        self.end_line();
        Vec::from(std::mem::take(&mut self.lines)).join("\n")
    }

    fn end_line(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).trim_end().to_owned();
        if line.is_empty() {
            return None;
        }
        self.bytes += line.len();
        self.lines.push_back(line.clone());
        while self.bytes > LOG_TAIL_BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_lines_come_whole() {
        let mut tail = LogTail::default();
        assert_eq!(tail.push(b"one\ntw"), ["one"]);
        assert_eq!(tail.push(b"o\n\n"), ["two"]);
        tail.push(b"three");
        assert_eq!(tail.finish(), "one\ntwo\nthree");
        let mut tail = LogTail::default();
        for _ in 0..10_000 {
            tail.push(&[b'x'; 100]);
            tail.push(b"\n");
        }
        tail.push(&vec![b'y'; 1 << 20]);
        let text = tail.finish();
        assert!(text.len() <= LOG_TAIL_BYTES_MAX + 1000, "{}", text.len());
        assert!(text.ends_with(&"y".repeat(LINE_BYTES_MAX)));
    }
}
