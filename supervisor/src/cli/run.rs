//! `ollmlx run`: asks a model once, or opens a session with it.
//!
//! Standard output carries the answer and nothing else; spinners, timings and hints go to standard error.

use std::io::{IsTerminal, Read};

use serde_json::{Map, Value, json};

use super::answer::{AnswerPrinter, Colours, Look, Thoughts, timings};
use super::args::{RunArgs, at_least_one};
use super::client::{Client, StreamLines};
use super::error::CliError;
use super::output::{print, text_of};
use super::progress::Spinner;
use super::{images, model_path, repl, transfer};
use crate::config::Config;
use crate::config::value::parse_go_duration;
use crate::os::stderr::tell_as_it_is;

/// Columns left free at the right edge.
const MARGIN_COLUMNS: usize = 5;

/// What a session or a single question is asked with.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The server.
    pub(super) client: Client,
    /// Name or absolute path.
    pub(super) model: String,
    /// What `/api/show` says of it.
    pub(super) shown: Value,
    /// Options set by the person.
    pub(super) options: Map<String, Value>,
    /// `json`, or a schema.
    pub(super) format: Option<Value>,
    /// Whether, and how deep.
    pub(super) think: Option<Value>,
    /// How long the model stays.
    pub(super) keep_alive: Option<String>,
    /// Whether timings are printed.
    pub(super) verbose: bool,
    /// How answers look.
    pub(super) look: Look,
}

/// Asks once, or opens a session.
///
/// # Errors
/// No server, no such model, or a refusal.
pub async fn run(client: &Client, config: &Config, args: RunArgs) -> Result<(), CliError> {
    let mut words = at_least_one(args.words.clone())?;
    check(&args)?;
    let name = words.remove(0);
    let piped = read_piped()?;
    let prompt = join_prompt(piped, words);
    let terminals = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let interactive = prompt.is_empty() && terminals;
    client.heartbeat().await?;
    let model = resolve(&name)?;
    let shown = show_or_pull(client, &model, args.insecure).await?;
    let look = Look {
        columns_max: if args.nowordwrap { None } else { columns() },
        thinking: if args.hidethinking { Thoughts::Hidden } else { Thoughts::Shown },
        colours: if std::io::stdout().is_terminal() { Colours::On } else { Colours::Off },
    };
    let think = match args.think.as_deref() {
        Some("true") => Some(json!(true)),
        Some("false") => Some(json!(false)),
        Some(level) => Some(json!(level)),
        None if can(&shown, "thinking") => Some(json!(true)),
        None => None,
    };
    let session = Session {
        client: client.clone(),
        model,
        shown,
        options: Map::new(),
        format: args.format.as_deref().map(format_value),
        think,
        keep_alive: args.keepalive.clone(),
        verbose: args.verbose,
        look,
    };
    if can(&session.shown, "embedding") && !can(&session.shown, "completion") {
        return embed(&session, &args, &prompt).await;
    }
    if interactive {
        return repl::run(session, config).await;
    }
    generate(&session, prompt).await
}

fn check(args: &RunArgs) -> Result<(), CliError> {
    if let Some(text) = &args.keepalive {
        parse_go_duration(text).map_err(|error| CliError::Usage(error.to_string()))?;
    }
    match args.think.as_deref() {
        None | Some("true" | "false" | "high" | "medium" | "low" | "max") => Ok(()),
        Some(other) => Err(CliError::Usage(format!(
            "invalid value for --think: {other:?} (must be true, false, high, medium, low, or max)"
        ))),
    }
}

/// All of standard input, unless a person sits there.
fn read_piped() -> Result<String, CliError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let limit = crate::limits::BODY_BYTES_MAX as u64;
    let read = stdin.lock().take(limit).read_to_end(&mut bytes);
    read.map_err(|source| CliError::System { step: "read standard input", source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Piped text first, then the words, with single spaces between.
fn join_prompt(piped: String, words: Vec<String>) -> String {
    let first = if piped.is_empty() { None } else { Some(piped) };
    first.into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// `json` is a word; anything else is sent as it is, so that a schema works.
pub(super) fn format_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => json!(text),
    }
}

/// A path where the word is one, else the name.
pub(super) fn resolve(name: &str) -> Result<String, CliError> {
    match model_path::absolute(name) {
        Some(path) => Ok(path),
        None if model_path::looks_like_path(name) => Err(CliError::Usage(format!("{name}: no such file or directory"))),
        None => Ok(name.to_owned()),
    }
}

/// What the server knows of the model. A name it does not know is pulled first.
pub(super) async fn show_or_pull(client: &Client, model: &str, insecure: bool) -> Result<Value, CliError> {
    let request = json!({"model": model});
    match client.post("/api/show", &request).await {
        Err(absent) if absent.is_not_found() && !model_path::looks_like_path(model) => {
            let pull = json!({"model": model, "insecure": insecure});
            if let Err(error) = transfer::follow(client, "/api/pull", &pull).await {
                if !absent.to_string().ends_with("not found") {
                    return Err(absent); // The server knows where it could come from.
                }
                return Err(CliError::Usage(format!(
                    "model '{model}' is not there and could not be pulled ({error}); to use a file: ollmlx run \
                     ./file.gguf, or write 'FROM ./file.gguf' to a Modelfile and: ollmlx create {model} -f Modelfile"
                )));
            }
            client.post("/api/show", &request).await
        }
        other => other,
    }
}

/// Whether `/api/show` names the capability.
pub(super) fn can(shown: &Value, capability: &str) -> bool {
    shown["capabilities"].as_array().is_some_and(|words| words.iter().any(|word| word == capability))
}

/// Columns to wrap at; none where standard output is no terminal.
fn columns() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let (width, _) = terminal_size::terminal_size()?;
    Some(usize::from(width.0).saturating_sub(MARGIN_COLUMNS))
}

async fn embed(session: &Session, args: &RunArgs, prompt: &str) -> Result<(), CliError> {
    if prompt.is_empty() {
        let model = &args.words[0];
        return Err(CliError::Usage(format!(
            "embedding models require input text. Usage: ollmlx run {model} \"your text here\""
        )));
    }
    let mut body = json!({"model": session.model, "input": prompt});
    let optional = [
        ("keep_alive", args.keepalive.as_ref().map(|text| json!(text))),
        ("truncate", args.truncate.map(|truncate| json!(truncate))),
        ("dimensions", args.dimensions.map(|dimensions| json!(dimensions))),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    let answer = {
        let _spinner = Spinner::start("");
        session.client.post("/api/embed", &body).await?
    };
    let vector = answer["embeddings"].get(0).ok_or(CliError::BadAnswer("it has no vector"))?;
    print(&format!("{vector}\n"))
}

async fn generate(session: &Session, prompt: String) -> Result<(), CliError> {
    let (text, pictures) = match can(&session.shown, "vision") {
        true => images::extract(&prompt)?,
        false => (prompt.clone(), Vec::new()),
    };
    let mut body = session.request();
    body["prompt"] = json!(text);
    if !pictures.is_empty() {
        body["images"] = json!(pictures);
    }
    let end = session.ask("/api/generate", &body, "response").await?;
    if !prompt.is_empty() {
        print("\n\n")?;
    }
    if session.verbose
        && let AnswerEnd::Done(_, last) = end
    {
        tell_as_it_is(&timings(&last));
    }
    Ok(())
}

/// How an answer ended.
#[derive(Debug)]
pub(super) enum AnswerEnd {
    /// By itself: the text, and the last line.
    Done(String, Value),
    /// The person pressed Ctrl-C: what there was.
    Interrupted(String),
}

impl Session {
    /// What every request says.
    pub(super) fn request(&self) -> Value {
        let mut body = json!({"model": self.model, "options": self.options});
        let optional = [
            ("format", self.format.clone()),
            ("think", self.think.clone()),
            ("keep_alive", self.keep_alive.as_ref().map(|text| json!(text))),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                body[key] = value;
            }
        }
        body
    }

    /// Asks, and prints the answer as it comes. Ctrl-C ends it early.
    ///
    /// # Errors
    /// No server, or its refusal, first or in the middle.
    pub(super) async fn ask(&self, path: &str, body: &Value, key: &str) -> Result<AnswerEnd, CliError> {
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut spinner = Some(Spinner::start(""));
        let mut lines = tokio::select! {
            lines = self.client.stream(path, body) => lines?,
            _ = &mut interrupt => return Ok(AnswerEnd::Interrupted(String::new())),
        };
        let mut printer = AnswerPrinter::new(std::io::stdout(), self.look);
        let mut text = String::new();
        let mut last = Value::Null;
        let outcome = loop {
            let line = tokio::select! {
                line = next(&mut lines) => line,
                _ = &mut interrupt => break Ok(false),
            };
            match line {
                Ok(Some(line)) => {
                    spinner = None;
                    // In a chat the texts are one level deeper.
                    let part = if line["message"].is_object() { &line["message"] } else { &line };
                    text.push_str(text_of(part, key));
                    let shown =
                        printer.thinking(text_of(part, "thinking")).and_then(|()| printer.content(text_of(part, key)));
                    if let Err(error) = shown {
                        break output_gone(error).map(|()| false);
                    }
                    last = line;
                }
                Ok(None) => break Ok(true),
                Err(error) => break Err(error),
            }
        };
        drop(spinner);
        printer.finish().or_else(output_gone)?;
        Ok(if outcome? { AnswerEnd::Done(text, last) } else { AnswerEnd::Interrupted(text) })
    }
}

async fn next(lines: &mut StreamLines) -> Result<Option<Value>, CliError> {
    lines.next().await
}

/// A reader that hung up is an end, not an error.
fn output_gone(error: std::io::Error) -> Result<(), CliError> {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(CliError::System { step: "write to standard output", source: error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_text_comes_first() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(join_prompt("text\n".into(), words(&["Summarise:"])), "text\n Summarise:");
        assert_eq!(join_prompt(String::new(), words(&["a", "b"])), "a b");
        assert_eq!(join_prompt(String::new(), vec![]), "");
    }

    #[test]
    fn a_format_is_a_word_or_a_schema() {
        assert_eq!(format_value("json"), json!("json"));
        assert_eq!(format_value(r#"{"type":"object"}"#), json!({"type": "object"}));
    }

    #[test]
    fn flags_are_checked_before_anything_is_asked() {
        let args = |think: Option<&str>, keepalive: Option<&str>| RunArgs {
            words: vec!["m".into()],
            keepalive: keepalive.map(str::to_owned),
            verbose: false,
            insecure: false,
            nowordwrap: false,
            format: None,
            think: think.map(str::to_owned),
            hidethinking: false,
            truncate: None,
            dimensions: None,
        };
        assert!(check(&args(Some("low"), Some("5m"))).is_ok());
        assert_eq!(
            check(&args(Some("x"), None)).unwrap_err().to_string(),
            r#"invalid value for --think: "x" (must be true, false, high, medium, low, or max)"#
        );
        assert_eq!(check(&args(None, Some("10"))).unwrap_err().to_string(), r#"time: missing unit in duration "10""#);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_not_taken_for_a_name() {
        assert!(resolve("./gone.gguf").is_err());
        assert_eq!(resolve("library/x").unwrap(), "library/x");
    }
}
