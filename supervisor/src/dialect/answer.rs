//! A whole answer, gathered from what a ticket says, for replies that do not stream.

use ollmlx_proto::{Failure, Finished, Output, Part, Timings, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};

use super::{Meta, Rejection};
use crate::types::TicketItem;

/// What has been said so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WholeAnswer {
    /// The answer.
    pub text: String,
    /// The reasoning.
    pub thinking: String,
    /// Whole calls, in order.
    pub calls: Vec<ToolCall>,
    /// One per token, where asked for.
    pub logprobs: Vec<TokenLogprob>,
    end: Option<Ending>,
}

/// The ends a text answer can have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// Generated.
    Finished(Finished),
    /// Only rendered.
    Rendered(String),
    /// Only loaded.
    Loaded,
    /// Only unloaded.
    Unloaded,
    /// Failed.
    Failed(Failure),
}

impl WholeAnswer {
    /// Takes in one item.
    pub(super) fn push(&mut self, item: &TicketItem) {
        match item {
            TicketItem::Output(Output::Delta(delta)) => {
                match delta.part {
                    Part::Content => self.text.push_str(&delta.text),
                    Part::Thinking => self.thinking.push_str(&delta.text),
                }
                self.logprobs.extend(delta.logprobs.iter().cloned());
            }
            TicketItem::Output(Output::ToolCall(call)) => self.calls.push(call.clone()),
            other => self.end = end_of(other).or(self.end.take()),
        }
    }

    /// How it ended.
    ///
    /// # Errors
    /// It failed.
    pub(super) fn ending(&self) -> Result<&Ending, Rejection> {
        match &self.end {
            Some(Ending::Failed(failure)) => Err(Rejection::from(failure)),
            Some(end) => Ok(end),
            None => Err(Rejection::internal("the answer ended without an end")),
        }
    }
}

/// The end that an item is, if it is one.
pub(super) fn end_of(item: &TicketItem) -> Option<Ending> {
    match item {
        TicketItem::Output(Output::Finished(finished)) => Some(Ending::Finished(finished.clone())),
        TicketItem::Output(Output::Rendered(prompt)) => Some(Ending::Rendered(prompt.clone())),
        TicketItem::Output(Output::Failed(failure)) | TicketItem::Failed(failure) => {
            Some(Ending::Failed(failure.clone()))
        }
        TicketItem::Loaded => Some(Ending::Loaded),
        TicketItem::Unloaded => Some(Ending::Unloaded),
        _ => None,
    }
}

/// What a client of a stream of events hears while its prompt is computed: a comment, which every reader of such streams
/// passes over, but which keeps connections from being taken for dead.
pub(super) fn sign_of_life(item: &TicketItem) -> String {
    match item {
        TicketItem::Output(Output::Prefill { done, total }) => format!(": {done} of {total} prompt tokens\n\n"),
        _ => String::new(),
    }
}

/// Keeps the load time that a grant reports.
pub(super) fn note_grant(meta: &mut Meta, item: &TicketItem) {
    if let TicketItem::Granted { load_ns } = item {
        meta.load_ns = *load_ns;
    }
}

/// Log probabilities in the shape that Ollama and OpenAI share.
pub(super) fn logprobs_json(logprobs: &[TokenLogprob]) -> Value {
    let one = |bytes: &[u8], logprob: f32| {
        let mut entry = Map::new();
        entry.insert("token".into(), String::from_utf8_lossy(bytes).into());
        // JSON has no infinity; -9999 is what OpenAI says for "as good as impossible".
        entry.insert("logprob".into(), json!(if logprob.is_finite() { logprob } else { -9999.0 }));
        if !bytes.is_empty() {
            entry.insert("bytes".into(), json!(bytes));
        }
        entry
    };
    let entries = logprobs.iter().map(|token| {
        let mut entry = one(&token.bytes, token.logprob);
        if !token.top.is_empty() {
            let top: Vec<Value> = token.top.iter().map(|top| one(&top.bytes, top.logprob).into()).collect();
            entry.insert("top_logprobs".into(), top.into());
        }
        Value::Object(entry)
    });
    Value::Array(entries.collect())
}

/// Time since receipt: what `http` measured, or else the sum of what is known.
pub(super) fn total_ns(meta: &Meta, timings: &Timings) -> u64 {
    if meta.elapsed_ns > 0 {
        return meta.elapsed_ns;
    }
    [timings.queue_ns, timings.prefill_ns, timings.decode_ns]
        .iter()
        .fold(meta.load_ns, |sum, ns| sum.saturating_add(*ns))
}

/// Adds a number unless it is 0, as Go's `omitempty` does.
pub(super) fn insert_positive(object: &mut Map<String, Value>, name: &str, number: u64) {
    if number > 0 {
        object.insert(name.to_owned(), number.into());
    }
}
