//! `/api/ollmlx/…`: why a model's processes died, what they printed, and a new process on demand.
//!
//! All but `server` and `record` take `{"model": …}`. Prompts and outputs are in none of the replies; what a worker prints is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::asker::Asker;
use super::body::Body;
use super::refuse::catalog_error;
use super::respond::{HttpReply, NDJSON, Reply, json as json_reply, reply, whole};
use super::state::AppState;
use crate::catalog::ModelRef;
use crate::dialect::Rejection;
use crate::dialect::ollama::manage::NameRequest;
use crate::os::wall::rfc3339_local;
use crate::types::{KeyName, Mono};

/// Lines on their way to a client.
const LINES_LEN_MAX: usize = 64;
/// How often a follower looks whether the server leaves.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Lines of a death's log that are shown.
const DEATH_LINES_MAX: usize = 20;

pub(super) async fn model(state: &AppState, asker: &Asker, name: &str) -> Result<Arc<ModelRef>, Rejection> {
    if name.is_empty() {
        return Err(Rejection::no_model());
    }
    asker.resolve(&state.catalog, name).await.map_err(|error| catalog_error(&error))
}

/// `GET /api/ollmlx/server`: which process answers, why its last upgrade failed, whether anybody may ask, and which walls are
/// around workers.
pub(super) fn server(state: &AppState) -> HttpReply {
    let launcher = state.handle.launcher();
    let body = json!({
        "pid": std::process::id(),
        "version": state.config.version,
        "started_at": rfc3339_local(state.handle.wall_clock_of(Mono(0))),
        "upgrade_error": *state.upgrade.borrow(),
        "exposure": state.config.exposure(),
        "worker_sandbox": {
            "policy": launcher.policy().as_str(),
            "walls": launcher.walls().stand,
            "missing": launcher.walls().missing,
        },
    });
    json_reply(200, body.to_string())
}

/// `GET /api/ollmlx/record`: the driver's last events and what was decided, as lines of JSON.
pub(super) async fn record(state: &AppState) -> Result<HttpReply, Rejection> {
    let text = state.handle.record().await.map(|record| record.text()).unwrap_or_default();
    Ok(reply(200, NDJSON, whole(text)))
}

/// `POST /api/ollmlx/restart`: forgets the deaths and what was learned of its memory, ends a rest, replaces the process once
/// its work is done.
pub(super) async fn restart(state: &AppState, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(NameRequest::parse).await?;
    let model = model(state, asker, &request.name).await?;
    let process = state.handle.snapshot().of(&model.id).and_then(|view| view.pid);
    // Without a listener there is nothing to be forgotten, and one whose disk hangs is not waited for.
    let _not_forgotten = state.forget.try_send(model.id.clone());
    state.handle.restart(model.id.clone()).await;
    Ok(json_reply(200, json!({"model": model.name, "status": "restarting", "old_pid": process}).to_string()))
}

/// `POST /api/ollmlx/why`: the deaths of a model, newest last, and what comes next.
pub(super) async fn why(state: &AppState, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(NameRequest::parse).await?;
    let model = model(state, asker, &request.name).await?;
    let snapshot = state.handle.snapshot();
    let date = |at: Mono| rfc3339_local(state.handle.wall_clock_of(at));
    let view = snapshot.of(&model.id);
    let deaths = snapshot.deaths_of(&model.id);
    let records: Vec<Value> = deaths.map_or(Vec::new(), |deaths| {
        let told = deaths.deaths.iter().map(|record| {
            let lines: Vec<&str> = record.log_tail.lines().collect();
            let from = lines.len().saturating_sub(DEATH_LINES_MAX);
            let requests: Vec<Value> = record
                .requests
                .iter()
                .map(|held| {
                    json!({"request": held.request.to_string(), "deaths": held.deaths, "fate": held.fate.words()})
                })
                .collect();
            let (after, until) = record.after.parts();
            json!({
                "at": date(record.at),
                "incarnation": record.worker.incarnation.0,
                "state": record.state,
                "class": record.cause.class(),
                "cause": record.cause.words(),
                "log": lines[from..],
                "requests": requests,
                "after": after,
                "until": until.map(date),
                "cpu_level": record.cpu_level,
                "incident": record.incident,
                "together_with": record.incident.map_or(Vec::new(), |number| snapshot.died_with(&model.id, number)),
            })
        });
        told.collect()
    });
    let body = json!({
        "model": model.name,
        "state": view.map_or("absent", |view| view.state),
        "pid": view.and_then(|view| view.pid),
        "restarts": view.map_or(0, |view| view.restarts),
        "memory_bytes": view.map_or(0, |view| view.memory_bytes),
        "in_flight": view.map_or(0, |view| view.in_flight),
        "queued": view.map_or(0, |view| view.queued),
        "next_attempt": view.and_then(|view| view.rests_until).map(date),
        "key": view.and_then(|view| view.key.as_ref()).map(KeyName::as_str),
        "death_count": deaths.map_or(0, |deaths| deaths.count),
        "deaths": records,
    });
    Ok(json_reply(200, body.to_string()))
}

/// `POST /api/ollmlx/logs`: what the processes of a model printed, as lines of JSON; with `follow` what they go on to
/// print, until the client hangs up.
pub(super) async fn logs(state: &Arc<AppState>, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, hold) = body.parse(NameRequest::parse).await?;
    let follow = request.follow;
    let id = model(state, asker, &request.name).await?.id.clone();
    drop(hold);
    let mut seen = 0;
    let first = fresh(state, &id, &mut seen);
    if !follow {
        return Ok(reply(200, NDJSON, whole(first.concat())));
    }
    let (sender, lines) = mpsc::channel(LINES_LEN_MAX);
    let state = Arc::clone(state);
    // Ends with its client or with the server.
    tokio::spawn(async move {
        let mut book = state.handle.logs();
        book.mark_changed();
        let mut waiting = first;
        loop {
            for line in waiting.drain(..) {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    // All are cancel-safe.
                    () = sender.closed() => return,
                    _ = look.tick() => if state.is_leaving() || state.is_replaced() {
                        return;
                    },
                    changed = book.changed() => match changed {
                        Ok(()) => break,
                        Err(_driver_gone) => return,
                    },
                }
            }
            waiting = fresh(&state, &id, &mut seen);
        }
    });
    Ok(reply(200, NDJSON, Reply::Lines(lines)))
}

/// The lines that have not been seen.
fn fresh(state: &AppState, id: &ollmlx_proto::ModelId, seen: &mut u64) -> Vec<Bytes> {
    let book = state.handle.logs();
    let lines = book.borrow().get(id).cloned().unwrap_or_default();
    let told = lines.iter().filter(|line| line.number > *seen).map(|line| {
        let at = rfc3339_local(state.handle.wall_clock_of(Mono(line.at_ns)));
        Bytes::from(json!({"at": at, "incarnation": line.incarnation, "line": line.text}).to_string() + "\n")
    });
    let told = told.collect();
    *seen = lines.back().map_or(*seen, |last| last.number);
    told
}
