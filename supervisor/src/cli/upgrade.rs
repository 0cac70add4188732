//! `ollmlx upgrade`: asks the running server to start its successor, and waits until that answers. What the two servers do
//! is in [`crate::server`].

use std::time::Duration;

use crate::limits::{UPGRADE_POLL_MS, UPGRADE_READY_MS};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::args::UpgradeArgs;
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json};
use crate::os::process;

/// What a server's process is called, if nobody renamed the program.
const NAME: &str = "ollmlx";
/// Looks after the server's own deadline, for the way.
const LOOKS_MORE: u64 = 50;

/// Asks the running server, by signal, so that only its own user can.
///
/// # Errors
/// No server on this machine, or it could not be replaced.
pub async fn run(client: &Client, args: UpgradeArgs) -> Result<(), CliError> {
    // The signal goes to the process that the answer names, which means nothing on another machine.
    if !client.is_local() {
        let text = "the server is on another machine; run `ollmlx upgrade` there, or with OLLMLX_HOST at 127.0.0.1";
        return Err(CliError::Usage(text.to_owned()));
    }
    let before = client.get("/api/ollmlx/server").await?;
    let old = pid_of(&before)?;
    // A port that is forwarded looks local as well; another program would die of the signal.
    let own = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let name = process::name_of(old).await;
    if name.is_none() || (name.as_deref() != Some(NAME) && name != own) {
        let text = format!(
            "process {old}, which the server says it is, is no ollmlx on this machine; run `ollmlx upgrade` there"
        );
        return Err(CliError::Usage(text));
    }
    kill(Pid::from_raw(old), Signal::SIGUSR2)
        .map_err(|error| CliError::System { step: "signal the server", source: error.into() })?;
    for _ in 0..UPGRADE_READY_MS / UPGRADE_POLL_MS + LOOKS_MORE {
        tokio::time::sleep(Duration::from_millis(UPGRADE_POLL_MS)).await;
        let Ok(now) = client.get("/api/ollmlx/server").await else { continue };
        if pid_of(&now)? != old {
            let line = format!("upgraded: process {old} handed over to {}\n", now["pid"]);
            return if args.json { print_json(&now) } else { print(&line) };
        }
        if let Some(error) = now["upgrade_error"].as_str() {
            return Err(CliError::Usage(format!("the old server goes on: {error}")));
        }
    }
    Err(CliError::Usage("the server did not say what became of the upgrade; see its log".to_owned()))
}

fn pid_of(answer: &Value) -> Result<i32, CliError> {
    let pid = answer["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
    pid.ok_or(CliError::BadAnswer("it names no process"))
}
