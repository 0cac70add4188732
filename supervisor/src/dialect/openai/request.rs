//! Requests of OpenAI's dialect (`docs/conformance.md`, OpenAI).
//!
//! `max_completion_tokens` is an alias of `max_tokens`; `tool_choice: "none"` takes the tools away, any other choice
//! is left to the model; a schema may stand inside `json_schema` or beside it. Unknown fields are ignored.

use ollmlx_proto::{Format, JsonText, Logprobs, ThinkLevel, ThinkMode};
use serde_json::{Map, Value};

use super::message::messages;
use crate::dialect::fields::{Fields, ObjectShape};
use crate::dialect::json::{JsonBody, JsonKind, RawJson, shown};
use crate::dialect::options::stop_strings;
use crate::dialect::values::{logprobs, think_level};
use crate::dialect::vectors::{dimensions, inputs};
use crate::dialect::{Call, CallBody, Rejection, tools};

const CHAT: ObjectShape = ObjectShape {
    kind: "ChatCompletionRequest",
    names: "model stream stream_options max_tokens max_completion_tokens seed temperature top_p \
        frequency_penalty presence_penalty stop messages logprobs top_logprobs response_format reasoning \
        reasoning_effort _debug_render_only tools tool_choice",
};
const COMPLETION: ObjectShape = ObjectShape {
    kind: "CompletionRequest",
    names: "model stream stream_options max_tokens max_completion_tokens seed temperature top_p \
        frequency_penalty presence_penalty stop prompt suffix logprobs",
};
const EMBED: ObjectShape = ObjectShape { kind: "EmbedRequest", names: "model input encoding_format dimensions" };
const STREAM_OPTIONS: ObjectShape = ObjectShape { kind: "StreamOptions", names: "include_usage" };
const RESPONSE_FORMAT: ObjectShape = ObjectShape { kind: "ResponseFormat", names: "type json_schema schema" };
const JSON_SCHEMA: ObjectShape = ObjectShape { kind: "JsonSchema", names: "schema" };
const REASONING: ObjectShape = ObjectShape { kind: "Reasoning", names: "effort" };

/// Go's text for an empty body, which these paths pass on.
const MISSING: &str = "EOF";

/// `POST /v1/chat/completions`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn chat(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &CHAT, MISSING)?;
    let messages = messages(fields.array("messages")?, fields.body)?;
    let mut call = common(&mut fields)?;
    for name in ["frequency_penalty", "presence_penalty"] {
        insert_number(&mut call.options, name, fields.number(name)?);
    }
    let stop = listed(fields.value("stop")).filter(|value| value.kind() == JsonKind::String);
    insert_stop(&mut call.options, stop)?;
    call.logprobs = logprobs(fields.boolean("logprobs")?, fields.integer("top_logprobs")?)?;
    call.format = response_format(&mut fields)?;
    call.think = effort(&mut fields)?;
    call.render_only = fields.boolean("_debug_render_only")?.unwrap_or(false);
    let mut tools = fields.list("tools", tools::spec)?;
    let choice = fields.value("tool_choice").filter(|choice| choice.kind() == JsonKind::String);
    if choice.is_some_and(|choice| *choice.name() == *b"none") {
        tools.clear();
    }
    call.body = CallBody::Chat { messages, tools };
    Ok(call)
}

/// `POST /v1/completions`. An empty prompt is a load.
///
/// # Errors
/// What the body alone makes wrong.
pub fn completions(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &COMPLETION, MISSING)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let mut call = common(&mut fields)?;
    for name in ["frequency_penalty", "presence_penalty"] {
        insert_number(&mut call.options, name, Some(fields.number(name)?.unwrap_or(0.0)));
    }
    if call.options.get("top_p").and_then(Value::as_f64) == Some(0.0) {
        call.options.remove("top_p");
    }
    let stop = fields.value("stop");
    if let Some(odd) = listed(stop).find(|value| value.kind() != JsonKind::String) {
        let kind = if odd.kind() == JsonKind::Number { "float64" } else { odd.kind().name() };
        return Err(Rejection::bad_request(format!("invalid type for 'stop' field: {kind}")));
    }
    insert_stop(&mut call.options, listed(stop))?;
    call.logprobs = match fields.integer("logprobs")? {
        Some(top) if top > 0 => logprobs(Some(true), Some(top))?,
        _ => None::<Logprobs>,
    };
    let suffix = fields.filled("suffix")?;
    call.body = if prompt.is_empty() { CallBody::Load } else { CallBody::Complete { prompt, suffix } };
    Ok(call)
}

/// `POST /v1/embeddings`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn embeddings(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &EMBED, MISSING)?;
    let inputs = inputs(fields.value("input"), "invalid input")?;
    if inputs.is_empty() {
        return Err(Rejection::bad_request("invalid input"));
    }
    let encoding = fields.text("encoding_format")?.unwrap_or_default();
    let base64 = match encoding.to_ascii_lowercase().as_str() {
        "" | "float" => false,
        "base64" => true,
        _ => {
            let encoding = shown(&encoding);
            let text =
                format!("Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64'].");
            return Err(Rejection::bad_request(text));
        }
    };
    let dimensions = dimensions(&mut fields)?;
    let body = CallBody::Embed { inputs, truncate: true, dimensions, normalize: true, base64 };
    let mut call = Call::new(fields.model_name("model")?.unwrap_or_default(), body);
    call.stream = false;
    Ok(call)
}

/// What chat and completions share.
fn common(fields: &mut Fields<'_>) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.model_name("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = fields.boolean("stream")?.unwrap_or(false);
    call.openai_defaults = true;
    let mut stream_options = fields.inner("stream_options", &STREAM_OPTIONS)?;
    call.include_usage = stream_options.boolean("include_usage")?.unwrap_or(false);
    let max_tokens = match fields.integer("max_tokens")? {
        Some(count) => Some(count),
        None => fields.integer("max_completion_tokens")?,
    };
    if let Some(count) = max_tokens {
        call.options.insert("num_predict".into(), count.into());
    }
    if let Some(seed) = fields.integer("seed")? {
        call.options.insert("seed".into(), seed.into());
    }
    for name in ["temperature", "top_p"] {
        insert_number(&mut call.options, name, fields.number(name)?);
    }
    Ok(call)
}

fn insert_number(options: &mut Map<String, Value>, name: &str, number: Option<f64>) {
    if let Some(number) = number {
        options.insert(name.to_owned(), number.into());
    }
}

/// The elements of a list, or the one value.
fn listed(value: Option<RawJson<'_>>) -> impl Iterator<Item = RawJson<'_>> {
    let one = value.filter(|value| value.kind() != JsonKind::Array);
    value.into_iter().flat_map(RawJson::elements).chain(one)
}

/// An empty list says nothing: the model's own stop strings stay.
fn insert_stop<'a>(options: &mut Map<String, Value>, stop: impl Iterator<Item = RawJson<'a>>) -> Result<(), Rejection> {
    let mut stop = stop.peekable();
    if stop.peek().is_some() {
        options.insert("stop".into(), stop_strings(stop)?);
    }
    Ok(())
}

fn response_format(fields: &mut Fields<'_>) -> Result<Format, Rejection> {
    let mut format = fields.inner("response_format", &RESPONSE_FORMAT)?;
    let kind = format.text("type")?.unwrap_or_default();
    let inside = format.inner("json_schema", &JSON_SCHEMA)?.value("schema");
    let schema = match inside.or_else(|| format.value("schema")) {
        Some(schema) if schema.kind() == JsonKind::Object => Some(Format::JsonSchema(JsonText(schema.free_form()?))),
        Some(_) => return Err(Rejection::bad_request("invalid response_format: the schema must be an object")),
        None => None,
    };
    if kind.eq_ignore_ascii_case("json_object") {
        Ok(schema.unwrap_or(Format::Json))
    } else if kind.eq_ignore_ascii_case("json_schema") {
        schema.ok_or_else(|| Rejection::bad_request("invalid response_format: json_schema without a schema"))
    } else {
        Ok(Format::Text)
    }
}

/// `reasoning.effort`, or else `reasoning_effort`.
fn effort(fields: &mut Fields<'_>) -> Result<Option<ThinkMode>, Rejection> {
    let nested = fields.inner("reasoning", &REASONING)?.text("effort")?.filter(|word| !word.is_empty());
    let word = match nested {
        Some(word) => Some(word),
        None => fields.text("reasoning_effort")?.filter(|word| !word.is_empty()),
    };
    let Some(word) = word else { return Ok(None) };
    match &*word {
        "none" => Ok(Some(ThinkMode::Off)),
        "minimal" => Ok(Some(ThinkMode::On(ThinkLevel::Low))),
        "xhigh" | "ultra" => Ok(Some(ThinkMode::On(ThinkLevel::Max))),
        other => match think_level(other) {
            Some(level) => Ok(Some(ThinkMode::On(level))),
            None => Err(Rejection::bad_request(format!(
                "invalid reasoning value: {:?} (must be \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\", \
                 \"ultra\", \"max\", or \"none\")",
                shown(&word)
            ))),
        },
    }
}
