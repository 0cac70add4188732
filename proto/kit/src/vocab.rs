//! Token id to bytes: the one table that the detokeniser, log probabilities and the output grammar share.

use std::collections::BTreeSet;

use ollmlx_proto::TokenId;

/// What a token is, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Text,
    /// A control token: it has a spelling, but never is text of an answer.
    Control,
    /// A token a user added on purpose (`<tool_call>`, `<think>`): its spelling is text of the answer, and it is parsed
    /// as one token in trusted text.
    UserDefined,
    /// Unused or unknown.
    Unused,
}

/// The vocabulary of a loaded model.
#[derive(Clone, Debug, Default)]
pub struct Vocab {
    /// The bytes of each token, by id; a control token's are its spelling.
    pub bytes: Vec<Vec<u8>>,
    /// What each token is, by id.
    pub kinds: Vec<TokenKind>,
    /// Beginning of a sequence.
    pub bos: Option<TokenId>,
    /// End of a sequence, the model's main one.
    pub eos: Option<TokenId>,
    /// Every token that ends generation, `eos` included.
    pub ends: BTreeSet<TokenId>,
    /// Whether the tokenizer puts `bos` in front of a text.
    pub add_bos: bool,
    /// SentencePiece models put a space in front of the first word, which is not part of an answer.
    pub add_space_prefix: bool,
    /// Fill-in-the-middle markers (prefix, suffix, middle), where the model has all three.
    pub infill: Option<(TokenId, TokenId, TokenId)>,
}

impl Vocab {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that `token` adds to an answer: none for control tokens and for ids outside the vocabulary.
    #[must_use]
    pub fn text_bytes(&self, token: TokenId) -> &[u8] {
        match self.kinds.get(token as usize) {
            Some(TokenKind::Text | TokenKind::UserDefined) => &self.bytes[token as usize],
            _ => &[],
        }
    }

    /// The spelling of `token`, control tokens included.
    #[must_use]
    pub fn spelling(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// The spelling as text.
    #[must_use]
    pub fn spelling_lossy(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.spelling(token)).into_owned()
    }
}
