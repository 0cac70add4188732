//! What the door is told by the settings.

use std::net::SocketAddr;

use ollmlx_proto::FlashAttention;

use crate::config::Rules;

/// What the door is told by the settings.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it listens; decides whether the Host guard is on.
    pub address: SocketAddr,
    /// Origins allowed beside the built-in ones.
    pub origins: Vec<String>,
    /// What `/api/version` says.
    pub version: String,
    /// Key that every request must bring, where set.
    pub api_key: Option<String>,
    /// Window of a slot where nobody asks for another, in tokens.
    pub context_tokens: u32,
    /// Slots of a worker.
    pub slots: u16,
    /// Element type of caches.
    pub kv_type: String,
    /// How attention is computed.
    pub flash_attention: FlashAttention,
    /// Threads of a worker; 0 lets the engine decide.
    pub threads: u16,
    /// Layers on an accelerator; -1 lets the engine decide.
    pub gpu_layers: i32,
    /// Memory that MLX may wire down on a GPU, in bytes; 0: none.
    pub wired_limit_bytes: u64,
    /// What the settings file says of single models.
    pub rules: Rules,
}
