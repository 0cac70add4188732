//! `shape [--json]`: prints the figures of the house (see [`ollmlx_shape::report`]).

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is run by a person, who reads it")]

use std::process::ExitCode;

use ollmlx_shape::Workspace;
use ollmlx_shape::report::Report;

fn main() -> ExitCode {
    match figures() {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn figures() -> Result<String, String> {
    let report = Report::of(&Workspace::read(&ollmlx_shape::root())?);
    match std::env::args().nth(1).as_deref() {
        None => Ok(report.text()),
        Some("--json") => serde_json::to_string_pretty(&report).map_err(|error| error.to_string()),
        Some(other) => Err(format!("unknown option: {other}")),
    }
}
