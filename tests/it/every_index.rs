//! The promise itself, through the door: a worker dies at each token of an answer, and the client hears what it would have
//! heard. For every format that an answer has, in both kinds of stream, with the real kit in the worker.

use harness::toy::Weights;
use serde_json::{Map, Value, json};

use crate::door::{Door, Ground, Reply};

/// Tokens of the longest answers.
const TOKENS: u64 = 200;
const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}~";
/// The markers tell the kit which parsers belong to the model; they are never rendered.
const TOOLS: &str = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | length }}\
                     {% if false %}<tool_call></tool_call>{% endif %}~";
const THINKS: &str = "{% for m in messages %}{{ m.content }}{% endfor %}\
                      {% if false %}{{ enable_thinking }}<think></think>{% endif %}~";
const CALLS: &str = "Let me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, 3]}}\n</tool_call>";
/// Two, three and four bytes a character, joined ones as well: nearly every token is a part of one.
const WIDE: &str = "Grüße, 世界! 👩‍👩‍👧 café — Ελλάδα, 日本語, 🦀🦀; naïve Ωμέγα ∑∏√ 🇨🇭 конец, ça va? ありがとう 🎉 и так далее, \
                    до свидания 👋🏽 fin.";
/// Beginnings of the stop string that turn out to be none, then the string.
const STOPS: &str = "One ST, two STO, three STOP H, four STOP HER! SSTSTOSTOP H STOPSTOP HE and then, as the last thing that \
                     is heard of it, STOP HERE, which nobody hears.";
const HELD: &str = "It is cut while it holds back what may become the end: STOP HE";
const THOUGHT: &str = "<think>\nThe user wants a number. Perhaps < or </thin is a trap; 42 will do.\n</think>\n\nForty-two, \
                       after some thought.";

/// What is asked, and of what model.
struct Case {
    name: &'static str,
    path: &'static str,
    template: &'static str,
    answer: Option<&'static str>,
    body: Value,
}

fn tool(name: &str, properties: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "", "parameters":
        {"type": "object", "properties": properties}}})
}

/// What the formats have in common: both dialects' words for greedy and for the length.
fn asked(path: &str, more: Value) -> Value {
    let mut body = Map::new();
    body.insert("stream".into(), true.into());
    if path.starts_with("/api/") {
        body.insert("options".into(), json!({"temperature": 0, "num_predict": TOKENS}));
    } else {
        body.extend(Map::from_iter([("temperature".into(), 0.into()), ("max_tokens".into(), TOKENS.into())]));
        body.insert("stream_options".into(), json!({"include_usage": true}));
    }
    match path {
        "/api/generate" | "/v1/completions" => body.insert("prompt".into(), "Go on.".into()),
        _ => body.insert("messages".into(), json!([{"role": "user", "content": "Go on."}])),
    };
    let Value::Object(more) = more else { panic!("an object") };
    for (key, value) in more {
        let value = match (body.remove(&key), value) {
            (Some(Value::Object(mut old)), Value::Object(new)) => {
                old.extend(new);
                Value::Object(old)
            }
            (_, value) => value,
        };
        body.insert(key, value);
    }
    Value::Object(body)
}

fn cases() -> Vec<Case> {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "minLength": 30, "maxLength": 30},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 6, "maxLength": 6}, "minItems": 6, "maxItems": 6},
        "count": {"enum": [12, 345]}}, "required": ["name", "tags", "count"], "additionalProperties": false});
    let response_format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let tools =
        json!([tool("weather", json!({"city": {"type": "string"}})), tool("add", json!({"a": {"type": "number"}}))]);
    let stop = json!(["never this", "STOP HERE"]);
    let (generate, chat) = ("/api/generate", "/api/chat");
    let (completions, openai, anthropic) = ("/v1/completions", "/v1/chat/completions", "/v1/messages");
    let short = json!({"num_predict": HELD.len(), "stop": stop});
    let table = [
        ("text", generate, PLAIN, None, json!({})),
        ("text-sse", completions, PLAIN, None, json!({})),
        ("text-anthropic", anthropic, PLAIN, None, json!({})),
        ("schema", chat, PLAIN, None, json!({"format": schema})),
        ("schema-sse", openai, PLAIN, None, json!({"response_format": response_format})),
        ("tools", chat, TOOLS, Some(CALLS), json!({"tools": tools})),
        ("tools-sse", openai, TOOLS, Some(CALLS), json!({"tools": tools})),
        ("wide", generate, PLAIN, Some(WIDE), json!({})),
        ("wide-sse", openai, PLAIN, Some(WIDE), json!({})),
        ("logprobs", generate, PLAIN, None, json!({"logprobs": true, "top_logprobs": 2})),
        ("logprobs-sse", openai, PLAIN, Some(WIDE), json!({"logprobs": true, "top_logprobs": 2})),
        ("stops", generate, PLAIN, Some(STOPS), json!({"options": {"stop": stop}})),
        ("stops-sse", openai, PLAIN, Some(STOPS), json!({"stop": stop})),
        ("held", generate, PLAIN, Some(HELD), json!({"options": short})),
        ("held-sse", openai, PLAIN, Some(HELD), json!({"stop": stop})),
        ("thinking", chat, THINKS, Some(THOUGHT), json!({})),
        ("thinking-sse", openai, THINKS, Some(THOUGHT), json!({})),
    ];
    let case = |(name, path, template, answer, more)| Case { name, path, template, answer, body: asked(path, more) };
    table.into_iter().map(case).collect()
}

/// What a client has in hand at the end of a stream.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    /// Ends, usage and errors, in their order.
    ends: Vec<Value>,
}

impl Told {
    fn of(reply: &Reply, what: &str) -> Self {
        assert_eq!(reply.status, 200, "{what}: {}", reply.body);
        let mut told = Self::default();
        for event in reply.events() {
            let ends = told.ends.len();
            told.take(event);
            assert!(ends == 0 || told.ends.len() > ends, "{what}: something follows the end\n{}", reply.body);
        }
        told
    }

    fn take(&mut self, event: Value) {
        let choice = &event["choices"][0];
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for place in [&event["message"], &choice["delta"], &event["delta"], &event, choice] {
            for field in ["content", "response", "text"] {
                self.text.push_str(&part(&place[field]));
            }
            for field in ["thinking", "reasoning"] {
                self.thinking.push_str(&part(&place[field]));
            }
            for call in place["tool_calls"].as_array().into_iter().flatten() {
                self.calls.push(call["function"].clone());
            }
        }
        for place in [&event["logprobs"], &choice["logprobs"]["content"]] {
            self.logprobs.extend(place.as_array().into_iter().flatten().cloned());
        }
        let ends = event["done"] == true
            || event.is_string()
            || !choice["finish_reason"].is_null()
            || event["choices"].as_array().is_some_and(Vec::is_empty)
            || !event["error"].is_null()
            || ["message_delta", "message_stop"].iter().any(|kind| event["type"] == *kind);
        if ends {
            let mut event = event;
            if let Value::Object(fields) = &mut event {
                fields.retain(|name, _| !name.ends_with("_duration") && !name.starts_with("created") && name != "id");
            }
            self.ends.push(event);
        }
    }

    /// Tokens of the answer, from the usage.
    fn tokens(&self) -> u64 {
        let count = |end: &Value| {
            let places = [&end["eval_count"], &end["usage"]["completion_tokens"], &end["usage"]["output_tokens"]];
            places.into_iter().find_map(Value::as_u64)
        };
        self.ends.iter().filter_map(count).max().expect("usage is told")
    }
}

/// Asks all at once, each its own model.
async fn ask(door: &Door, cases: &[Case], what: &str) -> Vec<Told> {
    let replies = cases.iter().map(|case| door.post(case.path, &case.body));
    let mut told = Vec::new();
    for (case, reply) in cases.iter().zip(join_all(replies).await) {
        told.push(Told::of(&reply, &format!("{what}, {}", case.name)));
    }
    told
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

/// Lets the first process of every model die at each index in turn, of what `fault` says.
async fn die_everywhere(fault: impl Fn(u64) -> String) {
    let ground = Ground::new();
    let mut cases = cases();
    for case in &mut cases {
        let weights = Weights { template: case.template.to_owned(), answer: case.answer.map(str::to_owned) };
        case.body["model"] = ground.model(case.name, &weights).into();
    }
    let door = ground.open(None).await;
    let calm = ask(&door, &cases, "calm").await;
    door.close().await;
    assert_formats(&cases, &calm);
    let longest = calm.iter().map(Told::tokens).max().unwrap_or_default();
    assert_eq!(longest, TOKENS);
    for index in 1..=longest {
        let fault = fault(index);
        let door = ground.open(Some(format!("{fault};times=1"))).await;
        let told = ask(&door, &cases, &fault).await;
        for ((case, calm), told) in cases.iter().zip(&calm).zip(&told) {
            assert_eq!(told, calm, "{fault}, {}", case.name);
        }
        let deaths = calm.iter().filter(|calm| calm.tokens() >= index).count() as u64;
        let totals = door.handle.snapshot().totals;
        assert_eq!((totals.deaths, totals.resumed), (deaths, deaths), "{fault}");
        door.close().await;
    }
}

/// The calm answers are what they are meant to be, so that to equal them means something.
fn assert_formats(cases: &[Case], calm: &[Told]) {
    for (case, told) in cases.iter().zip(calm) {
        let ends = match case.path {
            "/api/generate" | "/api/chat" => 1,
            "/v1/messages" => 2,
            _ => 3,
        };
        assert_eq!(told.ends.len(), ends, "{}: {told:?}", case.name);
        match case.name.trim_end_matches("-sse") {
            "text" | "text-anthropic" => assert_eq!(told.tokens(), TOKENS),
            "schema" => {
                let value: Value = serde_json::from_str(&told.text).expect(&told.text);
                assert_eq!(value["tags"].as_array().map(Vec::len), Some(6));
            }
            "tools" => assert_eq!((told.calls.len(), told.text.trim()), (2, "Let me look.")),
            "wide" => assert!(WIDE.starts_with(&told.text) && told.text.len() > 190, "{}", told.text),
            "logprobs" => assert_eq!(told.logprobs.len() as u64, told.tokens()),
            "stops" => assert_eq!(told.text, STOPS.split("STOP HERE").next().unwrap()),
            "held" => assert_eq!(told.text, HELD),
            "thinking" => {
                assert_eq!(told.text.trim(), "Forty-two, after some thought.");
                assert!(told.thinking.contains("</thin is a trap"));
            }
            other => panic!("{other} is not checked"),
        }
    }
}

#[tokio::test]
async fn killed_at_every_token_of_every_format_the_client_hears_the_calm_stream() {
    const KINDS: [&str; 4] = ["crash", "abort", "exit=7", "garbage"];
    die_everywhere(|index| format!("{}@{index}", KINDS[index as usize % KINDS.len()])).await;
}

#[tokio::test]
async fn torn_at_every_token_of_every_format_the_client_hears_the_calm_stream() {
    die_everywhere(|index| format!("half@{index}")).await;
}
