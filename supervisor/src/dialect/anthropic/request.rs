//! Requests of Anthropic's dialect.
//!
//! A message of content blocks becomes at most one native message and, before it, one tool message per
//! `tool_result`. Blocks and fields of unknown types are dropped; server tools (`web_search…`) are not offered.

use ollmlx_proto::{ContentPart, JsonText, Message, PastToolCall, Role, ThinkLevel, ThinkMode, ToolSpec};
use serde_json::{Map, Value, json};

use crate::dialect::json::{self, Fields};
use crate::dialect::{Call, CallBody, Rejection, tools};

/// `POST /v1/messages`.
///
/// # Errors
/// What the body alone makes wrong, always 400.
pub fn messages(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "MessagesRequest", "EOF")?;
    let model = fields.filled("model")?.ok_or_else(|| Rejection::bad_request("model is required"))?;
    let max_tokens = fields.integer("max_tokens")?.filter(|count| *count > 0);
    let max_tokens = max_tokens.ok_or_else(|| Rejection::bad_request("max_tokens is required and must be positive"))?;
    let turns = fields.array("messages")?;
    if turns.is_empty() {
        return Err(Rejection::bad_request("messages is required"));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    if let Some(text) = system(fields.value("system"))? {
        messages.push(message(Role::System, vec![ContentPart::Text(text)]));
    }
    for turn in turns {
        append(&mut messages, Fields::of_value(turn, "MessageParam")?)?;
    }
    let mut tools = specs(fields.array("tools")?)?;
    if Fields::of(fields.object("tool_choice")?, "ToolChoice").string("type")?.as_deref() == Some("none") {
        tools.clear();
    }
    let mut call = Call::new(model, CallBody::Chat { messages, tools });
    call.stream = fields.boolean("stream")?.unwrap_or(false);
    call.include_usage = true;
    call.options.insert("num_predict".into(), max_tokens.into());
    for name in ["temperature", "top_p"] {
        if let Some(number) = fields.number(name)? {
            call.options.insert(name.into(), number.into());
        }
    }
    if let Some(count) = fields.integer("top_k")? {
        call.options.insert("top_k".into(), count.into());
    }
    let stop: Vec<Value> = fields.array("stop_sequences")?.into_iter().filter(Value::is_string).collect();
    if !stop.is_empty() {
        call.options.insert("stop".into(), stop.into());
    }
    call.think = think(&mut fields)?;
    call.think_if_able = true;
    Ok(call)
}

fn think(fields: &mut Fields) -> Result<Option<ThinkMode>, Rejection> {
    let thinking = Fields::of(fields.object("thinking")?, "ThinkingConfig").filled("type")?;
    let effort = Fields::of(fields.object("output_config")?, "OutputConfig").filled("effort")?;
    Ok(match (thinking.as_deref(), effort.as_deref()) {
        (Some("enabled"), _) => Some(ThinkMode::On(ThinkLevel::Medium)),
        (Some("disabled"), _) => Some(ThinkMode::Off),
        (_, Some("low")) => Some(ThinkMode::On(ThinkLevel::Low)),
        (_, Some("medium")) => Some(ThinkMode::On(ThinkLevel::Medium)),
        (_, Some("high" | "xhigh")) => Some(ThinkMode::On(ThinkLevel::High)),
        (_, Some("max")) => Some(ThinkMode::On(ThinkLevel::Max)),
        _ => None,
    })
}

/// The system text: one, or blocks whose texts are joined.
fn system(value: Option<Value>) -> Result<Option<String>, Rejection> {
    let text = match value {
        None => return Ok(None),
        Some(Value::String(text)) => text,
        Some(Value::Array(blocks)) => joined_text(&blocks),
        Some(_) => return Err(Rejection::bad_request("system must be a string or an array of text blocks")),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn joined_text(blocks: &[Value]) -> String {
    blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str)).collect()
}

fn specs(values: Vec<Value>) -> Result<Vec<ToolSpec>, Rejection> {
    let mut specs = Vec::new();
    for value in values {
        let mut fields = Fields::of_value(value, "Tool")?;
        if fields.string("type")?.is_some_and(|kind| kind.starts_with("web_search")) {
            continue;
        }
        let name = fields.filled("name")?.ok_or_else(|| Rejection::bad_request("tool without a name"))?;
        let mut function = Map::new();
        function.insert("name".into(), name.as_str().into());
        if let Some(description) = fields.filled("description")? {
            function.insert("description".into(), description.into());
        }
        match fields.value("input_schema") {
            Some(schema @ Value::Object(_)) => drop(function.insert("parameters".into(), schema)),
            None => drop(function.insert("parameters".into(), json!({"type": "object", "properties": {}}))),
            Some(other) => {
                let kind = json::type_name(&other);
                let text = format!("invalid input_schema for tool {name:?}: {kind} instead of an object");
                return Err(Rejection::bad_request(text));
            }
        }
        let definition = json!({"type": "function", "function": function});
        specs.push(ToolSpec { name, definition: JsonText(definition.to_string()) });
    }
    Ok(specs)
}

fn message(role: Role, content: Vec<ContentPart>) -> Message {
    Message { role, content, thinking: None, tool_calls: Vec::new(), tool_name: None, tool_call_id: None }
}

fn append(messages: &mut Vec<Message>, mut fields: Fields) -> Result<(), Rejection> {
    let role = tools::role(&fields.string("role")?.unwrap_or_default());
    let blocks = match fields.value("content") {
        Some(Value::String(text)) => {
            messages.push(message(role, text_part(text)));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        None => Vec::new(),
        Some(_) => return Err(Rejection::bad_request("invalid message content type")),
    };
    let only_results = !blocks.is_empty() && blocks.iter().all(|block| kind_of(block) == "tool_result");
    let mut turn = message(role, Vec::new());
    let (mut text, mut images) = (String::new(), Vec::new());
    for block in blocks {
        let mut fields = Fields::of_value(block, "ContentBlock")?;
        match fields.string("type")?.unwrap_or_default().as_str() {
            "text" => text += &fields.string("text")?.unwrap_or_default(),
            "image" => images.push(image(&mut fields)?),
            "thinking" => turn.thinking = fields.filled("thinking")?.or(turn.thinking),
            "tool_use" => turn.tool_calls.push(tool_use(&mut fields)?),
            "tool_result" => {
                let result = tool_result(messages, &mut fields)?;
                messages.push(result);
            }
            _ => {}
        }
    }
    turn.content = text_part(text);
    turn.content.extend(images);
    if !only_results {
        messages.push(turn);
    }
    Ok(())
}

fn kind_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn text_part(text: String) -> Vec<ContentPart> {
    if text.is_empty() { Vec::new() } else { vec![ContentPart::Text(text)] }
}

fn image(fields: &mut Fields) -> Result<ContentPart, Rejection> {
    let refusal = || Rejection::bad_request("invalid image source");
    let Some(Value::Object(source)) = fields.value("source") else { return Err(refusal()) };
    let mut source = Fields::of(source, "ImageSource");
    let kind = source.string("type")?.unwrap_or_default();
    if kind != "base64" {
        let text = format!("invalid image source type: {kind}. Only base64 images are supported.");
        return Err(Rejection::bad_request(text));
    }
    let data = source.string("data")?.ok_or_else(refusal)?;
    let decoded = tools::base64(&data);
    let wrap = |error: Rejection| Rejection::bad_request(format!("invalid base64 image data: {}", error.message));
    decoded.map(ContentPart::Image).map_err(wrap)
}

fn tool_use(fields: &mut Fields) -> Result<PastToolCall, Rejection> {
    let missing = |name| Rejection::bad_request(format!("tool_use block missing required '{name}' field"));
    let id = fields.filled("id")?.ok_or_else(|| missing("id"))?;
    let name = fields.filled("name")?.ok_or_else(|| missing("name"))?;
    let input = Value::Object(fields.object("input")?);
    Ok(PastToolCall { id: Some(id), name, arguments: JsonText(input.to_string()) })
}

fn tool_result(messages: &[Message], fields: &mut Fields) -> Result<Message, Rejection> {
    let id = fields.filled("tool_use_id")?;
    let mut result = message(Role::Tool, Vec::new());
    match fields.value("content") {
        None => {}
        Some(Value::String(text)) => result.content = text_part(text),
        Some(Value::Array(blocks)) => {
            result.content = text_part(joined_text(&blocks));
            for block in blocks.into_iter().filter(|block| kind_of(block) == "image") {
                result.content.push(image(&mut Fields::of_value(block, "ContentBlock")?)?);
            }
        }
        Some(other) => result.content = text_part(other.to_string()),
    }
    let mut calls = messages.iter().rev().flat_map(|message| &message.tool_calls);
    result.tool_name = calls.find(|call| id.is_some() && call.id == id).map(|call| call.name.clone());
    result.tool_call_id = id;
    Ok(result)
}
