//! Anthropic's dialect, `/v1/messages`, with the habits of Ollama's (ollama-conformance 1.12).

pub mod request;
pub mod response;
#[cfg(test)]
mod tests;

pub use request::messages;
pub use response::{MessageEncoder, error_body};
