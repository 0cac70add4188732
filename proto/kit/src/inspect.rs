//! The one-shot mode that prints a model's facts: `ollmlx-worker-* inspect PATH…`.
//!
//! The supervisor never opens a model file; it starts this, with a deadline, and reads one JSON value from its
//! standard output: a [`ollmlx_proto::ModelCard`] with exit status 0, or a [`ollmlx_proto::Failure`] with exit
//! status 2. Anything else means that the files killed the inspector.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use ollmlx_proto::{Failure, FailureKind};

use crate::engine::Backend;

/// Exit status that says that a failure was printed.
pub const FAILURE_STATUS: u8 = 2;

/// Inspects `paths` and prints the answer.
pub fn run<B: Backend>(paths: &[PathBuf]) -> ExitCode {
    let inspected = catch_unwind(AssertUnwindSafe(|| B::inspect(paths))).unwrap_or_else(|_| {
        Err(Failure::new(FailureKind::ModelInvalid, "the model's files could not be read: the inspector panicked"))
    });
    let (answer, status) = match &inspected {
        Ok(card) => (serde_json::to_string(card), ExitCode::SUCCESS),
        Err(failure) => (serde_json::to_string(failure), ExitCode::from(FAILURE_STATUS)),
    };
    let printed = answer.map_err(std::io::Error::other).and_then(|text| writeln!(std::io::stdout(), "{text}"));
    match printed {
        Ok(()) => status,
        Err(error) => {
            eprintln!("Error: the answer could not be printed: {error}");
            ExitCode::FAILURE
        }
    }
}
