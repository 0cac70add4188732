//! Vectors: what the dialects share about requests for them and replies with them.

use crate::limits::EMBED_INPUTS_MAX;
use ollmlx_proto::{Embeddings, Output};

use super::answer::note_grant;
use super::fields::Fields;
use super::json::{JsonKind, RawJson};
use super::{Encoder, Meta, Rejection};
use crate::types::TicketItem;

/// How an endpoint says what came of a request for vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct VectorWire {
    /// The reply; without vectors, that of a load.
    pub reply: fn(&Meta, Option<&Embeddings>) -> Result<String, Rejection>,
    /// The status of whatever the engine says against it.
    pub engine_status: u16,
}

/// Replies with vectors. They never stream.
#[derive(Debug)]
pub(super) struct VectorEncoder {
    meta: Meta,
    wire: VectorWire,
    reply: Option<Result<String, Rejection>>,
}

impl VectorEncoder {
    /// For one request.
    pub(super) fn new(meta: Meta, wire: VectorWire) -> Self {
        Self { meta, wire, reply: None }
    }
}

impl Encoder for VectorEncoder {
    fn meta(&mut self) -> &mut Meta {
        &mut self.meta
    }

    fn push(&mut self, item: &TicketItem) {
        note_grant(&mut self.meta, item);
        self.reply = match item {
            TicketItem::Output(Output::Embedded(embeddings)) => Some((self.wire.reply)(&self.meta, Some(embeddings))),
            TicketItem::Output(Output::Failed(failure)) => {
                Some(Err(Rejection::new(self.wire.engine_status, failure.public.clone())))
            }
            TicketItem::Failed(failure) => Some(Err(Rejection::from(failure))),
            TicketItem::Loaded => Some((self.wire.reply)(&self.meta, None)),
            _ => self.reply.take(),
        };
    }

    fn finish(&mut self) -> Result<String, Rejection> {
        self.reply.take().unwrap_or_else(|| Err(Rejection::internal("the request ended without vectors")))
    }
}

/// What a request for vectors is told whose model is not here.
pub(super) fn unknown_model(name: &str, advice: Option<&str>) -> Rejection {
    Rejection::not_found(match advice {
        Some(advice) => format!("model \"{name}\" not found, try pulling it first: {advice}"),
        None => format!("model \"{name}\" not found, try pulling it first"),
    })
}

/// Texts to embed: one or several. `refusal` is for anything else.
pub(super) fn inputs(value: Option<RawJson<'_>>, refusal: &str) -> Result<Vec<String>, Rejection> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let is_text = |value: RawJson<'_>| value.kind() == JsonKind::String;
    match value.kind() {
        JsonKind::Array if value.elements().all(is_text) => {
            check_inputs(value.elements().count())?;
            value.list(RawJson::string)
        }
        JsonKind::String => Ok(vec![value.string()?]),
        _ => Err(Rejection::bad_request(refusal)),
    }
}

/// `dimensions`; zero and less keep all.
pub(super) fn dimensions(fields: &mut Fields<'_>) -> Result<Option<u32>, Rejection> {
    Ok(fields.integer("dimensions")?.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0))
}

/// Refuses more inputs than one request may bring.
fn check_inputs(count: usize) -> Result<(), Rejection> {
    if count > EMBED_INPUTS_MAX {
        return Err(Rejection::bad_request(format!(
            "too many inputs: {count} of at most {EMBED_INPUTS_MAX}; send them in several requests"
        )));
    }
    Ok(())
}

/// A vector as JSON. Written as 32-bit numbers, which are half as long as the same ones in 64 bits.
pub(super) fn vector_text(vector: &[f32]) -> Result<String, Rejection> {
    if vector.iter().any(|component| !component.is_finite()) {
        return Err(Rejection::bad_request("embedding contains NaN or Inf values"));
    }
    serde_json::to_string(vector).map_err(|error| Rejection::internal(error.to_string()))
}
