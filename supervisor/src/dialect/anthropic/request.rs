//! Requests of Anthropic's dialect.
//!
//! A message of content blocks becomes at most one native message and, before it, one tool message per
//! `tool_result`. Blocks and fields of unknown types are dropped; server tools (`web_search…`) are not offered.

use ollmlx_proto::{ContentPart, JsonText, Message, PastToolCall, Role, ThinkLevel, ThinkMode, ToolSpec};

use crate::dialect::fields::{Fields, ObjectShape};
use crate::dialect::json::{JsonBody, JsonKind, RawJson, shown};
use crate::dialect::options::stop_strings;
use crate::dialect::{Call, CallBody, Rejection, tools};

const MESSAGES: ObjectShape = ObjectShape {
    kind: "MessagesRequest",
    names: "model max_tokens messages system tools tool_choice stream temperature top_p top_k stop_sequences \
        thinking output_config",
};
const TURN: ObjectShape = ObjectShape { kind: "MessageParam", names: "role content" };
const BLOCK: ObjectShape =
    ObjectShape { kind: "ContentBlock", names: "type text source thinking id name input tool_use_id content" };
const SOURCE: ObjectShape = ObjectShape { kind: "ImageSource", names: "type data" };
const TOOL: ObjectShape = ObjectShape { kind: "Tool", names: "type name description input_schema" };
const TOOL_CHOICE: ObjectShape = ObjectShape { kind: "ToolChoice", names: "type" };
const THINKING: ObjectShape = ObjectShape { kind: "ThinkingConfig", names: "type" };
const OUTPUT_CONFIG: ObjectShape = ObjectShape { kind: "OutputConfig", names: "effort" };

/// `POST /v1/messages`.
///
/// # Errors
/// What the body alone makes wrong, always 400.
pub fn messages(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &MESSAGES, "EOF")?;
    let model = fields.model_name("model")?.filter(|model| !model.is_empty());
    let model = model.ok_or_else(|| Rejection::bad_request("model is required"))?;
    let max_tokens = fields.integer("max_tokens")?.filter(|count| *count > 0);
    let max_tokens = max_tokens.ok_or_else(|| Rejection::bad_request("max_tokens is required and must be positive"))?;
    let turns = fields.array("messages")?.filter(|turns| turns.elements().next().is_some());
    let turns = turns.ok_or_else(|| Rejection::bad_request("messages is required"))?;
    let mut messages = tools::conversation(count(turns)?, fields.body)?;
    if let Some(text) = system(fields.value("system"))? {
        messages.push(message(Role::System, text_part(text, fields.body)?));
    }
    for turn in turns.elements() {
        append(&mut messages, Fields::of(turn, &TURN)?)?;
    }
    let mut tools = specs(fields.array("tools")?)?;
    if fields.inner("tool_choice", &TOOL_CHOICE)?.text("type")?.as_deref() == Some("none") {
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
    let stop = fields.array("stop_sequences")?.into_iter().flat_map(RawJson::elements);
    let mut stop = stop.filter(|value| value.kind() == JsonKind::String).peekable();
    if stop.peek().is_some() {
        call.options.insert("stop".into(), stop_strings(stop)?);
    }
    call.think = think(&mut fields)?;
    call.think_if_able = true;
    Ok(call)
}

fn think(fields: &mut Fields<'_>) -> Result<Option<ThinkMode>, Rejection> {
    let thinking = fields.inner("thinking", &THINKING)?.text("type")?;
    let effort = fields.inner("output_config", &OUTPUT_CONFIG)?.text("effort")?;
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

/// How many messages these turns become: one each at most, and one for each result.
fn count(turns: RawJson<'_>) -> Result<usize, Rejection> {
    let mut count = 1;
    for turn in turns.elements() {
        let content = Fields::of(turn, &TURN)?.value("content");
        let results = content.into_iter().flat_map(RawJson::elements).filter(|block| is_a(*block, "tool_result"));
        count += 1 + results.count();
    }
    Ok(count)
}

/// The system text: one, or blocks whose texts are joined.
fn system(value: Option<RawJson<'_>>) -> Result<Option<String>, Rejection> {
    let Some(value) = value else { return Ok(None) };
    let text = match value.kind() {
        JsonKind::String => value.string()?,
        JsonKind::Array => joined_text(value)?,
        _ => return Err(Rejection::bad_request("system must be a string or an array of text blocks")),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The texts of all blocks that have one.
fn joined_text(blocks: RawJson<'_>) -> Result<String, Rejection> {
    let texts =
        || blocks.elements().filter_map(|block| block.get("text")).filter(|text| text.kind() == JsonKind::String);
    let most = texts().map(RawJson::size).sum();
    blocks.body.charge(most)?;
    let mut joined = String::with_capacity(most);
    for text in texts() {
        joined += &text.text()?;
    }
    joined.shrink_to_fit();
    Ok(joined)
}

fn specs(list: Option<RawJson<'_>>) -> Result<Vec<ToolSpec>, Rejection> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let mut specs = list.body.list(list.elements().count())?;
    for value in list.elements() {
        let mut fields = Fields::of(value, &TOOL)?;
        if fields.text("type")?.is_some_and(|kind| kind.starts_with("web_search")) {
            continue;
        }
        specs.push(spec(&mut fields)?);
    }
    Ok(specs)
}

/// A tool in the shape that templates know.
fn spec(fields: &mut Fields<'_>) -> Result<ToolSpec, Rejection> {
    const BEFORE: &[u8] = br#"{"type":"function","function":{"name":"#;
    const DESCRIPTION: &[u8] = br#","description":"#;
    const PARAMETERS: &[u8] = br#","parameters":"#;
    const NO_PARAMETERS: &[u8] = br#"{"type":"object","properties":{}}"#;
    let mut text = |name: &'static str| match fields.value(name) {
        Some(text) if text.kind() == JsonKind::String => Ok(Some(text).filter(|text| !text.is_empty_text())),
        Some(_) => Err(Rejection::bad_request(format!("the {name} of a tool must be a text"))),
        None => Ok(None),
    };
    let name = text("name")?.ok_or_else(|| Rejection::bad_request("tool without a name"))?;
    let description = text("description")?;
    let schema = fields.value("input_schema");
    if let Some(other) = schema.filter(|schema| schema.kind() != JsonKind::Object) {
        let (name, kind) = (name.shown(), other.kind().name());
        let text = format!("invalid input_schema for tool {name}: {kind} instead of an object");
        return Err(Rejection::bad_request(text));
    }
    let own = BEFORE.len() + DESCRIPTION.len() + PARAMETERS.len() + NO_PARAMETERS.len() + 2;
    let sizes = [Some(name), description, schema].into_iter().flatten().map(RawJson::size).sum::<usize>();
    let mut definition: Vec<u8> = fields.body.list(own + sizes)?;
    definition.extend_from_slice(BEFORE);
    name.write_to(&mut definition)?;
    if let Some(description) = description {
        definition.extend_from_slice(DESCRIPTION);
        description.write_to(&mut definition)?;
    }
    definition.extend_from_slice(PARAMETERS);
    match schema {
        Some(schema) => schema.write_to(&mut definition)?,
        None => definition.extend_from_slice(NO_PARAMETERS),
    }
    definition.extend_from_slice(b"}}");
    Ok(ToolSpec { name: name.string()?, definition: JsonText(fields.body.utf8(definition)?) })
}

fn message(role: Role, content: Vec<ContentPart>) -> Message {
    Message { role, content, thinking: None, tool_calls: Vec::new(), tool_name: None, tool_call_id: None }
}

fn append(messages: &mut Vec<Message>, mut fields: Fields<'_>) -> Result<(), Rejection> {
    let role = tools::role(&mut fields)?;
    let body = fields.body;
    let blocks = match fields.value("content") {
        Some(text) if text.kind() == JsonKind::String => {
            messages.push(message(role, text_part(text.string()?, body)?));
            return Ok(());
        }
        Some(blocks) if blocks.kind() == JsonKind::Array => Some(blocks),
        None => None,
        Some(_) => return Err(Rejection::bad_request("invalid message content type")),
    };
    let elements = || blocks.into_iter().flat_map(RawJson::elements);
    let only_results = elements().next().is_some() && elements().all(|block| is_a(block, "tool_result"));
    let mut turn = message(role, Vec::new());
    turn.tool_calls = body.list(elements().filter(|block| is_a(*block, "tool_use")).count())?;
    let mut images = body.list(elements().filter(|block| is_a(*block, "image")).count())?;
    let mut text = String::new();
    for block in elements() {
        let mut fields = Fields::of(block, &BLOCK)?;
        match &*fields.text("type")?.unwrap_or_default() {
            "text" => {
                let more = fields.text("text")?.unwrap_or_default();
                body.charge(more.len())?;
                text += &more;
            }
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
    turn.content = content(text, images, body)?;
    if !only_results {
        messages.push(turn);
    }
    Ok(())
}

fn is_a(block: RawJson<'_>, kind: &str) -> bool {
    let found = block.get("type").filter(|found| found.kind() == JsonKind::String);
    found.is_some_and(|found| *found.name() == *kind.as_bytes())
}

fn text_part(text: String, body: &JsonBody<'_>) -> Result<Vec<ContentPart>, Rejection> {
    content(text, Vec::new(), body)
}

/// A text, unless it is empty, and images.
fn content(text: String, images: Vec<ContentPart>, body: &JsonBody<'_>) -> Result<Vec<ContentPart>, Rejection> {
    let text = Some(text).filter(|text| !text.is_empty());
    let mut content = body.list(usize::from(text.is_some()) + images.len())?;
    content.extend(text.map(ContentPart::Text));
    content.extend(images);
    Ok(content)
}

fn image(fields: &mut Fields<'_>) -> Result<ContentPart, Rejection> {
    let refusal = || Rejection::bad_request("invalid image source");
    let source = fields.value("source").filter(|source| source.kind() == JsonKind::Object).ok_or_else(refusal)?;
    let mut source = Fields::of(source, &SOURCE)?;
    let kind = source.text("type")?.unwrap_or_default();
    if kind != "base64" {
        let kind = shown(&kind);
        let text = format!("invalid image source type: {kind}. Only base64 images are supported.");
        return Err(Rejection::bad_request(text));
    }
    let data = source.text("data")?.ok_or_else(refusal)?;
    tools::base64(data, fields.body).map(ContentPart::Image).map_err(|error| match error.status {
        400 => Rejection::bad_request(format!("invalid base64 image data: {}", error.message)),
        _ => error,
    })
}

fn tool_use(fields: &mut Fields<'_>) -> Result<PastToolCall, Rejection> {
    let missing = |name| Rejection::bad_request(format!("tool_use block missing required '{name}' field"));
    let id = fields.filled("id")?.ok_or_else(|| missing("id"))?;
    let name = fields.filled("name")?.ok_or_else(|| missing("name"))?;
    let input = match fields.object("input")? {
        Some(input) => input.free_form()?,
        None => tools::no_arguments(fields.body)?,
    };
    Ok(PastToolCall { id: Some(id), name, arguments: JsonText(input) })
}

fn tool_result(messages: &[Message], fields: &mut Fields<'_>) -> Result<Message, Rejection> {
    let body = fields.body;
    let id = fields.filled("tool_use_id")?;
    let mut result = message(Role::Tool, Vec::new());
    if let Some(given) = fields.value("content") {
        result.content = match given.kind() {
            JsonKind::String => text_part(given.string()?, body)?,
            JsonKind::Array => {
                let shown = || given.elements().filter(|block| is_a(*block, "image"));
                let mut images = body.list(shown().count())?;
                for block in shown() {
                    images.push(image(&mut Fields::of(block, &BLOCK)?)?);
                }
                content(joined_text(given)?, images, body)?
            }
            _ => text_part(given.free_form()?, body)?,
        };
    }
    if let Some(id) = &id {
        result.tool_name = tools::called(messages, id, body)?;
    }
    result.tool_call_id = id;
    Ok(result)
}
