//! What can be wrong with a GGUF file.

use std::path::Path;

use ollmlx_proto::{Failure, FailureKind};

/// Why a file is refused. Every text names the place or the key.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file can't be opened.
    #[error("can't be opened")]
    Open(#[source] std::io::Error),
    /// Reading failed.
    #[error("reading failed at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A folder, a device.
    #[error("not a regular file")]
    NotAFile,
    /// The magic is wrong.
    #[error("not a GGUF file: it starts with {0:02x?}")]
    Magic(Vec<u8>),
    /// Byte order.
    #[error("not a GGUF file for this machine: it is big-endian")]
    BigEndian,
    /// Version.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// The file ends within its header.
    #[error("truncated: the file ends at byte {file_bytes}, within {what} (at byte {at})")]
    Ends {
        /// Which part.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// Where the file ends.
        file_bytes: u64,
    },
    /// A count or length that the file can't hold.
    #[error("{what} at byte {at} is {count}, but only {left} bytes follow")]
    Impossible {
        /// Which count.
        what: &'static str,
        /// Where it stands.
        at: u64,
        /// What it says.
        count: u64,
        /// Bytes that follow.
        left: u64,
    },
    /// A count or length over a limit.
    #[error("{what} at byte {at} is {count}, over the limit of {limit}")]
    TooMany {
        /// Which count.
        what: &'static str,
        /// Where it stands.
        at: u64,
        /// What it says.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A type number that is not known.
    #[error("key {key:?}: unknown value type {id}")]
    ValueType {
        /// Its key.
        key: String,
        /// The number.
        id: u32,
    },
    /// Arrays of arrays.
    #[error("key {key:?}: arrays of arrays are not supported")]
    NestedArray {
        /// Its key.
        key: String,
    },
    /// A key that is there twice.
    #[error("key {key:?} is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that is missing.
    #[error("key {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value that is out of its range.
    #[error("key {key:?}: {reason}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that can't be.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No weights.
    #[error("it holds no tensors")]
    NoTensors,
    /// The file ends within its weights.
    #[error("truncated: header says {tensors} tensors of {needed} bytes, file has {there} bytes for them")]
    Truncated {
        /// Number of tensors.
        tensors: usize,
        /// Bytes that they need, gaps included.
        needed: u64,
        /// Bytes that are there.
        there: u64,
    },
    /// A file that is no language model.
    #[error("{0}")]
    WrongKind(String),
    /// Shards that don't belong together.
    #[error("{0}")]
    Shards(String),
}

impl GgufError {
    /// The failure that a client sees; it names the file, but not its folder.
    #[must_use]
    pub fn into_failure(self, path: &Path) -> Failure {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let source = std::error::Error::source(&self).map_or(String::new(), |source| format!(": {source}"));
        Failure::new(FailureKind::ModelInvalid, format!("model file {name}: {self}{source}"))
            .with_detail(path.display().to_string())
    }
}
