//! What every request can reach.

use std::sync::Arc;

use crate::limits::BODY_BYTES_TOTAL_MAX;
use ollmlx_proto::ModelId;
use tokio::sync::{mpsc, watch};

use super::body_room::BodyRoom;
use super::config::HttpConfig;
use super::guard::Guard;
use super::metrics::Metrics;
use crate::catalog::{Catalog, Learned};
use crate::driver::Handle;

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
    pub(super) learned: watch::Receiver<Learned>,
    pub(super) forget: mpsc::Sender<ModelId>,
    /// Why the last upgrade failed.
    pub(super) upgrade: watch::Receiver<Option<String>>,
    pub(super) guard: Guard,
    pub(super) metrics: Arc<Metrics>,
    /// For bodies, and for what is made of them until it is handed in.
    pub(super) body_room: Arc<BodyRoom>,
}

/// What others tell the handlers while they run.
#[derive(Debug)]
pub struct Told {
    /// What models took before.
    pub learned: watch::Receiver<Learned>,
    /// For models of which that is to be forgotten.
    pub forget: mpsc::Sender<ModelId>,
    /// Why the last upgrade failed.
    pub upgrade: watch::Receiver<Option<String>>,
}

impl AppState {
    /// Puts the parts together.
    #[must_use]
    pub fn new(handle: Handle, catalog: Catalog, config: HttpConfig, metrics: Arc<Metrics>, told: Told) -> Self {
        let Told { learned, forget, upgrade } = told;
        let guard = Guard::new(&config);
        Self {
            handle,
            catalog,
            config,
            learned,
            forget,
            upgrade,
            guard,
            metrics,
            body_room: BodyRoom::new(BODY_BYTES_TOTAL_MAX),
        }
    }

    /// Whether a successor has the socket.
    pub(super) fn is_replaced(&self) -> bool {
        self.handle.snapshot().is_replaced
    }

    /// Whether the server is on its way out.
    pub(super) fn is_leaving(&self) -> bool {
        self.handle.snapshot().leaving
    }
}
