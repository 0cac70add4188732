//! What every ollmlx worker shares.
//!
//! A worker is a process with two threads: one reads the socket, so that a cancel is seen during a long prefill, and
//! one owns the engine ([`serve`]). An engine implements [`engine::Engine`] and nothing else; batching, sampling,
//! text, chat templates, tool calls, thinking, structured output and the inspect mode are here, once.
//!
//! Everything that comes out of a model file is hostile: it is parsed here, where a crash is cheap, with bounds.

#![forbid(unsafe_code)]

pub mod batch;
pub mod chat;
pub mod contract;
pub mod engine;
pub mod fault;
pub mod grammar;
pub mod inspect;
pub mod limits;
pub mod sampler;
pub mod sandbox;
pub mod serve;
pub mod tell;
pub mod text;
pub mod vocab;
