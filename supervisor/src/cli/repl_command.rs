//! The slash commands of a session, parsed. Pure.

/// What a line of a session asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplCommand {
    /// `/?`, `/help`, with a topic.
    Help(String),
    /// `/set parameter k v…`; no words lists them.
    SetParameter(Option<(String, String)>),
    /// `/set system text`; the text may open a `"""` block.
    SetSystem(String),
    /// `/set <word>` of a mode.
    SetMode(Mode),
    /// `/set` with something else, and what to say to that.
    SetWrong(String),
    /// `/show topic`.
    Show(String),
    /// `/load model`.
    Load(String),
    /// `/save model`.
    Save(String),
    /// `/clear`.
    Clear,
    /// `/list`.
    List,
    /// `/bye`, `/exit`.
    Bye,
    /// Another word with a slash.
    Unknown(String),
}

/// What `/set` can switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// `history`, `nohistory`.
    History(Switch),
    /// `wordwrap`, `nowordwrap`.
    WordWrap(Switch),
    /// `verbose`, `quiet`.
    Verbose(Switch),
    /// `think`, with a level.
    Think(Option<String>),
    /// `nothink`.
    NoThink,
    /// `format json`.
    FormatJson,
    /// `noformat`.
    NoFormat,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// A line that begins with a slash. `None` where it is no command but a path that belongs to a prompt.
pub(super) fn parse(line: &str) -> Option<ReplCommand> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let first = || rest.split_whitespace().next().unwrap_or_default().to_owned();
    Some(match word {
        "/?" | "/help" => ReplCommand::Help(rest.to_owned()),
        "/set" => parse_set(rest),
        "/show" => ReplCommand::Show(first()),
        "/load" => ReplCommand::Load(first()),
        "/save" => ReplCommand::Save(first()),
        "/clear" => ReplCommand::Clear,
        "/list" | "/ls" => ReplCommand::List,
        "/bye" | "/exit" => ReplCommand::Bye,
        _ if word.get(1..).is_some_and(|rest| rest.contains('/') || rest.contains('.')) => return None,
        _ => ReplCommand::Unknown(word.to_owned()),
    })
}

fn parse_set(rest: &str) -> ReplCommand {
    let (word, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let value = value.trim();
    match word {
        "" => ReplCommand::Help("set".to_owned()),
        "parameter" => match value.split_once(char::is_whitespace) {
            Some((key, value)) => ReplCommand::SetParameter(Some((key.to_owned(), value.trim().to_owned()))),
            None if value.is_empty() => ReplCommand::SetParameter(None),
            None => ReplCommand::SetWrong("Usage: /set parameter <name> <value>".to_owned()),
        },
        "system" if value.is_empty() => ReplCommand::SetWrong("Usage: /set system <message>".to_owned()),
        "system" => ReplCommand::SetSystem(value.to_owned()),
        "history" => ReplCommand::SetMode(Mode::History(Switch::On)),
        "nohistory" => ReplCommand::SetMode(Mode::History(Switch::Off)),
        "wordwrap" => ReplCommand::SetMode(Mode::WordWrap(Switch::On)),
        "nowordwrap" => ReplCommand::SetMode(Mode::WordWrap(Switch::Off)),
        "verbose" => ReplCommand::SetMode(Mode::Verbose(Switch::On)),
        "quiet" => ReplCommand::SetMode(Mode::Verbose(Switch::Off)),
        "think" => match value {
            "" | "true" => ReplCommand::SetMode(Mode::Think(None)),
            "high" | "medium" | "low" | "max" => ReplCommand::SetMode(Mode::Think(Some(value.to_owned()))),
            "false" => ReplCommand::SetMode(Mode::NoThink),
            _ => ReplCommand::SetWrong(format!("invalid think value: {value:?}")),
        },
        "nothink" => ReplCommand::SetMode(Mode::NoThink),
        "format" if value == "json" => ReplCommand::SetMode(Mode::FormatJson),
        "format" => {
            ReplCommand::SetWrong("Invalid or missing format. For 'json' mode use '/set format json'".to_owned())
        }
        "noformat" => ReplCommand::SetMode(Mode::NoFormat),
        _ => ReplCommand::SetWrong(format!("Unknown command '/set {word}'. Type /? for help")),
    }
}

/// What `/?` prints.
pub(super) fn help(topic: &str) -> &'static str {
    match topic.trim_start_matches('/') {
        "set" => SET_HELP,
        "show" => SHOW_HELP,
        "shortcut" | "shortcuts" => SHORTCUTS,
        _ => HELP,
    }
}

const SET_HELP: &str = "Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show LLM stats
  /set quiet             Disable LLM stats
  /set think             Enable thinking
  /set nothink           Disable thinking

";

const SHOW_HELP: &str = "Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template

";

const SHORTCUTS: &str = "Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor

  Ctrl + l            Clear the screen
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit ollmlx (/bye)

";

const HELP: &str = "Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /clear          Clear session context
  /list           List models
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.

";

/// Collects lines between `"""` marks.
#[derive(Debug, Default)]
pub(super) struct Block {
    open: Option<String>,
}

impl Block {
    /// Whether a block is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets an open block.
    pub(super) fn drop_open(&mut self) {
        self.open = None;
    }

    /// A line: the whole text once it is complete.
    pub(super) fn push(&mut self, line: &str) -> Option<String> {
        const MARK: &str = "\"\"\"";
        match self.open.take() {
            Some(mut text) => match line.split_once(MARK) {
                Some((last, _)) => {
                    text.push_str(last);
                    Some(text)
                }
                None => {
                    text.push_str(line);
                    text.push('\n');
                    self.open = Some(text);
                    None
                }
            },
            None => {
                let Some((before, after)) = line.split_once(MARK) else { return Some(line.to_owned()) };
                // A mark opens a block at the start of a message or after `/set system`.
                if !before.trim().is_empty() && before.trim() != "/set system" {
                    return Some(line.to_owned());
                }
                match after.split_once(MARK) {
                    Some((text, _)) => Some(format!("{before}{text}")),
                    None => {
                        let end = if after.is_empty() { "" } else { "\n" };
                        self.open = Some(format!("{before}{after}{end}"));
                        None
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_the_table_are_known() {
        for (line, expect) in [
            ("/?", ReplCommand::Help(String::new())),
            ("/help set", ReplCommand::Help("set".into())),
            ("/set parameter num_ctx 4096", ReplCommand::SetParameter(Some(("num_ctx".into(), "4096".into())))),
            ("/set parameter", ReplCommand::SetParameter(None)),
            ("/set system You are a cat.", ReplCommand::SetSystem("You are a cat.".into())),
            ("/set verbose", ReplCommand::SetMode(Mode::Verbose(Switch::On))),
            ("/set think high", ReplCommand::SetMode(Mode::Think(Some("high".into())))),
            ("/set nothink", ReplCommand::SetMode(Mode::NoThink)),
            ("/set format json", ReplCommand::SetMode(Mode::FormatJson)),
            ("/show license", ReplCommand::Show("license".into())),
            ("/load m", ReplCommand::Load("m".into())),
            ("/bye", ReplCommand::Bye),
            ("/exit ", ReplCommand::Bye),
            ("/x y", ReplCommand::Unknown("/x".into())),
        ] {
            assert_eq!(parse(line), Some(expect), "{line}");
        }
    }

    #[test]
    fn a_path_at_the_start_of_a_line_is_a_prompt() {
        assert_eq!(parse("/home/me/cat.png what is this"), None);
    }

    #[test]
    fn wrong_settings_say_what_is_right() {
        let Some(ReplCommand::SetWrong(text)) = parse("/set format xml") else { panic!() };
        assert_eq!(text, "Invalid or missing format. For 'json' mode use '/set format json'");
    }

    #[test]
    fn three_quotes_open_and_close_a_message() {
        let mut block = Block::default();
        assert_eq!(block.push("plain"), Some("plain".into()));
        assert_eq!(block.push("\"\"\"one line\"\"\""), Some("one line".into()));
        assert_eq!(block.push("\"\"\"first"), None);
        assert!(block.is_open());
        assert_eq!(block.push("second"), None);
        assert_eq!(block.push("third\"\"\""), Some("first\nsecond\nthird".into()));
        assert_eq!(block.push("/set system \"\"\""), None);
        assert_eq!(block.push("a cat\"\"\""), Some("/set system a cat".into()));
        assert_eq!(block.push("say \"\"\" twice"), Some("say \"\"\" twice".into()));
    }
}
