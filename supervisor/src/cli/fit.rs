//! `ollmlx fit`: whether and how a model fits, before anything is loaded.
//!
//! Asks the server, which knows what others hold. Where none listens on this machine, the same judgement is made here from
//! the settings, as if nothing was loaded.

use serde_json::{Value, json};

use super::args::{FitArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, text_of};
use super::{house, human, model_path};
use crate::catalog::Learned;
use crate::config::Config;
use crate::http::fit::{Ask, judge};
use crate::scheduler::{KeepAlive, Snapshot};

/// Prints the judgement.
///
/// # Errors
/// It doesn't fit, the model is unknown or unreadable, or the server refuses.
pub async fn run(client: &Client, config: &Config, args: FitArgs) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let ask = Ask { context_tokens: args.ctx, slots: args.slots, kv_type: args.kv_type };
    let judged = match client.heartbeat().await {
        Err(CliError::ServerDown) if client.is_local() => offline(config, &model, &ask).await?,
        Err(error) => return Err(error),
        Ok(()) => {
            let body =
                json!({"model": model, "num_ctx": ask.context_tokens, "slots": ask.slots, "kv_type": ask.kv_type});
            client.post("/api/ollmlx/fit", &body).await?
        }
    };
    if args.json {
        print_json(&judged)?
    } else {
        print(&story(&judged))?
    }
    if judged["fits"] == json!(true) { Ok(()) } else { Err(CliError::DoesNotFit(refusal(&judged))) }
}

/// Without a server. The stores are only read.
async fn offline(config: &Config, name: &str, ask: &Ask) -> Result<Value, CliError> {
    let system = |source| CliError::System { step: "find the workers", source };
    let catalog = house::catalog(config, house::worker_dir(config).map_err(system)?, false)?;
    let model = catalog.resolve(name).await.map_err(|error| CliError::Store(error.to_string()))?;
    let scheduler = house::scheduler_config(config);
    let snapshot = Snapshot {
        limit_bytes: scheduler.memory_limit,
        shrink: scheduler.shrink,
        workers_max: scheduler.workers_max,
        pins_hold: scheduler.default_keep_alive != KeepAlive::Forever,
        ..Snapshot::default()
    };
    let learned = Learned::read(&house::learned_path(config));
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let judged = judge(&model, &house::http_config(config, nowhere), &learned, &snapshot, ask);
    let mut judged = judged.map_err(|rejection| CliError::Usage(rejection.message))?;
    judged["offline"] = json!(true);
    Ok(judged)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn limit(judged: &Value) -> Option<u64> {
    [&judged["limit"], &judged["model_limit"]].into_iter().filter_map(Value::as_u64).min()
}

fn story(judged: &Value) -> String {
    let needs = &judged["needs"];
    let mut out = format!(
        "{} ({}), {} of {} tokens, caches {}\n",
        text_of(judged, "model"),
        text_of(judged, "backend"),
        slots(number(&judged["slots"])),
        number(&judged["context_length"]),
        text_of(judged, "kv_type")
    );
    let mut line = |name: &str, text: String| out += &format!("    {name:<10}{text}\n");
    for part in ["weights", "caches", "compute"] {
        line(part, human::bytes(number(&needs[part])));
    }
    if number(&needs["learned"]) > 0 {
        line("learned", format!("{} more, as its processes took before", human::bytes(number(&needs["learned"]))));
    }
    line("total", human::bytes(number(&needs["total"])));
    line("limit", limit(judged).map_or_else(|| "none".to_owned(), human::bytes));
    if judged["offline"] == json!(true) {
        line("held", "nothing, as no server runs".to_owned());
    } else {
        let held = holders(judged);
        let names = if held.is_empty() { String::new() } else { format!(": {held}") };
        line("held", format!("{}{names}", human::bytes(number(&judged["held_bytes"]))));
    }
    out += &(verdict(judged) + "\n");
    let largest = &judged["largest"];
    let tokens = |key: &str| largest[key].as_u64().map_or_else(|| "nothing".to_owned(), |tokens| tokens.to_string());
    out += &format!(
        "largest context: {} with {}, {} with one; most slots of {} tokens: {}\n",
        tokens("context_length"),
        slots(number(&judged["slots"])),
        tokens("context_length_at_one_slot"),
        number(&judged["context_length"]),
        tokens("slots"),
    );
    out
}

fn slots(count: u64) -> String {
    if count == 1 { "1 slot".to_owned() } else { format!("{count} slots") }
}

fn holders(judged: &Value) -> String {
    let rows = judged["held"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |row: &Value| {
        let state = if row["pinned"] == json!(true) { "kept for ever" } else { text_of(row, "state") };
        format!("{} ({state}, {})", text_of(row, "name"), human::bytes(number(&row["bytes"])))
    };
    rows.iter().map(row).collect::<Vec<_>>().join(", ")
}

fn verdict(judged: &Value) -> String {
    let smaller = &judged["made_smaller"];
    let told = match text_of(judged, "verdict") {
        "loaded" => "is loaded like that",
        "now" => "fits now",
        "after_eviction" => "fits once idle models have made room, which they do at once",
        "after_others" => "fits once busy models have ended what they run and made room",
        "pinned" => "does not fit beside the models that are kept for ever",
        _ => "never fits",
    };
    if smaller.is_null() {
        return told.to_owned();
    }
    format!(
        "{told}, made smaller: {} of {} tokens, {}",
        slots(number(&smaller["slots"])),
        number(&smaller["context_length"]),
        human::bytes(number(&smaller["total"]))
    )
}

fn refusal(judged: &Value) -> String {
    format!(
        "{} {}: it needs {} and {} is the limit",
        text_of(judged, "model"),
        verdict(judged),
        human::bytes(number(&judged["needs"]["total"])),
        limit(judged).map_or_else(|| "no number of bytes".to_owned(), human::bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged() -> Value {
        json!({"model": "smol:latest", "backend": "gguf", "slots": 4, "context_length": 4096, "kv_type": "f16",
            "needs": {"weights": 98_000_000, "caches": 377_000_000, "compute": 50_000_000, "learned": 0,
                "total": 525_000_000},
            "limit": 1_000_000_000, "model_limit": null, "held_bytes": 300_000_000,
            "held": [{"name": "base:latest", "bytes": 300_000_000, "state": "idle", "pinned": false}],
            "fits": true, "verdict": "now", "made_smaller": null,
            "largest": {"context_length": 8192, "context_length_at_one_slot": 8192, "slots": 9}})
    }

    #[test]
    fn the_story_has_needs_limit_holders_and_what_is_largest() {
        let text = story(&judged());
        assert_eq!(
            text,
            "smol:latest (gguf), 4 slots of 4096 tokens, caches f16\n    weights   98 MB\n    caches    377 MB\n    \
             compute   50 MB\n    total     525 MB\n    limit     1 GB\n    held      300 MB: base:latest (idle, 300 MB)\n\
             fits now\nlargest context: 8192 with 4 slots, 8192 with one; most slots of 4096 tokens: 9\n"
        );
        let mut offline = judged();
        offline["offline"] = json!(true);
        offline["limit"] = json!(null);
        let text = story(&offline);
        assert!(text.contains("    limit     none\n    held      nothing, as no server runs\n"), "{text}");
    }

    #[test]
    fn what_does_not_fit_says_what_it_needs_and_what_there_is() {
        let mut never = judged();
        never["verdict"] = json!("never");
        never["model_limit"] = json!(500_000_000);
        never["largest"] = json!({"context_length": null, "context_length_at_one_slot": null, "slots": null});
        assert_eq!(refusal(&never), "smol:latest never fits: it needs 525 MB and 500 MB is the limit");
        assert!(story(&never).contains("largest context: nothing with 4 slots, nothing with one"));
        let mut smaller = judged();
        smaller["made_smaller"] = json!({"slots": 1, "context_length": 4096, "total": 300_000_000});
        assert_eq!(verdict(&smaller), "fits now, made smaller: 1 slot of 4096 tokens, 300 MB");
    }
}
