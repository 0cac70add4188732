//! Replies: bodies, content types, nothing clever.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::stream::TicketBody;

/// What a reply's body is made of.
#[derive(Debug)]
pub(super) enum Reply {
    /// Bytes that are there.
    Whole(Option<Bytes>),
    /// Lines or events of a request that runs; dropping it cancels the request.
    Ticket(Box<TicketBody>),
    /// Lines that something else writes.
    Lines(tokio::sync::mpsc::Receiver<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Ticket(body) => body.poll_bytes(context),
            Self::Lines(lines) => lines.poll_recv(context),
        };
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Ticket(_) | Self::Lines(_) => SizeHint::default(),
        }
    }
}

/// A reply of this door.
pub(super) type HttpReply = Response<Reply>;

/// The content type of ordinary JSON replies.
pub(super) const JSON: &str = "application/json; charset=utf-8";
/// The content type of lines.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// The content type of events.
pub(super) const EVENTS: &str = "text/event-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// A reply with a content type. An unknown status is our own mistake and becomes 500.
pub(super) fn reply(status: u16, content_type: &'static str, body: Reply) -> HttpReply {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whole bytes.
pub(super) fn whole(text: impl Into<Bytes>) -> Reply {
    Reply::Whole(Some(text.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
}

/// Ordinary JSON.
pub(super) fn json(status: u16, text: String) -> HttpReply {
    reply(status, JSON, whole(text))
}

/// Plain text.
pub(super) fn text(status: u16, text: &'static str) -> HttpReply {
    reply(status, TEXT, whole(text))
}

/// A status and nothing else.
pub(super) fn empty(status: u16) -> HttpReply {
    let mut response = Response::new(Reply::Whole(None));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
