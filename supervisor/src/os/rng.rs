//! Luck from the system.

use std::fs::File;
use std::io::{self, Read};

/// Fills the array with bytes that nobody can guess.
///
/// # Errors
/// The system has no random device.
pub fn bytes<const LEN: usize>() -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A seed.
///
/// # Errors
/// The system has no random device.
pub fn seed() -> io::Result<u64> {
    Ok(u64::from_le_bytes(bytes()?))
}

/// Bits for what need not be secret (seeds of requests, ids in replies), where a failure to get any must not fail the
/// request.
#[must_use]
pub fn luck() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    // The standard library keys its hashers from the system's generator, and counts them up from there.
    RandomState::new().build_hasher().finish()
}
