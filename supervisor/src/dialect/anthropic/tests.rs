//! Anthropic's dialect, both ways.

use ollmlx_proto::{Delta, FinishReason, Finished, JsonText, Output, Part, Role, Timings, ToolCall, Usage};
use serde_json::{Value, json};

use super::request::messages;
use super::{MessageEncoder, error_body};
use crate::dialect::json::JsonBody;
use crate::dialect::{Call, CallBody, Encoder, Meta, Rejection};
use crate::types::TicketItem;

fn read(body: &Value) -> Result<Call, Rejection> {
    messages(&JsonBody::new(body.to_string().as_bytes()))
}

#[test]
fn refusals_come_in_ollamas_order() {
    for (body, text) in [
        (json!({}), "model is required"),
        (json!({"model": "m"}), "max_tokens is required and must be positive"),
        (json!({"model": "m", "max_tokens": 0, "messages": []}), "max_tokens is required and must be positive"),
        (json!({"model": "m", "max_tokens": 1, "messages": []}), "messages is required"),
        (
            json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}),
            "tool_use block missing required 'id' field",
        ),
    ] {
        assert_eq!(read(&body), Err(Rejection::bad_request(text)), "{body}");
    }
    let expected = r#"{"type":"error","error":{"type":"not_found_error","message":"x"},"request_id":"req_1"}"#;
    assert_eq!(error_body(&Rejection::not_found("x"), "req_1"), expected);
}

#[test]
fn blocks_become_messages() {
    let call = read(&json!({"model": "m", "max_tokens": 8, "stop_sequences": ["s"], "top_k": 3, "metadata": {},
    "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
    "tools": [{"name": "mul", "input_schema": {"type": "object"}}, {"type": "web_search_1", "name": "w"}],
    "messages": [
        {"role": "user", "content": "6 times 7?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "mul", "input": {"a": 6}}]},
        {"role": "user", "content": [{"type": "text", "text": "So?"},
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "43"}]}
    ]}))
    .unwrap();
    assert_eq!(Value::Object(call.options), json!({"num_predict": 8, "top_k": 3, "stop": ["s"]}));
    let CallBody::Chat { messages, tools } = call.body else { panic!("chat") };
    let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "user", "tool"]);
    assert_eq!(messages[3].tool_name.as_deref(), Some("mul"));
    assert_eq!(messages[5].role, Role::Tool);
    assert_eq!(tools.len(), 1);
    let definition = r#"{"type":"function","function":{"name":"mul","parameters":{"type":"object"}}}"#;
    assert_eq!(tools[0].definition.0, definition);
}

fn items(reason: FinishReason) -> Vec<TicketItem> {
    let delta = |text: &str, part| Output::Delta(Delta { tokens: vec![1], text: text.into(), part, logprobs: vec![] });
    let call = ToolCall { index: 0, name: "f".into(), arguments: JsonText("{\"a\":1}".into()) };
    let usage = Usage { prompt_tokens: 8, cached_tokens: 0, completion_tokens: 2 };
    let (timings, context) = (Timings::default(), Vec::new());
    let finished = Finished { reason, stop_string: None, usage, timings, context };
    let outputs = [
        delta("hm", Part::Thinking),
        delta("Hel", Part::Content),
        delta("lo", Part::Content),
        Output::ToolCall(call),
        Output::Finished(finished),
    ];
    outputs.into_iter().map(TicketItem::Output).collect()
}

fn meta() -> Meta {
    Meta { model: "tiny".into(), id: "msg_1".into(), ..Meta::default() }
}

#[test]
fn a_stream_opens_and_closes_every_block() {
    let mut encoder = MessageEncoder::new(meta());
    let events: String = items(FinishReason::Stop).iter().map(|item| encoder.frames(item)).collect();
    let names: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let (start, delta, stop) = ("content_block_start", "content_block_delta", "content_block_stop");
    let expected = [
        "message_start",
        start,
        delta,
        stop,
        start,
        delta,
        delta,
        stop,
        start,
        delta,
        stop,
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, expected);
    let last =
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"input_tokens":8,"output_tokens":2}}"#;
    assert!(events.contains(last), "{events}");
    let first = r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hel"}}"#;
    assert!(events.contains(first), "{events}");
}

#[test]
fn a_whole_reply_lists_its_blocks() {
    let mut encoder = MessageEncoder::new(meta());
    let mut items = items(FinishReason::Length);
    items.remove(3);
    items.iter().for_each(|item| encoder.push(item));
    let expected = r#"{"id":"msg_1","type":"message","role":"assistant","model":"tiny","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"Hello"}],"stop_reason":"max_tokens","usage":{"input_tokens":8,"output_tokens":2}}"#;
    assert_eq!(encoder.finish().unwrap(), expected);
}
