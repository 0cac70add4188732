//! The fields of a client's JSON objects by Go's rules: keys match exactly first and without case second, the last duplicate
//! wins, `null` is the same as absent, unknown fields are skipped. Texts of errors follow Go where a client may know them;
//! the status is always 400.

use std::borrow::Cow;

use super::Rejection;
use super::json::{JsonBody, JsonKind, RawJson};
use crate::limits::MODEL_NAME_BYTES_MAX;

/// Which fields of an object are read.
#[derive(Debug)]
pub(super) struct ObjectShape {
    /// Go's name of the struct, for texts of errors.
    pub(super) kind: &'static str,
    /// Their names, with a space between; every other field is skipped.
    pub(super) names: &'static str,
}

/// The fields of one JSON object, each taken at most once.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    kind: &'static str,
    slots: Vec<FieldSlot<'a>>,
    /// What pays for whatever is made of them.
    pub(super) body: &'a JsonBody<'a>,
}

/// What was found for a name.
#[derive(Debug)]
struct FieldSlot<'a> {
    name: &'static str,
    exact: Option<RawJson<'a>>,
    /// In another case.
    folded: Option<RawJson<'a>>,
}

impl<'a> Fields<'a> {
    /// Of a body whose top level is an object. `missing` is the text for an empty one.
    ///
    /// # Errors
    /// 400 for anything else.
    pub(super) fn read(body: &'a JsonBody<'_>, shape: &ObjectShape, missing: &str) -> Result<Self, Rejection> {
        let root = body.root(missing)?;
        if root.kind() == JsonKind::Null { Ok(Self::found(None, body, shape)) } else { Self::of(root, shape) }
    }

    /// Of a value that must be an object.
    ///
    /// # Errors
    /// 400 where it is none.
    pub(super) fn of(value: RawJson<'a>, shape: &ObjectShape) -> Result<Self, Rejection> {
        if value.kind() == JsonKind::Object {
            return Ok(Self::found(Some(value), value.body, shape));
        }
        let (found, kind) = (value.kind().name(), shape.kind);
        Err(Rejection::bad_request(format!("json: cannot unmarshal {found} into Go value of type {kind}")))
    }

    fn found(object: Option<RawJson<'a>>, body: &'a JsonBody<'a>, shape: &ObjectShape) -> Self {
        let mut slots: Vec<FieldSlot<'a>> =
            shape.names.split(' ').map(|name| FieldSlot { name, exact: None, folded: None }).collect();
        for (key, value) in object.into_iter().flat_map(RawJson::entries) {
            let key = key.name();
            // In Go `null` leaves what an earlier one has set.
            let is_null = value.kind() == JsonKind::Null;
            for slot in slots.iter_mut().filter(|slot| slot.name.len() == key.len() && !is_null) {
                if slot.name.as_bytes() == &*key {
                    slot.exact = Some(value);
                } else if slot.name.as_bytes().eq_ignore_ascii_case(&key) {
                    slot.folded = Some(value);
                }
            }
        }
        Self { kind: shape.kind, slots, body }
    }

    /// Takes a field's value, whatever its type. `None` for `null`.
    pub(super) fn value(&mut self, name: &str) -> Option<RawJson<'a>> {
        debug_assert!(self.slots.iter().any(|slot| slot.name == name), "{name} is not in the shape of {}", self.kind);
        let slot = self.slots.iter_mut().find(|slot| slot.name == name)?;
        let (exact, folded) = (slot.exact.take(), slot.folded.take());
        exact.or(folded)
    }

    /// Takes a value of this kind.
    fn of_kind(&mut self, name: &'static str, kind: JsonKind, wanted: &str) -> Result<Option<RawJson<'a>>, Rejection> {
        match self.value(name) {
            Some(value) if value.kind() != kind => Err(self.mismatch(name, value, wanted)),
            found => Ok(found),
        }
    }

    /// Takes a text, in place where it stands there as it is.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<Cow<'a, str>>, Rejection> {
        self.of_kind(name, JsonKind::String, "string")?.map(RawJson::text).transpose()
    }

    /// Takes a text.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        self.of_kind(name, JsonKind::String, "string")?.map(RawJson::string).transpose()
    }

    /// Takes a text; absent and empty are the same.
    ///
    /// # Errors
    /// As [`Fields::string`].
    pub(super) fn filled(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        Ok(self.string(name)?.filter(|text| !text.is_empty()))
    }

    /// Takes the name of a model, which may be a path.
    ///
    /// # Errors
    /// As [`Fields::string`], and where it is longer than any.
    pub(super) fn model_name(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        let found = self.of_kind(name, JsonKind::String, "string")?;
        if found.is_some_and(|found| found.size() > MODEL_NAME_BYTES_MAX) {
            return Err(Rejection::bad_request("invalid model name"));
        }
        found.map(RawJson::string).transpose()
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Rejection> {
        Ok(self.of_kind(name, JsonKind::Bool, "bool")?.map(RawJson::is_true))
    }

    /// Takes a whole number; one written with a fraction of zero is fine.
    ///
    /// # Errors
    /// 400 where it is something else, or beyond 64 bits.
    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<i64>, Rejection> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.number();
        if let Some(number) = number.as_ref().and_then(serde_json::Number::as_i64) {
            return Ok(Some(number));
        }
        match number.and_then(|number| number.as_f64()) {
            // 2^53: beyond it a float is no exact whole number.
            Some(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => Ok(Some(number as i64)),
            _ => Err(self.mismatch(name, value, "int")),
        }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, Rejection> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.number().and_then(|number| number.as_f64());
        number.map(Some).ok_or_else(|| self.mismatch(name, value, "float64"))
    }

    /// Takes an array.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn array(&mut self, name: &'static str) -> Result<Option<RawJson<'a>>, Rejection> {
        self.of_kind(name, JsonKind::Array, "[]interface {}")
    }

    /// Takes an array and reads its elements; absent is empty.
    ///
    /// # Errors
    /// As [`Fields::array`], and what reading says.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        read: impl FnMut(RawJson<'a>) -> Result<T, Rejection>,
    ) -> Result<Vec<T>, Rejection> {
        self.array(name)?.map_or(Ok(Vec::new()), |array| array.list(read))
    }

    /// Takes an object.
    ///
    /// # Errors
    /// 400 where it is something else.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<RawJson<'a>>, Rejection> {
        self.of_kind(name, JsonKind::Object, "map[string]interface {}")
    }

    /// Takes an object and finds its fields; absent is empty.
    ///
    /// # Errors
    /// As [`Fields::object`].
    pub(super) fn inner(&mut self, name: &'static str, shape: &ObjectShape) -> Result<Fields<'a>, Rejection> {
        Ok(Fields::found(self.object(name)?, self.body, shape))
    }

    fn mismatch(&self, name: &str, value: RawJson<'_>, wanted: &str) -> Rejection {
        let shown = match value.kind() {
            JsonKind::Number => Cow::Owned(format!("number {}", value.shown())),
            other => Cow::Borrowed(other.name()),
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

    const SHAPE: ObjectShape = ObjectShape { kind: "GenerateRequest", names: "model stream seed" };

    fn with<T>(bytes: &[u8], take: impl FnOnce(&mut Fields<'_>) -> Result<T, Rejection>) -> Result<T, Rejection> {
        let body = JsonBody::new(bytes);
        take(&mut Fields::read(&body, &SHAPE, "missing request body")?)
    }

    #[test]
    fn keys_duplicates_and_trailing_bytes_follow_go() {
        for (text, expected) in [
            (r#"{"model":"a"} trailing"#, Some("a")),
            (r#"{"MODEL":"a"}"#, Some("a")),
            (r#"{"MODEL":"a","model":"b"}"#, Some("b")),
            (r#"{"model":"b","MODEL":"a"}"#, Some("b")),
            (r#"{"model":"a","model":"b"}"#, Some("b")),
            (r#"{"Model":"a","mOdel":"b"}"#, Some("b")),
            (r#"{"model":null,"MODEL":"a"}"#, Some("a")),
            (r#"{"mod\u0065l":"a"}"#, Some("a")),
            (r#"{"model":"a","model":null}"#, Some("a")),
            (r#"{"model":null}"#, None),
            (r#"{"x":{"model":"a"}}"#, None),
            (r#"{"x":"model","y":1e999}"#, None),
            ("null", None),
            (r#"{"model":"\ud83d\ude00 \ud800 \\ud800"}"#, Some("😀 \u{fffd} \\ud800")),
            (r#"{"model":"\udc00é\ud800"}"#, Some("\u{fffd}é\u{fffd}")),
        ] {
            let found = with(text.as_bytes(), |fields| fields.string("model")).unwrap();
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        let broken = with(b"{\"model\":\"a\xff\"}", |fields| fields.string("model")).unwrap();
        assert_eq!(broken.as_deref(), Some("a\u{fffd}"));
    }

    #[test]
    fn row_54_wrong_types_are_400_in_gos_words() {
        let refused = with(b"[1]", |fields| fields.string("model")).unwrap_err();
        assert_eq!(refused.message, "json: cannot unmarshal array into Go value of type GenerateRequest");
        let refused = with(br#"{"stream":"yes"}"#, |fields| fields.boolean("stream")).unwrap_err();
        let expected = "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool";
        assert_eq!(refused, Rejection::bad_request(expected));
        let refused = with(br#"{"seed":1e999}"#, |fields| fields.integer("seed")).unwrap_err();
        let expected = "json: cannot unmarshal number 1e999 into Go struct field GenerateRequest.seed of type int";
        assert_eq!(refused, Rejection::bad_request(expected));
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(MODEL_NAME_BYTES_MAX));
        assert_eq!(
            with(long.as_bytes(), |fields| fields.model_name("model")).unwrap_err().message,
            "invalid model name"
        );
    }
}
