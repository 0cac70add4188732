//! Replies of `/api/embed` and `/api/embeddings`.

use ollmlx_proto::Embeddings;
use serde_json::{Map, Value, json};

use crate::dialect::answer::{insert_positive, total_ns};
use crate::dialect::vectors::{VectorWire, vector_text};
use crate::dialect::{Meta, Rejection};

/// `/api/embed`. Ollama answers 400 to whatever the engine says against it.
pub(super) const EMBED: VectorWire = VectorWire { reply: embed_reply, engine_status: 400 };
/// `/api/embeddings`, the old form, which answers 500 there.
pub(super) const EMBEDDINGS: VectorWire = VectorWire { reply: embeddings_reply, engine_status: 500 };

/// The reply of `/api/embed`; without vectors, that of a load.
///
/// # Errors
/// 400 where a vector has a component that JSON can't say.
fn embed_reply(meta: &Meta, embeddings: Option<&Embeddings>) -> Result<String, Rejection> {
    let Some(embeddings) = embeddings else {
        return Ok(json!({"model": meta.model, "embeddings": []}).to_string());
    };
    let vectors = embeddings.vectors.iter().map(|vector| vector_text(vector)).collect::<Result<Vec<_>, _>>()?;
    let mut rest = Map::new();
    insert_positive(&mut rest, "total_duration", total_ns(meta, &embeddings.timings));
    insert_positive(&mut rest, "load_duration", meta.load_ns);
    insert_positive(&mut rest, "prompt_eval_count", embeddings.prompt_tokens.into());
    let rest = Value::Object(rest).to_string();
    let rest = rest.trim_start_matches('{').trim_end_matches('}');
    let comma = if rest.is_empty() { "" } else { "," };
    let model = Value::from(meta.model.as_str());
    Ok(format!("{{\"model\":{model},\"embeddings\":[{}]{comma}{rest}}}", vectors.join(",")))
}

/// The reply of `/api/embeddings`; without a vector, that of a load.
///
/// # Errors
/// As [`embed_reply`].
fn embeddings_reply(_meta: &Meta, embeddings: Option<&Embeddings>) -> Result<String, Rejection> {
    let vector = embeddings.and_then(|embeddings| embeddings.vectors.first()).map_or(&[][..], Vec::as_slice);
    Ok(format!("{{\"embedding\":{}}}", vector_text(vector)?))
}
