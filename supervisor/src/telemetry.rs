//! Logging: one set-up, and the names of the fields.
//!
//! Events are facts in the past tense, values are fields. Prompts, outputs and secrets are never logged above trace.

use tracing::level_filters::LevelFilter;

/// One request's number in the log.
pub const REQUEST_ID: &str = "request_id";
/// The model's name or id.
pub const MODEL: &str = "model";
/// Which process of a model, counted from 1.
pub const INCARNATION: &str = "incarnation";
/// A process id.
pub const PID: &str = "pid";
/// Method and path.
pub const ENDPOINT: &str = "endpoint";
/// `ollama`, `openai` or `anthropic`.
pub const DIALECT: &str = "dialect";
/// A worker's state before.
pub const STATE_FROM: &str = "state_from";
/// A worker's state after.
pub const STATE_TO: &str = "state_to";
/// What happened.
pub const EVENT: &str = "event";
/// Why a process ended.
pub const CAUSE: &str = "cause";
/// Time waited, in milliseconds.
pub const QUEUE_MS: &str = "queue_ms";
/// Time to load, in milliseconds.
pub const LOAD_MS: &str = "load_ms";
/// Time to the first token, in milliseconds.
pub const TTFT_MS: &str = "ttft_ms";
/// Prompt length.
pub const PROMPT_TOKENS: &str = "prompt_tokens";
/// Output length.
pub const COMPLETION_TOKENS: &str = "completion_tokens";
/// Why generation ended.
pub const FINISH_REASON: &str = "finish_reason";
/// HTTP status.
pub const STATUS: &str = "status";
/// Bytes set aside.
pub const RESERVED_BYTES: &str = "reserved_bytes";
/// Bytes seen in use.
pub const OBSERVED_BYTES: &str = "observed_bytes";
/// A chain of reasons.
pub const ERROR: &str = "error";

/// Sends events of at least this level to standard error. A second call changes nothing.
pub fn init(level: LevelFilter) {
    use std::io::IsTerminal;
    let colour = std::io::stderr().is_terminal();
    let set = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        // It would say so by `eprintln!`, which panics where standard error can't be written to: a closed terminal, a full
        // disk or the end of whoever read it would end the task that logs, and the server with it.
        .log_internal_errors(false)
        .try_init();
    // Only tests call this twice; the first subscriber stays.
    drop(set);
}
