//! Bytes to [`Header`].

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read, Seek};

use super::limits::{
    ALIGNMENT_MAX, ARRAY_KEPT_LEN_MAX, ARRAY_LEN_MAX, CHARSMAP_BYTES_MAX, DIMENSIONS_MAX, ENTRIES_MAX, KEY_BYTES_MAX,
    TENSOR_NAME_BYTES_MAX, TENSORS_MAX, TEXT_BYTES_MAX, TEXT_BYTES_TOTAL_MAX, TEXT_KEPT_BYTES_MAX, TEXTS_KEPT_MAX,
    TOKEN_BYTES_MAX, VOCAB_MAX,
};
use super::reader::Reader;
use super::types::tensor_type;
use super::{Array, GgufError, Header, Tensor, Value};

/// Bytes of the shortest metadata entry: length of an empty key, type, one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: name, dimension count, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;
/// Where a file does not say otherwise.
const ALIGNMENT: u64 = 32;
/// Spellings of the fill-in-the-middle tokens (prefix, suffix, middle) that llama.cpp knows without a key.
const INFILL: [&[&str]; 3] = [
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];
/// Special tokens that the kit chooses a chat template by, where a file has none.
pub(super) const MARKERS: [&str; 6] =
    ["<start_of_turn>", "<|start_header_id|>", "<|im_start|>", "[INST]", "<|assistant|>", "<|end|>"];
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

pub(super) fn parse(source: impl Read + Seek, file_bytes: u64) -> Result<Header, GgufError> {
    let mut reader = Reader::new(source, file_bytes);
    let mut magic = vec![0; usize::try_from(file_bytes.min(4)).expect("at most four")];
    reader.fill(&mut magic, "the magic")?;
    if magic != b"GGUF" {
        return Err(GgufError::Magic(magic));
    }
    match reader.u32("the version")? {
        2 | 3 => {}
        version if version.swap_bytes() <= 0xffff && version > 0xffff => return Err(GgufError::BigEndian),
        version => return Err(GgufError::Version(version)),
    }
    let tensor_count = reader.count("the tensor count", TENSOR_BYTES_MIN, TENSORS_MAX)?;
    let entry_count = reader.count("the metadata count", ENTRY_BYTES_MIN, ENTRIES_MAX)?;
    let mut header = Header { file_bytes, ..Header::default() };
    let mut text_bytes_left = TEXT_BYTES_TOTAL_MAX;
    for _ in 0..entry_count {
        let key = reader.text("the length of a key", KEY_BYTES_MAX)?;
        let key = String::from_utf8_lossy(&key).into_owned();
        let id = reader.u32("the type of a value")?;
        let value = value(&mut reader, &key, id, &mut header, &mut text_bytes_left)?;
        header.insert(key, id, value)?;
    }
    tensors(&mut reader, tensor_count, &mut header)?;
    extents(&mut header, reader.at)?;
    Ok(header)
}

fn value<R: Read + Seek>(
    reader: &mut Reader<R>,
    key: &str,
    id: u32,
    header: &mut Header,
    text_bytes_left: &mut u64,
) -> Result<Value, GgufError> {
    match id {
        8 => {
            let text = reader.text("the length of a text", TEXT_BYTES_MAX.min(*text_bytes_left))?;
            *text_bytes_left -= text.len() as u64;
            Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()))
        }
        9 => array(reader, key, header).map(Value::Array),
        id => scalar(reader, key, id),
    }
}

fn scalar<R: Read + Seek>(reader: &mut Reader<R>, key: &str, id: u32) -> Result<Value, GgufError> {
    const WHAT: &str = "a value";
    Ok(match id {
        0 => Value::Unsigned(reader.u8(WHAT)?.into()),
        1 => Value::Signed(reader.u8(WHAT)?.cast_signed().into()),
        2 => Value::Unsigned(reader.u16(WHAT)?.into()),
        3 => Value::Signed(reader.u16(WHAT)?.cast_signed().into()),
        4 => Value::Unsigned(reader.u32(WHAT)?.into()),
        5 => Value::Signed(reader.u32(WHAT)?.cast_signed().into()),
        6 => Value::Float(f32::from_bits(reader.u32(WHAT)?)),
        7 => Value::Bool(reader.u8(WHAT)? != 0),
        10 => Value::Unsigned(reader.u64(WHAT)?),
        11 => Value::Signed(reader.u64(WHAT)?.cast_signed()),
        12 => Value::Double(f64::from_bits(reader.u64(WHAT)?)),
        _ => return Err(GgufError::ValueType { key: key.to_owned(), id }),
    })
}

/// Bytes of a scalar of this type; for a text, of the shortest one.
fn scalar_bytes(id: u32) -> Option<u64> {
    match id {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        _ => None,
    }
}

/// Sums an array up while it passes by.
fn array<R: Read + Seek>(reader: &mut Reader<R>, key: &str, header: &mut Header) -> Result<Array, GgufError> {
    let id = reader.u32("the type of an array")?;
    if id == 9 {
        return Err(GgufError::NestedArray { key: key.to_owned() });
    }
    let item_bytes = scalar_bytes(id).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), id })?;
    let len = reader.count("the length of an array", item_bytes, ARRAY_LEN_MAX)?;
    if id == 8 {
        return texts(reader, key, len, header);
    }
    let mut first = Vec::new();
    if key == TOKEN_TYPES {
        for _ in 0..len {
            let number = scalar(reader, key, id)?.as_u64().and_then(|number| u8::try_from(number).ok());
            header.tokens.types.push(number.unwrap_or(u8::MAX));
        }
    } else if key == CHARSMAP && item_bytes == 1 {
        if len > CHARSMAP_BYTES_MAX {
            let reason = format!("{len} bytes, over the limit of {CHARSMAP_BYTES_MAX}");
            return Err(GgufError::Value { key: key.to_owned(), reason });
        }
        header.tokens.charsmap = vec![0; usize::try_from(len).expect("some megabytes")];
        reader.fill(&mut header.tokens.charsmap, "a table of replacements")?;
    } else {
        let kept = len.min(ARRAY_KEPT_LEN_MAX as u64);
        for _ in 0..kept {
            first.push(scalar(reader, key, id)?);
        }
        reader.skip((len - kept) * item_bytes, "an array")?;
    }
    Ok(Array { len, texts: false, first })
}

fn texts<R: Read + Seek>(reader: &mut Reader<R>, key: &str, len: u64, header: &mut Header) -> Result<Array, GgufError> {
    const WHAT: &str = "the length of a text in an array";
    if key == TOKENS && len > VOCAB_MAX {
        return Err(GgufError::Value {
            key: key.to_owned(),
            reason: format!("{len} tokens, over the limit of {VOCAB_MAX}"),
        });
    }
    let mut first = Vec::new();
    // By their hashes, with keys that nobody else knows: eight bytes each, where a token may have thousands.
    let (mut spellings, hasher) = (HashSet::new(), RandomState::new());
    for number in 0..len {
        let bytes = reader.count(WHAT, 1, TOKEN_BYTES_MAX)?;
        if key == TOKENS {
            let spelling = token(reader, bytes, header)?;
            let marker = MARKERS.into_iter().find(|marker| marker.as_bytes() == spelling);
            header.tokens.markers.extend(marker.map(|marker| (number, marker)));
            // An empty one gets a name of its own.
            if header.tokens.repeated.is_none() && bytes > 0 && !spellings.insert(hasher.hash_one(spelling)) {
                header.tokens.repeated = Some(number);
            }
        } else if first.len() < TEXTS_KEPT_MAX && len <= TEXTS_KEPT_MAX as u64 && bytes <= TEXT_KEPT_BYTES_MAX {
            let mut text = vec![0; usize::try_from(bytes).expect("some kilobytes")];
            reader.fill(&mut text, "a text in an array")?;
            first.push(Value::Text(String::from_utf8_lossy(&text).into_owned()));
        } else {
            reader.skip(bytes, "a text in an array")?;
        }
    }
    Ok(Array { len, texts: true, first })
}

/// Looks at the spelling of a token.
fn token<R: Read + Seek>(reader: &mut Reader<R>, bytes: u64, header: &mut Header) -> Result<Vec<u8>, GgufError> {
    let mut spelling = vec![0; usize::try_from(bytes).expect("tokens are limited to some kilobytes")];
    reader.fill(&mut spelling, "a token")?;
    let byte = byte_token(&spelling);
    header.tokens.spelled_as_byte.push(byte.is_some());
    header.tokens.bytes_spelled.extend(byte);
    for (role, spellings) in INFILL.iter().enumerate() {
        header.tokens.infill[role] |= spellings.iter().any(|known| known.as_bytes() == spelling);
    }
    Ok(spelling)
}

fn byte_token(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">").filter(|digits| digits.len() == 2)?;
    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn tensors<R: Read + Seek>(reader: &mut Reader<R>, count: u64, header: &mut Header) -> Result<(), GgufError> {
    let mut names = HashSet::new();
    for _ in 0..count {
        let name = reader.text("the length of a tensor's name", TENSOR_NAME_BYTES_MAX)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let wrong = |reason: String| GgufError::Tensor { name: name.clone(), reason };
        if !names.insert(name.clone()) {
            return Err(wrong("it is there twice".into()));
        }
        let dimensions = reader.u32("the dimensions of a tensor")?;
        if dimensions > DIMENSIONS_MAX {
            return Err(wrong(format!("{dimensions} dimensions, at most {DIMENSIONS_MAX} are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(reader.u64("the shape of a tensor")?);
        }
        let id = reader.u32("the type of a tensor")?;
        let offset = reader.u64("the offset of a tensor")?;
        let dtype = tensor_type(id).ok_or_else(|| wrong(format!("unknown type {id}")))?;
        if shape.contains(&0) {
            return Err(wrong(format!("a dimension of its shape {shape:?} is zero")));
        }
        let too_large = || wrong(format!("its shape {shape:?} is too large"));
        let elements =
            shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side)).ok_or_else(too_large)?;
        if i64::try_from(elements).is_err() {
            return Err(too_large());
        }
        let row = shape.first().copied().unwrap_or(1);
        if row % dtype.block_len != 0 {
            return Err(wrong(format!("rows of {row} elements are no whole blocks of {}", dtype.name)));
        }
        let bytes = (elements / dtype.block_len).checked_mul(dtype.block_bytes).ok_or_else(too_large)?;
        header.tensors.push(Tensor { name, dtype, shape, offset, bytes, elements });
    }
    Ok(())
}

/// Checks that every tensor lies within the file, so that llama.cpp never maps past its end.
fn extents(header: &mut Header, header_end: u64) -> Result<(), GgufError> {
    let alignment = match header.get("general.alignment") {
        None => ALIGNMENT,
        Some(value) => value.as_u64().filter(|it| it.is_power_of_two() && *it <= ALIGNMENT_MAX).ok_or_else(|| {
            let reason = "not a power of two in the usual range".to_owned();
            GgufError::Value { key: "general.alignment".into(), reason }
        })?,
    };
    let data_start = header_end.next_multiple_of(alignment);
    let there = header.file_bytes.saturating_sub(data_start);
    let mut needed = 0_u64;
    for tensor in &header.tensors {
        let wrong = |reason: String| GgufError::Tensor { name: tensor.name.clone(), reason };
        if tensor.offset % alignment != 0 {
            return Err(wrong(format!("its offset {} is no multiple of {alignment}", tensor.offset)));
        }
        let end = tensor.offset.checked_add(tensor.bytes).ok_or_else(|| wrong("its offset is too large".into()))?;
        needed = needed.max(end);
    }
    if needed > there {
        return Err(GgufError::Truncated { tensors: header.tensors.len(), needed, there });
    }
    Ok(())
}
