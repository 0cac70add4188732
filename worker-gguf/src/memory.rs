//! What llama.cpp takes for a model, by its headers and the way it is loaded: the estimate before a load and the report
//! after it are the same formula.

use ollmlx_proto::{KvCells, MemoryModel};

use crate::gguf::kv_cost::{is_encoder, kv_cost};
use crate::gguf::shards::Model;

/// Tokens of a micro-batch, what one pass over the weights computes. Larger ones are no faster on a CPU, and buffers
/// grow with it.
pub const MICRO_BATCH_TOKENS: u32 = 512;
/// llama.cpp rounds a stream up to this many cells.
pub const CELLS_MULTIPLE: u32 = 256;
/// Longest input of an embedding model: it is computed in one piece, and buffers grow with its length.
pub const EMBED_TOKENS_MAX: u32 = 8192;
/// Bytes of activations per token of a micro-batch and unit of width: hidden state, norm, query, key, value, feed
/// forward up, gate and product (up to four times as wide), 32-bit, as far as they live at once.
const ACTIVATION_BYTES: u64 = 4 * 10;
/// Bytes of weights up to which a model on the CPU gets a stream of cells per slot.
const STREAMS_WEIGHT_BYTES_MAX: u64 = 1 << 30;
/// The process with llama.cpp's libraries and nothing loaded.
const PROCESS_BYTES: u64 = 22 << 20;
/// Heap per entry of the vocabulary: llama.cpp's tables and ours.
const VOCABULARY_ENTRY_BYTES: u64 = 270;
/// Bytes per token of a micro-batch and cell of a slot: the mask of attention, 32-bit.
const MASK_BYTES: u64 = 4;

/// How slots lie in the cache.
///
/// Shared cells: any batch is one pass over the weights, but every token's attention looks at the masks of all cells
/// in use, idle slots' too. A stream per slot: no such masks, but a batch whose slots have gaps between them takes a
/// pass per run of neighbours. Masks cost per head, passes cost per weight, so streams are for small models on a CPU:
/// SmolLM2 with eight slots of 450 tokens makes 247 tokens/s with them and 210 without (two cores, one run each). The
/// cost of gaps and of longer slots was not measured; the limit of a gibibyte follows from that reasoning alone. On a
/// GPU masked blocks are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All slots in one buffer.
    Shared,
    /// A buffer per slot.
    Streams,
}

impl Layout {
    /// What suits a model.
    #[must_use]
    pub fn of(files: &Model, offload: bool) -> Self {
        if files.weight_bytes() <= STREAMS_WEIGHT_BYTES_MAX && !offload { Self::Streams } else { Self::Shared }
    }
}

/// The coefficients of a model.
#[must_use]
pub fn memory_model(files: &Model, layout: Layout, offload: bool, embedding: bool) -> MemoryModel {
    let header = &files.header;
    let cost = kv_cost(header);
    let embedding = embedding || is_encoder(header.architecture());
    let trained = header.arch_number("context_length").and_then(|it| u32::try_from(it).ok()).unwrap_or(u32::MAX);
    let cells = |bytes: u64, window_tokens: u64| KvCells {
        // The cost is for 16 bits.
        elements: bytes / 2,
        window_tokens,
        slack_tokens: if window_tokens == 0 { 0 } else { MICRO_BATCH_TOKENS.into() },
        multiple: CELLS_MULTIPLE.into(),
        shared: layout == Layout::Shared,
    };
    let mut kv = vec![cells(cost.per_token, 0)];
    if cost.window_tokens > 0 {
        kv.push(cells(cost.per_window_token, cost.window_tokens));
    }
    let vocabulary = header.vocab_size();
    // llama.cpp reserves logits for a whole micro-batch; on a CPU only the rows in use are ever touched.
    let logits = vocabulary.saturating_mul(4);
    let (theirs, logits_per_token) = if offload { (0, logits) } else { (logits, 0) };
    // The sampler spoils what it works on, so each slot has a copy.
    let per_slot = theirs.saturating_add(logits);
    let width = header.arch_number("embedding_length").unwrap_or_default();
    MemoryModel {
        weights: files.weight_bytes(),
        kv: if embedding { Vec::new() } else { kv },
        kv_bytes_of_32: [("f16", 64), ("bf16", 64), ("f32", 128), ("q8_0", 34), ("q4_0", 18)]
            .map(|(word, bytes)| (word.to_owned(), bytes))
            .into(),
        state_per_slot: if embedding { 0 } else { cost.state },
        context_max: if embedding { trained.min(EMBED_TOKENS_MAX) } else { trained },
        fixed: PROCESS_BYTES.saturating_add(vocabulary.saturating_mul(VOCABULARY_ENTRY_BYTES)),
        per_slot: if embedding { 0 } else { per_slot },
        per_batch_token: width.saturating_mul(ACTIVATION_BYTES).saturating_add(if embedding {
            0
        } else {
            logits_per_token
        }),
        per_score: if embedding { 0 } else { MASK_BYTES },
        batch_max: if embedding { 0 } else { MICRO_BATCH_TOKENS },
    }
}
