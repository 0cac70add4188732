//! Replies of `/v1/embeddings`.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ollmlx_proto::Embeddings;
use serde_json::Value;

use crate::dialect::vectors::{VectorWire, vector_text};
use crate::dialect::{Call, CallBody, Meta, Rejection};

/// How a call wants its vectors. As in Ollama, whatever the engine says against it is 400.
pub(super) fn wire(call: &Call) -> VectorWire {
    let reply: fn(&Meta, Option<&Embeddings>) -> Result<String, Rejection> = match call.body {
        CallBody::Embed { base64: true, .. } => |meta, embeddings| reply(meta, embeddings, base64_text),
        _ => |meta, embeddings| reply(meta, embeddings, vector_text),
    };
    VectorWire { reply, engine_status: 400 }
}

fn base64_text(vector: &[f32]) -> Result<String, Rejection> {
    let bytes: Vec<u8> = vector.iter().flat_map(|component| component.to_le_bytes()).collect();
    Ok(format!("\"{}\"", BASE64_STANDARD.encode(bytes)))
}

/// The reply; `text` writes a vector.
///
/// # Errors
/// 400 where a vector has a component that JSON can't say.
fn reply(
    meta: &Meta,
    embeddings: Option<&Embeddings>,
    text: fn(&[f32]) -> Result<String, Rejection>,
) -> Result<String, Rejection> {
    let one = |(index, vector): (usize, &Vec<f32>)| {
        let shown = text(vector)?;
        Ok(format!("{{\"object\":\"embedding\",\"embedding\":{shown},\"index\":{index}}}"))
    };
    let vectors = embeddings.map_or(&[][..], |embeddings| embeddings.vectors.as_slice());
    let data = vectors.iter().enumerate().map(one).collect::<Result<Vec<_>, Rejection>>()?;
    let (model, tokens) =
        (Value::from(meta.model.as_str()), embeddings.map_or(0, |embeddings| embeddings.prompt_tokens));
    Ok(format!(
        "{{\"object\":\"list\",\"data\":[{}],\"model\":{model},\
         \"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}",
        data.join(",")
    ))
}
