//! Standard error, for what is told to people past the log.

use std::fmt::Arguments;
use std::io::Write as _;

use ollmlx_proto::text::printable;

/// Writes a line to standard error in one piece. Where that can't be written to the line is lost and nothing else happens;
/// `eprintln!` would panic. What acts on a terminal is written out: a line may quote anything.
pub fn tell(line: Arguments<'_>) {
    tell_as_it_is(&format!("{line}\n"));
}

/// The same for a text that has its own ends of lines.
pub fn tell_as_it_is(text: &str) {
    write(&printable(text));
}

/// Writes to standard error as it is, the writer's own escape sequences included.
pub fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _nobody_reads = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
