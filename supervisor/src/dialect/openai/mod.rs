//! OpenAI's dialect, `/v1/…`, with the habits of Ollama's.

mod message;
pub mod request;
mod response;
mod vectors;

#[cfg(test)]
pub(super) use self::response::DONE;
use self::response::{ChatEncoder, CompletionEncoder, error_body};
use super::vectors::{VectorEncoder, unknown_model};
use super::{Dialect, Endpoint, Framing, Rejection};

/// What OpenAI's paths have in common.
pub static OPENAI: Dialect =
    Dialect { name: "openai", refuse: |rejection, _| error_body(rejection) + "\n", framing: Framing::Events };

/// Goes on with a conversation.
pub static CHAT: Endpoint = Endpoint {
    dialect: &OPENAI,
    parse: request::chat,
    encoder: |call, meta| Box::new(ChatEncoder::new(call, meta)),
    id: |luck| format!("chatcmpl-{}", luck % 1_000_000_000),
    verb: "chat",
    no_model: Rejection::no_model,
    unknown_model: Rejection::unknown_model,
};

/// Answers to a prompt.
pub static COMPLETIONS: Endpoint = Endpoint {
    dialect: &OPENAI,
    parse: request::completions,
    encoder: |call, meta| Box::new(CompletionEncoder::new(call, meta)),
    id: |luck| format!("cmpl-{}", luck % 1_000_000_000),
    verb: "generate",
    no_model: Rejection::no_model,
    unknown_model: Rejection::unknown_model,
};

/// Vectors of texts.
pub static EMBEDDINGS: Endpoint = Endpoint {
    dialect: &OPENAI,
    parse: request::embeddings,
    encoder: |call, meta| Box::new(VectorEncoder::new(meta, vectors::wire(call))),
    id: |_| String::new(),
    verb: "generate",
    no_model: Rejection::no_model,
    unknown_model,
};
