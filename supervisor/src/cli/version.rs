//! `ollmlx --version`: the server's version, and the program's own where they differ.

use super::client::Client;
use super::error::CliError;
use super::output::{print, text_of};
use crate::VERSION;

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
        Some(version) if version == VERSION => format!("ollmlx version is {version}\n"),
        Some(version) => format!("ollmlx version is {version}\nWarning: client version is {VERSION}\n"),
        None => {
            format!("Warning: could not connect to a running ollmlx instance\nWarning: client version is {VERSION}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_s_version_comes_first() {
        assert_eq!(text(Some(VERSION)), format!("ollmlx version is {VERSION}\n"));
        assert!(text(Some("9.9")).ends_with(&format!("Warning: client version is {VERSION}\n")));
        assert!(text(None).starts_with("Warning: could not connect"));
    }
}
