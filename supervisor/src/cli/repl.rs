//! A session with a model: a prompt, answers, slash commands.
//!
//! The line editor blocks, so it works on a thread of its own between two answers. Ctrl-C at the prompt only says how to
//! leave; during an answer it ends the answer.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter};
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use serde_json::{Value, json};

use super::error::CliError;
use super::images;
use super::output::{print, text_of};
use super::progress::Spinner;
use super::repl_command::{Block, Mode, ReplCommand, Switch, help, parse};
use super::run::{AnswerEnd, Session, can};
use super::{list, show};
use crate::catalog::modelfile;
use crate::config::Config;
use crate::os::folder::Folder;
use crate::os::stderr::{tell, tell_as_it_is};

const PROMPT: &str = ">>> ";
const PROMPT_MORE: &str = "... ";
const PLACEHOLDER: &str = "Send a message (/? for help)";

/// Grey text where nothing has been typed yet.
struct Placeholder {
    shown: bool,
}

struct PlaceholderHint;

impl Hint for PlaceholderHint {
    fn display(&self) -> &str {
        PLACEHOLDER
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Placeholder {
    type Hint = PlaceholderHint;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<PlaceholderHint> {
        (self.shown && line.is_empty()).then_some(PlaceholderHint)
    }
}

impl Highlighter for Placeholder {
    fn highlight_hint<'h>(&self, hint: &'h str) -> std::borrow::Cow<'h, str> {
        format!("\x1b[38;5;245m{hint}\x1b[0m").into()
    }
}

impl Completer for Placeholder {
    type Candidate = String;
}

impl Validator for Placeholder {}
impl Helper for Placeholder {}

/// What the line editor begins its files with.
const HISTORY_START: &[u8; 3] = b"#V2";

type InputLines = Editor<Placeholder, DefaultHistory>;

/// What the loop knows between two lines.
struct Repl {
    session: Session,
    messages: Vec<Value>,
    system: Option<String>,
    history: bool,
    /// Whether history may be kept there.
    history_path: Option<PathBuf>,
    columns_max: Option<usize>,
}

/// What happens after a line.
#[derive(PartialEq, Eq)]
enum AfterLine {
    Go,
    Leave,
}

/// Runs until the person leaves.
///
/// # Errors
/// No server, or no line editor.
pub(super) async fn run(session: Session, config: &Config) -> Result<(), CliError> {
    let mut repl = Repl {
        columns_max: session.look.columns_max,
        session,
        messages: Vec::new(),
        system: None,
        history: !config.nohistory,
        history_path: Some(config.state_dir.join("history")).filter(|path| is_history(path)),
    };
    repl.load().await?;
    repl.replay_stored()?;
    let mut editor = Some(repl.editor()?);
    let mut block = Block::default();
    loop {
        let mut lines = editor.take().expect("it came back from the last line");
        if let Some(helper) = lines.helper_mut() {
            helper.shown = !block.is_open();
        }
        let prompt = if block.is_open() { PROMPT_MORE } else { PROMPT };
        let reading = tokio::task::spawn_blocking(move || {
            let line = lines.readline(prompt);
            (lines, line)
        });
        let (lines, line) = reading.await.map_err(|error| editor_error(std::io::Error::other(error)))?;
        let lines = editor.insert(lines);
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                block.drop_open();
                print("\nUse Ctrl + d or /bye to exit.\n")?;
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(editor_error(std::io::Error::other(error))),
        };
        let Some(text) = block.push(&line) else { continue };
        if text.trim().is_empty() {
            continue;
        }
        if repl.history {
            // A history that can't be written is not worth a word in the middle of a talk.
            drop(lines.add_history_entry(text.trim()));
            drop(repl.history_path.as_ref().map(|path| lines.save_history(path)));
        }
        match repl.line(&text).await {
            Ok(AfterLine::Go) => {}
            Ok(AfterLine::Leave) => return Ok(()),
            Err(error @ CliError::ServerDown) => return Err(error),
            Err(error) => tell(format_args!("Error: {error}")),
        }
    }
}

/// Whether an earlier session has written the file, or there is none: whatever else lies there is somebody's.
fn is_history(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(facts) if facts.is_file() => {
            let mut start = [0; HISTORY_START.len()];
            File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *HISTORY_START
        }
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn editor_error(source: std::io::Error) -> CliError {
    CliError::System { step: "read a line", source }
}

impl Repl {
    fn editor(&self) -> Result<InputLines, CliError> {
        let mut lines = InputLines::new().map_err(|error| editor_error(std::io::Error::other(error)))?;
        lines.set_helper(Some(Placeholder { shown: true }));
        if self.history
            && let Some(path) = &self.history_path
        {
            drop(path.parent().map(Folder::make));
            // There is none before the first session.
            drop(lines.load_history(path));
        }
        Ok(lines)
    }

    /// Has the model loaded, so that the first answer does not wait.
    async fn load(&self) -> Result<(), CliError> {
        let _spinner = Spinner::start("");
        let mut body = self.session.request();
        body["stream"] = json!(false);
        body["messages"] = json!([]);
        if let Some(object) = body.as_object_mut() {
            object.remove("format");
        }
        self.session.client.post("/api/chat", &body).await.map(drop)
    }

    /// Shows the messages that the model brings along. The server puts them before ours by itself.
    fn replay_stored(&self) -> Result<(), CliError> {
        let stored = self.session.shown["messages"].as_array().map_or(&[][..], Vec::as_slice);
        for message in stored {
            match text_of(message, "role") {
                "user" => print(&format!("{PROMPT}{}\n", text_of(message, "content")))?,
                "assistant" => print(&format!("{}\n\n", text_of(message, "content")))?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn line(&mut self, text: &str) -> Result<AfterLine, CliError> {
        if text.trim_start().starts_with('/')
            && let Some(command) = parse(text)
        {
            return self.command(command).await;
        }
        self.say(text).await?;
        Ok(AfterLine::Go)
    }

    async fn say(&mut self, text: &str) -> Result<(), CliError> {
        let mut message = json!({"role": "user", "content": text});
        if can(&self.session.shown, "vision") {
            let (text, pictures) = images::extract(text)?;
            message = json!({"role": "user", "content": text, "images": pictures});
        }
        let mut body = self.session.request();
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        body["messages"] = system.chain(self.messages.iter().cloned()).chain([message.clone()]).collect();
        let end = self.session.ask("/api/chat", &body, "content").await?;
        print("\n\n")?;
        self.messages.push(message);
        let answer = match end {
            AnswerEnd::Done(text, last) => {
                if self.session.verbose {
                    tell_as_it_is(&super::answer::timings(&last));
                }
                text
            }
            AnswerEnd::Interrupted(text) => text,
        };
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }

    async fn command(&mut self, command: ReplCommand) -> Result<AfterLine, CliError> {
        match command {
            ReplCommand::Help(topic) => tell_as_it_is(help(&topic)),
            ReplCommand::SetParameter(None) => tell_as_it_is(PARAMETERS),
            ReplCommand::SetParameter(Some((key, value))) => self.set_parameter(&key, &value)?,
            ReplCommand::SetSystem(text) => {
                self.system = Some(text);
                print("Set system message.\n")?;
            }
            ReplCommand::SetMode(mode) => print(&self.set_mode(mode))?,
            ReplCommand::SetWrong(text) => print(&format!("{text}\n"))?,
            ReplCommand::Show(topic) => print(&self.show(&topic))?,
            ReplCommand::Load(model) if model.is_empty() => print("Usage:\n  /load <modelname>\n")?,
            ReplCommand::Load(model) => self.change_model(model).await?,
            ReplCommand::Save(model) if model.is_empty() => print("Usage:\n  /save <modelname>\n")?,
            ReplCommand::Save(model) => self.save(&model).await?,
            ReplCommand::Clear => {
                self.messages.clear();
                print("Cleared session context\n")?;
            }
            ReplCommand::List => {
                let models = self.session.client.get("/api/tags").await?;
                print(&list::table(&models, "", chrono::Utc::now()))?;
            }
            ReplCommand::Bye => return Ok(AfterLine::Leave),
            ReplCommand::Unknown(word) => print(&format!("Unknown command '{word}'. Type /? for help\n"))?,
        }
        Ok(AfterLine::Go)
    }

    fn set_parameter(&mut self, key: &str, value: &str) -> Result<(), CliError> {
        // The Modelfile's rules are the rules here too.
        match modelfile::parse(&format!("FROM .\nPARAMETER {key} {value}")) {
            Ok(parsed) => {
                self.session.options.extend(parsed.parameters);
                print(&format!("Set parameter '{key}' to '{value}'\n"))
            }
            Err(error) => print(&format!("Couldn't set parameter: {:?}\n", error.to_string())),
        }
    }

    fn set_mode(&mut self, mode: Mode) -> String {
        let on = |switch: Switch| switch == Switch::On;
        let word = match mode {
            Mode::History(switch) => {
                self.history = on(switch);
                return String::new();
            }
            Mode::WordWrap(switch) => {
                self.session.look.columns_max = if on(switch) { self.columns_max } else { None };
                if on(switch) { "wordwrap" } else { "nowordwrap" }
            }
            Mode::Verbose(switch) => {
                self.session.verbose = on(switch);
                if on(switch) { "verbose" } else { "quiet" }
            }
            Mode::Think(None) => {
                self.session.think = Some(json!(true));
                "think"
            }
            Mode::Think(Some(level)) => {
                let text = format!("Set 'think' mode to '{level}'.\n");
                self.session.think = Some(json!(level));
                return text;
            }
            Mode::NoThink => {
                self.session.think = Some(json!(false));
                "nothink"
            }
            Mode::FormatJson => {
                self.session.format = Some(json!("json"));
                return "Set format to 'json' mode.\n".to_owned();
            }
            Mode::NoFormat => {
                self.session.format = None;
                return "Disabled format.\n".to_owned();
            }
        };
        format!("Set '{word}' mode.\n")
    }

    fn show(&self, topic: &str) -> String {
        let shown = &self.session.shown;
        let or = |text: &str, otherwise: &str| match text {
            "" => format!("{otherwise}\n"),
            text => format!("{text}\n"),
        };
        match topic {
            "info" => show::sections_text(shown),
            "license" => or(text_of(shown, "license"), "No license was specified for this model."),
            "modelfile" => or(text_of(shown, "modelfile"), ""),
            "parameters" => {
                let mut out = String::from("Model defined parameters:\n");
                let model: Vec<String> =
                    text_of(shown, "parameters").lines().map(|line| format!("  {line}\n")).collect();
                out.push_str(&if model.is_empty() {
                    "  No additional parameters\n".to_owned()
                } else {
                    model.concat()
                });
                if !self.session.options.is_empty() {
                    out.push_str("\nUser defined parameters:\n");
                    for (key, value) in &self.session.options {
                        out.push_str(&format!("  {key:<30} {value}\n"));
                    }
                }
                out + "\n"
            }
            "system" => or(
                self.system.as_deref().unwrap_or(text_of(shown, "system")),
                "No system message was specified for this model.",
            ),
            "template" => or(show::template(shown), "No prompt template was specified for this model."),
            "" => help("show").to_owned(),
            other => format!("Unknown command '/show {other}'. Type /? for help\n"),
        }
    }

    async fn change_model(&mut self, model: String) -> Result<(), CliError> {
        print(&format!("Loading model '{model}'\n"))?;
        let resolved = super::run::resolve(&model)?;
        match self.session.client.post("/api/show", &json!({"model": resolved})).await {
            Ok(shown) => {
                self.session.model = resolved;
                self.session.think = can(&shown, "thinking").then(|| json!(true));
                self.session.shown = shown;
                self.messages.clear();
                self.load().await?;
                self.replay_stored()
            }
            Err(error) if error.is_not_found() => print(&format!("Couldn't find model '{model}'\n")),
            Err(error) => Err(error),
        }
    }

    async fn save(&mut self, model: &str) -> Result<(), CliError> {
        let mut body = json!({"model": model, "from": self.session.model, "stream": false});
        if let Some(system) = &self.system {
            body["system"] = json!(system);
        }
        if !self.session.options.is_empty() {
            body["parameters"] = Value::Object(self.session.options.clone());
        }
        if !self.messages.is_empty() {
            body["messages"] = json!(self.messages);
        }
        match self.session.client.post("/api/create", &body).await {
            Ok(_) => print(&format!("Created new model '{model}'\n")),
            Err(error) if error.to_string().contains("invalid model name") => {
                print(&format!("error: The model name '{model}' is invalid\n"))
            }
            Err(error) => Err(error),
        }
    }
}

const PARAMETERS: &str = "Available Parameters:
  /set parameter seed <int>             Random number seed
  /set parameter num_predict <int>      Max number of tokens to predict
  /set parameter top_k <int>            Pick from top k num of tokens
  /set parameter top_p <float>          Pick token based on sum of probabilities
  /set parameter min_p <float>          Pick token based on top token probability * min_p
  /set parameter num_ctx <int>          Set the context size
  /set parameter temperature <float>    Set creativity level
  /set parameter repeat_penalty <float> How strongly to penalize repetitions
  /set parameter repeat_last_n <int>    Set how far back to look for repetitions
  /set parameter num_gpu <int>          The number of layers to send to the GPU
  /set parameter stop <string> ...      Set the stop parameters

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s03_a_file_that_is_no_history_is_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        assert!(is_history(&path), "there is none yet");
        let mut lines = InputLines::new().unwrap();
        lines.add_history_entry("hello").unwrap();
        lines.save_history(&path).unwrap();
        assert!(is_history(&path));
        std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
        assert!(!is_history(&folder.path().join("link")));
        for text in ["", "#V", "the history of my town"] {
            std::fs::write(&path, text).unwrap();
            assert!(!is_history(&path), "{text:?}");
        }
    }
}
