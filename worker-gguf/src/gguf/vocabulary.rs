//! What the vocabulary of a header must be like: llama.cpp ends the process, or throws through code that can't catch it, for
//! tokens that are there twice, for bytes that are spelled otherwise, and for special tokens that are nowhere.

use super::{GgufError, Header, Value, charsmap};

/// `token_type` of a token that stands for one byte.
const BYTE_TOKEN: u8 = 6;

/// A special token that there is without a key, and whether it is put to every text.
type Added = (Option<u64>, bool);

/// What llama.cpp takes where the header does not say: a tokenizer's name, its bos, eos and separator, and whether it adds
/// them. Where that depends on the header's `pre`, it may.
const DEFAULTS: [(&str, [Added; 3]); 8] = [
    ("llama", [(Some(1), true), (Some(2), false), (None, false)]),
    ("bert", [(Some(101), true), (None, false), (Some(102), true)]),
    ("gpt2", [(Some(11), true), (Some(11), true), (None, false)]),
    ("hybriddna", [(Some(11), true), (Some(11), true), (None, false)]),
    ("whitespace", [(Some(11), true), (Some(11), true), (None, false)]),
    ("t5", [(None, false), (Some(1), true), (None, false)]),
    ("plamo2", [(Some(1), true), (Some(2), false), (None, false)]),
    ("gemma4", [(None, true), (None, false), (None, false)]),
];

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn bad(name: &str, reason: impl Into<String>) -> GgufError {
    GgufError::Value { key: key(name), reason: reason.into() }
}

/// Checks the vocabulary.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(header: &Header) -> Result<(), GgufError> {
    let model = header.text("tokenizer.ggml.model").unwrap_or_default();
    if model == "no_vocab" || model == "none" {
        return Err(GgufError::WrongKind("this model has no vocabulary, so there is no text to give to it".into()));
    }
    let tokens = header.array(&key("tokens")).ok_or_else(|| GgufError::Missing { key: key("tokens") })?;
    if !tokens.texts || tokens.len == 0 {
        return Err(bad("tokens", "not a list of texts"));
    }
    if model.is_empty() {
        return Err(GgufError::Missing { key: key("model") });
    }
    lists(header, tokens.len)?;
    // Without scores a unigram tokenizer, without merges a byte-pair one would produce nonsense or nothing.
    let needed = match model {
        "llama" | "t5" => Some("scores"),
        "gpt2" | "gemma4" => Some("merges"),
        _ => None,
    };
    if let Some(name) = needed
        && header.array(&key(name)).is_none()
    {
        return Err(GgufError::Missing { key: key(name) });
    }
    if let Some(token) = header.tokens.repeated {
        return Err(bad("tokens", format!("token {token} is spelled as one before it")));
    }
    bytes(header, model)?;
    special_tokens(header)?;
    added_tokens(header, model)?;
    match header.tokens.charsmap.as_slice() {
        [] => Ok(()),
        bytes => charsmap::check(bytes).map_err(|reason| bad("precompiled_charsmap", reason)),
    }
}

/// Arrays that are read along with the tokens.
fn lists(header: &Header, token_count: u64) -> Result<(), GgufError> {
    for (name, texts, is_parallel) in [
        ("scores", false, true),
        ("token_type", false, true),
        ("merges", true, false),
        ("suppress_tokens", false, false),
        ("precompiled_charsmap", false, false),
    ] {
        match header.get(&key(name)) {
            Some(Value::Array(array)) if array.texts != texts => {
                let kinds = if texts { "numbers where texts belong" } else { "texts where numbers belong" };
                return Err(bad(name, kinds));
            }
            Some(Value::Array(array)) if is_parallel && array.len != token_count => {
                return Err(bad(name, format!("{} elements for {token_count} tokens", array.len)));
            }
            Some(Value::Array(_)) | None => {}
            Some(other) => return Err(bad(name, format!("{} where a list belongs", other.kind()))),
        }
    }
    Ok(())
}

fn bytes(header: &Header, model: &str) -> Result<(), GgufError> {
    let types = header.tokens.types.iter().zip(&header.tokens.spelled_as_byte);
    let byte_tokens = types.enumerate().filter(|(_, (kind, _))| **kind == BYTE_TOKEN);
    for (token, (_, spelled)) in byte_tokens {
        if !spelled {
            return Err(bad("tokens", format!("token {token} is a byte token but not spelled as one")));
        }
        if model == "bert" {
            return Err(bad(
                "token_type",
                format!("token {token} is a byte token, which this tokenizer does not have"),
            ));
        }
    }
    if model == "plamo2"
        && let Some(byte) = (0..=u8::MAX).find(|byte| !header.tokens.bytes_spelled.contains(byte))
    {
        return Err(bad("tokens", format!("<0x{byte:02X}> is missing, which this tokenizer needs")));
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
        let wrong = |reason| Err(GgufError::Value { key: key.clone(), reason });
        // Real files have padding ids one past the vocabulary, and nothing ever pads.
        let tolerated = name == "padding";
        match value.as_u64() {
            Some(id) if id < vocab_size || tolerated => {}
            Some(id) => return wrong(format!("{id}, but there are {vocab_size} tokens")),
            None if tolerated => {}
            None => return wrong(format!("not a token id ({})", value.kind())),
        }
    }
    Ok(())
}

/// A token that is put before or behind every text must be there.
fn added_tokens(header: &Header, model: &str) -> Result<(), GgufError> {
    let defaults =
        DEFAULTS.iter().find(|(name, _)| *name == model).map_or([(None, false); 3], |(_, defaults)| *defaults);
    let roles =
        [("bos_token_id", "add_bos_token"), ("eos_token_id", "add_eos_token"), ("seperator_token_id", "add_sep_token")];
    for ((id_name, flag_name), (default, adds)) in roles.into_iter().zip(defaults) {
        let there = header.number(&key(id_name)).or(default).is_some_and(|id| id < header.vocab_size());
        // The first and the last are added in any case there.
        let always = model == "bert" && adds;
        let is_added = match header.get(&key(flag_name)) {
            Some(Value::Bool(false)) => always,
            Some(_) => true,
            None => adds,
        };
        if is_added && !there {
            return Err(GgufError::Missing { key: key(id_name) });
        }
    }
    Ok(())
}
