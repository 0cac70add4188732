//! The facts of a model for `show`, `ps` and the memory plan, from its headers alone.
//!
//! Must be bounded for hostile files; llama.cpp is not started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ollmlx_proto::{Capability, Failure, ModelCard, TensorInfo};
use serde_json::{Map, Number, Value as Json};

use crate::gguf::kv_cost::{is_encoder, kv_cost};
use crate::gguf::shards::Model;
use crate::gguf::types::file_type_label;
use crate::gguf::{Array, Header, Value};

/// Bytes of all metadata of a card as JSON; entries beyond it are left out.
const METADATA_BYTES_MAX: usize = 768 * 1024;
/// Elements of an array that is shown whole.
const SHOWN_LEN_MAX: u64 = 5;
/// Keys that the card has in another place, or must not have (the name given by whoever made the file).
const HIDDEN: [&str; 2] = ["general.name", "tokenizer.chat_template"];

/// Reads the card of a model.
///
/// # Errors
/// What is wrong with its files.
pub fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
    Model::read(paths).map(|model| card(&model))
}

fn card(model: &Model) -> ModelCard {
    let header = &model.header;
    let number = |suffix: &str| narrow(header.arch_number(suffix).unwrap_or_default());
    let parameter_count = model.headers().flat_map(|it| &it.tensors).map(|it| it.elements).fold(0, u64::saturating_add);
    let cost = kv_cost(header);
    let context_length = number("context_length");
    let chat_template = header.text("tokenizer.chat_template").map(str::to_owned);
    ModelCard {
        format: "gguf".into(),
        architecture: header.architecture().to_owned(),
        parameter_count,
        quantization: quantization(model),
        context_length,
        embedding_length: number("embedding_length"),
        block_count: number("block_count"),
        vocab_size: narrow(header.vocab_size()),
        weight_bytes: model.weight_bytes(),
        kv_bytes_per_token: cost.per_token,
        kv_bytes_fixed: cost.fixed(context_length.into()),
        capabilities: capabilities(header),
        chat_template,
        metadata: metadata(header, parameter_count),
        tensors: model.headers().flat_map(|it| &it.tensors).map(tensor_info).collect(),
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn tensor_info(tensor: &crate::gguf::Tensor) -> TensorInfo {
    TensorInfo { name: tensor.name.clone(), dtype: tensor.dtype.name.to_owned(), shape: tensor.shape.clone() }
}

/// What the file says, else the type that most weights have.
fn quantization(model: &Model) -> String {
    if let Some(label) = model.header.number("general.file_type").and_then(file_type_label) {
        return label.to_owned();
    }
    let mut elements: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in model.headers().flat_map(|header| &header.tensors) {
        let sum = elements.entry(tensor.dtype.name).or_default();
        *sum = sum.saturating_add(tensor.elements);
    }
    elements
        .into_iter()
        .max_by_key(|(_, elements)| *elements)
        .map_or_else(|| "unknown".into(), |(name, _)| name.to_owned())
}

/// Whether the model is for vectors: it says how it pools, or its architecture does nothing else.
#[must_use]
pub fn is_embedding(header: &Header) -> bool {
    header.arch_number("pooling_type").is_some_and(|pooling| pooling > 0) || is_encoder(header.architecture())
}

fn capabilities(header: &Header) -> Vec<Capability> {
    if is_embedding(header) {
        return vec![Capability::Embedding];
    }
    let mut capabilities = vec![Capability::Completion];
    // SEAM: what the chat template knows (tools, thinking) is added here by the kit's template_capabilities.
    let roles = [["fim_pre", "prefix"], ["fim_suf", "suffix"], ["fim_mid", "middle"]];
    let has_key = |name: &str| header.get(&format!("tokenizer.ggml.{name}_token_id")).is_some();
    if roles.iter().zip(header.tokens.infill).all(|(keys, spelled)| spelled || keys.iter().any(|key| has_key(key))) {
        capabilities.push(Capability::Insert);
    }
    capabilities
}

fn metadata(header: &Header, parameter_count: u64) -> String {
    let mut map = Map::new();
    let mut bytes_left = METADATA_BYTES_MAX;
    map.insert("general.parameter_count".into(), parameter_count.into());
    for (key, value) in &header.entries {
        if HIDDEN.contains(&key.as_str()) || map.contains_key(key) {
            continue;
        }
        let value = json(value);
        let bytes = Json::String(key.clone()).to_string().len() + value.to_string().len() + 2;
        if let Some(left) = bytes_left.checked_sub(bytes) {
            bytes_left = left;
            map.insert(key.clone(), value);
        }
    }
    Json::Object(map).to_string()
}

fn json(value: &Value) -> Json {
    match value {
        Value::Unsigned(number) => (*number).into(),
        Value::Signed(number) => (*number).into(),
        // Through text, so that 0.00001 stays that and does not get the digits of its 64-bit neighbour.
        Value::Float(number) => {
            number.to_string().parse().ok().and_then(Number::from_f64).map_or(Json::Null, Json::Number)
        }
        Value::Double(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
        Value::Bool(flag) => (*flag).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Array(Array { len, first, .. }) if *len <= SHOWN_LEN_MAX => first.iter().map(json).collect(),
        Value::Array(_) => Json::Array(Vec::new()),
    }
}
