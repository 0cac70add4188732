//! Model names: `[scheme://][host/][namespace/]model[:tag]`, strictly parsed.
//!
//! Pure. A [`Name`] that exists is safe to use as four path components: no part is empty, starts with a dot, or
//! holds a separator. Names are compared without regard to case, one part at a time, and keep their spelling.
//! Source suffixes (`:local`, `:cloud`, tag `…-cloud`) are cut first.

use std::fmt;

use crate::limits::{NAME_HOST_BYTES_MAX, NAME_PART_BYTES_MAX};

/// Host of a name that gives none.
pub const DEFAULT_HOST: &str = "registry.ollama.ai";
/// Namespace of a name that gives none.
pub const DEFAULT_NAMESPACE: &str = "library";
/// Tag of a name that gives none.
pub const DEFAULT_TAG: &str = "latest";

/// A complete and valid name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Registry, with its port where it has one.
    pub host: String,
    /// Owner; never has a dot.
    pub namespace: String,
    /// The model.
    pub model: String,
    /// The variant.
    pub tag: String,
    /// `http` or `https` where the name said so; matters to transfers only.
    pub scheme: Option<NameScheme>,
}

/// How a name asks to reach its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameScheme {
    /// `http://`
    Http,
    /// `https://`
    Https,
}

/// Why a text is no name of a model that this server can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It breaks the grammar.
    #[error("invalid model name")]
    Invalid,
    /// It asks for a model that runs elsewhere.
    #[error("ollama cloud is disabled: remote model is unavailable")]
    Cloud,
    /// It asks for both.
    #[error("use either :local or :cloud, not both")]
    LocalAndCloud,
}

impl Name {
    /// Parses a client's text and fills in the defaults.
    ///
    /// # Errors
    /// The text breaks the grammar or names a cloud model.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let rest = cut_source(text)?;
        let after_slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[after_slash..].rfind(':') {
            Some(colon) => (&rest[..after_slash + colon], &rest[after_slash + colon + 1..]),
            None => (rest, DEFAULT_TAG),
        };
        let (path, model) = cut_last(path);
        let (path, namespace) = path.map_or((None, DEFAULT_NAMESPACE), cut_last);
        let (scheme, host) = path.map_or((None, DEFAULT_HOST), cut_scheme);
        let valid = is_part(host, NAME_HOST_BYTES_MAX, b"_.:-")
            && is_part(namespace, NAME_PART_BYTES_MAX, b"_-")
            && is_part(model, NAME_PART_BYTES_MAX, b"_.-")
            && is_part(tag, NAME_PART_BYTES_MAX, b"_.-");
        if !valid {
            return Err(NameError::Invalid);
        }
        if tag.len() >= CLOUD_TAG.len() && tag[tag.len() - CLOUD_TAG.len()..].eq_ignore_ascii_case(CLOUD_TAG) {
            return Err(NameError::Cloud);
        }
        Ok(Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
            scheme,
        })
    }

    /// A name from the four components of a manifest's path, if they are valid.
    #[must_use]
    pub fn from_parts(host: &str, namespace: &str, model: &str, tag: &str) -> Option<Self> {
        let name = Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
            scheme: None,
        };
        let valid = is_part(host, NAME_HOST_BYTES_MAX, b"_.:-")
            && is_part(namespace, NAME_PART_BYTES_MAX, b"_-")
            && is_part(model, NAME_PART_BYTES_MAX, b"_.-")
            && is_part(tag, NAME_PART_BYTES_MAX, b"_.-");
        valid.then_some(name)
    }

    /// Shortest display form: default host and namespace dropped, tag always shown.
    #[must_use]
    pub fn shortest(&self) -> String {
        let Self { host, namespace, model, tag, .. } = self;
        if !host.eq_ignore_ascii_case(DEFAULT_HOST) {
            format!("{host}/{namespace}/{model}:{tag}")
        } else if !namespace.eq_ignore_ascii_case(DEFAULT_NAMESPACE) {
            format!("{namespace}/{model}:{tag}")
        } else {
            format!("{model}:{tag}")
        }
    }

    /// The four parts in the order of the store's folders.
    #[must_use]
    pub fn parts(&self) -> [&str; 4] {
        [&self.host, &self.namespace, &self.model, &self.tag]
    }

    /// Whether both mean the same model.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|(left, right)| left.eq_ignore_ascii_case(right))
    }
}

impl fmt::Display for Name {
    /// All four parts, without the scheme.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
    }
}

const CLOUD_TAG: &str = "-cloud";

/// Cuts `:local` off; `:cloud` is refused here, tags that end in `-cloud` by the caller.
fn cut_source(text: &str) -> Result<&str, NameError> {
    let mut rest = text;
    let (mut local, mut cloud) = (false, false);
    loop {
        // A lone `local` or `cloud` after the only colon is a source, never a tag.
        let cut = |word: &str| {
            let start = rest.len().checked_sub(word.len())?;
            let tail = rest.get(start..)?;
            tail.eq_ignore_ascii_case(word).then(|| &rest[..start])
        };
        if let Some(shorter) = cut(":local") {
            if local {
                return Err(NameError::Invalid);
            }
            (rest, local) = (shorter, true);
        } else if let Some(shorter) = cut(":cloud") {
            if cloud {
                return Err(NameError::Invalid);
            }
            (rest, cloud) = (shorter, true);
        } else {
            break;
        }
    }
    match (local, cloud) {
        (true, true) => Err(NameError::LocalAndCloud),
        (false, true) => Err(NameError::Cloud),
        (_, false) => Ok(rest),
    }
}

/// Splits at the last slash: what is before it, if there is one, and what is after it.
fn cut_last(path: &str) -> (Option<&str>, &str) {
    match path.rfind('/') {
        Some(slash) => (Some(&path[..slash]), &path[slash + 1..]),
        None => (None, path),
    }
}

fn cut_scheme(host: &str) -> (Option<NameScheme>, &str) {
    if let Some(rest) = host.strip_prefix("http://") {
        (Some(NameScheme::Http), rest)
    } else if let Some(rest) = host.strip_prefix("https://") {
        (Some(NameScheme::Https), rest)
    } else {
        (None, host)
    }
}

fn is_part(part: &str, bytes_max: usize, punctuation: &[u8]) -> bool {
    let bytes = part.as_bytes();
    let starts_well = bytes.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    starts_well
        && bytes.len() <= bytes_max
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || punctuation.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortest(text: &str) -> Option<String> {
        Name::parse(text).ok().map(|name| name.shortest())
    }

    #[test]
    fn defaults_are_filled_in_and_dropped_again() {
        for (text, full, short) in [
            ("tiny", "registry.ollama.ai/library/tiny:latest", "tiny:latest"),
            ("tiny:q4", "registry.ollama.ai/library/tiny:q4", "tiny:q4"),
            ("me/tiny", "registry.ollama.ai/me/tiny:latest", "me/tiny:latest"),
            ("hf.co/a/b.c-GGUF:Q4_K_M", "hf.co/a/b.c-GGUF:Q4_K_M", "hf.co/a/b.c-GGUF:Q4_K_M"),
            ("host:5000/ns/m", "host:5000/ns/m:latest", "host:5000/ns/m:latest"),
            ("http://127.0.0.1:9/ns/m:t", "127.0.0.1:9/ns/m:t", "127.0.0.1:9/ns/m:t"),
            ("m:tag:local", "registry.ollama.ai/library/m:tag", "m:tag"),
            ("m:LOCAL", "registry.ollama.ai/library/m:latest", "m:latest"),
        ] {
            let name = Name::parse(text).unwrap();
            assert_eq!((name.to_string().as_str(), name.shortest().as_str()), (full, short), "{text}");
        }
    }

    #[test]
    fn s01_s05_hostile_names_are_refused() {
        let long_tag = format!("m:{}", "t".repeat(81));
        for text in [
            "",
            "foo:",
            "/foo",
            "a//b",
            "-x",
            ".x",
            "a/b/c/d",
            "../../etc/passwd",
            "..",
            "a/..",
            "../a",
            "a/../b",
            "m:..",
            "m:../x",
            "/etc/passwd",
            "%2e%2e%2fetc",
            "..%2f..%2fpwn",
            "a\0b",
            "a b",
            "a@sha256:00",
            "n.s/m",
            "m:t/",
            "a\\b",
            "é",
            "m:té",
            "http://m",
            "ftp://h/n/m",
            "https:///n/m",
            ":t",
            "a/:t",
            "m::t",
            "m\n",
            "~/x",
            &long_tag,
        ] {
            assert_eq!(Name::parse(text), Err(NameError::Invalid), "{text:?}");
        }
        let at_the_limit = format!("m:{}", "t".repeat(80));
        assert_eq!(shortest(&at_the_limit), Some(at_the_limit));
    }

    #[test]
    fn cloud_models_are_refused_by_their_own_error() {
        for text in ["m:cloud", "m:120b-cloud", "m:120b-CLOUD", "m:tag:Cloud", "m:120b-cloud:local"] {
            assert_eq!(Name::parse(text), Err(NameError::Cloud), "{text}");
        }
        for text in ["m:local:cloud", "m:cloud:local"] {
            assert_eq!(Name::parse(text), Err(NameError::LocalAndCloud), "{text}");
        }
    }

    #[test]
    fn case_does_not_matter_to_sameness() {
        assert!(Name::parse("TINY").unwrap().same(&Name::parse("tiny:LATEST").unwrap()));
        assert!(!Name::parse("tiny").unwrap().same(&Name::parse("tiny:q4").unwrap()));
    }

    /// Texts of a small alphabet of trouble: whatever parses is safe as a path and survives a round trip.
    #[test]
    fn whatever_parses_is_four_safe_components() {
        const ALPHABET: [&str; 14] =
            ["a", "B", "0", "_", "-", ".", "..", "/", ":", "\0", "%2f", "http://", ":local", "\u{e9}"];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut parsed = 0_u32;
        for _ in 0..200_000 {
            let mut text = String::new();
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for step in 0..(state >> 61) + 1 {
                let pick = (state >> (8 + step * 4)) as usize % ALPHABET.len();
                text.push_str(ALPHABET[pick]);
            }
            let Ok(name) = Name::parse(&text) else { continue };
            parsed += 1;
            for part in name.parts() {
                assert!(!part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0']), "{text:?}");
            }
            assert!(!name.namespace.contains('.'));
            let again = Name::parse(&name.to_string()).unwrap();
            assert!(again.same(&name), "{text:?}");
            assert!(Name::parse(&name.shortest()).unwrap().same(&name), "{text:?}");
        }
        assert!(parsed > 1_000, "the generator must reach valid names, got {parsed}");
    }
}
