//! placeholder
use crate::vocab::Vocab;
use ollmlx_proto::*;
use std::sync::Arc;
#[derive(Debug)]
pub struct GrammarFactory;
#[derive(Debug)]
pub struct Grammar;
impl GrammarFactory {
    pub fn new(_v: Arc<Vocab>) -> Self {
        Self
    }
    pub fn compile(&self, _f: &Format) -> Result<Option<Grammar>, Failure> {
        Ok(None)
    }
}
impl Grammar {
    pub fn mask(&mut self, _l: &mut [f32]) -> Result<(), Failure> {
        Ok(())
    }
    pub fn accept(&mut self, _t: TokenId) -> Result<(), Failure> {
        Ok(())
    }
    pub fn is_done(&self) -> bool {
        false
    }
}
