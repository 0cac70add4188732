//! `/api/create`: a new model, and its progress.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::asker::Asker;
use super::body::Body;
use super::body_room::BodyHold;
use super::refuse::catalog_error;
use super::respond::{HttpReply, NDJSON, Reply, json as json_reply, reply, whole};
use super::state::AppState;
use crate::catalog::{CatalogError, CreateSpec, Progress};
use crate::dialect::Rejection;
use crate::dialect::ollama::error_body;
use crate::dialect::ollama::manage::CreateRequest;

/// Progress lines on their way to a client.
const PROGRESS_LEN_MAX: usize = 64;

/// `POST /api/create`: progress lines, or the last one only.
pub(super) async fn create(state: &Arc<AppState>, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, hold) = body.parse(CreateRequest::parse).await?;
    if request.remote {
        return Err(Rejection::new(403, "ollama cloud is disabled: remote model is unavailable"));
    }
    asker.must_not_be_path(request.from.as_deref().unwrap_or_default()).map_err(|error| catalog_error(&error))?;
    let stream = request.stream;
    let (statuses, mut heard) = mpsc::channel(PROGRESS_LEN_MAX);
    // A task of its own: a client that goes away does not leave half a model.
    let creating = tokio::spawn(creation(Arc::clone(state), spec(request), statuses, hold));
    if !stream {
        // The progress is read so that it does not hold up the work.
        while heard.recv().await.is_some() {}
        created(creating).await?;
        return Ok(json_reply(200, json!({"status": "success"}).to_string()));
    }
    // The first line, or the error before it, decides the status.
    let Some(first) = heard.recv().await else {
        created(creating).await?;
        return Ok(reply(200, NDJSON, whole(status_line("success"))));
    };
    let (lines, body) = mpsc::channel(PROGRESS_LEN_MAX);
    tokio::spawn(tell(first, heard, creating, lines));
    Ok(reply(200, NDJSON, Reply::Lines(body)))
}

fn spec(request: CreateRequest) -> CreateSpec {
    CreateSpec {
        name: request.name,
        from: request.from,
        files: request.files.into_iter().collect(),
        adapters: request.adapters.into_iter().collect(),
        template: request.template,
        license: request.license,
        system: request.system,
        parameters: request.parameters,
        messages: request.messages,
        quantize: request.quantize,
    }
}

async fn creation(
    state: Arc<AppState>,
    spec: CreateSpec,
    statuses: mpsc::Sender<Progress>,
    _hold: BodyHold,
) -> Result<(), Rejection> {
    let model = state.catalog.create(spec, statuses).await.map_err(|error| creation_error(&error))?;
    state.handle.pardon(model).await;
    Ok(())
}

/// What came of it.
async fn created(creating: JoinHandle<Result<(), Rejection>>) -> Result<(), Rejection> {
    creating.await.unwrap_or_else(|_| Err(Rejection::internal("the creation was interrupted")))
}

/// Passes the progress on, and what went wrong as the last line.
async fn tell(
    first: Progress,
    mut heard: mpsc::Receiver<Progress>,
    creating: JoinHandle<Result<(), Rejection>>,
    lines: mpsc::Sender<Bytes>,
) {
    let mut next = Some(first);
    while let Some(status) = next {
        // Without a listener the model is made all the same.
        let _gone = lines.send(Bytes::from(progress_line(&status))).await;
        next = heard.recv().await;
    }
    if let Ok(Err(rejection)) = creating.await {
        let _gone = lines.send(Bytes::from(error_body(&rejection.message) + "\n")).await;
    }
}

fn status_line(status: &str) -> String {
    json!({"status": status}).to_string() + "\n"
}

fn progress_line(progress: &Progress) -> String {
    match progress {
        Progress::Status(status) => status_line(status),
        Progress::Copying { status, completed_bytes, total_bytes } => {
            json!({"status": status, "total": total_bytes, "completed": completed_bytes}).to_string() + "\n"
        }
    }
}

fn creation_error(error: &CatalogError) -> Rejection {
    match error {
        // A file that is no model is the client's mistake here.
        CatalogError::Unreadable(failure) => Rejection::bad_request(failure.public.clone()),
        other => catalog_error(other),
    }
}
