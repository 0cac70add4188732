//! What a header must say before llama.cpp sees the file.
//!
//! llama.cpp aborts, or writes past its arrays, on some headers that are well-formed but make no sense. Those that are
//! known are refused here, with the key that is wrong. What it reports as an error by itself is left to it.

use super::limits::{CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX};
use super::{Array, GgufError, Header, Value};

/// `token_type` of a token that stands for one byte.
const BYTE_TOKEN: u8 = 6;

/// Architectures that are no language models.
const PROJECTORS: [&str; 2] = ["clip", "mmproj"];
/// Architectures that llama.cpp runs with an encoder and a decoder, which the engine does not do.
const ENCODER_DECODERS: [&str; 1] = ["t5"];

/// Checks a header of a main model (the first shard's, where there are several).
///
/// # Errors
/// What is wrong with it.
pub fn check(header: &Header) -> Result<(), GgufError> {
    architecture(header)?;
    sizes(header)?;
    per_layer_arrays(header)?;
    vocabulary(header)?;
    special_tokens(header)
}

fn bad(key: impl Into<String>, reason: impl Into<String>) -> GgufError {
    GgufError::Value { key: key.into(), reason: reason.into() }
}

fn architecture(header: &Header) -> Result<(), GgufError> {
    const KEY: &str = "general.architecture";
    let name = match header.get(KEY) {
        None => return Err(GgufError::Missing { key: KEY.into() }),
        Some(Value::Text(name)) => name.as_str(),
        Some(other) => return Err(bad(KEY, format!("{} where a text belongs", other.kind()))),
    };
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'_' || letter == b'.';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(bad(KEY, "not a name"));
    }
    let kind = header.text("general.type").unwrap_or("model");
    if PROJECTORS.contains(&name) || kind == "mmproj" || kind == "projector" {
        return Err(GgufError::WrongKind(
            "this is a projector for images or sound, not a language model; name the model that it belongs to".into(),
        ));
    }
    if kind == "adapter" {
        return Err(GgufError::WrongKind("this is an adapter (LoRA), not a model; name it in ADAPTER".into()));
    }
    if kind == "imatrix" {
        return Err(GgufError::WrongKind("this is an importance matrix, not a model".into()));
    }
    if ENCODER_DECODERS.contains(&name) {
        return Err(GgufError::WrongKind(format!("encoder-decoder models ({name}) are not supported")));
    }
    Ok(())
}

fn sizes(header: &Header) -> Result<(), GgufError> {
    for (suffix, max) in [("block_count", LAYERS_MAX), ("embedding_length", WIDTH_MAX), ("context_length", CONTEXT_MAX)]
    {
        let key = format!("{}.{suffix}", header.architecture());
        let value = header.get(&key).ok_or_else(|| GgufError::Missing { key: key.clone() })?;
        match value.as_u64() {
            Some(number) if (1..=max).contains(&number) => {}
            Some(number) => return Err(bad(key, format!("{number}, which is not between 1 and {max}"))),
            None => return Err(bad(key, format!("{} where a positive integer belongs", value.kind()))),
        }
    }
    Ok(())
}

/// llama.cpp copies such arrays to fixed ones and indexes them by layer.
fn per_layer_arrays(header: &Header) -> Result<(), GgufError> {
    let layers = header.arch_number("block_count").unwrap_or_default();
    for suffix in
        ["attention.head_count", "attention.head_count_kv", "feed_forward_length", "attention.sliding_window_pattern"]
    {
        let key = format!("{}.{suffix}", header.architecture());
        match header.get(&key) {
            Some(Value::Array(Array { texts: true, .. })) => return Err(bad(key, "texts where numbers belong")),
            Some(Value::Array(array)) if array.len > LAYERS_MAX || array.len < layers => {
                return Err(bad(key, format!("{} elements for {layers} layers", array.len)));
            }
            _ => {}
        }
    }
    for suffix in ["attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"]
    {
        for layer in 0..usize::try_from(layers).unwrap_or_default() {
            match header.per_layer(suffix, layer) {
                Some(number) if number > HEADS_MAX => {
                    return Err(bad(format!("{}.{suffix}", header.architecture()), format!("{number} is absurd")));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn vocabulary(header: &Header) -> Result<(), GgufError> {
    let model = header.text("tokenizer.ggml.model").unwrap_or_default();
    if model == "no_vocab" || model == "none" {
        return Err(GgufError::WrongKind("this model has no vocabulary, so there is no text to give to it".into()));
    }
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = header.array(&key("tokens")).ok_or_else(|| GgufError::Missing { key: key("tokens") })?;
    if !tokens.texts || tokens.len == 0 {
        return Err(bad(key("tokens"), "not a list of texts"));
    }
    if model.is_empty() {
        return Err(GgufError::Missing { key: key("model") });
    }
    for name in ["scores", "token_type"] {
        match header.get(&key(name)) {
            Some(Value::Array(array)) if array.len == tokens.len && !array.texts => {}
            Some(Value::Array(array)) => {
                return Err(bad(key(name), format!("{} elements for {} tokens", array.len, tokens.len)));
            }
            Some(other) => return Err(bad(key(name), format!("{} where a list belongs", other.kind()))),
            None => {}
        }
    }
    // Without scores a unigram tokenizer, without merges a byte-pair one would produce nonsense or nothing.
    let needed = match model {
        "llama" | "t5" => Some("scores"),
        "gpt2" => Some("merges"),
        _ => None,
    };
    if let Some(name) = needed
        && header.array(&key(name)).is_none()
    {
        return Err(GgufError::Missing { key: key(name) });
    }
    let types = header.tokens.types.iter().zip(&header.tokens.spelled_as_byte);
    if let Some(token) =
        types.enumerate().find_map(|(token, (kind, spelled))| (*kind == BYTE_TOKEN && !spelled).then_some(token))
    {
        return Err(bad(key("tokens"), format!("token {token} is a byte token but not spelled as one")));
    }
    Ok(())
}

/// An id outside the vocabulary. llama.cpp falls back to a default of its own, which is another model's token.
fn special_tokens(header: &Header) -> Result<(), GgufError> {
    let vocab_size = header.vocab_size();
    for (key, value) in &header.entries {
        let Some(name) = key.strip_prefix("tokenizer.ggml.").and_then(|name| name.strip_suffix("_token_id")) else {
            continue;
        };
        // Real files have padding ids one past the vocabulary, and nothing ever pads.
        let tolerated = name == "padding";
        match value.as_u64() {
            Some(id) if id < vocab_size || tolerated => {}
            Some(id) => return Err(bad(key, format!("{id}, but there are {vocab_size} tokens"))),
            None if tolerated => {}
            None => return Err(bad(key, format!("not a token id ({})", value.kind()))),
        }
    }
    Ok(())
}
