//! Messages of OpenAI's dialect to native ones.
//!
//! Where Ollama makes one native message of every part of a content array, so does this: chat templates then render
//! the same prompt (`docs/conformance.md`, OpenAI).

use std::borrow::Cow;

use ollmlx_proto::{ContentPart, Message, PastToolCall, Role};

use crate::dialect::fields::{Fields, ObjectShape};
use crate::dialect::json::{JsonBody, JsonKind, RawJson};
use crate::dialect::{Rejection, tools};

const MESSAGE: ObjectShape =
    ObjectShape { kind: "Message", names: "role tool_calls tool_call_id name reasoning reasoning_content content" };
const PART: ObjectShape = ObjectShape { kind: "ContentPart", names: "type text image_url input_audio" };
const IMAGE_URL: ObjectShape = ObjectShape { kind: "ImageURL", names: "url" };
const INPUT_AUDIO: ObjectShape = ObjectShape { kind: "InputAudio", names: "data" };
/// For a look at how many messages one becomes.
const CONTENT: ObjectShape = ObjectShape { kind: "Message", names: "content" };

/// The conversation.
///
/// # Errors
/// 400 for whatever is no message.
pub(super) fn messages(list: Option<RawJson<'_>>, body: &JsonBody<'_>) -> Result<Vec<Message>, Rejection> {
    let elements = || list.into_iter().flat_map(RawJson::elements);
    let mut count = 0;
    for value in elements() {
        let content = Fields::of(value, &CONTENT)?.value("content");
        count += content.map_or(1, |content| content.elements().count().max(1));
    }
    if count == 0 {
        return Err(Rejection::bad_request("[] is too short - 'messages'"));
    }
    let mut messages = tools::conversation(count, body)?;
    for value in elements() {
        append(&mut messages, Fields::of(value, &MESSAGE)?)?;
    }
    Ok(messages)
}

fn append(messages: &mut Vec<Message>, mut fields: Fields<'_>) -> Result<(), Rejection> {
    let role = tools::role(&mut fields)?;
    let calls: Vec<PastToolCall> = fields.list("tool_calls", tools::past_call)?;
    let tool_call_id = fields.filled("tool_call_id")?;
    let name = fields.filled("name")?;
    let reasoning = match fields.filled("reasoning")? {
        Some(text) => Some(text),
        None => fields.filled("reasoning_content")?,
    };
    let tool_name = match (&role, name, &tool_call_id) {
        (Role::Tool, Some(name), _) => Some(name),
        (Role::Tool, None, Some(id)) => tools::called(messages, id, fields.body)?,
        _ => None,
    };
    let first = messages.len();
    match fields.value("content") {
        None if calls.is_empty() => return Err(Rejection::bad_request("invalid message content type: <nil>")),
        None => messages.push(said(&role, None, fields.body)?),
        Some(text) if text.kind() == JsonKind::String => {
            let text = Some(ContentPart::Text(text.string()?));
            messages.push(said(&role, text, fields.body)?);
        }
        Some(parts) if parts.kind() == JsonKind::Array => {
            for part in parts.elements() {
                messages.push(said(&role, Some(content_part(part)?), fields.body)?);
            }
            if messages.len() == first {
                messages.push(said(&role, None, fields.body)?);
            }
        }
        Some(other) => {
            let kind = match other.kind() {
                JsonKind::Bool => "bool",
                JsonKind::Number => "float64",
                _ => "map[string]interface {}",
            };
            return Err(Rejection::bad_request(format!("invalid message content type: {kind}")));
        }
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

/// A message of one part at most. An empty text is no content: `""` beside tool calls renders like `null`.
fn said(role: &Role, part: Option<ContentPart>, body: &JsonBody<'_>) -> Result<Message, Rejection> {
    if let Role::Other(word) = role {
        body.charge(word.len())?;
    }
    let part = part.filter(|part| !matches!(part, ContentPart::Text(text) if text.is_empty()));
    let mut content = body.list(usize::from(part.is_some()))?;
    content.extend(part);
    let role = role.clone();
    Ok(Message { role, content, thinking: None, tool_calls: Vec::new(), tool_name: None, tool_call_id: None })
}

fn content_part(value: RawJson<'_>) -> Result<ContentPart, Rejection> {
    let refusal = || Rejection::bad_request("invalid message format");
    let Ok(mut fields) = Fields::of(value, &PART) else { return Err(refusal()) };
    match &*fields.text("type")?.unwrap_or_default() {
        "text" => match fields.value("text") {
            Some(text) if text.kind() == JsonKind::String => Ok(ContentPart::Text(text.string()?)),
            _ => Err(refusal()),
        },
        "image_url" => match fields.value("image_url") {
            Some(url) if url.kind() == JsonKind::String => image(url.text()?, fields.body),
            Some(object) if object.kind() == JsonKind::Object => {
                let url = Fields::of(object, &IMAGE_URL)?.text("url")?;
                image(url.ok_or_else(refusal)?, fields.body)
            }
            _ => Err(refusal()),
        },
        "input_audio" => {
            let Some(audio) = fields.value("input_audio").filter(|audio| audio.kind() == JsonKind::Object) else {
                return Err(Rejection::bad_request("invalid input_audio format"));
            };
            let data = Fields::of(audio, &INPUT_AUDIO)?.text("data")?.filter(|data| !data.is_empty());
            let data = data.ok_or_else(|| Rejection::bad_request("invalid input_audio format: missing data"))?;
            Ok(ContentPart::Image(tools::base64(data, fields.body)?))
        }
        _ => Err(refusal()),
    }
}

/// An image in a data URI.
fn image(url: Cow<'_, str>, body: &JsonBody<'_>) -> Result<ContentPart, Rejection> {
    if url.starts_with("http://") || url.starts_with("https://") {
        let text = "image URLs are not currently supported, please use base64 encoded data instead";
        return Err(Rejection::bad_request(text));
    }
    let url = tools::without_line_breaks(url);
    let refusal = || Rejection::bad_request("invalid image input");
    let (kind, data) = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).ok_or_else(refusal)?;
    if !matches!(kind, "" | "image/jpeg" | "image/jpg" | "image/png" | "image/webp") {
        return Err(refusal());
    }
    match tools::base64(Cow::Borrowed(data), body) {
        Err(error) if error.status == 400 => Err(refusal()),
        decoded => decoded.map(ContentPart::Image),
    }
}
