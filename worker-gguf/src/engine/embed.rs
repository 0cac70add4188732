//! Texts to vectors.
//!
//! An embedding model has a context for that alone. A generative model has none: one is made for the call and given
//! back after it, because embeddings are rare there and llama.cpp can't switch a context over.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use ollmlx_proto::TokenId;
use ollmlx_worker_kit::engine::EngineError;

use super::to_llama;
use crate::cpu::Runtime;

/// Tokens computed together where several inputs fit. More would not be faster: attention is computed between all
/// of them and masked, so its cost grows with the square.
const TOGETHER_TOKENS: usize = 512;

/// How a model makes vectors.
#[derive(Debug)]
pub(super) struct Embedder {
    /// The context of an embedding model.
    pub(super) context: Option<LlamaContext<'static>>,
    /// Longest input.
    pub(super) context_tokens: u32,
    /// Inputs computed together.
    pub(super) sequences: u32,
    /// How the vectors of an input's tokens become one; `None` takes the last token's.
    pub(super) pooling: Option<LlamaPoolingType>,
    pub(super) threads: i32,
    /// Whether an adapter is loaded, which a context made for one call would lack.
    pub(super) adapted: bool,
}

impl Embedder {
    /// Makes a context for inputs of at most `tokens` tokens. The micro-batch must hold a whole input: models
    /// that look both ways can't be computed in parts.
    pub(super) fn open<'a>(&self, runtime: &Runtime, model: &'a LlamaModel, tokens: u32) -> Option<LlamaContext<'a>> {
        let tokens = tokens.max(u32::try_from(TOGETHER_TOKENS).expect("a small number"));
        let params = LlamaContextParams::default()
            .with_n_ctx(std::num::NonZeroU32::new(tokens))
            .with_n_batch(tokens)
            .with_n_ubatch(tokens)
            .with_n_seq_max(self.sequences)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads)
            .with_kv_unified(true)
            .with_swa_full(false)
            .with_embeddings(true)
            .with_no_perf(true)
            .with_pooling_type(self.pooling.unwrap_or(LlamaPoolingType::Unspecified));
        model.new_context(&runtime.backend, params).ok()
    }

    pub(super) fn embed(
        &mut self,
        runtime: &Runtime,
        model: &'static LlamaModel,
        vocab_size: usize,
        inputs: &[Vec<TokenId>],
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        check(inputs, self.context_tokens, vocab_size)?;
        let longest = inputs.iter().map(Vec::len).max().unwrap_or_default();
        let mut own;
        let (sequences, pooled) = (self.sequences as usize, self.pooling.is_some());
        let context = match &mut self.context {
            Some(context) => context,
            None if self.adapted => {
                return Err(EngineError::Unsupported("embeddings of a generative model with an adapter".into()));
            }
            None => {
                let tokens = u32::try_from(longest).expect("inputs are no longer than the window");
                own = self.open(runtime, model, tokens).ok_or_else(|| failed("no context for embeddings"))?;
                &mut own
            }
        };
        let capacity = TOGETHER_TOKENS.max(longest);
        let mut batch = LlamaBatch::new(capacity, 1);
        let mut vectors = Vec::with_capacity(inputs.len());
        let mut rest = inputs;
        while !rest.is_empty() {
            let count = fitting(rest, capacity, sequences);
            let (now, later) = rest.split_at(count);
            compute(context, &mut batch, now)?;
            let mut end = 0;
            for (sequence, input) in (0..).zip(now) {
                end += i32::try_from(input.len()).expect("inputs are no longer than the window");
                let vector = if pooled {
                    context.embeddings_seq_ith(sequence).map_err(failed)?
                } else {
                    context.embeddings_ith(end - 1).map_err(failed)?
                };
                vectors.push(vector.to_vec());
            }
            rest = later;
        }
        Ok(vectors)
    }
}

fn check(inputs: &[Vec<TokenId>], context_tokens: u32, vocab_size: usize) -> Result<(), EngineError> {
    for input in inputs {
        if input.is_empty() || input.len() > context_tokens as usize {
            return Err(EngineError::Failed(format!(
                "an input of {} tokens, the window has {context_tokens}",
                input.len()
            )));
        }
        if let Some(token) = input.iter().find(|token| **token as usize >= vocab_size) {
            return Err(EngineError::Failed(format!("token {token} is outside the vocabulary")));
        }
    }
    Ok(())
}

/// How many of the first inputs fit into one batch; at least one does.
fn fitting(inputs: &[Vec<TokenId>], capacity: usize, sequences: usize) -> usize {
    let mut tokens = 0;
    let fits = |input: &&Vec<TokenId>| {
        tokens += input.len();
        tokens <= capacity
    };
    inputs.iter().take(sequences).take_while(fits).count().max(1)
}

fn compute(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    inputs: &[Vec<TokenId>],
) -> Result<(), EngineError> {
    context.clear_kv_cache();
    batch.clear();
    for (sequence, input) in (0..).zip(inputs) {
        for (position, token) in (0..).zip(input) {
            batch.add(to_llama(*token), position, &[sequence], true).map_err(failed)?;
        }
    }
    context.decode(batch).map_err(|error| match crate::ffi::take_errors().pop() {
        Some(why) => EngineError::Failed(format!("{error} {why}")),
        None => failed(error),
    })
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}
