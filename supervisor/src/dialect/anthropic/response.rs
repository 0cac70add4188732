//! Replies of Anthropic's dialect: one object, or named server-sent events (`docs/conformance.md`, Anthropic).
//!
//! Two deliberate differences from Ollama: a failed stream ends with an `error` event, and `content` of an empty
//! answer is `[]`, which clients can iterate, not `null`.

use ollmlx_proto::{FinishReason, Finished, Output, Part, ToolCall, Usage};
use serde_json::{Value, json};

use crate::dialect::answer::{Ending, WholeAnswer, end_of, note_grant, sign_of_life};
use crate::dialect::{Encoder, Meta, Rejection, tools};
use crate::types::TicketItem;

/// Replies of `/v1/messages`.
#[derive(Clone, Debug)]
pub(super) struct MessageEncoder {
    meta: Meta,
    answer: WholeAnswer,
    /// Known once the worker has the prompt.
    prompt_tokens: Option<u32>,
    /// Whether `message_start` is out.
    started: bool,
    /// The open block.
    open: Option<Part>,
    /// Index of the next block.
    index: u32,
    calls_sent: bool,
}

impl MessageEncoder {
    /// For one request; `meta.id` is `msg_` and 24 hexadecimal digits.
    pub(super) fn new(meta: Meta) -> Self {
        let (answer, prompt_tokens, open) = (WholeAnswer::default(), None, None);
        Self { meta, answer, prompt_tokens, started: false, open, index: 0, calls_sent: false }
    }

    fn start(&mut self) -> String {
        if self.started {
            return String::new();
        }
        self.started = true;
        let estimate = (self.meta.prompt_chars / 4).max(1);
        let input_tokens = self.prompt_tokens.map_or(estimate, u64::from);
        event(&json!({"type": "message_start", "message": {
            "id": self.meta.id, "type": "message", "role": "assistant", "model": self.meta.model, "content": [],
            "usage": {"input_tokens": input_tokens, "output_tokens": 0},
        }}))
    }

    fn close(&mut self) -> String {
        if self.open.take().is_none() {
            return String::new();
        }
        self.index += 1;
        event(&json!({"type": "content_block_stop", "index": self.index - 1}))
    }

    fn text(&mut self, part: Part, text: &str) -> String {
        let mut events = self.start();
        let (kind, delta) = match part {
            Part::Content => ("text", "text_delta"),
            Part::Thinking => ("thinking", "thinking_delta"),
        };
        if self.open != Some(part) {
            events += &self.close();
            self.open = Some(part);
            let block = json!({"type": kind, kind: ""});
            events += &event(&json!({"type": "content_block_start", "index": self.index, "content_block": block}));
        }
        let delta = json!({"type": delta, kind: text});
        events + &event(&json!({"type": "content_block_delta", "index": self.index, "delta": delta}))
    }

    fn tool(&mut self, call: &ToolCall) -> String {
        let mut events = self.start() + &self.close();
        self.calls_sent = true;
        let index = self.index;
        let id = tools::call_id(self.meta.tool_seed, call.index);
        let block = json!({"type": "tool_use", "id": id, "name": call.name, "input": {}});
        events += &event(&json!({"type": "content_block_start", "index": index, "content_block": block}));
        let delta = json!({"type": "input_json_delta", "partial_json": call.arguments.0});
        events += &event(&json!({"type": "content_block_delta", "index": index, "delta": delta}));
        self.index += 1;
        events + &event(&json!({"type": "content_block_stop", "index": index}))
    }

    fn last(&mut self, end: &Ending) -> String {
        let mut events = self.start() + &self.close();
        let delta = json!({"stop_reason": stop_reason(end, self.calls_sent)});
        events += &event(&json!({"type": "message_delta", "delta": delta, "usage": usage(end)}));
        events + &event(&json!({"type": "message_stop"}))
    }
}

impl Encoder for MessageEncoder {
    fn meta(&mut self) -> &mut Meta {
        &mut self.meta
    }

    fn frames(&mut self, item: &TicketItem) -> String {
        note_grant(&mut self.meta, item);
        match item {
            TicketItem::Output(Output::Started(started)) => {
                self.prompt_tokens = Some(started.prompt_tokens);
                String::new()
            }
            TicketItem::Output(Output::Delta(delta)) if delta.text.is_empty() => String::new(),
            TicketItem::Output(Output::Delta(delta)) => self.text(delta.part, &delta.text),
            TicketItem::Output(Output::ToolCall(call)) => self.tool(call),
            other => match end_of(other) {
                None => sign_of_life(other),
                Some(Ending::Failed(failure)) => event(&error_object(&Rejection::from(&failure))),
                Some(end) => self.last(&end),
            },
        }
    }

    fn push(&mut self, item: &TicketItem) {
        note_grant(&mut self.meta, item);
        self.answer.push(item);
    }

    fn finish(&mut self) -> Result<String, Rejection> {
        let answer = std::mem::take(&mut self.answer);
        let end = answer.ending()?;
        let mut content = Vec::new();
        if !answer.thinking.is_empty() {
            content.push(json!({"type": "thinking", "thinking": answer.thinking}));
        }
        if !answer.text.is_empty() {
            content.push(json!({"type": "text", "text": answer.text}));
        }
        for call in &answer.calls {
            let input: Value = serde_json::from_str(&call.arguments.0).unwrap_or_else(|_| json!({}));
            let id = tools::call_id(self.meta.tool_seed, call.index);
            content.push(json!({"type": "tool_use", "id": id, "name": call.name, "input": input}));
        }
        let stop_reason = stop_reason(end, !answer.calls.is_empty());
        Ok(json!({
            "id": self.meta.id, "type": "message", "role": "assistant", "model": self.meta.model,
            "content": content, "stop_reason": stop_reason, "usage": usage(end),
        })
        .to_string())
    }
}

fn stop_reason(end: &Ending, called: bool) -> &'static str {
    match end {
        _ if called => "tool_use",
        Ending::Finished(Finished { reason: FinishReason::Length, .. }) => "max_tokens",
        _ => "end_turn",
    }
}

fn usage(end: &Ending) -> Value {
    let Usage { prompt_tokens, completion_tokens, .. } = match end {
        Ending::Finished(finished) => finished.usage,
        _ => Usage::default(),
    };
    json!({"input_tokens": prompt_tokens, "output_tokens": completion_tokens})
}

fn event(object: &Value) -> String {
    let name = object.get("type").and_then(Value::as_str).unwrap_or_default();
    format!("event: {name}\ndata: {object}\n\n")
}

fn error_object(rejection: &Rejection) -> Value {
    let kind = match rejection.status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": rejection.message}})
}

/// The error object, as a body; `request_id` is `req_` and 24 hexadecimal digits.
pub(super) fn error_body(rejection: &Rejection, request_id: &str) -> String {
    let mut object = error_object(rejection);
    object["request_id"] = request_id.into();
    object.to_string()
}
