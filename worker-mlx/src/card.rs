//! The facts of a model from `config.json` and the headers of its weights; MLX is not used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ollmlx_proto::{Capability, Failure, ModelCard, TensorInfo};
use ollmlx_worker_kit::chat::template_facts;
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, TensorMeta};
use crate::config::{Config, invalid, read_object};
use crate::memory::{memory_model, parameter_count};
use crate::model::{ModelSpec, bert::Pooling, read_spec};
use crate::tokenizer::chat_template;
use crate::weights::quantisation_label;

/// The checked files and configuration of a model, before any weight is read.
pub struct Description {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// `config.json`.
    pub config: Map<String, Value>,
    /// What it describes.
    pub spec: ModelSpec,
}

/// Checks a model's files and reads its configuration.
///
/// # Errors
/// What is wrong, specifically.
pub fn describe(paths: &[PathBuf]) -> Result<Description, Failure> {
    // The configuration first: a folder without one is no model, and that is the more useful complaint.
    let first = paths.first().ok_or_else(|| invalid("no model path was given"))?;
    let folder = if first.is_dir() { first.as_path() } else { first.parent().unwrap_or(Path::new(".")) };
    let config = read_object(&folder.join("config.json"))?.ok_or_else(|| invalid("config.json is missing"))?;
    let view = Config::new(&config, "");
    quantisation_label(&view)?;
    let mut spec = read_spec(&view)?;
    if let ModelSpec::Encoder(bert) = &mut spec {
        bert.pooling = read_pooling(folder)?;
    }
    let checkpoint = Checkpoint::open(paths)?;
    Ok(Description { checkpoint, config, spec })
}

/// sentence-transformers keeps the kind of pooling in a file of its own.
fn read_pooling(folder: &Path) -> Result<Pooling, Failure> {
    let settings = read_object(&folder.join("1_Pooling").join("config.json"))?.unwrap_or_default();
    let first = Config::new(&settings, "1_Pooling.").flag("pooling_mode_cls_token")?.unwrap_or(false);
    Ok(if first { Pooling::First } else { Pooling::Mean })
}

/// Reads the facts of a model.
///
/// # Errors
/// What is wrong with its files, specifically.
pub fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
    let Description { checkpoint, config, spec } = describe(paths)?;
    let view = Config::new(&config, "");
    let label = quantisation_label(&view)?;
    let template = chat_template(&checkpoint.folder)?;
    let (fault, _) = template_facts(template.as_deref(), "", &[]);
    let architecture = view.text("model_type")?.unwrap_or_default().to_owned();
    let parameter_count = parameter_count(&checkpoint.tensors, &config);
    let mut card = ModelCard {
        format: "safetensors".to_owned(),
        architecture,
        parameter_count,
        quantization: label.unwrap_or_else(|| dense_label(&checkpoint.tensors)),
        context_length: 0,
        embedding_length: 0,
        block_count: 0,
        vocab_size: 0,
        weight_bytes: checkpoint.weight_bytes(),
        memory: memory_model(&checkpoint, &spec, &config),
        chat_template: template,
        chat_template_fault: fault,
        // Its tokenizer, by which one is chosen, is read when it is loaded.
        builtin_template: None,
        capabilities: Vec::new(),
        metadata: String::new(),
        tensors: checkpoint.tensors.iter().map(|(name, meta)| tensor_info(name, meta)).collect(),
    };
    match &spec {
        ModelSpec::Decoder(spec) => {
            card.context_length = spec.context;
            card.embedding_length = spec.hidden as u32;
            card.block_count = spec.layers as u32;
            card.vocab_size = spec.vocab as u32;
            card.capabilities.push(Capability::Completion);
        }
        ModelSpec::Encoder(spec) => {
            card.context_length = spec.context;
            card.embedding_length = spec.hidden as u32;
            card.block_count = spec.layers as u32;
            card.vocab_size = spec.vocab as u32;
            card.capabilities.push(Capability::Embedding);
        }
    }
    card.metadata = metadata(&card, &config).to_string();
    Ok(card)
}

fn tensor_info(name: &str, meta: &TensorMeta) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype: meta.dtype.clone(), shape: meta.shape.clone() }
}

/// The element type that most bytes have, as Ollama writes it.
fn dense_label(tensors: &BTreeMap<String, TensorMeta>) -> String {
    let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
    for meta in tensors.values() {
        *by_type.entry(&meta.dtype).or_default() += meta.bytes;
    }
    by_type.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(dtype, _)| dtype.to_owned())
}

/// The keys that `/api/show` has for a GGUF file, as far as they exist here, and the configuration's own scalars.
fn metadata(card: &ModelCard, config: &Map<String, Value>) -> Value {
    let mut keys = Map::new();
    let architecture = &card.architecture;
    keys.insert("general.architecture".to_owned(), json!(architecture));
    keys.insert("general.parameter_count".to_owned(), json!(card.parameter_count));
    let mut add = |name: &str, value: Value| keys.insert(format!("{architecture}.{name}"), value);
    add("block_count", json!(card.block_count));
    add("context_length", json!(card.context_length));
    add("embedding_length", json!(card.embedding_length));
    add("vocab_size", json!(card.vocab_size));
    let renamed = [
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("sliding_window", "attention.sliding_window"),
        ("rope_theta", "rope.freq_base"),
    ];
    for (from, to) in renamed {
        if let Some(value) = config.get(from).filter(|value| value.is_number()) {
            add(to, value.clone());
        }
    }
    Value::Object(keys)
}
