//! Values with rules of their own: `keep_alive`, `think` and `format` (`docs/conformance.md`, Values).

use ollmlx_proto::{Format, JsonText, ThinkLevel, ThinkMode};
use serde_json::Value;

use crate::dialect::Rejection;
use crate::dialect::values::think_level;
use crate::types::KeepAlive;

/// How long a model stays: seconds as a number, or a Go duration. Negative is forever, 0 is not at all.
///
/// # Errors
/// 400 with Go's text.
pub(super) fn keep_alive(value: Option<Value>) -> Result<Option<KeepAlive>, Rejection> {
    let seconds = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_f64().unwrap_or(0.0),
        Some(Value::String(text)) => duration_seconds(&text)?,
        Some(other) => {
            let kind = match other {
                Value::Bool(_) => "bool",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            return Err(Rejection::bad_request(format!("Unsupported type: '{kind}'")));
        }
    };
    Ok(Some(if seconds < 0.0 {
        KeepAlive::Forever
    } else if seconds == 0.0 {
        KeepAlive::Unload
    } else {
        // A float beyond 64 bits saturates.
        KeepAlive::ForMs(((seconds * 1000.0) as u64).max(1))
    }))
}

/// Go's `time.ParseDuration`: `1h30m`, `-1.5s`, `0`.
///
/// # Errors
/// 400 with Go's text.
fn duration_seconds(text: &str) -> Result<f64, Rejection> {
    let invalid = || Rejection::bad_request(format!("time: invalid duration {text:?}"));
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let length = rest.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "" => return Err(Rejection::bad_request(format!("time: missing unit in duration {text:?}"))),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            unit => {
                return Err(Rejection::bad_request(format!("time: unknown unit {unit:?} in duration {text:?}")));
            }
        };
        seconds += number * unit;
        rest = &rest[length..];
    }
    // Go counts nanoseconds in 63 bits.
    if seconds > 9.223e9 {
        return Err(invalid());
    }
    Ok(sign * seconds)
}

/// Whether to think: a truth value or a level.
///
/// # Errors
/// 400 with Ollama's text.
pub(super) fn think(value: Option<Value>) -> Result<Option<ThinkMode>, Rejection> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(ThinkMode::On(ThinkLevel::Medium))),
        Some(Value::Bool(false)) => Ok(Some(ThinkMode::Off)),
        Some(Value::String(text)) => match think_level(&text) {
            Some(level) => Ok(Some(ThinkMode::On(level))),
            None => Err(Rejection::bad_request(format!(
                "invalid think value: {text:?} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
            ))),
        },
        Some(_) => Err(Rejection::bad_request(
            "think must be a boolean or string (\"high\", \"medium\", \"low\", \"max\", true, or false)",
        )),
    }
}

/// What the text must look like.
///
/// # Errors
/// 500, as Ollama has it.
pub(super) fn format(value: Option<Value>) -> Result<Format, Rejection> {
    let shown = match value {
        None | Some(Value::Null) => return Ok(Format::Text),
        Some(Value::String(word)) if word.is_empty() => return Ok(Format::Text),
        Some(Value::String(word)) if word == "json" => return Ok(Format::Json),
        Some(schema @ Value::Object(_)) => return Ok(Format::JsonSchema(JsonText(schema.to_string()))),
        Some(Value::String(word)) => word,
        Some(other) => other.to_string(),
    };
    let shown: String = shown.chars().take(200).collect();
    Err(Rejection::internal(format!("invalid format: {shown:?}; expected \"json\" or a valid JSON Schema object")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keep_alive_takes_every_spelling() {
        for (value, expected) in [
            (json!(null), Ok(None)),
            (json!(0), Ok(Some(KeepAlive::Unload))),
            (json!("0"), Ok(Some(KeepAlive::Unload))),
            (json!("0s"), Ok(Some(KeepAlive::Unload))),
            (json!(-1), Ok(Some(KeepAlive::Forever))),
            (json!("-1m"), Ok(Some(KeepAlive::Forever))),
            (json!(1.5), Ok(Some(KeepAlive::ForMs(1500)))),
            (json!("1h30m"), Ok(Some(KeepAlive::ForMs(5_400_000)))),
            (json!("80000s"), Ok(Some(KeepAlive::ForMs(80_000_000)))),
            (json!("1ns"), Ok(Some(KeepAlive::ForMs(1)))),
            (json!(1e300), Ok(Some(KeepAlive::ForMs(u64::MAX)))),
            (json!("10"), Err("time: missing unit in duration \"10\"")),
            (json!("abc"), Err("time: invalid duration \"abc\"")),
            (json!(""), Err("time: invalid duration \"\"")),
            (json!("1.2.3s"), Err("time: invalid duration \"1.2.3s\"")),
            (json!("10x"), Err("time: unknown unit \"x\" in duration \"10x\"")),
            (json!("999999999h"), Err("time: invalid duration \"999999999h\"")),
            (json!("é"), Err("time: invalid duration \"é\"")),
            (json!(true), Err("Unsupported type: 'bool'")),
        ] {
            let found = keep_alive(Some(value.clone()));
            assert_eq!(found, expected.map_err(Rejection::bad_request), "{value}");
        }
    }

    #[test]
    fn think_and_format_refuse_what_ollama_refuses() {
        assert_eq!(think(Some(json!(true))), Ok(Some(ThinkMode::On(ThinkLevel::Medium))));
        assert_eq!(think(Some(json!("max"))), Ok(Some(ThinkMode::On(ThinkLevel::Max))));
        assert_eq!(think(Some(json!(false))), Ok(Some(ThinkMode::Off)));
        let text = "invalid think value: \"x\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)";
        assert_eq!(think(Some(json!("x"))), Err(Rejection::bad_request(text)));
        assert_eq!(think(Some(json!(1))).unwrap_err().status, 400);
        assert_eq!(format(Some(json!(""))), Ok(Format::Text));
        assert_eq!(format(Some(json!("json"))), Ok(Format::Json));
        let schema = json!({"type": "object", "b": 1, "a": 2});
        let kept = JsonText("{\"type\":\"object\",\"b\":1,\"a\":2}".into());
        assert_eq!(format(Some(schema)), Ok(Format::JsonSchema(kept)));
        let text = "invalid format: \"x\"; expected \"json\" or a valid JSON Schema object";
        assert_eq!(format(Some(json!("x"))), Err(Rejection::internal(text)));
        assert_eq!(format(Some(json!(3))).unwrap_err().status, 500);
    }
}
