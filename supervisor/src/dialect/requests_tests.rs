//! Requests of the dialects: what they become, and what is refused with which text.

use ollmlx_proto::{ContentPart, Format, Logprobs, Role, ThinkLevel, ThinkMode};
use serde_json::{Value, json};

use super::json::JsonBody;
use super::{Call, CallBody, Rejection, ollama, openai};
use crate::types::KeepAlive;

type Parser = fn(&JsonBody<'_>) -> Result<Call, Rejection>;

fn read(parser: Parser, body: Value) -> Result<Call, Rejection> {
    parser(&JsonBody::new(body.to_string().as_bytes()))
}

#[test]
fn empty_native_requests_load_or_unload() {
    let parsers: [Parser; 2] = [ollama::GENERATE.parse, ollama::CHAT.parse];
    for parser in parsers {
        let call = read(parser, json!({"model": "m"})).unwrap();
        assert_eq!((call.body, call.stream, call.keep_alive), (CallBody::Load, true, None));
        let call = read(parser, json!({"model": "m", "keep_alive": 0, "prompt": "", "messages": []})).unwrap();
        assert_eq!((call.body, call.keep_alive), (CallBody::Unload, Some(KeepAlive::Unload)));
    }
    assert_eq!(read(ollama::EMBED.parse, json!({"model": "m", "input": ""})).unwrap().body, CallBody::Load);
    assert_eq!(read(ollama::EMBEDDINGS.parse, json!({"model": "m"})).unwrap().body, CallBody::Load);
}

#[test]
fn refusals_have_ollamas_status_and_text() {
    let user = json!([{"role": "user", "content": "x"}]);
    let cases: [(Parser, Value, u16, &str); 16] = [
        (ollama::GENERATE.parse, json!({"top_logprobs": 21}), 400, "top_logprobs must be between 0 and 20"),
        (ollama::GENERATE.parse, json!({"format": "x"}), 500, "invalid format: \"x\"; expected \"json\""),
        (ollama::GENERATE.parse, json!({"images": ["!"]}), 400, "illegal base64 data at input byte 0"),
        (ollama::GENERATE.parse, json!({"context": [-5]}), 400, "invalid context"),
        (ollama::GENERATE.parse, json!({"keep_alive": "10"}), 400, "time: missing unit in duration \"10\""),
        (
            ollama::CHAT.parse,
            json!({"messages": "x"}),
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest",
        ),
        (ollama::EMBED.parse, json!({"input": [1]}), 400, "invalid input type"),
        (ollama::EMBED.parse, json!({"input": vec!["x"; 2049]}), 400, "too many inputs"),
        (openai::CHAT.parse, json!({"messages": []}), 400, "[] is too short - 'messages'"),
        (openai::CHAT.parse, json!({"messages": [{"role": "user"}]}), 400, "invalid message content type: <nil>"),
        (openai::CHAT.parse, json!({"messages": user, "reasoning_effort": "x"}), 400, "invalid reasoning value: \"x\""),
        (openai::COMPLETIONS.parse, json!({"prompt": [1, 5]}), 400, "json: cannot unmarshal array"),
        (openai::COMPLETIONS.parse, json!({"stop": 3}), 400, "invalid type for 'stop' field: float64"),
        (openai::EMBEDDINGS.parse, json!({"input": []}), 400, "invalid input"),
        (
            openai::EMBEDDINGS.parse,
            json!({"input": "x", "encoding_format": "int8"}),
            400,
            "Invalid value for 'encoding_format'",
        ),
        (
            openai::CHAT.parse,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]}),
            400,
            "image URLs are not currently supported",
        ),
    ];
    for (parser, body, status, text) in cases {
        let refused = read(parser, body.clone()).unwrap_err();
        assert!(refused.status == status && refused.message.starts_with(text), "{body}: {refused:?}");
    }
    assert_eq!((ollama::CHAT.parse)(&JsonBody::new(b"")).unwrap_err().message, "missing request body");
    assert_eq!((openai::CHAT.parse)(&JsonBody::new(b"")).unwrap_err().message, "EOF");
}

#[test]
fn raw_excludes_what_needs_a_template() {
    for (extra, fine) in [("system", false), ("template", false), ("suffix", true)] {
        let call = read(ollama::GENERATE.parse, json!({"prompt": "x", "raw": true, extra: "y"})).unwrap();
        assert_eq!(call.body.check_raw().is_ok(), fine, "{extra}");
    }
    let call = read(ollama::GENERATE.parse, json!({"prompt": "x", "raw": true, "context": [1]})).unwrap();
    assert!(call.body.check_raw().is_err());
}

#[test]
fn native_chat_keeps_history_of_tools() {
    let call = read(
        ollama::CHAT.parse,
        json!({"model": "m", "think": "high", "logprobs": true, "top_logprobs": 2, "messages": [
            {"role": "ASSISTANT", "content": "", "tool_calls": [{"function": {"name": "mul", "arguments": {"a": 6}}}]},
            {"role": "tool", "tool_name": "mul", "content": "42"}
        ], "tools": [{"type": "function", "function": {"name": "mul"}}]}),
    );
    let call = call.unwrap();
    assert_eq!(call.think, Some(ThinkMode::On(ThinkLevel::High)));
    assert_eq!(call.logprobs, Some(Logprobs { top: 2 }));
    let CallBody::Chat { messages, tools } = call.body else { panic!("chat") };
    assert_eq!(messages[0].role, Role::Assistant);
    assert!(messages[0].content.is_empty());
    assert_eq!(messages[0].tool_calls[0].arguments.0, r#"{"a":6}"#);
    assert_eq!(messages[1].tool_name.as_deref(), Some("mul"));
    assert_eq!(tools[0].definition.0, r#"{"type":"function","function":{"name":"mul"}}"#);
}

#[test]
fn openai_nulls_are_absent_and_aliases_count() {
    let call = read(
        openai::CHAT.parse,
        json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": null, "max_tokens": null,
            "max_completion_tokens": 8, "temperature": null, "stop": null, "tools": null, "response_format": null,
            "stream_options": null, "logprobs": null, "top_logprobs": null, "n": null}),
    );
    let call = call.unwrap();
    assert_eq!(Value::Object(call.options), json!({"num_predict": 8}));
    assert!(!call.stream && !call.include_usage && call.openai_defaults && call.logprobs.is_none());
    let stops = json!({"messages": [{"role": "user", "content": "x"}], "stop": ["a", 1], "presence_penalty": 1});
    let call = read(openai::CHAT.parse, stops).unwrap();
    assert_eq!(Value::Object(call.options), json!({"presence_penalty": 1.0, "stop": ["a"]}));
}

#[test]
fn openai_messages_become_native_ones() {
    let call = read(
        openai::CHAT.parse,
        json!({"model": "m", "tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}],
            "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]},
            {"role": "assistant", "content": null,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "mul", "arguments": "{\"a\":6}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"}]}),
    );
    let CallBody::Chat { messages, tools } = call.unwrap().body else { panic!("chat") };
    assert!(tools.is_empty());
    assert_eq!(messages.len(), 5);
    assert_eq!(messages[0].role, Role::System);
    assert_eq!(messages[1].content, [ContentPart::Text("look".into())]);
    assert_eq!(messages[2].content, [ContentPart::Image(b"hi".to_vec())]);
    assert_eq!(messages[3].tool_calls[0].id.as_deref(), Some("c1"));
    assert_eq!(messages[4].tool_name.as_deref(), Some("mul"));
}

#[test]
fn schemas_stand_inside_or_beside() {
    let schema = json!({"type": "object"});
    for (format, expected) in [
        (json!({"type": "json_schema", "json_schema": {"name": "o", "schema": schema}}), Some("schema")),
        (json!({"type": "json_schema", "schema": schema}), Some("schema")),
        (json!({"type": "JSON_OBJECT"}), Some("json")),
        (json!({"type": "json_object", "schema": schema}), Some("schema")),
        (json!({"type": "text"}), Some("text")),
        (json!({"type": "json_schema"}), None),
        (json!("json_object"), None),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "response_format": format});
        let found = read(openai::CHAT.parse, body).ok().map(|call| match call.format {
            Format::Text => "text",
            Format::Json => "json",
            Format::JsonSchema(_) => "schema",
        });
        assert_eq!(found, expected, "{format}");
    }
}

#[test]
fn completions_and_embeddings_of_openai() {
    let call = read(openai::COMPLETIONS.parse, json!({"prompt": "x", "stop": "a", "top_p": 0, "logprobs": 3})).unwrap();
    assert_eq!(call.body, CallBody::Complete { prompt: "x".into(), suffix: None });
    let expected = json!({"frequency_penalty": 0.0, "presence_penalty": 0.0, "stop": ["a"]});
    assert_eq!(Value::Object(call.options), expected);
    assert_eq!(call.logprobs, Some(Logprobs { top: 3 }));
    let call =
        read(openai::EMBEDDINGS.parse, json!({"input": "", "encoding_format": "BASE64", "dimensions": 3})).unwrap();
    let (inputs, dimensions) = (vec![String::new()], Some(3));
    assert_eq!(call.body, CallBody::Embed { inputs, truncate: true, dimensions, normalize: true, base64: true });
}

/// So many times the same, with commas between.
fn many(part: &str, count: usize) -> String {
    let mut all = format!("{part},").repeat(count);
    all.pop();
    all
}

#[test]
fn row_54_what_is_costly_for_its_size_is_refused_before_it_is_made() {
    let empty = many("{}", 100_000);
    let result = r#"{"role":"tool","tool_call_id":"c","content":"x"}"#;
    let name = "n".repeat(10_000);
    let cases: [(Parser, String, u16, &str); 9] = [
        (ollama::CHAT.parse, format!(r#"{{"messages":[{empty}]}}"#), 413, "the request has too many small parts"),
        (
            openai::CHAT.parse,
            format!(
                r#"{{"messages":[{{"tool_calls":[{{"id":"c","function":{{"name":"{name}"}}}}]}},{}]}}"#,
                many(result, 1_000)
            ),
            413,
            "the request has too many small parts",
        ),
        (
            openai::CHAT.parse,
            format!(r#"{{"messages":[{{"content":[{}]}}]}}"#, many(r#"{"type":"text","text":""}"#, 40_000)),
            413,
            "the request has too many small parts",
        ),
        (
            ollama::GENERATE.parse,
            format!(r#"{{"prompt":"x","images":[{}]}}"#, many("\"\"", 100_000)),
            413,
            "the request",
        ),
        (
            ollama::GENERATE.parse,
            format!(r#"{{"format":{{"a":[{}]}}}}"#, many("0", 300_000)),
            413,
            "schemas, tools and arguments have over 262144 values",
        ),
        (
            ollama::GENERATE.parse,
            format!(r#"{{"context":[{}]}}"#, many("1", 4_200_000)),
            400,
            "invalid context: 4200000",
        ),
        (ollama::EMBED.parse, format!(r#"{{"input":[{}]}}"#, many("\"a\"", 500_000)), 400, "too many inputs: 500000"),
        (ollama::CHAT.parse, format!(r#"{{"messages":[{{"role":"{name}"}}]}}"#), 400, "the role of a message"),
        (ollama::GENERATE.parse, format!(r#"{{"model":"{name}"}}"#), 400, "invalid model name"),
    ];
    for (parser, text, status, expected) in cases {
        let refused = parser(&JsonBody::new(text.as_bytes())).unwrap_err();
        assert!(refused.status == status && refused.message.starts_with(expected), "{text:.40}: {refused:?}");
    }
}

#[test]
fn row_54_what_nobody_reads_costs_nothing() {
    let (objects, strings) = (many(r#"{"":0}"#, 100_000), many("\"a\"", 100_000));
    let keys: String = (0..100_000).map(|key| format!("\"{key}\":1,")).collect();
    for extra in [
        format!(r#""a":[{objects}]"#),
        format!(r#"{keys}"b":0"#),
        format!(r#""options":{{{keys}"temperature":0}}"#),
        format!(r#""options":{{"stop":[{strings}],"temperature":[{objects}]}}"#),
        format!(r#""metadata":{{"a":[{objects}]}}"#),
    ] {
        let text = format!(r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":"x"}}],{extra}}}"#);
        for parser in [ollama::CHAT.parse, openai::CHAT.parse, crate::dialect::anthropic::MESSAGES.parse] {
            let body = JsonBody::new(text.as_bytes());
            let call = parser(&body).unwrap();
            assert!(matches!(&call.body, CallBody::Chat { messages, .. } if messages.len() == 1));
            assert!(body.built_bytes() < 16 * 1024, "{extra:.30}: {} bytes", body.built_bytes());
        }
    }
}

#[test]
fn a_text_of_any_kind_is_one_copy() {
    let long = "a".repeat(8 << 20);
    let image = "ab\\/d".repeat(1 << 20);
    for (parser, text) in [
        (ollama::GENERATE.parse, format!(r#"{{"prompt":"{long}"}}"#)),
        (ollama::GENERATE.parse, format!(r#"{{"prompt":"x","images":["{image}"]}}"#)),
        (openai::CHAT.parse, format!(r#"{{"messages":[{{"role":"user","content":"\n{long}"}}]}}"#)),
        (ollama::EMBED.parse, format!(r#"{{"input":["{long}"]}}"#)),
    ] {
        let body = JsonBody::new(text.as_bytes());
        parser(&body).unwrap();
        assert!(body.built_bytes() < 2 * text.len(), "{text:.30}");
    }
}
