//! Bounded reading of request bodies: bytes, time, and all bodies together. What is made of one takes its place.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::{BODY_BYTES_MAX, BODY_INLINE_BYTES_MAX, BODY_READ_TIMEOUT_MS};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_ENCODING;
use hyper::http::request::Parts;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::body_room::{BodyHold, BodyRoom, too_slow};
use super::crowd::Peer;
use crate::dialect::Rejection;
use crate::dialect::json::JsonBody;

/// A whole body, and the room that it holds.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Bytes,
    hold: BodyHold,
}

/// Reads a body to its end.
///
/// # Errors
/// 413 for a large one, 415 for a packed one, 408 for a slow one, 503 where too many are held, 400 for a broken one.
pub(super) async fn read(
    head: &Parts,
    peer: Peer,
    incoming: Incoming,
    room: &Arc<BodyRoom>,
) -> Result<Body, Rejection> {
    let packed = head.headers.get(CONTENT_ENCODING).is_some_and(|value| !value.is_empty() && value != "identity");
    if packed {
        return Err(Rejection::new(415, "compressed request bodies are not supported; send plain JSON"));
    }
    if incoming.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let (hold, ended) = room.enter(peer, Instant::now());
    let timeout = Duration::from_millis(BODY_READ_TIMEOUT_MS);
    match tokio::time::timeout(timeout, collect(incoming, hold, ended)).await {
        Ok(read) => read,
        Err(_) => Err(Rejection::new(408, "the request body did not arrive in time")),
    }
}

fn too_large() -> Rejection {
    Rejection::new(413, format!("request body is larger than {} MB", BODY_BYTES_MAX / (1024 * 1024)))
}

async fn collect(mut incoming: Incoming, hold: BodyHold, mut ended: oneshot::Receiver<()>) -> Result<Body, Rejection> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::select! {
            // Both are cancel-safe.
            _ended = &mut ended => return Err(too_slow()),
            frame = incoming.frame() => frame,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Rejection::bad_request("the request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        hold.grow(data.len(), Instant::now())?;
        bytes.extend_from_slice(&data);
    }
    hold.complete()?;
    Ok(Body { bytes: bytes.freeze(), hold })
}

impl Body {
    /// Makes of it what it says, and lets the bytes go. What is held from then on is the room of what was made.
    ///
    /// # Errors
    /// What is wrong with it, or 503 where there is no room.
    pub(super) async fn parse<T: Send + 'static>(
        self,
        parse: fn(&JsonBody<'_>) -> Result<T, Rejection>,
    ) -> Result<(T, BodyHold), Rejection> {
        let Self { bytes, hold } = self;
        let is_small = bytes.len() <= BODY_INLINE_BYTES_MAX;
        // The room is held as long as the bytes are: reading goes on to its end even where the client has left.
        let read = move || {
            let body = JsonBody::new(&bytes);
            let made = parse(&body)?;
            hold.resize(body.built_bytes(), Instant::now())?;
            Ok((made, hold))
        };
        let read = if is_small { Ok(read()) } else { tokio::task::spawn_blocking(read).await };
        read.map_err(|_| Rejection::internal("the request could not be read"))?
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_body_holds_its_room_until_it_is_read_to_its_end() {
        static IS_OPEN: AtomicBool = AtomicBool::new(false);
        let room = BodyRoom::new(BODY_BYTES_MAX);
        let (hold, _ended) = room.enter(Peer::of(IpAddr::from([192, 0, 2, 1])), Instant::now());
        let bytes = Bytes::from(vec![b' '; BODY_INLINE_BYTES_MAX + 1]);
        hold.grow(bytes.len(), Instant::now()).unwrap();
        let mut parse = Box::pin(Body { bytes, hold }.parse(|_| {
            while !IS_OPEN.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(())
        }));
        tokio::select! {
            biased;
            _ = &mut parse => panic!("nobody has opened it"),
            () = std::future::ready(()) => {}
        }
        // Its client leaves.
        drop(parse);
        assert_eq!(room.bytes(), BODY_INLINE_BYTES_MAX + 1);
        IS_OPEN.store(true, Ordering::Relaxed);
        while room.bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
