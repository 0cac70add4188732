//! Replies of the native dialect: NDJSON lines, or one object (`docs/conformance.md`, Generate and chat).

use ollmlx_proto::{Delta, FinishReason, Finished, Output, Part, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};

use crate::dialect::answer::{Ending, WholeAnswer, end_of, insert_positive, logprobs_json, note_grant, total_ns};
use crate::dialect::{Encoder, Meta, Rejection, tools};
use crate::types::TicketItem;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Generate,
    Chat,
}

/// Replies of `/api/generate` and `/api/chat`.
#[derive(Clone, Debug)]
pub(super) struct NativeEncoder {
    shape: Shape,
    meta: Meta,
    /// The whole answer where it does not stream; else only what waits for the last line.
    answer: WholeAnswer,
}

/// What one object says, before it has a shape.
#[derive(Default)]
struct Said<'a> {
    text: &'a str,
    thinking: &'a str,
    calls: &'a [ToolCall],
    logprobs: &'a [TokenLogprob],
    end: Option<&'a Ending>,
}

impl NativeEncoder {
    /// For one request to `/api/generate`.
    pub(super) fn generate(meta: Meta) -> Self {
        Self { shape: Shape::Generate, meta, answer: WholeAnswer::default() }
    }

    /// For one request to `/api/chat`.
    pub(super) fn chat(meta: Meta) -> Self {
        Self { shape: Shape::Chat, meta, answer: WholeAnswer::default() }
    }

    /// The line, without its end, that an item becomes in a stream.
    fn line(&mut self, item: &TicketItem) -> Option<String> {
        match item {
            TicketItem::Output(Output::Delta(delta)) if delta.text.is_empty() && delta.logprobs.is_empty() => None,
            TicketItem::Output(Output::Delta(Delta { text, part, logprobs, .. })) => {
                let (text, thinking) = match part {
                    Part::Content => (text.as_str(), ""),
                    Part::Thinking => ("", text.as_str()),
                };
                Some(self.object(&Said { text, thinking, logprobs, ..Said::default() }))
            }
            TicketItem::Output(Output::ToolCall(call)) => match self.shape {
                Shape::Chat => Some(self.object(&Said { calls: std::slice::from_ref(call), ..Said::default() })),
                Shape::Generate => {
                    self.answer.calls.push(call.clone());
                    None
                }
            },
            other => match end_of(other)? {
                Ending::Failed(failure) => Some(error_body(&failure.public)),
                end => {
                    let calls = std::mem::take(&mut self.answer.calls);
                    Some(self.object(&Said { calls: &calls, end: Some(&end), ..Said::default() }))
                }
            },
        }
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
            Some(Ending::Finished(finished)) => {
                insert_filled(object, "done_reason", done_reason(finished));
                if self.shape == Shape::Generate && !finished.context.is_empty() {
                    object.insert("context".into(), json!(finished.context));
                }
            }
            Some(Ending::Loaded) => insert_filled(object, "done_reason", "load"),
            Some(Ending::Unloaded) => insert_filled(object, "done_reason", "unload"),
            _ => {}
        }
    }

    fn insert_metrics(&self, object: &mut Map<String, Value>, said: &Said<'_>) {
        let Some(Ending::Finished(finished)) = said.end else { return };
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

impl Encoder for NativeEncoder {
    fn meta(&mut self) -> &mut Meta {
        &mut self.meta
    }

    fn frames(&mut self, item: &TicketItem) -> String {
        note_grant(&mut self.meta, item);
        self.line(item).map_or_else(String::new, |line| line + "\n")
    }

    fn push(&mut self, item: &TicketItem) {
        note_grant(&mut self.meta, item);
        self.answer.push(item);
    }

    fn finish(&mut self) -> Result<String, Rejection> {
        let answer = std::mem::take(&mut self.answer);
        let end = answer.ending()?;
        Ok(self.object(&Said {
            text: &answer.text,
            thinking: &answer.thinking,
            calls: &answer.calls,
            logprobs: &answer.logprobs,
            end: Some(end),
        }))
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
    if let Some(Ending::Rendered(prompt)) = said.end {
        object.insert("_debug_info".into(), json!({"rendered_template": prompt}));
    }
}

fn insert_logprobs(object: &mut Map<String, Value>, logprobs: &[TokenLogprob]) {
    if !logprobs.is_empty() {
        object.insert("logprobs".into(), logprobs_json(logprobs));
    }
}

/// `{"error": …}`, as a body or as the last line of a stream.
#[must_use]
pub fn error_body(message: &str) -> String {
    json!({"error": message}).to_string()
}
