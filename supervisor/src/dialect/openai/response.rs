//! Replies of OpenAI's dialect: one object, or server-sent events (`docs/conformance.md`, OpenAI).
//!
//! A stream of a failed request ends with an error record instead of `[DONE]`, where Ollama says nothing at all
//! (`docs/conformance.md`, On purpose otherwise).

use ollmlx_proto::{FinishReason, Finished, Output, Part, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};

use crate::dialect::answer::{Ending, WholeAnswer, end_of, logprobs_json, note_grant, sign_of_life};
use crate::dialect::{Call, Encoder, Meta, Rejection, tools};
use crate::types::TicketItem;

/// The record that ends every good stream.
pub(in crate::dialect) const DONE: &str = "data: [DONE]\n\n";

const FINGERPRINT: &str = "fp_ollama";

/// Replies of `/v1/chat/completions`.
#[derive(Clone, Debug)]
pub(super) struct ChatEncoder {
    meta: Meta,
    /// Whether a stream reports counts of tokens.
    include_usage: bool,
    answer: WholeAnswer,
    /// Whether a delta has named the role yet.
    opened: bool,
    /// Calls sent so far.
    calls_sent: bool,
}

impl ChatEncoder {
    /// For one request.
    pub(super) fn new(call: &Call, meta: Meta) -> Self {
        let include_usage = call.include_usage;
        Self { meta, include_usage, answer: WholeAnswer::default(), opened: false, calls_sent: false }
    }

    fn delta(&mut self, rest: Value, logprobs: &[TokenLogprob]) -> String {
        let mut delta = Map::new();
        if !self.opened {
            self.opened = true;
            delta.insert("role".into(), "assistant".into());
        }
        if let Value::Object(rest) = rest {
            delta.extend(rest);
        }
        let mut choice = Map::new();
        choice.insert("index".into(), 0.into());
        choice.insert("delta".into(), delta.into());
        choice.insert("finish_reason".into(), Value::Null);
        if !logprobs.is_empty() {
            choice.insert("logprobs".into(), json!({"content": logprobs_json(logprobs)}));
        }
        self.record(json!([choice]), None)
    }

    fn record(&self, choices: Value, usage: Option<Value>) -> String {
        let mut object = head(&self.meta, "chat.completion.chunk");
        object.insert("choices".into(), choices);
        if let Some(usage) = usage {
            object.insert("usage".into(), usage);
        }
        event(&object.into())
    }

    fn last(&mut self, end: &Ending) -> String {
        let mut records = String::new();
        if !self.opened {
            records += &self.delta(json!({"content": ""}), &[]);
        }
        let finish = json!([{"index": 0, "delta": {}, "finish_reason": finish_word(end, self.calls_sent)}]);
        records += &self.record(finish, None);
        if self.include_usage {
            records += &self.record(json!([]), Some(usage(end)));
        }
        records + DONE
    }
}

impl Encoder for ChatEncoder {
    fn meta(&mut self) -> &mut Meta {
        &mut self.meta
    }

    fn frames(&mut self, item: &TicketItem) -> String {
        note_grant(&mut self.meta, item);
        match item {
            TicketItem::Output(Output::Delta(delta)) if delta.text.is_empty() && delta.logprobs.is_empty() => {
                String::new()
            }
            TicketItem::Output(Output::Delta(delta)) => {
                let rest = match delta.part {
                    Part::Content => json!({"content": delta.text}),
                    Part::Thinking => json!({"content": "", "reasoning": delta.text}),
                };
                self.delta(rest, &delta.logprobs)
            }
            TicketItem::Output(Output::ToolCall(call)) => {
                self.calls_sent = true;
                let calls = calls_json(&self.meta, std::slice::from_ref(call));
                self.delta(json!({"content": "", "tool_calls": calls}), &[])
            }
            other => match end_of(other) {
                None => sign_of_life(other),
                Some(Ending::Failed(failure)) => error_event(&Rejection::from(&failure)),
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
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        message.insert("content".into(), answer.text.as_str().into());
        if !answer.thinking.is_empty() {
            message.insert("reasoning".into(), answer.thinking.as_str().into());
        }
        if !answer.calls.is_empty() {
            message.insert("tool_calls".into(), calls_json(&self.meta, &answer.calls));
        }
        let mut choice = Map::new();
        choice.insert("index".into(), 0.into());
        choice.insert("message".into(), message.into());
        choice.insert("finish_reason".into(), finish_word(end, !answer.calls.is_empty()));
        if !answer.logprobs.is_empty() {
            choice.insert("logprobs".into(), json!({"content": logprobs_json(&answer.logprobs)}));
        }
        let mut object = head(&self.meta, "chat.completion");
        object.insert("choices".into(), json!([choice]));
        object.insert("usage".into(), usage(end));
        if let Ending::Rendered(prompt) = end {
            object.insert("_debug_info".into(), json!({"rendered_template": prompt}));
        }
        Ok(Value::Object(object).to_string())
    }
}

/// Replies of `/v1/completions`. Log probabilities are left out, as in Ollama.
#[derive(Clone, Debug)]
pub(super) struct CompletionEncoder {
    meta: Meta,
    /// Whether a stream reports counts of tokens.
    include_usage: bool,
    answer: WholeAnswer,
}

impl CompletionEncoder {
    /// For one request.
    pub(super) fn new(call: &Call, meta: Meta) -> Self {
        Self { meta, include_usage: call.include_usage, answer: WholeAnswer::default() }
    }

    fn record(&self, choices: &Value, usage: Option<Value>) -> String {
        let mut object = json!({
            "id": self.meta.id,
            "object": "text_completion",
            "created": self.meta.created_unix,
            "choices": choices,
            "model": self.meta.model,
            "system_fingerprint": FINGERPRINT,
        });
        if self.include_usage {
            object["usage"] = usage.unwrap_or_else(|| usage_json(0, 0));
        }
        event(&object)
    }
}

impl Encoder for CompletionEncoder {
    fn meta(&mut self) -> &mut Meta {
        &mut self.meta
    }

    fn frames(&mut self, item: &TicketItem) -> String {
        note_grant(&mut self.meta, item);
        if let TicketItem::Output(Output::Delta(delta)) = item {
            if delta.text.is_empty() || delta.part == Part::Thinking {
                return String::new();
            }
            return self.record(&json!([{"text": delta.text, "index": 0, "finish_reason": null}]), None);
        }
        match end_of(item) {
            None => sign_of_life(item),
            Some(Ending::Failed(failure)) => error_event(&Rejection::from(&failure)),
            Some(end) => {
                let finish = json!([{"text": "", "index": 0, "finish_reason": finish_word(&end, false)}]);
                let mut records = self.record(&finish, None);
                if self.include_usage {
                    records += &self.record(&json!([]), Some(usage(&end)));
                }
                records + DONE
            }
        }
    }

    fn push(&mut self, item: &TicketItem) {
        note_grant(&mut self.meta, item);
        self.answer.push(item);
    }

    fn finish(&mut self) -> Result<String, Rejection> {
        let answer = std::mem::take(&mut self.answer);
        let end = answer.ending()?;
        let mut object = head(&self.meta, "text_completion");
        let choice = json!({"text": answer.text, "index": 0, "finish_reason": finish_word(end, false)});
        object.insert("choices".into(), json!([choice]));
        object.insert("usage".into(), usage(end));
        Ok(Value::Object(object).to_string())
    }
}

/// The error object, as a body.
pub(super) fn error_body(rejection: &Rejection) -> String {
    let kind = match rejection.status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    };
    json!({"error": {"message": rejection.message, "type": kind, "param": null, "code": null}}).to_string()
}

/// The error object, as the last record of a stream.
fn error_event(rejection: &Rejection) -> String {
    format!("data: {}\n\n", error_body(rejection))
}

fn event(object: &Value) -> String {
    format!("data: {object}\n\n")
}

fn head(meta: &Meta, object: &str) -> Map<String, Value> {
    let mut head = Map::new();
    head.insert("id".into(), meta.id.as_str().into());
    head.insert("object".into(), object.into());
    head.insert("created".into(), meta.created_unix.into());
    head.insert("model".into(), meta.model.as_str().into());
    head.insert("system_fingerprint".into(), FINGERPRINT.into());
    head
}

fn finish_word(end: &Ending, called: bool) -> Value {
    match end {
        Ending::Finished(Finished { reason: FinishReason::Length, .. }) => "length".into(),
        Ending::Finished(_) if called => "tool_calls".into(),
        Ending::Finished(_) => "stop".into(),
        Ending::Loaded => "load".into(),
        Ending::Unloaded => "unload".into(),
        Ending::Rendered(_) | Ending::Failed(_) => Value::Null,
    }
}

fn usage(end: &Ending) -> Value {
    match end {
        Ending::Finished(finished) => usage_json(finished.usage.prompt_tokens, finished.usage.completion_tokens),
        _ => usage_json(0, 0),
    }
}

fn usage_json(prompt: u32, completion: u32) -> Value {
    let total = u64::from(prompt) + u64::from(completion);
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total})
}

fn calls_json(meta: &Meta, calls: &[ToolCall]) -> Value {
    let one = |call: &ToolCall| {
        let function = json!({"name": call.name, "arguments": call.arguments.0});
        let id = tools::call_id(meta.tool_seed, call.index);
        json!({"id": id, "index": call.index, "type": "function", "function": function})
    };
    Value::Array(calls.iter().map(one).collect())
}
