//! Dialects: bytes of a client in, [`Call`] out; what a ticket says in, bytes for the client out.
//!
//! Everything here is a pure function of its arguments: no I/O, no clock, no randomness, no tokio. A dialect knows
//! neither the catalogue nor the scheduler; whatever depends on the model (capabilities, defaults, the window) is
//! decided by `http`, between a parser and an encoder. Input is hostile: nothing here panics on it, nesting ends at
//! [`ollmlx_proto::limits::JSON_DEPTH_MAX`].

mod answer;
pub mod anthropic;
#[cfg(test)]
mod golden;
pub mod json;
pub mod ollama;
pub mod openai;
pub mod options;
#[cfg(test)]
mod replies_tests;
#[cfg(test)]
mod requests_tests;
mod tools;

use ollmlx_proto::limits::{EMBED_INPUTS_MAX, TOP_LOGPROBS_MAX};
use ollmlx_proto::{Failure, FailureKind, Format, Logprobs, Message, ThinkMode, TokenId, ToolSpec};
use serde_json::{Map, Value};

use crate::types::KeepAlive;
use crate::types::TicketItem;

/// Turns what a ticket says into a reply. One per request: either [`Encoder::frames`] for every item, or
/// [`Encoder::push`] for every item and [`Encoder::finish`] after the terminal one.
pub trait Encoder: Send {
    /// To be kept fresh (`created`, `elapsed_ns`).
    fn meta(&mut self) -> &mut Meta;
    /// What an item adds to a stream, framing included; often nothing.
    fn frames(&mut self, item: &TicketItem) -> String;
    /// Takes in an item of an answer that does not stream.
    fn push(&mut self, item: &TicketItem);
    /// The whole answer.
    ///
    /// # Errors
    /// What went wrong, where the terminal item was a failure.
    fn finish(&mut self) -> Result<String, Rejection>;
}

/// A request that can't be served as it is. Every dialect wraps the same status and text in its own envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// HTTP status.
    pub status: u16,
    /// For the client.
    pub message: String,
    /// When to try again, if that is known.
    pub retry_after_s: Option<u64>,
}

impl Rejection {
    /// Any status.
    #[must_use]
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after_s: None }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, message)
    }

    /// 500, which Ollama answers to options and formats of a wrong kind.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }
}

impl From<&Failure> for Rejection {
    fn from(failure: &Failure) -> Self {
        Self::new(error_status(failure), failure.public.clone())
    }
}

/// The status that a failure has in every dialect.
#[must_use]
pub fn error_status(failure: &Failure) -> u16 {
    match failure.kind {
        FailureKind::InvalidRequest
        | FailureKind::ContextExceeded
        | FailureKind::Unsupported
        | FailureKind::GrammarFailed => 400,
        FailureKind::ClientTooSlow => 408,
        FailureKind::Cancelled => 499,
        FailureKind::DeadlineExceeded => 504,
        FailureKind::Busy | FailureKind::Quarantined | FailureKind::ShuttingDown => 503,
        FailureKind::InvalidOption
        | FailureKind::TemplateFailed
        | FailureKind::ModelInvalid
        | FailureKind::LoadFailed
        | FailureKind::LoadStalled
        | FailureKind::OutOfMemory
        | FailureKind::WorkerDied
        | FailureKind::WorkerHung
        | FailureKind::EngineFailed
        | FailureKind::Internal => 500,
    }
}

/// What a client asked for, before the model is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The name as the client wrote it.
    pub model: String,
    /// The work.
    pub body: CallBody,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// How long the model stays; `None` where the client said nothing.
    pub keep_alive: Option<KeepAlive>,
    /// Native options of the request, raw; see [`options::sampling`].
    pub options: Map<String, Value>,
    /// What the text must look like.
    pub format: Format,
    /// Whether to think; `None` where the client said nothing.
    pub think: Option<ThinkMode>,
    /// Whether log probabilities are reported.
    pub logprobs: Option<Logprobs>,
    /// Shorten an over-long prompt instead of failing.
    pub truncate: bool,
    /// Let the window slide; `None` where the client said nothing.
    pub shift: Option<bool>,
    /// Answer with the rendered prompt and compute nothing.
    pub render_only: bool,
    /// Report token counts in a stream.
    pub include_usage: bool,
    /// `temperature` and `top_p` are 1.0 unless given, whatever the model's own parameters say.
    pub openai_defaults: bool,
    /// A wish to think that the model can't fulfil is dropped instead of refused.
    pub think_if_able: bool,
}

impl Call {
    /// A call with Ollama's defaults; parsers fill in the rest.
    #[must_use]
    pub fn new(model: String, body: CallBody) -> Self {
        Self {
            model,
            body,
            stream: true,
            keep_alive: None,
            options: Map::new(),
            format: Format::Text,
            think: None,
            logprobs: None,
            truncate: true,
            shift: None,
            render_only: false,
            include_usage: false,
            openai_defaults: false,
            think_if_able: false,
        }
    }
}

/// The work of a [`Call`].
#[derive(Clone, Debug, PartialEq)]
pub enum CallBody {
    /// Load the model: an empty prompt or no messages.
    Load,
    /// Unload it: the same with `keep_alive` 0.
    Unload,
    /// Continue a conversation.
    Chat {
        /// In order, without the model's own.
        messages: Vec<Message>,
        /// Empty means none.
        tools: Vec<ToolSpec>,
    },
    /// Answer one prompt.
    Generate {
        /// The text; not empty.
        prompt: String,
        /// Replaces the model's.
        system: Option<String>,
        /// Replaces the model's.
        template: Option<String>,
        /// Text after the insertion point.
        suffix: Option<String>,
        /// No template at all.
        raw: bool,
        /// Token ids of an earlier exchange.
        context: Vec<TokenId>,
        /// Encoded images.
        images: Vec<Vec<u8>>,
    },
    /// OpenAI's completions: goes through the model's template as `Generate` does.
    Complete {
        /// The text; not empty.
        prompt: String,
        /// Text after the insertion point.
        suffix: Option<String>,
    },
    /// Embed texts.
    Embed {
        /// Not empty.
        inputs: Vec<String>,
        /// Cut an over-long input instead of failing.
        truncate: bool,
        /// Keep only the first components.
        dimensions: Option<u32>,
        /// Divide by the Euclidean length.
        normalize: bool,
        /// Answer with base64 instead of numbers.
        base64: bool,
    },
}

/// What an encoder needs to know of its request. `http` keeps `created` and `elapsed_ns` fresh where they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Repeated verbatim.
    pub model: String,
    /// RFC 3339 in UTC, for native replies.
    pub created: String,
    /// Seconds since 1970, for OpenAI replies.
    pub created_unix: i64,
    /// `chatcmpl-412`, `cmpl-5`, `msg_…`; empty for native replies.
    pub id: String,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Report token counts in a stream.
    pub include_usage: bool,
    /// From receipt until a worker was ready; an encoder takes it from the grant it sees.
    pub load_ns: u64,
    /// From receipt until now; 0 lets the encoder add up what it knows.
    pub elapsed_ns: u64,
    /// Vectors as base64.
    pub base64: bool,
    /// Random bits for the ids of tool calls.
    pub tool_seed: u64,
    /// Characters of the prompt, for Anthropic's estimate at the start of a stream.
    pub prompt_chars: u64,
}

/// Checks `top_logprobs` and puts it together with its switch.
pub(crate) fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<Logprobs>, Rejection> {
    let top = u8::try_from(top.unwrap_or(0)).ok().filter(|top| *top <= TOP_LOGPROBS_MAX);
    let top = top.ok_or_else(|| Rejection::bad_request("top_logprobs must be between 0 and 20"))?;
    Ok(wanted.unwrap_or(false).then_some(Logprobs { top }))
}

/// Refuses more inputs than one request may bring.
pub(crate) fn check_inputs(inputs: &[String]) -> Result<(), Rejection> {
    if inputs.len() > EMBED_INPUTS_MAX {
        return Err(Rejection::bad_request(format!(
            "too many inputs: {} of at most {EMBED_INPUTS_MAX}; send them in several requests",
            inputs.len()
        )));
    }
    Ok(())
}
