//! What the door is told by the settings.

use std::net::SocketAddr;

use ollmlx_proto::FlashAttention;

use crate::config::{Keys, Rules};

/// What the door is told by the settings.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it listens; decides whether names in the `Host` header are checked.
    pub address: SocketAddr,
    /// Origins allowed beside the built-in ones.
    pub origins: Vec<String>,
    /// What `/api/version` says.
    pub version: String,
    /// Further names of this server.
    pub allowed_hosts: Vec<String>,
    /// One of which every request must bring, where there are any.
    pub keys: Keys,
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

impl HttpConfig {
    /// What is to be said to whoever runs a server that other machines may reach and nobody needs a key for.
    #[must_use]
    pub fn exposure(&self) -> Option<String> {
        let address = self.address;
        let is_exposed = !address.ip().to_canonical().is_loopback() && self.keys.is_empty();
        is_exposed.then(|| {
            format!(
                "whoever reaches {address} may use, load and delete models, since no key is set: set keys (--api-keys-file), \
                 or listen on 127.0.0.1"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_without_a_key_is_told() {
        let with = |address: &str, keys: Keys| HttpConfig {
            address: address.parse().unwrap(),
            origins: Vec::new(),
            allowed_hosts: Vec::new(),
            version: String::new(),
            keys,
            context_tokens: 1,
            slots: 1,
            kv_type: String::new(),
            flash_attention: FlashAttention::Auto,
            threads: 0,
            gpu_layers: 0,
            wired_limit_bytes: 0,
            rules: Rules::default(),
        };
        for public in ["0.0.0.0:1", "[::]:1", "192.168.1.5:1", "8.8.8.8:1", "[fe80::1]:1"] {
            assert!(with(public, Keys::default()).exposure().is_some_and(|told| told.contains(public)), "{public}");
            assert_eq!(with(public, Keys::parse("anna use a").unwrap()).exposure(), None);
        }
        for own in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(with(own, Keys::default()).exposure(), None, "{own}");
        }
    }
}
