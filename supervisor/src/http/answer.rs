//! Work of a model, in every dialect: parse, resolve, plan, submit, and the reply.
//!
//! The status is decided by the first thing that is heard: nothing is written before the request either has something to
//! say or has failed. After that an error can only be one more record of the stream.

use std::collections::VecDeque;
use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use ollmlx_proto::{Failure, FailureKind, ModelId, Output};
use tokio::time::Instant;

use super::asker::Asker;
use super::body::Body;
use super::metrics::pace::Pace;
use super::plan::{Planned, plan};
use super::refuse::{luck, model_error};
use super::respond::{EVENTS, HttpReply, NDJSON, Reply, json, reply};
use super::state::AppState;
use super::stream::{Stopwatch, TicketBody};
use crate::config::Span;
use crate::config::value::parse_span;
use crate::dialect::{Call, CallBody, Encoder, Endpoint, Framing, Meta, Rejection};
use crate::driver::{Ticket, deadline_passed};
use crate::os::rng;
use crate::os::wall::{rfc3339_utc, unix_seconds, wall_now};
use crate::types::{Mono, TicketItem};

/// How long a request may take in all: waiting, loading, computing.
const TIMEOUT: &str = "x-ollmlx-timeout";

/// Serves one request to a model.
pub(super) async fn run(
    (state, asker): (&Arc<AppState>, &Asker),
    endpoint: &'static Endpoint,
    headers: &HeaderMap,
    body: Body,
) -> Result<HttpReply, Rejection> {
    let started = state.handle.now();
    let deadline = deadline(headers)?;
    let prepared = prepare((state, asker), endpoint, body, started);
    let prepared = match deadline {
        None => prepared.await,
        Some(at) => {
            let passed = |_| Err(Rejection::from(&deadline_passed()));
            tokio::time::timeout_at(at, prepared).await.unwrap_or_else(passed)
        }
    };
    match prepared? {
        Prepared::Unloaded(reply) => Ok(reply),
        Prepared::Submitted(mut submitted) => {
            if let Some(deadline) = deadline {
                submitted.ticket.end_by(deadline);
            }
            submitted.reply(state).await
        }
    }
}

/// When the client wants to be told that it takes too long.
///
/// # Errors
/// The header is no positive duration.
fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Rejection> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    match value.to_str().map(parse_span) {
        Ok(Ok(Span::For(span))) if !span.is_zero() => Ok(Instant::now().checked_add(span)),
        _ => Err(Rejection::bad_request(format!("{TIMEOUT} must be a number of seconds or a duration such as 1m30s"))),
    }
}

enum Prepared {
    /// There is nothing to compute.
    Unloaded(HttpReply),
    Submitted(Box<Submitted>),
}

/// A request that was handed in.
struct Submitted {
    framing: Framing,
    ticket: Ticket,
    model: ModelId,
    encoder: Box<dyn Encoder>,
    watch: Stopwatch,
    pace: Pace,
    streams: bool,
}

async fn prepare(
    (state, asker): (&Arc<AppState>, &Asker),
    endpoint: &'static Endpoint,
    body: Body,
    started: Mono,
) -> Result<Prepared, Rejection> {
    let (call, hold) = body.parse(endpoint.parse).await?;
    let resolved = asker.resolve(&state.catalog, &call.model).await;
    let model = resolved.map_err(|error| model_error(endpoint, &call.model, &error))?;
    let framing = endpoint.dialect.framing;
    let mut encoder = (endpoint.encoder)(&call, meta(endpoint, &call));
    let watch = Stopwatch::new(state.handle.clone(), started, framing);
    if matches!(call.body, CallBody::Unload) {
        asker.may_unload(&state.handle.snapshot(), &model.id)?;
        state.handle.unload(model.id.clone()).await;
        watch.set(encoder.as_mut());
        encoder.push(&TicketItem::Unloaded);
        return Ok(Prepared::Unloaded(json(200, encoder.finish()?)));
    }
    // A load answers once, and never as a stream.
    let streams = call.stream && !matches!(call.body, CallBody::Load);
    let keep_alive = call.keep_alive;
    let Planned { job, plan } = {
        let learned = state.learned.borrow();
        plan(call, &model, (&state.config, &learned), endpoint.verb)?
    };
    let ticket = state.handle.submit_for(asker.caller(&state.handle), job, plan, keep_alive).await;
    // It is in the house now, which has a limit of its own.
    drop(hold);
    let pace = Pace::new(Arc::clone(&state.metrics), started);
    let model = model.id.clone();
    Ok(Prepared::Submitted(Box::new(Submitted { framing, ticket, model, encoder, watch, pace, streams })))
}

fn meta(endpoint: &Endpoint, call: &Call) -> Meta {
    let now = wall_now();
    Meta {
        model: call.model.clone(),
        created: rfc3339_utc(now),
        created_unix: unix_seconds(now),
        id: (endpoint.id)(luck()),
        load_ns: 0,
        elapsed_ns: 0,
        tool_seed: rng::luck(),
        prompt_chars: call.body.chat_chars(),
    }
}

/// Whether an item decides the status: everything but signs of life does, and those do where the client is to hear them.
fn decides(framing: Framing, item: &TicketItem) -> bool {
    match item {
        TicketItem::Granted { .. } | TicketItem::Output(Output::Started(_)) => false,
        TicketItem::Output(Output::Prefill { .. }) => framing == Framing::Events,
        TicketItem::Output(Output::Delta(delta)) => !delta.text.is_empty(),
        _ => true,
    }
}

impl Submitted {
    async fn reply(mut self: Box<Self>, state: &AppState) -> Result<HttpReply, Rejection> {
        let mut heard = VecDeque::new();
        let mut retry_after_s = None;
        while let Some(item) = self.ticket.next().await {
            self.pace.heard(&item, state.handle.now());
            if let TicketItem::Failed(failure) | TicketItem::Output(Output::Failed(failure)) = &item {
                // Nothing was written yet, so the status can say it.
                self.streams = false;
                retry_after_s = self.rest_s(state, failure);
            }
            if self.streams {
                let decided = decides(self.framing, &item);
                heard.push_back(item);
                if decided {
                    break;
                }
            } else {
                if item.is_terminal() {
                    self.watch.set(self.encoder.as_mut());
                }
                self.encoder.push(&item);
            }
        }
        if self.streams {
            return Ok(self.streamed(heard));
        }
        let finished = self.encoder.finish();
        finished.map(|body| json(200, body)).map_err(|rejection| Rejection { retry_after_s, ..rejection })
    }

    /// For how long a model rests, where that is the failure.
    fn rest_s(&self, state: &AppState, failure: &Failure) -> Option<u64> {
        if failure.kind != FailureKind::Quarantined {
            return None;
        }
        let until = state.handle.snapshot().of(&self.model).and_then(|view| view.rests_until)?;
        Some(until.since(state.handle.now()).div_ceil(1_000_000_000).max(1))
    }

    fn streamed(self, heard: VecDeque<TicketItem>) -> HttpReply {
        let Self { framing, ticket, encoder, watch, pace, .. } = self;
        let body = Reply::Ticket(Box::new(TicketBody::new(ticket, encoder, watch, heard, pace)));
        match framing {
            Framing::Lines => reply(200, NDJSON, body),
            Framing::Events => {
                let mut reply = reply(200, EVENTS, body);
                reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                reply
            }
        }
    }
}
