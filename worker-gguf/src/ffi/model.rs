//! A model in llama.cpp: its weights, its vocabulary and its adapters.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2::{llama_adapter_lora, llama_model, llama_vocab};
use ollmlx_proto::TokenId;
use ollmlx_worker_kit::vocab::TokenKind;

use super::Library;

/// Told how far a load is, from 0 to 1; whether it is to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(f32) -> bool;

/// A loaded model. One thread has it: contexts write to it when they are made.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<llama_model>,
    /// Lives as long as the model.
    vocab: NonNull<llama_vocab>,
    token_count: u32,
}

/// An adapter of a model. llama.cpp gives it back with the model.
#[derive(Debug)]
pub struct Adapter<'m> {
    pub(super) raw: NonNull<llama_adapter_lora>,
    model: PhantomData<&'m Model>,
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
    /// C ends a string where it is 0.
    #[error("the path has a zero byte")]
    Path,
    /// Its log says why.
    #[error("llama.cpp loads nothing")]
    Refused,
}

impl Model {
    /// Loads a model; all its layers go to an accelerator where `gpu_layers` says nothing and there is one.
    ///
    /// # Errors
    /// llama.cpp refuses it, or `progress` said no.
    pub fn load(
        _: &Library,
        path: &Path,
        gpu_layers: Option<u32>,
        mut progress: OnProgress<'_>,
    ) -> Result<Self, LoadError> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| LoadError::Path)?;
        // JUSTIFICATION: only llama.cpp knows its defaults.
        // SAFETY: it returns plain data.
        let mut params = unsafe { llama_cpp_sys_2::llama_model_default_params() };
        if let Some(layers) = gpu_layers {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        let told: *mut OnProgress<'_> = &raw mut progress;
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = told.cast();
        // JUSTIFICATION: this loads a model.
        // SAFETY: the path is a C string, and what the callback is given lives until the call returns; llama.cpp keeps
        // neither. It is started, as the first argument proves.
        let raw = unsafe { llama_cpp_sys_2::llama_model_load_from_file(path.as_ptr(), params) };
        let raw = NonNull::new(raw).ok_or(LoadError::Refused)?;
        // JUSTIFICATION: the vocabulary is a part of the model with functions of its own.
        // SAFETY: the model was just loaded.
        let vocab = unsafe { llama_cpp_sys_2::llama_model_get_vocab(raw.as_ptr()) };
        let mut model = Self { raw, vocab: NonNull::new(vocab.cast_mut()).ok_or(LoadError::Refused)?, token_count: 0 };
        // JUSTIFICATION: ids from this number on would end the process.
        // SAFETY: the vocabulary lives as long as the model.
        let count = unsafe { llama_cpp_sys_2::llama_vocab_n_tokens(model.vocab.as_ptr()) };
        model.token_count = u32::try_from(count).unwrap_or(0);
        Ok(model)
    }

    /// Loads an adapter for this model.
    ///
    /// # Errors
    /// llama.cpp refuses it.
    pub fn adapter(&self, path: &Path) -> Result<Adapter<'_>, LoadError> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| LoadError::Path)?;
        // JUSTIFICATION: this loads an adapter.
        // SAFETY: the path is a C string that outlives the call; the model lives and is used by this thread alone.
        let raw = unsafe { llama_cpp_sys_2::llama_adapter_lora_init(self.raw.as_ptr(), path.as_ptr()) };
        NonNull::new(raw).map(|raw| Adapter { raw, model: PhantomData }).ok_or(LoadError::Refused)
    }

    pub(super) fn raw(&self) -> NonNull<llama_model> {
        self.raw
    }

    /// Whether its state is of one size, however much it has read.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        // JUSTIFICATION: only llama.cpp knows how it computes an architecture.
        // SAFETY: the model lives; the call reads it.
        unsafe { llama_cpp_sys_2::llama_model_is_recurrent(self.raw.as_ptr()) }
    }

    /// Whether that holds for some of its layers.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        unsafe { llama_cpp_sys_2::llama_model_is_hybrid(self.raw.as_ptr()) }
    }

    /// How its positions become part of its keys.
    #[must_use]
    pub fn rope(&self) -> Rope {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        match unsafe { llama_cpp_sys_2::llama_model_rope_type(self.raw.as_ptr()) } {
            llama_cpp_sys_2::LLAMA_ROPE_TYPE_NORM | llama_cpp_sys_2::LLAMA_ROPE_TYPE_NEOX => Rope::Plain,
            _ => Rope::Other,
        }
    }

    /// Components of a vector that it makes of a text.
    #[must_use]
    pub fn vector_length(&self) -> usize {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        let length = unsafe { llama_cpp_sys_2::llama_model_n_embd_out(self.raw.as_ptr()) };
        usize::try_from(length).unwrap_or(0)
    }

    /// Tokens of its vocabulary.
    #[must_use]
    pub fn token_count(&self) -> u32 {
        self.token_count
    }

    /// A text's tokens; `None` where llama.cpp can't count them.
    #[must_use]
    pub fn tokenize(&self, text: &[u8], specials: Specials) -> Option<Vec<TokenId>> {
        let length = i32::try_from(text.len()).ok()?;
        let write = |tokens: &mut Vec<i32>| {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            let (text, tokens) = (text.as_ptr().cast(), tokens.as_mut_ptr());
            // JUSTIFICATION: each vocabulary has its own rules, and they are llama.cpp's.
            // SAFETY: it reads `length` bytes of the text, and writes at most `room` tokens, which are there.
            unsafe {
                llama_cpp_sys_2::llama_tokenize(
                    self.vocab.as_ptr(),
                    text,
                    length,
                    tokens,
                    room,
                    specials.add,
                    specials.parse,
                )
            }
        };
        let mut tokens = vec![0; text.len() / 2 + 8];
        let mut count = write(&mut tokens);
        if count < 0 {
            // So many would be needed.
            tokens.resize(usize::try_from(count.checked_neg()?).ok()?, 0);
            count = write(&mut tokens);
        }
        tokens.truncate(usize::try_from(count).ok()?);
        tokens.into_iter().map(|token| TokenId::try_from(token).ok()).collect()
    }

    /// The bytes of a token, or the spelling of a control token; empty where there is none.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn piece(&self, token: TokenId) -> Vec<u8> {
        let id = self.id(token);
        let write = |bytes: &mut Vec<u8>| {
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            // JUSTIFICATION: each vocabulary spells in its own way, and llama.cpp knows it.
            // SAFETY: the id is one of the vocabulary; it writes at most `room` bytes, which are there.
            unsafe {
                llama_cpp_sys_2::llama_token_to_piece(self.vocab.as_ptr(), id, bytes.as_mut_ptr().cast(), room, 0, true)
            }
        };
        let mut bytes = vec![0; 64];
        let mut count = write(&mut bytes);
        if count < 0 {
            // So many would be needed.
            bytes.resize(count.checked_neg().and_then(|count| usize::try_from(count).ok()).unwrap_or(0), 0);
            count = write(&mut bytes);
        }
        bytes.truncate(usize::try_from(count).unwrap_or(0));
        bytes
    }

    /// What a token is.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn kind(&self, token: TokenId) -> TokenKind {
        let id = self.id(token);
        // JUSTIFICATION: llama.cpp corrects what headers say of known tokens.
        // SAFETY: the id is one of the vocabulary.
        let attributes = unsafe { llama_cpp_sys_2::llama_vocab_get_attr(self.vocab.as_ptr(), id) };
        let has = |attribute: llama_cpp_sys_2::llama_token_attr| attributes & attribute != 0;
        if has(llama_cpp_sys_2::LLAMA_TOKEN_ATTR_CONTROL) {
            TokenKind::Control
        } else if has(llama_cpp_sys_2::LLAMA_TOKEN_ATTR_UNKNOWN | llama_cpp_sys_2::LLAMA_TOKEN_ATTR_UNUSED) {
            TokenKind::Unused
        } else if has(llama_cpp_sys_2::LLAMA_TOKEN_ATTR_USER_DEFINED) {
            TokenKind::UserDefined
        } else {
            TokenKind::Text
        }
    }

    /// Whether a token ends an answer.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn ends_answer(&self, token: TokenId) -> bool {
        let id = self.id(token);
        // JUSTIFICATION: llama.cpp knows more such tokens than headers name.
        // SAFETY: the id is one of the vocabulary.
        unsafe { llama_cpp_sys_2::llama_vocab_is_eog(self.vocab.as_ptr(), id) }
    }

    /// The token at the beginning of a sequence.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        // JUSTIFICATION: llama.cpp corrects what headers say of known tokens.
        // SAFETY: the vocabulary lives as long as the model; the call reads it.
        self.known(unsafe { llama_cpp_sys_2::llama_vocab_bos(self.vocab.as_ptr()) })
    }

    /// The token at the end of a sequence.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        self.known(unsafe { llama_cpp_sys_2::llama_vocab_eos(self.vocab.as_ptr()) })
    }

    /// Whether the tokenizer puts the former in front of a text.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        unsafe { llama_cpp_sys_2::llama_vocab_get_add_bos(self.vocab.as_ptr()) }
    }

    /// The markers of prefix, suffix and middle, where the vocabulary has all three.
    #[must_use]
    pub fn infill(&self) -> Option<(TokenId, TokenId, TokenId)> {
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        let prefix = unsafe { llama_cpp_sys_2::llama_vocab_fim_pre(self.vocab.as_ptr()) };
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        let suffix = unsafe { llama_cpp_sys_2::llama_vocab_fim_suf(self.vocab.as_ptr()) };
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        let middle = unsafe { llama_cpp_sys_2::llama_vocab_fim_mid(self.vocab.as_ptr()) };
        Some((self.known(prefix)?, self.known(suffix)?, self.known(middle)?))
    }

    /// llama.cpp says -1 for "none".
    fn known(&self, id: i32) -> Option<TokenId> {
        TokenId::try_from(id).ok().filter(|token| *token < self.token_count)
    }

    /// llama.cpp throws where there is no such token, through code that can't catch it.
    fn id(&self, token: TokenId) -> i32 {
        assert!(token < self.token_count, "token {token} is outside the vocabulary");
        token.cast_signed()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // JUSTIFICATION: what was loaded is given back.
        // SAFETY: contexts and adapters borrow the model, so there are none any more.
        unsafe { llama_cpp_sys_2::llama_model_free(self.raw.as_ptr()) }
    }
}

/// While a model is loaded: whether to go on.
unsafe extern "C" fn on_progress(done: f32, progress: *mut c_void) -> bool {
    // JUSTIFICATION: this is how llama.cpp hands back what `Model::load` gave it.
    // SAFETY: it is the callback that `Model::load` holds until the call returns, and uses for nothing else.
    let progress = unsafe { &mut *progress.cast::<OnProgress<'_>>() };
    catch_unwind(AssertUnwindSafe(|| progress(done))).unwrap_or(false)
}
