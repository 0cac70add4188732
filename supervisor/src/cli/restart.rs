//! `ollmlx restart`: a new process for a model, once what it runs has ended; backoff and quarantine end at once.

use serde_json::json;

use super::args::{Inspect, exactly};
use super::client::Client;
use super::error::CliError;
use super::model_path;
use super::output::print_json;

/// Asks. Silent unless JSON is wanted; the new process comes with the next request.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: Inspect) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    client.heartbeat().await?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let answer = client.post("/api/ollmlx/restart", &json!({"model": model})).await?;
    if args.json { print_json(&answer) } else { Ok(()) }
}
