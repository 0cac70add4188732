//! The front door: bytes of clients in and out.
//!
//! It knows the catalogue, the driver's handle and the dialects, and nothing of workers or of how anything is decided. One
//! task per connection; a request lives in it, and when the client goes the task's future, and with it the request's
//! ticket, is dropped, which cancels the request.

mod answer;
mod asker;
mod body;
mod body_room;
mod config;
mod create;
mod crowd;
mod dispatch;
pub mod fit;
#[cfg(test)]
mod golden_tests;
mod guard;
mod host;
pub mod learn;
pub mod listener;
mod listing;
mod manage;
pub mod metrics;
mod models;
mod native;
mod ops;
mod origin;
mod plan;
mod probes;
mod refuse;
#[cfg(test)]
mod refuse_tests;
mod respond;
mod route;
mod state;
mod stream;
mod work;

pub use self::config::HttpConfig;
pub use self::crowd::{Crowd, Exempt};
pub use self::listener::{Door, serve, serve_crowd};
pub use self::state::{AppState, Told};
