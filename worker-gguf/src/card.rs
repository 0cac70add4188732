//! The facts of a model for `show`, `ps` and the memory plan, from its headers alone.
//!
//! Must be bounded for hostile files; llama.cpp is not started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ollmlx_proto::{Capability, Failure, ModelCard, TensorInfo};
use ollmlx_worker_kit::chat::{template_capabilities, template_facts};
use serde_json::{Map, Number, Value as Json};

use crate::gguf::kv_cost::is_encoder;
use crate::gguf::shards::Files;
use crate::gguf::types::file_type_label;
use crate::gguf::{Array, Header, Value};
use crate::limits::{METADATA_BYTES_MAX, SHOWN_LEN_MAX};
use crate::memory::{Kind, Layout, memory_model};

/// Whether llama.cpp is built with a GPU here: Metal.
const HAS_GPU: bool = cfg!(target_os = "macos");
/// Keys that the card has in another place, or must not have (the name given by whoever made the file).
const HIDDEN: [&str; 2] = ["general.name", "tokenizer.chat_template"];

/// Reads the card of a model.
///
/// # Errors
/// What is wrong with its files.
pub fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
    Files::read(paths).map(|model| card(&model))
}

fn card(model: &Files) -> ModelCard {
    let header = &model.header;
    let number = |suffix: &str| narrow(header.arch_number(suffix).unwrap_or_default());
    let parameter_count = model.headers().flat_map(|it| &it.tensors).map(|it| it.elements).fold(0, u64::saturating_add);
    let context_length = number("context_length");
    let chat_template = header.text("tokenizer.chat_template").map(str::to_owned);
    let (chat_template_fault, builtin_template) =
        template_facts(chat_template.as_deref(), header.architecture(), &specials(header));
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
        // Where there is a GPU, everything is put on it unless a load order says otherwise.
        memory: memory_model(model, Layout::of(model, HAS_GPU), HAS_GPU, Kind::of(header, false)),
        capabilities: capabilities(header),
        chat_template,
        chat_template_fault,
        builtin_template,
        metadata: metadata(header, parameter_count),
        tensors: model.headers().flat_map(|it| &it.tensors).map(tensor_info).collect(),
    }
}

/// The markers that are tokens of their own kind, not ordinary text.
fn specials(header: &Header) -> Vec<&'static str> {
    /// Control tokens and those of the model's user, in `token_type`.
    const KINDS: [u8; 2] = [3, 4];
    let kind = |id: u64| usize::try_from(id).ok().and_then(|id| header.tokens.types.get(id));
    let markers = header.tokens.markers.iter();
    markers.filter(|(id, _)| kind(*id).is_some_and(|kind| KINDS.contains(kind))).map(|(_, marker)| *marker).collect()
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn tensor_info(tensor: &crate::gguf::Tensor) -> TensorInfo {
    TensorInfo { name: tensor.name.clone(), dtype: tensor.dtype.name.to_owned(), shape: tensor.shape.clone() }
}

/// What the file says, else the type that most weights have.
fn quantization(model: &Files) -> String {
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
    let roles = [["fim_pre", "prefix"], ["fim_suf", "suffix"], ["fim_mid", "middle"]];
    let has_key = |name: &str| header.get(&format!("tokenizer.ggml.{name}_token_id")).is_some();
    if roles.iter().zip(header.tokens.infill).all(|(keys, spelled)| spelled || keys.iter().any(|key| has_key(key))) {
        capabilities.push(Capability::Insert);
    }
    let template = header.text("tokenizer.chat_template");
    for capability in template_capabilities(template, None) {
        if !capabilities.contains(&capability) {
            capabilities.push(capability);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::testing::{Writer, small};

    fn inspect_files(files: &[(&str, &Writer)]) -> Result<ModelCard, Failure> {
        let folder = tempfile::tempdir().unwrap();
        for (name, writer) in files {
            std::fs::write(folder.path().join(name), writer.bytes()).unwrap();
        }
        inspect(&[folder.path().join(files[0].0)])
    }

    #[test]
    fn card_has_the_facts() {
        let card = inspect_files(&[("m.gguf", &small())]).unwrap();
        assert_eq!((card.format.as_str(), card.architecture.as_str()), ("gguf", "llama"));
        assert_eq!((card.parameter_count, card.weight_bytes), (192, 768));
        assert_eq!(card.quantization, "F32");
        assert_eq!((card.context_length, card.embedding_length, card.block_count, card.vocab_size), (512, 32, 2, 6));
        assert_eq!(card.memory.estimate(2, 256, 512, "f16").kv, 2 * 256 * 2 * 2 * 16 * 2);
        assert_eq!(card.chat_template.as_deref(), Some("{{ messages }}"));
        assert_eq!(card.capabilities, [Capability::Completion]);
        assert_eq!(card.tensors[0].shape, [32, 6]);
        let metadata: Json = card.metadata.parse().unwrap();
        assert_eq!(metadata["general.parameter_count"], 192);
        assert_eq!(metadata["llama.attention.layer_norm_rms_epsilon"].to_string(), "0.00001");
        assert_eq!(metadata["tokenizer.ggml.tokens"], Json::Array(Vec::new()));
        assert!(metadata.get("general.name").is_none() && metadata.get("tokenizer.chat_template").is_none());
    }

    #[test]
    fn metadata_is_bounded() {
        let long = "x".repeat(METADATA_BYTES_MAX);
        let card = inspect_files(&[("m.gguf", &small().text("general.description", &long))]).unwrap();
        assert!(card.metadata.len() < 1 << 20);
        assert!(card.metadata.contains("llama.block_count"));
    }

    #[test]
    fn capabilities_follow_from_the_header() {
        let of = |writer: &Writer| inspect_files(&[("m.gguf", writer)]).unwrap().capabilities;
        assert_eq!(of(&small().number("llama.pooling_type", 1)), [Capability::Embedding]);
        let infill = small()
            .number("tokenizer.ggml.fim_pre_token_id", 3)
            .number("tokenizer.ggml.suffix_token_id", 4)
            .number("tokenizer.ggml.fim_mid_token_id", 5);
        assert_eq!(of(&infill), [Capability::Completion, Capability::Insert]);
        let spelled = ["<unk>", "<s>", "</s>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"].map(str::to_owned);
        let spelled = small().texts("tokenizer.ggml.tokens", &spelled).signeds("tokenizer.ggml.token_type", &[1; 6]);
        assert_eq!(of(&spelled), [Capability::Completion, Capability::Insert]);
    }

    #[test]
    fn sliding_windows_cost_as_measured() {
        // Gemma 3 270M: 3 of 18 layers grow; llama.cpp takes 15 MiB for the windows of one sequence.
        let gemma = small()
            .text("general.architecture", "gemma3")
            .number("gemma3.block_count", 18)
            .number("gemma3.context_length", 32_768)
            .number("gemma3.embedding_length", 640)
            .number("gemma3.attention.head_count", 4)
            .number("gemma3.attention.head_count_kv", 1)
            .number("gemma3.attention.key_length", 256)
            .number("gemma3.attention.value_length", 256)
            .number("gemma3.attention.sliding_window", 512);
        let card = inspect_files(&[("m.gguf", &gemma)]).unwrap();
        let kv = |slots, context| card.memory.estimate(slots, context, 512, "f16").kv;
        assert_eq!((kv(1, 4096), kv(1, 32_768)), (4096 * 3072 + (15 << 20), 32_768 * 3072 + (15 << 20)));
    }

    #[test]
    fn shards_are_found_by_name_and_summed() {
        let first = small().number("split.count", 2).number("split.no", 0).number("split.tensors.count", 2);
        let second = Writer::new().short("split.count", 2).short("split.no", 1).tensor("x", &[8], vec![0.0; 8]);
        let [one, two] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(inspect_files(&[(one, &first), (two, &second)]).unwrap().parameter_count, 200);
        let refused = |files: &[(&str, &Writer)]| inspect_files(files).unwrap_err().public;
        assert!(refused(&[(one, &first)]).contains("m-00002-of-00002.gguf: can't be opened"));
        assert!(refused(&[("blob", &first)]).contains("must be named"));
        assert!(
            refused(&[(one, &first), (two, &second.clone().short("split.no", 0))]).contains("it is not shard 2 of 2")
        );
        assert!(refused(&[(one, &first), (two, &second.clone().number("split.no", 1))]).contains("of 16 bits"));
        let fewer = first.clone().number("split.tensors.count", 3);
        assert!(refused(&[(one, &fewer), (two, &second)]).contains("hold 2 tensors, not 3"));
        assert!(refused(&[("m.gguf", &Writer::new())]).contains("general.architecture"));
    }
}
