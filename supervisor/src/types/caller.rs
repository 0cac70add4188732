//! Who asks, as far as places, memory and caches are divided among those who do.

use std::fmt;
use std::sync::Arc;

/// What a key is called. It may be shown; the key itself is in no value of this room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// Of a name that the settings accepted.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks: first by its key, then by where it asks from. Those who bring no key are one key, so to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// The key that it brought.
    pub key: Option<KeyName>,
    /// Its address, salted: it tells two of them apart, and nobody can be found by it.
    pub address: u64,
}
