//! `ollmlx ps`: the models that are loaded, and with `-v` the processes that serve them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::client::Client;
use super::error::CliError;
use super::list::short_id;
use super::output::{print, print_json, text_of};
use super::{args, human, text_table};

/// Further away than this is for ever: 20 years.
const FOREVER_DAYS: i64 = 20 * 365;

/// Prints the table.
///
/// # Errors
/// No server, or its refusal.
pub async fn run(client: &Client, args: args::PsArgs) -> Result<(), CliError> {
    let prefix = args::at_most_one(args.names)?;
    client.heartbeat().await?;
    let answer = client.get("/api/ps").await?;
    if args.json {
        return print_json(&answer);
    }
    let prefix = prefix.as_deref().unwrap_or("");
    if !args.verbose {
        return print(&table(&answer, prefix, Utc::now()));
    }
    // A server of another make has no such page, and was not upgraded.
    let server = client.get("/api/ollmlx/server").await.unwrap_or_default();
    let told = [sandbox(&server), upgrade(&server), exposure(&server)].concat();
    print(&format!("{}\n{}{told}", workers(&answer, prefix), ledger(&answer, prefix)))
}

/// Who may ask, where that is anybody.
fn exposure(server: &Value) -> String {
    server["exposure"].as_str().map_or_else(String::new, |exposure| format!("warning: {exposure}\n"))
}

/// Which walls are around the processes.
fn sandbox(server: &Value) -> String {
    let told = &server["worker_sandbox"];
    let words = |key: &str, between: &str| {
        let words = told[key].as_array().map_or(&[][..], Vec::as_slice);
        words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(between)
    };
    match told["policy"].as_str() {
        None => String::new(),
        Some("off") => "worker sandbox: off\n".to_owned(),
        Some(_) => {
            let missing = words("missing", "; ");
            let missing = if missing.is_empty() { missing } else { format!("; this system lacks {missing}") };
            format!("worker sandbox: {}{missing}\n", words("walls", ", "))
        }
    }
}

/// Why the last upgrade failed, if it did.
fn upgrade(server: &Value) -> String {
    server["upgrade_error"].as_str().map_or_else(String::new, |error| format!("the last upgrade failed: {error}\n"))
}

fn rows<'a>(answer: &'a Value, key: &str, prefix: &'a str) -> impl Iterator<Item = &'a Value> {
    let models = answer[key].as_array().map_or(&[][..], Vec::as_slice);
    models.iter().filter(move |model| text_of(model, "name").starts_with(prefix))
}

fn table(answer: &Value, prefix: &str, now: DateTime<Utc>) -> String {
    let rows: Vec<Vec<String>> = rows(answer, "models", prefix)
        .map(|model| {
            vec![
                text_of(model, "name").to_owned(),
                short_id(model),
                human::bytes(model["size"].as_u64().unwrap_or(0)),
                processor(model["size"].as_u64().unwrap_or(0), model["size_vram"].as_u64().unwrap_or(0)),
                model["context_length"].as_u64().unwrap_or(0).to_string(),
                until(text_of(model, "expires_at"), now),
                known_bytes(&model["memory"]["budget"]),
                known_bytes(&model["memory"]["measured"]),
            ]
        })
        .collect();
    text_table::with_header(&["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "BUDGET", "MEASURED"], &rows)
}

/// Bytes, or a dash where the server doesn't say or has nothing yet.
fn known_bytes(value: &Value) -> String {
    value.as_u64().filter(|bytes| *bytes > 0).map_or_else(|| "-".to_owned(), human::bytes)
}

/// The ledger: how each budget comes about, what was measured, and how much of all there is is taken.
fn ledger(answer: &Value, prefix: &str) -> String {
    let rows: Vec<Vec<String>> = rows(answer, "models", prefix)
        .filter(|model| model["memory"]["budget"].as_u64().is_some_and(|bytes| bytes > 0))
        .map(|model| {
            let memory = &model["memory"];
            let estimated = &memory["estimated"];
            let budget = memory["budget"].as_u64().unwrap_or(0);
            let measured = memory["measured"].as_u64().filter(|bytes| *bytes > 0);
            let share =
                measured.map_or_else(|| "-".to_owned(), |bytes| format!("{}%", bytes.saturating_mul(100) / budget));
            let smaller = if memory["made_smaller"] == Value::Bool(true) { "yes" } else { "no" };
            vec![
                text_of(model, "name").to_owned(),
                known_bytes(&estimated["weights"]),
                known_bytes(&estimated["caches"]),
                known_bytes(&estimated["compute"]),
                known_bytes(&memory["learned"]),
                known_bytes(&memory["budget"]),
                known_bytes(&memory["reported"]["total"]),
                known_bytes(&memory["sampled"]),
                share,
                memory["limit"].as_u64().map_or_else(|| "none".to_owned(), human::bytes),
                model["priority"].as_i64().unwrap_or(0).to_string(),
                smaller.to_owned(),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "WEIGHTS",
        "CACHES",
        "COMPUTE",
        "LEARNED",
        "BUDGET",
        "REPORTED",
        "SAMPLED",
        "OF BUDGET",
        "OWN LIMIT",
        "PRIORITY",
        "SMALLER",
    ];
    text_table::with_header(&header, &rows) + &total(&answer["memory"])
}

/// All models together, in a line.
fn total(memory: &Value) -> String {
    let bytes = |key: &str| memory[key].as_u64().filter(|bytes| *bytes > 0).map(human::bytes);
    let reserved = bytes("reserved").unwrap_or_else(|| human::bytes(0));
    let limit = bytes("limit").map_or_else(|| "no limit".to_owned(), |limit| format!("the limit of {limit}"));
    let measured = bytes("measured").map_or_else(String::new, |bytes| format!(", {bytes} measured"));
    let elsewhere = bytes("predecessor");
    let elsewhere = elsewhere.map_or_else(String::new, |bytes| format!(", {bytes} held by the server being replaced"));
    let step = memory["step"].as_str().map_or_else(String::new, |step| format!(", memory ladder: {step}"));
    format!("{reserved} of {limit} set aside{measured}{elsewhere}{step}\n")
}

/// The processes: also those of models that are not loaded now, since they rest after a death.
fn workers(answer: &Value, prefix: &str) -> String {
    let key = if answer["workers"].is_array() { "workers" } else { "models" };
    let is_keyed = rows(answer, key, prefix).any(|row| row["key"].is_string());
    let rows: Vec<Vec<String>> = rows(answer, key, prefix)
        .map(|row| {
            let text = |name: &str| match &row[name] {
                Value::String(text) if !text.is_empty() => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => "-".to_owned(),
            };
            let slots = match (row["in_flight"].as_u64(), row["slots"].as_u64()) {
                (Some(busy), Some(slots)) => format!("{busy}/{slots}"),
                _ => text("slots"),
            };
            let mut cells = vec![
                text("name"),
                text("backend"),
                text("state"),
                text("pid"),
                slots,
                text("queued"),
                text("device"),
                text("restarts"),
                text("last_death"),
                row["size"].as_u64().map_or_else(|| "-".to_owned(), human::bytes),
                text("rests_until"),
            ];
            cells.extend(is_keyed.then(|| text("key")));
            cells
        })
        .collect();
    let mut header = vec![
        "NAME",
        "BACKEND",
        "STATE",
        "PID",
        "SLOTS",
        "QUEUED",
        "DEVICE",
        "RESTARTS",
        "LAST DEATH",
        "MEMORY",
        "RESTS UNTIL",
    ];
    header.extend(is_keyed.then_some("KEY"));
    text_table::with_header(&header, &rows)
}

fn processor(size: u64, size_vram: u64) -> String {
    match (size, size_vram) {
        (_, 0) => "100% CPU".to_owned(),
        (0, _) => "Unknown".to_owned(),
        _ if size_vram > size => "Unknown".to_owned(),
        _ if size_vram == size => "100% GPU".to_owned(),
        _ => {
            let cpu = ((size - size_vram) as f64 / size as f64 * 100.0).round() as u64;
            format!("{cpu}%/{}% CPU/GPU", 100 - cpu)
        }
    }
}

fn until(text: &str, now: DateTime<Utc>) -> String {
    let Ok(time) = DateTime::parse_from_rfc3339(text) else { return "Never".to_owned() };
    if time.timestamp() <= -62_135_596_800 {
        // Go's zero time, the first of January of the year 1.
        return "Never".to_owned();
    }
    let left = time.signed_duration_since(now);
    match left.to_std() {
        Err(_) => "Stopping...".to_owned(),
        Ok(_) if left > TimeDelta::days(FOREVER_DAYS) => "Forever".to_owned(),
        Ok(left) => format!("{} from now", human::distance(left)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-01-04T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn the_table_is_ollama_s() {
        let answer = json!({"models": [{"name": "llama3.2:latest", "digest": "a80c4f17acd5aa", "size": 3_200_000_001u64,
            "size_vram": 3_200_000_001u64, "context_length": 4096, "expires_at": "2026-01-04T00:04:59Z",
            "memory": {"budget": 3_200_000_001u64, "measured": 2_900_000_000u64}}]});
        assert_eq!(
            table(&answer, "", now()),
            "NAME               ID              SIZE      PROCESSOR    CONTEXT    UNTIL                 BUDGET    MEASURED \n\
             llama3.2:latest    a80c4f17acd5    3.2 GB    100% GPU     4096       4 minutes from now    3.2 GB    2.9 GB      \n"
        );
        assert_eq!(table(&answer, "Llama", now()).lines().count(), 1);
    }

    #[test]
    fn the_ledger_shows_how_a_budget_comes_about() {
        let memory = json!({"budget": 550, "measured": 495, "learned": 50, "sampled": 495, "limit": null,
            "estimated": {"weights": 100, "caches": 300, "compute": 100}, "reported": {"total": 480}});
        let answer = json!({"memory": {"reserved": 550, "measured": 495, "limit": 1000, "step": "calm"},
            "models": [{"name": "m:latest", "priority": -2, "memory": memory}, {"name": "rests", "memory": {"budget": 0}}]});
        assert_eq!(
            ledger(&answer, ""),
            "NAME        WEIGHTS    CACHES    COMPUTE    LEARNED    BUDGET    REPORTED    SAMPLED    OF BUDGET    OWN LIMIT    \
             PRIORITY    SMALLER \n\
             m:latest    100 B      300 B     100 B      50 B       550 B     480 B       495 B      90%          none         \
             -2          no         \n\
             550 B of the limit of 1 KB set aside, 495 B measured, memory ladder: calm\n"
        );
        assert_eq!(total(&json!({"reserved": 0, "limit": null})), "0 B of no limit set aside\n");
        let replaces = json!({"reserved": 0, "measured": 0, "limit": 1000, "predecessor": 700, "step": "calm"});
        let line = "0 B of the limit of 1 KB set aside, 700 B held by the server being replaced, memory ladder: calm\n";
        assert_eq!(total(&replaces), line);
    }

    #[test]
    fn the_processor_is_a_share() {
        assert_eq!(processor(10, 0), "100% CPU");
        assert_eq!(processor(10, 10), "100% GPU");
        assert_eq!(processor(100, 75), "25%/75% CPU/GPU");
        assert_eq!(processor(10, 11), "Unknown");
        assert_eq!(processor(0, 1), "Unknown");
    }

    #[test]
    fn the_end_is_in_words() {
        assert_eq!(until("2026-01-03T23:59:59Z", now()), "Stopping...");
        assert_eq!(until("0001-01-01T00:00:00Z", now()), "Never");
        assert_eq!(until("2318-01-01T00:00:00+01:00", now()), "Forever");
        assert_eq!(until("2026-01-04T01:00:00+01:00", now()), "Less than a second from now");
    }

    #[test]
    fn row_44_a_failed_upgrade_is_a_line() {
        let server = json!({"pid": 7, "upgrade_error": "the new server did not start: line 2"});
        assert_eq!(upgrade(&server), "the last upgrade failed: the new server did not start: line 2\n");
        assert_eq!(upgrade(&json!({"pid": 7, "upgrade_error": null})) + &upgrade(&Value::Null), "");
        assert_eq!(exposure(&json!({"exposure": "whoever"})), "warning: whoever\n");
        assert_eq!(exposure(&json!({"exposure": null})) + &exposure(&Value::Null), "");
    }

    #[test]
    fn the_walls_are_a_line() {
        let told = |policy: &str, missing: &[&str]| {
            let walls = if policy == "off" { &[][..] } else { &["no capabilities", "Landlock 2"] };
            sandbox(&json!({"worker_sandbox": {"policy": policy, "walls": walls, "missing": missing}}))
        };
        assert_eq!(told("auto", &[]), "worker sandbox: no capabilities, Landlock 2\n");
        let lacks = "worker sandbox: no capabilities, Landlock 2; this system lacks a; b\n";
        assert_eq!(told("require", &["a", "b"]), lacks);
        assert_eq!(told("off", &[]) + &sandbox(&Value::Null), "worker sandbox: off\n");
    }

    #[test]
    fn the_processes_tell_of_deaths() {
        let answer = json!({"models": [], "workers": [{"name": "m:latest", "backend": "gguf", "state": "backoff", "pid": null,
            "in_flight": 0, "slots": 4, "queued": 1, "device": "CPU", "restarts": 2, "key": "anna", "last_death": "killed by signal 9 SIGKILL"}]});
        let text = workers(&answer, "");
        assert!(text.contains("m:latest    gguf       backoff    -      0/4      1         CPU       2           killed by signal 9 SIGKILL"), "{text}");
        assert!(text.lines().next().is_some_and(|header| header.trim_end().ends_with("KEY")) && text.contains("anna"));
    }
}
