//! Golden replies: every folder of `tests/golden/<dialect>/<case>` holds a request and what a model says to it
//! (`case.json`), and the bytes that the client gets (`reply.txt`). `UPDATE_GOLDEN=1` writes the replies anew; the diff
//! is what a reviewer reads.

use std::path::{Path, PathBuf};

use ollmlx_proto::{
    Delta, Failure, FailureKind, FinishReason, Finished, JsonText, Output, Part, Timings, TokenLogprob, ToolCall,
    TopLogprob, Usage,
};
use serde_json::Value;

use super::route::{Handler, find};
use crate::dialect::json::JsonBody;
use crate::dialect::{Endpoint, Meta};
use crate::types::TicketItem;

/// Whoever answers at the path of a case.
fn endpoint(path: &str) -> &'static Endpoint {
    match find(path).map(|(route, _)| route.handler) {
        Some(Handler::Run(endpoint)) => endpoint,
        other => panic!("no model runs at {path}: {other:?}"),
    }
}

/// One word of the script to what a ticket says.
fn item(word: &Value) -> TicketItem {
    let text = |key: &str| word[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| u32::try_from(word[key].as_u64().unwrap_or(0)).expect("small");
    let delta = |part, text: String| {
        let logprobs = word["logprob"].as_f64().map(|logprob| {
            let (bytes, logprob) = (text.clone().into_bytes(), logprob as f32);
            TokenLogprob { bytes: bytes.clone(), logprob, top: vec![TopLogprob { bytes, logprob }] }
        });
        TicketItem::Output(Output::Delta(Delta {
            tokens: vec![7],
            text,
            part,
            logprobs: logprobs.into_iter().collect(),
        }))
    };
    match word["say"].as_str().expect("every word says something") {
        "granted" => TicketItem::Granted { load_ns: 21_000_000 },
        "content" => delta(Part::Content, text("text")),
        "thinking" => delta(Part::Thinking, text("text")),
        "tool" => TicketItem::Output(Output::ToolCall(ToolCall {
            index: number("index"),
            name: text("name"),
            arguments: JsonText(word["arguments"].to_string()),
        })),
        "failed" => TicketItem::Failed(Failure::new(FailureKind::WorkerDied, text("text"))),
        "finished" => TicketItem::Output(Output::Finished(Finished {
            reason: match word["reason"].as_str() {
                Some("length") => FinishReason::Length,
                Some("tool_calls") => FinishReason::ToolCalls,
                _ => FinishReason::Stop,
            },
            stop_string: word["stop_string"].as_str().map(str::to_owned),
            usage: Usage { prompt_tokens: number("prompt"), cached_tokens: 0, completion_tokens: number("completion") },
            timings: Timings { queue_ns: 0, prefill_ns: 80_000_000, decode_ns: 60_000_000 },
            context: if word["raw"] == true { Vec::new() } else { vec![1, 887, 2] },
        })),
        other => panic!("no word {other}"),
    }
}

fn reply(case: &Value) -> String {
    let endpoint = endpoint(case["endpoint"].as_str().expect("a case names its endpoint"));
    let call = match (endpoint.parse)(&JsonBody::new(case["request"].to_string().as_bytes())) {
        Ok(call) => call,
        Err(rejection) => return format!("{} {}\n", rejection.status, rejection.message),
    };
    let mut encoder = (endpoint.encoder)(
        &call,
        Meta {
            model: call.model.clone(),
            created: "2026-08-21T10:00:00.123456789Z".to_owned(),
            created_unix: 1_787_306_400,
            id: "id-77".to_owned(),
            tool_seed: 5,
            prompt_chars: 8,
            elapsed_ns: 512_000_000,
            ..Meta::default()
        },
    );
    let items = case["items"].as_array().expect("a case says what the model says").iter().map(item);
    if call.stream {
        return items.map(|item| encoder.frames(&item)).collect();
    }
    items.for_each(|item| encoder.push(&item));
    match encoder.finish() {
        Ok(body) => body + "\n",
        Err(rejection) => format!("{} {}\n", rejection.status, rejection.message),
    }
}

fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be listed") {
        let path = entry.expect("it can be read").path();
        if path.join("case.json").is_file() {
            found.push(path);
        } else if path.is_dir() {
            cases(&path, found);
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a switch of the test itself")]
fn replies_are_golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut folders = Vec::new();
    cases(&root, &mut folders);
    folders.sort();
    assert!(folders.len() >= 12, "only {} cases were found", folders.len());
    let mut wrong = Vec::new();
    for folder in folders {
        let case = std::fs::read_to_string(folder.join("case.json")).expect("the case can be read");
        let case: Value = serde_json::from_str(&case).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let (seen, file) = (reply(&case), folder.join("reply.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &seen).expect("the reply can be written");
        } else if std::fs::read_to_string(&file).ok().as_ref() != Some(&seen) {
            wrong.push(format!("{}\n{seen}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "replies have changed:\n{}", wrong.join("\n"));
}
