//! What filters and methods of Jinja cost beyond what the engine charges: paid before they run, so that none makes more
//! than is paid for.

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::bounds::{STEP_BYTES, bytes, is_small, read};

/// Bytes of a list's item and of a short text in it.
const PIECE_BYTES: usize = 64;

/// Pays for a filter; its value is the first argument.
pub(super) fn filter(state: &State<'_, '_>, name: &str, args: &[Value]) -> Result<(), Error> {
    let Some((value, rest)) = args.split_first() else { return Ok(()) };
    match name {
        "map" if rest.first().is_some_and(Value::is_kwargs) => return Ok(()),
        "select" | "reject" | "selectattr" | "rejectattr" => {
            // Each item is compared with each of them.
            for other in rest.iter().filter(|other| !is_small(other)) {
                for _ in 0..=value.len().unwrap_or(0) {
                    read(state, other)?;
                }
            }
            return Ok(());
        }
        _ => {}
    }
    text(state, name, args)?;
    args.iter().try_for_each(|value| read(state, value))
}

/// Pays for a method; its object is the first argument.
pub(super) fn method(state: &State<'_, '_>, name: &str, args: &[Value]) -> Result<(), Error> {
    text(state, name, args)?;
    let is_read =
        |(index, value): &(usize, &Value)| *index > 0 || matches!(value.kind(), ValueKind::String | ValueKind::Seq);
    args.iter().enumerate().filter(is_read).try_for_each(|(_, value)| read(state, value))
}

/// What is particular to one of a text.
fn text(state: &State<'_, '_>, name: &str, args: &[Value]) -> Result<(), Error> {
    let Some((value, rest)) = args.split_first() else { return Ok(()) };
    let Some(text) = value.as_str() else { return Ok(()) };
    let first = rest.first().and_then(Value::as_str);
    let cost = match name {
        "split" => match first {
            Some(separator) => text.matches(separator).count(),
            None => text.split_whitespace().count(),
        }
        .saturating_mul(PIECE_BYTES),
        "lines" | "splitlines" => text.lines().count().saturating_mul(PIECE_BYTES),
        // Each character is compared with each of these.
        "trim" | "strip" | "lstrip" | "rstrip" => text.len().saturating_mul(first.map_or(0, str::len)),
        "format" => {
            // Any of them may be what every field shows.
            let longest = rest.iter().try_fold(0, |longest, value| Ok::<_, Error>(bytes(value)?.max(longest)))?;
            let fields = text.matches(['{', '%']).count();
            fields.saturating_mul(longest).saturating_add(numbers(text))
        }
        _ => 0,
    };
    state.consume_fuel((cost / STEP_BYTES) as u64)
}

/// The sum of all numbers in a format, each of which may be a width.
fn numbers(format: &str) -> usize {
    let numbers = format.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.fold(0, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)))
}
