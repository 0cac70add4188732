//! A header to a [`ModelCard`]: what the supervisor knows of a model before it is loaded.

use ollmlx_proto::{Capability, ModelCard, TensorInfo};
use ollmlx_worker_kit::chat::template_capabilities;
use serde_json::{Map, Value as Json};

use crate::gguf::{Header, Value};

/// Arrays up to this length are shown by `/api/show`.
const SHOWN_ELEMENTS_MAX: usize = 5;
/// Tensors listed by `/api/show` with `verbose`.
const TENSORS_LISTED_MAX: usize = 100_000;
/// Bytes of a metadata text that is shown.
const SHOWN_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Micro-batch that sliding-window caches have room for (llama.cpp's default).
const MICRO_BATCH_TOKENS: u64 = 512;
const CACHE_PADDING_TOKENS: u64 = 256;
/// Bytes of one cache element at 16 bits.
const CACHE_ELEMENT_BYTES: u64 = 2;

/// Architectures that only make embeddings, where the file does not say so by `pooling_type`.
const ENCODERS: [&str; 8] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "gemma-embedding",
];

/// Typed access to the keys under the architecture's name.
pub(crate) struct Facts<'a> {
    header: &'a Header,
    pub(crate) architecture: &'a str,
}

impl<'a> Facts<'a> {
    /// Of a header that passed `sanity::check`.
    pub(crate) fn new(header: &'a Header) -> Self {
        let architecture = header.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
        Self { header, architecture }
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.header.get(&format!("{}.{name}", self.architecture))
    }

    /// A whole number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(Value::as_u64)
    }

    /// A number, or the one of this layer.
    fn of_layer(&self, name: &str, layer: u64) -> Option<u64> {
        match self.value(name)? {
            Value::Array { elements: Some(elements), .. } => {
                elements.get(usize::try_from(layer).ok()?).and_then(Value::as_u64)
            }
            value => value.as_u64(),
        }
    }

    /// Width of the sliding window of those layers that have one.
    pub(crate) fn sliding_window(&self) -> Option<u64> {
        self.number("attention.sliding_window").filter(|&window| window > 0)
    }

    /// Whether the attention of `layer` sees the window only.
    fn slides(&self, layer: u64) -> bool {
        if self.sliding_window().is_none() {
            return false;
        }
        if let Some(Value::Array { elements: Some(elements), .. }) = self.value("attention.sliding_window_pattern") {
            let element = usize::try_from(layer).ok().and_then(|layer| elements.get(layer));
            return element == Some(&Value::Bool(true));
        }
        // llama.cpp's own table: one layer in so many is global.
        let every = match self.architecture {
            "gemma2" | "gpt-oss" => 2,
            "gemma3" => 6,
            "gemma3n" => 5,
            "cohere2" | "exaone4" => 4,
            _ => return false,
        };
        let every = self.number("attention.sliding_window_pattern").unwrap_or(every).max(1);
        (layer + 1) % every != 0
    }

    /// Cache bytes at 16 bits: per token of one sequence, and those that do not grow.
    pub(crate) fn cache_bytes(&self) -> (u64, u64) {
        let heads = |layer| self.of_layer("attention.head_count", layer).filter(|&heads| heads > 0);
        let width = self.number("embedding_length").unwrap_or(0);
        let (mut growing, mut fixed) = (0_u64, 0_u64);
        for layer in 0..self.number("block_count").unwrap_or(0) {
            let kv_heads = self.of_layer("attention.head_count_kv", layer).or_else(|| heads(layer)).unwrap_or(0);
            let head = width / heads(layer).unwrap_or(1);
            let key = self.number("attention.key_length").unwrap_or(head);
            let value = self.number("attention.value_length").unwrap_or(head);
            let bytes = kv_heads.saturating_mul(key.saturating_add(value)).saturating_mul(CACHE_ELEMENT_BYTES);
            if self.slides(layer) {
                let window = self.sliding_window().unwrap_or(0);
                let cells = (window.saturating_add(MICRO_BATCH_TOKENS)).next_multiple_of(CACHE_PADDING_TOKENS);
                fixed = fixed.saturating_add(bytes.saturating_mul(cells));
            } else {
                growing = growing.saturating_add(bytes);
            }
        }
        (growing, fixed)
    }

    /// Whether it only makes embeddings.
    pub(crate) fn is_encoder(&self) -> bool {
        self.value("pooling_type").is_some() || ENCODERS.contains(&self.architecture)
    }

    /// The model's own Jinja template.
    pub(crate) fn chat_template(&self) -> Option<&'a str> {
        self.header.get("tokenizer.chat_template").and_then(Value::as_str)
    }

    fn vocab_size(&self) -> u64 {
        match self.header.get("tokenizer.ggml.tokens") {
            Some(Value::Array { len, .. }) => *len,
            _ => self.number("vocab_size").unwrap_or(0),
        }
    }

    fn capabilities(&self) -> Vec<Capability> {
        if self.is_encoder() {
            return vec![Capability::Embedding];
        }
        let mut capabilities = vec![Capability::Completion];
        let has_infill = |names: [&str; 2]| {
            names.iter().any(|name| self.header.get(&format!("tokenizer.ggml.{name}_token_id")).is_some())
        };
        if has_infill(["fim_pre", "prefix"]) && has_infill(["fim_suf", "suffix"]) && has_infill(["fim_mid", "middle"]) {
            capabilities.push(Capability::Insert);
        }
        for capability in template_capabilities(self.chat_template(), None) {
            if !capabilities.contains(&capability) {
                capabilities.push(capability);
            }
        }
        capabilities
    }

    /// The card of a model whose shards have these headers, first first.
    pub(crate) fn card(&self, shards: &[Header]) -> ModelCard {
        let tensors = || shards.iter().flat_map(|shard| &shard.tensors);
        let (kv_bytes_per_token, kv_bytes_fixed) = if self.is_encoder() { (0, 0) } else { self.cache_bytes() };
        let small = |value: Option<u64>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        ModelCard {
            format: "gguf".to_owned(),
            architecture: self.architecture.to_owned(),
            parameter_count: tensors().fold(0, |sum, tensor| sum.saturating_add(tensor.elements)),
            quantization: self.quantization(shards),
            context_length: small(self.number("context_length")),
            embedding_length: small(self.number("embedding_length")),
            block_count: small(self.number("block_count")),
            vocab_size: small(Some(self.vocab_size())),
            weight_bytes: shards.iter().map(Header::tensor_bytes).fold(0, u64::saturating_add),
            kv_bytes_per_token,
            kv_bytes_fixed,
            chat_template: self.chat_template().map(str::to_owned),
            capabilities: self.capabilities(),
            metadata: self.metadata(shards),
            tensors: tensors()
                .take(TENSORS_LISTED_MAX)
                .map(|tensor| TensorInfo {
                    name: tensor.name.clone(),
                    dtype: tensor.kind.label.to_owned(),
                    shape: tensor.shape.clone(),
                })
                .collect(),
        }
    }

    fn quantization(&self, shards: &[Header]) -> String {
        let number = self.header.get("general.file_type").and_then(Value::as_u64);
        if let Some(label) = number.and_then(file_type) {
            return label.to_owned();
        }
        // The type that holds most of the weights.
        let mut by_type: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
        for tensor in shards.iter().flat_map(|shard| &shard.tensors) {
            let sum = by_type.entry(tensor.kind.label).or_default();
            *sum = sum.saturating_add(tensor.elements);
        }
        by_type.into_iter().max_by_key(|&(_, elements)| elements).map_or("unknown", |(label, _)| label).to_owned()
    }

    fn metadata(&self, shards: &[Header]) -> String {
        let mut object = Map::new();
        for (key, value) in &self.header.entries {
            if key == "general.name" || key.starts_with("tokenizer.chat_template") {
                continue;
            }
            object.insert(key.clone(), json(value));
        }
        let parameters: u64 =
            shards.iter().flat_map(|shard| &shard.tensors).fold(0, |sum, t| sum.saturating_add(t.elements));
        object.insert("general.parameter_count".to_owned(), Json::from(parameters));
        Json::Object(object).to_string()
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Unsigned(number) => Json::from(*number),
        Value::Signed(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Bool(value) => Json::from(*value),
        Value::Text(text) if text.len() > SHOWN_TEXT_BYTES_MAX => Json::from(format!("({} bytes)", text.len())),
        Value::Text(text) => Json::from(text.as_str()),
        Value::Array { elements: Some(elements), .. } if elements.len() <= SHOWN_ELEMENTS_MAX => {
            Json::Array(elements.iter().map(json).collect())
        }
        Value::Array { .. } => Json::Array(Vec::new()),
    }
}

/// Labels of llama.cpp's `llama_ftype`.
fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}
