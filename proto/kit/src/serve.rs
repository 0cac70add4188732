//! A worker process (to be written).

use std::process::ExitCode;

use crate::engine::Backend;

/// Runs a worker.
#[must_use]
pub fn main<B: Backend>() -> ExitCode {
    ExitCode::FAILURE
}
