//! A request that can't be served: its status and its text, before a dialect wraps them in its own envelope.

use ollmlx_proto::{Failure, FailureKind};

/// A request that can't be served as it is. Every dialect wraps the same status and text in its own envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// HTTP status.
    pub status: u16,
    /// For the client.
    pub message: String,
    /// When to try again, if that is known.
    pub retry_after_s: Option<u64>,
}

impl Rejection {
    /// Any status.
    #[must_use]
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after_s: None }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, message)
    }

    /// 500, which Ollama answers to options and formats of a wrong kind.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }

    /// No model was named.
    #[must_use]
    pub fn no_model() -> Self {
        Self::bad_request("model is required")
    }

    /// The model is not here; the advice says how to get it.
    #[must_use]
    pub fn unknown_model(name: &str, advice: Option<&str>) -> Self {
        Self::not_found(match advice {
            Some(advice) => format!("model '{name}' not found: {advice}"),
            None => format!("model '{name}' not found"),
        })
    }
}

impl From<&Failure> for Rejection {
    fn from(failure: &Failure) -> Self {
        Self::new(status(failure.kind), failure.public.clone())
    }
}

/// The status that a failure has in every dialect.
fn status(kind: FailureKind) -> u16 {
    match kind {
        FailureKind::InvalidRequest
        | FailureKind::ContextExceeded
        | FailureKind::Unsupported
        | FailureKind::GrammarFailed => 400,
        FailureKind::ClientTooSlow => 408,
        FailureKind::Cancelled => 499,
        FailureKind::DeadlineExceeded => 504,
        FailureKind::Busy | FailureKind::Quarantined | FailureKind::ShuttingDown => 503,
        FailureKind::InvalidOption
        | FailureKind::TemplateFailed
        | FailureKind::ModelInvalid
        | FailureKind::LoadFailed
        | FailureKind::LoadStalled
        | FailureKind::OutOfMemory
        | FailureKind::WorkerDied
        | FailureKind::WorkerHung
        | FailureKind::EngineFailed
        | FailureKind::Internal => 500,
    }
}
