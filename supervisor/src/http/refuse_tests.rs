//! Failures as the clients of each dialect are told of them, kind by kind.

use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use ollmlx_proto::{Failure, FailureKind, Output};
use serde_json::{Value, json};

use super::refuse::{add_retry_after, refuse};
use super::respond::{HttpReply, JSON, Reply};
use super::route::{Handler, ROUTES};
use crate::dialect::anthropic::ANTHROPIC;
use crate::dialect::ollama::{self, OLLAMA, OLLMLX};
use crate::dialect::openai::{self, OPENAI};
use crate::dialect::{Call, CallBody, Dialect, Endpoint, Meta, Rejection};
use crate::types::TicketItem;

/// What clients hear of a kind of failure.
struct Told {
    kind: FailureKind,
    status: u16,
    /// `error.type` of OpenAI.
    openai: &'static str,
    /// `error.type` of Anthropic.
    anthropic: &'static str,
    /// Whether they are told when to come again.
    dated: bool,
}

const fn told(kind: FailureKind, status: u16, openai: &'static str, anthropic: &'static str) -> Told {
    Told { kind, status, openai, anthropic, dated: false }
}

const fn later(kind: FailureKind) -> Told {
    Told { kind, status: 503, openai: "api_error", anthropic: "overloaded_error", dated: true }
}

const TOLD: [Told; 20] = [
    told(FailureKind::InvalidRequest, 400, "invalid_request_error", "invalid_request_error"),
    told(FailureKind::InvalidOption, 500, "api_error", "api_error"),
    told(FailureKind::ContextExceeded, 400, "invalid_request_error", "invalid_request_error"),
    told(FailureKind::Unsupported, 400, "invalid_request_error", "invalid_request_error"),
    told(FailureKind::TemplateFailed, 500, "api_error", "api_error"),
    told(FailureKind::GrammarFailed, 400, "invalid_request_error", "invalid_request_error"),
    told(FailureKind::ModelInvalid, 500, "api_error", "api_error"),
    told(FailureKind::LoadFailed, 500, "api_error", "api_error"),
    told(FailureKind::LoadStalled, 500, "api_error", "api_error"),
    told(FailureKind::OutOfMemory, 500, "api_error", "api_error"),
    later(FailureKind::Busy),
    later(FailureKind::Quarantined),
    later(FailureKind::ShuttingDown),
    told(FailureKind::WorkerDied, 500, "api_error", "api_error"),
    told(FailureKind::WorkerHung, 500, "api_error", "api_error"),
    told(FailureKind::EngineFailed, 500, "api_error", "api_error"),
    told(FailureKind::ClientTooSlow, 408, "api_error", "api_error"),
    told(FailureKind::Cancelled, 499, "api_error", "api_error"),
    told(FailureKind::Internal, 500, "api_error", "api_error"),
    told(FailureKind::DeadlineExceeded, 504, "api_error", "api_error"),
];

fn body(reply: HttpReply) -> Value {
    let Reply::Whole(Some(bytes)) = reply.into_body() else { panic!("an error has a body") };
    serde_json::from_slice(&bytes).expect("and that is JSON")
}

/// The error object of a dialect, without the id that Anthropic's bodies have.
fn object(dialect: &Dialect, told: &Told) -> Value {
    match dialect.name {
        "ollama" | "ollmlx" => json!({"error": "so it is"}),
        "openai" => json!({"error": {"message": "so it is", "type": told.openai, "param": null, "code": null}}),
        "anthropic" => json!({"type": "error", "error": {"type": told.anthropic, "message": "so it is"}}),
        other => panic!("what does {other} say?"),
    }
}

fn endpoints() -> impl Iterator<Item = &'static Endpoint> {
    ROUTES.iter().filter_map(|route| match route.handler {
        Handler::Run(endpoint) => Some(endpoint),
        _ => None,
    })
}

#[test]
fn every_kind_of_failure_has_its_status_type_and_date_in_every_dialect() {
    assert_eq!(TOLD.map(|told| told.kind), FailureKind::ALL, "one row for each kind");
    for told in &TOLD {
        for dialect in [&OLLAMA, &OLLMLX, &OPENAI, &ANTHROPIC] {
            let mut reply = refuse(dialect, &Rejection::from(&Failure::new(told.kind, "so it is")));
            add_retry_after(&mut reply, || 7);
            let which = format!("{:?} in {}", told.kind, dialect.name);
            assert_eq!(reply.status().as_u16(), told.status, "{which}");
            assert_eq!(reply.headers()[CONTENT_TYPE], JSON, "{which}");
            let date = reply.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(date, told.dated.then(|| "7".to_owned()), "{which}");
            let mut body = body(reply);
            if dialect.name == "anthropic" {
                let id = body.as_object_mut().unwrap().remove("request_id").unwrap();
                let digits = id.as_str().unwrap().strip_prefix("req_").unwrap();
                assert!(digits.len() == 24 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
            }
            assert_eq!(body, object(dialect, told), "{which}");
        }
    }
}

#[test]
fn every_endpoint_says_the_same_of_a_failure_before_and_after_the_first_byte() {
    let call = Call::new(String::new(), CallBody::Load);
    for told in &TOLD {
        let failure = Failure::new(told.kind, "so it is");
        for endpoint in endpoints() {
            // What the engine says against a request for vectors has one status, as in Ollama.
            let vectors = [(&ollama::EMBED, 400), (&ollama::EMBEDDINGS, 500), (&openai::EMBEDDINGS, 400)];
            let of_vectors =
                vectors.iter().find(|(known, _)| std::ptr::eq(*known, endpoint)).map(|(_, status)| *status);
            let items = [
                (TicketItem::Failed(failure.clone()), told.status),
                (TicketItem::Output(Output::Failed(failure.clone())), of_vectors.unwrap_or(told.status)),
            ];
            for (item, status) in items {
                let mut encoder = (endpoint.encoder)(&call, Meta::default());
                encoder.push(&item);
                assert_eq!(encoder.finish(), Err(Rejection::new(status, "so it is")), "{endpoint:?}");
                let record = encoder.frames(&item);
                if of_vectors.is_some() {
                    assert_eq!(record, "", "vectors never stream");
                    continue;
                }
                let json = record.lines().find_map(|line| line.find('{').map(|start| &line[start..]));
                let seen: Value = serde_json::from_str(json.expect("a stream ends with a record")).expect("of JSON");
                assert_eq!(seen, object(endpoint.dialect, told), "{endpoint:?}");
            }
        }
    }
}

#[test]
fn a_model_that_rests_says_until_when() {
    let rejection = Rejection { retry_after_s: Some(3), ..Rejection::new(503, "it rests") };
    let mut reply = refuse(&OLLAMA, &rejection);
    add_retry_after(&mut reply, || 7);
    assert_eq!(reply.headers()[RETRY_AFTER], "3");
}
