//! What llama.cpp says: warnings and errors go to standard error, and the last errors are kept for the text of a failure.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ollmlx_proto::text::without_folders;

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

/// Has llama.cpp say why it ends the process in one line and without the folders that it was built in. By itself it would
/// start a debugger, whichever `PATH` leads to, with all that this process may do; that is switched off as well, since its
/// handler of C++ exceptions does the same. Called first of all, while there is one thread.
pub fn calm_crashes() {
    // JUSTIFICATION: ggml asks the C environment at the crash, and a worker may be started by anybody.
    // SAFETY: `main` calls this before it starts a thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("GGML_NO_BACKTRACE", "1") };
    tell_crashes();
}

/// The first half of that, for a process that has more threads.
pub(crate) fn tell_crashes() {
    // JUSTIFICATION: the safe crate has no call for it.
    // SAFETY: the callback is a plain function that lives for ever.
    let _former = unsafe { llama_cpp_sys_2::ggml_set_abort_callback(Some(on_abort)) };
}

extern "C" fn on_abort(text: *const c_char) {
    if text.is_null() {
        return;
    }
    // JUSTIFICATION: this is how llama.cpp hands over its last words.
    // SAFETY: not null, and ggml passes a terminated string that lives until this returns.
    let text = unsafe { CStr::from_ptr(text) };
    // The log's lock may be held by whoever crashed, so it isn't asked for.
    let _nobody_reads = writeln!(std::io::stderr(), "llama.cpp: {}", without_folders(&text.to_string_lossy()));
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
        let line = without_folders(std::mem::take(&mut self.line).trim_end());
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
        let told = log.take(error, "failed to load model from /home/me/x.gguf\n");
        assert_eq!(told.as_deref(), Some("failed to load model from x.gguf"));
        for _ in 0..20 {
            log.take(error, &"é".repeat(2000));
            log.take(more, "\n");
        }
        assert_eq!(log.errors.len(), ERRORS_KEPT_MAX);
        assert!(log.errors.iter().all(|line| line.len() <= LINE_BYTES_MAX));
    }
}
