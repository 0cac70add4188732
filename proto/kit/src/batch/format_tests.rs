//! Batching together with the real chat formats and grammars: what they say reaches the client, whole and once.

use ollmlx_proto::{Chat, Format, JsonText, Part, ThinkMode};

use super::tests::{Book, alone_on, chat, drive, message, note, toy, with_chat};
use super::toy::{Toy, after, complete};
use super::*;

fn json(schema: &str) -> Format {
    Format::JsonSchema(JsonText(schema.to_owned()))
}

/// A toy that says what it is told to, then ends.
fn scripted(jinja: &str, script: &str) -> Toy {
    let mut toy = toy();
    toy.facts.chat.jinja = Some(jinja.to_owned());
    toy.script = Some(script.to_owned());
    toy
}

#[test]
fn a_format_is_kept_and_ends() {
    let schema =
        r#"{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}"#;
    for seed in 0..20 {
        let mut request = complete(1, "as JSON, please");
        request.sampling.temperature = 1.5;
        request.sampling.seed = seed;
        request.limits.max_tokens = Some(200);
        request.format = json(schema);
        let told = alone_on(toy(), &request);
        assert_eq!(told.finished().reason, FinishReason::Stop, "{}", told.text);
        let value: serde_json::Value = serde_json::from_str(&told.text).expect(&told.text);
        assert!(value["ok"].is_boolean() && value.as_object().is_some_and(|object| object.len() == 1));
        assert_eq!(told.finished().usage.completion_tokens as usize, told.tokens.len());
    }
}

#[test]
fn a_resumed_format_goes_on_where_it_was() {
    let mut request = complete(1, "as JSON, please");
    request.sampling.temperature = 1.0;
    request.limits.max_tokens = Some(200);
    request.format = json(r#"{"type":"array","items":{"type":"integer"},"minItems":4,"maxItems":6}"#);
    let calm = alone_on(toy(), &request);
    for done in 0..calm.tokens.len() {
        let resumed = alone_on(toy(), &after(&request, &calm.tokens[..done]));
        assert_eq!(resumed.tokens, calm.tokens[done..], "{done}");
    }
}

#[test]
fn a_bad_format_fails_its_request_only() {
    let mut batcher = Batcher::new(toy());
    let mut book = Book::new();
    let mut request = complete(1, "x");
    request.format = json("{");
    batcher.run(request);
    batcher.run(complete(2, "x"));
    drive(&mut batcher, &mut book);
    assert_eq!(book[&1].failed().kind, FailureKind::GrammarFailed);
    assert_eq!(book[&2].tokens.len(), 16);
}

#[test]
fn thinking_is_told_apart_and_the_format_waits_for_its_end() {
    let jinja = "{% for m in messages %}{{ m.content }}{% endfor %}~{% if enable_thinking %}<think>{% endif %}";
    let mut request = chat(1, vec![message(ollmlx_proto::Role::User, "hi")]);
    request.limits.max_tokens = Some(60);
    request.format = json(r#"{"type":"integer"}"#);
    let request = with_chat(request, |chat: &mut Chat| chat.think = ThinkMode::On(ollmlx_proto::ThinkLevel::Medium));
    let mut batcher = Batcher::new(scripted(jinja, "<think>hmm, a number</think>7"));
    let mut out = Vec::new();
    batcher.run(request);
    let mut book = Book::new();
    let mut parts = (String::new(), String::new());
    while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
    for (_, output) in &out {
        if let Output::Delta(delta) = output {
            match delta.part {
                Part::Thinking => parts.0.push_str(&delta.text),
                Part::Content => parts.1.push_str(&delta.text),
            }
        }
    }
    note(&mut book, &mut out);
    assert_eq!(parts.0, "hmm, a number");
    assert!(parts.1.starts_with('7') && parts.1.parse::<f64>().is_ok(), "{}", parts.1);
}

#[test]
fn a_tool_call_is_taken_out_of_the_text() {
    let jinja = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}<tool_call></tool_call>{% endif %}~";
    let definition = r#"{"type":"function","function":{"name":"add","parameters":{"type":"object","properties":{}}}}"#;
    let tool = ollmlx_proto::ToolSpec { name: "add".to_owned(), definition: JsonText(definition.to_owned()) };
    let mut request = chat(1, vec![message(ollmlx_proto::Role::User, "6*7?")]);
    request.limits.max_tokens = None;
    let request = with_chat(request, |chat: &mut Chat| chat.tools = vec![tool]);
    let script = "I add. <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 6}}\n</tool_call>";
    let mut batcher = Batcher::new(scripted(jinja, script));
    let mut out = Vec::new();
    batcher.run(request);
    while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
    let calls: Vec<_> = out.iter().filter(|(_, output)| matches!(output, Output::ToolCall(_))).collect();
    match calls.as_slice() {
        [(_, Output::ToolCall(call))] => {
            assert_eq!((call.index, call.name.as_str()), (0, "add"));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&call.arguments.0).expect("JSON")["a"], 6);
        }
        other => panic!("{other:?}"),
    }
    out.retain(|(_, output)| !matches!(output, Output::ToolCall(_)));
    let mut book = Book::new();
    note(&mut book, &mut out);
    assert_eq!(book[&1].text.trim(), "I add.");
    assert_eq!(book[&1].tokens.len(), script.len(), "every token is in a delta");
    assert_eq!(book[&1].finished().reason, FinishReason::ToolCalls);
}

/// All that a batcher says of one request, prefill excepted.
fn said(toy: Toy, request: Request) -> Vec<Output> {
    let mut batcher = Batcher::new(toy);
    let mut out = Vec::new();
    batcher.run(request);
    while batcher.step(&mut out).expect("fine") == StepOutcome::Busy {}
    out.into_iter().map(|(_, output)| output).filter(|output| !matches!(output, Output::Prefill { .. })).collect()
}

#[test]
fn an_answer_torn_between_any_two_outputs_goes_on_with_the_next() {
    const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>";
    let jinja = "{% for m in messages %}{{ m.content }}{% endfor %}\
                 {% if false %}{{ tools }}<tool_call></tool_call>{{ enable_thinking }}<think></think>{% endif %}~";
    let tool = ollmlx_proto::ToolSpec { name: "add".to_owned(), definition: JsonText("{}".to_owned()) };
    let mut request = chat(1, vec![message(ollmlx_proto::Role::User, "hi")]);
    request.limits.max_tokens = None;
    request.stop = vec!["STOP".to_owned()];
    let request = with_chat(request, |chat: &mut Chat| chat.tools = vec![tool]);
    let mut torn = 0;
    for script in
        [format!("<think>\nhm\n</think>\n\nYes.{CALL}{CALL}"), "It is <tool_ca".to_owned(), "STO, STO".to_owned()]
    {
        let calm = said(scripted(jinja, &script), request.clone());
        for heard in 1..calm.len() {
            let (mut produced, mut said_after) = (Vec::new(), 0);
            for output in &calm[..heard] {
                match output {
                    Output::Delta(delta) if delta.tokens.is_empty() => said_after += 1,
                    Output::Delta(delta) => {
                        produced.extend_from_slice(&delta.tokens);
                        said_after = 0;
                    }
                    Output::ToolCall(_) => said_after += 1,
                    _ => {}
                }
            }
            torn += u32::from(said_after > 0);
            let rest = said(
                scripted(jinja, &script),
                Request { progress: ResumePoint { produced, said_after, replay_exact_ms: 1000 }, ..request.clone() },
            );
            let words = |outputs: &[Output]| -> Vec<Output> {
                outputs
                    .iter()
                    .filter(|output| matches!(output, Output::Delta(_) | Output::ToolCall(_)))
                    .cloned()
                    .collect()
            };
            assert_eq!(words(&rest), words(&calm[heard..]), "{script:?} after {heard} outputs");
        }
    }
    assert!(torn >= 4, "{torn} places between a token and what it led to");
}
