//! `tokenizer.json` and its siblings: text to tokens, and the vocabulary table.
//!
//! The table holds the bytes of every token, so that nothing downstream has to know whether a vocabulary spells bytes
//! as letters (byte-level BPE) or spaces as `▁` and bytes as `<0xNN>` (SentencePiece).
//!
//! The file is hostile: [`check`] looks at it before it is read, [`bounded`] at what it makes of a text. Its decoder never runs.

mod bounded;
mod check;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use ollmlx_proto::{Failure, FailureKind, TokenId};
use ollmlx_worker_kit::vocab::{TokenKind, Vocab};
use serde_json::{Map, Value};

use self::bounded::Bounded;
use super::config::{invalid, read_bounded, read_object};
use super::limits::{TEMPLATE_BYTES_MAX, TOKENIZER_BYTES_MAX};

/// Names that end a turn wherever they are control tokens: many checkpoints list only one of their ends.
const TURN_ENDS: [&str; 9] = [
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<EOT>",
];

/// Fill-in-the-middle markers: prefix, suffix, middle.
const INFILL: [[&str; 3]; 3] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"],
];

/// A model's tokenizer.
pub struct Tokenizer {
    texts: Bounded,
    vocab: Arc<Vocab>,
    /// What is put before and behind a text: the beginning-of-sequence token, or all that the file's template has (encoders).
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.vocab.len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the files of a folder. `vocab_size` is the model's: its logits may be more than the tokenizer knows.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn load(folder: &Path, vocab_size: usize, wrap: bool) -> Result<Self, Failure> {
        let bytes = read_bounded(&folder.join("tokenizer.json"), TOKENIZER_BYTES_MAX)?
            .ok_or_else(|| invalid("tokenizer.json is missing"))?;
        let texts = Bounded::read(&bytes)?;
        drop(bytes);
        let vocab = Arc::new(build_vocab(&texts, folder, vocab_size)?);
        let (before, after) = match wrap {
            true => frame(&texts)?,
            false => (vocab.bos.filter(|_| vocab.add_bos).into_iter().collect(), Vec::new()),
        };
        Ok(Self { texts, vocab, before, after })
    }

    /// The vocabulary table.
    #[must_use]
    pub fn vocab(&self) -> &Arc<Vocab> {
        &self.vocab
    }

    /// Text to tokens, see [`ollmlx_worker_kit::engine::Engine::tokenize`].
    ///
    /// # Errors
    /// The tokenizer refused the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        let mut tokens = self.texts.ids(text, parse_special)?;
        if add_special {
            tokens = [&*self.before, &*tokens, &*self.after].concat();
        }
        let known = self.vocab.len();
        if tokens.iter().any(|&token| token as usize >= known) {
            return Err(Failure::new(FailureKind::InvalidRequest, "the text has a token that the model does not have"));
        }
        Ok(tokens)
    }
}

impl ollmlx_worker_kit::engine::Tokenizer for Tokenizer {
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        self.encode(text, add_special, parse_special)
    }
}

/// What the file's template puts before and behind a text.
fn frame(texts: &Bounded) -> Result<(Vec<TokenId>, Vec<TokenId>), Failure> {
    const SAMPLE: &str = "a";
    let refused = || invalid("tokenizer.json: its post_processor is not one that we run");
    let bare = texts.ids(SAMPLE, true).map_err(|failure| refused().with_detail(failure.public))?;
    let framed = texts.framed(SAMPLE).map_err(|error| refused().with_detail(error.to_string()))?;
    let place = framed.windows(bare.len().max(1)).position(|part| part == bare).ok_or_else(refused)?;
    Ok((framed[..place].to_vec(), framed[place + bare.len()..].to_vec()))
}

/// How token texts stand for bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each byte is a letter.
    ByteLevel,
    /// `▁` is a space and `<0xNN>` a byte.
    SentencePiece,
}

fn build_vocab(texts: &Bounded, folder: &Path, vocab_size: usize) -> Result<Vocab, Failure> {
    let tokenizer = &texts.inner;
    let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok()).unwrap_or_default();
    let spelling = if decoder.contains("\"ByteLevel\"") { Spelling::ByteLevel } else { Spelling::SentencePiece };
    let letters = byte_letters();
    let mut vocab =
        Vocab { bytes: vec![Vec::new(); vocab_size], kinds: vec![TokenKind::Unused; vocab_size], ..Vocab::default() };
    for (text, id) in tokenizer.get_vocab(false) {
        if let Some(bytes) = vocab.bytes.get_mut(id as usize) {
            *bytes = token_bytes(&text, spelling, &letters);
            vocab.kinds[id as usize] = TokenKind::Text;
        }
    }
    let added = tokenizer.get_added_tokens_decoder();
    for (id, token) in added {
        // Gemma's text models ship the tokenizer of their siblings, whose image token they do not have.
        let Some(bytes) = vocab.bytes.get_mut(id as usize) else { continue };
        // Runs of spaces that SentencePiece vocabularies add are spelt like the rest.
        *bytes = if token.special || spelling == Spelling::ByteLevel {
            token.content.clone().into_bytes()
        } else {
            token_bytes(&token.content, spelling, &letters)
        };
        vocab.kinds[id as usize] = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
    }
    vocab.add_space_prefix = spelling == Spelling::SentencePiece && strips_first_space(&decoder);
    read_special_tokens(texts, folder, &mut vocab)?;
    Ok(vocab)
}

/// Whether the decoder takes a leading space away, which the normaliser has put there.
fn strips_first_space(decoder: &str) -> bool {
    let strip = decoder.contains("\"Strip\"") && decoder.contains("\"start\":1");
    let metaspace = decoder.contains("\"Metaspace\"") && !decoder.contains("\"prepend_scheme\":\"never\"");
    strip || metaspace
}

fn read_special_tokens(texts: &Bounded, folder: &Path, vocab: &mut Vocab) -> Result<(), Failure> {
    let tokenizer = &texts.inner;
    let settings = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let generation = read_object(&folder.join("generation_config.json"))?.unwrap_or_default();
    let config = read_object(&folder.join("config.json"))?.unwrap_or_default();
    let named = |key: &str| {
        let text = match settings.get(key)? {
            Value::String(text) => text,
            Value::Object(token) => token.get("content")?.as_str()?,
            _ => return None,
        };
        tokenizer.token_to_id(text)
    };
    let len = vocab.len();
    let valid = |id: &TokenId| (*id as usize) < len;
    let listed = |map: &Map<String, Value>, key: &str| -> Vec<TokenId> {
        let ids = match map.get(key) {
            Some(Value::Array(list)) => list.iter().take(64).filter_map(Value::as_u64).collect(),
            Some(value) => value.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        ids.into_iter().filter_map(|id| TokenId::try_from(id).ok()).filter(valid).collect()
    };
    vocab.bos = named("bos_token").filter(valid).or_else(|| listed(&config, "bos_token_id").first().copied());
    let mut ends: BTreeSet<TokenId> = listed(&generation, "eos_token_id").into_iter().collect();
    ends.extend(listed(&config, "eos_token_id"));
    let eos = named("eos_token").filter(valid);
    vocab.eos = eos.or_else(|| ends.first().copied());
    ends.extend(vocab.eos);
    for name in TURN_ENDS {
        let id = tokenizer.token_to_id(name).filter(valid);
        ends.extend(id.filter(|&id| vocab.kinds[id as usize] == TokenKind::Control));
    }
    // An end that is spelt as text would never be shown, but must never be an answer either.
    for &end in &ends {
        vocab.kinds[end as usize] = TokenKind::Control;
    }
    vocab.ends = ends;
    vocab.add_bos = match settings.get("add_bos_token") {
        Some(Value::Bool(add)) => *add,
        _ => adds_bos(texts, vocab.bos),
    } && vocab.bos.is_some();
    vocab.infill = INFILL.iter().find_map(|[prefix, suffix, middle]| {
        let id = |name: &str| tokenizer.token_to_id(name).filter(valid);
        Some((id(prefix)?, id(suffix)?, id(middle)?))
    });
    Ok(())
}

fn adds_bos(texts: &Bounded, bos: Option<TokenId>) -> bool {
    bos.is_some() && texts.framed("a").is_ok_and(|tokens| tokens.first().copied() == bos)
}

fn token_bytes(text: &str, spelling: Spelling, letters: &HashMap<char, u8>) -> Vec<u8> {
    match spelling {
        Spelling::ByteLevel => {
            let bytes: Option<Vec<u8>> = text.chars().map(|letter| letters.get(&letter).copied()).collect();
            bytes.unwrap_or_else(|| text.as_bytes().to_vec())
        }
        Spelling::SentencePiece => {
            let byte = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
            match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            }
        }
    }
}

/// GPT-2's table: printable bytes stand for themselves, the others for letters from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let mut letters = HashMap::new();
    let mut next = 0x100_u32;
    for byte in 0..=255_u8 {
        let plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let letter = if plain {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
        letters.insert(letter, byte);
    }
    letters
}

/// The model's own chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (a text, or a
/// list of named ones of which `default` counts).
///
/// # Errors
/// A file is too large or no text.
pub fn chat_template(folder: &Path) -> Result<Option<String>, Failure> {
    if let Some(bytes) = read_bounded(&folder.join("chat_template.jinja"), TEMPLATE_BYTES_MAX)? {
        return String::from_utf8(bytes).map(Some).map_err(|_| invalid("chat_template.jinja is not UTF-8"));
    }
    let Some(settings) = read_object(&folder.join("tokenizer_config.json"))? else { return Ok(None) };
    let template = match settings.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .or_else(|| list.first())
            .and_then(|entry| entry.get("template"))
            .and_then(Value::as_str)
            .map(str::to_owned),
        _ => None,
    };
    match template {
        Some(text) if text.len() as u64 > TEMPLATE_BYTES_MAX => {
            Err(invalid(format!("the chat template is larger than {TEMPLATE_BYTES_MAX} bytes")))
        }
        template => Ok(template),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_letters_are_one_to_one() {
        let letters = byte_letters();
        assert_eq!(letters.len(), 256);
        assert_eq!(letters[&'Ġ'], b' ');
        assert_eq!(letters[&'Ċ'], b'\n');
    }

    #[test]
    fn sentencepiece_spellings_become_bytes() {
        let none = HashMap::new();
        assert_eq!(token_bytes("▁the", Spelling::SentencePiece, &none), b" the");
        assert_eq!(token_bytes("<0x0A>", Spelling::SentencePiece, &none), b"\n");
        assert_eq!(token_bytes("<0x-1>", Spelling::SentencePiece, &none), b"<0x-1>");
    }

    #[test]
    fn the_template_file_goes_before_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"chat_template":[{"name":"x","template":"X"},{"name":"default","template":"D"}]}"#,
        )
        .unwrap();
        assert_eq!(chat_template(folder.path()).unwrap().as_deref(), Some("D"));
        std::fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
        assert_eq!(chat_template(folder.path()).unwrap().as_deref(), Some("J"));
    }
}
