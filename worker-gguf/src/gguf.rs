//! Reads the header of a GGUF file: bounded, total, without llama.cpp.
//!
//! The file is hostile. No count in it leads to an allocation before the bytes behind it are seen; every length is
//! checked against what is left of the file; sums are checked for overflow. Arrays are kept whole only where they are
//! small; of long ones the length and, for strings, the longest element are kept. Format: the GGUF specification in
//! ggml's `docs/gguf.md`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use thiserror::Error;

/// Metadata entries of one file; the largest known models have a few hundred.
const ENTRIES_MAX: u64 = 65_536;
/// Tensors of one file.
const TENSORS_MAX: u64 = 1_000_000;
/// Bytes of a key or a tensor name.
const NAME_BYTES_MAX: u64 = 65_536;
/// Bytes of one string value (chat templates, licences).
const STRING_BYTES_MAX: u64 = 16 << 20;
/// Elements of an array that is kept.
const ARRAY_KEPT_MAX: u64 = 4096;
/// Arrays within arrays.
const DEPTH_MAX: u32 = 4;
const DIMENSIONS_MAX: u32 = 4;
const ALIGNMENT_DEFAULT: u64 = 32;

/// Why a file is refused.
#[derive(Debug, Error)]
pub(crate) enum GgufError {
    #[error("not a GGUF file: it begins with {0:?}")]
    Magic(Vec<u8>),
    #[error("not a usable GGUF file: big-endian files are not supported")]
    BigEndian,
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    #[error("truncated GGUF file: {what} at byte {offset} needs {needed} bytes, {left} are left")]
    Truncated { what: &'static str, offset: u64, needed: u64, left: u64 },
    #[error("GGUF header is not credible: {what} at byte {offset} says {value}, at most {max} are accepted")]
    TooMany { what: &'static str, offset: u64, value: u64, max: u64 },
    #[error("GGUF header is damaged: {what} at byte {offset}")]
    Damaged { what: String, offset: u64 },
    #[error("truncated GGUF file: tensor {name:?} ends at byte {end}, the file at {size}")]
    DataTruncated { name: String, end: u64, size: u64 },
    #[error("the file can't be read")]
    Io(#[from] std::io::Error),
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Elements where there are few and they are plain; `None` else.
    Array {
        kind: u32,
        len: u64,
        longest: u64,
        elements: Option<Vec<Value>>,
    },
}

impl Value {
    /// A number that is not negative.
    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: TensorKind,
    pub(crate) elements: u64,
    pub(crate) bytes: u64,
}

/// An element type: its label, and how many elements a block of how many bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorKind {
    pub(crate) label: &'static str,
    block: u64,
    block_bytes: u64,
}

/// What a header says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    pub(crate) entries: BTreeMap<String, Value>,
    pub(crate) tensors: Vec<Tensor>,
}

impl Header {
    /// An entry under `general.` or another full key.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Bytes of all tensors.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }
}

/// ggml's type numbers; the missing ones are retired.
fn tensor_kind(number: u32) -> Option<TensorKind> {
    let kind = |label, block, block_bytes| Some(TensorKind { label, block, block_bytes });
    match number {
        0 => kind("F32", 1, 4),
        1 => kind("F16", 1, 2),
        2 => kind("Q4_0", 32, 18),
        3 => kind("Q4_1", 32, 20),
        6 => kind("Q5_0", 32, 22),
        7 => kind("Q5_1", 32, 24),
        8 => kind("Q8_0", 32, 34),
        9 => kind("Q8_1", 32, 36),
        10 => kind("Q2_K", 256, 84),
        11 => kind("Q3_K", 256, 110),
        12 => kind("Q4_K", 256, 144),
        13 => kind("Q5_K", 256, 176),
        14 => kind("Q6_K", 256, 210),
        15 => kind("Q8_K", 256, 292),
        16 => kind("IQ2_XXS", 256, 66),
        17 => kind("IQ2_XS", 256, 74),
        18 => kind("IQ3_XXS", 256, 98),
        19 => kind("IQ1_S", 256, 50),
        20 => kind("IQ4_NL", 32, 18),
        21 => kind("IQ3_S", 256, 110),
        22 => kind("IQ2_S", 256, 82),
        23 => kind("IQ4_XS", 256, 136),
        24 => kind("I8", 1, 1),
        25 => kind("I16", 1, 2),
        26 => kind("I32", 1, 4),
        27 => kind("I64", 1, 8),
        28 => kind("F64", 1, 8),
        29 => kind("IQ1_M", 256, 56),
        30 => kind("BF16", 1, 2),
        34 => kind("TQ1_0", 256, 54),
        35 => kind("TQ2_0", 256, 66),
        39 => kind("MXFP4", 32, 17),
        40 => kind("NVFP4", 64, 36),
        41 => kind("Q1_0", 128, 18),
        42 => kind("Q2_0", 64, 18),
        _ => None,
    }
}

/// Reads the header of `path` and checks that all tensors lie within the file.
pub(crate) fn read(path: &Path) -> Result<Header, GgufError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Reader { input: BufReader::with_capacity(1 << 16, file), at: 0, size }.header()
}

struct Reader<R> {
    input: R,
    at: u64,
    size: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn need(&self, what: &'static str, needed: u64) -> Result<(), GgufError> {
        let left = self.size.saturating_sub(self.at);
        if needed > left {
            return Err(GgufError::Truncated { what, offset: self.at, needed, left });
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        self.need(what, N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let offset = self.at;
        let value = self.u64(what)?;
        if value > max {
            return Err(GgufError::TooMany { what, offset, value, max });
        }
        Ok(value)
    }

    fn damaged<T>(&self, what: impl Into<String>) -> Result<T, GgufError> {
        Err(GgufError::Damaged { what: what.into(), offset: self.at })
    }

    fn text(&mut self, what: &'static str, max: u64) -> Result<String, GgufError> {
        let len = self.count(what, max)?;
        self.need(what, len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.input.read_exact(&mut bytes)?;
        self.at += len;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, what: &'static str, count: u64) -> Result<(), GgufError> {
        self.need(what, count)?;
        let Ok(distance) = i64::try_from(count) else { return self.damaged(format!("{what} is too long")) };
        self.input.seek_relative(distance)?;
        self.at += count;
        Ok(())
    }

    fn header(mut self) -> Result<Header, GgufError> {
        if self.size < 4 {
            let mut begin = Vec::new();
            self.input.take(4).read_to_end(&mut begin)?;
            return Err(GgufError::Magic(begin));
        }
        let magic: [u8; 4] = self.bytes("magic")?;
        if &magic != b"GGUF" {
            return Err(GgufError::Magic(magic.to_vec()));
        }
        let version = self.u32("version")?;
        match version {
            2 | 3 => {}
            other if matches!(other.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
            other => return Err(GgufError::Version(other)),
        }
        let tensor_count = self.count("tensor count", TENSORS_MAX)?;
        let entry_count = self.count("metadata count", ENTRIES_MAX)?;
        let mut header = Header::default();
        for _ in 0..entry_count {
            let key = self.text("metadata key", NAME_BYTES_MAX)?;
            let kind = self.u32("value type")?;
            let value = self.value(kind, 0)?;
            if header.entries.insert(key.clone(), value).is_some() {
                return self.damaged(format!("metadata key {key:?} occurs twice"));
            }
        }
        self.tensors(tensor_count, &mut header)?;
        Ok(header)
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.bytes("value")?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.bytes("value")?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes("value")?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes("value")?))),
            4 => Value::Unsigned(u64::from(self.u32("value")?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes("value")?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes("value")?))),
            7 => Value::Bool(u8::from_le_bytes(self.bytes("value")?) != 0),
            8 => Value::Text(self.text("string value", STRING_BYTES_MAX)?),
            9 => self.array(depth)?,
            10 => Value::Unsigned(self.u64("value")?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes("value")?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes("value")?)),
            other => return self.damaged(format!("value type {other} does not exist")),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Value, GgufError> {
        if depth >= DEPTH_MAX {
            return self.damaged("arrays are nested too deeply");
        }
        let kind = self.u32("array type")?;
        let len = self.u64("array length")?;
        // Every element takes at least this much, so a lying length is found before the first is read.
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return self.damaged(format!("array type {other} does not exist")),
        };
        let Some(needed) = len.checked_mul(least) else { return self.damaged("array length overflows") };
        self.need("array", needed)?;
        let (mut longest, mut elements) = (0, None);
        if len <= ARRAY_KEPT_MAX {
            let mut kept = Vec::new();
            for _ in 0..len {
                let element = self.value(kind, depth + 1)?;
                longest = longest.max(element.as_str().map_or(0, |text| text.len() as u64));
                kept.push(element);
            }
            elements = Some(kept);
        } else if kind == 8 {
            for _ in 0..len {
                let bytes = self.count("string in array", STRING_BYTES_MAX)?;
                longest = longest.max(bytes);
                self.skip("string in array", bytes)?;
            }
        } else if kind == 9 {
            for _ in 0..len {
                self.array(depth + 1)?;
            }
        } else {
            self.skip("array", needed)?;
        }
        Ok(Value::Array { kind, len, longest, elements })
    }

    fn tensors(&mut self, count: u64, header: &mut Header) -> Result<(), GgufError> {
        let alignment = match header.get("general.alignment") {
            None => ALIGNMENT_DEFAULT,
            Some(value) => match value.as_u64() {
                Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
                _ => return self.damaged("general.alignment is not a power of two"),
            },
        };
        let mut extents: Vec<(usize, u64)> = Vec::new();
        for index in 0..count {
            let name = self.text("tensor name", NAME_BYTES_MAX)?;
            let dimensions = self.u32("tensor dimensions")?;
            if dimensions > DIMENSIONS_MAX {
                return self.damaged(format!("tensor {name:?} has {dimensions} dimensions, 4 are the most"));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                shape.push(self.u64("tensor shape")?);
            }
            let number = self.u32("tensor type")?;
            let Some(kind) = tensor_kind(number) else {
                return self.damaged(format!("tensor {name:?} has the unknown type {number}"));
            };
            let offset = self.u64("tensor offset")?;
            let elements = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
            let row = shape.first().copied().unwrap_or(1);
            let bytes = elements
                .filter(|_| row % kind.block == 0)
                .and_then(|elements| (elements / kind.block).checked_mul(kind.block_bytes));
            let (Some(elements), Some(bytes)) = (elements, bytes) else {
                return self.damaged(format!("tensor {name:?} has the impossible shape {shape:?}"));
            };
            if offset % alignment != 0 {
                return self.damaged(format!("tensor {name:?} is not aligned"));
            }
            extents.push((usize::try_from(index).unwrap_or(usize::MAX), offset));
            header.tensors.push(Tensor { name, shape, kind, elements, bytes });
        }
        self.check_extents(&extents, alignment, header)
    }

    fn check_extents(&self, extents: &[(usize, u64)], alignment: u64, header: &Header) -> Result<(), GgufError> {
        let start = self.at.next_multiple_of(alignment);
        for &(index, offset) in extents {
            let tensor = &header.tensors[index];
            let end = start.checked_add(offset).and_then(|begin| begin.checked_add(tensor.bytes));
            match end {
                Some(end) if end <= self.size => {}
                end => {
                    let end = end.unwrap_or(u64::MAX);
                    return Err(GgufError::DataTruncated { name: tensor.name.clone(), end, size: self.size });
                }
            }
        }
        Ok(())
    }
}

/// Reads a header from bytes, for tests.
#[cfg(test)]
pub(crate) fn read_bytes(bytes: &[u8]) -> Result<Header, GgufError> {
    Reader { input: std::io::Cursor::new(bytes), at: 0, size: bytes.len() as u64 }.header()
}

#[cfg(test)]
pub(crate) mod tests;
