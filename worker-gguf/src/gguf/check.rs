//! What a header must say before llama.cpp sees the file.
//!
//! llama.cpp aborts, divides by zero or writes past its arrays on some headers that are well-formed but make no sense. They
//! are refused here, with the key that is wrong: each value by the table of [`super::keys`], several together in
//! [`super::relations`], the vocabulary in [`super::vocabulary`]. What it reports as an error by itself is left to it.

use super::{GgufError, Header, Tensor, Value, keys, relations, vocabulary};

/// Architectures that are no language models.
const PROJECTORS: [&str; 2] = ["clip", "mmproj"];
/// Architectures that llama.cpp runs with an encoder and a decoder, which the engine does not do.
const ENCODER_DECODERS: [&str; 1] = ["t5"];
/// Architectures that guess for another model, without which llama.cpp ends the process.
const DRAFTS: [&str; 3] = ["eagle3", "dflash", "gemma4-assistant"];
/// Architectures that make sound of numbers.
const VOICES: [&str; 2] = ["wavtokenizer-dec", "pockettts"];

/// Types that nothing is multiplied by. Tables of numbers have them.
const UNCOMPUTED: [&str; 7] = ["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"];
/// What the names of such tables contain.
const TABLES: [&str; 3] = ["d2t", "t2d", "tid2eid"];

/// Checks a header of a main model (the first shard's, where there are several).
///
/// # Errors
/// What is wrong with it.
pub fn check(header: &Header) -> Result<(), GgufError> {
    architecture(header)?;
    for suffix in ["block_count", "embedding_length", "context_length"] {
        if header.arch(suffix).is_none() {
            return Err(GgufError::Missing { key: format!("{}.{suffix}", header.architecture()) });
        }
    }
    keys::check(header)?;
    relations::check(header)?;
    vocabulary::check(header)?;
    tensors(header)
}

/// Checks the weights of a shard. A norm or a bias is added to or multiplied with floats; ggml ends the process for others.
///
/// # Errors
/// The first that can't be computed with.
pub fn tensors(header: &Header) -> Result<(), GgufError> {
    header.tensors.iter().try_for_each(tensor)
}

fn tensor(tensor: &Tensor) -> Result<(), GgufError> {
    let (name, dtype) = (&tensor.name, tensor.dtype.name);
    let wrong = |reason: String| Err(GgufError::Tensor { name: name.clone(), reason });
    if TABLES.iter().any(|word| name.contains(word)) {
        return Ok(());
    }
    if UNCOMPUTED.contains(&dtype) {
        return wrong(format!("weights of type {dtype} can't be computed with"));
    }
    let is_norm_or_bias = name.ends_with("norm.weight") || name.ends_with(".bias");
    if is_norm_or_bias && dtype != "F32" {
        return wrong(format!("its type is {dtype}, where F32 is needed"));
    }
    Ok(())
}

fn architecture(header: &Header) -> Result<(), GgufError> {
    const KEY: &str = "general.architecture";
    let bad = |reason: String| Err(GgufError::Value { key: KEY.into(), reason });
    let name = match header.get(KEY) {
        None => return Err(GgufError::Missing { key: KEY.into() }),
        Some(Value::Text(name)) => name.as_str(),
        Some(other) => return bad(format!("{} where a text belongs", other.kind())),
    };
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_' || letter == b'.';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return bad("not a name".into());
    }
    let kind = header.text("general.type").unwrap_or("model");
    let other = |what: String| Err(GgufError::WrongKind(what));
    if PROJECTORS.contains(&name) || kind == "mmproj" || kind == "projector" {
        return other(
            "this is a projector for images or sound, not a language model; name the model that it belongs to".into(),
        );
    }
    if kind == "adapter" {
        return other("this is an adapter (LoRA), not a model; name it in ADAPTER".into());
    }
    if kind == "imatrix" {
        return other("this is an importance matrix, not a model".into());
    }
    if DRAFTS.contains(&name) {
        return other(format!("this is a draft model ({name}), which works only beside the model that it guesses for"));
    }
    if VOICES.contains(&name) {
        return other(format!("this is a model of sound ({name}), not a language model"));
    }
    if ENCODER_DECODERS.contains(&name) {
        return other(format!("encoder-decoder models ({name}) are not supported"));
    }
    Ok(())
}
