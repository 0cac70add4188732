//! The weights of the toy worker: what it says, and how it is asked.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What every GGUF file begins with.
const MAGIC: &[u8] = b"GGUF";

/// All of a toy model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Weights {
    /// Chat template (Jinja). Its last tilde is where a scripted answer begins.
    pub template: String,
    /// What it always says; without it, noise without end.
    pub answer: Option<String>,
}

impl Weights {
    /// Reads them; the text says what is wrong.
    ///
    /// # Errors
    /// There are none.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        let json = bytes.strip_prefix(MAGIC).ok_or("bad magic")?;
        serde_json::from_slice(json).map_err(|error| error.to_string())
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
