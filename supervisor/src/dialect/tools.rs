//! What the dialects share about tools, images and roles of messages.

use base64::DecodeError;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use ollmlx_proto::{JsonText, PastToolCall, Role, ToolSpec};
use serde_json::{Map, Value};

use super::Rejection;
use super::json::Fields;

/// Who speaks, from a client's word.
pub(super) fn role(word: &str) -> Role {
    match word.to_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => Role::Other(other.to_owned()),
    }
}

/// The tools of a request in OpenAI's shape, which is Ollama's as well.
pub(super) fn specs(tools: Vec<Value>) -> Result<Vec<ToolSpec>, Rejection> {
    tools.into_iter().map(spec).collect()
}

fn spec(tool: Value) -> Result<ToolSpec, Rejection> {
    let name = tool.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
    match name {
        Some(name) if !name.is_empty() => {
            Ok(ToolSpec { name: name.to_owned(), definition: JsonText(tool.to_string()) })
        }
        _ => Err(Rejection::bad_request("tool without a function name")),
    }
}

/// A call of an earlier turn: `{id?, function: {name, arguments}}`, arguments an object or its text.
pub(super) fn past_call(call: Value) -> Result<PastToolCall, Rejection> {
    let mut fields = Fields::of_value(call, "ToolCall")?;
    let id = fields.filled("id")?;
    let mut function = Fields::of(fields.object("function")?, "ToolCallFunction");
    let name = function.string("name")?.unwrap_or_default();
    let arguments = match function.value("arguments") {
        None => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        Some(Value::String(text)) => {
            let parsed: Result<Map<String, Value>, _> = serde_json::from_str(&text);
            parsed.map_err(|_| Rejection::bad_request("invalid tool call arguments"))?;
            text
        }
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return Err(Rejection::bad_request("invalid tool call arguments")),
    };
    Ok(PastToolCall { id, name, arguments: JsonText(arguments) })
}

/// The id of a call: `call_` and eight of `[a-z0-9]`, a function of the request's seed and the call's index.
pub(super) fn call_id(seed: u64, index: u32) -> String {
    format!("call_{}", letters(seed, index, 8))
}

/// Letters and digits that look random: SplitMix64 over the seed and an index.
pub(super) fn letters(seed: u64, index: u32, length: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut state = seed.wrapping_add(u64::from(index).wrapping_mul(0xD1B5_4A32_D192_ED03));
    (0..length)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            char::from(ALPHABET[((mixed ^ (mixed >> 31)) % 36) as usize])
        })
        .collect()
}

/// Standard base64 with padding; line breaks are ignored, as in Go.
pub(super) fn base64(text: &str) -> Result<Vec<u8>, Rejection> {
    let decoded = if text.contains(['\n', '\r']) {
        BASE64_STANDARD.decode(text.replace(['\n', '\r'], ""))
    } else {
        BASE64_STANDARD.decode(text)
    };
    decoded.map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
        };
        Rejection::bad_request(format!("illegal base64 data at input byte {at}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_come_as_object_or_text() {
        for (arguments, expected) in [
            (json!({"b": 6, "a": 7}), Some(r#"{"b":6,"a":7}"#)),
            (json!("{\"a\":6}"), Some(r#"{"a":6}"#)),
            (json!({}), Some("{}")),
            (json!(""), Some("{}")),
            (Value::Null, Some("{}")),
            (json!("{\"a\":"), None),
            (json!([1]), None),
        ] {
            let call = past_call(json!({"function": {"name": "mul", "arguments": arguments}}));
            assert_eq!(call.ok().map(|call| call.arguments.0).as_deref(), expected);
        }
    }

    #[test]
    fn ids_of_calls_differ_and_have_ollamas_shape() {
        let (first, second) = (call_id(9, 0), call_id(9, 1));
        assert_ne!(first, second);
        assert_eq!(first.len(), 13);
        assert!(first[5..].bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_eq!(first, call_id(9, 0));
    }

    #[test]
    fn bad_base64_names_the_byte() {
        assert_eq!(base64("aGk=").unwrap(), b"hi");
        assert_eq!(base64("aG\nk=").unwrap(), b"hi");
        assert_eq!(base64("aG!=").unwrap_err().message, "illegal base64 data at input byte 2");
        assert_eq!(base64("data:image/png;base64,aGk=").unwrap_err().message, "illegal base64 data at input byte 4");
    }
}
