//! What the dialects share about tools, images and roles of messages.

use std::borrow::Cow;

use base64::DecodeError;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use ollmlx_proto::{JsonText, Message, PastToolCall, Role, ToolSpec};

use super::Rejection;
use super::fields::{Fields, ObjectShape};
use super::json::{JsonBody, JsonKind, RawJson, is_object};
use crate::limits::{CALL_ID_BYTES_MAX, CALLS_LOOKED_BACK_MAX, ROLE_BYTES_MAX};

/// Messages that few models have more of.
const MODEL_MESSAGES: usize = 16;

const CALL: ObjectShape = ObjectShape { kind: "ToolCall", names: "id function" };
const FUNCTION: ObjectShape = ObjectShape { kind: "ToolCallFunction", names: "name arguments" };

/// An empty conversation with room for so many messages, and for those that a model brings: they are put before them.
pub(super) fn conversation(count: usize, body: &JsonBody<'_>) -> Result<Vec<Message>, Rejection> {
    body.list(count.saturating_add(MODEL_MESSAGES))
}

/// Takes who speaks.
pub(super) fn role(fields: &mut Fields<'_>) -> Result<Role, Rejection> {
    let word = fields.text("role")?.unwrap_or_default();
    if word.len() > ROLE_BYTES_MAX {
        return Err(Rejection::bad_request(format!("the role of a message has at most {ROLE_BYTES_MAX} bytes")));
    }
    Ok(match word.to_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            fields.body.charge(other.len())?;
            Role::Other(other.to_owned())
        }
    })
}

/// A tool of a request in OpenAI's shape, which is Ollama's as well.
pub(super) fn spec(tool: RawJson<'_>) -> Result<ToolSpec, Rejection> {
    let name = tool.get("function").and_then(|function| function.get("name"));
    match name.filter(|name| name.kind() == JsonKind::String && !name.is_empty_text()) {
        Some(name) => Ok(ToolSpec { name: name.string()?, definition: JsonText(tool.free_form()?) }),
        None => Err(Rejection::bad_request("tool without a function name")),
    }
}

/// A call of an earlier turn: `{id?, function: {name, arguments}}`, arguments an object or its text.
pub(super) fn past_call(call: RawJson<'_>) -> Result<PastToolCall, Rejection> {
    let mut fields = Fields::of(call, &CALL)?;
    let id = fields.filled("id")?;
    let mut function = fields.inner("function", &FUNCTION)?;
    let name = function.string("name")?.unwrap_or_default();
    let refused = || Rejection::bad_request("invalid tool call arguments");
    let arguments = match function.value("arguments") {
        None => no_arguments(fields.body)?,
        Some(object) if object.kind() == JsonKind::Object => object.free_form()?,
        Some(text) if text.kind() == JsonKind::String => {
            let text = text.string()?;
            if matches!(text.trim(), "" | "null") {
                no_arguments(fields.body)?
            } else if is_object(&text) {
                fields.body.count_values(text.as_bytes())?;
                text
            } else {
                return Err(refused());
            }
        }
        Some(_) => return Err(refused()),
    };
    Ok(PastToolCall { id, name, arguments: JsonText(arguments) })
}

/// The arguments of a call without any.
pub(super) fn no_arguments(body: &JsonBody<'_>) -> Result<String, Rejection> {
    body.charge(2)?;
    Ok("{}".to_owned())
}

/// The tool that an earlier call with this id went to.
pub(super) fn called(messages: &[Message], id: &str, body: &JsonBody<'_>) -> Result<Option<String>, Rejection> {
    if id.len() > CALL_ID_BYTES_MAX {
        return Ok(None);
    }
    let recent = messages.iter().rev().take(CALLS_LOOKED_BACK_MAX);
    let mut calls = recent.flat_map(|message| &message.tool_calls).take(CALLS_LOOKED_BACK_MAX);
    let Some(call) = calls.find(|call| call.id.as_deref() == Some(id)) else { return Ok(None) };
    body.charge(call.name.len())?;
    Ok(Some(call.name.clone()))
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
pub(super) fn base64(text: Cow<'_, str>, body: &JsonBody<'_>) -> Result<Vec<u8>, Rejection> {
    let text = without_line_breaks(text);
    body.charge(text.len().div_ceil(4) * 3)?;
    BASE64_STANDARD.decode(&*text).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
        };
        Rejection::bad_request(format!("illegal base64 data at input byte {at}"))
    })
}

/// A text with line breaks in it had escapes, so it is no part of a body, and another copy is not made.
pub(super) fn without_line_breaks(text: Cow<'_, str>) -> Cow<'_, str> {
    if !text.contains(['\n', '\r']) {
        return text;
    }
    let mut text = text.into_owned();
    text.retain(|letter| !matches!(letter, '\n' | '\r'));
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn arguments_come_as_object_or_text() {
        for (arguments, expected) in [
            (json!({"b": 6, "a": 7}), Some(r#"{"b":6,"a":7}"#)),
            (json!("{\"a\":6}"), Some(r#"{"a":6}"#)),
            (json!({}), Some("{}")),
            (json!(""), Some("{}")),
            (json!(" null "), Some("{}")),
            (Value::Null, Some("{}")),
            (json!("{\"a\":"), None),
            (json!([1]), None),
        ] {
            let call = json!({"function": {"name": "mul", "arguments": arguments}}).to_string();
            let call = JsonBody::new(call.as_bytes()).root("").and_then(past_call);
            assert_eq!(call.ok().map(|call| call.arguments.0).as_deref(), expected);
        }
    }

    #[test]
    fn a_result_finds_its_call_unless_the_id_is_longer_than_any() {
        let call = |id: &str| {
            let text = json!({"id": id, "function": {"name": "mul"}}).to_string();
            JsonBody::new(text.as_bytes()).root("").and_then(past_call).unwrap()
        };
        for (length, expected) in [(CALL_ID_BYTES_MAX, Some("mul")), (CALL_ID_BYTES_MAX + 1, None)] {
            let id = "x".repeat(length);
            let turn = Message {
                role: Role::Assistant,
                content: Vec::new(),
                thinking: None,
                tool_calls: vec![call(&id)],
                tool_name: None,
                tool_call_id: None,
            };
            assert_eq!(called(&[turn], &id, &JsonBody::new(b"")).unwrap().as_deref(), expected);
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
        let body = JsonBody::new(b"");
        let base64 = |text: &'static str| base64(text.into(), &body);
        assert_eq!(base64("aGk=").unwrap(), b"hi");
        assert_eq!(base64("aG\nk=").unwrap(), b"hi");
        assert_eq!(base64("aG!=").unwrap_err().message, "illegal base64 data at input byte 2");
        assert_eq!(base64("data:image/png;base64,aGk=").unwrap_err().message, "illegal base64 data at input byte 4");
    }
}
