//! Small native replies.

use serde_json::json;

use super::respond::{HttpReply, json};
use super::state::AppState;
use crate::dialect::Rejection;

/// `GET /api/version`.
pub(super) fn version(state: &AppState) -> HttpReply {
    json(200, json!({"version": state.config.version}).to_string())
}

/// `GET /api/status`: there is no cloud here.
pub(super) fn status() -> HttpReply {
    json(200, json!({"cloud": {"disabled": true, "source": "env"}}).to_string())
}

/// `POST /api/me`: nor is there an account.
pub(super) fn no_account() -> Rejection {
    Rejection::new(401, "unauthorized")
}
