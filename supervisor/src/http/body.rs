//! Bounded reading of request bodies: bytes, time, and all bodies together.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::{BODY_BYTES_MAX, BODY_READ_TIMEOUT_MS};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderMap};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dialect::Rejection;

/// A whole body, and the bytes of the common budget that it holds.
#[derive(Debug)]
pub(super) struct Body {
    /// The bytes.
    pub(super) bytes: Bytes,
    _budget: Option<OwnedSemaphorePermit>,
}

/// Reads a body to its end.
///
/// # Errors
/// 413 for a large one, 415 for a packed one, 408 for a slow one, 503 where too many are held, 400 for a broken one.
pub(super) async fn read(headers: &HeaderMap, incoming: Incoming, budget: &Arc<Semaphore>) -> Result<Body, Rejection> {
    let packed = headers.get(CONTENT_ENCODING).is_some_and(|value| !value.is_empty() && value != "identity");
    if packed {
        return Err(Rejection::new(415, "compressed request bodies are not supported; send plain JSON"));
    }
    if incoming.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let timeout = Duration::from_millis(BODY_READ_TIMEOUT_MS);
    match tokio::time::timeout(timeout, collect(incoming, budget)).await {
        Ok(read) => read,
        Err(_) => Err(Rejection::new(408, "the request body did not arrive in time")),
    }
}

fn too_large() -> Rejection {
    Rejection::new(413, format!("request body is larger than {} MB", BODY_BYTES_MAX / (1024 * 1024)))
}

async fn collect(mut incoming: Incoming, budget: &Arc<Semaphore>) -> Result<Body, Rejection> {
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| Rejection::bad_request("the request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(budget)
            .try_acquire_many_owned(count)
            .map_err(|_| Rejection::new(503, "server busy, please try again.  too many large requests at once"))?;
        match &mut held {
            Some(held) => held.merge(permit),
            None => held = Some(permit),
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Body { bytes: bytes.freeze(), _budget: held })
}
