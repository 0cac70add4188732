//! What can go wrong in a command, each in the one line that is printed after `Error: `.

use thiserror::Error;

use crate::config::ConfigError;
use crate::server::ServerError;

/// Exit status where the settings must be changed before it is of any use to try again: `EX_CONFIG` of sysexits(3). The
/// service manager's unit says that it ends there.
pub const EXIT_SETTINGS: u8 = 78;

/// Exit status of `ollmlx fit` where it can't tell, since 1 is its answer that a model doesn't fit. It is what clap, and grep,
/// use for errors.
pub const EXIT_UNTOLD: u8 = 2;

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
    /// Whether a model fits could not be told.
    #[error("{0}")]
    Untold(Box<CliError>),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The server's command line makes no sense.
    #[error("{0}")]
    ServeUsage(String),
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
    /// The Modelfile makes no sense.
    #[error("{0}")]
    Modelfile(String),
    /// There is no server.
    #[error(transparent)]
    Server(#[from] ServerError),
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

    /// The process's exit status: [`EXIT_SETTINGS`], [`EXIT_UNTOLD`], or 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::ServeUsage(_) => EXIT_SETTINGS,
            Self::Server(error) if error.is_of_settings() => EXIT_SETTINGS,
            Self::Untold(_) => EXIT_UNTOLD,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::config::{Config, Sources};

    #[test]
    fn row_38_only_what_no_second_try_can_better_has_a_status_of_its_own() {
        let flags = [("max_queue".to_owned(), "many".to_owned())].into();
        let bad = Config::from_sources(&Sources { flags, ..Sources::default() }).unwrap_err();
        assert_eq!(CliError::from(bad).exit_status(), 78);
        assert_eq!(CliError::ServeUsage(String::new()).exit_status(), 78);
        let bind = |kind| {
            let (address, reason, hint) = Default::default();
            CliError::Server(ServerError::Bind { address, reason, hint, kind })
        };
        assert_eq!(bind(ErrorKind::PermissionDenied).exit_status(), 78, "a port that only root may have");
        for kind in [ErrorKind::AddrInUse, ErrorKind::AddrNotAvailable, ErrorKind::NotFound] {
            assert_eq!(bind(kind).exit_status(), 1, "{kind:?}");
        }
        let (folder, who, upgrade) = Default::default();
        assert_eq!(CliError::from(ServerError::Occupied { folder, who, upgrade }).exit_status(), 1);
        assert_eq!(CliError::ServerDown.exit_status(), 1);
        assert_eq!(CliError::Untold(Box::new(CliError::ServerDown)).exit_status(), 2);
        assert_eq!(CliError::DoesNotFit(String::new()).exit_status(), 1);
    }
}
