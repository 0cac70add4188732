//! `ollmlx pull` and `ollmlx push`.

use serde_json::json;

use super::args::{TransferArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::progress::TransferProgress;

/// Fetches a model.
///
/// # Errors
/// No server, or its refusal.
pub async fn pull(client: &Client, args: TransferArgs) -> Result<(), CliError> {
    transfer(client, "/api/pull", args).await
}

/// Publishes a model.
///
/// # Errors
/// No server, or its refusal.
pub async fn push(client: &Client, args: TransferArgs) -> Result<(), CliError> {
    transfer(client, "/api/push", args).await
}

async fn transfer(client: &Client, path: &str, args: TransferArgs) -> Result<(), CliError> {
    let insecure = args.insecure;
    let [name] = exactly(args.names)?;
    client.heartbeat().await?;
    follow(client, path, &json!({"model": name, "insecure": insecure})).await
}

/// Shows the progress of a call up to its end.
///
/// # Errors
/// No server, or its refusal, first or in the middle.
pub(super) async fn follow(client: &Client, path: &str, body: &serde_json::Value) -> Result<(), CliError> {
    let mut progress = TransferProgress::new();
    let mut lines = client.stream(path, body).await?;
    let end = loop {
        match lines.next().await {
            Ok(Some(line)) => progress.line(&line),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    progress.finish();
    end
}
