//! What llama.cpp takes for a model, by its headers and the way it is loaded: the estimate before a load and the report
//! after it are the same formula.

use ollmlx_proto::{KvCells, MemoryModel, Unfused};

use crate::card::is_embedding;
use crate::gguf::kv_cost::{is_encoder, kv_cost};
use crate::gguf::shards::Files;
use crate::gguf::{Header, Value};
use crate::limits::{
    CELLS_MULTIPLE, EMBED_CHUNK_TOKENS, EMBED_TOKENS_MAX, MEAN_CHUNK_TOKENS, MICRO_BATCH_TOKENS,
    STREAMS_WEIGHT_BYTES_MAX,
};

/// Bytes of activations per token of a micro-batch and unit of width: hidden state, norm, query, key, value, feed
/// forward up, gate and product (up to four times as wide), 32-bit, as far as they live at once.
const ACTIVATION_BYTES: u64 = 4 * 10;
/// The process with llama.cpp's libraries and nothing loaded.
const PROCESS_BYTES: u64 = 22 << 20;
/// Heap per entry of the vocabulary: llama.cpp's tables and ours.
const VOCABULARY_ENTRY_BYTES: u64 = 270;
/// Bytes per token of a micro-batch and cell of a slot: the mask of attention, 32-bit.
const MASK_BYTES: u64 = 4;
/// Bytes per score of a head where attention isn't fused: a 32-bit float, and on a CPU the 16-bit copy that is multiplied with
/// the values.
const SCORE_BYTES: u64 = 4;
const SCORE_COPY_BYTES: u64 = 2;
/// The same three for an encoder, which keeps no cache, samples nothing, and whose vocabulary has no merges.
const ENCODER_PROCESS_BYTES: u64 = 20 << 20;
const ENCODER_VOCABULARY_ENTRY_BYTES: u64 = 100;
const ENCODER_ACTIVATION_BYTES: u64 = 4 * 8;
/// Bytes per pair of tokens of an encoder's input: the mask of attention, 32-bit, and its 16-bit copy.
const ENCODER_MASK_BYTES: u64 = 6;

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
    pub fn of(files: &Files, offload: bool) -> Self {
        if files.weight_bytes() <= STREAMS_WEIGHT_BYTES_MAX && !offload { Self::Streams } else { Self::Shared }
    }
}

/// What a model is for, which decides how it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It continues text, and embeds on the side.
    Generator,
    /// It embeds and looks back only: inputs are computed in parts, in one window that all share.
    Embedder,
    /// It embeds and looks both ways: inputs are computed whole.
    Encoder,
}

impl Kind {
    /// By a header, and whether a load order says that the model is for embeddings.
    #[must_use]
    pub fn of(header: &Header, embedding: bool) -> Self {
        match (embedding || is_embedding(header), looks_both_ways(header)) {
            (false, _) => Self::Generator,
            (true, false) => Self::Embedder,
            (true, true) => Self::Encoder,
        }
    }
}

/// Generators that llama.cpp computes so whatever their header says.
const DIFFUSION: [&str; 4] = ["dream", "llada", "llada-moe", "rnd1"];

/// Whether a token sees those after it.
#[must_use]
pub fn looks_both_ways(header: &Header) -> bool {
    is_encoder(header.architecture())
        || DIFFUSION.contains(&header.architecture())
        || matches!(header.arch("attention.causal"), Some(Value::Bool(false)))
}

/// Bytes that 32 elements of a cache take.
const CELL_BYTES: [(&str, u64); 5] = [("f16", 64), ("bf16", 64), ("f32", 128), ("q8_0", 34), ("q4_0", 18)];

/// Element types that only fused attention reads as values.
#[must_use]
pub fn needs_flash_attention(kv_type: &str) -> bool {
    matches!(kv_type, "q8_0" | "q4_0")
}

/// The coefficients without flash attention: the scores of all heads of a layer are held, with every cell that the batch
/// sees.
fn unfused(header: &Header, mask: u64, shared: bool, offload: bool) -> Unfused {
    let layers = header.arch_number("block_count").unwrap_or_default();
    let places = (0..layers).map_while(|layer| usize::try_from(layer).ok());
    let heads = places.filter_map(|layer| header.per_layer("attention.head_count", layer)).max().unwrap_or_default();
    let score = if offload { SCORE_BYTES } else { SCORE_BYTES + SCORE_COPY_BYTES };
    let whole = CELL_BYTES.into_iter().filter(|(name, _)| !needs_flash_attention(name));
    Unfused {
        per_score: mask.saturating_add(heads.saturating_mul(score)),
        scores_across_slots: shared,
        kv_bytes_of_32: whole.map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
    }
}

/// The coefficients of a model.
#[must_use]
pub fn memory_model(files: &Files, layout: Layout, offload: bool, kind: Kind) -> MemoryModel {
    let header = &files.header;
    let cost = kv_cost(header);
    let trained = header.arch_number("context_length").and_then(|it| u32::try_from(it).ok()).unwrap_or(u32::MAX);
    let shared = layout == Layout::Shared || kind != Kind::Generator;
    let cells = |bytes: u64, window_tokens: u64| KvCells {
        // The cost is for 16 bits.
        elements: bytes / 2,
        window_tokens,
        slack_tokens: if window_tokens == 0 { 0 } else { MICRO_BATCH_TOKENS.into() },
        multiple: CELLS_MULTIPLE.into(),
        shared,
    };
    let mut kv = vec![cells(cost.per_token, 0)];
    if cost.window_tokens > 0 {
        kv.push(cells(cost.per_window_token, cost.window_tokens));
    }
    let vocabulary = header.vocab_size();
    let width = header.arch_number("embedding_length").unwrap_or_default();
    let fixed = PROCESS_BYTES.saturating_add(vocabulary.saturating_mul(VOCABULARY_ENTRY_BYTES));
    // llama.cpp reserves logits for a whole micro-batch; on a CPU only the rows in use are ever touched.
    let logits = vocabulary.saturating_mul(4);
    let (theirs, logits_per_token) = if offload { (0, logits) } else { (logits, 0) };
    let activations = width.saturating_mul(ACTIVATION_BYTES);
    let common = MemoryModel {
        weights: files.weight_bytes(),
        kv,
        kv_bytes_of_32: CELL_BYTES.map(|(word, bytes)| (word.to_owned(), bytes)).into(),
        state_per_slot: cost.state,
        context_max: trained,
        fixed,
        // The sampler spoils what it works on, so each slot has a copy.
        per_slot: theirs.saturating_add(logits),
        per_batch_token: activations.saturating_add(logits_per_token),
        per_score: MASK_BYTES,
        scores_across_slots: false,
        batch_max: MICRO_BATCH_TOKENS,
        windows_max: 0,
        unfused: Some(unfused(header, MASK_BYTES, shared, offload)),
    };
    match kind {
        Kind::Generator => common,
        Kind::Embedder => MemoryModel {
            // Where the mean is wanted, a few tokens bring their logits along, computed and copied.
            fixed: fixed.saturating_add(logits.saturating_mul(2 * u64::from(MEAN_CHUNK_TOKENS))),
            per_slot: theirs,
            batch_max: EMBED_CHUNK_TOKENS,
            windows_max: 1,
            ..common
        },
        Kind::Encoder => MemoryModel {
            context_max: trained.min(EMBED_TOKENS_MAX),
            fixed: ENCODER_PROCESS_BYTES.saturating_add(vocabulary.saturating_mul(ENCODER_VOCABULARY_ENTRY_BYTES)),
            per_slot: 0,
            // Beside each token's vector llama.cpp keeps room for its logits, and fills it with zeros.
            per_batch_token: width.saturating_mul(ENCODER_ACTIVATION_BYTES + 4).saturating_add(logits),
            per_score: ENCODER_MASK_BYTES,
            batch_max: 0,
            windows_max: 1,
            unfused: Some(unfused(header, ENCODER_MASK_BYTES, shared, offload)),
            ..common
        },
    }
}
