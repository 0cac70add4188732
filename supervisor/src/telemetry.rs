//! Logging: one set-up.
//!
//! Events are facts in the past tense, values are fields. Prompts, outputs and secrets are never logged above trace.

use tracing::level_filters::LevelFilter;

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
