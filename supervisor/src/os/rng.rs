//! Luck from the operating system.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 bits that differ from call to call. Good for seeds, not for secrets.
#[must_use]
pub fn seed() -> u64 {
    // The standard library keys its hash maps from the system's generator.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(u64::from(std::process::id()));
    hasher.finish()
}

/// 32 bytes of the system's generator, for tokens.
///
/// # Errors
/// The system has no generator, or it can't be read.
pub fn secret() -> std::io::Result<[u8; 32]> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
