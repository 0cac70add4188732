//! `ollmlx rm`: forgets models.

use http::Method;
use serde_json::json;

use super::args::{Names, at_least_one};
use super::client::Client;
use super::error::CliError;
use super::output::print;
use crate::os::stderr::tell;

/// Unloads and removes one model after the other, up to the first error.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: Names) -> Result<(), CliError> {
    let names = at_least_one(args.names)?;
    client.heartbeat().await?;
    for name in names {
        let unload = json!({"model": name, "keep_alive": 0, "stream": false});
        match client.post("/api/generate", &unload).await {
            Err(error) if !error.is_not_found() => tell(format_args!("Warning: unable to stop model '{name}'")),
            _ => {}
        }
        client.tell(Method::DELETE, "/api/delete", &json!({"model": name})).await?;
        print(&format!("deleted '{name}'\n"))?;
    }
    Ok(())
}
