//! ollmlx: the long-lived process, as a library that its binary and its tests share.
//!
//! # What it is
//!
//! A client's request crosses the rooms below from left to right. What is *decided* is decided in one pure value,
//! [`scheduler::Scheduler`]; what is *done* is done by one task, [`driver`], which carries out the effects that the
//! scheduler returns and turns the world back into events. Tokens never visit the scheduler: once a request is granted,
//! the [`worker`] link hands the model's words straight to the caller's ticket. [`server`] puts the rooms together;
//! [`cli`] is the command, which talks to a server over HTTP like any client.
//!
//! ```text
//!  client ── http::listener ── http::route ── dialect::*::request ── catalog::resolve ─┐
//!                                                                                     │ Job, LoadPlan
//!            ┌──────────── driver::Handle ◄─────────────────────────────────────────────┘
//!            ▼                                              control plane: who may run
//!        driver task ── Event ─► scheduler::step ─► Effect ──┐
//!            ▲                                              ▼
//!            └──── worker::{spawn, link, reap} ◄── socket ──► worker process (one per model)
//!                        │                                  data plane: bytes of a running request
//!  client ◄── http::stream ◄── dialect::*::response ◄── Ticket ◄┘
//! ```
//!
//! # What is absent
//!
//! These sentences are the architecture. What they say of the scheduler, of dialects, of channels and of `unsafe` is
//! checked, by the rules in `tests/shape/src/rules.rs` and by lints.
//!
//! - No lock guards the life of a worker: only [`driver`] owns a [`scheduler::Scheduler`].
//! - The scheduler has no clock, no process, no task and no randomness of its own: time is an argument, luck is a seed. The
//!   log of `(Mono, Event)` that the driver keeps replays a decision, see [`driver::record`].
//! - No code here parses a model file. Weights, tokenizer, template and metadata are read by a worker, where a crash
//!   is cheap; [`catalog`] asks a worker's inspect mode for the facts.
//! - No dialect knows another one, and workers know none: [`dialect`] translates into the vocabulary of
//!   `ollmlx_proto` and back.
//! - No unbounded queue, no wait without a deadline, no byte of memory without an owner: every limit is a constant in
//!   `crate::limits` or an entry of `config::table`.
//! - No `unsafe`.
//!
//! How to add an endpoint, a setting or an engine is in `docs/adding.md`, the rooms in `docs/architecture.md`.

#![forbid(unsafe_code)]

pub mod catalog;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod driver;
pub mod http;
pub mod limits;
pub mod os;
pub mod scheduler;
pub mod server;
pub mod telemetry;
pub mod types;
pub mod worker;

/// Of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
