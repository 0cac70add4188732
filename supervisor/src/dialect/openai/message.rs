//! Messages of OpenAI's dialect to native ones.
//!
//! Where Ollama makes one native message of every part of a content array, so does this: chat templates then render
//! the same prompt (`docs/conformance.md`, OpenAI).

use ollmlx_proto::{ContentPart, Message, PastToolCall, Role};
use serde_json::Value;

use crate::dialect::json::Fields;
use crate::dialect::{Rejection, tools};

/// The conversation.
///
/// # Errors
/// 400 for whatever is no message.
pub(super) fn messages(values: Vec<Value>) -> Result<Vec<Message>, Rejection> {
    if values.is_empty() {
        return Err(Rejection::bad_request("[] is too short - 'messages'"));
    }
    let mut messages = Vec::with_capacity(values.len());
    for value in values {
        append(&mut messages, Fields::of_value(value, "Message")?)?;
    }
    Ok(messages)
}

fn append(messages: &mut Vec<Message>, mut fields: Fields) -> Result<(), Rejection> {
    let role = tools::role(&fields.string("role")?.unwrap_or_default());
    let calls: Vec<PastToolCall> =
        fields.array("tool_calls")?.into_iter().map(tools::past_call).collect::<Result<_, _>>()?;
    let tool_call_id = fields.filled("tool_call_id")?;
    let name = fields.filled("name")?;
    let reasoning = match fields.filled("reasoning")? {
        Some(text) => Some(text),
        None => fields.filled("reasoning_content")?,
    };
    let mut contents = match fields.value("content") {
        Some(Value::String(text)) => vec![vec![ContentPart::Text(text)]],
        Some(Value::Array(parts)) => {
            parts.into_iter().map(|part| Ok(vec![content_part(part)?])).collect::<Result<Vec<_>, Rejection>>()?
        }
        None if calls.is_empty() => return Err(Rejection::bad_request("invalid message content type: <nil>")),
        None => vec![Vec::new()],
        Some(other) => {
            let kind = match other {
                Value::Bool(_) => "bool",
                Value::Number(_) => "float64",
                _ => "map[string]interface {}",
            };
            return Err(Rejection::bad_request(format!("invalid message content type: {kind}")));
        }
    };
    if contents.is_empty() {
        contents.push(Vec::new());
    }
    let tool_name = match (&role, name, &tool_call_id) {
        (Role::Tool, Some(name), _) => Some(name),
        (Role::Tool, None, Some(id)) => called(messages, id),
        _ => None,
    };
    let first = messages.len();
    for mut content in contents {
        // An empty text is no content: `""` beside tool calls renders like `null`.
        content.retain(|part| !matches!(part, ContentPart::Text(text) if text.is_empty()));
        messages.push(Message {
            role: role.clone(),
            content,
            thinking: None,
            tool_calls: Vec::new(),
            tool_name: None,
            tool_call_id: None,
        });
    }
    if let Some(message) = messages.get_mut(first) {
        message.thinking = reasoning;
    }
    if let Some(message) = messages.last_mut() {
        message.tool_calls = calls;
        message.tool_name = tool_name;
        message.tool_call_id = tool_call_id;
    }
    Ok(())
}

/// The tool that an earlier call with this id went to.
fn called(messages: &[Message], id: &str) -> Option<String> {
    let mut calls = messages.iter().rev().flat_map(|message| &message.tool_calls);
    calls.find(|call| call.id.as_deref() == Some(id)).map(|call| call.name.clone())
}

fn content_part(value: Value) -> Result<ContentPart, Rejection> {
    let Value::Object(map) = value else { return Err(Rejection::bad_request("invalid message format")) };
    let mut fields = Fields::of(map, "ContentPart");
    match fields.string("type")?.unwrap_or_default().as_str() {
        "text" => match fields.value("text") {
            Some(Value::String(text)) => Ok(ContentPart::Text(text)),
            _ => Err(Rejection::bad_request("invalid message format")),
        },
        "image_url" => match fields.value("image_url") {
            Some(Value::String(url)) => image(&url),
            Some(Value::Object(object)) => {
                let url = Fields::of(object, "ImageURL").string("url")?;
                image(&url.ok_or_else(|| Rejection::bad_request("invalid message format"))?)
            }
            _ => Err(Rejection::bad_request("invalid message format")),
        },
        "input_audio" => {
            let Some(Value::Object(audio)) = fields.value("input_audio") else {
                return Err(Rejection::bad_request("invalid input_audio format"));
            };
            let data = Fields::of(audio, "InputAudio").filled("data")?;
            let data = data.ok_or_else(|| Rejection::bad_request("invalid input_audio format: missing data"))?;
            Ok(ContentPart::Image(tools::base64(&data)?))
        }
        _ => Err(Rejection::bad_request("invalid message format")),
    }
}

/// An image in a data URI.
fn image(url: &str) -> Result<ContentPart, Rejection> {
    if url.starts_with("http://") || url.starts_with("https://") {
        let text = "image URLs are not currently supported, please use base64 encoded data instead";
        return Err(Rejection::bad_request(text));
    }
    let refusal = || Rejection::bad_request("invalid image input");
    let (kind, data) = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).ok_or_else(refusal)?;
    if !matches!(kind, "" | "image/jpeg" | "image/jpg" | "image/png" | "image/webp") {
        return Err(refusal());
    }
    tools::base64(data).map(ContentPart::Image).map_err(|_| refusal())
}
