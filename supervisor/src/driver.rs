//! The one task that owns the scheduler. (to be written; this is the seam that `http` builds on)

use ollmlx_proto::{Failure, ModelId, Output};
use tokio::sync::{mpsc, watch};

use crate::scheduler::{Job, KeepAlive, LoadPlan, Snapshot};

/// What a ticket's holder hears, in order: any number of `Output`s, and exactly one terminal item: `Loaded` for a load
/// job, a terminal `Output`, or `Failed`. After the terminal item the channel closes.
#[derive(Clone, Debug, PartialEq)]
pub enum TicketItem {
    /// The model is loaded and a slot is ours. First item of every job that got that far.
    Granted {
        /// From arrival to this moment, in nanoseconds: queueing and loading.
        load_ns: u64,
    },
    /// Terminal for `Job::Load`.
    Loaded,
    /// What the worker says; deltas of a slow reader arrive merged.
    Output(Output),
    /// Terminal: refused, failed, or the worker died.
    Failed(Failure),
}

/// A request in the house. Dropping it cancels the request.
#[derive(Debug)]
pub struct Ticket {
    _todo: (),
}

impl Ticket {
    /// The next item, or `None` after the terminal one. Cancel-safe.
    pub async fn next(&mut self) -> Option<TicketItem> {
        unimplemented!()
    }
}

/// The only way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    _events: mpsc::Sender<()>,
    _snapshots: watch::Receiver<Snapshot>,
}

impl Handle {
    /// Hands in a job. The request's id inside `Job::Run` is replaced by the driver's own. Never waits for more
    /// than room in the driver's queue; refusals arrive as `TicketItem::Failed`.
    pub async fn submit(&self, _job: Job, _plan: LoadPlan, _keep_alive: Option<KeepAlive>) -> Ticket {
        unimplemented!()
    }

    /// Unload as soon as nothing runs. Returns at once; unknown models are fine.
    pub async fn unload(&self, _model: ModelId) {
        unimplemented!()
    }

    /// Forget a model's deaths (it was re-created, or a person asked).
    pub async fn pardon(&self, _model: ModelId) {
        unimplemented!()
    }

    /// The latest view, lock-free.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        unimplemented!()
    }
}
