//! Replies of the native dialect: NDJSON lines, or one object (ollama-conformance 1.5–1.7, G3–G15).

use ollmlx_proto::{Delta, Embeddings, Failure, FinishReason, Finished, Output, Part, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};

use super::super::answer::{Answer, End, end_of, insert_positive, logprobs_json, note_grant, total_ns};
use super::super::{Encoder, Meta, Rejection, tools};
use crate::types::TicketItem;

/// Replies of `/api/generate`.
#[derive(Clone, Debug)]
pub struct GenerateEncoder(Native);

/// Replies of `/api/chat`.
#[derive(Clone, Debug)]
pub struct ChatEncoder(Native);

impl GenerateEncoder {
    /// For one request.
    #[must_use]
    pub fn new(meta: Meta) -> Self {
        Self(Native { shape: Shape::Generate, meta, answer: Answer::default() })
    }

    /// The lines, without their ends, that an item becomes in a stream.
    pub fn chunk(&mut self, item: &TicketItem) -> Vec<String> {
        self.0.chunk(item)
    }
}

impl ChatEncoder {
    /// For one request.
    #[must_use]
    pub fn new(meta: Meta) -> Self {
        Self(Native { shape: Shape::Chat, meta, answer: Answer::default() })
    }

    /// The lines, without their ends, that an item becomes in a stream.
    pub fn chunk(&mut self, item: &TicketItem) -> Vec<String> {
        self.0.chunk(item)
    }
}

macro_rules! encode_through {
    ($encoder:ty) => {
        impl Encoder for $encoder {
            fn meta(&mut self) -> &mut Meta {
                &mut self.0.meta
            }

            fn frames(&mut self, item: &TicketItem) -> String {
                self.0.chunk(item).into_iter().map(|line| line + "\n").collect()
            }

            fn push(&mut self, item: &TicketItem) {
                note_grant(&mut self.0.meta, item);
                self.0.answer.push(item);
            }

            fn finish(&mut self) -> Result<String, Rejection> {
                self.0.whole()
            }
        }
    };
}
encode_through!(GenerateEncoder);
encode_through!(ChatEncoder);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Generate,
    Chat,
}

#[derive(Clone, Debug)]
struct Native {
    shape: Shape,
    meta: Meta,
    /// The whole answer where it does not stream; else only what waits for the last line.
    answer: Answer,
}

/// What one object says, before it has a shape.
#[derive(Default)]
struct Said<'a> {
    text: &'a str,
    thinking: &'a str,
    calls: &'a [ToolCall],
    logprobs: &'a [TokenLogprob],
    end: Option<&'a End>,
}

impl Native {
    fn chunk(&mut self, item: &TicketItem) -> Vec<String> {
        note_grant(&mut self.meta, item);
        match item {
            TicketItem::Output(Output::Delta(delta)) if delta.text.is_empty() && delta.logprobs.is_empty() => {
                Vec::new()
            }
            TicketItem::Output(Output::Delta(Delta { text, part, logprobs, .. })) => {
                let (text, thinking) = match part {
                    Part::Content => (text.as_str(), ""),
                    Part::Thinking => ("", text.as_str()),
                };
                vec![self.object(&Said { text, thinking, logprobs, ..Said::default() })]
            }
            TicketItem::Output(Output::ToolCall(call)) => match self.shape {
                Shape::Chat => {
                    vec![self.object(&Said { calls: std::slice::from_ref(call), ..Said::default() })]
                }
                Shape::Generate => {
                    self.answer.calls.push(call.clone());
                    Vec::new()
                }
            },
            other => match end_of(other) {
                None => Vec::new(),
                Some(End::Failed(failure)) => vec![error_body(&failure.public)],
                Some(end) => {
                    let calls = std::mem::take(&mut self.answer.calls);
                    vec![self.object(&Said { calls: &calls, end: Some(&end), ..Said::default() })]
                }
            },
        }
    }

    fn whole(&mut self) -> Result<String, Rejection> {
        let answer = std::mem::take(&mut self.answer);
        let end = match &answer.end {
            Some(End::Failed(failure)) => return Err(Rejection::from(failure)),
            None => return Err(Rejection::internal("the answer ended without an end")),
            Some(end) => end,
        };
        Ok(self.object(&Said {
            text: &answer.text,
            thinking: &answer.thinking,
            calls: &answer.calls,
            logprobs: &answer.logprobs,
            end: Some(end),
        }))
    }

    fn object(&self, said: &Said<'_>) -> String {
        let mut object = head(&self.meta.model, &self.meta.created);
        match self.shape {
            Shape::Generate => {
                object.insert("response".into(), said.text.into());
                insert_filled(&mut object, "thinking", said.thinking);
                self.insert_end(&mut object, said);
                self.insert_metrics(&mut object, said);
                if !said.calls.is_empty() {
                    object.insert("tool_calls".into(), self.calls(said.calls));
                }
                insert_debug(&mut object, said);
                insert_logprobs(&mut object, said.logprobs);
            }
            Shape::Chat => {
                let mut message = Map::new();
                message.insert("role".into(), "assistant".into());
                message.insert("content".into(), said.text.into());
                insert_filled(&mut message, "thinking", said.thinking);
                if !said.calls.is_empty() {
                    message.insert("tool_calls".into(), self.calls(said.calls));
                }
                object.insert("message".into(), message.into());
                self.insert_end(&mut object, said);
                insert_debug(&mut object, said);
                insert_logprobs(&mut object, said.logprobs);
                self.insert_metrics(&mut object, said);
            }
        }
        Value::Object(object).to_string()
    }

    fn insert_end(&self, object: &mut Map<String, Value>, said: &Said<'_>) {
        object.insert("done".into(), said.end.is_some().into());
        match said.end {
            Some(End::Finished(finished)) => {
                insert_filled(object, "done_reason", done_reason(finished));
                if self.shape == Shape::Generate && !finished.context.is_empty() {
                    object.insert("context".into(), json!(finished.context));
                }
            }
            Some(End::Loaded) => insert_filled(object, "done_reason", "load"),
            _ => {}
        }
    }

    fn insert_metrics(&self, object: &mut Map<String, Value>, said: &Said<'_>) {
        let Some(End::Finished(finished)) = said.end else { return };
        insert_positive(object, "total_duration", total_ns(&self.meta, &finished.timings));
        insert_positive(object, "load_duration", self.meta.load_ns);
        insert_positive(object, "prompt_eval_count", finished.usage.prompt_tokens.into());
        insert_positive(object, "prompt_eval_duration", finished.timings.prefill_ns);
        insert_positive(object, "eval_count", finished.usage.completion_tokens.into());
        insert_positive(object, "eval_duration", finished.timings.decode_ns);
    }

    fn calls(&self, calls: &[ToolCall]) -> Value {
        let one = |call: &ToolCall| {
            let arguments: Value = serde_json::from_str(&call.arguments.0).unwrap_or_else(|_| json!({}));
            let function = json!({"index": call.index, "name": call.name, "arguments": arguments});
            json!({"id": tools::call_id(self.meta.tool_seed, call.index), "function": function})
        };
        Value::Array(calls.iter().map(one).collect())
    }
}

fn done_reason(finished: &Finished) -> &'static str {
    match finished.reason {
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "",
    }
}

fn head(model: &str, created: &str) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("model".into(), model.into());
    object.insert("created_at".into(), created.into());
    object
}

fn insert_filled(object: &mut Map<String, Value>, name: &str, text: &str) {
    if !text.is_empty() {
        object.insert(name.to_owned(), text.into());
    }
}

fn insert_debug(object: &mut Map<String, Value>, said: &Said<'_>) {
    if let Some(End::Rendered(prompt)) = said.end {
        object.insert("_debug_info".into(), json!({"rendered_template": prompt}));
    }
}

fn insert_logprobs(object: &mut Map<String, Value>, logprobs: &[TokenLogprob]) {
    if !logprobs.is_empty() {
        object.insert("logprobs".into(), logprobs_json(logprobs));
    }
}

/// The one object that answers a load (`reason` is `load`) or an unload; `chat` is for `/api/chat`.
#[must_use]
pub fn load_reply(model: &str, created: &str, chat: bool, reason: &str) -> String {
    let mut object = head(model, created);
    if chat {
        object.insert("message".into(), json!({"role": "assistant", "content": ""}));
    } else {
        object.insert("response".into(), "".into());
    }
    object.insert("done".into(), true.into());
    object.insert("done_reason".into(), reason.into());
    Value::Object(object).to_string()
}

/// The reply of `/api/embed`; without vectors, that of a load.
///
/// # Errors
/// 400 where a vector has a component that JSON can't say.
pub fn embed_reply(meta: &Meta, embeddings: Option<&Embeddings>) -> Result<String, Rejection> {
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
pub fn embeddings_reply(embeddings: Option<&Embeddings>) -> Result<String, Rejection> {
    let vector = embeddings.and_then(|embeddings| embeddings.vectors.first()).map_or(&[][..], Vec::as_slice);
    Ok(format!("{{\"embedding\":{}}}", vector_text(vector)?))
}

/// A vector as JSON. Written as 32-bit numbers, which are half as long as the same ones in 64 bits.
pub(crate) fn vector_text(vector: &[f32]) -> Result<String, Rejection> {
    if vector.iter().any(|component| !component.is_finite()) {
        return Err(Rejection::bad_request("embedding contains NaN or Inf values"));
    }
    serde_json::to_string(vector).map_err(|error| Rejection::internal(error.to_string()))
}

/// `{"error": …}`, as a body or as the last line of a stream.
#[must_use]
pub fn error_body(message: &str) -> String {
    json!({"error": message}).to_string()
}

/// The status and body of a failure.
#[must_use]
pub fn failure_reply(failure: &Failure) -> (u16, String) {
    (super::super::error_status(failure), error_body(&failure.public))
}
