//! Manifests and configs: the JSON of the store, read with suspicion and written as Ollama writes it.
//!
//! Pure. A [`Manifest`] that exists has strict digests only; one with any other digest does not parse at all, so
//! that no operation can act on a part of it. Unknown media types are kept and ignored.

use crate::limits::MANIFEST_LAYERS_MAX;
use serde_json::{Map, Value, json};

use super::digest::Digest;

/// Media types of layers.
pub(crate) mod media {
    pub(crate) const MODEL: &str = "application/vnd.ollama.image.model";
    pub(crate) const PROJECTOR: &str = "application/vnd.ollama.image.projector";
    pub(crate) const ADAPTER: &str = "application/vnd.ollama.image.adapter";
    pub(crate) const TEMPLATE: &str = "application/vnd.ollama.image.template";
    pub(crate) const PROMPT: &str = "application/vnd.ollama.image.prompt";
    pub(crate) const SYSTEM: &str = "application/vnd.ollama.image.system";
    pub(crate) const PARAMS: &str = "application/vnd.ollama.image.params";
    pub(crate) const MESSAGES: &str = "application/vnd.ollama.image.messages";
    pub(crate) const LICENSE: &str = "application/vnd.ollama.image.license";
    pub(crate) const TENSOR: &str = "application/vnd.ollama.image.tensor";
    pub(crate) const JSON: &str = "application/vnd.ollama.image.json";
    /// A file of a checkpoint that is neither weights nor JSON; Ollama has no word for it and ignores it.
    pub(crate) const FILE: &str = "application/vnd.ollmlx.image.file";
    pub(crate) const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub(crate) const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// One blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What the blob is.
    pub media_type: String,
    /// Which blob.
    pub digest: Digest,
    /// Its length in bytes, as claimed.
    pub size: u64,
    /// The model it was taken from.
    pub from: Option<String>,
    /// Its name within the model, for tensors and shards.
    pub name: Option<String>,
}

/// The list of a model's blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Facts and labels.
    pub config: Layer,
    /// Weights and texts, in order.
    pub layers: Vec<Layer>,
}

/// Why a manifest or a config can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No JSON object.
    #[error("manifest is not a JSON object")]
    NotJson(#[source] Option<serde_json::Error>),
    /// A part is missing or of the wrong type.
    #[error("manifest has no valid {0}")]
    Missing(&'static str),
    /// A digest that is none.
    #[error("manifest names the invalid digest {0:?}")]
    Digest(String),
    /// More layers than any model needs.
    #[error("manifest has more than {MANIFEST_LAYERS_MAX} layers")]
    TooManyLayers,
}

impl Manifest {
    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| ManifestError::NotJson(Some(error)))?;
        let object = value.as_object().ok_or(ManifestError::NotJson(None))?;
        let config = Layer::parse(object.get("config").ok_or(ManifestError::Missing("config"))?)?;
        let layers = match object.get("layers") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(layers)) if layers.len() > MANIFEST_LAYERS_MAX => {
                return Err(ManifestError::TooManyLayers);
            }
            Some(Value::Array(layers)) => layers.iter().map(Layer::parse).collect::<Result<_, _>>()?,
            Some(_) => return Err(ManifestError::Missing("layers")),
        };
        Ok(Self { config, layers })
    }

    /// The bytes of this manifest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let layers: Vec<Value> = self.layers.iter().map(Layer::to_json).collect();
        json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": self.config.to_json(),
            "layers": layers,
        })
        .to_string()
        .into_bytes()
    }

    /// Every blob it needs, the config last.
    pub fn blobs(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain(std::iter::once(&self.config))
    }

    /// Layers and config together, as claimed.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blobs().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

impl Layer {
    fn parse(value: &Value) -> Result<Self, ManifestError> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let digest = text("digest").ok_or(ManifestError::Missing("digest"))?;
        Ok(Self {
            media_type: text("mediaType").unwrap_or_default().to_owned(),
            digest: Digest::parse(digest).ok_or_else(|| ManifestError::Digest(digest.chars().take(100).collect()))?,
            size: value.get("size").and_then(Value::as_u64).ok_or(ManifestError::Missing("size"))?,
            from: text("from").filter(|from| !from.is_empty()).map(str::to_owned),
            name: text("name").filter(|name| !name.is_empty()).map(str::to_owned),
        })
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("mediaType".into(), self.media_type.clone().into());
        object.insert("digest".into(), self.digest.to_string().into());
        object.insert("size".into(), self.size.into());
        if let Some(from) = &self.from {
            object.insert("from".into(), from.clone().into());
        }
        if let Some(name) = &self.name {
            object.insert("name".into(), name.clone().into());
        }
        Value::Object(object)
    }
}

/// The labels of a model. Keys that we do not know are kept when a model is derived from another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ImageConfig(pub(crate) Map<String, Value>);

impl ImageConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        match serde_json::from_slice(bytes).map_err(|error| ManifestError::NotJson(Some(error)))? {
            Value::Object(object) => Ok(Self(object)),
            _ => Err(ManifestError::NotJson(None)),
        }
    }

    /// A text, or the empty one.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A list of texts, or nothing where the key is absent, null or something else.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let list = self.0.get(key)?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// A count, or 0.
    pub(crate) fn count(&self, key: &str) -> u32 {
        self.0.get(key).and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_with(digest: &str) -> Vec<u8> {
        let good = Digest::of(b"").to_string();
        json!({"schemaVersion": 2, "config": {"mediaType": media::CONFIG, "digest": good, "size": 2},
               "layers": [{"mediaType": media::MODEL, "digest": digest, "size": 40}]})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn bytes_survive_a_round_trip_in_the_order_of_the_format() {
        let layer = |media_type: &str, size| Layer {
            media_type: media_type.into(),
            digest: Digest::of(media_type.as_bytes()),
            size,
            from: None,
            name: None,
        };
        let manifest = Manifest {
            config: layer(media::CONFIG, 2),
            layers: vec![Layer { from: Some("p:latest".into()), ..layer(media::MODEL, 40) }, layer("x/unknown", 1)],
        };
        let bytes = manifest.to_bytes();
        assert!(bytes.starts_with(b"{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution"));
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert_eq!(manifest.size_bytes(), 43);
    }

    #[test]
    fn s01_a_manifest_with_a_digest_that_is_none_does_not_parse_and_the_error_names_it() {
        let hex = Digest::of(b"").hex().to_owned();
        for digest in [
            "sha256:../../../../var/pwn".to_owned(),
            "sha256-..%2f..%2fpwn".to_owned(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha256:{}", hex.to_uppercase()),
            String::new(),
        ] {
            let error = Manifest::parse(&manifest_with(&digest)).unwrap_err();
            assert!(matches!(&error, ManifestError::Digest(named) if *named == digest), "{error}");
        }
    }

    #[test]
    fn too_many_layers_and_other_shapes_are_refused() {
        let good = Digest::of(b"").to_string();
        let layer = json!({"mediaType": "x", "digest": good, "size": 1});
        let of = |count: usize| json!({"config": layer, "layers": vec![layer.clone(); count]}).to_string();
        assert!(Manifest::parse(of(MANIFEST_LAYERS_MAX).as_bytes()).is_ok());
        assert!(matches!(Manifest::parse(of(MANIFEST_LAYERS_MAX + 1).as_bytes()), Err(ManifestError::TooManyLayers)));
        for bytes in ["", "[]", "{}", "null", "{\"config\":3}", "{\"config\":{\"digest\":7}}"] {
            assert!(Manifest::parse(bytes.as_bytes()).is_err(), "{bytes}");
        }
        assert!(Manifest::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
