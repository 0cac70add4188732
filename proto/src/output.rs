//! What a running request emits.
//!
//! A request's outputs are: at most one `Started`, any number of `Prefill`, `Delta` and `ToolCall`, and exactly one
//! terminal output ([`Output::is_terminal`]). A cancelled request ends with `Finished` and
//! [`FinishReason::Cancelled`]; only then is its slot free.

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::ids::{SlotId, TokenId};
use crate::request::JsonText;

/// One thing a running request says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// It has a slot and its prompt is known.
    Started(Started),
    /// Prompt tokens computed so far. Sent at least once a second while prefilling, as proof of life.
    Prefill {
        /// Computed, reused ones included.
        done: u32,
        /// Of the whole prompt.
        total: u32,
    },
    /// Some text.
    Delta(Delta),
    /// A whole tool call, recognised in the text and taken out of it.
    ToolCall(ToolCall),
    /// Terminal: vectors.
    Embedded(Embeddings),
    /// Terminal: the rendered prompt, for `render_only`.
    Rendered(String),
    /// Terminal: generation ended.
    Finished(Finished),
    /// Terminal: it failed; the worker lives on.
    Failed(Failure),
}

impl Output {
    /// Whether nothing more follows for this request.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Embedded(_) | Self::Rendered(_) | Self::Finished(_) | Self::Failed(_))
    }
}

/// The request has a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which.
    pub slot: SlotId,
    /// Length of the prompt after any truncation.
    pub prompt_tokens: u32,
    /// Of these, found in the slot's cache.
    pub cached_tokens: u32,
}

/// Which channel of the answer a text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The answer.
    Content,
    /// The reasoning before it.
    Thinking,
}

/// Some text, together with the tokens that led to it.
///
/// Every generated token appears in exactly one delta, in order; text may lag behind its tokens (half a character,
/// part of a stop string or of a marker is held back), so a delta may have tokens and no text. The last deltas
/// of a request bring whatever was held back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Generated tokens, for resuming.
    pub tokens: Vec<TokenId>,
    /// Complete characters, possibly empty.
    pub text: String,
    /// Where the text belongs.
    pub part: Part,
    /// One per entry of `tokens` where asked for, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

/// The log probability of one token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's own bytes, which may be part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm, before any sampling option; never above 0.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<TopLogprob>,
}

/// An alternative token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's own bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// A tool call the model made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// 0, 1, 2 … within the answer.
    pub index: u32,
    /// The tool.
    pub name: String,
    /// A JSON object.
    pub arguments: JsonText,
}

/// Vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// One per input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Sum over the inputs.
    pub prompt_tokens: u32,
    /// How long it took.
    pub timings: Timings,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model's own end, or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The answer consists of tool calls.
    ToolCalls,
    /// The client left, or the supervisor asked.
    Cancelled,
}

/// Generation ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The stop string that ended it, where one did.
    pub stop_string: Option<String>,
    /// Counts.
    pub usage: Usage,
    /// Durations.
    pub timings: Timings,
    /// Prompt and output as token ids, for `context` of `/api/generate`. Empty unless the work was a
    /// single-turn chat.
    pub context: Vec<TokenId>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The whole prompt.
    pub prompt_tokens: u32,
    /// Of these, reused from a cache.
    pub cached_tokens: u32,
    /// Generated, without the end marker; tokens of an earlier incarnation count.
    pub completion_tokens: u32,
}

/// Durations in nanoseconds, measured in the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the arrival in the worker to the first computed prompt token.
    pub queue_ns: u64,
    /// Computing the prompt.
    pub prefill_ns: u64,
    /// Generating.
    pub decode_ns: u64,
}
