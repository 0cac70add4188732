//! The facts of a model that a worker's inspect mode reads from its files.
//!
//! `ollmlx-worker-* inspect PATH…` prints one [`ModelCard`] as JSON on its standard output, or a
//! [`crate::Failure`] as JSON with exit status 2. The supervisor never opens the files itself.

use serde::{Deserialize, Serialize};

use crate::MemoryModel;

/// What a model can do, in Ollama's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Text continues.
    Completion,
    /// The chat template knows tools.
    Tools,
    /// Fill-in-the-middle.
    Insert,
    /// Images.
    Vision,
    /// Vectors.
    Embedding,
    /// The chat template knows thinking.
    Thinking,
}

impl Capability {
    /// Ollama's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Insert => "insert",
            Self::Vision => "vision",
            Self::Embedding => "embedding",
            Self::Thinking => "thinking",
        }
    }
}

/// The facts of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// `gguf` or `safetensors`.
    pub format: String,
    /// `general.architecture` or `model_type`.
    pub architecture: String,
    /// Number of weights.
    pub parameter_count: u64,
    /// Label such as `Q4_K_M`, `F16`, `int4`.
    pub quantization: String,
    /// Window the model was trained for, in tokens.
    pub context_length: u32,
    /// Width of the hidden state, and of embeddings.
    pub embedding_length: u32,
    /// Layers.
    pub block_count: u32,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Bytes of all tensors as stored.
    pub weight_bytes: u64,
    /// What a worker of this machine will take for it.
    pub memory: MemoryModel,
    /// The model's own chat template (Jinja), if it has one.
    pub chat_template: Option<String>,
    /// Why that can't be used.
    pub chat_template_fault: Option<String>,
    /// The worker's own template for models like it, where it brings none.
    pub builtin_template: Option<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// `model_info` of `/api/show` as a JSON object in text form: every metadata key, arrays of more than five
    /// elements emptied unless they are asked for by `--verbose`.
    pub metadata: String,
    /// Name, type and shape of every tensor.
    pub tensors: Vec<TensorInfo>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// As stored.
    pub name: String,
    /// `F32`, `Q4_K` …
    #[serde(rename = "type")]
    pub dtype: String,
    /// As stored (GGUF: fastest dimension first).
    pub shape: Vec<u64>,
}
