//! Readers of calls that are markup inside: arguments are text between tags, typed by the tool's schema.

use serde_json::{Map, Value};

use super::calls::{self, Call, Tools};

/// The inside of `<tool_call>`, which three families share: JSON, `<function=NAME>`, or `NAME` and `<arg_key>` pairs.
pub(super) fn tag(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with(['{', '[']) {
        return calls::json(text, tools);
    }
    if text.starts_with("<function=") {
        return functions(text, tools);
    }
    Some(vec![pairs(text, ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"], tools)?])
}

/// `NAME` and pairs, with longer tags.
pub(super) fn longcat(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with('{') {
        return calls::json(text, tools);
    }
    const TAGS: [&str; 4] = ["<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>"];
    Some(vec![pairs(text, TAGS, tools)?])
}

/// `<invoke name="f"><parameter name="k">v</parameter></invoke>`, repeated.
pub(super) fn minimax(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    attributes(text, ["invoke", "parameter"], "", tools)
}

/// The same with a prefix in each tag, and types as attributes.
pub(super) fn dsml(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    attributes(text, ["invoke", "parameter"], "｜DSML｜", tools)
}

/// What follows `<function name=`, up to `</function>`.
pub(super) fn function(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    attributes(&format!("<function name={text}</function>"), ["function", "param"], "", tools)
}

/// `<function=NAME><parameter=K>\nVALUE\n</parameter></function>`, repeated.
fn functions(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.strip_prefix("<function=")?.split_once('>')?;
        // The last function may contain its own end in an argument; the others may not.
        let next = tail.find("<function=").unwrap_or(tail.len());
        let end = tail[..next].rfind("</function>")?;
        let mut arguments = Map::new();
        let mut inside = tail[..end].trim();
        while !inside.is_empty() {
            let (key, tail) = inside.strip_prefix("<parameter=")?.split_once('>')?;
            let next = tail.find("<parameter=").unwrap_or(tail.len());
            // Some models leave the end tag out.
            let (value, skip) = match tail[..next].rfind("</parameter>") {
                Some(end) => (&tail[..end], end + "</parameter>".len()),
                None => (&tail[..next], next),
            };
            arguments.insert(key.trim().to_owned(), tools.typed(name.trim(), key.trim(), without_breaks(value)));
            inside = tail[skip..].trim();
        }
        calls.push(made(name, arguments)?);
        rest = tail[end + "</function>".len()..].trim();
    }
    (!calls.is_empty()).then_some(calls)
}

fn pairs(text: &str, [open, close, value_open, value_close]: [&str; 4], tools: &Tools) -> Option<Call> {
    let (name, mut rest) = text.split_at(text.find(open).unwrap_or(text.len()));
    let name = name.trim();
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, tail) = rest.strip_prefix(open)?.split_once(close)?;
        let (value, tail) = tail.trim_start().strip_prefix(value_open)?.split_once(value_close)?;
        arguments.insert(key.trim().to_owned(), tools.typed(name, key.trim(), value));
        rest = tail.trim();
    }
    made(name, arguments)
}

fn attributes(text: &str, [call, argument]: [&str; 2], prefix: &str, tools: &Tools) -> Option<Vec<Call>> {
    let [call_close, argument_close] = [call, argument].map(|word| format!("</{prefix}{word}>"));
    let [call_open, argument_open] = [call, argument].map(|word| format!("<{prefix}{word} "));
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (head, tail) = rest.strip_prefix(&call_open)?.split_once('>')?;
        let (inside, tail) = tail.split_once(&call_close)?;
        let name = attribute(head, "name")?;
        let mut arguments = Map::new();
        let mut inside = inside.trim();
        while !inside.is_empty() {
            let (head, tail) = inside.strip_prefix(&argument_open)?.split_once('>')?;
            let (value, tail) = tail.split_once(&argument_close)?;
            let key = attribute(head, "name")?;
            let value = match attribute(head, "string") {
                Some("true") => Value::from(value),
                Some("false") => serde_json::from_str(value.trim()).ok()?,
                _ => tools.typed(name, key, without_breaks(value)),
            };
            arguments.insert(key.to_owned(), value);
            inside = tail.trim();
        }
        calls.push(made(name, arguments)?);
        rest = tail.trim();
    }
    (!calls.is_empty()).then_some(calls)
}

/// The value of `name="…"` in the head of a tag.
fn attribute<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let (_, tail) = head.split_once(name)?;
    let tail = tail.trim_start().strip_prefix('=')?.trim_start();
    match tail.chars().next()? {
        quote @ ('"' | '\'') => tail[1..].split_once(quote).map(|(value, _)| value),
        _ => tail.split_whitespace().next(),
    }
}

/// One line break less on each side.
fn without_breaks(text: &str) -> &str {
    let text = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n')).unwrap_or(text);
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text)
}

fn made(name: &str, arguments: Map<String, Value>) -> Option<Call> {
    let mut call = calls::named(name, "")?;
    call.arguments = arguments;
    Some(call)
}
