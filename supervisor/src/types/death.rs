//! What is told of a death that nobody asked for: when, why, its last words, and what became of those it ran.

use std::collections::VecDeque;
use std::sync::Arc;

use ollmlx_proto::{RequestId, WorkerId};

use super::{Cause, Mono};
use crate::catalog::ModelRef;

/// What became of a request whose worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It waits for the next process and goes on there.
    Resumed,
    /// Its worker died again while it ran alone: it is taken for the cause, and fails.
    Suspect,
    /// Its client had left.
    ClientGone,
    /// It could not go on: the server leaves, its model rests or can't be loaded, it needs more memory than there is, or kills
    /// have cost it too much time.
    Failed,
}

impl Fate {
    /// Lower-case words for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Suspect => "failed as the suspect",
            Self::ClientGone => "client gone",
            Self::Failed => "failed",
        }
    }
}

/// A request that a worker held when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    /// Which.
    pub request: RequestId,
    /// Deaths that it has been present at since it was last above suspicion, this one included.
    pub deaths: u32,
    /// What became of it.
    pub fate: Fate,
}

/// What the model does after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It may be started at once.
    Ready,
    /// It rests until then.
    Backoff(Mono),
    /// It is refused until then.
    Quarantine(Mono),
}

impl After {
    /// A word for it, and until when it lasts.
    #[must_use]
    pub fn parts(self) -> (&'static str, Option<Mono>) {
        match self {
            Self::Ready => ("ready", None),
            Self::Backoff(until) => ("backoff", Some(until)),
            Self::Quarantine(until) => ("quarantine", Some(until)),
        }
    }
}

/// One death.
#[derive(Clone, Debug, PartialEq)]
pub struct DeathRecord {
    /// Whose.
    pub worker: WorkerId,
    /// When it was settled.
    pub at: Mono,
    /// The state that it died in, or that it was shown the door from: `loading`, `busy` …
    pub state: &'static str,
    /// Why; [`Cause::words`] says it to people.
    pub cause: Cause,
    /// Last lines of what it printed.
    pub log_tail: String,
    /// Requests it held.
    pub requests: Vec<HeldRequest>,
    /// What follows.
    pub after: After,
    /// The lower CPU level that the next process is told to use, where that follows.
    pub cpu_level: Option<&'static str>,
    /// Number of the incident that it was a part of: workers of other models died with it.
    pub incident: Option<u64>,
}

/// The deaths of one model, oldest first; never empty in a snapshot.
#[derive(Clone, Debug)]
pub struct ModelDeaths {
    /// Which model.
    pub model: Arc<ModelRef>,
    /// Its deaths.
    pub deaths: Arc<VecDeque<DeathRecord>>,
    /// How many there were, forgotten ones included.
    pub count: u64,
}
