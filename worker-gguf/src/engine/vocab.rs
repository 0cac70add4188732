//! The vocabulary of a loaded model in the kit's form.

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;
use ollmlx_proto::TokenId;
use ollmlx_worker_kit::vocab::{TokenKind, Vocab};

use crate::gguf::{Header, Value};

/// Reads all of it, once.
pub(super) fn vocab(model: &LlamaModel, header: &Header) -> Vocab {
    let source = model.vocab();
    let mut vocab = Vocab {
        bos: id(source.bos()),
        eos: id(source.eos()),
        add_bos: source.should_add_bos(),
        add_space_prefix: add_space_prefix(header),
        infill: infill(&source),
        ..Vocab::default()
    };
    let mut piece = Vec::with_capacity(256);
    for token in source.tokens() {
        piece.clear();
        source.token_to_piece_into(token, &mut piece, true, None);
        vocab.bytes.push(piece.as_slice().to_vec());
        vocab.kinds.push(kind(&source, token));
        if source.is_eog(token) {
            vocab.ends.extend(id(token));
        }
    }
    vocab.ends.extend(vocab.eos);
    vocab
}

/// llama.cpp says -1 for "none".
fn id(token: LlamaToken) -> Option<TokenId> {
    TokenId::try_from(token.0).ok()
}

fn kind(source: &LlamaVocab<'_>, token: LlamaToken) -> TokenKind {
    let attributes = source.attr(token);
    if attributes.contains(LlamaTokenAttr::Control) {
        TokenKind::Control
    } else if attributes.contains(LlamaTokenAttr::Unknown) || attributes.contains(LlamaTokenAttr::Unused) {
        TokenKind::Unused
    } else if attributes.contains(LlamaTokenAttr::UserDefined) {
        TokenKind::UserDefined
    } else {
        TokenKind::Text
    }
}

fn add_space_prefix(header: &Header) -> bool {
    match header.get("tokenizer.ggml.add_space_prefix") {
        Some(Value::Bool(flag)) => *flag,
        // llama.cpp's own default for the tokenizers whose words begin with a visible space.
        _ => matches!(header.text("tokenizer.ggml.model"), Some("llama" | "t5")),
    }
}

fn infill(source: &LlamaVocab<'_>) -> Option<(TokenId, TokenId, TokenId)> {
    Some((id(source.fim_pre())?, id(source.fim_suf())?, id(source.fim_mid())?))
}
