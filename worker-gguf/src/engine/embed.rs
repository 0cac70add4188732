//! Texts to vectors.
//!
//! A model that looks back only is computed in the engine's slots, a chunk at a time as prompts are, so that embeddings take
//! no memory of their own: nothing is asked of any token but the last, whose hidden state is the vector. A model that looks
//! both ways can't be parted; its inputs are computed whole, in a context made for that.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use ollmlx_proto::TokenId;
use ollmlx_worker_kit::engine::{EmbedStep, EngineError};

use super::{Generator, to_llama};
use crate::cpu::Runtime;
use crate::ffi;
use crate::memory::{EMBED_CHUNK_TOKENS, MEAN_CHUNK_TOKENS};

/// Tokens computed together where several inputs fit. More would not be faster: attention is computed between all
/// of them and masked, so its cost grows with the square.
const TOGETHER_TOKENS: usize = 512;
/// Whole inputs computed together.
const TOGETHER_SEQUENCES: u32 = 64;

/// How the vectors of an input's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    Mean,
    First,
    Last,
}

/// How a model makes vectors.
#[derive(Debug)]
pub(super) enum Embedder {
    /// In the slots, by parts.
    Parts(Pooling),
    /// Whole inputs.
    Whole(Whole),
    /// Not at all, and why.
    Nothing(&'static str),
}

/// The context of a model that looks both ways.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) context: LlamaContext<'static>,
    batch: LlamaBatch<'static>,
    together_tokens: usize,
}

/// Embeddings that have begun.
#[derive(Debug)]
pub(super) struct Underway {
    inputs: Vec<Vec<TokenId>>,
    /// Of the first inputs.
    vectors: Vec<Vec<f32>>,
    /// Tokens of the first input without a vector that are computed.
    done: usize,
    /// Of their hidden states, where the mean is wanted.
    sum: Vec<f32>,
}

impl Underway {
    /// # Errors
    /// An input is none that can be computed.
    pub(super) fn new(
        inputs: Vec<Vec<TokenId>>,
        (context_tokens, vocab_size): (u32, usize),
    ) -> Result<Self, EngineError> {
        for input in &inputs {
            if input.is_empty() || input.len() > context_tokens as usize {
                let text = format!("an input of {} tokens, the window has {context_tokens}", input.len());
                return Err(EngineError::Failed(text));
            }
            if let Some(token) = input.iter().find(|token| **token as usize >= vocab_size) {
                return Err(EngineError::Failed(format!("token {token} is outside the vocabulary")));
            }
        }
        Ok(Self { vectors: Vec::with_capacity(inputs.len()), inputs, done: 0, sum: Vec::new() })
    }

    pub(super) fn is_done(&self) -> bool {
        self.vectors.len() == self.inputs.len()
    }

    /// What the engine says of it.
    pub(super) fn told(&mut self) -> EmbedStep {
        if self.is_done() {
            return EmbedStep::Vectors(std::mem::take(&mut self.vectors));
        }
        let whole: usize = self.inputs.iter().take(self.vectors.len()).map(Vec::len).sum();
        EmbedStep::Part { done_tokens: whole + self.done }
    }

    /// The inputs without a vector; not empty.
    fn rest(&self) -> &[Vec<TokenId>] {
        &self.inputs[self.vectors.len()..]
    }

    fn take(&mut self, vector: Vec<f32>) {
        self.vectors.push(vector);
        self.done = 0;
    }
}

impl Embedder {
    /// Its own, if it has one.
    pub(super) fn context(&mut self) -> Option<&mut LlamaContext<'static>> {
        match self {
            Self::Whole(whole) => Some(&mut whole.context),
            Self::Parts(_) | Self::Nothing(_) => None,
        }
    }

    /// Computes as much as can be without a break; there must be something left.
    ///
    /// # Errors
    /// The computation failed, or the model has no embeddings.
    pub(super) fn step(&mut self, generator: Option<&mut Generator>, work: &mut Underway) -> Result<(), EngineError> {
        match (self, generator) {
            (Self::Whole(whole), _) => whole.step(work),
            (Self::Parts(pooling), Some(generator)) => {
                let computed = match pooling {
                    Pooling::Last => last(generator, work),
                    Pooling::Mean => mean(generator, work),
                    Pooling::First => first(generator, work),
                };
                if computed.is_err() {
                    generator.slots.clear(&mut generator.context);
                } else if work.done == 0 {
                    // Not all of the memory is wiped for that: it may be gigabytes, and inputs may be short.
                    for slot in
                        (0..generator.slots.len()).filter(|slot| generator.slots.used(*slot) > 0).collect::<Vec<_>>()
                    {
                        generator.slots.truncate(&mut generator.context, slot, 0);
                    }
                }
                computed
            }
            (Self::Nothing(why), _) => Err(EngineError::Unsupported((*why).to_owned())),
            (Self::Parts(_), None) => Err(EngineError::Unsupported("this model has no slots".to_owned())),
        }
    }
}

/// A chunk of a long input, or the rest of the next inputs, as many as a chunk holds.
fn last(generator: &mut Generator, work: &mut Underway) -> Result<(), EngineError> {
    let (chunk, rest) = (generator.chunk(EMBED_CHUNK_TOKENS), work.rest());
    let left = &rest[0][work.done..];
    if left.len() > chunk {
        generator.append(&[&left[..chunk]], Wanted::Nothing)?;
        work.done += chunk;
        return Ok(());
    }
    let mut inputs = vec![left];
    inputs.extend(rest[1..].iter().map(Vec::as_slice));
    // They have the cells of one window together.
    let room = chunk.min((generator.context.n_ctx() as usize).saturating_sub(work.done));
    inputs.truncate(fitting(&inputs, room, generator.slots.len()));
    let (ends, beginnings): (Vec<&[TokenId]>, Vec<&[TokenId]>) =
        inputs.iter().map(|input| input.split_at(input.len() - 1)).map(|(beginning, end)| (end, beginning)).unzip();
    if beginnings.iter().any(|beginning| !beginning.is_empty()) {
        generator.append(&beginnings, Wanted::Nothing)?;
    }
    let vectors = generator.append(&ends, Wanted::HiddenStates)?;
    vectors.into_iter().for_each(|vector| work.take(vector));
    Ok(())
}

/// Some more of the next input. Each token costs a row of logits, so they are few.
fn mean(generator: &mut Generator, work: &mut Underway) -> Result<(), EngineError> {
    let input = &work.rest()[0];
    let (total, end) = (input.len(), work.done + generator.chunk(MEAN_CHUNK_TOKENS));
    let states = generator.append(&[&input[work.done..end.min(total)]], Wanted::HiddenStates)?;
    if work.done == 0 {
        work.sum.clear();
    }
    for state in states {
        work.sum.resize(state.len(), 0.0);
        work.sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
    }
    work.done = end.min(total);
    if work.done == total {
        let vector = work.sum.iter().map(|sum| sum / total as f32).collect();
        work.take(vector);
    }
    Ok(())
}

/// The first token, which sees no other.
fn first(generator: &mut Generator, work: &mut Underway) -> Result<(), EngineError> {
    let states = generator.append(&[&work.rest()[0][..1]], Wanted::HiddenStates)?;
    states.into_iter().for_each(|state| work.take(state));
    Ok(())
}

/// What is wanted of the tokens of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    HiddenStates,
}

impl Generator {
    /// At most so many tokens at once, and no more than llama.cpp takes, which aborts on a larger batch.
    fn chunk(&self, tokens: u32) -> usize {
        self.batch_tokens.min(tokens.min(self.context.n_batch()) as usize)
    }

    /// Appends tokens to the first slots, and returns what is wanted of them, in their order.
    fn append(&mut self, inputs: &[&[TokenId]], wanted: Wanted) -> Result<Vec<Vec<f32>>, EngineError> {
        self.batch.clear();
        for (slot, input) in inputs.iter().enumerate() {
            let sequence = [i32::try_from(slot).expect("slots are few")];
            for (position, token) in (self.slots.used(slot)..).zip(*input) {
                let position = position.cast_signed();
                self.batch.add(to_llama(*token), position, &sequence, wanted != Wanted::Nothing).map_err(failed)?;
            }
        }
        match wanted {
            Wanted::Nothing => self.context.decode(&mut self.batch).map_err(why)?,
            Wanted::HiddenStates => ffi::decode_hidden(&mut self.context, &mut self.batch).map_err(why)?,
        }
        for (slot, input) in inputs.iter().enumerate() {
            self.slots.grow(slot, input.len());
        }
        let wanted = if wanted == Wanted::Nothing { 0 } else { self.batch.n_tokens() };
        (0..wanted).map(|index| self.context.embeddings_ith(index).map(<[f32]>::to_vec).map_err(failed)).collect()
    }
}

impl Whole {
    /// Makes a context for inputs of at most `tokens` tokens; its micro-batch must hold a whole input.
    pub(super) fn open(
        runtime: &Runtime,
        model: &'static LlamaModel,
        (tokens, threads): (u32, i32),
        pooling: Pooling,
    ) -> Option<Self> {
        let params = LlamaContextParams::default()
            .with_n_ctx(std::num::NonZeroU32::new(tokens))
            .with_n_batch(tokens)
            .with_n_ubatch(tokens)
            .with_n_seq_max(TOGETHER_SEQUENCES.min(tokens))
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_kv_unified(true)
            .with_swa_full(false)
            .with_embeddings(true)
            .with_no_perf(true)
            .with_pooling_type(match pooling {
                Pooling::Mean => LlamaPoolingType::Mean,
                Pooling::First => LlamaPoolingType::Cls,
                Pooling::Last => LlamaPoolingType::Last,
            });
        let context = model.new_context(&runtime.backend, params).ok()?;
        let batch = LlamaBatch::new(tokens as usize, 1);
        Some(Self { context, batch, together_tokens: TOGETHER_TOKENS.min(tokens as usize) })
    }

    /// The next input, and those after it that fit beside it.
    fn step(&mut self, work: &mut Underway) -> Result<(), EngineError> {
        let inputs: Vec<&[TokenId]> = work.rest().iter().map(Vec::as_slice).collect();
        let sequences = self.context_sequences();
        let count = fitting(&inputs, self.together_tokens, sequences);
        self.context.clear_kv_cache();
        self.batch.clear();
        for (sequence, input) in (0..).zip(&inputs[..count]) {
            for (position, token) in (0..).zip(*input) {
                self.batch.add(to_llama(*token), position, &[sequence], true).map_err(failed)?;
            }
        }
        self.context.decode(&mut self.batch).map_err(why)?;
        for sequence in (0..).take(count) {
            work.take(self.context.embeddings_seq_ith(sequence).map_err(failed)?.to_vec());
        }
        Ok(())
    }

    fn context_sequences(&self) -> usize {
        TOGETHER_SEQUENCES.min(self.context.n_batch()) as usize
    }
}

/// How many of the first inputs fit into one batch; at least one does.
fn fitting(inputs: &[&[TokenId]], capacity: usize, sequences: usize) -> usize {
    let mut tokens = 0;
    let fits = |input: &&&[TokenId]| {
        tokens += input.len();
        tokens <= capacity
    };
    inputs.iter().take(sequences).take_while(fits).count().max(1)
}

/// A failure of llama.cpp with its own words.
fn why(error: impl std::fmt::Display) -> EngineError {
    match ffi::take_errors().pop() {
        Some(why) => EngineError::Failed(format!("{error} {why}")),
        None => failed(error),
    }
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}
