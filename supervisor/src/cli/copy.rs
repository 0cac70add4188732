//! `ollmlx cp`: a second name for a model.

use http::Method;
use serde_json::json;

use super::args::{Names, exactly};
use super::client::Client;
use super::error::CliError;
use super::output::print;

/// Copies.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: Names) -> Result<(), CliError> {
    let [source, destination] = exactly(args.names)?;
    client.heartbeat().await?;
    client.tell(Method::POST, "/api/copy", &json!({"source": source, "destination": destination})).await?;
    print(&format!("copied '{source}' to '{destination}'\n"))
}
