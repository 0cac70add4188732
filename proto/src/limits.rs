//! The numbers that supervisor and workers share, each with its unit and reason. Names end in their unit.
//!
//! What only workers use is in their kit, what only one engine uses in its own crate. A limit that users may change is the
//! default of an entry in the supervisor's `config/table.rs`; it still stands here, once.

// --- frames ---
/// Bytes of one frame after its length field. A Run frame carries the client's messages, so it must hold a
/// body; embeddings of a full batch (2048 × 4096 floats) fit as well.
pub const FRAME_BYTES_MAX: usize = 96 * MIB;
/// Bytes of a frame's fixed part: length, tag, request id.
pub const FRAME_HEADER_BYTES: usize = 4 + 1 + 8;
/// One mebibyte.
pub const MIB: usize = 1024 * 1024;
/// Nesting of JSON from clients.
pub const JSON_DEPTH_MAX: usize = 128;

// --- the conversation ---
/// A started process must say hello within this.
pub const HELLO_TIMEOUT_MS: u64 = 30_000;
/// A load must make progress within this (`OLLAMA_LOAD_TIMEOUT`).
pub const LOAD_STALL_MS: u64 = 5 * 60_000;
/// A busy worker must be heard of within this.
pub const SILENCE_MS: u64 = 60_000;
/// A worker says that it lives at most this often, and at least this often while it has work.
pub const PROGRESS_INTERVAL_MS: u64 = 1_000;
/// Bytes of an inspection's answer.
pub const INSPECT_BYTES_MAX: usize = 64 * MIB;

// --- orders ---
/// Sequences of one worker; llama.cpp's own cap is 256.
pub const SLOTS_MAX: u16 = 64;
/// Tokens of one forward pass.
pub const BATCH_TOKENS_MAX: u32 = 2048;
/// Smallest window.
pub const CONTEXT_TOKENS_MIN: u32 = 4;
/// Least memory limit, of a model or of all, in bytes: no model is that small, so it is a number without its unit.
pub const MEMORY_LIMIT_BYTES_MIN: u64 = 1_000_000;

const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "the length field has 32 bits");
const _: () = assert!(SILENCE_MS > 10 * PROGRESS_INTERVAL_MS, "silence must be unmistakable");
