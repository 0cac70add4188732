//! Reading a client's JSON by Go's rules, which the clients of Ollama are used to.
//!
//! The first value of the body counts and whatever follows is ignored; broken UTF-8 and lone surrogates become
//! U+FFFD; keys match exactly first and without case second, the last duplicate wins; `null` is the same as absent.
//! Nesting ends at serde_json's own limit, 128 (`JSON_DEPTH_MAX`). Texts of errors follow Go where a client may
//! know them; the status is always 400.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Rejection;

/// The fields of one JSON object, each taken at most once.
#[derive(Clone, Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// Go's name of the struct, for texts of errors.
    kind: &'static str,
}

/// Parses a body whose top level is an object. `missing` is the text for an empty one.
///
/// # Errors
/// 400 for anything else.
pub fn parse(body: &[u8], kind: &'static str, missing: &str) -> Result<Fields, Rejection> {
    let text = String::from_utf8_lossy(body);
    if text.trim_ascii().is_empty() {
        return Err(Rejection::bad_request(missing));
    }
    let value = match first_value(&text) {
        Ok(value) => value,
        Err(error) if error.to_string().contains("surrogate") || error.to_string().contains("hex escape") => {
            first_value(&without_lone_surrogates(&text)).map_err(|error| syntax(&error))?
        }
        Err(error) => return Err(syntax(&error)),
    };
    match value {
        Value::Object(map) => Ok(Fields { map, kind }),
        Value::Null => Ok(Fields { map: Map::new(), kind }),
        other => Err(Rejection::bad_request(format!(
            "json: cannot unmarshal {} into Go value of type {kind}",
            type_name(&other)
        ))),
    }
}

fn first_value(text: &str) -> Result<Value, serde_json::Error> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    values.next().unwrap_or(Ok(Value::Null))
}

fn syntax(error: &serde_json::Error) -> Rejection {
    if error.is_eof() {
        return Rejection::bad_request("unexpected EOF");
    }
    Rejection::bad_request(format!("invalid JSON: {error}"))
}

/// Go turns `\ud800` without its other half into U+FFFD; serde_json refuses it.
fn without_lone_surrogates(text: &str) -> String {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u16> {
        let digits = bytes.get(at..at + 6)?;
        let hex = digits.strip_prefix(b"\\u").filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let mut clean = String::with_capacity(text.len());
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => {
                clean.push_str(&text[copied..at]);
                clean.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            // Skips the escaped character, so that `\\ud800` stays what it is. Both are one byte or the start of
            // more, and the slices above begin and end at backslashes only.
            _ => at += 2,
        }
    }
    clean.push_str(&text[copied..]);
    clean
}

/// Go's word for the type of a value.
#[must_use]
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Fields {
    /// The fields of an object inside another.
    #[must_use]
    pub fn of(map: Map<String, Value>, kind: &'static str) -> Self {
        Self { map, kind }
    }

    /// The fields of a value that must be an object.
    ///
    /// # Errors
    /// 400 where it is none.
    pub fn of_value(value: Value, kind: &'static str) -> Result<Self, Rejection> {
        match value {
            Value::Object(map) => Ok(Self { map, kind }),
            other => Err(Rejection::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type {kind}",
                type_name(&other)
            ))),
        }
    }

    /// Takes a field's value, whatever its type. `None` for `null`.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        let exact = self.map.get(name).is_some_and(|value| !value.is_null());
        let found = if exact {
            self.map.get_mut(name)
        } else {
            let mut found = None;
            for (key, value) in &mut self.map {
                if key.eq_ignore_ascii_case(name) && !value.is_null() {
                    found = Some(value);
                }
            }
            found
        };
        found.map(std::mem::take)
    }

    /// Takes a text.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub fn string(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mismatch(name, &other, "string")),
        }
    }

    /// Takes a text; absent and empty are the same.
    ///
    /// # Errors
    /// As [`Fields::string`].
    pub fn filled(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        Ok(self.string(name)?.filter(|text| !text.is_empty()))
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Rejection> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(other) => Err(self.mismatch(name, &other, "bool")),
        }
    }

    /// Takes a whole number; one written with a fraction of zero is fine.
    ///
    /// # Errors
    /// 400 where it is something else, or beyond 64 bits.
    pub fn integer(&mut self, name: &'static str) -> Result<Option<i64>, Rejection> {
        let Some(value) = self.value(name) else { return Ok(None) };
        if let Some(number) = value.as_i64() {
            return Ok(Some(number));
        }
        match value.as_f64() {
            // 2^53: beyond it a float is no exact whole number.
            Some(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => Ok(Some(number as i64)),
            _ => Err(self.mismatch(name, &value, "int")),
        }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub fn number(&mut self, name: &'static str) -> Result<Option<f64>, Rejection> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.mismatch(name, &value, "float64"))
    }

    /// Takes an array; absent is empty.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub fn array(&mut self, name: &'static str) -> Result<Vec<Value>, Rejection> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(self.mismatch(name, &other, "[]interface {}")),
        }
    }

    /// Takes an object; absent is empty.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub fn object(&mut self, name: &'static str) -> Result<Map<String, Value>, Rejection> {
        match self.value(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(other) => Err(self.mismatch(name, &other, "map[string]interface {}")),
        }
    }

    fn mismatch(&self, name: &str, value: &Value, wanted: &str) -> Rejection {
        let shown = match value {
            Value::Number(number) => Cow::Owned(format!("number {number}")),
            other => Cow::Borrowed(type_name(other)),
        };
        Rejection::bad_request(format!(
            "json: cannot unmarshal {shown} into Go struct field {}.{name} of type {wanted}",
            self.kind
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Result<Fields, Rejection> {
        parse(text.as_bytes(), "GenerateRequest", "missing request body")
    }

    #[test]
    fn keys_duplicates_and_trailing_bytes_follow_go() {
        for (text, expected) in [
            (r#"{"model":"a"} trailing"#, Some("a")),
            (r#"{"MODEL":"a"}"#, Some("a")),
            (r#"{"MODEL":"a","model":"b"}"#, Some("b")),
            (r#"{"model":"a","model":"b"}"#, Some("b")),
            (r#"{"model":null}"#, None),
            ("null", None),
            (r#"{"model":"\ud83d\ude00 \ud800 \\ud800"}"#, Some("😀 \u{fffd} \\ud800")),
            (r#"{"model":"\udc00é\ud800"}"#, Some("\u{fffd}é\u{fffd}")),
        ] {
            let found = fields(text).and_then(|mut fields| fields.string("model")).unwrap();
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        let broken = parse(b"{\"model\":\"a\xff\"}", "X", "EOF").unwrap().string("model").unwrap();
        assert_eq!(broken.as_deref(), Some("a\u{fffd}"));
    }

    #[test]
    fn row_54_bad_bodies_are_400_and_say_why() {
        let deep = "[".repeat(100_000);
        for (text, expected) in [
            ("", "missing request body"),
            (" \n", "missing request body"),
            ("{\"a\":", "unexpected EOF"),
            ("[1]", "json: cannot unmarshal array into Go value of type GenerateRequest"),
            ("{x", "invalid JSON: "),
            ("{\"a\":1e999}", "invalid JSON: number out of range"),
            (deep.as_str(), "invalid JSON: recursion limit"),
        ] {
            let refused = fields(text).unwrap_err();
            assert_eq!(refused.status, 400);
            assert!(refused.message.starts_with(expected), "{} for {:.20}", refused.message, text);
        }
        let refused = fields(r#"{"stream":"yes"}"#).unwrap().boolean("stream").unwrap_err();
        let expected = "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool";
        assert_eq!(refused.message, expected);
    }
}
