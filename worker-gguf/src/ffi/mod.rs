//! The calls to llama.cpp that the safe crate lacks: loading one named backend module, its log, hidden states beside
//! logits, and signs of life while it computes.
//!
//! Must not know what the engine does with them. C types stay here; a panic never crosses the boundary.

#![expect(unsafe_code, reason = "the only place where C is called directly")]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;

/// Error lines kept for the failure text of a load.
const ERRORS_KEPT_MAX: usize = 8;
/// Bytes of a log line that are kept; llama.cpp quotes from the model file.
const LINE_BYTES_MAX: usize = 1024;
/// About half a layer. A beat looks at the clock and at a lock, which costs a tenth of a microsecond or two; a token of a small
/// model has a thousand nodes and takes ten milliseconds. The matrices of half a layer take a slow CPU seconds at most, even
/// for thousands of tokens.
const NODES_PER_BEAT: u32 = 16;

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
pub fn capture_log() {
    // JUSTIFICATION: the safe crate either drops the log or needs a global tracing subscriber.
    // SAFETY: the callback is a plain function that lives for ever and ignores its user data.
    unsafe { llama_cpp_sys_2::llama_log_set(Some(on_log), std::ptr::null_mut()) }
}

/// The errors that llama.cpp logged since the last call, oldest first.
#[must_use]
pub fn take_errors() -> Vec<String> {
    std::mem::take(&mut log().errors).into()
}

/// Loads a backend module, such as one CPU level. `false` where it can't be loaded or this CPU does not have what it
/// needs; the log says why.
#[must_use]
pub fn load_backend(path: &CStr) -> bool {
    // JUSTIFICATION: the safe crate loads the best module of a folder, which may be one that dies of SIGILL.
    // SAFETY: the path is a C string that outlives the call; llama.cpp's registry is used from one thread at a time,
    // because `crate::cpu` calls this inside a `OnceLock` initialiser.
    let registered = unsafe { llama_cpp_sys_2::ggml_backend_load(path.as_ptr()) };
    !registered.is_null()
}

/// Computes a batch of a context made for generation, after which the hidden state of each of its tokens can be read with
/// `embeddings_ith`. Each of them brings a row of logits along.
///
/// # Errors
/// As `decode`. Where the safe crate hides its context so well that this can't be asked for, nothing can be read afterwards.
pub fn decode_hidden(context: &mut LlamaContext<'_>, batch: &mut LlamaBatch<'_>) -> Result<(), DecodeError> {
    let Some(raw) = raw(context) else { return context.decode(batch) };
    // JUSTIFICATION: the safe crate lets a context be made for embeddings, which needs one more cache, but not be switched.
    // SAFETY: the context lives and is borrowed for this thread alone; the call sets a flag that the next batch heeds.
    unsafe { llama_cpp_sys_2::llama_set_embeddings(raw, true) };
    let decoded = context.decode(batch);
    // JUSTIFICATION: as above.
    // SAFETY: as above; what the batch computed stays to be read.
    unsafe { llama_cpp_sys_2::llama_set_embeddings(raw, false) };
    decoded
}

/// What llama.cpp calls while it computes on a CPU.
pub struct Heart {
    nodes: AtomicU32,
    beat: Box<dyn Fn() + Send + Sync>,
}

impl Heart {
    /// `beat` is called now and then while a context computes, on the thread that asked for it.
    pub fn new(beat: impl Fn() + Send + Sync + 'static) -> Self {
        Self { nodes: AtomicU32::new(0), beat: Box::new(beat) }
    }

    /// The next node of a graph is computed.
    fn node(&self) {
        if self.nodes.fetch_add(1, Ordering::Relaxed).is_multiple_of(NODES_PER_BEAT) {
            (self.beat)();
        }
    }
}

/// Lets a heart beat while a context computes, from now on. `false` where the safe crate hides its context so well that this
/// can't be asked for. An accelerator tells nothing of its nodes.
pub fn hear(context: &mut LlamaContext<'_>, heart: &'static Heart) -> bool {
    let Some(raw) = raw(context) else { return false };
    let data: *const Heart = heart;
    // JUSTIFICATION: the safe crate has no such call.
    // SAFETY: the context lives and is borrowed for this thread alone; the heart lives for ever and may be shared, and
    // `on_node` takes it for nothing else.
    unsafe { llama_cpp_sys_2::llama_set_abort_callback(raw, Some(on_node), data.cast_mut().cast()) };
    true
}

/// After each node: whether to give up, which is never wanted.
unsafe extern "C" fn on_node(heart: *mut c_void) -> bool {
    // JUSTIFICATION: this is how llama.cpp hands back what `hear` gave it.
    // SAFETY: it is the heart that `hear` gave, which lives for ever and is only ever shared.
    let heart = unsafe { heart.cast_const().cast::<Heart>().as_ref() };
    if let Some(heart) = heart {
        heart.node();
    }
    false
}

/// The context itself, whose address the safe crate tells in its debugging form only.
fn raw(context: &mut LlamaContext<'_>) -> Option<*mut llama_cpp_sys_2::llama_context> {
    let text = format!("{context:?}");
    // The whole form: whatever else it may say one day is no address to write to.
    let digits = text.strip_prefix("LlamaContext { context: 0x")?.strip_suffix(" }")?;
    let address = usize::from_str_radix(digits, 16).ok().filter(|address| *address != 0)?;
    Some(std::ptr::with_exposed_provenance_mut(address))
}

/// Gives pages of the heap that hold nothing back to the system, where the C library can.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release_free_heap() {
    use std::ffi::c_int;

    // JUSTIFICATION: glibc keeps freed memory for itself, and no safe crate asks for it.
    // SAFETY: this is the signature of glibc's `malloc_trim`.
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> c_int;
    }
    // JUSTIFICATION: as above.
    // SAFETY: safe to call from any thread at any time; it touches no memory that is in use.
    let _released = unsafe { malloc_trim(0) };
}

/// Other C libraries do it by themselves, or have no call for it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_free_heap() {}

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
