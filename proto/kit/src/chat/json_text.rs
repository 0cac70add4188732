//! JSON as Python's `json.dumps` prints it, which is what chat templates were written for.
//!
//! Defaults: `", "` and `": "` between items, characters raw. Depth is bounded; floats print as Rust's shortest form.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use ollmlx_proto::limits::JSON_DEPTH_MAX;

use super::guard::may_be_mark;
use crate::limits;

/// How to print.
pub(super) struct Style {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ascii: bool,
    sort_keys: bool,
}

impl Style {
    /// Reads the keyword arguments of `tojson`; unknown ones are ignored, as templates pass `default` and the like.
    pub(super) fn from_kwargs(indent: Option<&Value>, kwargs: &Kwargs) -> Result<Self, Error> {
        let named: Option<Value> = kwargs.get("indent")?;
        let indent = match indent.or(named.as_ref()).filter(|value| !value.is_none() && !value.is_undefined()) {
            None => None,
            Some(value) => match value.as_str() {
                Some(text) => Some(text.chars().take(16).collect()),
                None => Some(" ".repeat(value.as_usize().unwrap_or(0).min(16))),
            },
        };
        let separators: Option<Vec<String>> = kwargs.get("separators")?;
        let (item_separator, key_separator) = match separators.as_deref() {
            Some([item, key]) if item.len() + key.len() <= 16 => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two short strings")),
            None if indent.is_some() => (",".into(), ": ".into()),
            None => (", ".into(), ": ".into()),
        };
        Ok(Self {
            indent,
            item_separator,
            key_separator,
            ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        })
    }

    /// Appends `value`.
    pub(super) fn write(
        &self,
        state: &State<'_, '_>,
        out: &mut String,
        value: &Value,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX + 2 || out.len() > limits::RENDERED_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "value is too large for tojson"));
        }
        // A map is walked item by item, which costs more than its text; a character may become six.
        state.consume_fuel(1 + value.as_str().map_or(0, str::len) as u64 / 16)?;
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), self.ascii),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.write_items(state, out, items, ['[', ']'], depth)?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    pairs.push((Some(key.to_string()), item));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_items(state, out, pairs.into_iter(), ['{', '}'], depth)?;
            }
            _ => return Err(Error::new(ErrorKind::BadSerialization, "value is not JSON")),
        }
        Ok(())
    }

    fn write_items(
        &self,
        state: &State<'_, '_>,
        out: &mut String,
        items: impl Iterator<Item = (Option<String>, Value)>,
        brackets: [char; 2],
        depth: usize,
    ) -> Result<(), Error> {
        out.push(brackets[0]);
        let mut any = false;
        for (key, item) in items {
            if any {
                out.push_str(&self.item_separator);
            }
            any = true;
            self.break_line(out, depth + 1);
            if let Some(key) = key {
                write_string(out, &key, self.ascii);
                out.push_str(&self.key_separator);
            }
            self.write(state, out, &item, depth + 1)?;
        }
        if any {
            self.break_line(out, depth);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn break_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}

fn write_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ if character < ' ' || (ascii && !character.is_ascii() && !may_be_mark(character)) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}
