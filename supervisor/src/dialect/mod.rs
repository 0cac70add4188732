//! Dialects: bytes of a client in, [`Call`] out; what a ticket says in, bytes for the client out.
//!
//! Everything here is a pure function of its arguments: no I/O, no clock, no randomness, no tokio. A dialect
//! looks nothing up in the catalogue and knows neither the scheduler nor another dialect; whatever depends on the model (capabilities, defaults,
//! the window) is decided by `http`, between a parser and an encoder. Input is hostile: nothing here panics on it, nesting
//! ends at [`crate::limits::JSON_DEPTH_MAX`].
//!
//! A dialect is a folder: one [`Dialect`], and one [`Endpoint`] for each of its paths that run a model. What two dialects
//! share stands beside the folders.

mod answer;
pub mod anthropic;
mod call;
mod endpoint;
mod fields;
pub mod json;
pub mod ollama;
pub mod openai;
pub mod options;
mod rejection;
#[cfg(test)]
mod replies_tests;
#[cfg(test)]
mod requests_tests;
mod tools;
mod values;
mod vectors;

pub use call::{Call, CallBody};
pub use endpoint::{Dialect, Encoder, Endpoint, Framing, Meta};
pub use rejection::Rejection;
