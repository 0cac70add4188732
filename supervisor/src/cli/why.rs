//! `ollmlx why`: what happened to a model's processes, in ten lines; with `--record` also all that the server was told and
//! decided, in a file that can be replayed.

use std::io::ErrorKind;
use std::path::Path;

use ollmlx_proto::text::printable_line;
use serde_json::{Value, json};

use super::args::{WhyArgs, at_most_one, exactly};
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, text_of};
use super::{human, model_path};
use crate::os::private_file;

/// Deaths before the last one that get a line.
const EARLIER_MAX: usize = 2;
/// Lines of the last death's log.
const LOG_LINES_MAX: usize = 2;

/// Writes the record where one is asked for, and prints the story of the model that is named.
///
/// # Errors
/// No server, its refusal, or a file that is there already or can't be written.
pub async fn run(client: &Client, args: WhyArgs) -> Result<(), CliError> {
    let names = if let Some(path) = &args.record {
        client.heartbeat().await?;
        record(client, path, args.force).await?;
        let Some(name) = at_most_one(args.names)? else { return Ok(()) };
        vec![name]
    } else {
        args.names
    };
    let [name] = exactly(names)?;
    client.heartbeat().await?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let answer = client.post("/api/ollmlx/why", &json!({"model": model})).await?;
    if args.json { print_json(&answer) } else { print(&story(&answer)) }
}

async fn record(client: &Client, path: &Path, force: bool) -> Result<(), CliError> {
    let text = client.download("/api/ollmlx/record").await?;
    let written = if force { private_file::replace(path, &text) } else { private_file::create(path, &text) };
    written.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => {
            CliError::Usage(format!("{} exists; name another file, or use --force", path.display()))
        }
        _ => CliError::File { path: path.display().to_string(), source },
    })
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn story(answer: &Value) -> String {
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let mut out = format!("{} is {}", text_of(answer, "model"), text_of(answer, "state"));
    if let Some(pid) = answer["pid"].as_u64() {
        out += &format!(" (pid {pid}, {})", human::bytes(number("memory_bytes")));
    }
    out +=
        &format!("; {} running, {} waiting, {} restarts\n", number("in_flight"), number("queued"), number("restarts"));
    let deaths = array(answer, "deaths");
    let Some((last, earlier)) = deaths.split_last() else {
        return out + "none of its processes died unasked\n";
    };
    out += &format!("{} deaths that nobody asked for; the last ones:\n", number("death_count"));
    for death in earlier.iter().skip(earlier.len().saturating_sub(EARLIER_MAX)) {
        out += &format!("  {}\n", headline(death));
    }
    out += &format!("  {}\n", headline(last));
    let log = array(last, "log");
    for line in log.iter().skip(log.len().saturating_sub(LOG_LINES_MAX)) {
        out += &format!("    | {}\n", printable_line(line.as_str().unwrap_or_default()));
    }
    let held = array(last, "requests");
    if !held.is_empty() {
        let fates = held.iter().map(|held| format!("{} {}", text_of(held, "request"), text_of(held, "fate")));
        out += &format!("  its requests: {}\n", fates.collect::<Vec<_>>().join(", "));
    }
    if let Some(level) = last["cpu_level"].as_str() {
        out += &format!("  its next process was told to compute with CPU level {level}\n");
    }
    out + &match answer["next_attempt"].as_str() {
        Some(at) => format!("next attempt: {at} at the earliest, or now with `ollmlx restart`\n"),
        None => "next attempt: with the next request\n".to_owned(),
    }
}

fn headline(death: &Value) -> String {
    let text = |key| text_of(death, key);
    let number = death["incarnation"].as_u64().unwrap_or(0);
    let together = match death["incident"].as_u64() {
        Some(incident) => {
            let others: Vec<&str> = array(death, "together_with").iter().filter_map(Value::as_str).collect();
            // Records of long ago are forgotten.
            let others = if others.is_empty() { "others".to_owned() } else { others.join(", ") };
            format!("; together with {others} (incident {incident})")
        }
        None => String::new(),
    };
    let (at, state, cause, after) = (text("at"), text("state"), text("cause"), text("after"));
    printable_line(&format!("{at}  process {number}, {state}: {cause}{together}; then {after}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_told_with_its_cause_its_last_words_and_what_became_of_its_requests() {
        let death = json!({"at": "2026-01-01T00:00:00Z", "incarnation": 2, "state": "busy", "cause": "killed by SIGSEGV",
            "log": ["a", "b", "c", "d", "last\u{7} words"], "after": "backoff", "cpu_level": "x64",
            "requests": [{"request": "r7", "deaths": 1, "fate": "resumed"}]});
        let answer = json!({"model": "m:latest", "state": "backoff", "pid": null, "restarts": 1, "queued": 2,
            "next_attempt": "2026-01-01T00:00:01Z", "death_count": 9, "deaths": vec![death; 6]});
        let text = story(&answer);
        assert!(text.starts_with("m:latest is backoff; 0 running, 2 waiting, 1 restarts\n9 deaths"), "{text}");
        assert!(text.contains("process 2, busy: killed by SIGSEGV; then backoff\n    | d\n"), "{text}");
        assert!(text.contains("    | last\\u0007 words\n  its requests: r7 resumed\n"), "{text}");
        assert!(text.ends_with("next attempt: 2026-01-01T00:00:01Z at the earliest, or now with `ollmlx restart`\n"));
        assert!(text.lines().count() <= 10, "{text}");
    }

    #[test]
    fn row_82_a_death_among_others_names_them() {
        let death = json!({"at": "now", "incarnation": 1, "state": "busy", "cause": "killed by SIGABRT", "after": "ready",
            "incident": 3, "together_with": ["a:latest", "b:latest"]});
        let text = story(&json!({"model": "m", "state": "idle", "death_count": 1, "deaths": [death]}));
        let line =
            "now  process 1, busy: killed by SIGABRT; together with a:latest, b:latest (incident 3); then ready\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_model_that_never_died_is_told_so() {
        let text = story(&json!({"model": "m", "state": "idle", "pid": 7, "memory_bytes": 1000, "deaths": []}));
        assert_eq!(
            text,
            "m is idle (pid 7, 1 KB); 0 running, 0 waiting, 0 restarts\nnone of its processes died unasked\n"
        );
    }
}
