//! A client's JSON as it came: checked once, found in by hand, and built only where somebody asks for it.
//!
//! A tree of values takes up to seventy times the bytes of its text, so there is none. What is built (texts, lists, small
//! values) is charged to the budget of its body before it is built: twice the body and [`BODY_BUILT_SPARE_BYTES`]. With the
//! body itself that is the promise of `docs/conformance.md`: a request makes the server grow by three times its body and 4 MiB.
//! What no field of ours holds (schemas, arguments) stays text, and whoever uses it parses it.
//!
//! Reading follows Go's rules, which the clients of Ollama are used to: the first value of the body counts and whatever
//! follows is ignored; broken UTF-8 and lone surrogates become U+FFFD. Nesting ends at `JSON_DEPTH_MAX`.

use std::borrow::Cow;
use std::cell::Cell;

use serde::de::IgnoredAny;
use serde_json::{Number, Value};

use super::Rejection;
use crate::limits::{BODY_BUILT_SPARE_BYTES, FREE_JSON_VALUES_MAX, JSON_DEPTH_MAX};

/// What a [`Value`] takes at most, its share of a growing map or list included.
const VALUE_BYTES: usize = 512;
/// Bytes of a key that is looked into for escapes: the longest name of ours, with every letter escaped.
const ESCAPED_NAME_BYTES_MAX: usize = 256;
/// Characters of a client's text that an error repeats.
const SHOWN_CHARS_MAX: usize = 200;

/// The bytes of a body, and what may still be built of them.
#[derive(Debug)]
pub struct JsonBody<'a> {
    bytes: &'a [u8],
    bytes_left: Cell<usize>,
    values_left: Cell<usize>,
}

impl<'a> JsonBody<'a> {
    /// Of a whole body.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let (bytes_left, values_left) = (Cell::new(budget(bytes)), Cell::new(FREE_JSON_VALUES_MAX));
        Self { bytes, bytes_left, values_left }
    }

    /// Bytes of what was built so far.
    #[must_use]
    pub fn built_bytes(&self) -> usize {
        budget(self.bytes) - self.bytes_left.get()
    }

    /// Its first value. `missing` is the text for an empty one.
    ///
    /// # Errors
    /// 400 where it is no JSON, or nested too deeply.
    pub(super) fn root(&self, missing: &str) -> Result<RawJson<'_>, Rejection> {
        let text = self.bytes.trim_ascii_start();
        if text.is_empty() {
            return Err(Rejection::bad_request(missing));
        }
        if matches!(text.first(), Some(b'{' | b'[')) && container_end(text, JSON_DEPTH_MAX - 1).is_none() {
            return Err(Rejection::bad_request("invalid JSON: recursion limit exceeded"));
        }
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Err(error)) => Err(syntax(&error)),
            _ => Ok(RawJson { text: text[..values.byte_offset()].trim_ascii(), body: self }),
        }
    }

    /// Counts what is about to be allocated at once.
    ///
    /// # Errors
    /// 413 where the budget doesn't hold it.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Rejection> {
        let left = self.bytes_left.get().checked_sub(allocation(bytes)).ok_or_else(too_much)?;
        self.bytes_left.set(left);
        Ok(())
    }

    /// Counts the values of a text that somebody will parse.
    ///
    /// # Errors
    /// 413 where the body has too many of them.
    pub(super) fn count_values(&self, text: &[u8]) -> Result<(), Rejection> {
        let left = self.values_left.get().checked_sub(value_count(text)).ok_or_else(|| {
            let text = format!("schemas, tools and arguments have over {FREE_JSON_VALUES_MAX} values in all");
            Rejection::new(413, text)
        })?;
        self.values_left.set(left);
        Ok(())
    }

    /// An empty list with room for so many.
    ///
    /// # Errors
    /// As [`JsonBody::charge`].
    pub(super) fn list<T>(&self, count: usize) -> Result<Vec<T>, Rejection> {
        self.charge(count.saturating_mul(size_of::<T>()))?;
        Ok(Vec::with_capacity(count))
    }

    /// A text of these bytes, which were charged; broken UTF-8 is mended.
    ///
    /// # Errors
    /// As [`JsonBody::charge`].
    pub(super) fn utf8(&self, bytes: Vec<u8>) -> Result<String, Rejection> {
        let broken = match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(error) => error.into_bytes(),
        };
        let mended = |chunk: std::str::Utf8Chunk<'_>| if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
        let length = broken.utf8_chunks().map(|chunk| chunk.valid().len() + mended(chunk).len()).sum();
        self.charge(length)?;
        let mut text = String::with_capacity(length);
        for chunk in broken.utf8_chunks() {
            text.push_str(chunk.valid());
            text.push_str(mended(chunk));
        }
        Ok(text)
    }
}

fn budget(body: &[u8]) -> usize {
    2 * body.len() + BODY_BUILT_SPARE_BYTES
}

/// What the system's allocator sets aside for so many bytes.
fn allocation(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes.saturating_add(8 + 15) & !15).max(32) }
}

fn too_much() -> Rejection {
    let text = "the request has too many small parts for its size; send fewer messages, tools or values at once";
    Rejection::new(413, text)
}

pub(super) fn syntax(error: &serde_json::Error) -> Rejection {
    if error.is_eof() {
        return Rejection::bad_request("unexpected EOF");
    }
    Rejection::bad_request(format!("invalid JSON: {error}"))
}

/// As much of a client's text as an error repeats.
pub(super) fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// Whether a text of its own is a JSON object.
pub(super) fn is_object(text: &str) -> bool {
    let text = text.trim_ascii().as_bytes();
    text.starts_with(b"{")
        && container_end(text, JSON_DEPTH_MAX - 1).is_some()
        && serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JsonKind {
    /// Nothing.
    Null,
    /// A truth value.
    Bool,
    /// Any number.
    Number,
    /// A text.
    String,
    /// A list.
    Array,
    /// A map.
    Object,
}

impl JsonKind {
    /// Go's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Number => "number",
            Self::String => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

/// A value as it stands in a body that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawJson<'a> {
    text: &'a [u8],
    /// What pays for whatever is made of it.
    pub(super) body: &'a JsonBody<'a>,
}

impl<'a> RawJson<'a> {
    /// What it is, by its first byte.
    pub(super) fn kind(self) -> JsonKind {
        match self.text.first() {
            None | Some(b'n') => JsonKind::Null,
            Some(b't' | b'f') => JsonKind::Bool,
            Some(b'"') => JsonKind::String,
            Some(b'[') => JsonKind::Array,
            Some(b'{') => JsonKind::Object,
            Some(_) => JsonKind::Number,
        }
    }

    /// Bytes as they stand.
    pub(super) fn size(self) -> usize {
        self.text.len()
    }

    /// Whether it is `true`.
    pub(super) fn is_true(self) -> bool {
        self.text == b"true"
    }

    /// Elements of an array; of anything else, none.
    pub(super) fn elements(self) -> Elements<'a> {
        let rest = if self.kind() == JsonKind::Array { &self.text[1..] } else { &[] };
        Elements { rest, body: self.body }
    }

    /// Keys and values of an object; of anything else, none.
    pub(super) fn entries(self) -> Entries<'a> {
        let rest = if self.kind() == JsonKind::Object { &self.text[1..] } else { &[] };
        Entries(Elements { rest, body: self.body })
    }

    /// The value of this very key; the last one counts.
    pub(super) fn get(self, name: &str) -> Option<Self> {
        let same = self.entries().filter(|(key, _)| *key.name() == *name.as_bytes());
        same.last().map(|(_, value)| value)
    }

    /// All elements of an array, each read.
    pub(super) fn list<T>(self, mut read: impl FnMut(Self) -> Result<T, Rejection>) -> Result<Vec<T>, Rejection> {
        let mut list = self.body.list(self.elements().count())?;
        for element in self.elements() {
            list.push(read(element)?);
        }
        Ok(list)
    }

    fn inside(self) -> &'a [u8] {
        self.text.get(1..self.text.len().saturating_sub(1)).unwrap_or_default()
    }

    /// Whether it is an empty text.
    pub(super) fn is_empty_text(self) -> bool {
        self.text == b"\"\""
    }

    /// A key, to be compared with names of ours.
    pub(super) fn name(self) -> Cow<'a, [u8]> {
        let inside = self.inside();
        let is_escaped = inside.len() <= ESCAPED_NAME_BYTES_MAX && inside.contains(&b'\\');
        if is_escaped { Cow::Owned(unescaped(inside)) } else { Cow::Borrowed(inside) }
    }

    /// A text, in place where it stands there as it is.
    ///
    /// # Errors
    /// 413 where it must be built and the budget doesn't hold it.
    pub(super) fn text(self) -> Result<Cow<'a, str>, Rejection> {
        let inside = self.inside();
        let plain = if inside.contains(&b'\\') { None } else { std::str::from_utf8(inside).ok() };
        if let Some(plain) = plain {
            return Ok(Cow::Borrowed(plain));
        }
        self.body.charge(inside.len())?;
        self.body.utf8(unescaped(inside)).map(Cow::Owned)
    }

    /// A text of its own.
    ///
    /// # Errors
    /// As [`RawJson::text`].
    pub(super) fn string(self) -> Result<String, Rejection> {
        match self.text()? {
            Cow::Owned(text) => Ok(text),
            Cow::Borrowed(text) => {
                self.body.charge(text.len())?;
                Ok(text.to_owned())
            }
        }
    }

    /// A number; `None` where it is none, or has none of ours.
    pub(super) fn number(self) -> Option<Number> {
        if self.kind() == JsonKind::Number { serde_json::from_slice(self.text).ok() } else { None }
    }

    /// The value as text without spaces, for whoever parses it.
    ///
    /// # Errors
    /// 413 where the body has too much of that.
    pub(super) fn free_form(self) -> Result<String, Rejection> {
        let mut text = self.body.list(self.size())?;
        self.write_to(&mut text)?;
        self.body.utf8(text)
    }

    /// Appends what [`RawJson::free_form`] is made of, to a list that has the room.
    ///
    /// # Errors
    /// As [`RawJson::free_form`].
    pub(super) fn write_to(self, text: &mut Vec<u8>) -> Result<(), Rejection> {
        self.body.count_values(self.text)?;
        let start = text.len();
        let mut at = 0;
        while let Some(byte) = self.text.get(at) {
            let end = if *byte == b'"' { string_end(self.text, at) } else { at + 1 };
            if !byte.is_ascii_whitespace() {
                text.extend_from_slice(&self.text[at..end]);
            }
            at = end;
        }
        mend_surrogates(&mut text[start..]);
        Ok(())
    }

    /// The value itself, for what is small.
    ///
    /// # Errors
    /// 413 where it is not, 400 for a number out of range.
    pub(super) fn value(self) -> Result<Value, Rejection> {
        if self.kind() == JsonKind::String {
            return self.string().map(Value::String);
        }
        self.body.charge(value_count(self.text).saturating_mul(VALUE_BYTES))?;
        serde_json::from_str(&self.free_form()?).map_err(|error| syntax(&error))
    }

    /// The beginning of it, for an error.
    pub(super) fn shown(self) -> String {
        // A character has four bytes at most.
        let start = &self.text[..self.text.len().min(4 * SHOWN_CHARS_MAX)];
        shown(&String::from_utf8_lossy(start)).to_owned()
    }
}

/// Goes through an array.
#[derive(Clone, Debug)]
pub(super) struct Elements<'a> {
    rest: &'a [u8],
    body: &'a JsonBody<'a>,
}

impl<'a> Elements<'a> {
    fn advance(&mut self, separator: u8) -> Option<RawJson<'a>> {
        let is_between = |byte: &u8| byte.is_ascii_whitespace() || *byte == separator;
        let start = self.rest.iter().position(|byte| !is_between(byte))?;
        let rest = &self.rest[start..];
        if matches!(rest.first(), Some(b']' | b'}')) {
            return None;
        }
        let (text, rest) = rest.split_at(value_end(rest));
        self.rest = rest;
        Some(RawJson { text, body: self.body })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = RawJson<'a>;

    fn next(&mut self) -> Option<RawJson<'a>> {
        self.advance(b',')
    }
}

/// Goes through an object.
#[derive(Clone, Debug)]
pub(super) struct Entries<'a>(Elements<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = (RawJson<'a>, RawJson<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.0.advance(b',')?, self.0.advance(b':')?))
    }
}

/// Where the value that begins a checked text ends.
fn value_end(text: &[u8]) -> usize {
    match text.first() {
        Some(b'"') => string_end(text, 0),
        Some(b'{' | b'[') => container_end(text, usize::MAX).unwrap_or(text.len()),
        _ => {
            let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}');
            text.iter().position(ends).unwrap_or(text.len())
        }
    }
}

/// Where the text ends whose quote stands there; any bytes are borne.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(rest) = text.get(at..) {
        let Some(found) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else { break };
        if rest[found] == b'"' {
            return at + found + 1;
        }
        at += found + 2;
    }
    text.len()
}

/// Where the array or object ends that begins a text; `None` where it is nested more deeply. Any bytes are borne.
fn container_end(text: &[u8], depth_max: usize) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'[' | b'{' if depth >= depth_max => return None,
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth <= 1 => return Some(at + 1),
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    Some(text.len())
}

/// What begins in a text, keys included; too many rather than too few.
fn value_count(text: &[u8]) -> usize {
    let (mut at, mut count) = (0, 1);
    while let Some(byte) = text.get(at) {
        count += usize::from(matches!(byte, b',' | b':' | b'[' | b'{'));
        at = if *byte == b'"' { string_end(text, at) } else { at + 1 };
    }
    count
}

/// What stands between the quotes of a text, without escapes; never longer.
fn unescaped(mut rest: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(rest.len());
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        text.extend_from_slice(&rest[..at]);
        let (letter, length) = escape(&rest[at..]);
        text.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        rest = rest.get(at + length..).unwrap_or_default();
    }
    text.extend_from_slice(rest);
    text
}

/// The character of an escape, and how many bytes say it. Half a pair of surrogates is U+FFFD, as in Go.
fn escape(text: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let letter = match text.get(1).copied().unwrap_or(b'\\') {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            return match (unit(0), unit(6)) {
                (Some(high @ 0xD800..=0xDBFF), Some(low @ 0xDC00..=0xDFFF)) => {
                    let point = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                    (char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                }
                (one, _) => (one.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
            };
        }
        other => char::from(other),
    };
    (letter, 2)
}

/// Makes U+FFFD of what no parser takes, in place: both are as long.
fn mend_surrogates(text: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|byte| *byte == b'\\') {
        at += found;
        let (letter, length) = escape(&text[at..]);
        if letter == char::REPLACEMENT_CHARACTER
            && length == 6
            && let Some(digits) = text.get_mut(at + 2..at + 6)
        {
            digits.copy_from_slice(b"fffd");
        }
        at = (at + length).min(text.len());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_what_a_tree_would_have() {
        let texts = [
            r#" { "a" : [ 1 , "x\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t" , { } , [ ] , null ] , "b\u0061" : -1.5e3 } "#,
            r#"["]","}","\\",{"k":"[{"},[[],[[]]],true,false]"#,
            "0",
            "\"\"",
            "{}",
            "null trailing",
        ];
        for text in texts {
            let body = JsonBody::new(text.as_bytes());
            let root = body.root("missing").unwrap();
            let tree: Value = serde_json::Deserializer::from_str(text).into_iter().next().unwrap().unwrap();
            assert_eq!(root.value().unwrap(), tree, "{text}");
            assert_same(root, &tree);
        }
    }

    fn assert_same(raw: RawJson<'_>, tree: &Value) {
        let is_whole = |raw: RawJson<'_>| serde_json::from_str::<Value>(&raw.free_form().unwrap()).unwrap();
        assert_eq!(is_whole(raw), *tree);
        match tree {
            Value::Array(elements) => {
                assert_eq!(raw.elements().count(), elements.len());
                raw.elements().zip(elements).for_each(|(raw, tree)| assert_same(raw, tree));
            }
            Value::Object(map) => {
                assert_eq!(raw.entries().count(), map.len());
                map.iter().for_each(|(key, tree)| assert_same(raw.get(key).unwrap(), tree));
            }
            Value::String(text) => assert_eq!(raw.string().unwrap(), *text),
            _ => {}
        }
    }

    #[test]
    fn free_form_is_compact_and_parses() {
        let text = br#"{ "type" : "object" , "x y" : "\ud800 \udc00\ud83d\ude00 \\ud800" , "n" : 1.0 }"#;
        let body = JsonBody::new(text);
        let kept = body.root("").unwrap().free_form().unwrap();
        assert_eq!(kept, r#"{"type":"object","x y":"\ufffd \ufffd\ud83d\ude00 \\ud800","n":1.0}"#);
        assert!(is_object(&kept) && is_object(" {} "));
        for text in ["[]", "{", "{} x", "", &format!("{{\"a\":{}", "[".repeat(200))] {
            assert!(!is_object(text), "{text:.20}");
        }
        let broken = JsonBody::new(b"[\"a\xff\"]");
        assert_eq!(broken.root("").unwrap().free_form().unwrap(), "[\"a\u{fffd}\"]");
    }

    #[test]
    fn row_54_bad_bodies_are_400_and_say_why() {
        let deep = "[".repeat(100_000);
        let at_the_limit = format!("{}{}", "[".repeat(JSON_DEPTH_MAX - 1), "]".repeat(JSON_DEPTH_MAX - 1));
        assert!(JsonBody::new(at_the_limit.as_bytes()).root("").is_ok());
        for (text, expected) in [
            ("", "missing request body"),
            (" \n", "missing request body"),
            ("{\"a\":", "unexpected EOF"),
            ("{x", "invalid JSON: "),
            ("{\"a\":1,}", "invalid JSON: "),
            (deep.as_str(), "invalid JSON: recursion limit"),
            (&format!("[{at_the_limit}]"), "invalid JSON: recursion limit"),
        ] {
            let body = JsonBody::new(text.as_bytes());
            let refused = body.root("missing request body").unwrap_err();
            assert_eq!(refused.status, 400);
            assert!(refused.message.starts_with(expected), "{} for {:.20}", refused.message, text);
        }
        let body = JsonBody::new(b"1e999");
        let refused = body.root("").unwrap().value().unwrap_err();
        assert!(refused.message.starts_with("invalid JSON: number out of range"), "{}", refused.message);
    }

    #[test]
    fn what_is_built_is_paid_for_before() {
        let text = json!(["x".repeat(1 << 20), vec![0; 100]]).to_string();
        let body = JsonBody::new(text.as_bytes());
        let elements: Vec<RawJson<'_>> = body.root("").unwrap().elements().collect();
        assert_eq!(body.built_bytes(), 0);
        let _built = elements[0].string().unwrap();
        assert_eq!(body.built_bytes(), allocation(1 << 20));
        let most = budget(text.as_bytes());
        body.charge(most - body.built_bytes() - 2 * VALUE_BYTES).unwrap();
        assert_eq!(elements[1].value().unwrap_err().status, 413);
        let many = format!("[{}0]", "0,".repeat(FREE_JSON_VALUES_MAX));
        let body = JsonBody::new(many.as_bytes());
        assert_eq!(body.root("").unwrap().free_form().unwrap_err().status, 413);
    }
}
