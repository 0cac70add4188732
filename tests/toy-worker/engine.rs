//! The toy model: a token is a byte, and what follows is a function of all tokens before.
//!
//! So whatever is resumed, batched or reused leads to the same answer, or the difference is seen. Its weights are a
//! [`harness::toy::Weights`] behind the four bytes that make a file a GGUF file.

use std::path::PathBuf;
use std::sync::Arc;

use harness::toy::Weights;
use ollmlx_proto::{Capability, Failure, FailureKind, LoadSpec, MemoryModel, MemoryReport, ModelCard, SlotId, TokenId};
use ollmlx_worker_kit::chat::{ChatSource, template_capabilities};
use ollmlx_worker_kit::contract::NO_EMBEDDINGS;
use ollmlx_worker_kit::engine::{
    Backend, EmbedStep, Engine, EngineError, EngineFacts, LoadProgress, SlotInput, Tokenizer,
};
use ollmlx_worker_kit::vocab::{TokenKind, Vocab};

const BEGIN: TokenId = 256;
const END: TokenId = 257;
const SIZE: u32 = 258;
/// Where a scripted answer begins.
const MARK: TokenId = b'~' as TokenId;
/// Louder than any noise.
const CERTAIN: f32 = 100.0;

pub(super) struct ToyBackend;

pub(super) struct Toy {
    facts: EngineFacts,
    weights: Weights,
    caches: Vec<Vec<TokenId>>,
    logits: Vec<Vec<f32>>,
}

fn no_vectors() -> EngineError {
    EngineError::Refused(Failure::new(FailureKind::Unsupported, NO_EMBEDDINGS))
}

fn read(paths: &[PathBuf]) -> Result<Weights, Failure> {
    let invalid = |text: String| Failure::new(FailureKind::ModelInvalid, text);
    let path = paths.first().ok_or_else(|| invalid("no path".to_owned()))?;
    Weights::read(path).map_err(invalid)
}

impl Backend for ToyBackend {
    type Engine = Toy;

    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
        let weights = read(paths)?;
        let mut capabilities = vec![Capability::Completion];
        capabilities.extend(template_capabilities(Some(&weights.template), None));
        Ok(ModelCard {
            format: "gguf".to_owned(),
            architecture: "toy".to_owned(),
            parameter_count: 1,
            quantization: "F32".to_owned(),
            context_length: 4096,
            embedding_length: 4,
            block_count: 1,
            vocab_size: SIZE,
            weight_bytes: 4,
            memory: MemoryModel::default(),
            chat_template: Some(weights.template),
            chat_template_fault: None,
            builtin_template: None,
            capabilities,
            metadata: "{}".to_owned(),
            tensors: Vec::new(),
        })
    }

    fn load(spec: &LoadSpec, _progress: LoadProgress<'_>) -> Result<Toy, Failure> {
        let weights = read(&spec.weights)?;
        let mut vocab = Vocab {
            bytes: (0..=u8::MAX).map(|byte| vec![byte]).collect(),
            kinds: vec![TokenKind::Text; 256],
            bos: Some(BEGIN),
            eos: Some(END),
            ends: [END].into(),
            add_bos: true,
            ..Vocab::default()
        };
        vocab.bytes.extend([b"<s>".to_vec(), b"</s>".to_vec()]);
        vocab.kinds.extend([TokenKind::Control; 2]);
        let facts = EngineFacts {
            slots: spec.slots,
            context_tokens: spec.context_tokens,
            batch_tokens: spec.batch_tokens,
            embedding: false,
            device: "toy".to_owned(),
            accelerator_bytes: 0,
            vocab: Arc::new(vocab),
            chat: ChatSource { jinja: Some(weights.template.clone()), ..ChatSource::default() },
        };
        Ok(Toy { caches: vec![Vec::new(); usize::from(spec.slots)], facts, weights, logits: Vec::new() })
    }
}

impl Toy {
    /// Mostly small letters, now and then half of an é; or the script, as far as the answer has come.
    fn compute(&self, cache: &[TokenId]) -> Vec<f32> {
        let hash = cache
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3));
        let noise = |id: u32| {
            let mixed = (hash ^ (u64::from(id) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            mixed as f32 / (1 << 24) as f32 * 8.0
        };
        let logit = |id: u32| match id {
            BEGIN | END => -20.0,
            id if (u32::from(b'a')..=u32::from(b'z')).contains(&id) => noise(id),
            0xc3 | 0xa9 => noise(id) - 1.0,
            id => noise(id) - 12.0,
        };
        let mut logits: Vec<f32> = (0..SIZE).map(logit).collect();
        if let (Some(answer), Some(mark)) = (&self.weights.answer, cache.iter().rposition(|&token| token == MARK)) {
            let next = answer.as_bytes().get(cache.len() - mark - 1).map_or(END, |&byte| TokenId::from(byte));
            logits[next as usize] = CERTAIN;
        }
        logits
    }
}

struct Bytes;

impl Tokenizer for Bytes {
    fn tokenize(&self, text: &str, add_special: bool, _parse_special: bool) -> Result<Vec<TokenId>, Failure> {
        Ok(add_special.then_some(BEGIN).into_iter().chain(text.bytes().map(TokenId::from)).collect())
    }
}

impl Engine for Toy {
    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(Bytes)
    }

    fn forward(&mut self, batch: &[SlotInput<'_>]) -> Result<(), EngineError> {
        self.logits.clear();
        for input in batch {
            let slot = usize::from(input.slot.0);
            self.caches[slot].extend_from_slice(input.tokens);
            let logits = if input.logits { self.compute(&self.caches[slot]) } else { Vec::new() };
            self.logits.push(logits);
        }
        Ok(())
    }

    fn logits(&mut self, input: usize) -> &mut [f32] {
        &mut self.logits[input]
    }

    fn truncate(&mut self, slot: SlotId, keep: u32) -> u32 {
        let cache = &mut self.caches[usize::from(slot.0)];
        cache.truncate(keep as usize);
        u32::try_from(cache.len()).expect("a window has 32 bits")
    }

    fn shift(&mut self, _slot: SlotId, _keep: u32, _discard: u32) -> bool {
        false
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, tokens: u32) -> bool {
        self.caches[usize::from(to.0)] = self.caches[usize::from(from.0)][..tokens as usize].to_vec();
        true
    }

    fn embed_begin(&mut self, _inputs: Vec<Vec<TokenId>>) -> Result<(), EngineError> {
        Err(no_vectors())
    }

    fn embed_step(&mut self) -> Result<EmbedStep, EngineError> {
        Err(no_vectors())
    }

    fn trim(&mut self) {}

    fn memory(&self) -> MemoryReport {
        MemoryReport { weights: 1, kv: 0, compute: 0 }
    }
}
