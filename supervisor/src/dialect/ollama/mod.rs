//! Ollama's own dialect, `/api/…`.

pub mod manage;
pub mod request;
mod response;
mod values;
mod vectors;

use self::response::NativeEncoder;
pub use self::response::error_body;
use super::vectors::{VectorEncoder, unknown_model};
use super::{Dialect, Endpoint, Framing, Rejection};

/// What Ollama's paths have in common.
pub static OLLAMA: Dialect = native("ollama");

/// The same for paths that only this server has.
pub static OLLMLX: Dialect = native("ollmlx");

const fn native(name: &'static str) -> Dialect {
    Dialect { name, refuse: |rejection, _| error_body(&rejection.message), framing: Framing::Lines }
}

/// Answers to a prompt.
pub static GENERATE: Endpoint = Endpoint {
    dialect: &OLLAMA,
    parse: request::generate,
    encoder: |_, meta| Box::new(NativeEncoder::generate(meta)),
    id: |_| String::new(),
    verb: "generate",
    no_model: || Rejection::unknown_model("", None),
    unknown_model: Rejection::unknown_model,
};

/// Goes on with a conversation.
pub static CHAT: Endpoint = Endpoint {
    dialect: &OLLAMA,
    parse: request::chat,
    encoder: |_, meta| Box::new(NativeEncoder::chat(meta)),
    id: |_| String::new(),
    verb: "chat",
    no_model: Rejection::no_model,
    unknown_model: Rejection::unknown_model,
};

/// Vectors of texts.
pub static EMBED: Endpoint = Endpoint {
    dialect: &OLLAMA,
    parse: request::embed,
    encoder: |_, meta| Box::new(VectorEncoder::new(meta, vectors::EMBED)),
    id: |_| String::new(),
    verb: "generate",
    no_model: || Rejection::unknown_model("", None),
    unknown_model,
};

/// The vector of a text, in the old form.
pub static EMBEDDINGS: Endpoint = Endpoint {
    dialect: &OLLAMA,
    parse: request::embeddings,
    encoder: |_, meta| Box::new(VectorEncoder::new(meta, vectors::EMBEDDINGS)),
    id: |_| String::new(),
    verb: "generate",
    no_model: Rejection::no_model,
    unknown_model,
};
