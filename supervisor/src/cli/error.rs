//! What can go wrong in a command, each in the one line that is printed after `Error: `.

use thiserror::Error;

use crate::config::ConfigError;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// Nobody listens.
    #[error("could not connect to ollmlx server, run 'ollmlx serve' to start it")]
    ServerDown,
    /// It listens and does not answer in time.
    #[error("the server at {0} does not answer")]
    ServerSilent(String),
    /// TLS is not spoken here.
    #[error("https is not supported, put a http:// address of the server into OLLMLX_HOST instead of {0}")]
    NoTls(String),
    /// The server refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: http::StatusCode,
        /// Its words, or the status line.
        message: String,
    },
    /// An error in the middle of a stream.
    #[error("{0}")]
    InStream(String),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what was agreed.
    #[error("the server's answer could not be read: {0}")]
    BadAnswer(&'static str),
    /// A model doesn't fit.
    #[error("{0}")]
    DoesNotFit(String),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Faults did not end as they should.
    #[error("{failed} of {tried} faults did not end as expected")]
    NotSurvived {
        /// How many.
        failed: usize,
        /// Of how many.
        tried: usize,
    },
    /// A file could not be used.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The store can't be opened.
    #[error("the model store can't be used: {0}")]
    Store(String),
    /// The Modelfile makes no sense.
    #[error("{0}")]
    Modelfile(String),
    /// The server's address can't be used.
    #[error("listen tcp {address}: bind: {reason}{hint}")]
    Bind {
        /// Where.
        address: String,
        /// In the system's words, lower-case.
        reason: String,
        /// What to do about it, on a line of its own.
        hint: String,
    },
    /// Something of the system.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl CliError {
    /// Whether the server said that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == http::StatusCode::NOT_FOUND)
    }
}
