//! Small native replies and the native error envelope.

use serde_json::json;

use super::AppState;
use super::respond::{HttpReply, json};
use crate::dialect::{Rejection, ollama};

/// `GET /api/version`.
pub(super) fn version(state: &AppState) -> HttpReply {
    json(200, json!({"version": state.config.version}).to_string())
}

/// `GET /api/status`: there is no cloud here.
pub(super) fn status() -> HttpReply {
    json(200, json!({"cloud": {"disabled": true, "source": "env"}}).to_string())
}

/// `{"error": …}`.
pub(super) fn error_text(rejection: &Rejection) -> String {
    ollama::response::error_body(&rejection.message)
}
