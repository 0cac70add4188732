//! Identifiers. Each is its own type, so that a request can't be taken for a slot.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A vocabulary index. llama.cpp and MLX both use 32 bits; negative ids never leave an engine.
pub type TokenId = u32;

/// One client request, unique for the life of a supervisor. 0 is "no request" on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// What is loaded, as opposed to what it is called: 64 lower-case hexadecimal digits.
///
/// For a model of a store it is the digest of its manifest; for a plain file or folder, a digest of its absolute
/// path, length and modification time. Two names of one manifest share one worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelId(pub String);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// Counts the processes started for one model. Every message from a worker carries it; stale ones are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

/// One process: the model it serves and which of that model's processes it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    /// The model this process was started for.
    pub model: ModelId,
    /// Bumped at each spawn of that model.
    pub incarnation: Incarnation,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.model, self.incarnation.0)
    }
}

/// One sequence of a worker's batch, `0..slots_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u16);
