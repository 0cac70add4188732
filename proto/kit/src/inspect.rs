//! The inspect mode: a model's facts as JSON on standard output.
//!
//! `ollmlx-worker-* inspect PATH…` prints a [`ModelCard`] and exits with 0, or a [`Failure`] and exits with 2. The files
//! are hostile: a panic while they are read is a failure like any other, and an answer too large for its reader is
//! not begun.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use ollmlx_proto::limits::INSPECT_BYTES_MAX;
use ollmlx_proto::{Failure, FailureKind, ModelCard};

use crate::engine::Backend;

/// Exit status after a [`Failure`].
pub const EXIT_FAILED: u8 = 2;

/// Writes the card or the failure to `out`; returns the exit status.
///
/// # Errors
/// Nobody reads.
pub fn run<B: Backend>(paths: &[PathBuf], out: &mut dyn Write) -> io::Result<u8> {
    let answer = read::<B>(paths).and_then(|card| {
        let json = serde_json::to_vec(&card)
            .map_err(|error| Failure::new(FailureKind::Internal, format!("the card is not JSON: {error}")))?;
        if json.len() > INSPECT_BYTES_MAX {
            return Err(Failure::new(FailureKind::ModelInvalid, "the model's metadata is too large"));
        }
        Ok(json)
    });
    let (json, status) = match answer {
        Ok(json) => (json, 0),
        Err(failure) => (serde_json::to_vec(&failure)?, EXIT_FAILED),
    };
    out.write_all(&json)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(status)
}

fn read<B: Backend>(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
    if paths.is_empty() {
        return Err(Failure::new(FailureKind::InvalidRequest, "inspect needs the path of a model"));
    }
    catch_unwind(AssertUnwindSafe(|| B::inspect(paths))).unwrap_or_else(|_| {
        Err(Failure::new(FailureKind::ModelInvalid, "the model's files could not be read")
            .with_detail("the reader panicked; see standard error"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::toy_backend::ToyBackend;

    fn inspected(path: &str) -> (u8, serde_json::Value) {
        let mut out = Vec::new();
        let paths: Vec<PathBuf> = path.split_whitespace().map(PathBuf::from).collect();
        let status = run::<ToyBackend>(&paths, &mut out).unwrap();
        (status, serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn a_card_is_printed_and_can_be_read_back() {
        let (status, json) = inspected("toy.gguf");
        assert_eq!(status, 0);
        assert_eq!(json["architecture"], "toy");
        serde_json::from_value::<ModelCard>(json).unwrap();
    }

    #[test]
    fn failures_and_panics_are_printed_too() {
        for (path, kind) in [
            ("missing.gguf", FailureKind::ModelInvalid),
            ("panic.gguf", FailureKind::ModelInvalid),
            ("", FailureKind::InvalidRequest),
        ] {
            let (status, json) = inspected(path);
            assert_eq!(status, EXIT_FAILED);
            assert_eq!(serde_json::from_value::<Failure>(json).unwrap().kind, kind, "{path}");
        }
    }
}
