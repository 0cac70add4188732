//! Makes the hostile requests, one after the other, beside a companion on the same model.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::super::client::Client;
use super::super::error::CliError;
use super::super::text_table;
use super::companion::Companion;
use super::private_server::PrivateServer;
use super::requests::{Answer, HostileRequest};
use crate::config::{Config, table};
use crate::limits;
use crate::os::clock::Clock;

/// What is watched of the companion alone.
const CALM: Duration = Duration::from_millis(limits::CHAOS_CALM_MS);
/// A request is answered or refused within this.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(limits::CHAOS_ANSWER_MS);
/// Tokens of a window: enough for both answers, and soon filled by a prompt that is cut to it.
const WINDOW: &str = "1024";

/// A request that is over.
#[derive(Debug)]
pub(super) struct HostileOutcome {
    request: HostileRequest,
    seen: String,
    took_ms: u64,
    calm_gap_ms: u64,
    gap_ms: u64,
    pub(super) as_expected: bool,
}

/// Makes all of them to one private server; `report` hears of each as it begins.
///
/// # Errors
/// The server or the model doesn't start.
pub(super) async fn tried(
    config: &Config,
    model: &str,
    requests: Vec<HostileRequest>,
    clock: Clock,
    report: fn(&str),
) -> Result<Vec<HostileOutcome>, CliError> {
    let settings = [(table::CONTEXT_LENGTH.env, WINDOW.to_owned()), (table::NUM_PARALLEL.env, "2".to_owned())];
    let server = PrivateServer::start(config, "", &settings).await?;
    let mut outcomes = Vec::new();
    {
        let companion = Companion::new(&server.client, model, clock);
        let mut running = pin!(companion.run());
        let mut all = pin!(async {
            // Its model is loaded and warm before anything is measured.
            sleep(CALM).await;
            companion.watch();
            sleep(CALM).await;
            let calm_gap_ms = companion.gap_ms();
            let pids = pids(&server.client).await?;
            for request in requests {
                report(request.name);
                let outcome = attempt(&server.client, model, request, &companion, (calm_gap_ms, &pids), clock).await?;
                outcomes.push(outcome);
            }
            Ok::<(), CliError>(())
        });
        tokio::select! {
            never = &mut running => match never {},
            done = &mut all => done?,
        }
    }
    server.stop().await;
    Ok(outcomes)
}

async fn attempt(
    client: &Client,
    model: &str,
    request: HostileRequest,
    companion: &Companion<'_>,
    (calm_gap_ms, pids_before): (u64, &[u64]),
    clock: Clock,
) -> Result<HostileOutcome, CliError> {
    let body = Bytes::from((request.body)(model));
    companion.watch();
    let asked_ns = clock.now_ns();
    let answer = timeout(ANSWER_TIMEOUT, client.post_bytes(request.path, body)).await;
    let took_ms = (clock.now_ns() - asked_ns) / 1_000_000;
    // Whoever was held up until now is heard of after this.
    sleep(Duration::from_millis(calm_gap_ms)).await;
    let mut outcome = judge(request, answer.ok(), took_ms, calm_gap_ms, companion.gap_ms());
    let died = pids(client).await? != pids_before;
    for fault in companion.fault().into_iter().chain(died.then(|| "its worker died".to_owned())) {
        outcome.seen += &format!("; the companion: {fault}");
        outcome.as_expected = false;
    }
    Ok(outcome)
}

async fn pids(client: &Client) -> Result<Vec<u64>, CliError> {
    let answer = client.get("/api/ps").await?;
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(models.iter().filter_map(|model| model["pid"].as_u64()).collect())
}

fn judge(
    request: HostileRequest,
    answer: Option<Result<Value, CliError>>,
    took_ms: u64,
    calm_gap_ms: u64,
    gap_ms: u64,
) -> HostileOutcome {
    let (seen, fits) = match answer {
        Some(Ok(_)) => ("an answer".to_owned(), !matches!(request.expected, Answer::Refused(_))),
        Some(Err(CliError::Refused { message, .. })) => {
            let fits = match request.expected {
                Answer::Refused(text) => message.contains(text),
                Answer::Either => true,
                Answer::Answered => false,
            };
            (format!("refused: {message}"), fits)
        }
        Some(Err(error)) => (error.to_string(), false),
        None => ("nothing in time".to_owned(), false),
    };
    let gap_ms_max = limits::CHAOS_GAP_MS_MIN.max(limits::CHAOS_GAP_TIMES * calm_gap_ms);
    HostileOutcome { request, seen, took_ms, calm_gap_ms, gap_ms, as_expected: fits && gap_ms <= gap_ms_max }
}

pub(super) fn table(outcomes: &[HostileOutcome]) -> String {
    let rows: Vec<Vec<String>> = outcomes
        .iter()
        .map(|outcome| {
            vec![
                outcome.request.name.to_owned(),
                outcome.request.sent.to_owned(),
                outcome.request.expected.words(),
                outcome.seen.clone(),
                format!("{} ms", outcome.took_ms),
                format!("{} ms", outcome.calm_gap_ms),
                format!("{} ms", outcome.gap_ms),
                if outcome.as_expected { "yes" } else { "NO" }.to_owned(),
            ]
        })
        .collect();
    let header = ["REQUEST", "SENT", "EXPECTED", "SEEN", "TOOK", "CALM GAP", "GAP", "AS EXPECTED"];
    text_table::with_header(&header, &rows)
}

pub(super) fn as_json(outcomes: &[HostileOutcome]) -> Value {
    let rows: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "request": outcome.request.name,
                "sent": outcome.request.sent,
                "expected": outcome.request.expected.words(),
                "seen": outcome.seen,
                "took_ms": outcome.took_ms,
                "calm_gap_ms": outcome.calm_gap_ms,
                "gap_ms": outcome.gap_ms,
                "as_expected": outcome.as_expected,
            })
        })
        .collect();
    Value::from(rows)
}

#[cfg(test)]
mod tests {
    use super::super::requests::ALL;
    use super::*;

    fn refused(message: &str) -> Option<Result<Value, CliError>> {
        Some(Err(CliError::Refused { status: http::StatusCode::BAD_REQUEST, message: message.to_owned() }))
    }

    #[test]
    fn what_is_not_as_expected_is_not_excused() {
        let request = |expected| HostileRequest { expected, ..ALL[0].clone() };
        let fits = |expected, answer, gap_ms| judge(request(expected), answer, 5, 20, gap_ms).as_expected;
        let answered = || Some(Ok(Value::Null));
        assert!(fits(Answer::Answered, answered(), 60));
        assert!(!fits(Answer::Answered, refused("no"), 60));
        assert!(fits(Answer::Refused("format"), refused("the format was refused"), 60));
        assert!(!fits(Answer::Refused("format"), refused("server busy"), 60), "another error");
        assert!(!fits(Answer::Refused("format"), answered(), 60));
        assert!(fits(Answer::Either, answered(), 60) && fits(Answer::Either, refused("no"), 60));
        assert!(!fits(Answer::Either, None, 60), "nothing in time");
        assert!(!fits(Answer::Either, Some(Err(CliError::ServerDown)), 60), "no server");
        assert!(fits(Answer::Either, answered(), limits::CHAOS_GAP_MS_MIN));
        assert!(!fits(Answer::Either, answered(), limits::CHAOS_GAP_MS_MIN + 1), "a companion that waited");
    }
}
