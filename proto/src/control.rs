//! The messages between supervisor and worker, both directions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::ids::{RequestId, WorkerId};
use crate::output::Output;
use crate::request::Request;

/// Supervisor to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Accepts the worker's hello and fixes the protocol version.
    Hello {
        /// Chosen among the worker's offers.
        version: u16,
        /// Build of the supervisor, for the log.
        build: String,
    },
    /// Load this model. Sent once.
    Load(LoadSpec),
    /// Run this. Sent only after `Ready` and never for more requests at once than there are slots.
    Run(Box<Request>),
    /// Stop this request at the next step; it still ends with a terminal output. Unknown ids are ignored.
    Cancel(RequestId),
    /// Finish what runs, then say `Bye` and exit. No `Run` follows.
    Drain,
    /// Memory is short: drop what is only kept for reuse, then tell with `Memory` what is left.
    Trim,
    /// The client of this request reads too slowly: compute nothing more for it until `Continue`, and keep its slot.
    /// Unknown ids are ignored.
    Pause(RequestId),
    /// It has caught up.
    Continue(RequestId),
}

/// Worker to supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first frame.
    Hello(WorkerHello),
    /// Proof that the load goes on.
    LoadProgress {
        /// Bytes or layers done.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// Loaded, warmed up through the real path, ready for `Run`.
    Ready(Ready),
    /// The load failed; the worker exits after this.
    LoadFailed(Failure),
    /// Something a request says.
    Output(RequestId, Output),
    /// What the engine knows of its memory; after load and at most once a second.
    Memory(MemoryReport),
    /// Proof of life of the engine thread: a counter that rises with every computed step, and within a long one as it comes
    /// on. About once a second, only while work is outstanding.
    Progress {
        /// Steps since start, and signs of life from within steps.
        steps: u64,
    },
    /// Leaving on purpose.
    Bye,
}

/// Who dials in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// Protocol versions it speaks, best last.
    pub versions: Vec<u16>,
    /// Build of the worker, for the log.
    pub build: String,
    /// What the environment named it.
    pub worker: WorkerId,
    /// Its process id.
    pub pid: u32,
    /// The one-time token that the environment gave it.
    pub token: [u8; 32],
}

/// What to load and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// Weights: a GGUF file (or its shards, first first), or an MLX folder.
    pub weights: Vec<PathBuf>,
    /// LoRA adapters.
    pub adapters: Vec<PathBuf>,
    /// A Go template of the store, used where the model has no Jinja template of its own.
    pub go_template: Option<String>,
    /// Sequences computed together.
    pub slots: u16,
    /// Window of each slot, in tokens; the worker may round it up.
    pub context_tokens: u32,
    /// Most tokens of one forward pass.
    pub batch_tokens: u32,
    /// CPU threads; 0 lets the engine decide.
    pub threads: u16,
    /// Layers on the GPU; -1 lets the engine decide.
    pub gpu_layers: i32,
    /// Element type of the key-value cache: `f16`, `q8_0`, `q4_0`.
    pub kv_type: String,
    /// How attention is computed, where the engine has a choice.
    pub flash_attention: FlashAttention,
    /// Whether this is an embedding model.
    pub embedding: bool,
    /// CPU level to use instead of the best one (`haswell`, `x64` …); empty lets the engine decide.
    pub cpu_level: String,
    /// What the worker may take, in bytes, as far as its engine can be told; 0: no limit.
    pub memory_limit_bytes: u64,
    /// Memory that MLX may wire down on a GPU, in bytes; 0: none, which is safe on every system.
    pub wired_limit_bytes: u64,
}

/// Whether attention is computed in one pass that never holds its scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlashAttention {
    /// As the engine finds best.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Sequences it computes together.
    pub slots: u16,
    /// Window of each slot as allocated, in tokens.
    pub context_tokens: u32,
    /// What it takes now.
    pub memory: MemoryReport,
    /// Where it computes, such as `cpu (zen4)` or `metal`.
    pub device: String,
    /// Of the memory, the part on an accelerator, in bytes.
    pub accelerator_bytes: u64,
}

/// What the engine knows of its memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Weights as held, mapped or copied.
    pub weights: u64,
    /// Key-value caches as allocated.
    pub kv: u64,
    /// Compute buffers and everything else the engine counts.
    pub compute: u64,
}

impl MemoryReport {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.compute)
    }
}
