//! Signs of life on standard error: a spinner for a wait, bars for transfers. Silent where standard error is not a
//! terminal, except that each new status of a transfer is printed once as a line.

use std::io::IsTerminal;
use std::time::Duration;

use ollmlx_proto::text::printable_line;
use tokio::task::JoinHandle;

use super::human;
use crate::os::stderr::write as show;

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME_MS: u64 = 100;
/// Columns of a bar where the terminal's width is unknown.
const COLUMNS_DEFAULT: usize = 80;

/// Turns until it is dropped.
#[derive(Debug)]
pub struct Spinner {
    task: Option<JoinHandle<()>>,
}

impl Spinner {
    /// Starts turning behind this text, if anybody can see it.
    #[must_use]
    pub fn start(message: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { task: None };
        }
        let message = if message.is_empty() { String::new() } else { format!("{message} ") };
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(FRAME_MS));
            for frame in FRAMES.iter().cycle() {
                ticks.tick().await;
                show(&format!("\r\x1b[K{message}{frame} "));
            }
        });
        Self { task: Some(task) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            show("\r\x1b[K");
        }
    }
}

/// The statuses of a create, pull or push.
#[derive(Debug)]
pub struct TransferProgress {
    terminal: bool,
    columns: usize,
    /// The status whose line is on the screen.
    current: String,
}

impl TransferProgress {
    /// Nothing shown yet.
    #[must_use]
    pub fn new() -> Self {
        let columns = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
        Self {
            terminal: std::io::stderr().is_terminal(),
            columns: columns.unwrap_or(COLUMNS_DEFAULT),
            current: String::new(),
        }
    }

    /// A status without numbers.
    pub fn status(&mut self, status: &str) {
        let status = &printable_line(status);
        self.begin(status);
        if self.terminal {
            show(&format!("\r\x1b[K{status} "));
        }
    }

    /// A status with numbers.
    pub fn transfer(&mut self, status: &str, completed_bytes: u64, total_bytes: u64) {
        let status = &printable_line(status);
        self.begin(status);
        if self.terminal {
            show(&format!("\r\x1b[K{}", bar(status, completed_bytes, total_bytes, self.columns)));
        }
    }

    /// A line of the server's stream.
    pub fn line(&mut self, line: &serde_json::Value) {
        let status = line["status"].as_str().unwrap_or_default();
        match (line["completed"].as_u64(), line["total"].as_u64()) {
            (completed, Some(total)) if total > 0 => self.transfer(status, completed.unwrap_or(0), total),
            _ if !status.is_empty() => self.status(status),
            _ => {}
        }
    }

    /// Leaves the last status on the screen.
    pub fn finish(&mut self) {
        if self.terminal && !self.current.is_empty() {
            show("\n");
        }
        self.current.clear();
    }

    fn begin(&mut self, status: &str) {
        if self.current == status {
            return;
        }
        match (self.terminal, self.current.is_empty()) {
            (true, false) => show("\n"),
            (true, true) => {}
            (false, _) => show(&format!("{status}\n")),
        }
        status.clone_into(&mut self.current);
    }
}

impl Default for TransferProgress {
    fn default() -> Self {
        Self::new()
    }
}

/// `pulling 6a0746a1ec1a:  42% ▕████      ▏ 41 MB/ 98 MB`
fn bar(status: &str, completed_bytes: u64, total_bytes: u64, columns: usize) -> String {
    let completed = completed_bytes.min(total_bytes);
    let share = completed as f64 / total_bytes.max(1) as f64;
    let before = format!("{status}: {:3.0}% ", (share * 100.0).floor());
    let after = if completed == total_bytes {
        format!(" {}", human::bytes(total_bytes))
    } else {
        format!(" {}/{}", human::bytes(completed), human::bytes(total_bytes))
    };
    let room = columns.saturating_sub(before.chars().count() + after.chars().count() + 3);
    let filled = ((room as f64) * share) as usize;
    format!("{before}▕{}{}▏{after}", "█".repeat(filled), " ".repeat(room - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_the_width() {
        let half = bar("pulling 6a0746a1ec1a", 50_000_000, 100_000_000, 60);
        assert!(half.starts_with("pulling 6a0746a1ec1a:  50% ▕█"), "{half}");
        assert!(half.ends_with("▏ 50 MB/100 MB"), "{half}");
        assert!(half.chars().count() < 60);
    }

    #[test]
    fn a_full_bar_keeps_the_total_only() {
        let full = bar("x", 7, 7, 40);
        assert!(full.starts_with("x: 100% ▕█") && full.ends_with("█▏ 7 B"), "{full}");
    }

    #[test]
    fn absurd_numbers_do_not_panic() {
        let _ = bar("x", 9, 0, 3);
        let _ = bar("x", u64::MAX, 1, 0);
    }
}
