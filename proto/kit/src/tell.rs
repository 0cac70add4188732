//! Standard error, which the supervisor keeps.

use std::fmt::Arguments;
use std::io::Write as _;

/// Writes a line in one piece. When nobody reads standard error any more, as after the supervisor's end, it is lost, and
/// nothing else happens: `eprintln!` would panic, in the place of whatever comes after it.
pub fn tell(line: Arguments<'_>) {
    let _nobody_reads = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
