//! Everything the scheduler wants done. The driver performs effects in order and answers `Spawn` before any other event.

use std::sync::Arc;

use ollmlx_proto::{Failure, Request, RequestId, WorkerId};

use crate::types::{Cause, LoadPlan, Step};

/// How firmly a worker is shown the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// `Drain` over the link (or closing it).
    Ask,
    /// SIGTERM to its process group.
    Term,
    /// SIGKILL to its process group.
    Kill,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start a process. Answered at once by `Spawned` or `SpawnFailed`.
    Spawn {
        /// Who it is to be.
        worker: WorkerId,
        /// What for.
        plan: Box<LoadPlan>,
        /// What is set aside for it, in bytes.
        reserved_bytes: u64,
        /// Bytes that it may take for a moment, as far as those of others go.
        ceiling_bytes: u64,
    },
    /// Send `Load`.
    Load {
        /// To whom.
        worker: WorkerId,
        /// What.
        plan: Box<LoadPlan>,
    },
    /// Give the request to the worker: connect the caller's ticket to the link, then send `Run`. If the caller is
    /// gone, the driver says `Left` and `Ended`.
    Grant {
        /// To whom.
        worker: WorkerId,
        /// What; the tokens that earlier incarnations produced are the driver's to add.
        request: Arc<Request>,
    },
    /// Its worker is gone. Take the way to its client back from the link, with what was produced: a later `Grant` goes on
    /// from there.
    Requeue {
        /// Whose link.
        worker: WorkerId,
        /// What.
        request: RequestId,
    },
    /// Tell a load job that its model is there.
    Loaded {
        /// Whose.
        request: RequestId,
        /// Where.
        worker: WorkerId,
    },
    /// End a waiting or running request with this. The ticket is closed after it.
    Fail {
        /// Whose.
        request: RequestId,
        /// Why.
        failure: Failure,
    },
    /// Send `Cancel`.
    Cancel {
        /// To whom.
        worker: WorkerId,
        /// What.
        request: RequestId,
    },
    /// Show it the door.
    Push {
        /// Whom.
        worker: WorkerId,
        /// How.
        push: Push,
    },
    /// Send `Trim`.
    Trim {
        /// To whom.
        worker: WorkerId,
    },
    /// For the log: the memory ladder was climbed or left.
    Relief {
        /// Step before.
        from: Step,
        /// Step after.
        to: Step,
        /// Bytes measured of all workers.
        measured_bytes: u64,
        /// Bytes there are.
        limit_bytes: Option<u64>,
    },
    /// For the log: workers of several models died together.
    Incident {
        /// Which, counted from 1.
        number: u64,
        /// Class of the cause.
        cause: &'static str,
        /// Names of the models, in order of their deaths.
        models: Vec<String>,
    },
    /// Let a stopped process go on.
    Continue {
        /// Which.
        worker: WorkerId,
    },
    /// For the log: a worker changed state.
    Transition {
        /// Which.
        worker: WorkerId,
        /// State name before.
        from: &'static str,
        /// State name after.
        to: &'static str,
        /// Why it goes, where something is wrong with it; and why it ended, where it did.
        cause: Option<Cause>,
        /// Why it is to go, where it is asked to.
        reason: Option<&'static str>,
    },
    /// An event that can't happen did (I4): logged as an error; tests assert there is none.
    Never {
        /// What.
        what: String,
    },
    /// Every worker is reaped after a shutdown: the driver may end.
    Finished,
}

/// The effects of one step, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outbox(pub Vec<Effect>);

impl Outbox {
    /// Appends one.
    pub fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    /// Appends the report of something impossible.
    pub(super) fn never(&mut self, what: String) {
        self.push(Effect::Never { what });
    }
}
