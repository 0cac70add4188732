//! Requests of OpenAI's dialect (`docs/conformance.md`, OpenAI).
//!
//! `max_completion_tokens` is an alias of `max_tokens`; `tool_choice: "none"` takes the tools away, any other choice
//! is left to the model; a schema may stand inside `json_schema` or beside it. Unknown fields are ignored.

use ollmlx_proto::{Format, JsonText, Logprobs, ThinkLevel, ThinkMode};
use serde_json::{Map, Value};

use super::message::messages;
use crate::dialect::json::{self, Fields};
use crate::dialect::values::{logprobs, think_level};
use crate::dialect::vectors::{dimensions, inputs};
use crate::dialect::{Call, CallBody, Rejection, tools};

/// Go's text for an empty body, which these paths pass on.
const MISSING: &str = "EOF";

/// `POST /v1/chat/completions`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn chat(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "ChatCompletionRequest", MISSING)?;
    let messages = messages(fields.array("messages")?)?;
    let mut call = common(&mut fields)?;
    for name in ["frequency_penalty", "presence_penalty"] {
        insert_number(&mut call.options, name, fields.number(name)?);
    }
    let stop = match fields.value("stop") {
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(values)) => values.into_iter().filter(Value::is_string).collect(),
        _ => Vec::new(),
    };
    insert_stop(&mut call.options, stop);
    call.logprobs = logprobs(fields.boolean("logprobs")?, fields.integer("top_logprobs")?)?;
    call.format = response_format(&mut fields)?;
    call.think = effort(&mut fields)?;
    call.render_only = fields.boolean("_debug_render_only")?.unwrap_or(false);
    let mut tools = tools::specs(fields.array("tools")?)?;
    if fields.value("tool_choice").as_ref().and_then(Value::as_str) == Some("none") {
        tools.clear();
    }
    call.body = CallBody::Chat { messages, tools };
    Ok(call)
}

/// `POST /v1/completions`. An empty prompt is a load.
///
/// # Errors
/// What the body alone makes wrong.
pub fn completions(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "CompletionRequest", MISSING)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let mut call = common(&mut fields)?;
    for name in ["frequency_penalty", "presence_penalty"] {
        insert_number(&mut call.options, name, Some(fields.number(name)?.unwrap_or(0.0)));
    }
    if call.options.get("top_p").and_then(Value::as_f64) == Some(0.0) {
        call.options.remove("top_p");
    }
    let stop = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    if let Some(odd) = stop.iter().find(|value| !value.is_string()) {
        let kind = if odd.is_number() { "float64" } else { json::type_name(odd) };
        return Err(Rejection::bad_request(format!("invalid type for 'stop' field: {kind}")));
    }
    insert_stop(&mut call.options, stop);
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
pub fn embeddings(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "EmbedRequest", MISSING)?;
    let inputs = inputs(fields.value("input"), "invalid input")?;
    if inputs.is_empty() {
        return Err(Rejection::bad_request("invalid input"));
    }
    let encoding = fields.string("encoding_format")?.unwrap_or_default();
    let base64 = match encoding.to_ascii_lowercase().as_str() {
        "" | "float" => false,
        "base64" => true,
        _ => {
            let text =
                format!("Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64'].");
            return Err(Rejection::bad_request(text));
        }
    };
    let dimensions = dimensions(&mut fields)?;
    let body = CallBody::Embed { inputs, truncate: true, dimensions, normalize: true, base64 };
    let mut call = Call::new(fields.string("model")?.unwrap_or_default(), body);
    call.stream = false;
    Ok(call)
}

/// What chat and completions share.
fn common(fields: &mut Fields) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.string("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = fields.boolean("stream")?.unwrap_or(false);
    call.openai_defaults = true;
    let mut stream_options = Fields::of(fields.object("stream_options")?, "StreamOptions");
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

/// An empty list says nothing: the model's own stop strings stay.
fn insert_stop(options: &mut Map<String, Value>, stop: Vec<Value>) {
    if !stop.is_empty() {
        options.insert("stop".into(), stop.into());
    }
}

fn response_format(fields: &mut Fields) -> Result<Format, Rejection> {
    let mut format = Fields::of(fields.object("response_format")?, "ResponseFormat");
    let kind = format.string("type")?.unwrap_or_default().to_ascii_lowercase();
    let inside = Fields::of(format.object("json_schema")?, "JsonSchema").value("schema");
    let schema = match inside.or_else(|| format.value("schema")) {
        Some(schema @ Value::Object(_)) => Some(Format::JsonSchema(JsonText(schema.to_string()))),
        Some(_) => return Err(Rejection::bad_request("invalid response_format: the schema must be an object")),
        None => None,
    };
    match kind.as_str() {
        "json_object" => Ok(schema.unwrap_or(Format::Json)),
        "json_schema" => {
            schema.ok_or_else(|| Rejection::bad_request("invalid response_format: json_schema without a schema"))
        }
        _ => Ok(Format::Text),
    }
}

/// `reasoning.effort`, or else `reasoning_effort`.
fn effort(fields: &mut Fields) -> Result<Option<ThinkMode>, Rejection> {
    let nested = Fields::of(fields.object("reasoning")?, "Reasoning").filled("effort")?;
    let word = match nested {
        Some(word) => word,
        None => match fields.filled("reasoning_effort")? {
            Some(word) => word,
            None => return Ok(None),
        },
    };
    match word.as_str() {
        "none" => Ok(Some(ThinkMode::Off)),
        "minimal" => Ok(Some(ThinkMode::On(ThinkLevel::Low))),
        "xhigh" | "ultra" => Ok(Some(ThinkMode::On(ThinkLevel::Max))),
        other => match think_level(other) {
            Some(level) => Ok(Some(ThinkMode::On(level))),
            None => Err(Rejection::bad_request(format!(
                "invalid reasoning value: {word:?} (must be \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\", \
                 \"ultra\", \"max\", or \"none\")"
            ))),
        },
    }
}
