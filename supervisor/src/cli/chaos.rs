//! `ollmlx chaos`: commits every fault of `OLLMLX_FAULT` against this installation, makes hostile requests to it, and says
//! what became of each.
//!
//! For each fault a private server is started (see [`private_server`]), asked a real streamed question, and watched: the death
//! must be told, the answer must be what it would have been. Hostile requests are made to one more (see [`hostile`]), beside a
//! companion that must not notice. Neither the user's server nor the store is touched.

mod catalogue;
mod companion;
mod hostile;
mod private_server;
mod requests;

use std::time::Duration;

use crate::limits;
use serde_json::{Value, json};
use tokio::time::timeout;

use self::catalogue::{Chosen, DEADLY, Expected, QUESTION, Trial};
use self::private_server::PrivateServer;
use super::args::ChaosArgs;
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, text_of};
use super::{model_path, text_table};
use crate::config::Config;
use crate::os::clock::Clock;
use crate::os::signal::Signals;
use crate::os::stderr::tell;

/// Tokens of an answer.
const TOKENS: u32 = 32;
/// A death that is expected is told within this, the model's load included.
const DEATH_TIMEOUT: Duration = Duration::from_millis(limits::CHAOS_DEATH_MS);
/// Between two looks for it.
const POLL: Duration = Duration::from_millis(limits::CHAOS_POLL_MS);

/// What a client heard.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    ends: u32,
    error: Option<String>,
    /// When it was asked and when each line came, in nanoseconds.
    events_ns: Vec<u64>,
}

/// A trial that is over.
#[derive(Debug)]
struct Outcome {
    trial: Trial,
    seen: String,
    detected_ms: Option<u64>,
    recovered_ms: Option<u64>,
    lost: u32,
    as_expected: bool,
}

/// Tries the faults and prints the table.
///
/// # Errors
/// No model, a server that does not start, or a fault that was not survived as it should be.
pub async fn run(config: &Config, args: ChaosArgs) -> Result<(), CliError> {
    let mut signals = Signals::new().map_err(|source| CliError::System { step: "listen to signals", source })?;
    tokio::select! {
        done = tried(config, args) => done,
        // The private server is killed as it is dropped, and its folder goes.
        _ = signals.asked() => Err(CliError::Usage("interrupted; no table".to_owned())),
    }
}

async fn tried(config: &Config, args: ChaosArgs) -> Result<(), CliError> {
    let mut words = args.words.into_iter();
    let asked = words.next();
    let names: Vec<String> = words.collect();
    catalogue::chosen(0, &names)?;
    let calm_server = PrivateServer::start(config, "", &[]).await?;
    let model = match asked {
        Some(word) => model_path::absolute(&word).unwrap_or(word),
        None => first_model(&calm_server.client).await?,
    };
    let clock = Clock::start();
    let calm = ask(&calm_server.client, &model, QUESTION, clock).await;
    if let Some(error) = calm.error {
        return Err(CliError::Usage(format!("{model} does not answer without a fault: {error}")));
    }
    let model_bytes = resident_bytes(&calm_server.client).await?;
    calm_server.stop().await;
    let Chosen { trials, requests } = catalogue::chosen(model_bytes, &names)?;
    let report: fn(&str) = if args.json { |_| {} } else { |name| tell(format_args!("{name}")) };
    let mut outcomes = Vec::new();
    for trial in trials {
        report(&trial.fault);
        outcomes.push(attempt(config, &model, &calm.text, trial, clock).await?);
    }
    let hostile = match requests.is_empty() {
        true => Vec::new(),
        false => hostile::tried(config, &model, requests, clock, report).await?,
    };
    if args.json {
        print_json(&json!({"model": model, "faults": as_json(&outcomes), "requests": hostile::as_json(&hostile)}))?
    } else {
        print(&tables(&outcomes, &hostile))?
    }
    let judged = outcomes.iter().map(|outcome| outcome.as_expected);
    let judged: Vec<bool> = judged.chain(hostile.iter().map(|outcome| outcome.as_expected)).collect();
    let failed = judged.iter().filter(|as_expected| !**as_expected).count();
    if failed > 0 { Err(CliError::NotSurvived { failed, tried: judged.len() }) } else { Ok(()) }
}

/// Those that have a row.
fn tables(outcomes: &[Outcome], hostile: &[hostile::HostileOutcome]) -> String {
    let faults = (!outcomes.is_empty()).then(|| table(outcomes));
    let requests = (!hostile.is_empty()).then(|| hostile::table(hostile));
    let tables: Vec<String> = faults.into_iter().chain(requests).collect();
    tables.join("\n")
}

async fn first_model(client: &Client) -> Result<String, CliError> {
    let answer = client.get("/api/tags").await?;
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    let answers = |model: &&Value| {
        let capabilities = model["capabilities"].as_array().map_or(&[][..], Vec::as_slice);
        capabilities.iter().any(|capability| capability == "completion")
    };
    let model = models.iter().find(answers).map(|model| text_of(model, "name").to_owned());
    model.ok_or_else(|| CliError::Usage("there is no local model that answers; name one".to_owned()))
}

async fn resident_bytes(client: &Client) -> Result<u64, CliError> {
    let answer = client.get("/api/ps").await?;
    answer["models"][0]["size"].as_u64().ok_or(CliError::BadAnswer("it names no size of the model"))
}

async fn attempt(config: &Config, model: &str, calm: &str, trial: Trial, clock: Clock) -> Result<Outcome, CliError> {
    let server = PrivateServer::start(config, &trial.fault, &trial.settings).await?;
    let client = &server.client;
    let question = if trial.expected == Expected::Refused { DEADLY } else { QUESTION };
    let asking = ask(client, model, question, clock);
    let (heard, seen_ns) = match trial.death {
        None => (asking.await, None),
        Some(_) => {
            let watching = timeout(DEATH_TIMEOUT, first_death(client, model, clock));
            let (heard, seen) = tokio::join!(asking, watching);
            (heard, seen.ok())
        }
    };
    let story = client.post("/api/ollmlx/why", &json!({"model": model})).await?;
    let death = story["deaths"][0]["class"].as_str().map(str::to_owned);
    let mut outcome = judge(trial, &heard, calm, death.as_deref(), seen_ns);
    if outcome.trial.expected == Expected::Refused {
        // Whoever comes next is answered.
        let next = ask(client, model, QUESTION, clock).await;
        let answered = next.error.is_none() && next.ends == 1 && next.text == calm;
        outcome.as_expected &= answered;
        outcome.seen += if answered { ", the next one answered" } else { ", the next one NOT answered" };
        outcome.lost += u32::from(!answered);
    }
    server.stop().await;
    Ok(outcome)
}

/// One greedy answer to its end.
async fn ask(client: &Client, model: &str, question: &str, clock: Clock) -> Heard {
    let mut heard = Heard { events_ns: vec![clock.now_ns()], ..Heard::default() };
    let options = json!({"temperature": 0, "num_predict": TOKENS});
    let body = json!({"model": model, "prompt": question, "options": options});
    if let Err(error) = listen(client, &body, &mut heard, clock).await {
        heard.error = Some(error.to_string());
    }
    heard
}

async fn listen(client: &Client, body: &Value, heard: &mut Heard, clock: Clock) -> Result<(), CliError> {
    let mut lines = client.stream("/api/generate", body).await?;
    while let Some(line) = lines.next().await? {
        heard.events_ns.push(clock.now_ns());
        heard.text.push_str(text_of(&line, "response"));
        heard.ends += u32::from(line["done"] == true);
    }
    Ok(())
}

/// When the server tells of a death.
async fn first_death(client: &Client, model: &str, clock: Clock) -> u64 {
    loop {
        let story = client.post("/api/ollmlx/why", &json!({"model": model})).await;
        if story.is_ok_and(|story| story["death_count"].as_u64().is_some_and(|count| count > 0)) {
            return clock.now_ns();
        }
        tokio::time::sleep(POLL).await;
    }
}

fn judge(trial: Trial, heard: &Heard, calm: &str, death: Option<&str>, seen_ns: Option<u64>) -> Outcome {
    let whole = heard.error.is_none() && heard.ends == 1;
    let answer = match (&heard.error, whole) {
        (Some(error), _) if error.contains("died twice") => Some(Expected::Refused),
        (None, true) if heard.text == calm => Some(Expected::Same),
        (None, true) => Some(Expected::Whole),
        _ => None,
    };
    let fits = answer == Some(trial.expected) || (trial.expected == Expected::Whole && answer == Some(Expected::Same));
    let what = match (answer, &heard.error) {
        (Some(answer), _) => answer.words().to_owned(),
        (None, Some(error)) => format!("an error: {error}"),
        (None, None) => format!("{} ends", heard.ends),
    };
    let pause = seen_ns.and_then(|seen_ns| {
        let gap = heard.events_ns.windows(2).find(|pair| pair[0] <= seen_ns && seen_ns <= pair[1])?;
        Some((seen_ns - gap[0], gap[1] - gap[0]))
    });
    // A death after the end of the answer is counted from the question: what leaks began then.
    let asked_ns = heard.events_ns.first().copied().unwrap_or_default();
    let detected_ns = pause.map(|(detected_ns, _)| detected_ns).or(seen_ns.map(|seen_ns| seen_ns - asked_ns));
    Outcome {
        seen: format!("{}, {what}", death.unwrap_or("no death")),
        detected_ms: detected_ns.map(|ns| ns / 1_000_000),
        recovered_ms: pause.filter(|_| whole).map(|(_, ns)| ns / 1_000_000),
        lost: u32::from(!whole),
        as_expected: fits && death == trial.death,
        trial,
    }
}

fn expected_words(trial: &Trial) -> String {
    format!("{}, {}", trial.death.unwrap_or("no death"), trial.expected.words())
}

fn table(outcomes: &[Outcome]) -> String {
    let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
    let rows: Vec<Vec<String>> = outcomes
        .iter()
        .map(|outcome| {
            vec![
                outcome.trial.fault.clone(),
                expected_words(&outcome.trial),
                outcome.seen.clone(),
                ms(outcome.detected_ms),
                ms(outcome.recovered_ms),
                outcome.lost.to_string(),
                if outcome.as_expected { "yes" } else { "NO" }.to_owned(),
            ]
        })
        .collect();
    let header = ["FAULT", "EXPECTED", "SEEN", "DETECTED", "RECOVERED", "LOST", "AS EXPECTED"];
    text_table::with_header(&header, &rows)
}

fn as_json(outcomes: &[Outcome]) -> Value {
    let rows: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "fault": outcome.trial.fault,
                "expected": expected_words(&outcome.trial),
                "seen": outcome.seen,
                "detected_ms": outcome.detected_ms,
                "recovered_ms": outcome.recovered_ms,
                "requests_lost": outcome.lost,
                "as_expected": outcome.as_expected,
            })
        })
        .collect();
    Value::from(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(expected: Expected, death: Option<&'static str>) -> Trial {
        Trial { fault: "crash@4;times=1".to_owned(), settings: Vec::new(), expected, death }
    }

    fn heard(text: &str, ends: u32) -> Heard {
        let events_ns = [0, 10, 20, 900, 910].map(|ms| ms * 1_000_000).to_vec();
        Heard { text: text.to_owned(), ends, error: None, events_ns }
    }

    #[test]
    fn a_survived_crash_has_a_pause_that_is_measured_from_the_token_before() {
        let seen_ns = Some(50_000_000);
        let outcome = judge(trial(Expected::Same, Some("SIGSEGV")), &heard("a", 1), "a", Some("SIGSEGV"), seen_ns);
        assert!(outcome.as_expected);
        assert_eq!((outcome.detected_ms, outcome.recovered_ms, outcome.lost), (Some(30), Some(880), 0));
        let text = table(&[outcome]);
        assert!(text.contains("SIGSEGV, the calm answer"), "{text}");
        assert!(text.contains("30 ms       880 ms       0       yes"), "{text}");
    }

    #[test]
    fn what_is_not_as_expected_is_not_excused() {
        let fails = |trial, heard: &Heard, death| !judge(trial, heard, "a", death, None).as_expected;
        assert!(fails(trial(Expected::Same, Some("SIGSEGV")), &heard("b", 1), Some("SIGSEGV")), "another answer");
        assert!(fails(trial(Expected::Same, Some("SIGSEGV")), &heard("a", 1), None), "no death");
        assert!(fails(trial(Expected::Same, None), &heard("a", 1), Some("SIGSEGV")), "a death");
        assert!(fails(trial(Expected::Same, None), &heard("a", 0), None), "no end");
        assert!(fails(trial(Expected::Refused, Some("SIGSEGV")), &heard("a", 1), Some("SIGSEGV")), "no error");
        let other = Heard { error: Some("server busy".to_owned()), ..heard("", 0) };
        assert!(fails(trial(Expected::Refused, Some("SIGSEGV")), &other, Some("SIGSEGV")), "another error");
        assert!(!fails(trial(Expected::Whole, None), &heard("a", 1), None), "the same is whole");
    }
}
