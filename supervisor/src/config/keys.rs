//! The keys of those who may ask: what each is called and what it may do. A key itself is kept as its SHA-256 only, is shown
//! by nobody and is compared in a time that says nothing of it.
//!
//! Keys are read once, at the start, as all settings are; a server that takes over (`ollmlx upgrade`) reads them anew.
//!
//! Decision: keys that can't be read keep the server from starting. Rejected: a warning and the default, as for other
//! settings, since the default is that everybody may come in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::limits::{KEY_NAME_CHARS_MAX, KEYS_FILE_BYTES_MAX, KEYS_MAX};

/// What the key of the setting `api_key` is called.
const SINGLE: &str = "default";
/// Marks a key that is written as its hash.
const HASHED: &str = "sha256:";
/// Permissions that others than the owner would have.
const OTHERS: u32 = 0o077;

/// What a key may do. Each right includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Ask models, and see what there is.
    Use,
    /// Change and look into everything that a client can.
    Manage,
}

/// One key.
#[derive(Clone)]
pub struct Key {
    name: String,
    right: Right,
    digest: [u8; 32],
}

/// All keys; without any, nobody needs one.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Key>);

/// Keys that can't be used.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file can't be read.
    #[error("the keys file {path} can't be read: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no plain file, or too long for one of keys.
    #[error("the keys file {0} is no file of at most {KEYS_FILE_BYTES_MAX} bytes")]
    NoFile(PathBuf),
    /// Others may read it, or it is theirs.
    #[error("the keys file {path} is open to others (mode {mode:03o}): chmod 600 {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("the keys file {0} belongs to another user: it must be the server's own or root's")]
    Foreign(PathBuf),
    /// A line makes no sense. What it says is not repeated, since it may be a key.
    #[error("line {line} of the keys file: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: &'static str,
    },
    /// It has no line at all.
    #[error("the keys file names no key")]
    Empty,
}

impl Key {
    fn new(name: &str, right: Right, key: &str) -> Option<Self> {
        let digest = match key.strip_prefix(HASHED) {
            Some(hex) => from_hex(hex)?,
            None => Sha256::digest(key).into(),
        };
        Some(Self { name: name.to_owned(), right, digest })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it may do.
    #[must_use]
    pub fn right(&self) -> Right {
        self.right
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("right", &self.right).finish_non_exhaustive()
    }
}

impl Keys {
    /// The one key of a setting, which may do everything, and those of a file.
    ///
    /// # Errors
    /// The file can't be read, is not private, or has a line that makes no sense.
    pub fn read(single: Option<&str>, file: Option<&Path>) -> Result<Self, KeysError> {
        let mut keys = match file {
            Some(path) => Self::parse(&private_text(path)?)?,
            None => Self::default(),
        };
        if let Some(key) = single.filter(|key| !key.is_empty()) {
            if keys.0.iter().any(|known| known.name == SINGLE) {
                return Err(KeysError::Line { line: 1, reason: "the name default is that of the setting api_key" });
            }
            keys.0.push(Key { name: SINGLE.to_owned(), right: Right::Manage, digest: Sha256::digest(key).into() });
        }
        Ok(keys)
    }

    /// Lines of a name, a right and a key or `sha256:` and its hash; `#` starts a comment line.
    ///
    /// # Errors
    /// A line that makes no sense, or none.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut keys: Vec<Key> = Vec::new();
        let lines = text.lines().map(str::trim).zip(1..);
        for (words, line) in lines.filter(|(words, _)| !words.is_empty() && !words.starts_with('#')) {
            let wrong = |reason| KeysError::Line { line, reason };
            let words: Vec<&str> = words.split_ascii_whitespace().collect();
            let [name, right, key] = words[..] else { return Err(wrong("it must be a name, a right and a key")) };
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if name.len() > KEY_NAME_CHARS_MAX || !name.bytes().all(is_plain) {
                return Err(wrong("a name has up to 64 letters, digits, dots, dashes and underscores"));
            }
            let right = match right {
                "use" => Right::Use,
                "manage" => Right::Manage,
                _ => return Err(wrong("the right must be use or manage")),
            };
            let key = Key::new(name, right, key).ok_or_else(|| wrong("sha256: wants 64 hexadecimal digits"))?;
            if keys.iter().any(|other| other.name == key.name) {
                return Err(wrong("another key has this name"));
            }
            if keys.iter().any(|other| other.digest == key.digest) {
                return Err(wrong("another name has this key"));
            }
            keys.push(key);
            if keys.len() > KEYS_MAX {
                return Err(wrong("there are too many keys"));
            }
        }
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(keys)) }
    }

    /// Whether nobody needs one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that this is, if it is one. It takes as long whichever it is, or whether it is any.
    #[must_use]
    pub fn find(&self, given: &[u8]) -> Option<&Key> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let mut found = None;
        for key in &self.0 {
            let difference = key.digest.iter().zip(&given).fold(0, |difference, (a, b)| difference | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(key);
            }
        }
        found
    }
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = hex.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if hex.len() == 64 { bytes.try_into().ok() } else { None }
}

/// The text of a file that is only its owner's. What is asked is the file that is read, whatever its name leads to later.
fn private_text(path: &Path) -> Result<String, KeysError> {
    let unreadable = |source| KeysError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() || meta.len() > KEYS_FILE_BYTES_MAX {
        return Err(KeysError::NoFile(path.to_owned()));
    }
    if meta.mode() & OTHERS != 0 {
        return Err(KeysError::Open { path: path.to_owned(), mode: meta.mode() & 0o777 });
    }
    if ![0, nix::unistd::geteuid().as_raw()].contains(&meta.uid()) {
        return Err(KeysError::Foreign(path.to_owned()));
    }
    let mut text = String::new();
    file.take(KEYS_FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_found_by_themselves_or_by_their_hash_and_by_nothing_else() {
        let hex: String = Sha256::digest("secret-b").iter().map(|byte| format!("{byte:02X}")).collect();
        let text = format!("# who\n\n anna  use secret-a\nbert manage sha256:{hex}\n");
        let keys = Keys::parse(&text).unwrap();
        let found = |given: &str| keys.find(given.as_bytes()).map(|key| (key.name(), key.right()));
        assert_eq!(found("secret-a"), Some(("anna", Right::Use)));
        assert_eq!(found("secret-b"), Some(("bert", Right::Manage)));
        for wrong in ["", "secret", "secret-a ", "secret-aa", &format!("sha256:{hex}"), &hex, "anna"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        assert!(!format!("{keys:?}").contains("secret"));
    }

    #[test]
    fn a_line_without_sense_is_named_and_not_repeated() {
        let many: String = (0..=KEYS_MAX).map(|number| format!("k{number} use s{number}\n")).collect();
        for (text, line) in [
            ("anna use", 1),
            ("anna use a b", 1),
            ("\nanna root hunter2", 2),
            ("a/b use hunter2", 1),
            ("anna use sha256:hunter2", 1),
            ("anna use sha256:éééééééééééééééééééééééééééééééé", 1),
            ("anna use one\nanna use hunter2", 2),
            ("anna use hunter2\nbert use hunter2", 2),
            (&format!("{} use hunter2", "n".repeat(KEY_NAME_CHARS_MAX + 1)), 1),
            (&many, KEYS_MAX + 1),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(matches!(error, KeysError::Line { line: at, .. } if at == line), "{text}: {error}");
            assert!(!error.to_string().contains("hunter2"));
        }
        assert!(matches!(Keys::parse("# none\n"), Err(KeysError::Empty)));
        assert!(Keys::parse(many.trim_end().rsplit_once('\n').unwrap().0).is_ok(), "as many as there may be");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, "anna use a").unwrap();
        for (mode, is_private) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(Keys::read(None, Some(&path)).is_ok(), is_private, "{mode:o}");
        }
        assert!(matches!(Keys::read(None, Some(folder.path())), Err(KeysError::NoFile(_))));
        assert!(matches!(Keys::read(None, Some(&path.join("x"))), Err(KeysError::Unreadable { .. })));
    }

    #[test]
    fn the_single_key_is_one_among_others_and_may_do_everything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        crate::os::private_file::create(&path, b"anna use a").unwrap();
        let keys = Keys::read(Some("s"), Some(&path)).unwrap();
        assert_eq!(keys.find(b"s").map(|key| (key.name(), key.right())), Some(("default", Right::Manage)));
        assert!(keys.find(b"a").is_some());
        assert!(Keys::read(None, None).unwrap().is_empty() && Keys::read(Some(""), None).unwrap().is_empty());
        crate::os::private_file::replace(&path, b"default use a").unwrap();
        assert!(Keys::read(Some("s"), Some(&path)).is_err(), "two of one name");
    }
}
