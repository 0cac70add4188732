//! The front door: bytes of clients in and out.
//!
//! It knows the catalogue, the driver's handle and the dialects, and nothing of workers or of how anything is decided. One
//! task per connection; a request lives in it, and when the client goes the task's future, and with it the request's
//! ticket, is dropped, which cancels the request.

mod answer;
mod body;
mod create;
mod crowd;
mod dispatch;
pub mod fit;
#[cfg(test)]
mod golden_tests;
mod guard;
pub mod learn;
pub mod listener;
mod listing;
mod manage;
pub mod metrics;
mod models;
mod native;
mod ops;
mod plan;
mod refuse;
#[cfg(test)]
mod refuse_tests;
mod respond;
mod route;
mod stream;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;

use ollmlx_proto::ModelId;
use tokio::sync::Semaphore;

use crate::catalog::{Catalog, Learned};
use crate::config::Rules;
use crate::driver::Handle;

pub use self::crowd::{Crowd, Exempt};
pub use self::listener::{Door, serve, serve_crowd};

/// What the door is told by the settings.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it listens; decides whether the Host guard is on.
    pub address: SocketAddr,
    /// Origins allowed beside the built-in ones.
    pub origins: Vec<String>,
    /// What `/api/version` says.
    pub version: String,
    /// Key that every request must bring, where set.
    pub api_key: Option<String>,
    /// Window of a slot where nobody asks for another, in tokens.
    pub context_tokens: u32,
    /// Slots of a worker.
    pub slots: u16,
    /// Element type of caches.
    pub kv_type: String,
    /// Threads of a worker; 0 lets the engine decide.
    pub threads: u16,
    /// Layers on an accelerator; -1 lets the engine decide.
    pub gpu_layers: i32,
    /// Memory that MLX may wire down on a GPU, in bytes; 0: none.
    pub wired_limit_bytes: u64,
    /// What the settings file says of single models.
    pub rules: Rules,
}

/// What every request can reach.
#[derive(Debug)]
pub struct AppState {
    /// The way to the driver.
    pub handle: Handle,
    /// The models.
    pub catalog: Catalog,
    /// Settings.
    pub config: HttpConfig,
    /// What models took before.
    learned: tokio::sync::watch::Receiver<Learned>,
    forget: tokio::sync::mpsc::Sender<ModelId>,
    /// Why the last upgrade failed.
    upgrade: tokio::sync::watch::Receiver<Option<String>>,
    guard: guard::Guard,
    metrics: Arc<metrics::Metrics>,
    /// Bytes of bodies that may still be held.
    body_budget: Arc<Semaphore>,
}

/// What others tell the handlers while they run.
#[derive(Debug)]
pub struct Told {
    /// What models took before.
    pub learned: tokio::sync::watch::Receiver<Learned>,
    /// For models of which that is to be forgotten.
    pub forget: tokio::sync::mpsc::Sender<ModelId>,
    /// Why the last upgrade failed.
    pub upgrade: tokio::sync::watch::Receiver<Option<String>>,
}

impl AppState {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        handle: Handle,
        catalog: Catalog,
        config: HttpConfig,
        metrics: Arc<metrics::Metrics>,
        told: Told,
    ) -> Self {
        let Told { learned, forget, upgrade } = told;
        let guard = guard::Guard::new(&config);
        let budget = ollmlx_proto::limits::BODY_BYTES_TOTAL_MAX;
        Self {
            handle,
            catalog,
            config,
            learned,
            forget,
            upgrade,
            guard,
            metrics,
            body_budget: Arc::new(Semaphore::new(budget)),
        }
    }

    /// Whether a successor has the socket.
    fn is_replaced(&self) -> bool {
        self.handle.snapshot().is_replaced
    }

    /// Whether the server is on its way out.
    fn is_leaving(&self) -> bool {
        self.handle.snapshot().leaving
    }
}
