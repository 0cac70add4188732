//! What of a `tokenizer.json` is refused before the library reads it.
//!
//! The library believes the file: it copies what it doesn't know yet, puts as much in place of a letter as it says, and tries as
//! many ends of a word as it allows. So the sizes that memory or time grow with are looked at first, in one pass and
//! without building what is not small. What only a text can show is bounded where it is read: see [`super::bounded`].

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ollmlx_proto::Failure;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::config::invalid;
use super::super::limits::{
    ADDED_BYTES_MAX, ADDED_TOKENS_MAX, CHARSMAP_PIECE_BYTES_MAX, JSON_VALUES_MAX, MARKERS_MAX, NORMALISER_BYTES_MAX,
    REPLACEMENT_BYTES_MAX, SECTION_BYTES_MAX, STEPS_MAX, UNIGRAM_PIECE_BYTES_MAX, WORD_AFFIX_BYTES_MAX,
    WORD_LETTERS_MAX,
};

/// The file, of which only small parts are kept.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(default)]
    added_tokens: Option<Added>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow, default)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    end_of_word_suffix: Option<Cow<'a, str>>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    vocab: Pieces,
}

/// Whether the library may read the file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(bytes: &[u8]) -> Result<(), Failure> {
    let values = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > JSON_VALUES_MAX {
        return Err(bad(format!("it has more than {JSON_VALUES_MAX} values")));
    }
    let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| unusable(&error))?;
    if let Some(normaliser) = section("normalizer", file.normalizer, NORMALISER_BYTES_MAX)? {
        let mut left = STEPS_MAX;
        normalisers(&normaliser, &mut left)?;
    }
    if let Some(pre_tokenizer) = section("pre_tokenizer", file.pre_tokenizer, SECTION_BYTES_MAX)? {
        let mut left = STEPS_MAX;
        steps(&pre_tokenizer, "pretokenizers", "pre_tokenizer", &mut left)?;
    }
    if let Some(post_processor) = section("post_processor", file.post_processor, SECTION_BYTES_MAX)? {
        let mut left = STEPS_MAX;
        for step in steps(&post_processor, "processors", "post_processor", &mut left)? {
            markers(step)?;
        }
    }
    section("decoder", file.decoder, SECTION_BYTES_MAX)?;
    if file.added_tokens.is_some_and(|Added { count, bytes }| count > ADDED_TOKENS_MAX || bytes > ADDED_BYTES_MAX) {
        return Err(bad(format!("it adds more than {ADDED_TOKENS_MAX} tokens or {ADDED_BYTES_MAX} bytes of them")));
    }
    model(&file.model)
}

fn bad(what: impl fmt::Display) -> Failure {
    invalid(format!("tokenizer.json: {what}"))
}

fn unusable(error: &serde_json::Error) -> Failure {
    invalid("tokenizer.json is not usable").with_detail(error.to_string())
}

/// A part that is to be small, whatever it says.
fn section(name: &str, raw: Option<&RawValue>, bytes_max: usize) -> Result<Option<Value>, Failure> {
    let Some(raw) = raw else { return Ok(None) };
    if raw.get().len() > bytes_max {
        return Err(bad(format!("its {name} is larger than {bytes_max} bytes")));
    }
    serde_json::from_str(raw.get()).map(Some).map_err(|error| unusable(&error))
}

/// The steps of a sequence of sequences, in their order. One that is none is itself.
fn steps<'a>(part: &'a Value, key: &str, name: &str, left: &mut usize) -> Result<Vec<&'a Value>, Failure> {
    *left = left.checked_sub(1).ok_or_else(|| bad(format!("its {name} has more than {STEPS_MAX} steps")))?;
    let Some(Value::Array(parts)) = part.get(key) else { return Ok(vec![part]) };
    let mut all = Vec::new();
    for part in parts {
        all.append(&mut steps(part, key, name, left)?);
    }
    Ok(all)
}

/// What is put in place of a letter, or for nothing.
fn normalisers(normaliser: &Value, left: &mut usize) -> Result<(), Failure> {
    let refused = || bad("its normalizer is not one that we run");
    for step in steps(normaliser, "normalizers", "normalizer", left)? {
        let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
        let pattern = step.get("pattern").and_then(|pattern| pattern.get("String").or_else(|| pattern.get("Regex")));
        let empty = pattern.and_then(Value::as_str).is_some_and(str::is_empty);
        if empty || text("content").len().max(text("prepend").len()) > REPLACEMENT_BYTES_MAX {
            return Err(refused());
        }
        if let Some(charsmap) = step.get("precompiled_charsmap").and_then(Value::as_str)
            && longest_piece(charsmap).is_none_or(|bytes| bytes > CHARSMAP_PIECE_BYTES_MAX)
        {
            return Err(refused());
        }
    }
    Ok(())
}

/// Bytes of the longest text that a SentencePiece map puts in place of a letter: a length, so many bytes of a trie,
/// and behind them the texts, each ended by a zero. `None` where it is no such map.
fn longest_piece(charsmap: &str) -> Option<usize> {
    let bytes = STANDARD.decode(charsmap).ok()?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let texts = rest.get(usize::try_from(u32::from_le_bytes(*length)).ok()?..)?;
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max()
}

/// A template puts its markers around one text, once.
fn markers(step: &Value) -> Result<(), Failure> {
    let Some(single) = step.get("single") else { return Ok(()) };
    let single = single.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = single.iter().filter(|piece| piece.get("Sequence").is_some()).count();
    let ids = |marker: &Value| marker.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
    let markers = match step.get("special_tokens") {
        Some(Value::Object(markers)) => markers.values().map(ids).max(),
        Some(Value::Array(markers)) => markers.iter().map(ids).max(),
        _ => None,
    };
    if texts != 1 || single.len() > MARKERS_MAX || markers.is_some_and(|count| count > MARKERS_MAX) {
        return Err(bad("its post_processor is not one that we run"));
    }
    Ok(())
}

fn model(model: &Model<'_>) -> Result<(), Failure> {
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if affixes.into_iter().flatten().any(|affix| affix.len() > WORD_AFFIX_BYTES_MAX) {
        return Err(bad(format!("parts of its words are marked with more than {WORD_AFFIX_BYTES_MAX} bytes")));
    }
    if model.max_input_chars_per_word.is_some_and(|letters| letters > WORD_LETTERS_MAX) {
        return Err(bad(format!("max_input_chars_per_word is over {WORD_LETTERS_MAX}")));
    }
    if model.vocab.longest > UNIGRAM_PIECE_BYTES_MAX {
        return Err(bad(format!("a piece of its vocabulary has more than {UNIGRAM_PIECE_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// How many tokens are added, and the bytes of their texts.
struct Added {
    count: usize,
    bytes: usize,
}

impl<'de> Deserialize<'de> for Added {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Token<'a> {
            #[serde(borrow)]
            content: Cow<'a, str>,
        }
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Added;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of added tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Added, A::Error> {
                let mut added = Added { count: 0, bytes: 0 };
                while let Some(Token { content }) = list.next_element()? {
                    added.count += 1;
                    added.bytes += content.len();
                }
                Ok(added)
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// The vocabulary: a map of tokens, or a list of pieces with their scores, for which alone a piece's length matters.
#[derive(Default)]
struct Pieces {
    longest: usize,
}

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Longest;
        impl<'de> Visitor<'de> for Longest {
            type Value = Pieces;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Pieces::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pieces, A::Error> {
                let mut longest = 0;
                while let Some((piece, _score)) = list.next_element::<(Cow<'de, str>, f64)>()? {
                    longest = longest.max(piece.len());
                }
                Ok(Pieces { longest })
            }
        }
        deserializer.deserialize_any(Longest)
    }
}
