//! Standard error, for what is told to people past the log.

use std::fmt::Arguments;
use std::io::Write as _;

/// Writes a line to standard error in one piece. Where that can't be written to the line is lost and nothing else happens;
/// `eprintln!` would panic.
pub fn tell(line: Arguments<'_>) {
    tell_as_it_is(&format!("{line}\n"));
}

/// The same for a text that has its own ends of lines.
pub fn tell_as_it_is(text: &str) {
    let _nobody_reads = std::io::stderr().write_all(text.as_bytes());
}
