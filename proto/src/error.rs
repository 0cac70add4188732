//! The only error that crosses the wire.
//!
//! A failure has two texts: `public` is for the client and says what to do, `detail` is for the log. Each dialect
//! maps [`FailureKind`] to its own status and body; the kinds are closed and stable.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, and whether trying again helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class; dialects map it to a status.
    pub kind: FailureKind,
    /// Whether trying again can help.
    pub retry: Retry,
    /// For the client: lower-case, no full stop, says what to do.
    pub public: String,
    /// For the log; empty where `public` says it all.
    pub detail: String,
}

impl Failure {
    /// A failure whose public text says it all.
    #[must_use]
    pub fn new(kind: FailureKind, public: impl Into<String>) -> Self {
        Self { kind, retry: kind.retry(), public: public.into(), detail: String::new() }
    }

    /// The same with a text for the log.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl std::error::Error for Failure {}

/// The class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request can't be served as it is (a bad value).
    InvalidRequest,
    /// An option of the wrong type; Ollama answers 500 and clients know it.
    InvalidOption,
    /// The prompt does not fit the context.
    ContextExceeded,
    /// The model can't do that (chat with an embedding model, images, …).
    Unsupported,
    /// The model's chat template failed or is hostile.
    TemplateFailed,
    /// The output grammar was refused or ran out of its budget.
    GrammarFailed,
    /// The model's files are missing, damaged or of an unknown kind.
    ModelInvalid,
    /// The engine could not load the model for another reason.
    LoadFailed,
    /// The load made no progress for too long.
    LoadStalled,
    /// The plan exceeds the memory limit.
    OutOfMemory,
    /// The queue is full or the wait was too long.
    Busy,
    /// The model failed too often; it is tried again later.
    Quarantined,
    /// The server is shutting down.
    ShuttingDown,
    /// The worker died while it held the request.
    WorkerDied,
    /// The worker fell silent while it held the request.
    WorkerHung,
    /// The engine failed in a computation; the worker lives.
    EngineFailed,
    /// The client read too slowly.
    ClientTooSlow,
    /// The client left.
    Cancelled,
    /// A defect of ours.
    Internal,
    /// The client's own deadline has passed.
    DeadlineExceeded,
}

impl FailureKind {
    /// Every kind, for tables and their tests.
    pub const ALL: [Self; 20] = [
        Self::InvalidRequest,
        Self::InvalidOption,
        Self::ContextExceeded,
        Self::Unsupported,
        Self::TemplateFailed,
        Self::GrammarFailed,
        Self::ModelInvalid,
        Self::LoadFailed,
        Self::LoadStalled,
        Self::OutOfMemory,
        Self::Busy,
        Self::Quarantined,
        Self::ShuttingDown,
        Self::WorkerDied,
        Self::WorkerHung,
        Self::EngineFailed,
        Self::ClientTooSlow,
        Self::Cancelled,
        Self::Internal,
        Self::DeadlineExceeded,
    ];

    /// The usual advice for this kind.
    #[must_use]
    pub fn retry(self) -> Retry {
        match self {
            Self::InvalidRequest
            | Self::InvalidOption
            | Self::ContextExceeded
            | Self::Unsupported
            | Self::GrammarFailed
            | Self::ClientTooSlow
            | Self::Cancelled
            | Self::DeadlineExceeded
            | Self::TemplateFailed
            | Self::ModelInvalid
            | Self::Internal => Retry::Never,
            Self::LoadFailed | Self::LoadStalled | Self::WorkerDied | Self::WorkerHung => Retry::FreshWorker,
            Self::EngineFailed | Self::OutOfMemory | Self::Busy | Self::Quarantined | Self::ShuttingDown => {
                Retry::SameWorker
            }
        }
    }
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retry {
    /// The same request fails again.
    Never,
    /// Later, on the same worker.
    SameWorker,
    /// On a new process.
    FreshWorker,
}
