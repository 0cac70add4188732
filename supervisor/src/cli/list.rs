//! `ollmlx list`: the models of the store.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, text_of};
use super::{args, human, text_table};

/// Prints the table.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: args::ListArgs) -> Result<(), CliError> {
    let prefix = args::at_most_one(args.names)?;
    client.heartbeat().await?;
    let answer = client.get("/api/tags").await?;
    if args.json {
        return print_json(&answer);
    }
    let prefix = prefix.as_deref().unwrap_or("");
    print(&if args.verbose { wide(&answer, prefix, Utc::now()) } else { table(&answer, prefix, Utc::now()) })
}

/// The table of `/api/tags`, column for column Ollama's.
pub(super) fn table(answer: &Value, prefix: &str, now: DateTime<Utc>) -> String {
    let rows: Vec<Vec<String>> = rows(answer, prefix).map(|model| row(model, now)).collect();
    text_table::with_header(&["NAME", "ID", "SIZE", "MODIFIED"], &rows)
}

/// The same, and who serves each.
fn wide(answer: &Value, prefix: &str, now: DateTime<Utc>) -> String {
    let rows: Vec<Vec<String>> = rows(answer, prefix)
        .map(|model| {
            let more = [text_of(model, "backend"), text_of(&model["details"], "format")].map(str::to_owned);
            row(model, now).into_iter().chain(more).collect()
        })
        .collect();
    text_table::with_header(&["NAME", "ID", "SIZE", "MODIFIED", "BACKEND", "FORMAT"], &rows)
}

fn rows<'a>(answer: &'a Value, prefix: &str) -> impl Iterator<Item = &'a Value> {
    let prefix = prefix.to_lowercase();
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    models.iter().filter(move |model| text_of(model, "name").to_lowercase().starts_with(&prefix))
}

fn row(model: &Value, now: DateTime<Utc>) -> Vec<String> {
    let size = match model["remote_model"].as_str() {
        Some(remote) if !remote.is_empty() => "-".to_owned(),
        _ => human::bytes(model["size"].as_u64().unwrap_or(0)),
    };
    vec![text_of(model, "name").to_owned(), short_id(model), size, since(text_of(model, "modified_at"), now)]
}

/// First twelve characters of the digest.
pub(super) fn short_id(model: &Value) -> String {
    text_of(model, "digest").chars().take(12).collect()
}

/// `3 days ago`, or `Never` for no time at all.
fn since(text: &str, now: DateTime<Utc>) -> String {
    let Ok(time) = DateTime::parse_from_rfc3339(text) else { return "Never".to_owned() };
    let ago = now.signed_duration_since(time);
    let distance = human::distance(ago.abs().to_std().unwrap_or(Duration::ZERO));
    if ago < chrono::TimeDelta::zero() { format!("{distance} from now") } else { format!("{distance} ago") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-01-04T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn one_row_a_model_in_the_server_s_order() {
        let answer = json!({"models": [
            {"name": "b:latest", "digest": "a80c4f17acd5ffff", "size": 2_019_393_189u64, "modified_at": "2026-01-01T01:00:00+01:00"},
            {"name": "A:cloud", "digest": "0123", "size": 10, "remote_model": "x", "modified_at": "2026-01-03T23:59:00Z"},
        ]});
        assert_eq!(
            table(&answer, "", now()),
            "NAME        ID              SIZE      MODIFIED           \n\
             b:latest    a80c4f17acd5    2.0 GB    3 days ago            \n\
             A:cloud     0123            -         About a minute ago    \n"
        );
        assert!(table(&answer, "a:", now()).contains("A:cloud"));
        assert!(!table(&answer, "a:", now()).contains("b:latest"));
    }

    #[test]
    fn the_wide_table_names_backend_and_format() {
        let answer = json!({"models": [{"name": "b:latest", "digest": "a80c", "size": 10, "backend": "mlx",
            "details": {"format": "safetensors"}, "modified_at": "2026-01-03T23:59:00Z"}]});
        let text = wide(&answer, "", now());
        assert!(text.starts_with("NAME        ID      SIZE    MODIFIED              BACKEND    FORMAT"), "{text}");
        assert!(text.contains("    mlx        safetensors    \n"), "{text}");
    }

    #[test]
    fn no_models_is_a_header() {
        assert_eq!(table(&json!({"models": []}), "", now()), "NAME    ID    SIZE    MODIFIED \n");
        assert_eq!(table(&json!({"models": null}), "", now()), "NAME    ID    SIZE    MODIFIED \n");
    }
}
