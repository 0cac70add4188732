//! `ollmlx --version`: the server's version, and the program's own where they differ.

use super::client::Client;
use super::error::CliError;
use super::output::{print, text_of};

/// Of this program.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// Prints. A server that is down is a warning, not an error.
///
/// # Errors
/// Standard output is gone.
pub async fn run(client: &Client) -> Result<(), CliError> {
    let answer = client.get("/api/version").await.ok();
    print(&text(answer.as_ref().map(|answer| text_of(answer, "version"))))
}

fn text(server: Option<&str>) -> String {
    match server {
        Some(version) if version == OWN => format!("ollmlx version is {version}\n"),
        Some(version) => format!("ollmlx version is {version}\nWarning: client version is {OWN}\n"),
        None => format!("Warning: could not connect to a running ollmlx instance\nWarning: client version is {OWN}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_s_version_comes_first() {
        assert_eq!(text(Some(OWN)), format!("ollmlx version is {OWN}\n"));
        assert!(text(Some("9.9")).ends_with(&format!("Warning: client version is {OWN}\n")));
        assert!(text(None).starts_with("Warning: could not connect"));
    }
}
