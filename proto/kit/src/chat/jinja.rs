//! Jinja chat templates with the settings and functions of Hugging Face's.
//!
//! Templates come out of model files and are hostile: no loader exists (so `include`, `import` and `extends` fail), time
//! and memory are bounded by fuel (every step, and every 64 bytes made, costs one; `bounds` sees to what the engine can't
//! charge for), and a deep stack is used since parser and interpreter recurse.

use chrono::{DateTime, Local};
use minijinja::machinery::{eval, make_string_output};
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context, syntax::SyntaxConfig};
use ollmlx_proto::{Failure, FailureKind, ThinkMode};
use serde_json::Value as Json;

use super::bounds;
use super::json_text::Style;
use super::view::{Conversation, PastCall, Turn, level_word};
use super::{Words, on_deep_stack};
use crate::limits;

/// Marks errors that the template itself raised.
const REFUSAL: &str = "refused: ";

/// Why a render failed.
pub(super) enum RenderError {
    /// The template called `raise_exception` with this text.
    Refused(String),
    /// Anything else.
    Failed(Failure),
}

/// One template, with its environment.
pub(super) struct JinjaTemplate {
    environment: Environment<'static>,
    source: String,
}

impl JinjaTemplate {
    /// Prepares `source`; errors in it show when it is checked or rendered.
    pub(super) fn new(source: &str) -> Self {
        let is_refused = source.len() > limits::TEMPLATE_BYTES_MAX;
        let source = if is_refused { source.to_owned() } else { without_generation(source) };
        Self { environment: environment(), source }
    }

    /// Whether the source parses.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.source.len() > limits::TEMPLATE_BYTES_MAX {
            return Err(Failure::new(FailureKind::TemplateFailed, "this model's chat template is too large"));
        }
        if !is_shallow(&self.source) {
            return Err(Failure::new(
                FailureKind::TemplateFailed,
                "an expression of this model's chat template is too long",
            ));
        }
        on_deep_stack(|| bounds::compile(&self.source, syntax()).map(drop).map_err(|error| failure(&error)))?
    }

    /// Renders.
    pub(super) fn render(&self, conversation: &Conversation, words: &Words) -> Result<String, RenderError> {
        let result = on_deep_stack(|| {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel(conversation)));
            let template = bounds::compile(&self.source, syntax())?;
            let mut text = String::new();
            let variables = variables(conversation, words);
            let (code, blocks) = (&template.instructions, &template.blocks);
            // What is written costs fuel: there is no more of it than fuel pays for.
            eval(&environment, code, variables, blocks, &mut make_string_output(&mut text), AutoEscape::None)?;
            Ok(text)
        });
        match result.map_err(RenderError::Failed)? {
            Ok(text) => Ok(text),
            Err(error) => Err(match refusal(&error) {
                Some(text) => RenderError::Refused(text),
                None => RenderError::Failed(failure(&error)),
            }),
        }
    }
}

/// Enough for any sane template over this conversation, a step per byte for what copies and reads it.
fn fuel(conversation: &Conversation) -> u64 {
    let turns = (conversation.turns.len() + conversation.tools.len()) as u64;
    let fuel = limits::TEMPLATE_FUEL_BASE + turns * limits::TEMPLATE_FUEL_PER_TURN + conversation.bytes as u64;
    fuel.min(limits::TEMPLATE_FUEL)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_debug(false);
    environment.set_recursion_limit(100);
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |state: &State<'_, '_>, text: Value| -> Result<Value, Error> {
        bounds::read(state, &text)?;
        Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{text}")))
    });
    bounds::equip(&mut environment);
    environment
}

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the default delimiters differ")
}

/// `None` for a format that chrono does not know, whose `to_string` would panic.
fn strftime(now: &DateTime<Local>, format: &str) -> Option<String> {
    use std::fmt::Write as _;
    let mut text = String::new();
    if format.len() > 256 || write!(text, "{}", now.format(format)).is_err() {
        return None;
    }
    Some(text)
}

fn to_json(state: &State<'_, '_>, value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = Style::from_kwargs(indent.as_ref(), &kwargs)?;
    let mut out = String::new();
    style.write(state, &mut out, value, 0)?;
    Ok(Value::from(out))
}

/// Python's methods: two that the contributed set lacks, then that set.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [affix]) = (value.as_str(), args)
        && let Some(affix) = affix.as_str()
    {
        match name {
            "removeprefix" => return Ok(Value::from(text.strip_prefix(affix).unwrap_or(text))),
            "removesuffix" => return Ok(Value::from(text.strip_suffix(affix).unwrap_or(text))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `{% generation %}` marks what is trained on; its content is plain. The tags become a condition that holds, which
/// keeps their white-space control.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // The end of `{%}` is not part of its beginning.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (tag, tail) = rest[start..].split_at(length + 4);
        out.push_str(&rest[..start]);
        match tag[2..length + 2].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// Whether every expression and every chain of conditions is short enough for a recursive parser.
fn is_shallow(source: &str) -> bool {
    let mut rest = source;
    let mut branches = 0;
    while let Some(start) = rest.find("{") {
        rest = &rest[start..];
        let close = match rest.as_bytes().get(1) {
            Some(b'#') => {
                rest = rest[2..].split_once("#}").map_or("", |(_, tail)| tail);
                continue;
            }
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            _ => {
                rest = &rest[1..];
                continue;
            }
        };
        rest = &rest[2..];
        let Some(length) = tag_length(rest, close) else { return false };
        match rest[..length].trim_start_matches(['-', '+']).split_whitespace().next() {
            Some("elif") => branches += 1,
            // Its content is text.
            Some("raw" | "raw-" | "raw+") => {
                rest = after_raw(rest);
                continue;
            }
            _ => {}
        }
        rest = rest.get(length..).unwrap_or("");
        if branches > limits::TEMPLATE_BRANCHES_MAX {
            return false;
        }
    }
    true
}

/// What follows the tag that ends raw text: nothing less than that tag ends it, or what is raw here would be code there.
fn after_raw(mut rest: &str) -> &str {
    while let Some((_, tail)) = rest.split_once("{%") {
        let word = tail.strip_prefix(['-', '+']).unwrap_or(tail).trim_start();
        let end = word.strip_prefix("endraw").map(str::trim_start);
        let end = end.map(|end| end.strip_prefix(['-', '+']).unwrap_or(end));
        match end.and_then(|end| end.strip_prefix("%}")) {
            Some(after) => return after,
            None => rest = tail,
        }
    }
    ""
}

/// Bytes up to `close`, or to the end; `None` where there is too much code.
fn tag_length(text: &str, close: &str) -> Option<usize> {
    let mut code = 0;
    let mut quote = None;
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match (quote, character) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, _) if text[index..].starts_with(close) => return Some(index),
            (None, _) if character.is_whitespace() => {}
            (None, _) => code += 1,
        }
        if code > limits::TEMPLATE_EXPRESSION_CHARS_MAX {
            return None;
        }
    }
    Some(text.len())
}

fn variables(conversation: &Conversation, words: &Words) -> Value {
    let messages: Vec<Value> = conversation.turns.iter().map(message).collect();
    let tools = match conversation.tools.as_slice() {
        [] => Value::from(()),
        tools => tools.iter().map(value).collect(),
    };
    let asked_at = conversation.asked_at;
    let strftime_now = Value::from_function(move |format: &str| -> Result<String, Error> {
        strftime(&asked_at, format)
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "strftime_now: not a date format"))
    });
    let base = context! {
        strftime_now => strftime_now,
        messages => messages,
        tools => tools,
        add_generation_prompt => true,
        bos_token => words.bos.as_str(),
        eos_token => words.eos.as_str(),
    };
    let thinking = match conversation.think {
        ThinkMode::Unset => return base,
        ThinkMode::Off => context! { enable_thinking => false, thinking => false },
        ThinkMode::On(level) => {
            context! { enable_thinking => true, thinking => true, reasoning_effort => level_word(level) }
        }
    };
    context! { ..base, ..thinking }
}

fn message(turn: &Turn) -> Value {
    let mut pairs = vec![("role", Value::from(turn.role.as_str())), ("content", Value::from(turn.content.as_str()))];
    if !turn.thinking.is_empty() {
        pairs.push(("thinking", Value::from(turn.thinking.as_str())));
        pairs.push(("reasoning_content", Value::from(turn.thinking.as_str())));
    }
    if !turn.calls.is_empty() {
        pairs.push(("tool_calls", turn.calls.iter().map(call).collect()));
    }
    if let Some(name) = &turn.tool_name {
        pairs.push(("name", Value::from(name.as_str())));
        pairs.push(("tool_name", Value::from(name.as_str())));
    }
    if let Some(id) = &turn.tool_call_id {
        pairs.push(("tool_call_id", Value::from(id.as_str())));
    }
    Value::from_pairs(pairs)
}

fn call(call: &PastCall) -> Value {
    let function =
        Value::from_pairs([("name", Value::from(call.name.as_str())), ("arguments", value(&call.arguments))]);
    let mut pairs = vec![("type", Value::from("function")), ("function", function)];
    if let Some(id) = &call.id {
        pairs.push(("id", Value::from(id.as_str())));
    }
    Value::from_pairs(pairs)
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(object) => Value::from_pairs(object.iter().map(|(key, item)| (key.as_str(), value(item)))),
    }
}

fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        let own = current.downcast_ref::<Error>().and_then(|error| error.detail()?.strip_prefix(REFUSAL));
        if let Some(text) = own {
            return Some(text.chars().take(500).collect());
        }
        cause = current.source();
    }
    None
}

fn failure(error: &Error) -> Failure {
    let public = match error.kind() {
        ErrorKind::OutOfFuel => "this model's chat template takes too many steps".to_owned(),
        _ => format!("this model's chat template failed: {error}").chars().take(500).collect(),
    };
    let detail: String = format!("{error:#}").chars().take(2000).collect();
    Failure::new(FailureKind::TemplateFailed, public).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_date_formats_are_no_panic() {
        let now = Local::now();
        assert!(strftime(&now, "%d %b %Y").is_some());
        assert_eq!(strftime(&now, "%Q"), None);
        assert_eq!(strftime(&now, &"%Y".repeat(300)), None);
    }

    #[test]
    fn generation_tags_keep_their_space_control() {
        let check = |source: &str, expect: &str| assert_eq!(without_generation(source), expect);
        check("a{%- generation -%}b{% endgeneration %}c", "a{%- if true -%}b{% endif %}c");
        check("{%}a{% generation %}", "{%}a{% generation %}");
        check("{%%}{% generation %}", "{%%}{% if true %}");
        check("{% if generation %}x{% endif %}{%", "{% if generation %}x{% endif %}{%");
    }

    #[test]
    fn depth_hides_neither_behind_a_comment_nor_behind_raw_text() {
        let deep = format!("{{{{ {}1 }}}}", "-".repeat(limits::TEMPLATE_EXPRESSION_CHARS_MAX + 1));
        for hidden in [
            "{#} {% raw %} #}",
            "{#} {# #}",
            "{% raw %} endraw {# {% endraw %}",
            "{% raw %}{% endraw x {# {%- endraw -%}",
            "{%+ raw %}{{ 'endraw {% endraw %}",
        ] {
            assert!(!is_shallow(&format!("{hidden}{deep}")), "{hidden}");
        }
        assert!(is_shallow(&format!("{{% raw %}}{deep}{{% endraw %}}")), "raw text is no code");
        assert!(is_shallow(&format!("{{# {deep} #}}{{{{ x }}}}")), "neither is a comment");
    }
}
