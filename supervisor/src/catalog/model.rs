//! A model of the catalogue: names, facts and files, resolved.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ollmlx_proto::{Capability, ModelCard, ModelId};

/// Which worker serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// `ollmlx-worker-gguf`.
    Gguf,
    /// `ollmlx-worker-mlx`.
    Mlx,
}

impl Backend {
    /// The word that `ps`, `list` and `show` print.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Mlx => "mlx",
        }
    }
}

/// One stored or local model, resolved: everything a request needs to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRef {
    /// What is loaded. Equal for two names of one manifest.
    pub id: ModelId,
    /// Shortest display name, tag always shown (`smollm2:135m`), or the path of a local file.
    pub name: String,
    /// All four parts (`registry.ollama.ai/library/x:latest`), or the path.
    pub full_name: String,
    /// Which worker serves it.
    pub backend: Backend,
    /// Weights, first shard first; or the MLX folder.
    pub weights: Vec<PathBuf>,
    /// LoRA adapters.
    pub adapters: Vec<PathBuf>,
    /// Facts from the files.
    pub card: Arc<ModelCard>,
    /// What it can do: the card's, and what the store's template and config add.
    pub capabilities: Vec<Capability>,
    /// The store's Go template.
    pub template: Option<String>,
    /// Default system text.
    pub system: Option<String>,
    /// Default options: a JSON object.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Stored messages, as in `/api/chat`.
    pub messages: Vec<StoredMessage>,
    /// Licence texts.
    pub licenses: Vec<String>,
    /// SHA-256 of the manifest, bare hex.
    pub digest: String,
    /// Sum of layers and config, in bytes.
    pub size_bytes: u64,
    /// When the manifest was written.
    pub modified_at: SystemTime,
    /// `details` of the listing.
    pub details: Details,
    /// Parent named by the manifest, for `details.parent_model`.
    pub parent: String,
}

impl ModelRef {
    /// Its name for whoever did not ask for it: of one that is known by its path, the file's name alone.
    #[must_use]
    pub fn public_name(&self) -> &str {
        match self.name.trim_end_matches('/').rsplit_once('/') {
            Some((_, file)) if self.name.starts_with('/') => file,
            _ => &self.name,
        }
    }

    /// The template that prompts are made by, and where it comes from: the worker's choice, as it is made in
    /// `proto/kit/src/chat/`.
    #[must_use]
    pub fn template_in_use(&self) -> (Option<&str>, String) {
        let filled = |text: &'_ Option<String>| text.as_deref().is_some_and(|text| !text.trim().is_empty());
        let own = self.card.chat_template.as_deref().filter(|_| filled(&self.card.chat_template));
        match (own, &self.card.chat_template_fault) {
            (Some(own), None) => (Some(own), "the model's own files".to_owned()),
            _ if filled(&self.template) => (self.template.as_deref(), "the Modelfile's TEMPLATE".to_owned()),
            (Some(own), Some(fault)) => (Some(own), format!("the model's own files, but it can't be used: {fault}")),
            (None, _) => match self.card.builtin_template.as_deref() {
                Some(text) => (Some(text), "built in, by the model's special tokens".to_owned()),
                None => (None, "none: what the messages say is joined by ends of lines".to_owned()),
            },
        }
    }

    /// Whether it can.
    #[must_use]
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }
}

/// A message that a Modelfile stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

/// `details` as tags, show and ps print them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// `gguf` or `safetensors`.
    pub format: String,
    /// Architecture.
    pub family: String,
    /// Architectures.
    pub families: Option<Vec<String>>,
    /// `134.52M`.
    pub parameter_size: String,
    /// `Q4_1`.
    pub quantization_level: String,
    /// Trained window.
    pub context_length: u32,
    /// Width.
    pub embedding_length: u32,
}
