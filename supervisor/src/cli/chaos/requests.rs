//! The hostile requests that are made, and what must come of each. Pure.

use serde_json::{Value, json};

use crate::limits::MIB;

/// What must come of it. Its companions go on in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An answer, from as much of the request as there is room for.
    Answered,
    /// A refusal that has this in it.
    Refused(&'static str),
    /// Either: what a model can bear is not the same for all.
    Either,
}

impl Answer {
    pub(super) fn words(self) -> String {
        match self {
            Self::Answered => "an answer".to_owned(),
            Self::Refused(text) => format!("refused: …{text}…"),
            Self::Either => "an answer or a refusal".to_owned(),
        }
    }
}

/// One hostile request.
#[derive(Clone, Debug)]
pub(super) struct HostileRequest {
    pub(super) name: &'static str,
    /// What is sent, in words.
    pub(super) sent: &'static str,
    pub(super) path: &'static str,
    /// The body for a model of this name.
    pub(super) body: fn(&str) -> String,
    pub(super) expected: Answer,
}

/// All of them.
pub(super) const ALL: &[HostileRequest] = &[
    request("schema-quantifiers", "a pattern (a{1,1000}){1,1000}", quantifiers, Answer::Either),
    request("schema-product", "24 patterns that must all fit", product, Answer::Either),
    request("schema-items", "at least 10^8 items", items, Answer::Either),
    request("schema-enum", "10^5 words to choose from", words, Answer::Either),
    request("prompt-letter", "16 MB of one letter", |model| prompt(model, "a", 16), Answer::Answered),
    request("prompt-space", "16 MB of spaces", |model| prompt(model, " ", 16), Answer::Answered),
    request("prompt-control", "4 MB of control tokens", |model| prompt(model, "<|im_start|>", 4), Answer::Answered),
    request("prompt-emoji", "4 MB of one emoji", |model| prompt(model, "\u{1f600}", 4), Answer::Answered),
    request("turns", "100,000 turns of one letter", turns, Answer::Either),
    request("tools", "1,000 tools with nested arguments", tools, Answer::Either),
    HostileRequest {
        path: "/api/generate",
        ..request("template", "a template that doubles a text 60 times", doubling, Answer::Refused("template"))
    },
    request("stops", "10^5 stop strings", stops, Answer::Either),
    request("body-objects", "48 MB of small objects that nobody reads", ignored, Answer::Either),
    request("body-deep", "10^6 brackets", |_| "[".repeat(1_000_000), Answer::Refused("")),
];

const fn request(name: &'static str, sent: &'static str, body: fn(&str) -> String, expected: Answer) -> HostileRequest {
    HostileRequest { name, sent, path: "/api/chat", body, expected }
}

/// A chat of a few tokens with more fields in it.
fn chat(model: &str, content: &str, more: &Value) -> String {
    let mut body = json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "options": {"num_predict": 4, "temperature": 0},
        "stream": false,
    });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more.clone());
    }
    body.to_string()
}

fn schema(model: &str, schema: &Value) -> String {
    chat(model, "Say something.", &json!({ "format": schema }))
}

fn quantifiers(model: &str) -> String {
    schema(model, &json!({"type": "string", "pattern": "^(a{1,1000}){1,1000}(b{1,1000}){1,1000}$"}))
}

fn product(model: &str) -> String {
    let patterns = (1..25).map(|count| json!({"type": "string", "pattern": format!("^(a|b)*a(a|b){{{count}}}$")}));
    schema(model, &json!({"allOf": patterns.collect::<Vec<_>>()}))
}

fn items(model: &str) -> String {
    schema(model, &json!({"type": "array", "items": {"type": "integer"}, "minItems": 100_000_000}))
}

fn words(model: &str) -> String {
    schema(model, &json!({"enum": (0..100_000).map(|number| format!("word{number}")).collect::<Vec<_>>()}))
}

fn prompt(model: &str, piece: &str, mib: usize) -> String {
    chat(model, &piece.repeat(mib * MIB / piece.len()), &json!({}))
}

fn turns(model: &str) -> String {
    let roles = ["user", "assistant"].iter().cycle().take(100_001);
    let turns: Vec<Value> = roles.map(|role| json!({"role": role, "content": "x"})).collect();
    chat(model, "", &json!({ "messages": turns }))
}

fn tools(model: &str) -> String {
    let nested =
        (0..40).fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"x": inner}}));
    let tool =
        json!({"type": "function", "function": {"name": "f", "description": "d".repeat(200), "parameters": nested}});
    chat(model, "x", &json!({ "tools": vec![tool; 1_000] }))
}

fn doubling(model: &str) -> String {
    let doubled = r#"{{ $a = printf "%s%s" $a $a }}"#.repeat(60);
    let template = format!("{{{{ $a := \"aaaaaaaa\" }}}}{doubled}{{{{ $a }}}}");
    json!({"model": model, "prompt": "x", "template": template, "stream": false}).to_string()
}

fn stops(model: &str) -> String {
    chat(model, "x", &json!({"options": {"num_predict": 4, "stop": vec!["ab"; 100_000]}}))
}

fn ignored(model: &str) -> String {
    let (piece, whole) = (r#"{"":0},"#, chat(model, "x", &json!({})));
    let start = whole.strip_suffix('}').unwrap_or_default();
    format!("{start},\"ignored\":[{}0]}}", piece.repeat(48 * MIB / piece.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_json_but_the_one_that_must_not_be() {
        for request in ALL.iter().filter(|request| request.name != "body-deep") {
            let body = (request.body)("m");
            assert!(body.len() < crate::limits::BODY_BYTES_MAX, "{}", request.name);
            if body.len() < 8 * MIB {
                let value: Value = serde_json::from_str(&body).expect(request.name);
                assert_eq!(value["model"], "m", "{}", request.name);
            }
        }
    }
}
