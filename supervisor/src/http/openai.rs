//! `/v1/models`.

use serde_json::{Value, json};

use super::AppState;
use super::answer::{Flavor, catalog_error};
use super::respond::{HttpReply, json};
use crate::catalog::{CatalogError, ModelRef};
use crate::dialect::Rejection;
use crate::os::wall::unix_seconds;

/// `GET /v1/models`. An empty store is an empty list: no client depends on Ollama's `null`.
pub(super) async fn models(state: &AppState) -> HttpReply {
    match state.catalog.list().await {
        Ok(models) => {
            let data: Vec<Value> = models.iter().map(|model| row(model, &model.name)).collect();
            json(200, json!({"object": "list", "data": data}).to_string())
        }
        Err(error) => Flavor::OpenAiChat.refuse(&catalog_error(&error)),
    }
}

/// `GET /v1/models/{id}`.
pub(super) async fn model(state: &AppState, id: &str) -> HttpReply {
    match state.catalog.resolve(id).await {
        Ok(model) => json(200, row(&model, id).to_string()),
        Err(CatalogError::NotFound(_) | CatalogError::InvalidName(_)) => {
            Flavor::OpenAiChat.refuse(&Rejection::not_found(format!("model '{id}' not found")))
        }
        Err(error) => Flavor::OpenAiChat.refuse(&catalog_error(&error)),
    }
}

fn row(model: &ModelRef, id: &str) -> Value {
    // host/namespace/model:tag
    let owner = model.full_name.rsplit('/').nth(1).unwrap_or("library");
    json!({"id": id, "object": "model", "created": unix_seconds(model.modified_at), "owned_by": owner})
}
