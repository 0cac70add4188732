//! Checks of a header's meaning, before llama.cpp sees the file.
//!
//! llama.cpp aborts, or worse, on some headers that are well-formed and absurd (more layers than its fixed arrays hold, a
//! vocabulary whose parts differ in length, special tokens outside it). What can be told from the header is refused
//! here with the key that is wrong.

use crate::gguf::{Header, Value};

/// llama.cpp's `LLAMA_MAX_LAYERS`.
const LAYERS_MAX: u64 = 512;
/// Tokens of a vocabulary.
const TOKENS_MAX: u64 = 4_000_000;
/// Bytes of one token.
const TOKEN_BYTES_MAX: u64 = 65_536;
/// Width of a model.
const WIDTH_MAX: u64 = 1 << 20;
/// Experts, heads.
const PARTS_MAX: u64 = 65_536;
const CONTEXT_MAX: u64 = 1 << 30;

/// Why a well-formed header is refused, in words.
pub(crate) type Reason = String;

/// Checks `header`.
///
/// # Errors
/// The first thing that can't be.
pub(crate) fn check(header: &Header) -> Result<(), Reason> {
    let architecture = header
        .get("general.architecture")
        .ok_or("the metadata key general.architecture is missing")?
        .as_str()
        .filter(|name| !name.is_empty() && name.len() < 64)
        .ok_or("general.architecture is not a name")?;
    if matches!(architecture, "clip" | "mmproj") {
        return Err("this is a projector (vision or audio part), not a language model; use it beside its model".into());
    }
    if header.get("adapter.type").is_some() {
        return Err("this is an adapter (LoRA), not a model; use it with ADAPTER beside its model".into());
    }
    if header.tensors.is_empty() {
        return Err("the file has no tensors: it is a vocabulary or a header only".into());
    }
    within(header, architecture, "block_count", 1, LAYERS_MAX)?;
    within(header, architecture, "context_length", 1, CONTEXT_MAX)?;
    within(header, architecture, "embedding_length", 1, WIDTH_MAX)?;
    within(header, architecture, "expert_count", 0, PARTS_MAX)?;
    within(header, architecture, "attention.key_length", 1, WIDTH_MAX)?;
    within(header, architecture, "attention.value_length", 1, WIDTH_MAX)?;
    per_layer(header, architecture, "attention.head_count", PARTS_MAX)?;
    per_layer(header, architecture, "attention.head_count_kv", PARTS_MAX)?;
    per_layer(header, architecture, "feed_forward_length", WIDTH_MAX * 16)?;
    vocabulary(header)
}

fn within(header: &Header, architecture: &str, name: &str, min: u64, max: u64) -> Result<(), Reason> {
    let key = format!("{architecture}.{name}");
    match header.get(&key) {
        None => Ok(()),
        Some(value) => match value.as_u64() {
            Some(number) if (min..=max).contains(&number) => Ok(()),
            Some(number) => Err(format!("{key} is {number}; {min} to {max} is possible")),
            None => Err(format!("{key} is not a whole number of {min} to {max}")),
        },
    }
}

/// A number, or an array with one number per layer.
fn per_layer(header: &Header, architecture: &str, name: &str, max: u64) -> Result<(), Reason> {
    let key = format!("{architecture}.{name}");
    let Some(Value::Array { len, elements, .. }) = header.get(&key) else {
        return within(header, architecture, name, 0, max);
    };
    let layers = header.get(&format!("{architecture}.block_count")).and_then(Value::as_u64).unwrap_or(0);
    if *len < layers {
        return Err(format!("{key} has {len} elements for {layers} layers"));
    }
    let fits = |value: &Value| value.as_u64().is_some_and(|number| number <= max);
    match elements {
        Some(elements) if elements.iter().all(fits) => Ok(()),
        _ => Err(format!("{key} holds something that is not a number of 0 to {max}")),
    }
}

fn array_len(header: &Header, key: &str) -> Result<Option<(u64, u64)>, Reason> {
    match header.get(key) {
        None => Ok(None),
        Some(Value::Array { len, longest, .. }) => Ok(Some((*len, *longest))),
        Some(_) => Err(format!("{key} is not an array")),
    }
}

fn vocabulary(header: &Header) -> Result<(), Reason> {
    let Some((tokens, longest)) = array_len(header, "tokenizer.ggml.tokens")? else {
        return match header.get("tokenizer.ggml.model").and_then(Value::as_str) {
            Some("none" | "no_vocab") => Ok(()),
            _ => Err("the vocabulary (tokenizer.ggml.tokens) is missing".into()),
        };
    };
    if !matches!(header.get("tokenizer.ggml.tokens"), Some(Value::Array { kind: 8, .. })) {
        return Err("tokenizer.ggml.tokens is not an array of strings".into());
    }
    if tokens == 0 || tokens > TOKENS_MAX {
        return Err(format!("tokenizer.ggml.tokens has {tokens} elements; 1 to {TOKENS_MAX} is possible"));
    }
    if longest > TOKEN_BYTES_MAX {
        return Err(format!("tokenizer.ggml.tokens holds a token of {longest} bytes; {TOKEN_BYTES_MAX} is the most"));
    }
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some((len, _)) = array_len(header, key)?
            && len != tokens
        {
            return Err(format!("{key} has {len} elements for {tokens} tokens"));
        }
    }
    for (key, value) in &header.entries {
        let is_id = key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id");
        if !is_id {
            continue;
        }
        // llama.cpp's own files use -1 (as 2^32 - 1) for "none".
        let none = value.as_u64() == Some(u64::from(u32::MAX)) || *value == Value::Signed(-1);
        if !none && !value.as_u64().is_some_and(|id| id < tokens) {
            return Err(format!("{key} is outside the vocabulary of {tokens} tokens"));
        }
    }
    Ok(())
}
