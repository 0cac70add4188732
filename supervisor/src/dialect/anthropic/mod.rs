//! Anthropic's dialect, `/v1/messages`, with the habits of Ollama's (`docs/conformance.md`, Anthropic).

pub mod request;
mod response;
#[cfg(test)]
mod tests;

use self::response::{MessageEncoder, error_body};
use super::{Dialect, Endpoint, Framing, Rejection};

/// What Anthropic's paths have in common.
pub static ANTHROPIC: Dialect = Dialect {
    name: "anthropic",
    refuse: |rejection, luck| error_body(rejection, &id("req", luck)) + "\n",
    framing: Framing::Events,
};

/// Goes on with a conversation.
pub static MESSAGES: Endpoint = Endpoint {
    dialect: &ANTHROPIC,
    parse: request::messages,
    encoder: |_, meta| Box::new(MessageEncoder::new(meta)),
    id: |luck| id("msg", luck),
    verb: "chat",
    no_model: Rejection::no_model,
    unknown_model: Rejection::unknown_model,
};

/// An id: what it is of, and 24 hexadecimal digits.
fn id(kind: &str, luck: u128) -> String {
    format!("{kind}_{:024x}", luck >> 32)
}
