//! Values with rules of their own: `keep_alive`, `think` and `format` (`docs/conformance.md`, Values).

use ollmlx_proto::{Format, JsonText, ThinkLevel, ThinkMode};

use crate::dialect::Rejection;
use crate::dialect::json::{JsonKind, RawJson, shown};
use crate::dialect::values::think_level;
use crate::types::KeepAlive;

/// How long a model stays: seconds as a number, or a Go duration. Negative is forever, 0 is not at all.
///
/// # Errors
/// 400 with Go's text.
pub(super) fn keep_alive(value: Option<RawJson<'_>>) -> Result<Option<KeepAlive>, Rejection> {
    let Some(value) = value else { return Ok(None) };
    let seconds = match value.kind() {
        JsonKind::Null => return Ok(None),
        JsonKind::Number => {
            let number = value.number().and_then(|number| number.as_f64());
            number.ok_or_else(|| Rejection::bad_request(format!("keep_alive {} is out of range", value.shown())))?
        }
        JsonKind::String => duration_seconds(&value.text()?)?,
        other => {
            let kind = match other {
                JsonKind::Bool => "bool",
                JsonKind::Array => "[]interface {}",
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
    let invalid = || Rejection::bad_request(format!("time: invalid duration {:?}", shown(text)));
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
            "" => return Err(Rejection::bad_request(format!("time: missing unit in duration {:?}", shown(text)))),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            unit => {
                let (unit, text) = (shown(unit), shown(text));
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
pub(super) fn think(value: Option<RawJson<'_>>) -> Result<Option<ThinkMode>, Rejection> {
    let Some(value) = value else { return Ok(None) };
    match value.kind() {
        JsonKind::Null => Ok(None),
        JsonKind::Bool if value.is_true() => Ok(Some(ThinkMode::On(ThinkLevel::Medium))),
        JsonKind::Bool => Ok(Some(ThinkMode::Off)),
        JsonKind::String => match value.text()? {
            word if think_level(&word).is_some() => Ok(think_level(&word).map(ThinkMode::On)),
            word => Err(Rejection::bad_request(format!(
                "invalid think value: {:?} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)",
                shown(&word)
            ))),
        },
        _ => Err(Rejection::bad_request(
            "think must be a boolean or string (\"high\", \"medium\", \"low\", \"max\", true, or false)",
        )),
    }
}

/// What the text must look like.
///
/// # Errors
/// 500, as Ollama has it.
pub(super) fn format(value: Option<RawJson<'_>>) -> Result<Format, Rejection> {
    let Some(value) = value else { return Ok(Format::Text) };
    let given = match value.kind() {
        JsonKind::Null => return Ok(Format::Text),
        JsonKind::Object => return value.free_form().map(JsonText).map(Format::JsonSchema),
        JsonKind::String => match value.text()? {
            word if word.is_empty() => return Ok(Format::Text),
            word if word == "json" => return Ok(Format::Json),
            word => shown(&word).to_owned(),
        },
        _ => value.shown(),
    };
    Err(Rejection::internal(format!("invalid format: {given:?}; expected \"json\" or a valid JSON Schema object")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::dialect::json::JsonBody;

    fn read<T>(value: &Value, take: fn(Option<RawJson<'_>>) -> Result<T, Rejection>) -> Result<T, Rejection> {
        let text = value.to_string();
        take(Some(JsonBody::new(text.as_bytes()).root("")?))
    }

    fn think(value: Value) -> Result<Option<ThinkMode>, Rejection> {
        read(&value, super::think)
    }

    fn format(value: Value) -> Result<Format, Rejection> {
        read(&value, super::format)
    }

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
            let found = read(&value, keep_alive);
            assert_eq!(found, expected.map_err(Rejection::bad_request), "{value}");
        }
    }

    #[test]
    fn think_and_format_refuse_what_ollama_refuses() {
        assert_eq!(think(json!(true)), Ok(Some(ThinkMode::On(ThinkLevel::Medium))));
        assert_eq!(think(json!("max")), Ok(Some(ThinkMode::On(ThinkLevel::Max))));
        assert_eq!(think(json!(false)), Ok(Some(ThinkMode::Off)));
        let text = "invalid think value: \"x\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)";
        assert_eq!(think(json!("x")), Err(Rejection::bad_request(text)));
        assert_eq!(think(json!(1)).unwrap_err().status, 400);
        assert_eq!(format(json!("")), Ok(Format::Text));
        assert_eq!(format(json!("json")), Ok(Format::Json));
        let schema = json!({"type": "object", "b": 1, "a": 2});
        let kept = JsonText("{\"type\":\"object\",\"b\":1,\"a\":2}".into());
        assert_eq!(format(schema), Ok(Format::JsonSchema(kept)));
        let text = "invalid format: \"x\"; expected \"json\" or a valid JSON Schema object";
        assert_eq!(format(json!("x")), Err(Rejection::internal(text)));
        assert_eq!(format(json!(3)).unwrap_err().status, 500);
    }
}
