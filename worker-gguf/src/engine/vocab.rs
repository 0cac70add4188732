//! The vocabulary of a loaded model in the kit's form.

use ollmlx_worker_kit::vocab::Vocab;

use crate::ffi::model::Model;
use crate::gguf::{Header, Value};

/// Reads all of it, once.
pub(super) fn vocab(model: &Model, header: &Header) -> Vocab {
    let tokens = 0..model.token_count();
    let mut vocab = Vocab {
        bytes: tokens.clone().map(|token| model.piece(token)).collect(),
        kinds: tokens.clone().map(|token| model.kind(token)).collect(),
        bos: model.bos(),
        eos: model.eos(),
        ends: tokens.filter(|token| model.ends_answer(*token)).collect(),
        add_bos: model.adds_bos(),
        add_space_prefix: add_space_prefix(header),
        infill: model.infill(),
    };
    vocab.ends.extend(vocab.eos);
    vocab
}

fn add_space_prefix(header: &Header) -> bool {
    match header.get("tokenizer.ggml.add_space_prefix") {
        Some(Value::Bool(flag)) => *flag,
        // llama.cpp's own default for the tokenizers whose words begin with a visible space.
        _ => matches!(header.text("tokenizer.ggml.model"), Some("llama" | "t5")),
    }
}
