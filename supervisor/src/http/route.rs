//! Which URL goes where: the table of all paths. Whatever depends on a path (its methods, who answers, in which dialect its
//! errors are told, what it is called in metrics, which right it needs) stands in its row and nowhere else.
//!
//! A path that runs a model needs an [`Endpoint`] of a dialect and a row made by [`run`]; any other needs a function and a
//! row made by [`at`]. What a request goes through on its way to its row is in [`super::dispatch`].
//!
//! Rights: whoever may use models may ask them and see what there is; that counts say how much others ask is no secret among
//! those who share a server, and whoever collects them should not need a key that deletes models. Whatever changes the store,
//! ends processes, or shows what workers print or what was decided for others, is for whoever manages them.

use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;
use hyper::body::Incoming;

use self::Handler::{Body, Look, Now, Run, Upload};
use super::asker::Asker;
use super::respond::{HttpReply, text};
use super::state::AppState;
use super::{body, create, fit, listing, manage, models, native, ops, probes};
use crate::config::Right;
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
    Now(fn(&AppState, &Asker) -> HttpReply),
    /// Looks something up, with what the path has in the place of its placeholder. No body is read.
    Look(for<'a> fn(&'a AppState, &'a Asker, &'a str) -> Pending<'a>),
    /// Does what a body asks for.
    Body(for<'a> fn(&'a Arc<AppState>, &'a Asker, body::Body) -> Pending<'a>),
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
    /// What its requests must have a right to, where there are keys; nothing, for probes, which have no key and learn
    /// nothing but that somebody lives.
    pub(super) needs: Option<Right>,
}

const POST: &[Method] = &[Method::POST];
const POST_HEAD: &[Method] = &[Method::POST, Method::HEAD];
const DELETE: &[Method] = &[Method::DELETE];
const GET: &[Method] = &[Method::GET];
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];

const NOTHING: Option<Right> = None;
const USE: Option<Right> = Some(Right::Use);
const MANAGE: Option<Right> = Some(Right::Manage);

/// What all paths for operators of this server are called in metrics.
const OPERATORS: &str = "/api/ollmlx/";

/// All paths. Metrics list them in this order; a path of none is told its errors as the first one of its folder.
pub(super) static ROUTES: &[Route] = &[
    at("/", GET_HEAD, USE, Now(|_, _| text(200, "Ollama is running")), &OLLAMA),
    at("/api/version", GET_HEAD, USE, Now(|state, _| native::version(state)), &OLLAMA),
    at("/api/status", GET, USE, Now(|_, _| native::status()), &OLLAMA),
    at("/api/tags", GET_HEAD, USE, Look(|state, _, _| Box::pin(listing::tags(state))), &OLLAMA),
    at("/api/ps", GET, USE, Now(listing::ps), &OLLAMA),
    at("/api/show", POST, USE, Body(|state, asker, body| Box::pin(manage::show(state, asker, body))), &OLLAMA),
    at("/api/copy", POST, MANAGE, Body(|state, _, body| Box::pin(manage::copy(state, body))), &OLLAMA),
    at("/api/delete", DELETE, MANAGE, Body(|state, _, body| Box::pin(manage::delete(state, body))), &OLLAMA),
    at("/api/create", POST, MANAGE, Body(|state, asker, body| Box::pin(create::create(state, asker, body))), &OLLAMA),
    at("/api/pull", POST, MANAGE, Body(|_, _, body| Box::pin(manage::pull(body))), &OLLAMA),
    at("/api/push", POST, MANAGE, Body(|_, _, body| Box::pin(manage::push(body))), &OLLAMA),
    at("/api/me", POST, USE, Body(|_, _, _| Box::pin(async { Err(native::no_account()) })), &OLLAMA),
    at(
        "/api/blobs/{digest}",
        POST_HEAD,
        MANAGE,
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
    at("/v1/models", GET, USE, Look(|state, _, _| Box::pin(models::list(state))), &OPENAI),
    at("/v1/models/{model}", GET, USE, Look(|state, asker, id| Box::pin(models::one(state, asker, id))), &OPENAI),
    run("/v1/messages", &anthropic::MESSAGES),
    at("/metrics", GET, USE, Now(|state, _| probes::metrics(state, labels())), &OLLMLX),
    at("/healthz", GET_HEAD, NOTHING, Now(|_, _| probes::healthz()), &OLLMLX),
    at("/readyz", GET_HEAD, NOTHING, Now(|state, _| probes::readyz(state)), &OLLMLX),
    operate("/api/ollmlx/server", GET, MANAGE, Now(|state, _| ops::server(state))),
    operate("/api/ollmlx/record", GET, MANAGE, Look(|state, _, _| Box::pin(ops::record(state)))),
    operate("/api/ollmlx/why", POST, MANAGE, Body(|state, asker, body| Box::pin(ops::why(state, asker, body)))),
    operate("/api/ollmlx/fit", POST, USE, Body(|state, asker, body| Box::pin(fit::fit(state, asker, body)))),
    operate("/api/ollmlx/logs", POST, MANAGE, Body(|state, asker, body| Box::pin(ops::logs(state, asker, body)))),
    operate("/api/ollmlx/restart", POST, MANAGE, Body(|state, asker, body| Box::pin(ops::restart(state, asker, body)))),
];

const fn at(
    pattern: &'static str,
    methods: &'static [Method],
    needs: Option<Right>,
    handler: Handler,
    dialect: &'static Dialect,
) -> Route {
    Route { pattern, methods, needs, handler, dialect, label: pattern }
}

const fn run(pattern: &'static str, endpoint: &'static Endpoint) -> Route {
    at(pattern, POST, USE, Run(endpoint), endpoint.dialect)
}

/// For operators of this server.
const fn operate(pattern: &'static str, methods: &'static [Method], needs: Option<Right>, handler: Handler) -> Route {
    Route { label: OPERATORS, ..at(pattern, methods, needs, handler, &OLLMLX) }
}

impl Route {
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

    /// The table of `docs/operating.md`, row by row: a path that is added there must be given a right here.
    #[test]
    fn every_row_needs_the_right_that_the_docs_say() {
        let docs = include_str!("../../../docs/operating.md");
        let rows = docs.lines().filter(|line| line.starts_with("| `/"));
        let told: Vec<(&str, &str)> = rows
            .map(|line| {
                let mut cells = line.split('|').map(str::trim).skip(1);
                (cells.next().unwrap_or_default().trim_matches('`'), cells.next().unwrap_or_default())
            })
            .collect();
        let held: Vec<(&str, &str)> = ROUTES
            .iter()
            .map(|route| {
                let right = match route.needs {
                    None => "no key",
                    Some(Right::Use) => "use",
                    Some(Right::Manage) => "manage",
                };
                (route.pattern, right)
            })
            .collect();
        assert_eq!(told, held);
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
