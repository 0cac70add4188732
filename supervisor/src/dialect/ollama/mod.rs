//! Ollama's own dialect, `/api/…`.

pub mod manage;
pub mod request;
pub mod response;
pub mod values;

pub use manage::{CopyRequest, CreateRequest, NameRequest, ShowRequest};
pub use request::{chat, check_raw, embed, embeddings, generate};
pub use response::{
    ChatEncoder, GenerateEncoder, embed_reply, embeddings_reply, error_body, failure_reply, load_reply,
};

pub use super::error_status;
