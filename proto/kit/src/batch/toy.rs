//! A deterministic engine for tests: its logits are a function of all the tokens a slot holds.
//!
//! Whatever is batched, reused, copied or resumed must therefore lead to the same answer. It also checks the
//! contract of [`Engine`] on every call, and can be told to fail.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ollmlx_proto::{
    CacheSalt, Complete, Failure, FailureKind, Format, Limits, LoadSpec, MemoryReport, Request, RequestId, ResumePoint,
    Sampling, SlotId, TokenId, UnixSeconds, Work,
};

use crate::chat::ChatSource;
use crate::engine::{EmbedStep, Engine, EngineError, EngineFacts, Pulse, SlotInput, Tokenizer};
use crate::vocab::{TokenKind, Vocab};

pub(crate) const BOS: TokenId = 256;
pub(crate) const EOS: TokenId = 257;
const SIZE: u32 = 258;
/// See [`Toy::gate`].
pub(crate) type Gate = Arc<Mutex<Receiver<()>>>;
const LONG_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Toy {
    pub(crate) facts: EngineFacts,
    pub(crate) caches: Vec<Vec<TokenId>>,
    pub(crate) logits: Vec<Option<Vec<f32>>>,
    /// Tokens per slot of every forward pass that succeeded.
    pub(crate) passes: Vec<Vec<(u16, usize)>>,
    /// What the next forward passes and embeddings answer, if not `None`.
    pub(crate) failures: VecDeque<Option<EngineError>>,
    /// Tokens that all caches together hold at most.
    pub(crate) room: usize,
    /// The slot's cache can only be cut at multiples of this; 0 is never.
    pub(crate) cut_at: u32,
    pub(crate) can_shift: bool,
    pub(crate) can_copy: bool,
    /// A slot whose last token is this computes nonsense.
    pub(crate) nan_after: Option<TokenId>,
    /// The logit of the end token.
    pub(crate) end_logit: f32,
    pub(crate) copies: usize,
    /// What follows the last tilde of prompt and answer, and then the end token.
    pub(crate) script: Option<String>,
    /// Texts with `!wait` are tokenised when something is sent through it, or its other end is dropped.
    pub(crate) gate: Option<Gate>,
    /// Bytes that its tokenizer was given.
    pub(crate) read: Arc<AtomicUsize>,
    /// Panics in the next forward pass.
    pub(crate) explode: bool,
    /// Forward passes compute until this is true.
    pub(crate) long_until: Option<&'static AtomicBool>,
    pub(crate) pulse: Option<Pulse>,
    pub(crate) trims: usize,
    /// Tokens of one step of embeddings.
    pub(crate) embed_tokens: usize,
    /// The inputs under way and their tokens that are done.
    pub(crate) embedding: Option<(Vec<Vec<TokenId>>, usize)>,
}

impl Toy {
    pub(crate) fn new(slots: u16, context_tokens: u32, batch_tokens: u32) -> Self {
        let mut vocab = Vocab {
            bytes: (0..=255_u8).map(|byte| vec![byte]).collect(),
            kinds: vec![TokenKind::Text; 256],
            bos: Some(BOS),
            eos: Some(EOS),
            ends: [EOS].into(),
            add_bos: true,
            ..Vocab::default()
        };
        vocab.bytes.extend([b"<s>".to_vec(), b"</s>".to_vec()]);
        vocab.kinds.extend([TokenKind::Control; 2]);
        Self {
            facts: EngineFacts {
                slots,
                context_tokens,
                batch_tokens,
                embedding: false,
                device: "toy".to_owned(),
                accelerator_bytes: 0,
                vocab: Arc::new(vocab),
                chat: ChatSource::default(),
            },
            caches: vec![Vec::new(); usize::from(slots)],
            logits: Vec::new(),
            passes: Vec::new(),
            failures: VecDeque::new(),
            room: usize::MAX,
            cut_at: 1,
            can_shift: true,
            can_copy: true,
            nan_after: None,
            end_logit: f32::NEG_INFINITY,
            copies: 0,
            script: None,
            gate: None,
            read: Arc::default(),
            explode: false,
            long_until: None,
            pulse: None,
            trims: 0,
            embed_tokens: usize::MAX / 2,
            embedding: None,
        }
    }

    pub(crate) fn load(spec: &LoadSpec) -> Self {
        let mut toy = Self::new(spec.slots, spec.context_tokens, spec.batch_tokens);
        toy.facts.embedding = spec.embedding;
        toy
    }

    /// Mostly lower-case letters, sometimes a byte of a longer character.
    fn compute(&self, cache: &[TokenId]) -> Vec<f32> {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for &token in cache {
            hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        }
        let noise = |id: u32| {
            let mixed = (hash ^ (u64::from(id) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 24) as f32 * 8.0
        };
        let logit = |id: u32| match id {
            EOS => self.end_logit,
            BOS => -20.0,
            id if (u32::from(b'a')..=u32::from(b'z')).contains(&id) => noise(id),
            0xc3 | 0xa9 => noise(id) - 1.0,
            id => noise(id) - 12.0,
        };
        let mut logits: Vec<f32> = (0..SIZE).map(logit).collect();
        let tilde = cache.iter().rposition(|&token| token == TokenId::from(b'~'));
        if let (Some(script), Some(tilde)) = (&self.script, tilde) {
            let next = script.as_bytes().get(cache.len() - tilde - 1).map_or(EOS as usize, |&byte| usize::from(byte));
            logits[next] = 100.0;
        }
        if self.nan_after.is_some() && cache.last().copied() == self.nan_after {
            logits[5] = f32::NAN;
        }
        logits
    }
}

/// A token per byte.
struct ToyTokenizer {
    /// An end token follows the text.
    wraps: bool,
    gate: Option<Gate>,
    read: Arc<AtomicUsize>,
}

impl Tokenizer for ToyTokenizer {
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        self.read.fetch_add(text.len(), Ordering::Relaxed);
        if text.contains("!wait")
            && let Some(gate) = &self.gate
        {
            // What the test does with its end of the gate ends this.
            let _opened = gate.lock().expect("nothing panics here").recv();
        }
        if text.contains("!refuse") {
            return Err(Failure::new(FailureKind::InvalidRequest, "refused"));
        }
        let mut tokens: Vec<TokenId> = if add_special { vec![BOS] } else { Vec::new() };
        let pieces: Vec<&str> = if parse_special { text.split("</s>").collect() } else { vec![text] };
        for (index, piece) in pieces.iter().enumerate() {
            tokens.extend((index > 0).then_some(EOS));
            tokens.extend(piece.bytes().map(TokenId::from));
        }
        if self.wraps && add_special {
            tokens.push(EOS);
        }
        Ok(tokens)
    }
}

impl Engine for Toy {
    fn on_progress(&mut self, pulse: Pulse) {
        self.pulse = Some(pulse);
    }

    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        let (gate, read) = (self.gate.clone(), Arc::clone(&self.read));
        Arc::new(ToyTokenizer { wraps: self.facts.embedding, gate, read })
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        assert!(!self.explode, "as asked");
        assert!(!batch.is_empty() && batch.iter().all(|input| !input.tokens.is_empty()));
        let sum: usize = batch.iter().map(|input| input.tokens.len()).sum();
        assert!(sum <= self.facts.batch_tokens as usize, "batch of {sum} tokens");
        let mut names: Vec<u16> = batch.iter().map(|input| input.slot.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), batch.len(), "slots are distinct");
        if let Some(Some(error)) = self.failures.pop_front() {
            if matches!(error, EngineError::Failed(_)) {
                batch.iter().for_each(|input| self.caches[usize::from(input.slot.0)].push(0));
            }
            return Err(error);
        }
        if self.caches.iter().map(Vec::len).sum::<usize>() + sum > self.room {
            return Err(EngineError::NoRoom);
        }
        let begun = Instant::now();
        while self.long_until.is_some_and(|ends| !ends.load(Ordering::Acquire)) {
            assert!(begun.elapsed() < LONG_MAX, "nobody ends this step");
            self.pulse.as_ref().expect("an engine is given a pulse").beat();
        }
        self.logits.clear();
        for input in batch {
            assert!(input.tokens.iter().all(|&token| token < SIZE));
            let slot = usize::from(input.slot.0);
            self.caches[slot].extend_from_slice(input.tokens);
            assert!(self.caches[slot].len() <= self.facts.context_tokens as usize, "slot {slot} overflows");
            self.logits.push(input.logits.then(|| self.compute(&self.caches[slot])));
        }
        self.passes.push(batch.iter().map(|input| (input.slot.0, input.tokens.len())).collect());
        Ok(())
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        self.logits[input].as_mut().expect("logits were asked for")
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        let cache = &mut self.caches[usize::from(slot.0)];
        if (keep as usize) < cache.len() {
            let keep = keep.checked_div(self.cut_at).map_or(0, |times| times * self.cut_at);
            cache.truncate(keep as usize);
        }
        cache.len() as u32
    }

    fn shift(&mut self, slot: SlotId, keep: u32, discard: u32) -> bool {
        if self.can_shift {
            self.caches[usize::from(slot.0)].drain(keep as usize..(keep + discard) as usize);
        }
        self.can_shift
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        assert_ne!(from, to);
        let copy = if self.can_copy { self.caches[usize::from(from.0)][..tokens as usize].to_vec() } else { vec![] };
        self.copies += usize::from(self.can_copy);
        self.caches[usize::from(to.0)] = copy;
        self.can_copy
    }

    fn embed_begin(&mut self, inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError> {
        self.caches.iter_mut().for_each(Vec::clear);
        self.embedding = None;
        if let Some(Some(error)) = self.failures.pop_front() {
            return Err(error);
        }
        if inputs.len() > self.room {
            return Err(EngineError::NoRoom);
        }
        assert!(inputs.iter().all(|input| (1..=self.facts.context_tokens as usize).contains(&input.len())));
        self.embedding = Some((inputs, 0));
        Ok(())
    }

    fn embed_step(&mut self) -> Result<EmbedStep, EngineError> {
        let (inputs, done) = self.embedding.as_mut().expect("embeddings have begun");
        let total: usize = inputs.iter().map(Vec::len).sum();
        *done += self.embed_tokens;
        if *done < total {
            self.caches[0].push(0);
            return Ok(EmbedStep::Part { done_tokens: *done });
        }
        self.caches.iter_mut().for_each(Vec::clear);
        let nan = self.nan_after;
        let vector = |input: &Vec<TokenId>| {
            let first = if nan.is_some_and(|nan| input.contains(&nan)) { f32::NAN } else { input.len() as f32 };
            vec![first, input.iter().sum::<u32>() as f32, 3.0, *input.last().expect("not empty") as f32]
        };
        self.passes.push(inputs.iter().map(|input| (0, input.len())).collect());
        let vectors = inputs.iter().map(vector).collect();
        self.embedding = None;
        Ok(EmbedStep::Vectors(vectors))
    }

    fn trim(&mut self) {
        self.trims += 1;
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport { weights: 1000, kv: 100, compute: if self.trims == 0 { 10 } else { 1 } }
    }
}

/// A raw prompt, greedy, at most 16 tokens.
pub(crate) fn complete(id: u64, prompt: &str) -> Request {
    Request {
        id: RequestId(id),
        work: Work::Complete(Complete { prompt: prompt.to_owned(), suffix: None }),
        sampling: Sampling {
            seed: 42,
            seeded: true,
            temperature: 0.0,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        },
        stop: Vec::new(),
        format: Format::Text,
        limits: Limits { max_tokens: Some(16), context_tokens: 4096, truncate: true, shift: true, keep_tokens: 4 },
        logprobs: None,
        asked_at: UnixSeconds::default(),
        cache_salt: CacheSalt::default(),
        progress: ResumePoint::default(),
    }
}

/// The same request on another worker, after these tokens.
pub(crate) fn after(request: &Request, produced: &[TokenId]) -> Request {
    let progress = ResumePoint { produced: produced.to_vec(), said_after: 0, replay_exact_ms: 1000 };
    Request { progress, ..request.clone() }
}
