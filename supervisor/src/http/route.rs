//! Which URL goes where: one match, one screen.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};

use super::answer::{Flavor, run};
use super::guard::{Verdict, mark};
use super::respond::{HttpReply, empty, text};
use super::{AppState, body, fit, listing, manage, metrics, native, openai, ops, respond};
use crate::dialect::Rejection;

/// What a path means. The text after a fixed part is carried along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Root,
    Version,
    Status,
    Tags,
    Ps,
    Show,
    Copy,
    Delete,
    Create,
    Pull,
    Push,
    Me,
    Blob(&'a str),
    /// Work of a model, in one of the dialects.
    Run(Flavor),
    Metrics,
    Healthz,
    Readyz,
    Server,
    Record,
    Why,
    Fit,
    Logs,
    Restart,
    OpenAiModels,
    OpenAiModel(&'a str),
}

/// Methods of the endpoints that take a body.
const POST: &[Method] = &[Method::POST];
const GET: &[Method] = &[Method::GET];
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];

fn endpoint(path: &str) -> Option<(Endpoint<'_>, &'static [Method])> {
    Some(match path {
        "/" => (Endpoint::Root, GET_HEAD),
        "/api/version" => (Endpoint::Version, GET_HEAD),
        "/api/status" => (Endpoint::Status, GET),
        "/api/tags" => (Endpoint::Tags, GET_HEAD),
        "/api/ps" => (Endpoint::Ps, GET),
        "/api/show" => (Endpoint::Show, POST),
        "/api/copy" => (Endpoint::Copy, POST),
        "/api/delete" => (Endpoint::Delete, &[Method::DELETE]),
        "/api/create" => (Endpoint::Create, POST),
        "/api/pull" => (Endpoint::Pull, POST),
        "/api/push" => (Endpoint::Push, POST),
        "/api/me" => (Endpoint::Me, POST),
        "/api/generate" => (Endpoint::Run(Flavor::Generate), POST),
        "/api/chat" => (Endpoint::Run(Flavor::Chat), POST),
        "/api/embed" => (Endpoint::Run(Flavor::Embed), POST),
        "/api/embeddings" => (Endpoint::Run(Flavor::Embeddings), POST),
        "/v1/chat/completions" => (Endpoint::Run(Flavor::OpenAiChat), POST),
        "/v1/completions" => (Endpoint::Run(Flavor::OpenAiCompletion), POST),
        "/v1/embeddings" => (Endpoint::Run(Flavor::OpenAiEmbeddings), POST),
        "/v1/messages" => (Endpoint::Run(Flavor::Anthropic), POST),
        "/metrics" => (Endpoint::Metrics, GET),
        "/healthz" => (Endpoint::Healthz, GET_HEAD),
        "/readyz" => (Endpoint::Readyz, GET_HEAD),
        "/api/ollmlx/server" => (Endpoint::Server, GET),
        "/api/ollmlx/record" => (Endpoint::Record, GET),
        "/api/ollmlx/why" => (Endpoint::Why, POST),
        "/api/ollmlx/fit" => (Endpoint::Fit, POST),
        "/api/ollmlx/logs" => (Endpoint::Logs, POST),
        "/api/ollmlx/restart" => (Endpoint::Restart, POST),
        "/v1/models" => (Endpoint::OpenAiModels, GET),
        _ => {
            if let Some(digest) = path.strip_prefix("/api/blobs/").filter(|rest| !rest.contains('/')) {
                return Some((Endpoint::Blob(digest), &[Method::POST, Method::HEAD]));
            }
            let model = path.strip_prefix("/v1/models/").filter(|rest| !rest.is_empty() && !rest.contains('/'))?;
            (Endpoint::OpenAiModel(model), GET)
        }
    })
}

/// From a request's head to its reply.
pub(super) async fn route(state: Arc<AppState>, request: Request<Incoming>) -> HttpReply {
    let (head, incoming) = request.into_parts();
    let mut reply = judged(&state, &head, incoming).await;
    if reply.status() == StatusCode::SERVICE_UNAVAILABLE && !reply.headers().contains_key(RETRY_AFTER) {
        let seconds = state.handle.snapshot().retry_after_s();
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    let path = head.uri.path();
    state.metrics.answered(path, endpoint(path).is_some(), reply.status().as_u16());
    reply
}

async fn judged(state: &Arc<AppState>, head: &hyper::http::request::Parts, incoming: Incoming) -> HttpReply {
    // Probes have no key, and learn nothing but that somebody lives.
    let is_probe = matches!(head.uri.path(), "/healthz" | "/readyz");
    let origin = match state.guard.check(&head.method, &head.headers, head.uri.host()) {
        Verdict::Answer(reply) => return reply,
        Verdict::Pass(origin) => origin,
        Verdict::Unauthorized if is_probe => None,
        Verdict::Unauthorized => {
            let rejection = Rejection::new(401, "unauthorized: this server wants its key as a bearer token");
            return Flavor::of_path(head.uri.path()).refuse(&rejection);
        }
    };
    let path = head.uri.path();
    let mut reply = match endpoint(path) {
        Some((endpoint, methods)) if methods.contains(&head.method) => dispatch(state, endpoint, head, incoming).await,
        Some((_, methods)) => {
            let mut reply = text(405, "405 method not allowed");
            let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                reply.headers_mut().insert(ALLOW, allowed);
            }
            reply
        }
        None => redirect(path, &head.method).unwrap_or_else(|| text(404, "404 page not found")),
    };
    mark(&mut reply, origin);
    reply
}

/// A known path with a slash too many.
fn redirect(path: &str, method: &Method) -> Option<HttpReply> {
    let shorter = path.strip_suffix('/').filter(|shorter| !shorter.is_empty())?;
    endpoint(shorter)?;
    let mut reply = empty(if method == Method::GET { 301 } else { 307 });
    reply.headers_mut().insert(LOCATION, HeaderValue::from_str(shorter).ok()?);
    Some(reply)
}

async fn dispatch(
    state: &Arc<AppState>,
    endpoint: Endpoint<'_>,
    head: &hyper::http::request::Parts,
    incoming: Incoming,
) -> HttpReply {
    match endpoint {
        Endpoint::Root => return text(200, "Ollama is running"),
        Endpoint::Version => return native::version(state),
        Endpoint::Status => return native::status(),
        Endpoint::Tags => return listing::tags(state).await,
        Endpoint::Ps => return listing::ps(state),
        Endpoint::Metrics => return metrics::metrics(state),
        Endpoint::Healthz => return metrics::healthz(),
        Endpoint::Readyz => return metrics::readyz(state),
        Endpoint::Server => return ops::server(state),
        Endpoint::Record => return ops::record(state).await,
        Endpoint::OpenAiModels => return openai::models(state).await,
        Endpoint::OpenAiModel(id) => return openai::model(state, id).await,
        Endpoint::Blob(digest) => return manage::blob(state, &head.method, digest, incoming).await,
        _ => {}
    }
    let flavor = Flavor::of_path(head.uri.path());
    let body = match body::read(&head.headers, incoming, &state.body_budget).await {
        Ok(body) => body,
        Err(rejection) => return flavor.refuse(&rejection),
    };
    let handled = match endpoint {
        Endpoint::Run(flavor) => return run(state, flavor, &head.headers, &body.bytes).await,
        Endpoint::Show => manage::show(state, &body.bytes).await,
        Endpoint::Copy => manage::copy(state, &body.bytes).await,
        Endpoint::Delete => manage::delete(state, &body.bytes).await,
        Endpoint::Create => manage::create(state, &body.bytes).await,
        Endpoint::Why => ops::why(state, &body.bytes).await,
        Endpoint::Fit => fit::fit(state, &body.bytes).await,
        Endpoint::Logs => ops::logs(state, &body.bytes).await,
        Endpoint::Restart => ops::restart(state, &body.bytes).await,
        Endpoint::Pull => manage::transfer(&body.bytes, "pull"),
        Endpoint::Push => manage::transfer(&body.bytes, "push"),
        _ => Err(Rejection::new(401, "unauthorized")),
    };
    handled.unwrap_or_else(|rejection| respond::json(rejection.status, native::error_text(&rejection)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_they_say() {
        assert_eq!(endpoint("/api/chat"), Some((Endpoint::Run(Flavor::Chat), POST)));
        let digest = Endpoint::Blob("sha256:00");
        assert_eq!(endpoint("/api/blobs/sha256:00").map(|(endpoint, _)| endpoint), Some(digest));
        assert_eq!(endpoint("/api/blobs/a/b"), None);
        assert_eq!(endpoint("/v1/models/a/b"), None);
        assert_eq!(endpoint("/nothing"), None);
    }
}
