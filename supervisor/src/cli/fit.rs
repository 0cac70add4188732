//! `ollmlx fit`: whether and how a model fits, before anything is loaded.
//!
//! Asks the server, which knows what others hold. Where none listens on this machine, the same judgement is made from the
//! settings, as if nothing was loaded (see [`judge_offline`]).

use std::cmp::Ordering;

use ollmlx_proto::memory::{bytes_allowed, bytes_needed};
use serde_json::{Value, json};

use super::args::{FitArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, text_of};
use super::{human, model_path};
use crate::config::Config;
use crate::server::judge_offline;
use crate::types::LoadWish;

/// Prints the judgement.
///
/// # Errors
/// It doesn't fit; or it can't be told, since the model is unknown or unreadable or the server refuses, which has another
/// exit status.
pub async fn run(client: &Client, config: &Config, args: FitArgs) -> Result<(), CliError> {
    answer(client, config, args).await.map_err(|error| match error {
        CliError::DoesNotFit(_) => error,
        error => CliError::Untold(Box::new(error)),
    })
}

async fn answer(client: &Client, config: &Config, args: FitArgs) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let ask = LoadWish { context_tokens: args.ctx, slots: args.slots, kv_type: args.kv_type };
    let judged = match client.heartbeat().await {
        Err(CliError::ServerDown) if client.is_local() => judge_offline(config, &model, &ask).await?,
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

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The limit that counts, and whose it is.
fn limit(judged: &Value) -> Option<(u64, &'static str)> {
    let of = |key: &str, whose| judged[key].as_u64().map(|bytes| (bytes, whose));
    let limits = [of("model_limit", "of this model"), of("limit", "of all models together")];
    limits.into_iter().flatten().min_by_key(|(bytes, _)| *bytes)
}

/// What was asked for and is not to be had, each a line.
fn cut(judged: &Value) -> String {
    let asked = &judged["asked"];
    let line = |key: &str, what: &str, most: &str| {
        let (wanted, used) = (asked[key].as_u64().unwrap_or(0), number(&judged[key]));
        match wanted.cmp(&used) {
            _ if wanted == 0 => String::new(),
            Ordering::Equal => String::new(),
            Ordering::Greater => format!("    {wanted} {what} were asked for: {used} is {most}\n"),
            Ordering::Less => format!("    {wanted} {what} were asked for: {used} is the least\n"),
        }
    };
    line("context_length", "tokens", "all that it was trained for") + &line("slots", "slots", "the most")
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
    out += &cut(judged);
    let mut line = |name: &str, text: String| out += &format!("    {name:<10}{text}\n");
    for part in ["weights", "caches", "compute"] {
        line(part, human::bytes(number(&needs[part])));
    }
    if number(&needs["learned"]) > 0 {
        line("learned", format!("{} more, as its processes took before", human::bytes(number(&needs["learned"]))));
    }
    line("total", human::bytes(number(&needs["total"])));
    let bytes_of = |(bytes, whose): (u64, &str)| format!("{}, that {whose}", human::bytes(bytes));
    line("limit", limit(judged).map_or_else(|| "none".to_owned(), bytes_of));
    if judged["offline"] == json!(true) {
        line("held", "nothing, as no server runs".to_owned());
    } else {
        line("held", held(judged));
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

/// What others have, and who they are.
fn held(judged: &Value) -> String {
    let rows = judged["held"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |row: &Value| {
        let state = if row["pinned"] == json!(true) { "kept for ever" } else { text_of(row, "state") };
        format!("{} ({state}, {})", text_of(row, "name"), human::bytes(number(&row["bytes"])))
    };
    let predecessor = Some(number(&judged["held_by_predecessor"])).filter(|bytes| *bytes > 0);
    let predecessor = predecessor.map(|bytes| format!("the server being replaced ({})", human::bytes(bytes)));
    let holders: Vec<String> = rows.iter().map(row).chain(predecessor).collect();
    if holders.is_empty() {
        return "nothing, by other models".to_owned();
    }
    format!("{}: {}", human::bytes(number(&judged["held_bytes"])), holders.join(", "))
}

fn verdict(judged: &Value) -> String {
    let smaller = &judged["made_smaller"];
    let told = match text_of(judged, "verdict") {
        "loaded" => return loaded(&judged["loaded"]),
        "now" => "fits now",
        "after_eviction" => "fits once idle models have made room, which they do at once",
        "after_others" if number(&judged["held_by_predecessor"]) > 0 => {
            "fits once the server being replaced, or busy models, have ended what they run and made room"
        }
        "after_others" => "fits once busy models have ended what they run and made room",
        "rests" => return rests(judged),
        "pinned" => "does not fit beside the models that are kept for ever",
        _ => "never fits",
    };
    // One that failed before it rests is tried again soon.
    let told = if judged["rests"].is_null() { told.to_owned() } else { format!("{told}, but {}", rests(judged)) };
    if smaller.is_null() {
        return told;
    }
    format!(
        "{told}, made smaller: {} of {} tokens, {}",
        slots(number(&smaller["slots"])),
        number(&smaller["context_length"]),
        human::bytes(number(&smaller["total"]))
    )
}

fn loaded(loaded: &Value) -> String {
    format!(
        "is loaded, with {} of {} tokens and {} set aside",
        slots(number(&loaded["slots"])),
        number(&loaded["context_length"]),
        human::bytes(number(&loaded["budget"]))
    )
}

fn rests(judged: &Value) -> String {
    let rests = &judged["rests"];
    let what = if text_of(rests, "state") == "quarantined" { "is refused" } else { "its next start waits" };
    let until = rests["until"].as_str().map_or_else(String::new, |until| format!(" until {until}"));
    let reason = rests["reason"].as_str().unwrap_or("its processes died");
    format!("{what}{until}, since it failed: {reason} (ollmlx restart ends that)")
}

fn refusal(judged: &Value) -> String {
    let (name, verdict) = (text_of(judged, "model"), verdict(judged));
    match (text_of(judged, "verdict"), limit(judged)) {
        ("rests", _) | (_, None) => format!("{name} {verdict}"),
        (_, Some((bytes, whose))) => {
            let need = bytes_needed(number(&judged["needs"]["total"]));
            format!("{name} {verdict}: it needs {need} and {} is the limit {whose}", bytes_allowed(bytes))
        }
    }
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
             compute   50 MB\n    total     525 MB\n    limit     1 GB, that of all models together\n    held      300 MB: base:latest (idle, 300 MB)\n\
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
        assert_eq!(refusal(&never), "smol:latest never fits: it needs 525 MB and 500 MB is the limit of this model");
        assert!(story(&never).contains("largest context: nothing with 4 slots, nothing with one"));
        let mut smaller = judged();
        smaller["made_smaller"] = json!({"slots": 1, "context_length": 4096, "total": 300_000_000});
        assert_eq!(verdict(&smaller), "fits now, made smaller: 1 slot of 4096 tokens, 300 MB");
    }

    #[test]
    fn what_is_asked_for_and_not_to_be_had_is_said() {
        let mut asked = judged();
        asked["asked"] = json!({"slots": 4, "context_length": null});
        assert_eq!(cut(&asked), "");
        asked["asked"] = json!({"slots": 65, "context_length": 32768});
        assert_eq!(
            cut(&asked),
            "    32768 tokens were asked for: 4096 is all that it was trained for\n    65 slots were asked for: 4 is the \
             most\n"
        );
        assert!(story(&asked).contains(&cut(&asked)));
    }

    #[test]
    fn one_that_is_loaded_or_rests_says_so() {
        let mut told = judged();
        told["verdict"] = json!("loaded");
        told["loaded"] = json!({"slots": 3, "context_length": 4096, "budget": 431_000_000});
        assert_eq!(verdict(&told), "is loaded, with 3 slots of 4096 tokens and 431 MB set aside");
        told["rests"] = json!({"state": "quarantined", "until": "12:00", "reason": "model requires more memory"});
        told["verdict"] = json!("rests");
        let rests = "smol:latest is refused until 12:00, since it failed: model requires more memory (ollmlx restart ends \
                     that)";
        assert_eq!(refusal(&told), rests);
        told["rests"]["state"] = json!("backoff");
        told["verdict"] = json!("now");
        assert!(
            verdict(&told).starts_with("fits now, but its next start waits until 12:00, since"),
            "{}",
            verdict(&told)
        );
    }

    #[test]
    fn what_others_hold_has_names() {
        let mut told = judged();
        told["held_by_predecessor"] = json!(200_000_000);
        told["held_bytes"] = json!(500_000_000);
        assert_eq!(held(&told), "500 MB: base:latest (idle, 300 MB), the server being replaced (200 MB)");
        told["verdict"] = json!("after_others");
        assert!(verdict(&told).contains("the server being replaced"));
        told["held"] = json!([]);
        told["held_by_predecessor"] = json!(0);
        assert_eq!(held(&told), "nothing, by other models");
    }
}
