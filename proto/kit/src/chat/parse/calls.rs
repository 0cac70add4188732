//! Readers of calls that are JSON inside, alone or after a name.

use std::collections::HashMap;

use ollmlx_proto::ToolSpec;
use serde_json::{Deserializer, Map, Value};

/// A call, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

/// The tools of a request, for typing arguments that models write as plain text.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools {
    /// Properties by tool.
    properties: HashMap<String, Value>,
}

impl Tools {
    pub(super) fn new(specs: &[ToolSpec]) -> Self {
        let properties = |spec: &ToolSpec| {
            let definition: Value = serde_json::from_str(&spec.definition.0).unwrap_or(Value::Null);
            let found = definition.pointer("/function/parameters/properties").cloned();
            (spec.name.clone(), found.unwrap_or(Value::Null))
        };
        Self { properties: specs.iter().map(properties).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.properties.is_empty()
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.properties.contains_key(name)
    }

    /// The value of an argument that was written as `text`: what its schema says; where that says nothing, JSON if it
    /// is JSON, else a string.
    pub(super) fn typed(&self, tool: &str, argument: &str, text: &str) -> Value {
        let schema = self.properties.get(tool).and_then(|properties| properties.get(argument));
        let kinds: Vec<&str> = match schema.and_then(|schema| schema.get("type")) {
            Some(Value::String(kind)) => vec![kind.as_str()],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if kinds == ["string"] {
            return Value::from(text);
        }
        let read = match text.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            trimmed => serde_json::from_str(trimmed).unwrap_or_else(|_| Value::from(text)),
        };
        let kind = match &read {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
        // A string where the schema also allows strings: `12` for ["string","null"] is text.
        if !fits && kinds.contains(&"string") { Value::from(text) } else { read }
    }
}

/// Follows JSON brackets and strings, byte by byte.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonScan {
    /// Takes more bytes. Returns how many of them belong to the value, once it has ended.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(index + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Whether `text`, from its first bracket, ends inside a string.
    pub(super) fn ends_in_string(text: &str) -> bool {
        let mut scan = Self::default();
        let mut rest = text.find(['{', '[']).map_or(&[][..], |start| &text.as_bytes()[start..]);
        while let Some(length) = scan.push(rest) {
            rest = &rest[length..];
        }
        scan.in_string
    }
}

/// Objects with a name and arguments: one, several after another, or a list.
pub(super) fn json(text: &str, _: &Tools) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    for value in Deserializer::from_str(text).into_iter::<Value>() {
        match value.ok()? {
            Value::Array(items) => {
                for item in items {
                    calls.push(call(item)?);
                }
            }
            object => calls.push(call(object)?),
        }
    }
    (!calls.is_empty()).then_some(calls)
}

/// The same, where every name is one of the request's tools: these calls have no marks, and an answer may be JSON.
pub(super) fn json_of_known(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    json(text, tools).filter(|calls| calls.iter().all(|call| tools.knows(&call.name)))
}

/// After `<|python_tag|>`: JSON, or `tool.call(key="value")`.
pub(super) fn python_tag(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with(['{', '[']) {
        let text = text.replace("};", "}\n");
        return json(&text, tools);
    }
    let mut calls = super::literal::pythonic(text, tools)?;
    for call in &mut calls {
        if let Some(name) = call.name.strip_suffix(".call") {
            call.name = name.to_owned();
        }
    }
    Some(calls)
}

/// A JSON list, or `NAME[ARGS]{…}` with an optional `[CALL_ID]…` between.
pub(super) fn mistral(text: &str, tools: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with(['[', '{']) {
        return json(text, tools);
    }
    let start = text.find('{')?;
    let head = text[..start].trim();
    let head = head.strip_suffix("[ARGS]").unwrap_or(head);
    let name = head.split_once("[CALL_ID]").map_or(head, |(name, _)| name);
    Some(vec![named(name, &text[start..])?])
}

/// `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`, repeated.
pub(super) fn kimi(text: &str, _: &Tools) -> Option<Vec<Call>> {
    sections(text, "<|tool_call_begin|>", "<|tool_call_end|>", |section| {
        let (id, arguments) = section.split_once("<|tool_call_argument_begin|>")?;
        let name = id.trim().rsplit_once(':').map_or(id.trim(), |(name, _)| name);
        named(name.strip_prefix("functions.").unwrap_or(name), arguments)
    })
}

/// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME` and a fenced object, or `NAME<｜tool▁sep｜>{…}`.
pub(super) fn deepseek(text: &str, _: &Tools) -> Option<Vec<Call>> {
    sections(text, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", |section| {
        let (left, right) = section.split_once("<｜tool▁sep｜>")?;
        let start = right.find('{')?;
        if left.trim() != "function" {
            return named(left, &right[start..]);
        }
        let name = right[..start].trim().trim_end_matches("json").trim_end_matches("```");
        named(name, right[start..].trim().trim_end_matches("```"))
    })
}

/// Everything must be sections; a last one may lack its end if nothing else is missing.
fn sections(text: &str, open: &str, close: &str, read: impl Fn(&str) -> Option<Call>) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix(open)?;
        let (section, tail) = rest.split_once(close).unwrap_or((rest, ""));
        calls.push(read(section)?);
        rest = tail.trim();
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call from its name and the text of its arguments.
pub(super) fn named(name: &str, arguments: &str) -> Option<Call> {
    let name = name.trim();
    if name.is_empty() || name.len() > 256 || name.contains(char::is_whitespace) {
        return None;
    }
    let arguments = match arguments.trim() {
        "" => Map::new(),
        text => object(serde_json::from_str(text).ok()?)?,
    };
    Some(Call { name: name.to_owned(), arguments })
}

fn call(value: Value) -> Option<Call> {
    let Value::Object(mut fields) = value else { return None };
    // One dialect's own shape, repeated by some models.
    if !fields.contains_key("name")
        && let Some(function) = fields.remove("function")
    {
        match function {
            Value::String(name) => {
                fields.insert("name".into(), name.into());
            }
            function => return call(function),
        }
    }
    let name = ["name", "tool_name"].iter().find_map(|key| fields.get(*key)?.as_str().map(str::to_owned))?;
    let arguments = ["arguments", "parameters", "args"].iter().find_map(|key| fields.remove(*key));
    let arguments = arguments.map_or(Some(Map::new()), object)?;
    (!name.is_empty()).then_some(Call { name, arguments })
}

fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object),
        Value::Null => Some(Map::new()),
        // Arguments as a string of JSON.
        Value::String(text) => match serde_json::from_str(&text).ok()? {
            Value::Object(object) => Some(object),
            _ => None,
        },
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}
