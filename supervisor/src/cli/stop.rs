//! `ollmlx stop`: unloads a model.

use serde_json::json;

use super::args::{Names, exactly};
use super::client::Client;
use super::error::CliError;
use super::model_path;

/// Unloads. Silent, also where the model is not loaded.
///
/// # Errors
/// No server, no such model, or another refusal.
pub async fn run(client: &Client, args: Names) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    client.heartbeat().await?;
    let model = model_path::absolute(&name).unwrap_or_else(|| name.clone());
    let missing = |error: CliError| match error.is_not_found() {
        true => CliError::Usage(format!("couldn't find model {name:?} to stop")),
        false => error,
    };
    client.post("/api/show", &json!({"model": model})).await.map_err(missing)?;
    client.post("/api/generate", &json!({"model": model, "keep_alive": 0, "stream": false})).await?;
    Ok(())
}
