//! Texts to vectors.
//!
//! A model that looks back only is computed in the engine's slots, a chunk at a time as prompts are, so that embeddings take
//! no memory of their own: nothing is asked of any token but the last, whose hidden state is the vector. A model that looks
//! both ways can't be parted; its inputs are computed whole, in a context made for that.

use ollmlx_proto::{Failure, FailureKind, FlashAttention, TokenId};
use ollmlx_worker_kit::contract::{CellType, NO_EMBEDDINGS};
use ollmlx_worker_kit::engine::{EmbedStep, EngineError};

use super::Generator;
use crate::ffi;
use crate::ffi::batch::{Batch, Place};
use crate::ffi::context::{Context, DecodeError, Outputs, Pooling, Settings};
use crate::ffi::model::Model;
use crate::limits::{EMBED_CHUNK_TOKENS, MEAN_CHUNK_TOKENS, TOGETHER_SEQUENCES, TOGETHER_TOKENS};
use crate::memory::Layout;

/// How a model makes vectors.
#[derive(Debug)]
pub(super) enum Embedder {
    /// In the slots, by parts.
    Parts(Pooling),
    /// Whole inputs.
    Whole(Whole),
    /// Not at all.
    Nothing,
}

/// The context of a model that looks both ways.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) context: Context<'static>,
    batch: Batch,
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
    pub(super) fn new(inputs: Vec<Vec<TokenId>>) -> Self {
        Self { vectors: Vec::with_capacity(inputs.len()), inputs, done: 0, sum: Vec::new() }
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
    pub(super) fn context(&mut self) -> Option<&mut Context<'static>> {
        match self {
            Self::Whole(whole) => Some(&mut whole.context),
            Self::Parts(_) | Self::Nothing => None,
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
            (Self::Nothing, _) | (Self::Parts(_), None) => {
                Err(EngineError::Refused(Failure::new(FailureKind::Unsupported, NO_EMBEDDINGS)))
            }
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
    let room = chunk.min(generator.context.cells().saturating_sub(work.done));
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
        self.batch_tokens.min(tokens as usize).min(self.context.batch_tokens())
    }

    /// Appends tokens to the first slots, and returns what is wanted of them, in their order.
    fn append(&mut self, inputs: &[&[TokenId]], wanted: Wanted) -> Result<Vec<Vec<f32>>, EngineError> {
        self.batch.clear();
        for (slot, input) in inputs.iter().enumerate() {
            for (position, token) in (self.slots.used(slot)..).zip(*input) {
                let output = wanted != Wanted::Nothing;
                self.batch.add(Place { token: *token, position, sequence: slot, output });
            }
        }
        match wanted {
            Wanted::Nothing => self.context.decode(&mut self.batch).map_err(why)?,
            Wanted::HiddenStates => self.context.decode_hidden(&mut self.batch).map_err(why)?,
        }
        for (slot, input) in inputs.iter().enumerate() {
            self.slots.grow(slot, input.len());
        }
        let wanted = if wanted == Wanted::Nothing { 0 } else { self.batch.len() };
        (0..wanted).map(|place| self.context.hidden_state(place).map(<[f32]>::to_vec).ok_or_else(no_vector)).collect()
    }
}

impl Whole {
    /// Makes a context for inputs of at most `tokens` tokens; its micro-batch must hold a whole input.
    pub(super) fn open(
        model: &'static Model,
        (tokens, threads): (u32, u16),
        flash_attention: FlashAttention,
        pooling: Pooling,
    ) -> Option<Self> {
        let context = Context::open(
            model,
            &Settings {
                cells: tokens,
                layout: Layout::Shared,
                cell_type: CellType::F16,
                flash_attention,
                batch_tokens: tokens,
                micro_batch_tokens: tokens,
                sequences: TOGETHER_SEQUENCES.min(tokens),
                threads,
                outputs: Outputs::Vectors(pooling),
            },
        )?;
        Some(Self { context, batch: Batch::default(), together_tokens: TOGETHER_TOKENS.min(tokens as usize) })
    }

    /// The next input, and those after it that fit beside it.
    fn step(&mut self, work: &mut Underway) -> Result<(), EngineError> {
        let inputs: Vec<&[TokenId]> = work.rest().iter().map(Vec::as_slice).collect();
        let sequences = self.context_sequences();
        let count = fitting(&inputs, self.together_tokens, sequences);
        self.context.clear();
        self.batch.clear();
        for (sequence, input) in (0..).zip(&inputs[..count]) {
            for (position, token) in (0..).zip(*input) {
                self.batch.add(Place { token: *token, position, sequence, output: true });
            }
        }
        self.context.decode(&mut self.batch).map_err(why)?;
        for sequence in (0..).take(count) {
            work.take(self.context.vector(sequence).ok_or_else(no_vector)?.to_vec());
        }
        Ok(())
    }

    fn context_sequences(&self) -> usize {
        self.context.batch_tokens().min(TOGETHER_SEQUENCES as usize)
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
fn why(error: DecodeError) -> EngineError {
    match ffi::log::take_errors().pop() {
        Some(why) => EngineError::Failed(format!("{error} {why}")),
        None => EngineError::Failed(error.to_string()),
    }
}

fn no_vector() -> EngineError {
    EngineError::Failed("llama.cpp made no vector".to_owned())
}
