//! The header of a GGUF file: metadata and tensor list, parsed without llama.cpp.
//!
//! A model file is hostile. Nothing is allocated by a count that the file states, every length is checked against
//! what is left of the file, arrays are summed up while they pass by, and every error says where and what. The
//! format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. [`check`] adds what llama.cpp would trip over.

mod charsmap;
pub mod check;
mod error;
pub(crate) mod keys;
pub mod kv_cost;
pub mod limits;
mod parse;
mod reader;
mod relations;
pub mod shards;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod types;
mod vocabulary;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

pub use error::GgufError;

/// A scalar, a text or the summary of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned type.
    Unsigned(u64),
    /// Any signed type.
    Signed(i64),
    /// 32 bits.
    Float(f32),
    /// 64 bits.
    Double(f64),
    /// True or false.
    Bool(bool),
    /// Text, made valid UTF-8.
    Text(String),
    /// See [`Array`].
    Array(Array),
}

impl Value {
    /// The number, where it is one that fits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            Self::Bool(value) => Some(u64::from(*value)),
            _ => None,
        }
    }

    /// What kind of value this is, for error texts.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) | Self::Double(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "a text",
            Self::Array(_) => "an array",
        }
    }
}

/// What is kept of an array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// Number of elements.
    pub len: u64,
    /// Whether they are texts.
    pub texts: bool,
    /// The first ones, at most [`ARRAY_KEPT_LEN_MAX`](limits::ARRAY_KEPT_LEN_MAX) numbers or five texts.
    pub first: Vec<Value>,
}

/// What is kept of the vocabulary's arrays, beside their lengths.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// By token: whether it is spelled as a byte token (`<0x0A>`).
    pub spelled_as_byte: Vec<bool>,
    /// By token: `tokenizer.ggml.token_type`, 255 for what does not fit.
    pub types: Vec<u8>,
    /// Whether there are fill-in-the-middle tokens by their spelling: prefix, suffix, middle.
    pub infill: [bool; 3],
    /// Which bytes have a token `<0x…>`.
    pub bytes_spelled: BTreeSet<u8>,
    /// Those of [`MARKERS`](parse::MARKERS) that there are, with their ids.
    pub markers: Vec<(u64, &'static str)>,
    /// The first token that is spelled as one before it.
    pub repeated: Option<u64>,
    /// `tokenizer.ggml.precompiled_charsmap`.
    pub charsmap: Vec<u8>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: types::TensorType,
    /// Its shape, fastest dimension first.
    pub shape: Vec<u64>,
    /// Where it starts, in bytes after the start of the data.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its number of elements.
    pub elements: u64,
}

/// A parsed header.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Metadata in the order of the file.
    pub entries: Vec<(String, Value)>,
    /// Place of each key in `entries`, and the number of its type.
    places: HashMap<String, (usize, u32)>,
    /// The vocabulary.
    pub tokens: Tokens,
    /// Tensors in the order of the file.
    pub tensors: Vec<Tensor>,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Header {
    /// Reads the header of a file and checks that the file holds all the data that it announces.
    ///
    /// # Errors
    /// Not a GGUF file, damaged, truncated, or beyond the limits of this module.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let file = std::fs::File::open(path).map_err(GgufError::Open)?;
        let facts = file.metadata().map_err(GgufError::Open)?;
        if !facts.is_file() {
            return Err(GgufError::NotAFile);
        }
        parse::parse(file, facts.len())
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|(place, _)| &self.entries[*place].1)
    }

    /// The number of its type, as the file has it.
    #[must_use]
    pub fn type_id(&self, key: &str) -> Option<u32> {
        self.places.get(key).map(|(_, id)| *id)
    }

    /// A number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Value::as_u64)
    }

    /// A text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The summary of an array.
    #[must_use]
    pub fn array(&self, key: &str) -> Option<&Array> {
        match self.get(key) {
            Some(Value::Array(array)) => Some(array),
            _ => None,
        }
    }

    /// `general.architecture`; empty where it is missing, which [`check::check`] refuses.
    #[must_use]
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// The value of a key of this architecture, `suffix` being what follows its name.
    #[must_use]
    pub fn arch(&self, suffix: &str) -> Option<&Value> {
        self.get(&format!("{}.{suffix}", self.architecture()))
    }

    /// The same as a number.
    #[must_use]
    pub fn arch_number(&self, suffix: &str) -> Option<u64> {
        self.arch(suffix).and_then(Value::as_u64)
    }

    /// A value per layer: one number for all of them, or an array.
    #[must_use]
    pub fn per_layer(&self, suffix: &str, layer: usize) -> Option<u64> {
        match self.arch(suffix)? {
            Value::Array(array) => array.first.get(layer).and_then(Value::as_u64),
            one => one.as_u64(),
        }
    }

    /// Number of tokens of the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> u64 {
        self.array("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).fold(0, u64::saturating_add)
    }

    fn insert(&mut self, key: String, id: u32, value: Value) -> Result<(), GgufError> {
        if self.places.insert(key.clone(), (self.entries.len(), id)).is_some() {
            return Err(GgufError::DuplicateKey { key });
        }
        self.entries.push((key, value));
        Ok(())
    }
}
