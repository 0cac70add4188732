//! Hostile and honest headers, written by a small writer of our own.

use super::{GgufError, Header, read_bytes};
use crate::sanity;

/// Builds files byte by byte, with lies where asked.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut entry = string(key);
        entry.extend(kind.to_le_bytes());
        entry.extend(value);
        self.entries.push(entry);
        self
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn array(self, key: &str, kind: u32, len: u64, elements: &[u8]) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(len.to_le_bytes());
        value.extend(elements);
        self.raw(key, 9, &value)
    }

    pub(crate) fn tokens(self, tokens: &[&str]) -> Self {
        let elements: Vec<u8> = tokens.iter().flat_map(|token| string(token)).collect();
        self.array("tokenizer.ggml.tokens", 8, tokens.len() as u64, &elements)
    }

    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut tensor = string(name);
        tensor.extend((shape.len() as u32).to_le_bytes());
        for size in shape {
            tensor.extend(size.to_le_bytes());
        }
        tensor.extend(kind.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
        self
    }

    pub(crate) fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for part in self.entries.iter().chain(&self.tensors) {
            bytes.extend(part);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn header(&self) -> Result<Header, GgufError> {
        read_bytes(&self.bytes())
    }
}

/// A small model that is legal.
pub(crate) fn legal() -> Writer {
    Writer::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.attention.head_count", 2)
        .tokens(&["<s>", "a", "b"])
        .tensor("token_embd.weight", &[32, 3], 0, 0)
        .data(32 * 3 * 4)
}

fn check(writer: &Writer, expect: &str) {
    let text = match writer.header() {
        Err(error) => error.to_string(),
        Ok(header) => sanity::check(&header).expect_err("must be refused"),
    };
    assert!(text.contains(expect), "{text:?} does not say {expect:?}");
}

#[test]
fn a_legal_file_is_read() {
    let header = legal().header().expect("legal");
    sanity::check(&header).expect("sane");
    assert_eq!(header.tensors[0].bytes, 384);
    assert_eq!(header.tensors[0].elements, 96);
}

#[test]
fn s19_every_prefix_is_an_error_and_never_a_panic() {
    let whole = legal().bytes();
    for end in 0..whole.len() {
        assert!(read_bytes(&whole[..end]).is_err(), "{end} bytes of {} were accepted", whole.len());
    }
}

#[test]
fn s19_strangers_say_what_they_are() {
    check(&Writer { magic: *b"PK\x03\x04", ..legal() }, "not a GGUF file");
    check(&Writer { version: 3_u32.swap_bytes(), ..legal() }, "big-endian");
    check(&Writer { version: 99, ..legal() }, "version 99");
}

#[test]
fn s21_counts_are_not_believed() {
    check(&Writer { entry_count: Some(1 << 62), ..legal() }, "metadata count");
    check(&Writer { tensor_count: Some(1 << 62), ..legal() }, "tensor count");
    let lying_key = [&u64::MAX.to_le_bytes()[..], b"x"].concat();
    let mut bytes = Writer { entry_count: Some(1), ..Writer::new() }.bytes()[..24].to_vec();
    bytes.extend(&lying_key);
    assert!(read_bytes(&bytes).is_err());
    check(&legal().raw("x", 8, &(1_u64 << 40).to_le_bytes()), "string value");
    for kind in [4, 8, 9] {
        check(&legal().array("x", kind, 1 << 60, &[]), "array");
    }
}

#[test]
fn s21_nested_arrays_end() {
    let mut value = Vec::new();
    for _ in 0..1000 {
        value.extend(9_u32.to_le_bytes());
        value.extend(1_u64.to_le_bytes());
    }
    value.extend([0; 64]);
    check(&legal().raw("x", 9, &value), "nested too deeply");
}

#[test]
fn s21_shapes_and_keys_are_checked() {
    let odd = |shape: &[u64], kind| legal().tensor("t", shape, kind, 0);
    check(&odd(&[1; 65], 0), "65 dimensions");
    check(&odd(&[1 << 40, 1 << 40], 0), "impossible shape");
    check(&odd(&[33], 2), "impossible shape");
    check(&odd(&[1], 4), "unknown type 4");
    check(&odd(&[1 << 40], 0), "truncated");
    check(&legal().u32("llama.block_count", 1), "occurs twice");
}

#[test]
fn s21_s23_absurd_models_are_refused_before_llama_cpp_sees_them() {
    let base = |block_count| {
        Writer::new()
            .text("general.architecture", "llama")
            .u32("llama.block_count", block_count)
            .tensor("t", &[1], 0, 0)
            .data(64)
    };
    check(&Writer::new().tensor("t", &[1], 0, 0).data(64), "general.architecture is missing");
    check(&base(600).tokens(&["a"]), "llama.block_count is 600");
    check(&base(1), "vocabulary");
    check(&base(1).tokens(&[&"x".repeat(70_000)]), "70000 bytes");
    check(&base(1).tokens(&["a", "b"]).array("tokenizer.ggml.token_type", 5, 1, &[0; 4]), "token_type has 1");
    check(&base(1).tokens(&["a", "b"]).array("tokenizer.ggml.scores", 6, 1, &[0; 4]), "scores has 1");
    check(&base(1).tokens(&["a"]).u32("tokenizer.ggml.bos_token_id", 1), "bos_token_id is outside");
    check(&base(1).tokens(&["a"]).u32("tokenizer.ggml.eos_token_id", 1 << 31), "eos_token_id is outside");
    check(&Writer::new().text("general.architecture", "clip").tensor("t", &[1], 0, 0).data(64), "projector");
    check(&Writer::new().text("general.architecture", "llama"), "no tensors");
}

#[test]
fn flipped_bytes_never_panic() {
    let whole = legal().bytes();
    for position in 0..whole.len() {
        for bit in [0, 3, 7] {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << bit;
            if let Ok(header) = read_bytes(&damaged) {
                let _ = sanity::check(&header);
            }
        }
    }
}
