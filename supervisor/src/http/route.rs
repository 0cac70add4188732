//! Which URL goes where: the table of all paths. Whatever depends on a path (its methods, who answers, in which dialect its
//! errors are told, what it is called in metrics, whether it needs the key) stands in its row and nowhere else.
//!
//! A path that runs a model needs an [`Endpoint`] of a dialect and a row made by [`run`]; any other needs a function and a
//! row made by [`at`]. What a request goes through on its way to its row is in [`super::dispatch`].

use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;
use hyper::body::Incoming;

use self::Handler::{Body, Look, Now, Run, Upload};
use super::respond::{HttpReply, text};
use super::state::AppState;
use super::{body, create, fit, listing, manage, models, native, ops, probes};
use crate::dialect::anthropic;
use crate::dialect::ollama::{self, OLLAMA, OLLMLX};
use crate::dialect::openai::{self, OPENAI};
use crate::dialect::{Dialect, Endpoint, Rejection};

/// A reply to come, or why there is none.
pub(super) type Pending<'a> = Pin<Box<dyn Future<Output = Result<HttpReply, Rejection>> + Send + 'a>>;

/// Who answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Handler {
    /// Says what is known. No body is read.
    Now(fn(&AppState) -> HttpReply),
    /// Looks something up, with what the path has in the place of its placeholder. No body is read.
    Look(for<'a> fn(&'a AppState, &'a str) -> Pending<'a>),
    /// Does what a body asks for.
    Body(for<'a> fn(&'a Arc<AppState>, body::Body) -> Pending<'a>),
    /// Gives what a body asks for to a model.
    Run(&'static Endpoint),
    /// Takes a body as it comes, of any length.
    Upload(for<'a> fn(&'a AppState, &'a Method, &'a str, Incoming) -> Pending<'a>),
}

/// A path and all that depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// The path; `{…}` stands for a last segment.
    pub(super) pattern: &'static str,
    /// Every other one is refused.
    pub(super) methods: &'static [Method],
    /// Who answers.
    pub(super) handler: Handler,
    /// In which its errors are told, and under whose name it is counted.
    pub(super) dialect: &'static Dialect,
    /// What it is called in metrics.
    pub(super) label: &'static str,
    /// Whether its requests must bring the key, where there is one.
    pub(super) needs_key: bool,
}

const POST: &[Method] = &[Method::POST];
const POST_HEAD: &[Method] = &[Method::POST, Method::HEAD];
const DELETE: &[Method] = &[Method::DELETE];
const GET: &[Method] = &[Method::GET];
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];

/// What all paths for operators of this server are called in metrics.
const OPERATORS: &str = "/api/ollmlx/";

/// All paths. Metrics list them in this order; a path of none is told its errors as the first one of its folder.
pub(super) static ROUTES: &[Route] = &[
    at("/", GET_HEAD, Now(|_| text(200, "Ollama is running")), &OLLAMA),
    at("/api/version", GET_HEAD, Now(native::version), &OLLAMA),
    at("/api/status", GET, Now(|_| native::status()), &OLLAMA),
    at("/api/tags", GET_HEAD, Look(|state, _| Box::pin(listing::tags(state))), &OLLAMA),
    at("/api/ps", GET, Now(listing::ps), &OLLAMA),
    at("/api/show", POST, Body(|state, body| Box::pin(manage::show(state, body))), &OLLAMA),
    at("/api/copy", POST, Body(|state, body| Box::pin(manage::copy(state, body))), &OLLAMA),
    at("/api/delete", DELETE, Body(|state, body| Box::pin(manage::delete(state, body))), &OLLAMA),
    at("/api/create", POST, Body(|state, body| Box::pin(create::create(state, body))), &OLLAMA),
    at("/api/pull", POST, Body(|_, body| Box::pin(manage::pull(body))), &OLLAMA),
    at("/api/push", POST, Body(|_, body| Box::pin(manage::push(body))), &OLLAMA),
    at("/api/me", POST, Body(|_, _| Box::pin(async { Err(native::no_account()) })), &OLLAMA),
    at(
        "/api/blobs/{digest}",
        POST_HEAD,
        Upload(|state, method, digest, incoming| Box::pin(manage::blob(state, method, digest, incoming))),
        &OLLAMA,
    ),
    run("/api/generate", &ollama::GENERATE),
    run("/api/chat", &ollama::CHAT),
    run("/api/embed", &ollama::EMBED),
    run("/api/embeddings", &ollama::EMBEDDINGS),
    run("/v1/chat/completions", &openai::CHAT),
    run("/v1/completions", &openai::COMPLETIONS),
    run("/v1/embeddings", &openai::EMBEDDINGS),
    at("/v1/models", GET, Look(|state, _| Box::pin(models::list(state))), &OPENAI),
    at("/v1/models/{model}", GET, Look(|state, id| Box::pin(models::one(state, id))), &OPENAI),
    run("/v1/messages", &anthropic::MESSAGES),
    at("/metrics", GET, Now(|state| probes::metrics(state, labels())), &OLLMLX),
    at("/healthz", GET_HEAD, Now(|_| probes::healthz()), &OLLMLX).without_key(),
    at("/readyz", GET_HEAD, Now(probes::readyz), &OLLMLX).without_key(),
    at("/api/ollmlx/server", GET, Now(ops::server), &OLLMLX).labelled(OPERATORS),
    at("/api/ollmlx/record", GET, Look(|state, _| Box::pin(ops::record(state))), &OLLMLX).labelled(OPERATORS),
    at("/api/ollmlx/why", POST, Body(|state, body| Box::pin(ops::why(state, body))), &OLLMLX).labelled(OPERATORS),
    at("/api/ollmlx/fit", POST, Body(|state, body| Box::pin(fit::fit(state, body))), &OLLMLX).labelled(OPERATORS),
    at("/api/ollmlx/logs", POST, Body(|state, body| Box::pin(ops::logs(state, body))), &OLLMLX).labelled(OPERATORS),
    at("/api/ollmlx/restart", POST, Body(|state, body| Box::pin(ops::restart(state, body))), &OLLMLX)
        .labelled(OPERATORS),
];

const fn at(pattern: &'static str, methods: &'static [Method], handler: Handler, dialect: &'static Dialect) -> Route {
    Route { pattern, methods, handler, dialect, label: pattern, needs_key: true }
}

const fn run(pattern: &'static str, endpoint: &'static Endpoint) -> Route {
    at(pattern, POST, Run(endpoint), endpoint.dialect)
}

impl Route {
    const fn labelled(self, label: &'static str) -> Self {
        Self { label, ..self }
    }

    /// For probes, which have no key, and learn nothing but that somebody lives.
    const fn without_key(self) -> Self {
        Self { needs_key: false, ..self }
    }

    /// The row of [`labels`] that its requests are counted in: the first one of its label.
    pub(super) fn counter(&self) -> Option<usize> {
        ROUTES.iter().position(|first| first.label == self.label)
    }

    /// What a path has in the place of the placeholder, if it is one of this row.
    fn segment<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((folder, _)) = self.pattern.split_once('{') else { return (path == self.pattern).then_some("") };
        let segment = path.strip_prefix(folder).filter(|segment| !segment.contains('/'))?;
        // A path with a slash too many is not an entry of its own folder.
        let is_folder = || ROUTES.iter().any(|route| folder.strip_suffix('/') == Some(route.pattern));
        (!segment.is_empty() || !is_folder()).then_some(segment)
    }
}

/// What each row is called in metrics, and in which dialect.
pub(super) fn labels() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.label, route.dialect.name))
}

/// The row of a path, and what the path has in the place of the placeholder.
pub(super) fn find(path: &str) -> Option<(&'static Route, &str)> {
    ROUTES.iter().find_map(|route| Some((route, route.segment(path)?)))
}

/// In which dialect a path's errors are told, whether it is one or not.
pub(super) fn dialect_of(path: &str) -> &'static Dialect {
    let folder = path.match_indices('/').nth(1).map(|(end, _)| &path[..=end]);
    let neighbour = || ROUTES.iter().find(|route| folder.is_some_and(|folder| route.pattern.starts_with(folder)));
    let route = find(path).map(|(route, _)| route).or_else(neighbour);
    route.map_or(&OLLAMA, |route| route.dialect)
}

#[cfg(test)]
mod tests {
    use super::super::metrics::ROWS_MAX;
    use super::*;

    #[test]
    fn paths_lead_where_they_say() {
        let pattern = |path| find(path).map(|(route, segment)| (route.pattern, segment));
        for route in ROUTES.iter().filter(|route| !route.pattern.contains('{')) {
            assert_eq!(pattern(route.pattern), Some((route.pattern, "")));
        }
        assert_eq!(pattern("/api/blobs/sha256:00"), Some(("/api/blobs/{digest}", "sha256:00")));
        assert_eq!(pattern("/api/blobs/"), Some(("/api/blobs/{digest}", "")));
        assert_eq!(pattern("/v1/models/x"), Some(("/v1/models/{model}", "x")));
        for nothing in
            ["/api/blobs/a/b", "/api/blobs", "/v1/models/a/b", "/v1/models/", "/nothing", "", "*", "/api/chat/"]
        {
            assert_eq!(pattern(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn every_row_is_counted_under_its_own_label() {
        assert!(ROUTES.len() <= ROWS_MAX, "{ROWS_MAX} rows can be told apart");
        for route in ROUTES {
            let label = route.counter().and_then(|counter| labels().nth(counter));
            assert_eq!(label, Some((route.label, route.dialect.name)));
        }
    }

    #[test]
    fn errors_are_told_in_the_dialect_of_their_path_or_its_neighbours() {
        for (path, name) in [
            ("/", "ollama"),
            ("/api/chat", "ollama"),
            ("/api/made-up", "ollama"),
            ("/made-up", "ollama"),
            ("/v1", "ollama"),
            ("/v1/", "openai"),
            ("/v1/made-up", "openai"),
            ("/v1/models/x", "openai"),
            ("/v1/messages", "anthropic"),
            ("/v1/messages/", "openai"),
            ("/metrics", "ollmlx"),
        ] {
            assert_eq!(dialect_of(path).name, name, "{path}");
        }
    }
}
