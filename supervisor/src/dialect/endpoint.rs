//! The one interface of all dialects: what a dialect is, and what an endpoint that runs a model is.
//!
//! A dialect is a folder with one [`Dialect`] and one [`Endpoint`] for each of its paths that run a model. Which path that
//! is stands in the table of [`crate::http`], and nowhere else.

use super::json::JsonBody;
use super::{Call, Rejection};
use crate::types::TicketItem;

/// One way of talking to clients: what is the same at all of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// What it is called in metrics.
    pub name: &'static str,
    /// The body of the reply to a request that is refused. The number is luck, for ids.
    pub refuse: fn(&Rejection, u128) -> String,
    /// How its streams are framed.
    pub framing: Framing,
}

/// How the pieces of a stream are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Lines, each a JSON object with its own date.
    Lines,
    /// Server-sent events, of one date; comments among them are signs of life while a prompt is computed.
    Events,
}

/// One endpoint that runs a model: how its requests are read, and how its replies are written.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Whose it is.
    pub dialect: &'static Dialect,
    /// Reads a body. Refuses what the body alone makes wrong.
    pub parse: fn(&JsonBody<'_>) -> Result<Call, Rejection>,
    /// Writes the reply to one request.
    pub encoder: fn(&Call, Meta) -> Box<dyn Encoder>,
    /// The id of a reply, from luck; empty where replies have none.
    pub id: fn(u128) -> String,
    /// What a model that can't is said not to support.
    pub verb: &'static str,
    /// What a request is told that names no model.
    pub no_model: fn() -> Rejection,
    /// What a request is told whose model is not here, with the advice how to get it.
    pub unknown_model: fn(&str, Option<&str>) -> Rejection,
}

/// Turns what a ticket says into a reply. One per request: either [`Encoder::frames`] for every item, or
/// [`Encoder::push`] for every item and [`Encoder::finish`] after the terminal one.
pub trait Encoder: Send {
    /// To be kept fresh (`created`, `elapsed_ns`).
    fn meta(&mut self) -> &mut Meta;
    /// What an item adds to a stream, framing included; often nothing, and always where an endpoint doesn't stream.
    fn frames(&mut self, _item: &TicketItem) -> String {
        String::new()
    }
    /// Takes in an item of an answer that does not stream.
    fn push(&mut self, item: &TicketItem);
    /// The whole answer.
    ///
    /// # Errors
    /// What went wrong, where the terminal item was a failure.
    fn finish(&mut self) -> Result<String, Rejection>;
}

/// What an encoder needs to know beside its call. `http` keeps `created` and `elapsed_ns` fresh where they matter.
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
    /// From receipt until a worker was ready; an encoder takes it from the grant it sees.
    pub load_ns: u64,
    /// From receipt until now; 0 lets the encoder add up what it knows.
    pub elapsed_ns: u64,
    /// Random bits for the ids of tool calls.
    pub tool_seed: u64,
    /// Characters of the prompt, for Anthropic's estimate at the start of a stream.
    pub prompt_chars: u64,
}
