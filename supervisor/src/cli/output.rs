//! Standard output of the commands that print once. A reader that hung up (`ollmlx list | head -1`) is no error.

use std::io::{ErrorKind, Write};

use serde_json::Value;

use super::error::CliError;

/// Prints a text as it is.
///
/// # Errors
/// Standard output is gone for another reason than a closed pipe.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::System { step: "write to standard output", source: error })
        }
        _ => Ok(()),
    }
}

/// Prints a value, indented.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}

/// A field that is a text, else nothing.
#[must_use]
pub fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
