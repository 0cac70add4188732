//! Requests of the native dialect that work with a model: generate, chat, embed, embeddings.

use ollmlx_proto::{ContentPart, Message, TokenId};
use serde_json::Value;

use super::values;
use crate::dialect::json::{self, Fields};
use crate::dialect::values::logprobs;
use crate::dialect::vectors::{dimensions, inputs};
use crate::dialect::{Call, CallBody, Rejection, tools};
use crate::types::KeepAlive;

/// Ollama's text for an empty body.
pub(super) const MISSING: &str = "missing request body";

/// `POST /api/generate`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn generate(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "GenerateRequest", MISSING)?;
    let mut call = common(&mut fields)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let body = CallBody::Generate {
        system: fields.filled("system")?,
        template: fields.filled("template")?,
        suffix: fields.filled("suffix")?,
        raw: fields.boolean("raw")?.unwrap_or(false),
        context: context(fields.array("context")?)?,
        images: images(fields.array("images")?)?,
        prompt,
    };
    call.body = match &body {
        CallBody::Generate { prompt, .. } if prompt.is_empty() => load_or_unload(call.keep_alive),
        _ => body,
    };
    Ok(call)
}

/// `POST /api/chat`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn chat(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "ChatRequest", MISSING)?;
    let mut call = common(&mut fields)?;
    let messages = fields.array("messages")?.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let tools = tools::specs(fields.array("tools")?)?;
    call.body = if messages.is_empty() { load_or_unload(call.keep_alive) } else { CallBody::Chat { messages, tools } };
    Ok(call)
}

/// `POST /api/embed`. Without any input it is a load.
///
/// # Errors
/// What the body alone makes wrong.
pub fn embed(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "EmbedRequest", MISSING)?;
    let mut call = embed_common(&mut fields)?;
    let input = fields.value("input").filter(|input| input.as_str() != Some(""));
    let inputs = inputs(input, "invalid input type")?;
    let truncate = fields.boolean("truncate")?.unwrap_or(true);
    call.truncate = truncate;
    let dimensions = dimensions(&mut fields)?;
    if !inputs.is_empty() {
        call.body = CallBody::Embed { inputs, truncate, dimensions, normalize: true, base64: false };
    }
    Ok(call)
}

/// `POST /api/embeddings`, the old form: one text, and a vector as the model has it.
///
/// # Errors
/// What the body alone makes wrong.
pub fn embeddings(body: &[u8]) -> Result<Call, Rejection> {
    let mut fields = json::parse(body, "EmbeddingRequest", MISSING)?;
    let mut call = embed_common(&mut fields)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    call.truncate = false;
    if !prompt.is_empty() {
        let inputs = vec![prompt];
        call.body = CallBody::Embed { inputs, truncate: false, dimensions: None, normalize: false, base64: false };
    }
    Ok(call)
}

/// What generate and chat share.
fn common(fields: &mut Fields) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.string("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = fields.boolean("stream")?.unwrap_or(true);
    call.keep_alive = values::keep_alive(fields.value("keep_alive"))?;
    call.options = fields.object("options")?;
    call.think = values::think(fields.value("think"))?;
    call.truncate = fields.boolean("truncate")?.unwrap_or(true);
    call.shift = fields.boolean("shift")?;
    call.render_only = fields.boolean("_debug_render_only")?.unwrap_or(false);
    call.logprobs = logprobs(fields.boolean("logprobs")?, fields.integer("top_logprobs")?)?;
    call.format = values::format(fields.value("format"))?;
    Ok(call)
}

fn embed_common(fields: &mut Fields) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.string("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = false;
    call.keep_alive = values::keep_alive(fields.value("keep_alive"))?;
    call.options = fields.object("options")?;
    Ok(call)
}

fn load_or_unload(keep_alive: Option<KeepAlive>) -> CallBody {
    match keep_alive {
        Some(KeepAlive::Unload) => CallBody::Unload,
        _ => CallBody::Load,
    }
}

/// One message of a chat, also of a `create`.
pub(super) fn message(value: Value) -> Result<Message, Rejection> {
    let mut fields = Fields::of_value(value, "Message")?;
    let role = tools::role(&fields.string("role")?.unwrap_or_default());
    let mut content: Vec<ContentPart> = fields.filled("content")?.map(ContentPart::Text).into_iter().collect();
    content.extend(images(fields.array("images")?)?.into_iter().map(ContentPart::Image));
    Ok(Message {
        role,
        content,
        thinking: fields.filled("thinking")?,
        tool_calls: fields.array("tool_calls")?.into_iter().map(tools::past_call).collect::<Result<_, _>>()?,
        tool_name: fields.filled("tool_name")?,
        tool_call_id: fields.filled("tool_call_id")?,
    })
}

fn images(values: Vec<Value>) -> Result<Vec<Vec<u8>>, Rejection> {
    let decode = |value: Value| match value {
        Value::String(text) => tools::base64(&text),
        other => Err(Rejection::bad_request(format!(
            "json: cannot unmarshal {} into Go struct field .images of type api.ImageData",
            json::type_name(&other)
        ))),
    };
    values.into_iter().map(decode).collect()
}

fn context(values: Vec<Value>) -> Result<Vec<TokenId>, Rejection> {
    let token = |value: Value| {
        // An engine's ids have 31 bits.
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok()).filter(|id| *id <= i32::MAX.unsigned_abs());
        id.ok_or_else(|| Rejection::bad_request(format!("invalid context: {value} is not a token id")))
    };
    values.into_iter().map(token).collect()
}
