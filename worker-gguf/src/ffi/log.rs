//! What llama.cpp says: warnings and errors go to standard error, and the last errors are kept for the text of a failure.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits::{ERRORS_KEPT_MAX, LINE_BYTES_MAX};

struct Log {
    level: u32,
    line: String,
    errors: VecDeque<String>,
}

static LOG: Mutex<Log> = Mutex::new(Log::new());

fn log() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends llama.cpp's warnings and errors to standard error and keeps the last errors for [`take_errors`]. Everything
/// else it says is dropped.
pub fn capture() {
    // JUSTIFICATION: the safe crate either drops the log or needs a global tracing subscriber.
    // SAFETY: the callback is a plain function that lives for ever and ignores its user data.
    unsafe { llama_cpp_sys_2::llama_log_set(Some(on_log), std::ptr::null_mut()) }
}

/// The errors that llama.cpp logged since the last call, oldest first.
#[must_use]
pub fn take_errors() -> Vec<String> {
    std::mem::take(&mut log().errors).into()
}

extern "C" fn on_log(level: llama_cpp_sys_2::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // JUSTIFICATION: this is how llama.cpp hands over a line.
    // SAFETY: not null, and llama.cpp passes a terminated string that lives until this returns.
    let text = unsafe { CStr::from_ptr(text) };
    let line = log().take(level, &text.to_string_lossy());
    if let Some(line) = line {
        // Standard error may be closed; there is nobody left to tell then.
        let _ = writeln!(std::io::stderr(), "llama.cpp: {line}");
    }
}

impl Log {
    const fn new() -> Self {
        Self { level: 0, line: String::new(), errors: VecDeque::new() }
    }

    /// Collects pieces to lines; a piece may continue the one before it. Returns a whole line that is worth showing.
    fn take(&mut self, level: u32, text: &str) -> Option<String> {
        if level != llama_cpp_sys_2::GGML_LOG_LEVEL_CONT {
            self.level = level;
            self.line.clear();
        }
        if self.level != llama_cpp_sys_2::GGML_LOG_LEVEL_WARN && self.level != llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR {
            return None;
        }
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        let end = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.line.push_str(&text[..end]);
        if !text.ends_with('\n') {
            return None;
        }
        let line = std::mem::take(&mut self.line).trim_end().to_owned();
        if self.level == llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR {
            if self.errors.len() == ERRORS_KEPT_MAX {
                self.errors.pop_front();
            }
            self.errors.push_back(line.clone());
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_are_put_together_kept_and_bounded() {
        let error = llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR;
        let more = llama_cpp_sys_2::GGML_LOG_LEVEL_CONT;
        let info = llama_cpp_sys_2::GGML_LOG_LEVEL_INFO;
        let mut log = Log::new();
        assert_eq!(log.take(info, "quiet\n"), None);
        assert_eq!(log.take(error, "first "), None);
        assert_eq!(log.take(more, "half\n").as_deref(), Some("first half"));
        assert_eq!(log.errors, ["first half"]);
        for _ in 0..20 {
            log.take(error, &"é".repeat(2000));
            log.take(more, "\n");
        }
        assert_eq!(log.errors.len(), ERRORS_KEPT_MAX);
        assert!(log.errors.iter().all(|line| line.len() <= LINE_BYTES_MAX));
    }
}
