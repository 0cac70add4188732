//! Output grammars.

use std::sync::Arc;

use ollmlx_proto::{Failure, Format, TokenId};

use crate::vocab::Vocab;

/// Makes grammars.
#[derive(Debug)]
pub struct GrammarFactory;

impl GrammarFactory {
    /// Cheap.
    #[must_use]
    pub fn new(_vocab: Arc<Vocab>) -> Self {
        Self
    }

    /// `None` for text.
    ///
    /// # Errors
    /// The schema is bad.
    pub fn compile(&self, _format: &Format) -> Result<Option<Grammar>, Failure> {
        Ok(None)
    }
}

/// A grammar in use.
#[derive(Debug)]
pub struct Grammar;

impl Grammar {
    /// Forbids tokens.
    ///
    /// # Errors
    /// Out of budget.
    pub fn mask(&mut self, _logits: &mut [f32]) -> Result<(), Failure> {
        Ok(())
    }

    /// Takes a token.
    ///
    /// # Errors
    /// Forbidden.
    pub fn accept(&mut self, _token: TokenId) -> Result<(), Failure> {
        Ok(())
    }

    /// Nothing may follow.
    #[must_use]
    pub fn is_done(&self) -> bool {
        false
    }
}
