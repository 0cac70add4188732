//! Requests of the native dialect that manage models: show, copy, delete, pull, create.

use serde_json::{Map, Value};

use super::request::{MISSING, message};
use crate::catalog::model::StoredMessage;
use crate::dialect::Rejection;
use crate::dialect::fields::{Fields, ObjectShape};
use crate::dialect::json::{JsonBody, JsonKind, RawJson};
use crate::limits::OPTION_NAME_BYTES_MAX;

/// What an entry of a map of files takes, in both maps that it goes through.
const FILE_BYTES: usize = 256;
/// And one of a map of parameters, its lines in replies included.
const PARAMETER_BYTES: usize = 512;

const SHOW: ObjectShape = ObjectShape { kind: "ShowRequest", names: "model name system template verbose options" };
const COPY: ObjectShape = ObjectShape { kind: "CopyRequest", names: "source destination" };
const NAME: ObjectShape = ObjectShape { kind: "DeleteRequest", names: "model name stream insecure follow" };
const FIT: ObjectShape = ObjectShape { kind: "FitRequest", names: "model name num_ctx slots kv_type" };
const CREATE: ObjectShape = ObjectShape {
    kind: "CreateRequest",
    names: "model name from files adapters template license system parameters messages quantize quantization \
        stream remote_host",
};

/// `POST /api/show`.
#[derive(Clone, Debug, PartialEq)]
pub struct ShowRequest {
    /// The model.
    pub name: String,
    /// Shown instead of the model's.
    pub system: Option<String>,
    /// Shown instead of the model's.
    pub template: Option<String>,
    /// Long arrays and tensors as well.
    pub verbose: bool,
    /// Shown over the model's parameters.
    pub options: Map<String, Value>,
}

impl ShowRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for a body that is none.
    pub fn parse(body: &JsonBody<'_>) -> Result<Self, Rejection> {
        let mut fields = Fields::read(body, &SHOW, MISSING)?;
        Ok(Self {
            name: name(&mut fields)?,
            system: fields.filled("system")?,
            template: fields.filled("template")?,
            verbose: fields.boolean("verbose")?.unwrap_or(false),
            options: parameters(fields.object("options")?)?,
        })
    }
}

/// `POST /api/copy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// What is copied.
    pub source: String,
    /// Its new name.
    pub destination: String,
}

impl CopyRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for a body that is none.
    pub fn parse(body: &JsonBody<'_>) -> Result<Self, Rejection> {
        let mut fields = Fields::read(body, &COPY, MISSING)?;
        Ok(Self {
            source: fields.model_name("source")?.unwrap_or_default(),
            destination: fields.model_name("destination")?.unwrap_or_default(),
        })
    }
}

/// `DELETE /api/delete`, `POST /api/pull`, `POST /api/push`: a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRequest {
    /// The model.
    pub name: String,
    /// Whether progress is reported.
    pub stream: bool,
    /// Whether an unencrypted registry is fine.
    pub insecure: bool,
    /// Whether what is still to come is wanted too.
    pub follow: bool,
}

impl NameRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for a body that is none.
    pub fn parse(body: &JsonBody<'_>) -> Result<Self, Rejection> {
        let mut fields = Fields::read(body, &NAME, MISSING)?;
        Ok(Self {
            name: name(&mut fields)?,
            stream: fields.boolean("stream")?.unwrap_or(true),
            insecure: fields.boolean("insecure")?.unwrap_or(false),
            follow: fields.boolean("follow")?.unwrap_or(false),
        })
    }
}

/// `POST /api/ollmlx/fit`: a model, and how it would be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FitRequest {
    /// The model.
    pub name: String,
    /// Window of a slot, in tokens.
    pub num_ctx: Option<u32>,
    /// Slots.
    pub slots: Option<u16>,
    /// Type of the caches.
    pub kv_type: Option<String>,
}

impl FitRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for a body that is none, or numbers below 1.
    pub fn parse(body: &JsonBody<'_>) -> Result<Self, Rejection> {
        let mut fields = Fields::read(body, &FIT, MISSING)?;
        let mut count = |key: &'static str, most: u32| match fields.integer(key)? {
            None => Ok(None),
            Some(number) if number > 0 => Ok(Some(u32::try_from(number).unwrap_or(most).min(most))),
            Some(_) => Err(Rejection::bad_request(format!("{key} must be at least 1"))),
        };
        let (num_ctx, slots) = (count("num_ctx", u32::MAX)?, count("slots", u32::from(u16::MAX))?);
        Ok(Self {
            name: name(&mut fields)?,
            num_ctx,
            slots: slots.and_then(|slots| u16::try_from(slots).ok()),
            kv_type: fields.filled("kv_type")?,
        })
    }
}

/// `POST /api/create`.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateRequest {
    /// The new model.
    pub name: String,
    /// The model it is made from.
    pub from: Option<String>,
    /// File names and the digests of their blobs, in order.
    pub files: Vec<(String, String)>,
    /// The same for adapters.
    pub adapters: Vec<(String, String)>,
    /// Replaces the parent's.
    pub template: Option<String>,
    /// Licence texts.
    pub license: Vec<String>,
    /// Replaces the parent's.
    pub system: Option<String>,
    /// Go over the parent's.
    pub parameters: Map<String, Value>,
    /// Replace the parent's.
    pub messages: Vec<StoredMessage>,
    /// A type to quantise to.
    pub quantize: Option<String>,
    /// Whether progress is reported.
    pub stream: bool,
    /// Whether it asks for what only Ollama's cloud has (`remote_host`).
    pub remote: bool,
}

impl CreateRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for a body that is none.
    pub fn parse(body: &JsonBody<'_>) -> Result<Self, Rejection> {
        let mut fields = Fields::read(body, &CREATE, MISSING)?;
        let quantize = fields.filled("quantize")?;
        Ok(Self {
            name: name(&mut fields)?,
            from: fields.model_name("from")?.filter(|from| !from.is_empty()),
            files: digests(fields.object("files")?)?,
            adapters: digests(fields.object("adapters")?)?,
            template: fields.filled("template")?,
            license: licenses(fields.value("license"))?,
            system: fields.filled("system")?,
            parameters: parameters(fields.object("parameters")?)?,
            messages: fields.list("messages", stored)?,
            quantize: match quantize {
                Some(kind) => Some(kind),
                None => fields.filled("quantization")?,
            },
            stream: fields.boolean("stream")?.unwrap_or(true),
            remote: fields.filled("remote_host")?.is_some(),
        })
    }
}

/// `model`, or else the old `name`.
fn name(fields: &mut Fields<'_>) -> Result<String, Rejection> {
    match fields.model_name("model")?.filter(|name| !name.is_empty()) {
        Some(name) => Ok(name),
        None => Ok(fields.model_name("name")?.unwrap_or_default()),
    }
}

fn digests(files: Option<RawJson<'_>>) -> Result<Vec<(String, String)>, Rejection> {
    let mut digests = Vec::new();
    for (name, digest) in files.into_iter().flat_map(RawJson::entries) {
        if digest.kind() != JsonKind::String {
            let kind = digest.kind().name();
            let text = format!("json: cannot unmarshal {kind} into Go struct field CreateRequest.files of type string");
            return Err(Rejection::bad_request(text));
        }
        name.body.charge(FILE_BYTES)?;
        digests.push((name.string()?, digest.string()?));
    }
    Ok(digests)
}

/// All options of an object, known or not.
fn parameters(object: Option<RawJson<'_>>) -> Result<Map<String, Value>, Rejection> {
    let mut parameters = Map::new();
    for (key, value) in object.into_iter().flat_map(RawJson::entries) {
        if key.size() > OPTION_NAME_BYTES_MAX {
            let text = format!("the name of an option has at most {OPTION_NAME_BYTES_MAX} bytes");
            return Err(Rejection::bad_request(text));
        }
        key.body.charge(PARAMETER_BYTES)?;
        parameters.insert(key.string()?, value.value()?);
    }
    Ok(parameters)
}

fn licenses(value: Option<RawJson<'_>>) -> Result<Vec<String>, Rejection> {
    let text = |value: RawJson<'_>| match value.kind() {
        JsonKind::String => value.string(),
        _ => Err(Rejection::bad_request("license must be a string or an array of strings")),
    };
    match value {
        None => Ok(Vec::new()),
        Some(list) if list.kind() == JsonKind::Array => list.list(text),
        Some(one) => Ok(vec![text(one)?]),
    }
}

fn stored(value: RawJson<'_>) -> Result<StoredMessage, Rejection> {
    let message = message(value)?;
    let text = message.content.iter().filter_map(|part| match part {
        ollmlx_proto::ContentPart::Text(text) => Some(text.as_str()),
        ollmlx_proto::ContentPart::Image(_) => None,
    });
    Ok(StoredMessage { role: message.role.as_str().to_owned(), content: text.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(body: &[u8]) -> Result<CreateRequest, Rejection> {
        CreateRequest::parse(&JsonBody::new(body))
    }

    #[test]
    fn create_reads_every_field() {
        let body =
            br#"{"name":"n","from":"f","files":{"a.gguf":"sha256:00"},"license":"MIT","system":"s","template":"t",
            "parameters":{"temperature":0},"messages":[{"role":"USER","content":"hi"}],"quantization":"q4_K_M",
            "stream":false}"#;
        let create = create(body).unwrap();
        assert_eq!((create.name.as_str(), create.from.as_deref(), create.stream), ("n", Some("f"), false));
        assert_eq!(create.files, [("a.gguf".to_owned(), "sha256:00".to_owned())]);
        assert_eq!(create.license, ["MIT"]);
        assert_eq!(create.messages, [StoredMessage { role: "user".into(), content: "hi".into() }]);
        assert_eq!(create.quantize.as_deref(), Some("q4_K_M"));
        assert!(!create.remote);
    }

    #[test]
    fn a_fit_is_asked_with_numbers_from_1_on() {
        let fit = FitRequest::parse(&JsonBody::new(br#"{"model":"m","num_ctx":8192,"slots":70000,"kv_type":"q8_0"}"#))
            .unwrap();
        assert_eq!((fit.num_ctx, fit.slots, fit.kv_type.as_deref()), (Some(8192), Some(u16::MAX), Some("q8_0")));
        assert_eq!(FitRequest::parse(&JsonBody::new(br#"{"model":"m"}"#)).unwrap().num_ctx, None);
        for body in [r#"{"model":"m","slots":0}"#, r#"{"model":"m","num_ctx":-1}"#, r#"{"model":"m","slots":"x"}"#] {
            assert_eq!(FitRequest::parse(&JsonBody::new(body.as_bytes())).unwrap_err().status, 400, "{body}");
        }
    }

    #[test]
    fn names_have_an_old_spelling() {
        for body in [r#"{"name":"x"}"#, r#"{"model":"x","name":"y"}"#, r#"{"model":"","name":"x"}"#] {
            assert_eq!(NameRequest::parse(&JsonBody::new(body.as_bytes())).unwrap().name, "x");
            assert_eq!(ShowRequest::parse(&JsonBody::new(body.as_bytes())).unwrap().name, "x");
        }
        assert_eq!(NameRequest::parse(&JsonBody::new(b"")).unwrap_err().message, "missing request body");
        assert_eq!(
            CopyRequest::parse(&JsonBody::new(br#"{"source":"a","destination":"b"}"#)).unwrap().destination,
            "b"
        );
        assert_eq!(CopyRequest::parse(&JsonBody::new(br#"{"source":1}"#)).unwrap_err().status, 400);
    }
}
