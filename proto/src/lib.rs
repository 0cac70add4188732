//! The words and frames that the ollmlx supervisor and its workers exchange.
//!
//! Pure data: serde and std only, no tokio, no I/O, no clock. Everything that crosses the worker socket is a
//! type of this crate, and [`frame`] is the only file that knows how it becomes bytes. The wire is described in
//! prose, with a byte dump per message, in `PROTOCOL.md` beside this crate's manifest.
//!
//! JSON that came from a client (tool schemas, tool-call arguments, a JSON Schema) travels as text in
//! [`request::JsonText`]: the encoding is not self-describing, and the worker is the one that must parse it.

#![forbid(unsafe_code)]

pub mod card;
pub mod control;
pub mod error;
pub mod fault;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod memory;
pub mod output;
pub mod request;
pub mod text;
pub mod version;

#[cfg(test)]
mod protocol_doc;

pub use card::{Capability, ModelCard, TensorInfo};
pub use control::{FlashAttention, FromWorker, LoadSpec, MemoryReport, Ready, ToWorker, WorkerHello};
pub use error::{Failure, FailureKind, Retry};
pub use ids::{Incarnation, ModelId, RequestId, SlotId, TokenId, WorkerId};
pub use memory::{KvCells, MemoryModel, Unfused};
pub use output::{
    Delta, Embeddings, FinishReason, Finished, Output, Part, Started, Timings, TokenLogprob, ToolCall, TopLogprob,
    Usage,
};
pub use request::{
    CacheSalt, Chat, Complete, ContentPart, Embed, Format, JsonText, Limits, Logprobs, Message, PastToolCall, Request,
    ResumePoint, Role, Sampling, ThinkLevel, ThinkMode, ToolSpec, UnixSeconds, Work,
};
