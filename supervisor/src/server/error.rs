//! Why a server does not start, or ends before it was asked to; each is the one line that is printed after `Error: `.

use std::io::ErrorKind;

use thiserror::Error;

use crate::config::KeysError;

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The server's address can't be used.
    #[error("listen tcp {address}: bind: {reason}{hint}")]
    Bind {
        /// Where.
        address: String,
        /// In the system's words, lower-case.
        reason: String,
        /// What to do about it, on a line of its own.
        hint: String,
        /// Its kind.
        kind: ErrorKind,
    },
    /// Another server has the state folder.
    #[error(
        "another server uses the state folder {folder}: {who}\n(Stop it, replace it with `{upgrade}`, or give this one \
         a folder of its own: `ollmlx serve --state-dir FOLDER` or OLLMLX_STATE_DIR=FOLDER)"
    )]
    Occupied {
        /// Which.
        folder: String,
        /// The other one, as far as it is known.
        who: String,
        /// The command that replaces it.
        upgrade: String,
    },
    /// A link lies where the server would write.
    #[error(
        "the state folder {folder} can't be used: {name} in it is a link, and what it leads to may be somebody's\n(Remove the \
         link, or give the server another folder: `ollmlx serve --state-dir FOLDER` or OLLMLX_STATE_DIR=FOLDER)"
    )]
    Linked {
        /// Which folder.
        folder: String,
        /// The link's name.
        name: &'static str,
    },
    /// The store can't be opened.
    #[error("the model store can't be used: {0}")]
    Store(String),
    /// A model can't be judged without a server.
    #[error("{0}")]
    Model(String),
    /// It can't be told who may ask.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Something of the system.
    #[error("{step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl ServerError {
    /// Whether a second try is of no use before a setting is changed. A port or a folder that another process has, an address
    /// that is not there yet: all that may be better a moment later.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Bind { kind: ErrorKind::PermissionDenied, .. } | Self::Linked { .. } | Self::Keys(_))
    }

    /// What the system refused while this was tried.
    pub(super) fn system(step: &'static str) -> impl FnOnce(std::io::Error) -> Self + Copy {
        move |source| Self::System { step, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_38_only_a_port_that_only_root_may_have_is_for_ever() {
        let bind =
            |kind| ServerError::Bind { address: String::new(), reason: String::new(), hint: String::new(), kind };
        assert!(bind(ErrorKind::PermissionDenied).is_of_settings());
        for kind in [ErrorKind::AddrInUse, ErrorKind::AddrNotAvailable, ErrorKind::NotFound] {
            assert!(!bind(kind).is_of_settings(), "{kind:?}");
        }
    }
}
