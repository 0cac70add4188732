//! What the hostile worker is told, in the place of its weights: whom to attack, and where.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What every GGUF file begins with.
const MAGIC: &[u8] = b"GGUF";

/// Where there is something to be had. All of it exists, so that a failure is no accident.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Targets {
    /// Only wait to be attacked.
    pub waits: bool,
    /// Process ids: the server's, a neighbour's.
    pub processes: Vec<i32>,
    /// Files that are none of its business: a key, another model.
    pub secrets: Vec<PathBuf>,
    /// Folders that could be filled.
    pub folders: Vec<PathBuf>,
    /// A file that could be spoilt.
    pub spoils: PathBuf,
    /// Who listens on TCP.
    pub tcp: SocketAddr,
    /// Who listens on UDP.
    pub udp: SocketAddr,
    /// Unix sockets, the server's own among them.
    pub sockets: Vec<PathBuf>,
    /// Name of an abstract one.
    pub abstract_name: String,
}

impl Targets {
    /// Reads them.
    ///
    /// # Panics
    /// There are none.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a worker may read its model");
        serde_json::from_slice(bytes.strip_prefix(MAGIC).expect("magic")).expect("targets")
    }

    /// Writes them.
    ///
    /// # Panics
    /// The disk is full.
    pub fn write(&self, path: &Path) {
        let json = serde_json::to_vec(self).expect("plain data");
        std::fs::write(path, [MAGIC, &json].concat()).expect("a writable folder");
    }
}
