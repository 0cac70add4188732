//! `ollmlx logs`: what the processes of a model printed.

use serde_json::{Value, json};

use super::args::{LogsArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::model_path;
use super::output::{print, text_of};

/// Prints the lines, with `-f` until interrupted.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: LogsArgs) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    client.heartbeat().await?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let mut lines = client.stream("/api/ollmlx/logs", &json!({"model": model, "follow": args.follow})).await?;
    while let Some(line) = lines.next().await? {
        print(&if args.json { format!("{line}\n") } else { plain(&line) })?;
    }
    Ok(())
}

fn plain(line: &Value) -> String {
    let (at, text) = (text_of(line, "at"), text_of(line, "line"));
    format!("{at} [{}] {text}\n", line["incarnation"].as_u64().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_process() {
        let line = json!({"at": "2026-01-01T00:00:00Z", "incarnation": 3, "line": "red\tink"});
        assert_eq!(plain(&line), "2026-01-01T00:00:00Z [3] red\tink\n");
    }
}
