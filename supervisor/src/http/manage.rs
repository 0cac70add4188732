//! What changes or shows the store: show, copy, delete, blobs.

use std::time::Duration;

use crate::limits::{BLOB_BYTES_MAX, BLOB_STALL_MS};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use super::asker::Asker;
use super::body::Body;
use super::listing::{capabilities, details};
use super::refuse::catalog_error;
use super::respond::{HttpReply, empty, json};
use super::state::AppState;
use crate::catalog::{CatalogError, ModelRef, download_advice};
use crate::dialect::Rejection;
use crate::dialect::ollama::manage::{CopyRequest, NameRequest, ShowRequest};
use crate::os::wall::rfc3339_local;

/// Elements up to which an array of the metadata is shown without `verbose`.
const SHOWN_ELEMENTS_MAX: usize = 5;

/// `POST /api/show`.
pub(super) async fn show(state: &AppState, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(ShowRequest::parse).await?;
    if request.name.is_empty() {
        return Err(Rejection::no_model());
    }
    let model = asker.resolve(&state.catalog, &request.name).await.map_err(|error| match error {
        CatalogError::NotFound(_) => Rejection::unknown_model(&tagged(&request.name), None),
        CatalogError::NotCached { advice, .. } => Rejection::unknown_model(&tagged(&request.name), Some(&advice)),
        other => catalog_error(&other),
    })?;
    let mut object = Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(text) = value.filter(|text| !text.is_empty()) {
            object.insert(key.to_owned(), Value::from(text));
        }
    };
    put("license", Some(model.licenses.join("\n")));
    put("modelfile", Some(asker.modelfile(&state.catalog, &model)));
    put("parameters", Some(parameters(&model, request.options)));
    let (template, source) = model.template_in_use();
    put("template_in_use", request.template.clone().or_else(|| template.map(str::to_owned)));
    put("template_source", Some(if request.template.is_some() { "the request".to_owned() } else { source }));
    put("template", request.template.or_else(|| model.template.clone()).or_else(|| model.card.chat_template.clone()));
    put("system", request.system.or_else(|| model.system.clone()));
    object.insert("details".into(), details(&model, true));
    if !model.messages.is_empty() {
        let messages: Vec<Value> =
            model.messages.iter().map(|message| json!({"role": message.role, "content": message.content})).collect();
        object.insert("messages".into(), messages.into());
    }
    object.insert("model_info".into(), model_info(&model, request.verbose));
    if request.verbose {
        let tensors: Vec<Value> = model
            .card
            .tensors
            .iter()
            .map(|tensor| json!({"name": tensor.name, "type": tensor.dtype, "shape": tensor.shape}))
            .collect();
        object.insert("tensors".into(), tensors.into());
    }
    object.insert("capabilities".into(), capabilities(&model));
    object.insert("modified_at".into(), rfc3339_local(model.modified_at).into());
    object.insert("backend".into(), model.backend.as_str().into());
    Ok(json(200, Value::Object(object).to_string()))
}

/// The tag is always shown.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

fn model_info(model: &ModelRef, verbose: bool) -> Value {
    let mut info: Map<String, Value> = serde_json::from_str(&model.card.metadata).unwrap_or_default();
    if !verbose {
        for value in info.values_mut() {
            if value.as_array().is_some_and(|array| array.len() > SHOWN_ELEMENTS_MAX) {
                *value = Value::Array(Vec::new());
            }
        }
    }
    Value::Object(info)
}

/// One line per parameter, the key padded to 30 columns; strings in Go's quotes.
fn parameters(model: &ModelRef, options: Map<String, Value>) -> String {
    let mut all = model.params.clone();
    all.extend(options);
    let mut lines = Vec::new();
    for (key, value) in &all {
        let values = match value {
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        lines.extend(values.iter().map(|value| format!("{key:<30} {value}")));
    }
    lines.join("\n")
}

/// `POST /api/copy`.
pub(super) async fn copy(state: &AppState, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(CopyRequest::parse).await?;
    state.catalog.copy(&request.source, &request.destination).await.map_err(|error| match error {
        CatalogError::InvalidName(name) if name == request.source => {
            Rejection::bad_request(format!("source \"{name}\" is invalid"))
        }
        CatalogError::InvalidName(name) => Rejection::bad_request(format!("destination \"{name}\" is invalid")),
        CatalogError::NotFound(_) => Rejection::not_found(format!("model \"{}\" not found", request.source)),
        other => catalog_error(&other),
    })?;
    Ok(empty(200))
}

/// `DELETE /api/delete`.
pub(super) async fn delete(state: &AppState, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(NameRequest::parse).await?;
    if request.name.is_empty() {
        return Err(Rejection::no_model());
    }
    let model = state.catalog.delete(&request.name).await.map_err(|error| match error {
        CatalogError::InvalidName(name) => Rejection::bad_request(format!("name \"{name}\" is invalid")),
        CatalogError::NotFound(_) => Rejection::unknown_model(&request.name, None),
        other => catalog_error(&other),
    })?;
    // What is loaded of it serves on until it is idle; the files stay open there.
    state.handle.unload(model).await;
    Ok(empty(200))
}

/// `POST /api/pull`: there is no registry client yet.
pub(super) async fn pull(body: Body) -> Result<HttpReply, Rejection> {
    let name = body.parse(NameRequest::parse).await?.0.name;
    if name.is_empty() {
        return Err(Rejection::bad_request("invalid model name"));
    }
    let way =
        download_advice(&name).map_or_else(|| way_around(&name), |command| format!("download it with: {command}"));
    Err(unreachable_registry("pull", &way))
}

/// `POST /api/push`, likewise.
pub(super) async fn push(body: Body) -> Result<HttpReply, Rejection> {
    let name = body.parse(NameRequest::parse).await?.0.name;
    if name.is_empty() {
        return Err(Rejection::no_model());
    }
    Err(unreachable_registry("push", &way_around(&name)))
}

fn way_around(name: &str) -> String {
    format!("create the model from a GGUF file or an MLX folder instead: ollmlx create {name} -f Modelfile")
}

fn unreachable_registry(verb: &str, way: &str) -> Rejection {
    Rejection::new(501, format!("{verb} model manifest: this version of ollmlx can't reach registries; {way}"))
}

/// `HEAD` and `POST /api/blobs/:digest`.
pub(super) async fn blob(
    state: &AppState,
    method: &Method,
    digest: &str,
    incoming: Incoming,
) -> Result<HttpReply, Rejection> {
    if method == Method::HEAD { exists(state, digest).await } else { upload(state, digest, incoming).await }
}

async fn exists(state: &AppState, digest: &str) -> Result<HttpReply, Rejection> {
    let there = state.catalog.blob_exists(digest).await.map_err(|error| catalog_error(&error))?;
    Ok(empty(if there { 200 } else { 404 }))
}

async fn upload(state: &AppState, digest: &str, mut incoming: Incoming) -> Result<HttpReply, Rejection> {
    if state.catalog.blob_exists(digest).await.map_err(|error| catalog_error(&error))? {
        return Ok(empty(200));
    }
    let mut writer = state.catalog.blob_writer(digest).await.map_err(|error| catalog_error(&error))?;
    let mut received: u64 = 0;
    let stall = Duration::from_millis(BLOB_STALL_MS);
    loop {
        let frame = tokio::time::timeout(stall, incoming.frame())
            .await
            .map_err(|_| Rejection::new(408, "the upload stalled"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Rejection::bad_request("the upload was interrupted"))?;
        let Ok(data) = frame.into_data() else { continue };
        received = received.saturating_add(data.len() as u64);
        if received > BLOB_BYTES_MAX {
            return Err(Rejection::new(413, "the file is too large"));
        }
        writer.write(&data).await.map_err(|error| catalog_error(&error))?;
    }
    let created = writer.finish().await.map_err(|error| catalog_error(&error))?;
    Ok(empty(if created { 201 } else { 200 }))
}
