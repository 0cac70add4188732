//! `/v1/models`: what there is, in OpenAI's words.

use serde_json::{Value, json};

use super::asker::Asker;
use super::refuse::catalog_error;
use super::respond::{HttpReply, json};
use super::state::AppState;
use crate::catalog::{CatalogError, ModelRef};
use crate::dialect::Rejection;
use crate::os::wall::unix_seconds;

/// `GET /v1/models`. An empty store is an empty list: no client depends on Ollama's `null`.
pub(super) async fn list(state: &AppState) -> Result<HttpReply, Rejection> {
    let models = state.catalog.list().await.map_err(|error| catalog_error(&error))?;
    let data: Vec<Value> = models.iter().map(|model| row(model, &model.name)).collect();
    Ok(json(200, json!({"object": "list", "data": data}).to_string()))
}

/// `GET /v1/models/{id}`.
pub(super) async fn one(state: &AppState, asker: &Asker, id: &str) -> Result<HttpReply, Rejection> {
    let model = asker.resolve(&state.catalog, id).await.map_err(|error| match error {
        CatalogError::NotFound(_) | CatalogError::InvalidName(_) => Rejection::unknown_model(id, None),
        other => catalog_error(&other),
    })?;
    Ok(json(200, row(&model, id).to_string()))
}

fn row(model: &ModelRef, id: &str) -> Value {
    // host/namespace/model:tag
    let owner = model.full_name.rsplit('/').nth(1).unwrap_or("library");
    json!({"id": id, "object": "model", "created": unix_seconds(model.modified_at), "owned_by": owner})
}
