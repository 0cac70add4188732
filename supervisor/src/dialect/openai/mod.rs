//! OpenAI's dialect, `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`, with the habits of Ollama's.

mod message;
pub mod request;
pub mod response;

pub use request::{chat, completions, embeddings};
pub use response::{ChatEncoder, CompletionEncoder, DONE, embeddings_reply, error_body, error_event};
