//! Replies of the dialects, against the golden replies of `tests/golden/`.

use ollmlx_proto::{
    Delta, Embeddings, Failure, FailureKind, FinishReason, Finished, JsonText, Output, Part, Timings, TokenLogprob,
    ToolCall, TopLogprob, Usage,
};

use super::{Call, CallBody, Endpoint, Meta, Rejection, anthropic, ollama, openai};
use crate::types::TicketItem;

fn meta() -> Meta {
    let (model, created, id) = ("tiny".into(), "T".into(), "chatcmpl-77".into());
    Meta { model, created, id, created_unix: 1_787_306_400, elapsed_ns: 512, ..Meta::default() }
}

fn asked() -> Call {
    Call::new("tiny".into(), CallBody::Load)
}

fn delta(text: &str, part: Part) -> TicketItem {
    TicketItem::Output(Output::Delta(Delta { tokens: vec![1], text: text.into(), part, logprobs: Vec::new() }))
}

fn say(text: &str) -> TicketItem {
    delta(text, Part::Content)
}

fn call() -> TicketItem {
    let arguments = JsonText(r#"{"city":"Oslo"}"#.into());
    TicketItem::Output(Output::ToolCall(ToolCall { index: 0, name: "get_weather".into(), arguments }))
}

fn end(reason: FinishReason, context: &[u32]) -> TicketItem {
    TicketItem::Output(Output::Finished(Finished {
        reason,
        stop_string: None,
        usage: Usage { prompt_tokens: 8, cached_tokens: 0, completion_tokens: 2 },
        timings: Timings { queue_ns: 1, prefill_ns: 80, decode_ns: 60 },
        context: context.to_vec(),
    }))
}

fn stream(endpoint: &Endpoint, call: &Call, items: &[TicketItem]) -> String {
    let mut encoder = (endpoint.encoder)(call, meta());
    items.iter().map(|item| encoder.frames(item)).collect()
}

fn finished(endpoint: &Endpoint, call: &Call, items: &[TicketItem]) -> Result<String, Rejection> {
    let mut encoder = (endpoint.encoder)(call, meta());
    items.iter().for_each(|item| encoder.push(item));
    encoder.finish()
}

fn whole(endpoint: &Endpoint, call: &Call, items: &[TicketItem]) -> String {
    finished(endpoint, call, items).unwrap()
}

const GRANT: TicketItem = TicketItem::Granted { load_ns: 21 };
const METRICS: &str = r#""total_duration":512,"load_duration":21,"prompt_eval_count":8,"prompt_eval_duration":80,"eval_count":2,"eval_duration":60"#;

#[test]
fn row_13_a_long_prompt_is_heard_of_in_streams_of_events() {
    let items = [GRANT, TicketItem::Output(Output::Prefill { done: 512, total: 9000 })];
    let comment = ": 512 of 9000 prompt tokens\n\n";
    assert_eq!(stream(&openai::CHAT, &asked(), &items), comment);
    assert_eq!(stream(&openai::COMPLETIONS, &asked(), &items), comment);
    assert_eq!(stream(&anthropic::MESSAGES, &asked(), &items), comment);
    assert_eq!(stream(&ollama::CHAT, &asked(), &items), "", "lines have no comments");
}

#[test]
fn generate_streams_lines_and_a_last_one_with_context() {
    let items = [GRANT, delta("Add.", Part::Thinking), say("Mars"), say(""), end(FinishReason::Stop, &[1, 2])];
    let expected = format!(
        r#"{{"model":"tiny","created_at":"T","response":"","thinking":"Add.","done":false}}
{{"model":"tiny","created_at":"T","response":"Mars","done":false}}
{{"model":"tiny","created_at":"T","response":"","done":true,"done_reason":"stop","context":[1,2],{METRICS}}}
"#
    );
    assert_eq!(stream(&ollama::GENERATE, &asked(), &items), expected);
    let expected = format!(
        r#"{{"model":"tiny","created_at":"T","response":"Mars","thinking":"Add.","done":true,"done_reason":"length",{METRICS}}}"#
    );
    let items = [GRANT, delta("Add.", Part::Thinking), say("Ma"), say("rs"), end(FinishReason::Length, &[])];
    assert_eq!(whole(&ollama::GENERATE, &asked(), &items), expected);
}

#[test]
fn chat_streams_tool_calls_when_they_are_complete() {
    let id = super::tools::call_id(0, 0);
    let call_json =
        format!(r#"[{{"id":"{id}","function":{{"index":0,"name":"get_weather","arguments":{{"city":"Oslo"}}}}}}]"#);
    let items = [GRANT, say("Hi"), call(), end(FinishReason::ToolCalls, &[])];
    let expected = format!(
        r#"{{"model":"tiny","created_at":"T","message":{{"role":"assistant","content":"Hi"}},"done":false}}
{{"model":"tiny","created_at":"T","message":{{"role":"assistant","content":"","tool_calls":{call_json}}},"done":false}}
{{"model":"tiny","created_at":"T","message":{{"role":"assistant","content":""}},"done":true,"done_reason":"stop",{METRICS}}}
"#
    );
    assert_eq!(stream(&ollama::CHAT, &asked(), &items), expected);
    let expected = format!(
        r#"{{"model":"tiny","created_at":"T","message":{{"role":"assistant","content":"Hi","tool_calls":{call_json}}},"done":true,"done_reason":"stop",{METRICS}}}"#
    );
    assert_eq!(whole(&ollama::CHAT, &asked(), &items), expected);
}

#[test]
fn logprobs_ride_on_their_delta_even_without_text() {
    let top = vec![TopLogprob { bytes: b"Yo".to_vec(), logprob: -0.25 }];
    let logprobs = vec![TokenLogprob { bytes: b"Yo".to_vec(), logprob: -0.25, top }];
    let item = |text: &str| {
        let (tokens, text, logprobs) = (vec![1], text.to_owned(), logprobs.clone());
        TicketItem::Output(Output::Delta(Delta { tokens, text, part: Part::Content, logprobs }))
    };
    let entry = r#"[{"token":"Yo","logprob":-0.25,"bytes":[89,111],"top_logprobs":[{"token":"Yo","logprob":-0.25,"bytes":[89,111]}]}]"#;
    for text in ["Yo", ""] {
        let expected =
            format!(r#"{{"model":"tiny","created_at":"T","response":"{text}","done":false,"logprobs":{entry}}}"#)
                + "\n";
        assert_eq!(stream(&ollama::GENERATE, &asked(), &[item(text)]), expected);
    }
    let openai = stream(&openai::CHAT, &asked(), &[item("")]);
    assert!(openai.contains(&format!(r#""logprobs":{{"content":{entry}}}"#)), "{openai}");
}

#[test]
fn failures_end_a_stream_with_an_error_and_a_whole_reply_with_a_status() {
    let failure = Failure::new(FailureKind::Busy, "server busy");
    let failed = TicketItem::Failed(failure);
    assert_eq!(stream(&ollama::CHAT, &asked(), std::slice::from_ref(&failed)), "{\"error\":\"server busy\"}\n");
    let expected = r#"data: {"error":{"message":"server busy","type":"api_error","param":null,"code":null}}"#;
    assert_eq!(stream(&openai::CHAT, &asked(), std::slice::from_ref(&failed)), format!("{expected}\n\n"));
    for endpoint in [&ollama::GENERATE, &openai::CHAT, &openai::COMPLETIONS] {
        assert_eq!(finished(endpoint, &asked(), std::slice::from_ref(&failed)).unwrap_err().status, 503);
    }
}

#[test]
fn loads_and_vectors_have_their_own_objects() {
    let expected = r#"{"model":"tiny","created_at":"T","response":"","done":true,"done_reason":"unload"}"#;
    assert_eq!(whole(&ollama::GENERATE, &asked(), &[TicketItem::Unloaded]), expected);
    let expected = r#"{"model":"tiny","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#;
    assert_eq!(whole(&ollama::CHAT, &asked(), &[TicketItem::Loaded]), expected);
    let vectors = vec![vec![0.6, 0.8], vec![1.0, 0.0]];
    let embeddings = Embeddings { vectors, prompt_tokens: 4, timings: Timings::default() };
    let embedded = [TicketItem::Output(Output::Embedded(embeddings))];
    let expected = r#"{"model":"tiny","embeddings":[[0.6,0.8],[1.0,0.0]],"total_duration":512,"prompt_eval_count":4}"#;
    assert_eq!(whole(&ollama::EMBED, &asked(), &embedded), expected);
    let loaded = [GRANT, TicketItem::Loaded];
    assert_eq!(whole(&ollama::EMBED, &asked(), &loaded), r#"{"model":"tiny","embeddings":[]}"#);
    assert_eq!(whole(&ollama::EMBEDDINGS, &asked(), &embedded), r#"{"embedding":[0.6,0.8]}"#);
    assert_eq!(whole(&ollama::EMBEDDINGS, &asked(), &loaded), r#"{"embedding":[]}"#);
    let inputs = vec![String::new()];
    let base64 = CallBody::Embed { inputs, truncate: true, dimensions: None, normalize: true, base64: true };
    let base64 = Call { body: base64, ..asked() };
    let base64 = whole(&openai::EMBEDDINGS, &base64, &embedded);
    assert!(base64.contains(r#"{"object":"embedding","embedding":"AACAPwAAAAA=","index":1}"#), "{base64}");
    let bad = Embeddings { vectors: vec![vec![f32::NAN]], prompt_tokens: 1, timings: Timings::default() };
    let bad = [TicketItem::Output(Output::Embedded(bad))];
    assert_eq!(finished(&ollama::EMBED, &asked(), &bad).unwrap_err().status, 400);
}

#[test]
fn openai_stream_has_role_once_a_finish_chunk_usage_and_done() {
    let head = r#"data: {"id":"chatcmpl-77","object":"chat.completion.chunk","created":1787306400,"model":"tiny","system_fingerprint":"fp_ollama","#;
    let id = super::tools::call_id(0, 0);
    let expected = [
        r#""choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}"#.to_owned(),
        r#""choices":[{"index":0,"delta":{"content":"","reasoning":"hm"},"finish_reason":null}]}"#.to_owned(),
        format!(
            r#""choices":[{{"index":0,"delta":{{"content":"","tool_calls":[{{"id":"{id}","index":0,"type":"function","function":{{"name":"get_weather","arguments":"{{\"city\":\"Oslo\"}}"}}}}]}},"finish_reason":null}}]}}"#
        ),
        r#""choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#.to_owned(),
        r#""choices":[],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}"#.to_owned(),
    ];
    let expected: String = expected.iter().map(|rest| format!("{head}{rest}\n\n")).collect();
    let items = [GRANT, say("Hel"), delta("hm", Part::Thinking), call(), end(FinishReason::Stop, &[])];
    let streamed = stream(&openai::CHAT, &Call { include_usage: true, ..asked() }, &items);
    assert_eq!(streamed, expected + openai::DONE);
    let silent = stream(&openai::CHAT, &asked(), &[end(FinishReason::Length, &[])]);
    assert!(silent.contains(r#""delta":{"role":"assistant","content":""}"#) && !silent.contains("usage"), "{silent}");
}

#[test]
fn openai_whole_replies() {
    let items = [GRANT, say("Hel"), say("lo"), end(FinishReason::Stop, &[])];
    let expected = r#"{"id":"chatcmpl-77","object":"chat.completion","created":1787306400,"model":"tiny","system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}"#;
    assert_eq!(whole(&openai::CHAT, &asked(), &items), expected);
    let expected = r#"{"id":"chatcmpl-77","object":"text_completion","created":1787306400,"model":"tiny","system_fingerprint":"fp_ollama","choices":[{"text":"Hello","index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}"#;
    assert_eq!(whole(&openai::COMPLETIONS, &asked(), &items), expected);
    let streamed = stream(&openai::COMPLETIONS, &Call { include_usage: true, ..asked() }, &items);
    assert_eq!(streamed.matches("\"usage\"").count(), 4);
    assert!(streamed.ends_with(openai::DONE));
}
