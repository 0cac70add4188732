//! The only folder with `unsafe`: what llama-cpp-2 has no safe name for.

#![expect(unsafe_code, reason = "llama.cpp's log callback has no safe wrapper that keeps the last error")]

use std::ffi::{CStr, c_char, c_void};
use std::panic::catch_unwind;
use std::sync::Mutex;

use llama_cpp_sys_2::{GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_WARN, ggml_log_level};

/// The last line that llama.cpp logged as an error: it says why a load returned nothing.
static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// Sends llama.cpp's warnings and errors to standard error and remembers the last error.
pub(crate) fn capture_logs() {
    // JUSTIFICATION: the safe crate can only discard the log or hand all of it to `tracing`.
    // SAFETY: the callback is a static function, takes no user data and does not unwind.
    unsafe { llama_cpp_sys_2::llama_log_set(Some(log), std::ptr::null_mut()) };
    // JUSTIFICATION: as above, for ggml's own log.
    // SAFETY: as above.
    unsafe { llama_cpp_sys_2::ggml_log_set(Some(log), std::ptr::null_mut()) };
}

/// Takes the last error line, if there was one since the last call.
pub(crate) fn take_last_error() -> Option<String> {
    LAST_ERROR.lock().map_or_else(|poisoned| poisoned.into_inner().take(), |mut last| last.take())
}

extern "C" fn log(level: ggml_log_level, text: *const c_char, _user_data: *mut c_void) {
    if text.is_null() || (level != GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_WARN) {
        return;
    }
    // No panic may cross into C.
    let _ = catch_unwind(|| {
        // JUSTIFICATION: C strings have no safe reader.
        // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call; null was excluded above.
        let line = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let line = line.trim_end();
        eprintln!("{line}");
        if level == GGML_LOG_LEVEL_ERROR
            && !line.is_empty()
            && let Ok(mut last) = LAST_ERROR.lock()
        {
            *last = Some(line.to_owned());
        }
    });
}
