//! `/api/tags`, `/api/ps` and the fields that they share with `/api/show`.

use std::time::{Duration, SystemTime};

use ollmlx_proto::MemoryReport;
use serde_json::{Map, Value, json};

use super::asker::Asker;
use super::refuse::catalog_error;
use super::respond::{HttpReply, json};
use super::state::AppState;
use crate::catalog::ModelRef;
use crate::dialect::Rejection;
use crate::os::wall::{rfc3339_local, wall_now};
use crate::types::{KeepAlive, KeyName, WorkerView};

/// "For ever" as Ollama shows it: the largest Go duration, some 292 years.
const FOREVER: Duration = Duration::from_secs(9_223_372_036);

/// `details` of a model; listings of what is resident leave the last two out.
pub(super) fn details(model: &ModelRef, with_lengths: bool) -> Value {
    let details = &model.details;
    let mut object = Map::new();
    object.insert("parent_model".into(), model.parent.as_str().into());
    object.insert("format".into(), details.format.as_str().into());
    object.insert("family".into(), details.family.as_str().into());
    object.insert("families".into(), details.families.clone().map_or(Value::Null, Value::from));
    object.insert("parameter_size".into(), details.parameter_size.as_str().into());
    object.insert("quantization_level".into(), details.quantization_level.as_str().into());
    if with_lengths && details.context_length > 0 {
        object.insert("context_length".into(), details.context_length.into());
    }
    if with_lengths && details.embedding_length > 0 {
        object.insert("embedding_length".into(), details.embedding_length.into());
    }
    Value::Object(object)
}

/// Ollama's words for what a model can do.
pub(super) fn capabilities(model: &ModelRef) -> Value {
    model.capabilities.iter().map(|capability| Value::from(capability.as_str())).collect()
}

/// `GET /api/tags`.
pub(super) async fn tags(state: &AppState) -> Result<HttpReply, Rejection> {
    let models = state.catalog.list().await.map_err(|error| catalog_error(&error))?;
    let rows: Vec<Value> = models.iter().map(|model| row(model)).collect();
    Ok(json(200, json!({"models": rows}).to_string()))
}

fn row(model: &ModelRef) -> Value {
    json!({
        "name": model.name,
        "model": model.name,
        "modified_at": rfc3339_local(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details(model, true),
        "capabilities": capabilities(model),
        "backend": model.backend.as_str(),
    })
}

/// `GET /api/ps`. Never waits for anyone. `workers` has those that wait for a process or rest after a death as well.
pub(super) fn ps(state: &AppState, asker: &Asker) -> HttpReply {
    let snapshot = state.handle.snapshot();
    let now = wall_now();
    let mut rows: Vec<(SystemTime, Value)> = snapshot
        .workers
        .iter()
        .map(|view| {
            let expires_at = expiry(state, view, now);
            (expires_at, resident((state, asker), view, expires_at))
        })
        .collect();
    rows.sort_by_key(|(expires_at, _)| std::cmp::Reverse(*expires_at));
    // Ollama's clients take whatever stands in `models` for loaded.
    let workers: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let models: Vec<&Value> = workers.iter().filter(|row| !row["pid"].is_null()).collect();
    let memory = json!({
        "reserved": snapshot.reserved_bytes,
        "measured": snapshot.measured_bytes,
        "limit": snapshot.limit_bytes,
        "predecessor": snapshot.elsewhere_bytes,
        "step": snapshot.relief.name(),
    });
    json(200, json!({"models": models, "workers": workers, "memory": memory}).to_string())
}

fn expiry(state: &AppState, view: &WorkerView, now: SystemTime) -> SystemTime {
    let stays = match (view.expires_at, view.keep_alive) {
        _ if view.leaves => Duration::ZERO,
        (_, KeepAlive::Forever) => FOREVER,
        (Some(at), _) => return state.handle.wall_clock_of(at),
        // It works, or begins to; it stays as long once it is idle.
        (None, keep_alive) => Duration::from_millis(keep_alive.ms()),
    };
    now.checked_add(stays).unwrap_or(now)
}

/// The ledger's line of one model, in bytes.
fn account(view: &WorkerView) -> Value {
    let account = &view.account;
    let parts = |report: MemoryReport| json!({"weights": report.weights, "caches": report.kv, "compute": report.compute, "total": report.total()});
    json!({
        "budget": account.planned,
        "measured": account.measured,
        "estimated": parts(account.estimate),
        "learned": account.planned.saturating_sub(account.estimate.total()),
        "reported": parts(account.ready),
        "sampled": account.sampled,
        "limit": account.limit,
        "made_smaller": account.shrunk,
    })
}

fn resident((state, asker): (&AppState, &Asker), view: &WorkerView, expires_at: SystemTime) -> Value {
    let model = &view.model;
    let name = asker.name_of(model);
    json!({
        "name": name,
        "model": name,
        "size": view.memory_bytes,
        "digest": model.digest,
        "details": details(model, false),
        "expires_at": rfc3339_local(expires_at),
        "size_vram": view.accelerator_bytes,
        "context_length": view.context_tokens,
        "backend": model.backend.as_str(),
        "state": view.state,
        "pid": view.pid,
        "device": view.device,
        "slots": view.slots,
        "in_flight": view.in_flight,
        "queued": view.queued,
        "restarts": view.restarts,
        "last_death": view.last_death,
        "cpu_level": view.cpu_level,
        "priority": view.priority,
        "key": view.key.as_ref().map(KeyName::as_str),
        "memory": account(view),
        "rests_until": view.rests_until.map(|at| rfc3339_local(state.handle.wall_clock_of(at))),
    })
}
