//! Standard output of the commands: the only way there. A reader that hung up (`ollmlx list | head -1`) is no error.
//!
//! What acts on a terminal is written out ([`printable`]), since names, texts and answers come from model files. Only a text
//! that is somebody's whole, and goes to a file or another program, arrives as it is ([`print_whole`]).

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

use ollmlx_proto::text::printable;
use serde_json::Value;

use super::error::CliError;

/// Prints a text.
///
/// # Errors
/// Standard output is gone for another reason than a closed pipe.
pub fn print(text: &str) -> Result<(), CliError> {
    write(&printable(text))
}

/// Prints a model's text: byte for byte where no terminal reads it.
///
/// # Errors
/// As [`print`].
pub fn print_whole(text: &str) -> Result<(), CliError> {
    write(&whole(text))
}

/// The same without the writing.
#[must_use]
pub fn whole(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { printable(text) } else { Cow::Borrowed(text) }
}

fn write(text: &str) -> Result<(), CliError> {
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
