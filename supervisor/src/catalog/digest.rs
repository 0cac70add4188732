//! Digests of blobs: `sha256:` and 64 lower-case hexadecimal digits, nothing else.
//!
//! Pure. A [`Digest`] that exists is safe to use in a file name; no other text from a client or a manifest ever
//! becomes part of a blob's path (CVE-2024-37032).

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The hash of a blob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

const PREFIX: &str = "sha256:";
const HEX_DIGITS: usize = 64;

impl Digest {
    /// Parses the strict form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(PREFIX)?;
        let valid =
            hex.len() == HEX_DIGITS && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        valid.then(|| Self(hex.to_owned()))
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest that a running hash arrives at.
    #[must_use]
    pub(crate) fn finish(hash: Sha256) -> Self {
        use std::fmt::Write as _;
        let mut hex = String::with_capacity(HEX_DIGITS);
        for byte in hash.finalize() {
            write!(hex, "{byte:02x}").expect("writing to a string can't fail");
        }
        Self(hex)
    }

    /// Bare hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The blob's file name.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("sha256-{}", self.0)
    }

    /// The digest that a blob's file name stands for.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let hex = name.strip_prefix("sha256-")?;
        Self::parse(&format!("{PREFIX}{hex}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn s01_only_the_strict_form_is_a_digest() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Some(Digest::of(b"")));
        assert_eq!(Digest::from_file_name(&Digest::of(b"").file_name()), Some(Digest::of(b"")));
        let hex = &EMPTY[7..];
        for text in [
            String::new(),
            "sha256:".into(),
            "sha256:../../../../var/pwn".into(),
            "sha256-..%2f..%2fpwn".into(),
            format!("sha256-{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}/", &hex[1..]),
            format!("sha256:\0{}", &hex[1..]),
            format!(" sha256:{hex}"),
            format!("sha256:{hex}\n"),
            format!("sha512:{hex}"),
            format!("sha256%3a{hex}"),
        ] {
            assert_eq!(Digest::parse(&text), None, "{text:?}");
        }
    }
}
