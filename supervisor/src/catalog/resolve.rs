//! From a manifest or a path to a [`ModelRef`]: blobs checked, texts read, capabilities and details combined.
//!
//! Reading an entry is blocking file work; asking an inspector for its card is not done here. Texts of a manifest
//! are as hostile as its digests: each is read with a cap, and one that is damaged makes the entry unreadable.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::limits::TEXT_LAYER_BYTES_MAX;
use ollmlx_proto::{Capability, Failure, FailureKind, MemoryModel, ModelCard, ModelId};
use serde_json::{Map, Value};

use super::digest::Digest;
use super::inspect::Subject;
use super::local::LocalModel;
use super::manifest::{ImageConfig, Layer, Manifest, media};
use super::model::{Backend, Details, ModelRef, StoredMessage};
use super::name::Name;
use super::store::{Located, Store};
use super::view::{ModelView, Views};

/// Everything that the store says of a model, before its card is known.
#[derive(Debug)]
pub(crate) struct StoreEntry {
    pub(crate) name: Name,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
    digest: Digest,
    modified_at: SystemTime,
    backend: Backend,
    weights: Vec<PathBuf>,
    weight_bytes: u64,
    adapters: Vec<PathBuf>,
    /// The folder that shows the blobs to a worker under their names, for models of many files.
    pub(crate) view: Option<ModelView>,
    parent: String,
    texts: Texts,
}

/// The text layers of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Texts {
    pub(crate) template: Option<String>,
    pub(crate) system: Option<String>,
    pub(crate) params: Map<String, Value>,
    pub(crate) messages: Vec<StoredMessage>,
    pub(crate) licenses: Vec<String>,
}

/// Why an entry of the store can't be used.
#[derive(Debug)]
pub(crate) enum EntryError {
    /// It went away, or was never there.
    Absent,
    /// It runs elsewhere.
    Remote,
    /// It is damaged.
    Damaged(Failure),
}

impl StoreEntry {
    /// Reads a manifest and what it names, weights excepted.
    pub(crate) fn read(store: &Store, views: &Views, located: &Located) -> Result<Self, EntryError> {
        let label = located.name.shortest();
        let file = match store.read_manifest(located) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(EntryError::Absent),
            Err(error) => return Err(damaged(&label, "its manifest can't be read", &error)),
        };
        let manifest = Manifest::parse(&file.bytes).map_err(|error| damaged(&label, &error.to_string(), &error))?;
        let config = store
            .read_blob(&manifest.config.digest, TEXT_LAYER_BYTES_MAX)
            .map_err(|error| damaged_blob(&label, &manifest.config, &error))?;
        let config =
            ImageConfig::parse(&config).map_err(|error| damaged(&label, "its config is no JSON object", &error))?;
        if !config.text("remote_host").is_empty() {
            return Err(EntryError::Remote);
        }
        let backend = if config.text("model_format") == "safetensors" { Backend::Mlx } else { Backend::Gguf };
        let weights_type = match backend {
            Backend::Gguf => media::MODEL,
            Backend::Mlx => media::TENSOR,
        };
        let (mut weights, mut weight_bytes) = blob_paths(store, &label, &manifest, weights_type)?;
        if weights.is_empty() {
            let public = format!("{label}: its manifest names no weights");
            return Err(EntryError::Damaged(Failure::new(FailureKind::ModelInvalid, public)));
        }
        let view = match backend {
            Backend::Gguf => None,
            Backend::Mlx => {
                Some(views.plan(store, &manifest.layers).map_err(|error| damaged(&label, &error.to_string(), &error))?)
            }
        };
        if let Some(view) = &view {
            (weights, weight_bytes) = (vec![view.folder.clone()], view.size_bytes);
        }
        let (adapters, _) = blob_paths(store, &label, &manifest, media::ADAPTER)?;
        if manifest.layers.iter().any(|layer| layer.media_type == media::PROJECTOR) {
            tracing::debug!(model = %label, "the projector of a model is not used");
        }
        let parent = manifest.layers.iter().find_map(|layer| layer.from.clone()).unwrap_or_default();
        let texts = Texts::read(store, &label, &manifest)?;
        Ok(Self {
            name: located.name.clone(),
            config,
            digest: Digest::of(&file.bytes),
            modified_at: file.modified_at,
            backend,
            weights,
            weight_bytes,
            adapters,
            view,
            parent,
            texts,
            manifest,
        })
    }

    /// What an inspector is to look at.
    pub(crate) fn subject(&self) -> Subject {
        if let Some(view) = &self.view {
            return view_subject(view, self.name.shortest());
        }
        let digests: Vec<&Digest> = self
            .manifest
            .layers
            .iter()
            .filter(|layer| layer.media_type == media::MODEL)
            .map(|layer| &layer.digest)
            .collect();
        Subject {
            label: self.name.shortest(),
            key: subject_key(&digests),
            size_bytes: self.weight_bytes,
            backend: self.backend,
            paths: self.weights.clone(),
        }
    }

    /// Default options.
    pub(crate) fn params(&self) -> &Map<String, Value> {
        &self.texts.params
    }

    /// Completes the entry. Without a card, the config stands in for it.
    pub(crate) fn into_model(self, card: Option<Arc<ModelCard>>) -> ModelRef {
        let card = card.unwrap_or_else(|| Arc::new(self.stand_in_card()));
        let mut capabilities = card.capabilities.clone();
        let template = self.texts.template.as_deref().unwrap_or_default();
        let listed = self.config.texts("capabilities").unwrap_or_default();
        let chats = !capabilities.contains(&Capability::Embedding);
        // Vision and embedding are the engine's word alone: a label can't make a model able to do them.
        for (capability, in_template) in [
            (Capability::Tools, template.contains(".Tools")),
            (Capability::Insert, template.contains(".Suffix")),
            (Capability::Thinking, template.contains("<think>") || template.contains(".Think")),
        ] {
            let known = in_template || listed.iter().any(|word| word == capability.as_str());
            if chats && known && !capabilities.contains(&capability) {
                capabilities.push(capability);
            }
        }
        let details = self.details(&card);
        ModelRef {
            id: ModelId(self.digest.hex().to_owned()),
            name: self.name.shortest(),
            full_name: self.name.to_string(),
            backend: self.backend,
            weights: self.weights,
            adapters: self.adapters,
            card,
            capabilities,
            template: self.texts.template,
            system: self.texts.system,
            params: self.texts.params,
            messages: self.texts.messages,
            licenses: self.texts.licenses,
            digest: self.digest.hex().to_owned(),
            size_bytes: self.manifest.size_bytes(),
            modified_at: self.modified_at,
            details,
            parent: self.parent,
        }
    }

    fn details(&self, card: &ModelCard) -> Details {
        let config = &self.config;
        let from_card = details_of(card);
        let or = |text: &str, other: String| {
            if text.is_empty() || text == "unknown" { other } else { text.to_owned() }
        };
        let families = config.texts("model_families").filter(|families| !families.is_empty());
        let count = |label: u32, fact: u32| if fact == 0 { label } else { fact };
        Details {
            format: or(config.text("model_format"), from_card.format),
            family: or(config.text("model_family"), from_card.family),
            families: families.or(from_card.families),
            parameter_size: or(config.text("model_type"), from_card.parameter_size),
            quantization_level: or(config.text("file_type"), from_card.quantization_level),
            context_length: count(config.count("context_length"), card.context_length),
            embedding_length: count(config.count("embedding_length"), card.embedding_length),
        }
    }

    /// What the config alone says, until somebody has looked into the files.
    fn stand_in_card(&self) -> ModelCard {
        let family = self.config.text("model_family");
        let listed = self.config.texts("capabilities").unwrap_or_default();
        let embeds = family.contains("bert") || listed.iter().any(|word| word == "embedding");
        ModelCard {
            format: self.config.text("model_format").to_owned(),
            architecture: family.to_owned(),
            parameter_count: 0,
            quantization: self.config.text("file_type").to_owned(),
            context_length: self.config.count("context_length"),
            embedding_length: self.config.count("embedding_length"),
            block_count: 0,
            vocab_size: 0,
            weight_bytes: self.weight_bytes,
            memory: MemoryModel::default(),
            chat_template: None,
            chat_template_fault: None,
            builtin_template: None,
            capabilities: vec![if embeds { Capability::Embedding } else { Capability::Completion }],
            metadata: "{}".to_owned(),
            tensors: Vec::new(),
        }
    }
}

impl Texts {
    fn read(store: &Store, label: &str, manifest: &Manifest) -> Result<Self, EntryError> {
        let mut texts = Self::default();
        let mut read_bytes = 0_u64;
        for layer in &manifest.layers {
            let kind = layer.media_type.as_str();
            if ![media::TEMPLATE, media::PROMPT, media::SYSTEM, media::PARAMS, media::MESSAGES, media::LICENSE]
                .contains(&kind)
            {
                continue;
            }
            // The cap holds for all texts of a model together, several times over, not for each of 8192 licences.
            let left = (8 * TEXT_LAYER_BYTES_MAX).saturating_sub(read_bytes).min(TEXT_LAYER_BYTES_MAX);
            let bytes = store.read_blob(&layer.digest, left).map_err(|error| damaged_blob(label, layer, &error))?;
            read_bytes += bytes.len() as u64;
            let text = || String::from_utf8_lossy(&bytes).into_owned();
            match kind {
                media::TEMPLATE | media::PROMPT => texts.template = Some(text()),
                media::SYSTEM => texts.system = Some(text()),
                media::LICENSE => texts.licenses.push(text()),
                media::PARAMS => {
                    // An encoder writes `null` for an empty map.
                    texts.params = serde_json::from_slice::<Option<_>>(&bytes)
                        .map_err(|error| damaged(label, "its parameters are no JSON object", &error))?
                        .unwrap_or_default();
                }
                _ => {
                    texts.messages = parse_messages(&bytes).ok_or_else(|| {
                        damaged(label, "its messages are no list of messages", &io::Error::other("shape"))
                    })?;
                }
            }
        }
        Ok(texts)
    }
}

/// A model outside the store, with its card.
pub(crate) fn local_model(local: LocalModel, card: Arc<ModelCard>) -> ModelRef {
    ModelRef {
        digest: local.id.0.clone(),
        id: local.id,
        name: local.name,
        full_name: local.full_name,
        backend: local.backend,
        weights: local.weights,
        adapters: Vec::new(),
        capabilities: card.capabilities.clone(),
        details: details_of(&card),
        card,
        template: None,
        system: None,
        params: Map::new(),
        messages: Vec::new(),
        licenses: Vec::new(),
        size_bytes: local.size_bytes,
        modified_at: local.modified_at,
        parent: String::new(),
    }
}

/// What an inspector is to look at for a model outside the store.
pub(crate) fn local_subject(local: &LocalModel) -> Subject {
    Subject {
        label: local.name.clone(),
        key: local.id.0.clone(),
        size_bytes: local.size_bytes,
        backend: local.backend,
        paths: local.weights.clone(),
    }
}

/// What an inspector is to look at for a model of many files.
pub(crate) fn view_subject(view: &ModelView, label: String) -> Subject {
    Subject {
        label,
        key: view.key.clone(),
        size_bytes: view.size_bytes,
        backend: Backend::Mlx,
        paths: vec![view.folder.clone()],
    }
}

/// The key of a model's weights: the digest of one blob, or of the list of several.
pub(crate) fn subject_key(digests: &[&Digest]) -> String {
    match digests {
        [one] => one.hex().to_owned(),
        several => {
            let list: Vec<&str> = several.iter().map(|digest| digest.hex()).collect();
            Digest::of(list.join("\n").as_bytes()).hex().to_owned()
        }
    }
}

/// `details` as the card alone gives them.
pub(crate) fn details_of(card: &ModelCard) -> Details {
    Details {
        format: card.format.clone(),
        family: card.architecture.clone(),
        families: (!card.architecture.is_empty()).then(|| vec![card.architecture.clone()]),
        parameter_size: if card.parameter_count == 0 { String::new() } else { human_number(card.parameter_count) },
        quantization_level: card.quantization.clone(),
        context_length: card.context_length,
        embedding_length: card.embedding_length,
    }
}

/// `134.52M`, `8.0B`, `23K`: decimals as Ollama prints them.
#[must_use]
pub fn human_number(count: u64) -> String {
    const THOUSAND: u64 = 1_000;
    const MILLION: u64 = 1_000_000;
    const BILLION: u64 = 1_000_000_000;
    #[expect(clippy::cast_precision_loss, reason = "a label of at most a few digits")]
    let ratio = |unit: u64| count as f64 / unit as f64;
    match count {
        BILLION.. if count.is_multiple_of(BILLION) => format!("{}B", count / BILLION),
        BILLION.. => format!("{:.1}B", ratio(BILLION)),
        MILLION.. if count.is_multiple_of(MILLION) => format!("{}M", count / MILLION),
        MILLION.. => format!("{:.2}M", ratio(MILLION)),
        THOUSAND.. => format!("{:.0}K", ratio(THOUSAND)),
        _ => count.to_string(),
    }
}

fn parse_messages(bytes: &[u8]) -> Option<Vec<StoredMessage>> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value
        .as_array()?
        .iter()
        .map(|message| {
            let text = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_owned);
            Some(StoredMessage { role: text("role")?, content: text("content").unwrap_or_default() })
        })
        .collect()
}

/// The files of all layers of a kind, and their length together.
fn blob_paths(
    store: &Store,
    label: &str,
    manifest: &Manifest,
    media_type: &str,
) -> Result<(Vec<PathBuf>, u64), EntryError> {
    let (mut paths, mut bytes) = (Vec::new(), 0_u64);
    for layer in manifest.layers.iter().filter(|layer| layer.media_type == media_type) {
        let found = store.blob(&layer.digest).and_then(|leaf| {
            let leaf = leaf.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok((leaf.path(), leaf.bytes))
        });
        let (path, length) = found.map_err(|error| damaged_blob(label, layer, &error))?;
        paths.push(path);
        bytes = bytes.saturating_add(length);
    }
    Ok((paths, bytes))
}

fn damaged(label: &str, what: &str, error: &dyn std::error::Error) -> EntryError {
    let failure = Failure::new(FailureKind::ModelInvalid, format!("{label}: {what}"));
    EntryError::Damaged(failure.with_detail(error.to_string()))
}

fn damaged_blob(label: &str, layer: &Layer, error: &io::Error) -> EntryError {
    let what = if error.kind() == io::ErrorKind::NotFound { "is missing" } else { "can't be used" };
    damaged(label, &format!("its blob {} {what}", layer.digest), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_ollama_s() {
        for (count, text) in [
            (999, "999"),
            (23_400, "23K"),
            (134_515_008, "134.52M"),
            (7_000_000, "7M"),
            (8_030_261_248, "8.0B"),
            (7_620_000_000, "7.6B"),
            (8_000_000_000, "8B"),
            (0, "0"),
        ] {
            assert_eq!(human_number(count), text);
        }
    }
}
