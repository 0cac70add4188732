//! Refusals: what goes wrong here, in the envelope of a dialect.

use hyper::StatusCode;
use hyper::header::{HeaderValue, RETRY_AFTER};

use super::respond::{HttpReply, json};
use crate::catalog::CatalogError;
use crate::dialect::{Dialect, Endpoint, Rejection};
use crate::os::rng;

/// The error reply of a dialect.
pub(super) fn refuse(dialect: &Dialect, rejection: &Rejection) -> HttpReply {
    let mut reply = json(rejection.status, (dialect.refuse)(rejection, luck()));
    if let Some(seconds) = rejection.retry_after_s {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

/// Whoever is told that the server is busy is told when to come again, by this estimate where nothing better is known.
pub(super) fn add_retry_after(reply: &mut HttpReply, seconds: impl FnOnce() -> u64) {
    if reply.status() == StatusCode::SERVICE_UNAVAILABLE && !reply.headers().contains_key(RETRY_AFTER) {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds()));
    }
}

/// Luck for ids in replies.
pub(super) fn luck() -> u128 {
    (u128::from(rng::luck()) << 64) | u128::from(rng::luck())
}

/// What a request that runs a model is told of a model that can't be had (`docs/conformance.md`, Names).
pub(super) fn model_error(endpoint: &Endpoint, name: &str, error: &CatalogError) -> Rejection {
    match error {
        CatalogError::InvalidName(_) if name.is_empty() => (endpoint.no_model)(),
        CatalogError::NotFound(_) => (endpoint.unknown_model)(name, None),
        CatalogError::NotCached { advice, .. } => (endpoint.unknown_model)(name, Some(advice)),
        other => catalog_error(other),
    }
}

/// What the catalogue refuses, wherever nothing else is said of it.
pub(super) fn catalog_error(error: &CatalogError) -> Rejection {
    match error {
        CatalogError::InvalidName(_) => Rejection::bad_request("invalid model name"),
        CatalogError::NotFound(name) => Rejection::unknown_model(name, None),
        CatalogError::NotCached { name, advice } => Rejection::unknown_model(name, Some(advice)),
        CatalogError::InvalidDigest(_) => Rejection::bad_request("invalid digest format"),
        CatalogError::BlobMissing(_) | CatalogError::DigestMismatch { .. } => Rejection::bad_request(error.to_string()),
        CatalogError::Refused { status_hint, message } => Rejection::new(*status_hint, message.clone()),
        CatalogError::Unreadable(failure) => Rejection::from(failure),
        CatalogError::Io { source, .. } => {
            tracing::error!(error = error as &dyn std::error::Error, "the store failed");
            let full = source.kind() == std::io::ErrorKind::StorageFull;
            Rejection::internal(if full { format!("{error}: no space left on device") } else { error.to_string() })
        }
    }
}
