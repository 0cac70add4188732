//! Readers of calls written in a programming language's literals: Python calls, and Gemma's objects.
//!
//! Recursive descent with a depth limit; input is at most one tool call long.

use serde_json::{Map, Number, Value};

use super::calls::{Call, Tools};
use crate::limits::LITERAL_DEPTH_MAX;

/// `[f(a=1), g()]`, or one call without the brackets.
pub(super) fn pythonic(text: &str, _: &Tools) -> Option<Vec<Call>> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let mut reader = Reader { rest: inner, quote: None };
    let mut calls = Vec::new();
    while !reader.at_end() {
        let name = reader.word()?;
        reader.expect("(")?;
        let mut arguments = Map::new();
        while !reader.take(")") {
            let key = reader.word()?;
            reader.expect("=")?;
            arguments.insert(key, reader.value(0)?);
            if !reader.take(",") {
                reader.expect(")")?;
                break;
            }
        }
        calls.push(Call { name, arguments });
        if !reader.take(",") && !reader.at_end() {
            return None;
        }
    }
    (!calls.is_empty()).then_some(calls)
}

/// `call:NAME{k:<|"|>v<|"|>,n:1}`.
pub(super) fn gemma4(text: &str, _: &Tools) -> Option<Vec<Call>> {
    gemma(text, "<|\"|>")
}

/// `call:NAME{k:<escape>v<escape>,n:1}`.
pub(super) fn function_gemma(text: &str, _: &Tools) -> Option<Vec<Call>> {
    gemma(text, "<escape>")
}

fn gemma(text: &str, quote: &'static str) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: text, quote: Some(quote) };
    let mut calls = Vec::new();
    while !reader.at_end() {
        reader.expect("call")?;
        reader.expect(":")?;
        let name = reader.word()?;
        let Value::Object(arguments) = reader.value(0)? else { return None };
        calls.push(Call { name, arguments });
        reader.take(",");
    }
    (!calls.is_empty()).then_some(calls)
}

struct Reader<'a> {
    rest: &'a str,
    /// Gemma's own quote; its keys are bare words.
    quote: Option<&'static str>,
}

impl Reader<'_> {
    fn at_end(&mut self) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.is_empty()
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.rest.trim_start().strip_prefix(word);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, word: &str) -> Option<()> {
        self.take(word).then_some(())
    }

    fn word(&mut self) -> Option<String> {
        let text = self.rest.trim_start();
        let end =
            text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '.' | '-' | '$')).unwrap_or(text.len());
        let word = text[..end].to_owned();
        self.rest = &text[end..];
        (!word.is_empty()).then_some(word)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > LITERAL_DEPTH_MAX {
            return None;
        }
        if let Some(quote) = self.quote
            && self.take(quote)
        {
            let (text, rest) = self.rest.split_once(quote)?;
            self.rest = rest;
            return Some(Value::from(text));
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '[' | '(' => self.list(depth),
            '{' => self.object(depth),
            '"' | '\'' => self.string().map(Value::from),
            _ => self.scalar(),
        }
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        let close = if self.rest.starts_with('[') { "]" } else { ")" };
        self.rest = &self.rest[1..];
        let mut items = Vec::new();
        while !self.take(close) {
            items.push(self.value(depth + 1)?);
            if !self.take(",") {
                self.expect(close)?;
                break;
            }
        }
        Some(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut fields = Map::new();
        while !self.take("}") {
            let key = match self.value_or_word(depth)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.expect(":")?;
            fields.insert(key, self.value(depth + 1)?);
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Some(Value::Object(fields))
    }

    /// A key: quoted, or a bare word in Gemma's syntax.
    fn value_or_word(&mut self, depth: usize) -> Option<Value> {
        let text = self.rest.trim_start();
        if let Some(quote) = self.quote
            && !text.starts_with(quote)
            && !text.starts_with(['"', '\''])
        {
            let end = text.find(':')?;
            let key = text[..end].trim();
            self.rest = &text[end..];
            return (!key.is_empty()).then(|| Value::from(key));
        }
        self.value(depth + 1)
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut out = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((index, character)) = characters.next() {
            match character {
                '\\' => match characters.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'u' => {
                        let code: String = characters.by_ref().take(4).map(|(_, digit)| digit).collect();
                        out.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?).unwrap_or('\u{fffd}'));
                    }
                    other @ ('\\' | '\'' | '"' | '/') => out.push(other),
                    other => out.extend(['\\', other]),
                },
                _ if character == quote => {
                    self.rest = &self.rest[index + 1..];
                    return Some(out);
                }
                _ => out.push(character),
            }
        }
        None
    }

    fn scalar(&mut self) -> Option<Value> {
        let end = self.rest.find([',', ')', ']', '}', ':', '\n']).unwrap_or(self.rest.len());
        let text = self.rest[..end].trim();
        self.rest = &self.rest[end..];
        match text {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            "" => None,
            _ => match serde_json::from_str::<Number>(text) {
                Ok(number) => Some(Value::Number(number)),
                // Gemma's enum words come bare; Python's would be names, which are nothing.
                Err(_) => self.quote.is_some().then(|| Value::from(text)),
            },
        }
    }
}
