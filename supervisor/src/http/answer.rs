//! Work of a model, in every dialect: parse, resolve, plan, submit, and the reply.
//!
//! The status is decided by the first thing that is heard: nothing is written before the request either has something to
//! say or has failed. After that an error can only be one more record of the stream.

use std::collections::VecDeque;
use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, HeaderMap, HeaderValue, RETRY_AFTER};
use ollmlx_proto::{Embeddings, Failure, FailureKind, ModelId, Output};
use tokio::time::Instant;

use super::AppState;
use super::metrics::Pace;
use super::plan::{Planned, plan};
use super::respond::{EVENTS, HttpReply, JSON, NDJSON, Reply, reply, whole};
use super::stream::{Stopwatch, TicketBody};
use crate::catalog::{CatalogError, ModelRef};
use crate::config::Span;
use crate::config::value::parse_span;
use crate::dialect::{Call, CallBody, Encoder, Meta, Rejection, anthropic, ollama, openai};
use crate::driver::{Ticket, deadline_passed};
use crate::os::rng;
use crate::os::wall::{rfc3339_utc, unix_seconds, wall_now};
use crate::types::Mono;
use crate::types::TicketItem;

/// How long a request may take in all: waiting, loading, computing.
const TIMEOUT: &str = "x-ollmlx-timeout";

/// The endpoints that give work to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    /// `/api/generate`, and whatever else is native.
    Generate,
    /// `/api/chat`.
    Chat,
    /// `/api/embed`.
    Embed,
    /// `/api/embeddings`.
    Embeddings,
    /// `/v1/chat/completions`.
    OpenAiChat,
    /// `/v1/completions`.
    OpenAiCompletion,
    /// `/v1/embeddings`.
    OpenAiEmbeddings,
    /// `/v1/messages`.
    Anthropic,
}

impl Flavor {
    /// In which dialect errors of this path are told.
    pub(super) fn of_path(path: &str) -> Self {
        match path {
            "/v1/messages" => Self::Anthropic,
            _ if path.starts_with("/v1/") => Self::OpenAiChat,
            _ => Self::Generate,
        }
    }

    fn parse(self, body: &[u8]) -> Result<Call, Rejection> {
        match self {
            Self::Generate => ollama::request::generate(body),
            Self::Chat => ollama::request::chat(body),
            Self::Embed => ollama::request::embed(body),
            Self::Embeddings => ollama::request::embeddings(body),
            Self::OpenAiChat => openai::request::chat(body),
            Self::OpenAiCompletion => openai::request::completions(body),
            Self::OpenAiEmbeddings => openai::request::embeddings(body),
            Self::Anthropic => anthropic::request::messages(body),
        }
    }

    fn encoder(self, meta: Meta) -> Box<dyn Encoder> {
        match self {
            Self::Generate | Self::Embed | Self::Embeddings => Box::new(ollama::response::GenerateEncoder::new(meta)),
            Self::Chat => Box::new(ollama::response::ChatEncoder::new(meta)),
            Self::OpenAiChat | Self::OpenAiEmbeddings => Box::new(openai::response::ChatEncoder::new(meta)),
            Self::OpenAiCompletion => Box::new(openai::response::CompletionEncoder::new(meta)),
            Self::Anthropic => Box::new(anthropic::response::MessageEncoder::new(meta)),
        }
    }

    fn is_native(self) -> bool {
        matches!(self, Self::Generate | Self::Chat | Self::Embed | Self::Embeddings)
    }

    fn is_chat(self) -> bool {
        matches!(self, Self::Chat | Self::OpenAiChat | Self::Anthropic)
    }

    /// The error reply of this dialect.
    pub(super) fn refuse(self, rejection: &Rejection) -> HttpReply {
        let body = match self {
            Self::Generate | Self::Chat | Self::Embed | Self::Embeddings => {
                ollama::response::error_body(&rejection.message)
            }
            Self::OpenAiChat | Self::OpenAiCompletion | Self::OpenAiEmbeddings => {
                openai::response::error_body(rejection) + "\n"
            }
            Self::Anthropic => anthropic::response::error_body(rejection, &hex_id("req_")) + "\n",
        };
        let mut reply = reply(rejection.status, JSON, whole(body));
        if let Some(seconds) = rejection.retry_after_s {
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        reply
    }

    /// What an unknown or illegal name is told here (ollama-conformance 2.3).
    fn name_error(self, name: &str, error: &CatalogError) -> Rejection {
        match error {
            CatalogError::InvalidName(_) if name.is_empty() => match self {
                Self::Generate | Self::Embed => Rejection::not_found("model '' not found"),
                _ => Rejection::bad_request("model is required"),
            },
            CatalogError::InvalidName(_) => Rejection::bad_request("invalid model name"),
            CatalogError::NotFound(_) => match self {
                Self::Embed | Self::Embeddings | Self::OpenAiEmbeddings => {
                    Rejection::not_found(format!("model \"{name}\" not found, try pulling it first"))
                }
                _ => Rejection::not_found(format!("model '{name}' not found")),
            },
            CatalogError::NotCached { advice, .. } => match self {
                Self::Embed | Self::Embeddings | Self::OpenAiEmbeddings => {
                    Rejection::not_found(format!("model \"{name}\" not found, try pulling it first: {advice}"))
                }
                _ => catalog_error(error),
            },
            other => catalog_error(other),
        }
    }
}

/// Errors of the catalogue that are not about a name.
pub(super) fn catalog_error(error: &CatalogError) -> Rejection {
    match error {
        CatalogError::InvalidName(_) => Rejection::bad_request("invalid model name"),
        CatalogError::NotFound(name) => Rejection::not_found(format!("model '{name}' not found")),
        CatalogError::NotCached { .. } => Rejection::not_found(error.to_string()),
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

/// Serves one request to a model.
pub(super) async fn run(state: &Arc<AppState>, flavor: Flavor, headers: &HeaderMap, body: &[u8]) -> HttpReply {
    let started = state.handle.now();
    let deadline = match deadline(headers) {
        Ok(deadline) => deadline,
        Err(rejection) => return flavor.refuse(&rejection),
    };
    let prepared = match deadline {
        None => prepare(state, flavor, body).await,
        Some(at) => tokio::time::timeout_at(at, prepare(state, flavor, body))
            .await
            .unwrap_or_else(|_| Err(Rejection::from(&deadline_passed()))),
    };
    match prepared {
        Ok(Prepared::Done(reply)) => reply,
        Ok(Prepared::Running(mut running)) => {
            if let Some(deadline) = deadline {
                running.ticket.end_by(deadline);
            }
            running.reply(state, started).await
        }
        Err(rejection) => flavor.refuse(&rejection),
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

/// A request that was handed in.
struct Running {
    flavor: Flavor,
    ticket: Ticket,
    model: ModelId,
    meta: Meta,
    loads: bool,
    embeds: bool,
}

enum Prepared {
    Done(HttpReply),
    Running(Box<Running>),
}

async fn prepare(state: &Arc<AppState>, flavor: Flavor, body: &[u8]) -> Result<Prepared, Rejection> {
    let call = flavor.parse(body)?;
    let name = call.model.clone();
    let model = resolve(state, flavor, &name).await?;
    if matches!(call.body, CallBody::Unload) {
        state.handle.unload(model.id.clone()).await;
        let created = rfc3339_utc(wall_now());
        let body = ollama::response::load_reply(&name, &created, flavor == Flavor::Chat, "unload");
        return Ok(Prepared::Done(reply(200, JSON, whole(body))));
    }
    let meta = meta(flavor, &call);
    let (loads, embeds) = (matches!(call.body, CallBody::Load), matches!(call.body, CallBody::Embed { .. }));
    let keep_alive = call.keep_alive;
    let Planned { job, plan } = {
        let learned = state.learned.borrow();
        plan(call, &model, (&state.config, &learned), flavor.is_chat())?
    };
    let ticket = state.handle.submit(job, plan, keep_alive).await;
    Ok(Prepared::Running(Box::new(Running { flavor, ticket, model: model.id.clone(), meta, loads, embeds })))
}

async fn resolve(state: &AppState, flavor: Flavor, name: &str) -> Result<Arc<ModelRef>, Rejection> {
    state.catalog.resolve(name).await.map_err(|error| flavor.name_error(name, &error))
}

/// An id in Anthropic's form: a prefix and 24 hexadecimal digits.
fn hex_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", rng::luck(), rng::luck() >> 32)
}

fn meta(flavor: Flavor, call: &Call) -> Meta {
    let now = wall_now();
    let luck = rng::luck();
    let id = match flavor {
        Flavor::OpenAiChat => format!("chatcmpl-{}", luck % 1_000_000_000),
        Flavor::OpenAiCompletion => format!("cmpl-{}", luck % 1_000_000_000),
        Flavor::Anthropic => hex_id("msg_"),
        _ => String::new(),
    };
    let prompt_chars = match &call.body {
        CallBody::Chat { messages, .. } => messages
            .iter()
            .flat_map(|message| &message.content)
            .map(|part| match part {
                ollmlx_proto::ContentPart::Text(text) => text.chars().count() as u64,
                ollmlx_proto::ContentPart::Image(_) => 0,
            })
            .sum(),
        _ => 0,
    };
    Meta {
        model: call.model.clone(),
        created: rfc3339_utc(now),
        created_unix: unix_seconds(now),
        id,
        stream: call.stream,
        include_usage: call.include_usage,
        load_ns: 0,
        elapsed_ns: 0,
        base64: matches!(call.body, CallBody::Embed { base64: true, .. }),
        tool_seed: luck.rotate_left(17),
        prompt_chars,
    }
}

/// Whether an item decides the status: everything but signs of life does, and those do where the client is to hear them.
fn decides(flavor: Flavor, item: &TicketItem) -> bool {
    match item {
        TicketItem::Granted { .. } | TicketItem::Output(Output::Started(_)) => false,
        TicketItem::Output(Output::Prefill { .. }) => !flavor.is_native(),
        TicketItem::Output(Output::Delta(delta)) => !delta.text.is_empty(),
        _ => true,
    }
}

impl Running {
    /// A failure before anything was written. One whose model rests says for how long.
    fn refuse(&self, state: &AppState, failure: &Failure) -> HttpReply {
        let mut rejection = Rejection::from(failure);
        if failure.kind == FailureKind::Quarantined {
            let until = state.handle.snapshot().of(&self.model).and_then(|view| view.rests_until);
            rejection.retry_after_s = until.map(|until| until.since(state.handle.now()).div_ceil(1_000_000_000).max(1));
        }
        self.flavor.refuse(&rejection)
    }

    async fn reply(mut self: Box<Self>, state: &AppState, started: Mono) -> HttpReply {
        let watch = Stopwatch::new(state.handle.clone(), started, self.flavor.is_native());
        if self.embeds {
            return self.embeddings(state, started).await;
        }
        if self.loads {
            return self.loaded(state).await;
        }
        let stream = self.meta.stream;
        let mut encoder = self.flavor.encoder(self.meta.clone());
        let mut heard = VecDeque::new();
        let mut pace = Pace::new(Arc::clone(&state.metrics), started);
        while let Some(item) = self.ticket.next().await {
            pace.heard(&item, state.handle.now());
            if let TicketItem::Failed(failure) | TicketItem::Output(Output::Failed(failure)) = &item
                && (heard.iter().all(|item| !decides(self.flavor, item)) || !stream)
            {
                return self.refuse(state, failure);
            }
            if stream {
                let decided = decides(self.flavor, &item);
                heard.push_back(item);
                if decided {
                    return self.streamed(encoder, watch, heard, pace);
                }
            } else {
                encoder.push(&item);
            }
        }
        if stream {
            return self.streamed(encoder, watch, heard, pace);
        }
        watch.set(encoder.as_mut());
        match encoder.finish() {
            Ok(body) => reply(200, JSON, whole(body)),
            Err(rejection) => self.flavor.refuse(&rejection),
        }
    }

    fn streamed(
        self,
        encoder: Box<dyn Encoder>,
        watch: Stopwatch,
        heard: VecDeque<TicketItem>,
        pace: Pace,
    ) -> HttpReply {
        let content_type = if self.flavor.is_native() { NDJSON } else { EVENTS };
        let body = TicketBody::new(self.ticket, encoder, watch, heard, pace);
        let mut reply = reply(200, content_type, Reply::Ticket(Box::new(body)));
        if !self.flavor.is_native() {
            reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        reply
    }

    /// A load answers once, and never as a stream.
    async fn loaded(mut self, state: &AppState) -> HttpReply {
        while let Some(item) = self.ticket.next().await {
            match item {
                TicketItem::Failed(failure) => return self.refuse(state, &failure),
                TicketItem::Loaded => break,
                _ => {}
            }
        }
        let created = rfc3339_utc(wall_now());
        match self.flavor {
            Flavor::Generate | Flavor::Chat => {
                let chat = self.flavor == Flavor::Chat;
                reply(200, JSON, whole(ollama::response::load_reply(&self.meta.model, &created, chat, "load")))
            }
            Flavor::Embed | Flavor::Embeddings => self.vectors(None),
            _ => {
                let mut encoder = self.flavor.encoder(self.meta.clone());
                encoder.push(&TicketItem::Loaded);
                match encoder.finish() {
                    Ok(body) => reply(200, JSON, whole(body)),
                    Err(rejection) => self.flavor.refuse(&rejection),
                }
            }
        }
    }

    async fn embeddings(mut self, state: &AppState, started: Mono) -> HttpReply {
        while let Some(item) = self.ticket.next().await {
            match item {
                TicketItem::Granted { load_ns } => self.meta.load_ns = load_ns,
                TicketItem::Output(Output::Failed(failure)) => {
                    // Ollama answers 400 to whatever goes wrong at this stage, but 500 on the old endpoint.
                    let status = if self.flavor == Flavor::Embeddings { 500 } else { 400 };
                    return self.flavor.refuse(&Rejection::new(status, failure.public));
                }
                TicketItem::Failed(failure) => return self.refuse(state, &failure),
                TicketItem::Output(Output::Embedded(embeddings)) => {
                    self.meta.elapsed_ns = state.handle.now().since(started);
                    return self.vectors(Some(&embeddings));
                }
                _ => {}
            }
        }
        self.flavor.refuse(&Rejection::internal("the request ended without vectors"))
    }

    fn vectors(&self, embeddings: Option<&Embeddings>) -> HttpReply {
        let body = match (self.flavor, embeddings) {
            (Flavor::OpenAiEmbeddings, Some(embeddings)) => openai::response::embeddings_reply(&self.meta, embeddings),
            (Flavor::Embeddings, embeddings) => ollama::response::embeddings_reply(embeddings),
            (_, embeddings) => ollama::response::embed_reply(&self.meta, embeddings),
        };
        match body {
            Ok(body) => reply(200, JSON, whole(body)),
            Err(rejection) => self.flavor.refuse(&rejection),
        }
    }
}
