//! From a request's head to its reply: the guard, the row of its path, and whoever answers there.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{Method, Request};

use super::answer::run;
use super::asker::Asker;
use super::body;
use super::crowd::Peer;
use super::guard::{Clearance, mark};
use super::refuse::{add_retry_after, refuse};
use super::respond::{HttpReply, empty, text};
use super::route::{Handler, Route, dialect_of, find};
use super::state::AppState;
use crate::dialect::Rejection;

/// A row, and what the path has in the place of its placeholder.
type Found<'a> = (&'static Route, &'a str);

/// The reply to a request.
pub(super) async fn serve(state: Arc<AppState>, request: Request<Incoming>, address: IpAddr) -> HttpReply {
    let (head, incoming) = request.into_parts();
    let found = find(head.uri.path());
    let mut reply = guarded(&state, (&head, address), found, incoming).await;
    add_retry_after(&mut reply, || state.handle.snapshot().retry_after_s());
    state.metrics.answered(found.and_then(|(route, _)| route.counter()), reply.status().as_u16());
    reply
}

async fn guarded(
    state: &Arc<AppState>,
    (head, address): (&Parts, IpAddr),
    found: Option<Found<'_>>,
    incoming: Incoming,
) -> HttpReply {
    let path = head.uri.path();
    let (origin, asker) = match state.guard.check(head, address) {
        Clearance::Answer(reply) => return reply,
        Clearance::Pass(origin, Some(asker)) => (origin, asker),
        Clearance::Pass(origin, None) if found.is_some_and(|(route, _)| route.needs.is_none()) => {
            (origin, Asker::nobody(address))
        }
        Clearance::Pass(origin, None) => {
            let rejection = Rejection::new(401, "unauthorized: this server wants a key as a bearer token");
            let mut reply = refuse(dialect_of(path), &rejection);
            mark(&mut reply, origin);
            return reply;
        }
    };
    let mut reply = match found {
        Some((route, segment)) if route.methods.contains(&head.method) => {
            let handled = handled((state, &asker), (route, segment), head, incoming).await;
            handled.unwrap_or_else(|rejection| refuse(route.dialect, &rejection))
        }
        Some((route, _)) => not_allowed(route.methods),
        None => redirect(path, &head.method).unwrap_or_else(|| text(404, "404 page not found")),
    };
    mark(&mut reply, origin);
    reply
}

async fn handled(
    (state, asker): (&Arc<AppState>, &Asker),
    (route, segment): Found<'_>,
    head: &Parts,
    incoming: Incoming,
) -> Result<HttpReply, Rejection> {
    if let Some(right) = route.needs {
        asker.must(right)?;
    }
    let peer = Peer::of(asker.address);
    match route.handler {
        Handler::Now(reply) => Ok(reply(state, asker)),
        Handler::Look(look) => look(state, asker, segment).await,
        Handler::Upload(take) => take(state, &head.method, segment, incoming).await,
        Handler::Body(answer) => {
            let body = body::read(head, peer, incoming, &state.body_room).await?;
            answer(state, asker, body).await
        }
        Handler::Run(endpoint) => {
            let body = body::read(head, peer, incoming, &state.body_room).await?;
            run((state, asker), endpoint, &head.headers, body).await
        }
    }
}

fn not_allowed(methods: &[Method]) -> HttpReply {
    let mut reply = text(405, "405 method not allowed");
    let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        reply.headers_mut().insert(ALLOW, allowed);
    }
    reply
}

/// A known path with a slash too many.
fn redirect(path: &str, method: &Method) -> Option<HttpReply> {
    let shorter = path.strip_suffix('/').filter(|shorter| !shorter.is_empty())?;
    find(shorter)?;
    let mut reply = empty(if method == Method::GET { 301 } else { 307 });
    reply.headers_mut().insert(LOCATION, HeaderValue::from_str(shorter).ok()?);
    Some(reply)
}
