//! A model in llama.cpp: its weights, its vocabulary and its adapter. All of it is the safe crate's; what is added is a
//! thread to stay on, token ids that are there, and the addresses that [`super::context`] needs.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel, RopeType};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;
use llama_cpp_2::{LlamaLoraAdapterInitError, LlamaModelLoadError};
use llama_cpp_sys_2::{llama_adapter_lora, llama_model};
use ollmlx_proto::TokenId;
use ollmlx_worker_kit::vocab::TokenKind;

use super::Library;

/// Told how far a load is, from 0 to 1; whether it is to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(f32) -> bool;

/// A loaded model. One thread has it: contexts write to it when they are made, which the safe crate overlooks.
#[derive(Debug)]
pub struct Model {
    model: LlamaModel,
    /// llama.cpp gives it back with the model.
    adapter: Option<LlamaLoraAdapter>,
    token_count: u32,
    one_thread: PhantomData<*const ()>,
}

/// What turns a model's texts to tokens.
#[derive(Debug)]
pub struct Vocabulary(LlamaVocab<'static>);

impl Vocabulary {
    /// A text's tokens; `None` where its length has more than 31 bits.
    ///
    /// # Panics
    /// So has the number of its tokens.
    #[must_use]
    pub fn tokens(&self, text: &[u8], specials: Specials) -> Option<Vec<TokenId>> {
        // The safe crate panics for it.
        i32::try_from(text.len()).ok()?;
        let tokens = self.0.tokenize(text, specials.add, specials.parse);
        tokens.into_iter().map(|token| TokenId::try_from(token.0).ok()).collect()
    }
}

/// How a model's positions are made part of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// One angle per position, by which a key can be turned to another one.
    Plain,
    /// Not at all, or by several angles.
    Other,
}

/// What of a text becomes, or brings along, a control token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    /// The markers that the vocabulary puts around a text are added.
    pub add: bool,
    /// The spelling of a control token is that token.
    pub parse: bool,
}

/// Why there is no model, or no adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is handed over as a string that ends where a byte is 0.
    #[error("the path has a zero byte or is not UTF-8")]
    Path,
    /// Its log says why.
    #[error("llama.cpp loads nothing")]
    Refused,
}

impl From<LlamaModelLoadError> for LoadError {
    fn from(error: LlamaModelLoadError) -> Self {
        match error {
            LlamaModelLoadError::NullError(_) | LlamaModelLoadError::PathToStrError(_) => Self::Path,
            LlamaModelLoadError::NullResult => Self::Refused,
        }
    }
}

impl From<LlamaLoraAdapterInitError> for LoadError {
    fn from(error: LlamaLoraAdapterInitError) -> Self {
        match error {
            LlamaLoraAdapterInitError::NullError(_) | LlamaLoraAdapterInitError::PathToStrError(_) => Self::Path,
            LlamaLoraAdapterInitError::NullResult => Self::Refused,
        }
    }
}

impl Model {
    /// Loads a model; all its layers go to an accelerator where `gpu_layers` says nothing and there is one.
    ///
    /// # Errors
    /// llama.cpp refuses it, or `progress` said no.
    pub fn load(
        library: &Library,
        path: &Path,
        gpu_layers: Option<u32>,
        mut progress: OnProgress<'_>,
    ) -> Result<Self, LoadError> {
        let told: *mut () = (&raw mut progress).cast();
        let mut params = LlamaModelParams::default().with_progress_callback(move |done| {
            // JUSTIFICATION: what the safe crate calls must borrow nothing, and this is borrowed until the load ends.
            // SAFETY: it is the address of `progress`, which outlives the parameters that own this closure, and which nothing
            // else uses before they are dropped.
            let progress = unsafe { &mut *told.cast::<OnProgress<'_>>() };
            catch_unwind(AssertUnwindSafe(|| progress(done))).unwrap_or(false)
        });
        if let Some(layers) = gpu_layers {
            params = params.with_n_gpu_layers(layers);
        }
        let model = LlamaModel::load_from_file(&library.0, path, &params)?;
        let token_count = u32::try_from(model.n_vocab()).unwrap_or(0);
        Ok(Self { model, adapter: None, token_count, one_thread: PhantomData })
    }

    /// Loads an adapter for this model, which contexts can use.
    ///
    /// # Errors
    /// llama.cpp refuses it.
    pub fn load_adapter(&mut self, path: &Path) -> Result<(), LoadError> {
        self.adapter = Some(self.model.lora_adapter_init(path)?);
        Ok(())
    }

    /// For contexts, which the safe crate makes without a way to their address.
    pub(super) fn raw(&self) -> NonNull<llama_model> {
        const { assert!(size_of::<LlamaModel>() == size_of::<NonNull<llama_model>>()) };
        const { assert!(align_of::<LlamaModel>() == align_of::<NonNull<llama_model>>()) };
        // JUSTIFICATION: the safe crate keeps the address to itself.
        // SAFETY: `LlamaModel` is `repr(transparent)` over its `Ptr`, and that over `NonNull<llama_model>`, in the version that
        // the workspace pins with `=`. The address is copied, and the model goes on owning what is there.
        unsafe { *(&raw const self.model).cast::<NonNull<llama_model>>() }
    }

    /// The same of the adapter.
    pub(super) fn raw_adapter(&self) -> Option<NonNull<llama_adapter_lora>> {
        const { assert!(size_of::<LlamaLoraAdapter>() == size_of::<NonNull<llama_adapter_lora>>()) };
        const { assert!(align_of::<LlamaLoraAdapter>() == align_of::<NonNull<llama_adapter_lora>>()) };
        let adapter: *const LlamaLoraAdapter = self.adapter.as_ref()?;
        // JUSTIFICATION: as above.
        // SAFETY: as above; `LlamaLoraAdapter` is made in the same way. It lives as long as the model.
        Some(unsafe { *adapter.cast::<NonNull<llama_adapter_lora>>() })
    }

    /// Whether its state is of one size, however much it has read.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        self.model.is_recurrent()
    }

    /// Whether that holds for some of its layers.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.model.is_hybrid()
    }

    /// How its positions become part of its keys.
    #[must_use]
    pub fn rope(&self) -> Rope {
        match self.model.rope_type() {
            Some(RopeType::Norm | RopeType::NeoX) => Rope::Plain,
            Some(RopeType::MRope | RopeType::IMRope | RopeType::Vision) | None => Rope::Other,
        }
    }

    /// Components of a vector that it makes of a text.
    #[must_use]
    pub fn vector_length(&self) -> usize {
        usize::try_from(self.model.n_embd_out()).unwrap_or(0)
    }

    /// Tokens of its vocabulary.
    #[must_use]
    pub fn token_count(&self) -> u32 {
        self.token_count
    }

    /// Its vocabulary, for any thread: llama.cpp only reads there, and keeps what a text leads to apart from it.
    #[must_use]
    pub fn vocabulary(&'static self) -> Vocabulary {
        Vocabulary(self.model.vocab())
    }

    /// The bytes of a token, or the spelling of a control token; empty where there is none.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn piece(&self, token: TokenId) -> Vec<u8> {
        self.model.vocab().token_to_piece(self.token(token), true, None)
    }

    /// What a token is. llama.cpp corrects what headers say of known tokens.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn kind(&self, token: TokenId) -> TokenKind {
        let attributes = self.model.vocab().attr(self.token(token));
        if attributes.contains(LlamaTokenAttr::Control) {
            TokenKind::Control
        } else if attributes.intersects(LlamaTokenAttr::Unknown | LlamaTokenAttr::Unused) {
            TokenKind::Unused
        } else if attributes.contains(LlamaTokenAttr::UserDefined) {
            TokenKind::UserDefined
        } else {
            TokenKind::Text
        }
    }

    /// Whether a token ends an answer. llama.cpp knows more such tokens than headers name.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn ends_answer(&self, token: TokenId) -> bool {
        self.model.vocab().is_eog(self.token(token))
    }

    /// The token at the beginning of a sequence.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.known(self.model.vocab().bos())
    }

    /// The token at the end of a sequence.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.known(self.model.vocab().eos())
    }

    /// Whether the tokenizer puts the former in front of a text.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.model.vocab().should_add_bos()
    }

    /// The markers of prefix, suffix and middle, where the vocabulary has all three.
    #[must_use]
    pub fn infill(&self) -> Option<(TokenId, TokenId, TokenId)> {
        let vocab = self.model.vocab();
        Some((self.known(vocab.fim_pre())?, self.known(vocab.fim_suf())?, self.known(vocab.fim_mid())?))
    }

    /// llama.cpp says -1 for "none".
    fn known(&self, token: LlamaToken) -> Option<TokenId> {
        TokenId::try_from(token.0).ok().filter(|token| *token < self.token_count)
    }

    /// llama.cpp throws where there is no such token, through code that can't catch it.
    fn token(&self, token: TokenId) -> LlamaToken {
        assert!(token < self.token_count, "token {token} is outside the vocabulary");
        LlamaToken::new(token.cast_signed())
    }
}
