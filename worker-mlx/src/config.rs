//! `config.json` and its siblings, read with bounds.
//!
//! Every value of these files is hostile until it has passed one of the accessors here: an integer is in its range or
//! an error names its key, and nothing is allocated by a number that was not checked. This file knows JSON and
//! ranges, no architecture.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ollmlx_proto::{Failure, FailureKind};
use serde_json::{Map, Value};

use super::limits::CONFIG_BYTES_MAX;

/// A fault of the model's files.
#[must_use]
pub fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::ModelInvalid, text)
}

/// Reads a file of at most `bytes_max` bytes; `None` where there is none.
///
/// # Errors
/// It is too large or can't be read.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Failure> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(invalid(format!("{name} can't be read")).with_detail(error.to_string())),
    };
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !regular {
        return Err(invalid(format!("{name} is not a file")));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| invalid(format!("{name} can't be read")).with_detail(error.to_string()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(invalid(format!("{name} is larger than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// Reads a JSON object; `None` where there is no such file.
///
/// # Errors
/// It is too large, too deep, no JSON or no object.
pub fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Failure> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Some(bytes) = read_bounded(path, CONFIG_BYTES_MAX)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(invalid(format!("{name} is not an object"))),
        Err(error) => Err(invalid(format!("{name} is no valid JSON")).with_detail(error.to_string())),
    }
}

/// An object of a configuration file and where in the file it is.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Config<'a> {
    /// The object itself; `prefix` stands before its keys in errors, such as `text_config.`.
    #[must_use]
    pub fn new(map: &'a Map<String, Value>, prefix: &'a str) -> Self {
        Self { map, prefix }
    }

    /// The raw value; JSON's null counts as absent, as in Python's loaders.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, want: &str) -> Failure {
        let found = self.map.get(key).map_or_else(|| "nothing".to_owned(), |value| short(&value.to_string()));
        invalid(format!("config.json: {}{key} must be {want}, found {found}", self.prefix))
    }

    /// An integer from 1 to `max`.
    ///
    /// # Errors
    /// It is absent, no integer or out of range.
    pub fn count(&self, key: &str, max: u32) -> Result<u32, Failure> {
        self.get(key)
            .and_then(Value::as_u64)
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| (1..=max).contains(value))
            .ok_or_else(|| self.wrong(key, &format!("an integer from 1 to {max}")))
    }

    /// The same with a default where the key is absent. An explicit null is refused: it would hide a damaged file.
    ///
    /// # Errors
    /// It is no integer or out of range.
    pub fn count_or(&self, key: &str, max: u32, default: u32) -> Result<u32, Failure> {
        if self.get(key).is_none() { Ok(default) } else { self.count(key, max) }
    }

    /// A finite number within `range`, with a default.
    ///
    /// # Errors
    /// It is no number or out of range.
    pub fn number_or(&self, key: &str, range: std::ops::RangeInclusive<f64>, default: f64) -> Result<f64, Failure> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_f64()
            .filter(|value| range.contains(value))
            .ok_or_else(|| self.wrong(key, &format!("a number from {} to {}", range.start(), range.end())))
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// It is absent, no number or out of range.
    pub fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, Failure> {
        if self.get(key).is_none() {
            return Err(self.wrong(key, &format!("a number from {} to {}", range.start(), range.end())));
        }
        self.number_or(key, range, 0.0)
    }

    /// A truth value, if it is there.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A text, if it is there.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A nested object, if it is there; `prefix` is its own path.
    ///
    /// # Errors
    /// It is something else.
    pub fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Config<'a>>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config::new(map, prefix))),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// A list of finite numbers of exactly `len` entries.
    ///
    /// # Errors
    /// It is absent, of another length, or holds something else.
    pub fn numbers(&self, key: &str, len: usize) -> Result<Vec<f64>, Failure> {
        let want = || self.wrong(key, &format!("a list of {len} numbers"));
        let list = self.get(key).and_then(Value::as_array).filter(|list| list.len() == len).ok_or_else(want)?;
        list.iter().map(|value| value.as_f64().filter(|value| value.is_finite()).ok_or_else(want)).collect()
    }

    /// The list under `key`, at most `len_max` entries long, if it is there.
    ///
    /// # Errors
    /// It is something else or longer.
    pub fn list(&self, key: &str, len_max: usize) -> Result<Option<&'a [Value]>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() <= len_max => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, &format!("a list of at most {len_max} entries"))),
        }
    }

    /// Every key and value.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(40).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::super::limits::LAYERS_MAX;

    use super::*;

    #[test]
    fn bad_integers_name_their_key() {
        for bad in ["1431655766", "0", "-1", "1e308", "\"12\"", "null", "[]", "12.5", "{}"] {
            let value: Value = serde_json::from_str(&format!("{{\"num_hidden_layers\": {bad}}}")).unwrap();
            let map = value.as_object().unwrap();
            let failure = Config::new(map, "").count("num_hidden_layers", LAYERS_MAX).unwrap_err();
            assert_eq!(failure.kind, FailureKind::ModelInvalid);
            assert!(failure.public.contains("num_hidden_layers"), "{bad}: {}", failure.public);
        }
    }

    #[test]
    fn a_config_at_the_limit_is_read_and_one_byte_past_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let mut text = "{}".to_owned();
        text.push_str(&" ".repeat(CONFIG_BYTES_MAX as usize - 2));
        std::fs::write(&path, &text).unwrap();
        assert!(read_object(&path).unwrap().is_some());
        text.push(' ');
        std::fs::write(&path, &text).unwrap();
        assert!(read_object(&path).unwrap_err().public.contains("config.json is larger"));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "{\"a\":".to_owned() + &"[".repeat(100_000)).unwrap();
        assert!(read_object(&path).unwrap_err().public.contains("no valid JSON"));
    }
}
