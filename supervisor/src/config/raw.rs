//! Settings as text, each with the place it came from. Knows nothing of what a value means.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

use super::table::{KNOBS, Knob};
use super::value;

/// Where a value came from. The order is the precedence, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The table.
    Default,
    /// The settings file.
    File,
    /// A variable of another program.
    ForeignEnv,
    /// An `OLLAMA_…` variable.
    OllamaEnv,
    /// An `OLLMLX_…` variable.
    Env,
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::ForeignEnv => "environment of another program",
            Self::OllamaEnv => "OLLAMA environment",
            Self::Env => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Trimmed.
    pub text: String,
    /// Who said so.
    pub origin: Origin,
}

/// Bytes of a settings file: all settings with a page of comment on each are a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What the settings file may say of one model, behind a dot.
const MODEL_SETTINGS: [&str; 2] = ["memory_limit", "priority"];

/// All places where settings are found.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags by knob name.
    pub flags: BTreeMap<String, String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The settings file, by knob name.
    pub file: SettingsFile,
}

/// What the settings file says.
#[derive(Clone, Debug, Default)]
pub struct SettingsFile {
    /// By name: what is said, and in which line, counted from 1. Of several the last counts.
    pub(super) lines: BTreeMap<String, (String, usize)>,
    /// Why it could not be read, where it is there.
    pub unreadable: Option<String>,
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Which.
    pub name: String,
    /// Who said so.
    pub origin: Origin,
    /// Where in the settings file.
    pub line: Option<usize>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, origin, line, reason } = self;
        write!(out, "{name} from {origin} was ignored: {reason}")?;
        line.map_or(Ok(()), |line| write!(out, " (line {line})"))
    }
}

impl Sources {
    /// The process's own environment. Variables that are not UTF-8 are no settings.
    #[must_use]
    pub fn from_process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self { env: std::env::vars_os().filter_map(text).collect(), ..Self::default() }
    }

    /// With these flags.
    #[must_use]
    pub fn with_flags(mut self, flags: BTreeMap<String, String>) -> Self {
        self.flags = flags;
        self
    }

    /// With a settings file, if there is one.
    #[must_use]
    pub fn with_file(mut self, path: &Path) -> Self {
        self.file = match read_file(path) {
            Ok(text) => SettingsFile::parse(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => SettingsFile::default(),
            Err(error) => SettingsFile { unreadable: Some(error.to_string()), ..SettingsFile::default() },
        };
        self
    }

    /// Whether a predecessor hands its socket over, as standard input.
    #[must_use]
    pub fn inherits_socket(&self) -> bool {
        self.env.get("OLLMLX_LISTEN_FD").is_some_and(|fd| fd == "0")
    }

    /// The strongest value of one knob. A variable or line that is set but empty does not count.
    #[must_use]
    pub fn raw(&self, knob: &Knob) -> Raw {
        let candidates = [
            (self.flags.get(knob.name), Origin::Flag),
            (self.env.get(knob.env), Origin::Env),
            (knob.ollama_env.and_then(|name| self.env.get(name)), Origin::OllamaEnv),
        ];
        let foreign = knob.foreign_env.iter().filter_map(|(name, below)| {
            let text = self.env.get(*name).map(|text| value::trim(text)).filter(|text| !text.is_empty())?;
            Some(if below.is_empty() { text.to_owned() } else { format!("{}/{below}", text.trim_end_matches('/')) })
        });
        let foreign = foreign.map(|text| (Some(text), Origin::ForeignEnv));
        let candidates = candidates.map(|(text, origin)| (text.cloned(), origin));
        let file = (self.file.lines.get(knob.name).map(|(text, _)| text.clone()), Origin::File);
        for (text, origin) in candidates.into_iter().chain(foreign).chain(std::iter::once(file)) {
            let Some(text) = text.as_deref().map(value::trim) else { continue };
            if !text.is_empty() {
                return Raw { text: text.to_owned(), origin };
            }
        }
        Raw { text: knob.default.to_owned(), origin: Origin::Default }
    }

    /// The home folder, if the environment names one.
    #[must_use]
    pub fn home(&self) -> Option<&str> {
        self.env.get("HOME").map(String::as_str).filter(|home| !home.is_empty())
    }

    /// Lines of the file that name no knob: what they name, and where.
    pub fn unknown_file_names(&self) -> impl Iterator<Item = (&str, usize)> {
        let known = |name: &str| KNOBS.iter().any(|knob| knob.name == name) || model_setting(name).is_some();
        let named = self.file.lines.iter().map(|(name, (_, line))| (name.as_str(), *line));
        named.filter(move |(name, _)| !known(name))
    }

    /// Lines of the file that are about one model.
    pub fn model_settings(&self) -> impl Iterator<Item = ModelSetting<'_>> {
        self.file.lines.iter().filter_map(|(name, (text, line))| {
            let (setting, model) = model_setting(name)?;
            Some(ModelSetting { setting, model, text, line: *line })
        })
    }
}

/// The text of a regular file, which may be a link: settings often lie elsewhere. Nobody waits for a pipe's other end.
fn read_file(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let facts = file.metadata()?;
    if facts.is_dir() {
        return Err(io::Error::from(ErrorKind::IsADirectory));
    }
    if !facts.is_file() || facts.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is no regular file of at most {FILE_BYTES_MAX} bytes")));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A line of the settings file about one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSetting<'a> {
    /// What is set.
    pub setting: &'static str,
    /// Of which model.
    pub model: &'a str,
    /// To what.
    pub text: &'a str,
    /// Where, counted from 1.
    pub line: usize,
}

/// `memory_limit.smollm2:135m`: what is set, and for which model.
fn model_setting(name: &str) -> Option<(&'static str, &str)> {
    let (setting, model) = name.split_once('.')?;
    let known = MODEL_SETTINGS.iter().find(|known| **known == setting)?;
    (!model.is_empty()).then_some((known, model))
}

impl SettingsFile {
    /// `name = value` lines; `#` starts a comment line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).zip(1..);
        let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        let lines = lines.map(|(line, number)| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            (name.trim().to_owned(), (value.trim().to_owned(), number))
        });
        Self { lines: lines.collect(), unreadable: None }
    }

    /// Where a name stands, counted from 1.
    #[must_use]
    pub fn line_of(&self, name: &str) -> Option<usize> {
        self.lines.get(name).map(|(_, line)| *line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::HOST;
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_nearest_source_wins() {
        let mut sources = Sources::default();
        assert_eq!(sources.raw(&HOST).origin, Origin::Default);
        sources.file = SettingsFile::parse("# mine\nhost = f:1\n");
        assert_eq!(sources.raw(&HOST), Raw { text: "f:1".into(), origin: Origin::File });
        sources.env = pairs(&[("OLLAMA_HOST", "o:1")]);
        assert_eq!(sources.raw(&HOST), Raw { text: "o:1".into(), origin: Origin::OllamaEnv });
        sources.env = pairs(&[("OLLAMA_HOST", "o:1"), ("OLLMLX_HOST", " \"e:1\" ")]);
        assert_eq!(sources.raw(&HOST), Raw { text: "e:1".into(), origin: Origin::Env });
        sources.flags = pairs(&[("host", "g:1")]);
        assert_eq!(sources.raw(&HOST), Raw { text: "g:1".into(), origin: Origin::Flag });
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        let sources = Sources { env: pairs(&[("OLLMLX_HOST", "  "), ("OLLAMA_HOST", "o:1")]), ..Sources::default() };
        assert_eq!(sources.raw(&HOST).text, "o:1");
    }

    #[test]
    fn unknown_names_in_the_file_are_known_as_such() {
        let with = |text| Sources { file: SettingsFile::parse(text), ..Sources::default() };
        let sources = with("\n# mine\nhots = x\nhost=y");
        assert_eq!(sources.unknown_file_names().collect::<Vec<_>>(), [("hots", 3)]);
        let sources = with("memory_limit.hf.co/a/b:q4 = 2GB\npriority.m=1\npriority.=2\nhost.m=x");
        assert_eq!(sources.unknown_file_names().collect::<Vec<_>>(), [("host.m", 4), ("priority.", 3)]);
        let found: Vec<_> = sources.model_settings().map(|found| (found.setting, found.model, found.text)).collect();
        assert_eq!(found, [("memory_limit", "hf.co/a/b:q4", "2GB"), ("priority", "m", "1")]);
    }
}
