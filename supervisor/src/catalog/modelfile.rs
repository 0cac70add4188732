//! Modelfiles: the text that `create -f` reads and `show --modelfile` prints.
//!
//! Pure. Values are bare to the end of the line, in `"…"`, or in `"""…"""`; both kinds of quotes may span lines. A
//! value is what is between the first and the last quote, nothing inside is escaped. Error texts are Ollama's.

use std::fmt::Write as _;

use crate::limits::{MEMORY_LIMIT_BYTES_MIN, PRIORITY_MAX};
use ollmlx_proto::memory::{MODEL_LIMIT_RULE, parse_model_limit};
use serde_json::{Map, Number, Value};

use super::model::{Backend, ModelRef, StoredMessage};

/// A parsed Modelfile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// Names, files or folders; the first is the model, others are projectors. Never empty.
    pub from: Vec<String>,
    /// LoRA adapters.
    pub adapters: Vec<String>,
    /// Speculative drafts.
    pub draft: Vec<String>,
    /// Typed values; `stop` is an array.
    pub parameters: Map<String, Value>,
    /// Go template.
    pub template: Option<String>,
    /// System text.
    pub system: Option<String>,
    /// Licence texts.
    pub license: Vec<String>,
    /// Stored messages.
    pub messages: Vec<StoredMessage>,
    /// Built-in renderer.
    pub renderer: Option<String>,
    /// Built-in parser.
    pub parser: Option<String>,
    /// Least version of the server.
    pub requires: Option<String>,
    /// What the person should hear: retired parameters that were dropped.
    pub warnings: Vec<String>,
}

/// Why a text is no Modelfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelfileError {
    /// Nothing to start from.
    #[error("no FROM line")]
    NoFrom,
    /// A line starts with something else.
    #[error(
        "(line {0}): command must be one of \"from\", \"license\", \"template\", \"system\", \"adapter\", \"draft\", \
         \"renderer\", \"parser\", \"parameter\", \"message\", or \"requires\""
    )]
    UnknownCommand(usize),
    /// A quote is not closed, or a command has no value.
    #[error("unexpected EOF")]
    UnexpectedEnd,
    /// A role that no message has.
    #[error("message role must be one of \"system\", \"user\", or \"assistant\"")]
    Role,
    /// A parameter that does not exist.
    #[error("unknown parameter '{0}'")]
    UnknownParameter(String),
    /// A value of the wrong type.
    #[error("invalid {kind} value {value:?}")]
    Value {
        /// What it should be.
        kind: &'static str,
        /// What it is.
        value: String,
    },
    /// A value of ours that is none.
    #[error("parameter '{name}' must be {wanted}, not {value:?}")]
    OutOfRange {
        /// Which.
        name: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        value: String,
    },
    /// Neither UTF-8 nor UTF-16.
    #[error("Modelfile is neither UTF-8 nor UTF-16 text")]
    Encoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Bool,
    /// The memory limit of a model.
    Limit,
    /// -[`PRIORITY_MAX`] to [`PRIORITY_MAX`].
    Priority,
    Texts,
}

/// A test compares the numbers with [`PRIORITY_MAX`].
const PRIORITY_RULE: &str = "a whole number from -1000 to 1000";

/// Every option of a model, with its type.
const PARAMETERS: [(&str, Kind); 21] = [
    ("num_ctx", Kind::Int),
    ("num_batch", Kind::Int),
    ("num_gpu", Kind::Int),
    ("main_gpu", Kind::Int),
    ("use_mmap", Kind::Bool),
    ("num_thread", Kind::Int),
    ("draft_num_predict", Kind::Int),
    ("num_keep", Kind::Int),
    ("seed", Kind::Int),
    ("num_predict", Kind::Int),
    ("top_k", Kind::Int),
    ("top_p", Kind::Float),
    ("min_p", Kind::Float),
    ("typical_p", Kind::Float),
    ("repeat_last_n", Kind::Int),
    ("temperature", Kind::Float),
    ("repeat_penalty", Kind::Float),
    ("presence_penalty", Kind::Float),
    ("frequency_penalty", Kind::Float),
    // Ours. Ollama drops options that it doesn't know, so such a model works there as well.
    ("ollmlx_memory_limit", Kind::Limit),
    ("ollmlx_priority", Kind::Priority),
];

/// Parameters that a Modelfile may still name, to no effect.
const RETIRED: [&str; 9] = [
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
];

/// Text of a file in UTF-8, with or without a mark, or in UTF-16 with one.
///
/// # Errors
/// It is in neither.
pub fn decode(bytes: &[u8]) -> Result<String, ModelfileError> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let pairs = bytes.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(ModelfileError::Encoding);
        }
        let units: Vec<u16> = pairs.map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).map_err(|_| ModelfileError::Encoding)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            std::str::from_utf8(rest).map(str::to_owned).map_err(|_| ModelfileError::Encoding)
        }
    }
}

/// Parses a Modelfile.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(text: &str) -> Result<Modelfile, ModelfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut file = Modelfile::default();
    let mut rest = Cursor { text, line: 1 };
    while let Some(start) = rest.next_command() {
        let line = rest.line;
        rest.text = start;
        let word = rest.word().ok_or(ModelfileError::UnknownCommand(line))?.to_ascii_lowercase();
        match word.as_str() {
            "from" => file.from.push(rest.value()?),
            "adapter" => file.adapters.push(rest.value()?),
            "draft" => file.draft.push(rest.value()?),
            "license" => file.license.push(rest.value()?),
            "template" => file.template = Some(rest.value()?),
            "system" => file.system = Some(rest.value()?),
            "renderer" => file.renderer = Some(rest.value()?),
            "parser" => file.parser = Some(rest.value()?),
            "requires" => file.requires = Some(rest.value()?),
            "parameter" => {
                let key = rest.word().ok_or(ModelfileError::UnexpectedEnd)?.to_ascii_lowercase();
                let value = rest.value()?;
                set_parameter(&mut file, key, value)?;
            }
            "message" => {
                let role = rest.word().ok_or(ModelfileError::UnexpectedEnd)?.to_ascii_lowercase();
                check_role(&role)?;
                let content = rest.value()?;
                file.messages.push(StoredMessage { role, content });
            }
            _ => return Err(ModelfileError::UnknownCommand(line)),
        }
    }
    if file.from.is_empty() { Err(ModelfileError::NoFrom) } else { Ok(file) }
}

/// Whether a message may have this role.
pub(crate) fn check_role(role: &str) -> Result<(), ModelfileError> {
    if matches!(role, "system" | "user" | "assistant") { Ok(()) } else { Err(ModelfileError::Role) }
}

/// Whether the known ones among these options have the right types, and ours sensible values. Unknown ones are kept; requests ignore them.
pub(crate) fn check_parameters(parameters: &Map<String, Value>) -> Result<(), String> {
    for (key, value) in parameters.iter().filter(|(_, value)| !value.is_null()) {
        let wanted = match kind_of(key) {
            None => continue,
            Some(Kind::Int) if value.is_number() => continue,
            Some(Kind::Float) if value.is_number() => continue,
            Some(Kind::Bool) if value.is_boolean() => continue,
            Some(Kind::Limit) if value.as_u64().is_some_and(|bytes| bytes >= MEMORY_LIMIT_BYTES_MIN) => continue,
            Some(Kind::Limit) if value.as_str().and_then(parse_model_limit).is_some() => continue,
            Some(Kind::Priority) if value.as_i64().is_some_and(is_priority) => continue,
            Some(Kind::Texts) => match value {
                Value::String(_) => continue,
                Value::Array(list) if list.iter().all(Value::is_string) => continue,
                Value::Array(_) => "an array of strings",
                _ => "type array",
            },
            Some(Kind::Limit) => return Err(format!("option {key:?} must be {MODEL_LIMIT_RULE}")),
            Some(Kind::Priority) => return Err(format!("option {key:?} must be {PRIORITY_RULE}")),
            Some(Kind::Int) => "type integer",
            Some(Kind::Float) => "type float32",
            Some(Kind::Bool) => "type boolean",
        };
        return Err(format!("option {key:?} must be of {wanted}"));
    }
    Ok(())
}

/// Whether the actions of a Go template are closed. The worker that renders it has the last word.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    let mut rest = template;
    let mut depth = 0_i64;
    while let Some(open) = rest.find("{{") {
        let action = &rest[open + 2..];
        let close = action_end(action).ok_or("template error: unclosed action")?;
        let body = action[..close].trim_start_matches('-').trim();
        let word = body.split(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
        match word {
            "if" | "range" | "with" | "block" | "define" => depth += 1,
            "end" if body.trim_end_matches('-').trim() == "end" => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return Err("template error: unexpected {{end}}".to_owned());
        }
        rest = &action[close + 2..];
    }
    if depth == 0 { Ok(()) } else { Err("template error: unexpected EOF".to_owned()) }
}

/// Where the `}}` of an action is: not inside a text or a comment.
fn action_end(action: &str) -> Option<usize> {
    let trimmed = action.trim_start_matches(['-', ' ', '\t', '\r', '\n']);
    if trimmed.starts_with("/*") {
        let skipped = action.len() - trimmed.len();
        let end = skipped + trimmed.find("*/")? + 2;
        return Some(end + action[end..].find("}}")?);
    }
    let bytes = action.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"' | b'\''), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'`' | b'\'')) => quote = Some(byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, _) => {}
        }
        at += 1;
    }
    None
}

/// The Modelfile that would make this model again.
pub(crate) fn render(model: &ModelRef) -> String {
    let mut text = String::from("# Modelfile generated by \"ollama show\"\n");
    match (model.backend, model.weights.as_slice()) {
        (Backend::Gguf, [first, ..]) if !model.name.starts_with('/') => {
            let _ = write!(
                text,
                "# To build a new Modelfile based on this, replace FROM with:\n# FROM {}\n\nFROM {}\n",
                model.name,
                first.display()
            );
        }
        _ => {
            let _ = writeln!(text, "FROM {}", model.name);
        }
    }
    for adapter in &model.adapters {
        let _ = writeln!(text, "ADAPTER {}", quote(&adapter.display().to_string()));
    }
    if let Some(template) = &model.template {
        let _ = writeln!(text, "TEMPLATE {}", quote(template));
    }
    if let Some(system) = &model.system {
        let _ = writeln!(text, "SYSTEM {}", quote(system));
    }
    for (key, value) in &model.params {
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in list {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = writeln!(text, "PARAMETER {key} {}", quote(&value));
        }
    }
    for license in &model.licenses {
        let _ = writeln!(text, "LICENSE {}", quote(license));
    }
    for message in &model.messages {
        let _ = writeln!(text, "MESSAGE {} {}", message.role, quote(&message.content));
    }
    text
}

/// Quotes where a bare value would not come back the same.
fn quote(value: &str) -> String {
    let bare = !value.is_empty() && value.trim() == value && !value.contains(['\n', '\r']) && !value.starts_with('"');
    if bare {
        value.to_owned()
    } else if value.contains('"') {
        format!("\"\"\"{value}\"\"\"")
    } else {
        format!("\"{value}\"")
    }
}

fn kind_of(key: &str) -> Option<Kind> {
    if key == "stop" {
        return Some(Kind::Texts);
    }
    PARAMETERS.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}

fn is_priority(number: i64) -> bool {
    (-i64::from(PRIORITY_MAX)..=i64::from(PRIORITY_MAX)).contains(&number)
}

fn set_parameter(file: &mut Modelfile, key: String, value: String) -> Result<(), ModelfileError> {
    if RETIRED.contains(&key.as_str()) {
        file.warnings.push(format!("warning: parameter {key} is deprecated"));
        return Ok(());
    }
    let kind = kind_of(&key).ok_or_else(|| ModelfileError::UnknownParameter(key.clone()))?;
    let invalid = |kind| ModelfileError::Value { kind, value: value.clone() };
    let typed = match kind {
        Kind::Int => Value::from(value.parse::<i64>().map_err(|_| invalid("int"))?),
        Kind::Float => {
            let number = value.parse::<f64>().ok().and_then(|number| {
                // Whole numbers stay whole in JSON, as they do in Ollama's.
                value.parse::<i64>().map(Number::from).ok().or_else(|| Number::from_f64(number))
            });
            Value::Number(number.ok_or_else(|| invalid("float"))?)
        }
        Kind::Limit => match parse_model_limit(&value) {
            Some(_) => Value::String(value),
            None => return Err(ModelfileError::OutOfRange { name: key, wanted: MODEL_LIMIT_RULE, value }),
        },
        Kind::Priority => match value.parse::<i64>() {
            Ok(number) if is_priority(number) => Value::from(number),
            _ => return Err(ModelfileError::OutOfRange { name: key, wanted: PRIORITY_RULE, value }),
        },
        Kind::Bool => Value::Bool(match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => return Err(invalid("bool")),
        }),
        Kind::Texts => {
            let list = file.parameters.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(Value::String(value));
            }
            return Ok(());
        }
    };
    file.parameters.insert(key, typed);
    Ok(())
}

/// What is left to read.
struct Cursor<'text> {
    text: &'text str,
    line: usize,
}

impl<'text> Cursor<'text> {
    /// The text from the next command on, comments and blank lines skipped.
    fn next_command(&mut self) -> Option<&'text str> {
        loop {
            let (line, rest) = cut_line(self.text);
            let start = line.trim_start_matches([' ', '\t']);
            if !start.is_empty() && !start.starts_with('#') {
                return Some(&self.text[line.len() - start.len()..]);
            }
            self.text = rest?;
            self.line += 1;
        }
    }

    /// A word and the blanks behind it. Nothing where a line ends before a blank, or another character follows.
    fn word(&mut self) -> Option<&'text str> {
        let text = self.text.trim_start_matches([' ', '\t']);
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').filter(|end| *end > 0)?;
        let (word, rest) = text.split_at(end);
        if !rest.starts_with([' ', '\t']) {
            return None;
        }
        self.text = rest;
        Some(word)
    }

    /// The value up to the end of its line, or of the line that closes its quote.
    fn value(&mut self) -> Result<String, ModelfileError> {
        let text = self.text;
        let mut end = 0;
        loop {
            let (line, rest) = cut_line(&text[end..]);
            let stop = end + line.len();
            // A blank line closes no quote; trimming at each of many would be quadratic.
            let blank = end > 0 && line.trim().is_empty();
            let value = if blank { None } else { unquote(text[..stop].trim()) };
            self.line += usize::from(rest.is_some());
            match (value, rest) {
                (Some(value), rest) => {
                    self.text = rest.unwrap_or_default();
                    return Ok(value.to_owned());
                }
                (None, Some(rest)) => end = text.len() - rest.len(),
                (None, None) => return Err(ModelfileError::UnexpectedEnd),
            }
        }
    }
}

/// The first line without its end, and what follows it, if anything ended it.
fn cut_line(text: &str) -> (&str, Option<&str>) {
    match text.find('\n') {
        Some(end) => {
            let line = &text[..end];
            (line.strip_suffix('\r').unwrap_or(line), Some(&text[end + 1..]))
        }
        None => (text, None),
    }
}

/// The value without its quotes, or nothing where a quote is still open.
fn unquote(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix("\"\"\"") {
        rest.strip_suffix("\"\"\"")
    } else if let Some(rest) = text.strip_prefix('"') {
        rest.strip_suffix('"')
    } else {
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn from(rest: &str) -> Result<Modelfile, ModelfileError> {
        parse(&format!("FROM tiny\n{rest}"))
    }

    #[test]
    fn every_command_is_understood() {
        let file = parse(
            "\u{feff}# a comment\r\n\n  from  tiny  \nPARAMETER temperature 0.5\nparameter num_ctx 4096\n\
             PARAMETER stop \"<|a|>\"\nPARAMETER stop b # no comment\nPARAMETER use_mmap false\nPARAMETER top_p 1\n\
             PARAMETER mirostat 2\nTEMPLATE \"\"\"{{ .Prompt }}\n# no comment \"quoted\"\n\"\"\"\nSYSTEM \"two\nlines\"\n\
             ADAPTER ./a.gguf\nLICENSE MIT\nLICENSE \"\"\"Apache\"\"\"\nMESSAGE user hi there\nMESSAGE Assistant \"yes\"\n\
             RENDERER r\nPARSER p\nREQUIRES 0.19.0\nDRAFT d\nFROM mmproj.gguf",
        )
        .unwrap();
        assert_eq!(file.from, ["tiny", "mmproj.gguf"]);
        let parameters = json!({"temperature": 0.5, "num_ctx": 4096, "stop": ["<|a|>", "b # no comment"],
                                "use_mmap": false, "top_p": 1});
        assert_eq!(Value::Object(file.parameters), parameters);
        assert_eq!(file.warnings, ["warning: parameter mirostat is deprecated"]);
        assert_eq!(file.template.as_deref(), Some("{{ .Prompt }}\n# no comment \"quoted\"\n"));
        assert_eq!(file.system.as_deref(), Some("two\nlines"));
        assert_eq!((file.adapters, file.draft), (vec!["./a.gguf".into()], vec!["d".to_owned()]));
        assert_eq!(file.license, ["MIT", "Apache"]);
        let message = |role: &str, content: &str| StoredMessage { role: role.into(), content: content.into() };
        assert_eq!(file.messages, [message("user", "hi there"), message("assistant", "yes")]);
        assert_eq!((file.renderer.as_deref(), file.parser.as_deref()), (Some("r"), Some("p")));
        assert_eq!(file.requires.as_deref(), Some("0.19.0"));
    }

    #[test]
    fn errors_have_ollama_s_texts() {
        let text = |result: Result<Modelfile, ModelfileError>| result.unwrap_err().to_string();
        assert_eq!(text(parse("")), "no FROM line");
        assert_eq!(text(parse("# FROM x\nSYSTEM y")), "no FROM line");
        let unknown = "(line 3): command must be one of \"from\", \"license\", \"template\", \"system\", \"adapter\", \
                       \"draft\", \"renderer\", \"parser\", \"parameter\", \"message\", or \"requires\"";
        assert_eq!(text(from("\nBOGUS x")), unknown);
        assert_eq!(text(from("\n{x")), unknown);
        assert_eq!(text(from("\nSYSTEM")), unknown);
        assert_eq!(text(from("SYSTEM \"\"\"a\nb\"\"\"\nBOGUS x")), unknown.replace("line 3", "line 4"));
        assert_eq!(text(from("SYSTEM \"\"\"open\n\"")), "unexpected EOF");
        assert_eq!(text(from("SYSTEM \"open")), "unexpected EOF");
        assert_eq!(text(from("PARAMETER temperature")), "unexpected EOF");
        assert_eq!(text(from("PARAMETER bogus 1")), "unknown parameter 'bogus'");
        assert_eq!(text(from("PARAMETER num_ctx 1.5")), "invalid int value \"1.5\"");
        assert_eq!(text(from("PARAMETER top_p x")), "invalid float value \"x\"");
        assert_eq!(text(from("PARAMETER top_p NaN")), "invalid float value \"NaN\"");
        for value in ["2 apples", "0", "80%", "auto", "999999"] {
            let told = format!("parameter 'ollmlx_memory_limit' must be {MODEL_LIMIT_RULE}, not {value:?}");
            assert_eq!(text(from(&format!("PARAMETER ollmlx_memory_limit {value}"))), told);
        }
        for value in ["1001", "-1001", "high"] {
            let told = format!("parameter 'ollmlx_priority' must be a whole number from -1000 to 1000, not {value:?}");
            assert_eq!(text(from(&format!("PARAMETER ollmlx_priority {value}"))), told);
        }
        from(&format!("PARAMETER ollmlx_priority -{PRIORITY_MAX}\nPARAMETER ollmlx_memory_limit 1MB")).unwrap();
        assert_eq!(text(from("PARAMETER use_mmap yes")), "invalid bool value \"yes\"");
        let role = "message role must be one of \"system\", \"user\", or \"assistant\"";
        assert_eq!(text(from("MESSAGE tool x")), role);
    }

    #[test]
    fn utf16_and_marks_are_understood() {
        let le: Vec<u8> = [0xff, 0xfe].into_iter().chain("FROM é".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let be: Vec<u8> = [0xfe, 0xff].into_iter().chain("FROM é".encode_utf16().flat_map(u16::to_be_bytes)).collect();
        for bytes in [le.as_slice(), &be, "\u{feff}FROM é".as_bytes(), "FROM é".as_bytes()] {
            assert_eq!(parse(&decode(bytes).unwrap()).unwrap().from, ["é"]);
        }
        assert_eq!(decode(&[0xff, 0xfe, 0x41]), Err(ModelfileError::Encoding));
        assert_eq!(decode(&[0x80]), Err(ModelfileError::Encoding));
    }

    #[test]
    fn quoted_values_come_back_the_same() {
        for value in
            ["plain", " padded ", "two\nlines", "a \"quoted\" word", "\"starts\" so", "x\n\"y\"\nz", "", "#", "\ttab"]
        {
            let file = from(&format!("SYSTEM {}\n", quote(value))).unwrap();
            assert_eq!(file.system.as_deref(), Some(value));
        }
    }

    #[test]
    fn long_hostile_texts_end_soon() {
        for line in ["\"\"\n", "\n", "x\n"] {
            let open = "SYSTEM \"\"\"\n".to_owned() + &line.repeat(1_000_000);
            assert_eq!(from(&open), Err(ModelfileError::UnexpectedEnd));
        }
        assert_eq!(parse(&"\n".repeat(1_000_000)), Err(ModelfileError::NoFrom));
    }

    #[test]
    fn templates_must_close_what_they_open() {
        for good in [
            "",
            "plain }}",
            "{{ .Prompt }}",
            "{{- if .System }}a{{ else }}b{{- end -}}",
            "{{ \"}}\" }}",
            "{{/* }} */}}x",
            "{{ range .Messages }}{{ if .x }}{{ end }}{{ end }}",
            "{{ `{{` }}",
        ] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        for bad in ["{{ .Prompt", "{{ if .x }}", "{{ end }}", "{{ \"}}", "{{/* }}"] {
            assert!(check_template(bad).unwrap_err().starts_with("template error: "), "{bad}");
        }
    }

    #[test]
    fn known_options_must_have_their_types() {
        let check = |value: Value| check_parameters(value.as_object().unwrap());
        assert_eq!(check(json!({"temperature": 1, "num_ctx": 4096.0, "stop": "x", "new": {}, "top_k": null})), Ok(()));
        assert_eq!(check(json!({"temperature": "hot"})).unwrap_err(), "option \"temperature\" must be of type float32");
        assert_eq!(check(json!({"num_ctx": true})).unwrap_err(), "option \"num_ctx\" must be of type integer");
        assert_eq!(check(json!({"stop": [1]})).unwrap_err(), "option \"stop\" must be of an array of strings");
        assert_eq!(check(json!({"ollmlx_memory_limit": "2GB", "ollmlx_priority": -3})), Ok(()));
        assert_eq!(check(json!({"ollmlx_memory_limit": 2_000_000})), Ok(()));
        let bytes = format!("option \"ollmlx_memory_limit\" must be {MODEL_LIMIT_RULE}");
        for value in [json!("much"), json!(0), json!("0"), json!(999_999), json!(-1), json!(true)] {
            assert_eq!(check(json!({"ollmlx_memory_limit": value})).unwrap_err(), bytes);
        }
        let priority = "option \"ollmlx_priority\" must be a whole number from -1000 to 1000";
        for value in [json!(PRIORITY_MAX + 1), json!(99_999), json!("5"), json!(1.5)] {
            assert_eq!(check(json!({"ollmlx_priority": value})).unwrap_err(), priority);
        }
        assert_eq!(check(json!({"ollmlx_priority": -PRIORITY_MAX})), Ok(()));
        assert_eq!(check(json!({"use_mmap": 1})).unwrap_err(), "option \"use_mmap\" must be of type boolean");
    }
}
