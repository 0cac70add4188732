//! What MLX takes for a model, by its headers: the estimate before a load.
//!
//! Weights are counted as they will be held (widened or unpacked on a CPU), caches by the shapes the engine makes them in, and
//! buffers by what the graph of one batch keeps at once. MLX is asked for nothing but its device.

use std::collections::BTreeMap;

use mlx_rs::{Device, DeviceType, Dtype};
use ollmlx_proto::{KvCells, MemoryModel};
use ollmlx_worker_kit::contract::CellType;
use ollmlx_worker_kit::limits::PREFILL_CHUNK_TOKENS;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, TensorMeta};
use crate::kv::{KvPacking, KvShape};
use crate::limits::{CELLS_MULTIPLE, CPU_UNPACK_BYTES_MAX, SLIDING_SLACK_TOKENS};
use crate::model::ModelSpec;
use crate::model::decoder::DecoderSpec;

/// The process with MLX's library and nothing loaded, BLAS's buffers among it.
const PROCESS_BYTES: u64 = 60 << 20;
/// Heap per entry of the vocabulary: the tokenizer's tables and ours.
const VOCABULARY_ENTRY_BYTES: u64 = 700;
/// The same two for an encoder, whose vocabulary has no merges and whose products need fewer of BLAS's buffers.
const ENCODER_PROCESS_BYTES: u64 = 20 << 20;
const ENCODER_VOCABULARY_ENTRY_BYTES: u64 = 380;
/// Part of a cache that its growth leaves unused in a CPU's heap, as measured.
const HEAP_PART: u64 = 8;
/// Hidden states that live at once in one layer of one batch.
const HIDDEN_COPIES: u64 = 8;
/// Parts of a model that text generation never takes.
const UNUSED_PARTS: [&str; 4] = ["vision_tower.", "multi_modal_projector.", "audio_tower.", "embed_vision."];

/// Whether MLX computes on the CPU here.
#[must_use]
pub fn is_on_cpu() -> bool {
    Device::try_default().and_then(|device| device.get_type()).is_ok_and(|kind| matches!(kind, DeviceType::Cpu))
}

/// Number of weights: packed ones as unpacked, their scales and offsets as none.
#[must_use]
pub fn parameter_count(tensors: &BTreeMap<String, TensorMeta>, config: &Map<String, Value>) -> u64 {
    tensors.iter().fold(0_u64, |sum, (name, meta)| {
        sum.saturating_add(match role(tensors, config, name) {
            Role::Factor => 0,
            Role::Packed { values } => values,
            Role::Plain => product(&meta.shape),
        })
    })
}

/// Whether packed weights become plain floats as they are loaded: on a CPU, where they then are small enough.
#[must_use]
pub fn unpacks(tensors: &BTreeMap<String, TensorMeta>, config: &Map<String, Value>, on_cpu: bool) -> bool {
    on_cpu && parameter_count(tensors, config).saturating_mul(4) <= CPU_UNPACK_BYTES_MAX
}

/// Bytes of the weights as they will be held, and of the largest of them as plain floats.
fn held_weights(
    tensors: &BTreeMap<String, TensorMeta>,
    config: &Map<String, Value>,
    on_cpu: bool,
    unpacks: bool,
) -> (u64, u64) {
    let used = tensors.iter().filter(|(name, _)| !UNUSED_PARTS.iter().any(|part| name.contains(part)));
    used.fold((0_u64, 0_u64), |(sum, largest), (name, meta)| {
        // Half floats become whole ones on a CPU.
        let widened = match meta.dtype.as_str() {
            "F16" | "BF16" if on_cpu => meta.bytes.saturating_mul(2),
            _ => meta.bytes,
        };
        let (bytes, plain) = match role(tensors, config, name) {
            Role::Factor if unpacks => (0, 0),
            Role::Packed { values } if unpacks => (values.saturating_mul(4), values.saturating_mul(4)),
            Role::Packed { values } => (meta.bytes, values.saturating_mul(4)),
            Role::Factor | Role::Plain => (widened, widened),
        };
        (sum.saturating_add(bytes), largest.max(plain))
    })
}

enum Role {
    Plain,
    /// Values of a packed weight; how many they are.
    Packed {
        values: u64,
    },
    /// Scales or offsets of a packed weight.
    Factor,
}

fn role(tensors: &BTreeMap<String, TensorMeta>, config: &Map<String, Value>, name: &str) -> Role {
    let factor = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
    if factor.is_some_and(|path| tensors.contains_key(&format!("{path}.weight"))) {
        return Role::Factor;
    }
    let packed = name.strip_suffix(".weight").and_then(|path| Some((path, tensors.get(&format!("{path}.scales"))?)));
    match packed {
        // A row has as many values as it has groups times their size.
        Some((path, scales)) => {
            Role::Packed { values: product(&scales.shape).saturating_mul(group_size(config, path)) }
        }
        None => Role::Plain,
    }
}

fn product(shape: &[u64]) -> u64 {
    shape.iter().fold(1_u64, |product, &dimension| product.saturating_mul(dimension))
}

/// The group size of a layer: its own entry, else the one for all, else MLX's default.
fn group_size(config: &Map<String, Value>, path: &str) -> u64 {
    let block = config.get("quantization");
    let own = block.and_then(|block| block.get(path)).and_then(|entry| entry.get("group_size"));
    let all = || block.and_then(|block| block.get("group_size"));
    own.or_else(all).and_then(Value::as_u64).unwrap_or(64)
}

/// The coefficients of a model.
#[must_use]
pub fn memory_model(checkpoint: &Checkpoint, spec: &ModelSpec, config: &Map<String, Value>) -> MemoryModel {
    let on_cpu = is_on_cpu();
    let unpacks = unpacks(&checkpoint.tensors, config, on_cpu);
    let (weights, largest) = held_weights(&checkpoint.tensors, config, on_cpu, unpacks);
    let float = if on_cpu { 4 } else { 2 };
    // Packed weights are unpacked one by one for a batch of many rows.
    let transient = if on_cpu && !unpacks { largest } else { 0 };
    let size = |value: i32| value as u64;
    let (vocabulary, context_max) = match spec {
        ModelSpec::Decoder(spec) => (size(spec.vocab), spec.context),
        ModelSpec::Encoder(spec) => (size(spec.vocab), spec.context),
    };
    let mut model = MemoryModel {
        weights,
        context_max,
        fixed: PROCESS_BYTES
            .saturating_add(vocabulary.saturating_mul(VOCABULARY_ENTRY_BYTES))
            .saturating_add(transient),
        ..MemoryModel::default()
    };
    match spec {
        ModelSpec::Decoder(spec) => add_decoder(&mut model, spec, float),
        ModelSpec::Encoder(spec) => {
            model.fixed = ENCODER_PROCESS_BYTES
                .saturating_add(vocabulary.saturating_mul(ENCODER_VOCABULARY_ENTRY_BYTES))
                .saturating_add(transient);
            let width = size(spec.hidden).saturating_mul(HIDDEN_COPIES).saturating_add(2 * size(spec.feed_forward));
            model.per_batch_token = width.saturating_mul(float);
            model.per_score = 2 * size(spec.heads) * float;
            model.batch_max = 0;
        }
    }
    model
}

fn add_decoder(model: &mut MemoryModel, spec: &DecoderSpec, float: u64) {
    let size = |value: i32| value as u64;
    let dtype = if float == 4 { Dtype::Float32 } else { Dtype::Bfloat16 };
    let shape = |packing| KvShape { heads: spec.kv_heads, width: spec.head_width, dtype, window: None, packing };
    let elements = 2 * size(spec.kv_heads) * size(spec.head_width);
    let of_32 = |packing| {
        let bytes = shape(packing).token_bytes().saturating_mul(32) / elements;
        // The heap keeps rooms that a growing cache has left; the pool of a GPU takes them for the next.
        if float == 4 { bytes.saturating_add(bytes / HEAP_PART) } else { bytes }
    };
    model.kv_bytes_of_32 = [("f16", CellType::F16), ("q8_0", CellType::Q8_0), ("q4_0", CellType::Q4_0)]
        .map(|(word, cells)| (word.to_owned(), of_32(KvPacking::of(cells))))
        .into();
    let mut by_window: BTreeMap<u64, u64> = BTreeMap::new();
    for window in &spec.windows {
        *by_window.entry(window.map_or(0, size)).or_default() += elements;
    }
    model.kv = by_window
        .into_iter()
        .map(|(window_tokens, elements)| KvCells {
            elements,
            window_tokens,
            slack_tokens: if window_tokens == 0 {
                0
            } else {
                size(SLIDING_SLACK_TOKENS) + u64::from(PREFILL_CHUNK_TOKENS)
            },
            multiple: size(CELLS_MULTIPLE),
            shared: false,
        })
        .collect();
    let heads = size(spec.heads) * size(spec.head_width);
    let feed_forward = match &spec.moe {
        Some((moe, _)) => size(spec.feed_forward).max(size(moe.width).saturating_mul(size(moe.chosen))),
        None => size(spec.feed_forward),
    };
    let width = size(spec.hidden)
        .saturating_mul(HIDDEN_COPIES)
        .saturating_add(heads.saturating_mul(4))
        .saturating_add(feed_forward.saturating_mul(4));
    model.per_batch_token = width.saturating_mul(float);
    // Scores and their softmax; the fused kernels of a GPU keep none.
    model.per_score = if float == 4 { 2 * size(spec.heads) * 4 } else { 0 };
    // MLX's array of logits and ours.
    model.per_slot = size(spec.vocab).saturating_mul(8);
    model.batch_max = PREFILL_CHUNK_TOKENS;
}
