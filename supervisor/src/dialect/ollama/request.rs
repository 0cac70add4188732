//! Requests of the native dialect that work with a model: generate, chat, embed, embeddings.

use ollmlx_proto::{ContentPart, Message, TokenId};

use super::values;
use crate::dialect::fields::{Fields, ObjectShape};
use crate::dialect::json::{JsonBody, JsonKind, RawJson};
use crate::dialect::values::logprobs;
use crate::dialect::vectors::{dimensions, inputs};
use crate::dialect::{Call, CallBody, Rejection, options, tools};
use crate::limits::CONTEXT_TOKENS_MAX;
use crate::types::KeepAlive;

const GENERATE: ObjectShape = ObjectShape {
    kind: "GenerateRequest",
    names: "model stream keep_alive options think truncate shift _debug_render_only logprobs top_logprobs format \
        prompt system template suffix raw context images",
};
const CHAT: ObjectShape = ObjectShape {
    kind: "ChatRequest",
    names: "model stream keep_alive options think truncate shift _debug_render_only logprobs top_logprobs format \
        messages tools",
};
const EMBED: ObjectShape =
    ObjectShape { kind: "EmbedRequest", names: "model keep_alive options input truncate dimensions" };
const EMBEDDINGS: ObjectShape = ObjectShape { kind: "EmbeddingRequest", names: "model keep_alive options prompt" };
const MESSAGE: ObjectShape =
    ObjectShape { kind: "Message", names: "role content images thinking tool_calls tool_name tool_call_id" };

/// Ollama's text for an empty body.
pub(super) const MISSING: &str = "missing request body";

/// `POST /api/generate`.
///
/// # Errors
/// What the body alone makes wrong.
pub fn generate(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &GENERATE, MISSING)?;
    let mut call = common(&mut fields)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let body = CallBody::Generate {
        system: fields.filled("system")?,
        template: fields.filled("template")?,
        suffix: fields.filled("suffix")?,
        raw: fields.boolean("raw")?.unwrap_or(false),
        context: context(fields.array("context")?)?,
        images: fields.list("images", image)?,
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
pub fn chat(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &CHAT, MISSING)?;
    let mut call = common(&mut fields)?;
    let messages = match fields.array("messages")? {
        Some(list) => {
            let mut messages = tools::conversation(list.elements().count(), fields.body)?;
            for one in list.elements() {
                messages.push(message(one)?);
            }
            messages
        }
        None => Vec::new(),
    };
    let tools = fields.list("tools", tools::spec)?;
    call.body = if messages.is_empty() { load_or_unload(call.keep_alive) } else { CallBody::Chat { messages, tools } };
    Ok(call)
}

/// `POST /api/embed`. Without any input it is a load.
///
/// # Errors
/// What the body alone makes wrong.
pub fn embed(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &EMBED, MISSING)?;
    let mut call = embed_common(&mut fields)?;
    let input = fields.value("input").filter(|input| !input.is_empty_text());
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
pub fn embeddings(body: &JsonBody<'_>) -> Result<Call, Rejection> {
    let mut fields = Fields::read(body, &EMBEDDINGS, MISSING)?;
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
fn common(fields: &mut Fields<'_>) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.model_name("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = fields.boolean("stream")?.unwrap_or(true);
    call.keep_alive = values::keep_alive(fields.value("keep_alive"))?;
    call.options = options::read(fields.object("options")?)?;
    call.think = values::think(fields.value("think"))?;
    call.truncate = fields.boolean("truncate")?.unwrap_or(true);
    call.shift = fields.boolean("shift")?;
    call.render_only = fields.boolean("_debug_render_only")?.unwrap_or(false);
    call.logprobs = logprobs(fields.boolean("logprobs")?, fields.integer("top_logprobs")?)?;
    call.format = values::format(fields.value("format"))?;
    Ok(call)
}

fn embed_common(fields: &mut Fields<'_>) -> Result<Call, Rejection> {
    let mut call = Call::new(fields.model_name("model")?.unwrap_or_default(), CallBody::Load);
    call.stream = false;
    call.keep_alive = values::keep_alive(fields.value("keep_alive"))?;
    call.options = options::read(fields.object("options")?)?;
    Ok(call)
}

fn load_or_unload(keep_alive: Option<KeepAlive>) -> CallBody {
    match keep_alive {
        Some(KeepAlive::Unload) => CallBody::Unload,
        _ => CallBody::Load,
    }
}

/// One message of a chat, also of a `create`.
pub(super) fn message(value: RawJson<'_>) -> Result<Message, Rejection> {
    let mut fields = Fields::of(value, &MESSAGE)?;
    let role = tools::role(&mut fields)?;
    let text = fields.filled("content")?;
    let images = fields.array("images")?;
    let count = usize::from(text.is_some()) + images.map_or(0, |images| images.elements().count());
    let mut content = fields.body.list(count)?;
    content.extend(text.map(ContentPart::Text));
    for one in images.into_iter().flat_map(RawJson::elements) {
        content.push(ContentPart::Image(image(one)?));
    }
    Ok(Message {
        role,
        content,
        thinking: fields.filled("thinking")?,
        tool_calls: fields.list("tool_calls", tools::past_call)?,
        tool_name: fields.filled("tool_name")?,
        tool_call_id: fields.filled("tool_call_id")?,
    })
}

fn image(value: RawJson<'_>) -> Result<Vec<u8>, Rejection> {
    if value.kind() != JsonKind::String {
        let kind = value.kind().name();
        let text = format!("json: cannot unmarshal {kind} into Go struct field .images of type api.ImageData");
        return Err(Rejection::bad_request(text));
    }
    // It is a part of a message sooner or later.
    value.body.charge(size_of::<ContentPart>())?;
    tools::base64(value.text()?, value.body)
}

fn context(tokens: Option<RawJson<'_>>) -> Result<Vec<TokenId>, Rejection> {
    let Some(tokens) = tokens else { return Ok(Vec::new()) };
    let most = CONTEXT_TOKENS_MAX as usize;
    let count = tokens.elements().count();
    if count > most {
        return Err(Rejection::bad_request(format!("invalid context: {count} tokens of at most {most}")));
    }
    tokens.list(|value| {
        // An engine's ids have 31 bits.
        let id = value.number().and_then(|number| number.as_u64()).and_then(|id| TokenId::try_from(id).ok());
        let id = id.filter(|id| *id <= i32::MAX.unsigned_abs());
        id.ok_or_else(|| Rejection::bad_request(format!("invalid context: {} is not a token id", value.shown())))
    })
}
