//! What the key-value cache of a model costs, by its header.
//!
//! The formulas are llama.cpp's (`llama-kv-cache*.cpp`, `llama-memory-recurrent.cpp`); where an architecture is not
//! known, every layer counts as one that grows, which is never too little.

use super::{Header, Value};

/// Architectures with sliding windows: layers of a period, and whether the full layer is the first of the period
/// instead of the last (`load_swa_pattern` calls in llama.cpp).
const WINDOWED: [(&str, u64, bool); 18] = [
    ("gemma2", 2, false),
    ("gemma3", 6, false),
    ("gemma3n", 5, false),
    ("gemma4", 6, false),
    ("gpt-oss", 2, false),
    ("cohere2", 4, false),
    ("cohere2moe", 4, true),
    ("llama4", 4, false),
    ("exaone4", 4, false),
    ("exaone-moe", 4, false),
    ("olmo2", 4, false),
    ("plamo3", 8, false),
    ("smallthinker", 4, true),
    ("afmoe", 4, false),
    ("laguna", 4, true),
    ("mellum", 4, false),
    ("muse-glimmer", 4, false),
    ("gemma-embedding", 6, false),
];
/// Architectures without attention.
const RECURRENT: [&str; 7] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "falcon-mamba"];
/// Architectures with attention in every fourth layer only, unless the header says otherwise.
const INTERVAL: [&str; 3] = ["qwen3next", "qwen35", "qwen35moe"];
/// Architectures that embed and keep no cache.
const ENCODERS: [&str; 10] = [
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "eurobert",
    "t5encoder",
    "gemma-embedding",
];

/// Bytes of a key-value cache with 16-bit elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvCost {
    /// Of one token in all layers that keep every token.
    pub per_token: u64,
    /// Of one token in all layers with a sliding window.
    pub per_window_token: u64,
    /// Tokens of that window; 0 where there is none.
    pub window_tokens: u64,
    /// Of the recurrent state of one sequence; does not depend on the element type.
    pub state: u64,
}

/// Whether a model of this architecture embeds and does nothing else.
#[must_use]
pub fn is_encoder(architecture: &str) -> bool {
    ENCODERS.contains(&architecture)
}

/// Reads the cost off a header.
#[must_use]
pub fn kv_cost(header: &Header) -> KvCost {
    let mut cost = KvCost::default();
    let architecture = header.architecture();
    if is_encoder(architecture) {
        return cost;
    }
    let layers = header.arch_number("block_count").unwrap_or_default();
    let own = layers
        .saturating_sub(header.arch_number("nextn_predict_layers").unwrap_or_default())
        .saturating_sub(header.arch_number("attention.shared_kv_layers").unwrap_or_default());
    let window = window_tokens(header);
    cost.window_tokens = window.unwrap_or_default();
    for layer in 0..own {
        let place = usize::try_from(layer).unwrap_or(usize::MAX);
        let slides = window.is_some() && slides(header, place, layer);
        let bytes = if attends(header, place, layer) { token_bytes(header, place, slides) } else { 0 };
        if is_recurrent(header, place, layer) {
            cost.state = cost.state.saturating_add(state_bytes(header));
        }
        let sum = if slides { &mut cost.per_window_token } else { &mut cost.per_token };
        *sum = sum.saturating_add(bytes);
    }
    cost
}

/// Bytes of one token in one layer.
fn token_bytes(header: &Header, layer: usize, slides: bool) -> u64 {
    let rope = header.arch_number("rope.dimension_count").unwrap_or_default();
    if let Some(rank) = header.arch_number("attention.kv_lora_rank")
        && header.arch("attention.key_length_mla").is_some()
    {
        // Latent attention keeps one compressed key and no value.
        return rank.saturating_add(rope).saturating_mul(2);
    }
    let heads = header.per_layer("attention.head_count", layer).unwrap_or_default();
    let kv_heads = header.per_layer("attention.head_count_kv", layer).unwrap_or(heads);
    let width = header.arch_number("embedding_length").unwrap_or_default();
    let usual = width.checked_div(heads).unwrap_or_default();
    let length = |name: &str| {
        let own = slides.then(|| header.arch_number(&format!("attention.{name}_swa"))).flatten();
        own.or_else(|| header.arch_number(&format!("attention.{name}"))).unwrap_or(usual)
    };
    length("key_length").saturating_add(length("value_length")).saturating_mul(kv_heads).saturating_mul(2)
}

fn window_tokens(header: &Header) -> Option<u64> {
    let architecture = header.architecture();
    let by_array = matches!(header.arch("attention.sliding_window_pattern"), Some(Value::Array(_)));
    if !by_array && !WINDOWED.iter().any(|(name, ..)| *name == architecture) {
        return None;
    }
    let stated = header.arch_number("attention.sliding_window");
    match architecture {
        "gemma2" => Some(stated.unwrap_or(4096)),
        "llama4" => Some(stated.unwrap_or(8192)),
        _ => stated,
    }
    .filter(|tokens| *tokens > 0)
}

pub(super) fn slides(header: &Header, place: usize, layer: u64) -> bool {
    let known = WINDOWED.iter().find(|(name, ..)| *name == header.architecture());
    match header.arch("attention.sliding_window_pattern") {
        Some(Value::Array(array)) => array.first.get(place).and_then(Value::as_u64).unwrap_or_default() != 0,
        stated => {
            let Some((_, usual, first_is_full)) = known else { return false };
            match stated.and_then(Value::as_u64).unwrap_or(*usual) {
                0 => true,
                period if *first_is_full => !layer.is_multiple_of(period),
                period => layer % period < period - 1,
            }
        }
    }
}

fn attends(header: &Header, place: usize, layer: u64) -> bool {
    !RECURRENT.contains(&header.architecture())
        && header.per_layer("attention.head_count_kv", place) != Some(0)
        && full_interval(header).is_none_or(|interval| (layer + 1).is_multiple_of(interval))
}

fn full_interval(header: &Header) -> Option<u64> {
    let usual = INTERVAL.contains(&header.architecture()).then_some(4);
    header.arch_number("full_attention_interval").or(usual).filter(|interval| *interval > 0)
}

fn is_recurrent(header: &Header, place: usize, layer: u64) -> bool {
    let has_state = header.arch("ssm.state_size").is_some() || header.arch("wkv.head_size").is_some();
    // Falcon-H1 has both kinds in every layer.
    has_state && (header.architecture() == "falcon-h1" || !attends(header, place, layer))
}

/// Convolution and state of one layer and sequence, 32-bit.
fn state_bytes(header: &Header) -> u64 {
    let number = |name: &str| header.arch_number(name).unwrap_or_default();
    if let Some(head) = header.arch_number("wkv.head_size") {
        let width = number("embedding_length");
        return width.saturating_mul(head.saturating_add(2)).saturating_mul(4);
    }
    let (inner, state) = (number("ssm.inner_size"), number("ssm.state_size"));
    let groups = number("ssm.group_count").saturating_mul(state).saturating_mul(2);
    let conv = number("ssm.conv_kernel").saturating_sub(1).saturating_mul(inner.saturating_add(groups));
    conv.saturating_add(inner.saturating_mul(state)).saturating_mul(4)
}
