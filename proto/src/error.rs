//! The only error that crosses the wire.
//!
//! A failure has two texts: `public` is for the client and says what to do, `detail` is for the log. Each dialect
//! maps [`FailureKind`] to its own status and body; the kinds are closed and stable.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::without_folders;

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

    /// The same with files in the public text named without their folders, which are no client's business; the whole text is
    /// kept for the log. What a failure says of the request's own content is left as it is.
    #[must_use]
    pub fn without_folders(mut self) -> Self {
        let of_content = matches!(
            self.kind,
            FailureKind::InvalidRequest
                | FailureKind::InvalidOption
                | FailureKind::ContextExceeded
                | FailureKind::TemplateFailed
                | FailureKind::GrammarFailed
        );
        if of_content {
            return self;
        }
        let public = without_folders(&self.public);
        if public != self.public {
            let whole = std::mem::replace(&mut self.public, public);
            self.detail = if self.detail.is_empty() { whole } else { format!("{whole}: {}", self.detail) };
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_and_their_folders_are_not() {
        for (text, told) in [
            ("/home/joe/m.gguf: too short", "m.gguf: too short"),
            ("can't open '/home/joe smith/m.gguf' (2)", "can't open 'm.gguf' (2)"),
            ("a \"/x/y\", b=/x/z;c:/x/w", "a \"y\", b=z;c:w"),
            ("in /var/lib/ollmlx/", "in ollmlx"),
            ("two /a/b and /c/d", "two b and d"),
            ("see https://example.com/a/b", "see https://example.com/a/b"),
            ("model owner/name/x is gone", "model owner/name/x is gone"),
            ("</think> and /no_think", "</think> and /no_think"),
            ("12 tokens/s, and/or", "12 tokens/s, and/or"),
            ("/", "/"),
            ("", ""),
            ("\u{fc} /\u{fc}/\u{e9}", "\u{fc} \u{e9}"),
        ] {
            assert_eq!(without_folders(text), told, "{text}");
        }
    }

    #[test]
    fn the_log_keeps_the_whole_text_and_content_stays_as_it_is() {
        let failure = Failure::new(FailureKind::LoadFailed, "no /a/b").with_detail("more").without_folders();
        assert_eq!((failure.public.as_str(), failure.detail.as_str()), ("no b", "no /a/b: more"));
        let schema = Failure::new(FailureKind::GrammarFailed, "at /properties/x");
        assert_eq!(schema.clone().without_folders(), schema);
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
