//! The catalogue: names to models, Ollama's store on disk, and what changes it.
//!
//! It knows the store's format and the inspectors of the workers; it does not know HTTP, dialects, or which models are
//! loaded. Readers take no lock and tolerate change beneath them: every file appears and is replaced in one step.
//! Changes go one after another through one lock. A text becomes part of a path only after [`name::Name`] or
//! [`digest::Digest`] has parsed it.

mod blob;
mod create;
pub mod digest;
mod hub;
#[cfg(test)]
mod hub_tests;
mod inspect;
pub mod learned;
mod local;
pub mod manifest;
pub mod model;
pub mod modelfile;
pub mod name;
mod resolve;
mod store;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ollmlx_proto::{Failure, FailureKind, FlashAttention, ModelId};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

pub use blob::BlobWriter;
pub use learned::{Correction, Learned, Loaded};
pub(crate) use local::{is_path, is_unchanged};
pub use model::{Backend, Details, ModelRef, StoredMessage};
pub use resolve::human_number;
pub use view::views_dir;

use crate::os::sandbox::Launcher;
use digest::Digest;
use hub::HubName;
use inspect::Inspector;
use manifest::Manifest;
use name::{Name, NameError};
use resolve::{EntryError, StoreEntry};
use store::{Located, Store};
use view::{ModelView, Views};

/// Where things are.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// Stores in the order of search. The first is written to, the others are only read.
    pub stores: Vec<PathBuf>,
    /// Our own folder; model cards are kept in it.
    pub state_dir: PathBuf,
    /// Where the worker programs are.
    pub worker_dir: PathBuf,
    /// Starts them, behind their walls.
    pub launcher: Launcher,
    /// The cache that Hugging Face's programs fill.
    pub hub_dir: PathBuf,
    /// Whether blobs that nothing names are removed at the start and when a model is replaced.
    pub prune: bool,
    /// How engines compute attention, which their models' memory depends on.
    pub flash_attention: FlashAttention,
}

/// All models that this server can serve. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    inspector: Arc<Inspector>,
    views: Views,
    hub_dir: PathBuf,
    prune: bool,
    /// Held by whoever changes manifests or removes blobs.
    changes: Arc<Mutex<()>>,
}

/// What a new model is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateSpec {
    /// Name of the new model.
    pub name: String,
    /// A model to derive from: a name, or the path of a GGUF file or of an MLX folder.
    pub from: Option<String>,
    /// Uploaded files: relative path to digest.
    pub files: BTreeMap<String, String>,
    /// Uploaded LoRA adapters: relative path to digest.
    pub adapters: BTreeMap<String, String>,
    /// Go template; replaces the parent's.
    pub template: Option<String>,
    /// Licence texts; replace the parent's unless empty.
    pub license: Vec<String>,
    /// System text; replaces the parent's.
    pub system: Option<String>,
    /// Default options; replace the parent's key by key.
    pub parameters: Map<String, Value>,
    /// Stored messages; replace the parent's unless empty.
    pub messages: Vec<StoredMessage>,
    /// Type to quantise to.
    pub quantize: Option<String>,
}

/// What is heard of a creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step.
    Status(String),
    /// A file on its way into the store.
    Copying {
        /// The step's text, equal for all lines of one file.
        status: String,
        /// Bytes so far.
        completed_bytes: u64,
        /// Bytes of the file.
        total_bytes: u64,
    },
}

/// Why the catalogue says no. Texts that repeat a client's name repeat it as it was sent.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The text breaks the grammar of names.
    #[error("invalid model name")]
    InvalidName(String),
    /// No such model. Paths that are no models give this as well, whatever they are.
    #[error("model '{0}' not found")]
    NotFound(String),
    /// No such model, and it is one that could be downloaded: the advice says how.
    #[error("model '{name}' not found: {advice}")]
    NotCached {
        /// As it was asked for.
        name: String,
        /// What is missing and how to get it.
        advice: String,
    },
    /// No `sha256:` and 64 lower-case hexadecimal digits.
    #[error("invalid digest format")]
    InvalidDigest(String),
    /// A blob that was to be used is not there.
    #[error("blob {0:?} not found")]
    BlobMissing(String),
    /// An upload has another hash than promised.
    #[error("digest mismatch, expected {expected:?}, got {actual:?}")]
    DigestMismatch {
        /// What was promised.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A request that can't be served, with Ollama's status for it.
    #[error("{message}")]
    Refused {
        /// HTTP status that Ollama's clients know.
        status_hint: u16,
        /// For the client.
        message: String,
    },
    /// The model's files or its entry in the store are damaged.
    #[error("{0}")]
    Unreadable(Failure),
    /// The disk refuses.
    #[error("could not {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Catalog {
    /// Opens the stores and tidies the first one up. Blocking; call it before serving.
    ///
    /// # Errors
    /// There is no store to write to.
    pub fn open(config: CatalogConfig) -> Result<Self, CatalogError> {
        if config.stores.is_empty() {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(CatalogError::Io { what: "open a catalogue without a store".into(), source });
        }
        let inspector = Inspector::new(config.worker_dir, config.launcher, &config.state_dir, config.flash_attention);
        let store = Store::new(config.stores);
        let views = Views::new(&config.state_dir);
        if config.prune {
            store.sweep();
            views.sweep(&store);
        }
        let inner = Inner {
            store,
            inspector: Arc::new(inspector),
            views,
            hub_dir: config.hub_dir,
            prune: config.prune,
            changes: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The model of a name or an absolute path, inspected.
    ///
    /// # Errors
    /// No name, not there, or unreadable.
    pub async fn resolve(&self, name: &str) -> Result<Arc<ModelRef>, CatalogError> {
        if local::is_path(name) {
            return self.resolve_path(name).await;
        }
        let entry = match self.entry(name).await {
            Err(error @ (CatalogError::NotFound(_) | CatalogError::InvalidName(_))) => {
                return self.resolve_hub(name, error).await;
            }
            entry => entry?,
        };
        if let Some(view) = entry.view.clone() {
            self.ensure(view).await?;
        }
        let card = self.inner.inspector.card(&entry.subject()).await.map_err(CatalogError::Unreadable)?;
        Ok(Arc::new(entry.into_model(Some(card))))
    }

    /// All models of the stores, newest first. Unreadable ones are skipped. Models that nobody has inspected yet
    /// come with the facts of their config alone.
    ///
    /// # Errors
    /// The work was interrupted by a defect.
    pub async fn list(&self) -> Result<Vec<Arc<ModelRef>>, CatalogError> {
        let inner = Arc::clone(&self.inner);
        blocking("list the models", move || {
            let mut seen = HashSet::new();
            let mut models = Vec::new();
            for located in inner.store.walk().found {
                if !seen.insert(located.name.to_string().to_ascii_lowercase()) {
                    continue; // An earlier store has the name.
                }
                match StoreEntry::read(&inner.store, &inner.views, &located) {
                    Ok(entry) => {
                        let card = inner.inspector.known(&entry.subject());
                        models.push(Arc::new(entry.into_model(card)));
                    }
                    Err(EntryError::Absent | EntryError::Remote) => {}
                    Err(EntryError::Damaged(failure)) => {
                        tracing::warn!(error = %failure, detail = %failure.detail, "an unreadable model was not listed");
                    }
                }
            }
            models.sort_by(|left, right| right.modified_at.cmp(&left.modified_at).then(left.name.cmp(&right.name)));
            Ok(models)
        })
        .await
    }

    /// Gives a model another name. Only the manifest is copied; a former model of that name is replaced.
    ///
    /// # Errors
    /// One of the names is invalid, or there is no source.
    pub async fn copy(&self, source: &str, destination: &str) -> Result<(), CatalogError> {
        let (from, to) = (parse_name(source)?, parse_name(destination)?);
        let (inner, guard, asked) = (Arc::clone(&self.inner), self.lock().await, source.to_owned());
        blocking("copy a model", move || {
            let _guard = guard;
            let advice = "to give it a name of its own, write its name behind FROM in a Modelfile and create from that";
            let located = inner.store.locate(&from).ok_or_else(|| inner.absent(&asked, advice))?;
            let to = inner.store.respell(&to);
            if located.is_writable() && located.name.same(&to) {
                return Ok(());
            }
            let bytes = inner.store.read_manifest(&located).map_err(io_error("read a manifest"))?.bytes;
            check_manifest(&located, &bytes)?;
            inner.store.write_manifest(&to, &bytes).map_err(io_error("write a manifest"))
        })
        .await
    }

    /// Removes a model, and those of its blobs that no other model needs. Says what was removed, so that it can
    /// be unloaded.
    ///
    /// # Errors
    /// No name, not there, or in a store that is only read.
    pub async fn delete(&self, name: &str) -> Result<ModelId, CatalogError> {
        if local::is_path(name) {
            return Err(CatalogError::NotFound(name.to_owned()));
        }
        let parsed = parse_name(name)?;
        let (inner, guard, asked) = (Arc::clone(&self.inner), self.lock().await, name.to_owned());
        blocking("delete a model", move || {
            let _guard = guard;
            let advice = "to remove it there: hf cache rm";
            let located = inner.store.locate(&parsed).ok_or_else(|| inner.absent(&asked, advice))?;
            if !located.is_writable() {
                let message = format!("model '{asked}' is in a store that is only read");
                return Err(CatalogError::Refused { status_hint: 403, message });
            }
            let bytes = inner.store.read_manifest(&located).map(|file| file.bytes).unwrap_or_default();
            inner.store.remove_manifest(&located).map_err(io_error("remove a manifest"))?;
            match Manifest::parse(&bytes) {
                Ok(manifest) => {
                    inner.store.prune(&manifest);
                    inner.views.prune(&inner.store, &manifest.layers);
                }
                Err(error) => {
                    tracing::warn!(model = %asked, %error, "a damaged manifest was removed without its blobs")
                }
            }
            Ok(ModelId(Digest::of(&bytes).hex().to_owned()))
        })
        .await
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// The digest is none.
    pub async fn blob_exists(&self, digest: &str) -> Result<bool, CatalogError> {
        let digest = parse_digest(digest)?;
        let inner = Arc::clone(&self.inner);
        blocking("look for a blob", move || Ok(matches!(inner.store.blob(&digest), Ok(Some(_))))).await
    }

    /// Starts the upload of a blob.
    ///
    /// # Errors
    /// The digest is none, or the disk refuses.
    pub async fn blob_writer(&self, digest: &str) -> Result<BlobWriter, CatalogError> {
        BlobWriter::open(self.inner.store.clone(), parse_digest(digest)?).await
    }

    /// Makes a model. `progress` hears the steps, `success` last; nobody needs to listen.
    ///
    /// # Errors
    /// The specification is refused, a blob is missing or unreadable, or the disk refuses.
    pub async fn create(&self, spec: CreateSpec, progress: mpsc::Sender<Progress>) -> Result<ModelId, CatalogError> {
        create::create(self, spec, &progress).await
    }

    /// `modelfile` of `/api/show`.
    #[must_use]
    pub fn modelfile(&self, model: &ModelRef) -> String {
        modelfile::render(model)
    }

    /// Writes a manifest whose blobs are all there, for transfers. The bytes are kept as they are.
    ///
    /// # Errors
    /// The manifest is damaged, a blob is missing, or the disk refuses.
    pub async fn publish_manifest(&self, name: &Name, bytes: Vec<u8>) -> Result<ModelId, CatalogError> {
        let (inner, guard, name) = (Arc::clone(&self.inner), self.lock().await, name.clone());
        blocking("write a manifest", move || {
            let _guard = guard;
            inner.publish(&name, &bytes)
        })
        .await
    }

    /// Where blobs are written, for transfers that keep their unfinished files beside them.
    #[must_use]
    pub fn blobs_dir(&self) -> PathBuf {
        self.inner.store.blobs_dir()
    }

    /// Makes the folder of a model of many files.
    async fn ensure(&self, view: ModelView) -> Result<(), CatalogError> {
        let inner = Arc::clone(&self.inner);
        let making = move || inner.views.ensure(&view).map_err(io_error("make the folder of a model"));
        blocking("make the folder of a model", making).await
    }

    async fn lock(&self) -> OwnedMutexGuard<()> {
        // The guard moves into the blocking work, so that a caller who leaves does not unlock it half done.
        Arc::clone(&self.inner.changes).lock_owned().await
    }

    /// The store's entry of a name.
    async fn entry(&self, text: &str) -> Result<StoreEntry, CatalogError> {
        let name = parse_name(text)?;
        let (inner, asked) = (Arc::clone(&self.inner), text.to_owned());
        blocking("read a model", move || {
            let read = || {
                let located = inner.store.locate(&name).ok_or(EntryError::Absent)?;
                StoreEntry::read(&inner.store, &inner.views, &located)
            };
            // A model that is replaced while it is read may look damaged once.
            let entry =
                read().or_else(|error| if matches!(error, EntryError::Damaged(_)) { read() } else { Err(error) });
            entry.map_err(|error| match error {
                EntryError::Remote if !asked.to_ascii_lowercase().ends_with(":local") => cloud(),
                EntryError::Absent | EntryError::Remote => CatalogError::NotFound(asked.clone()),
                EntryError::Damaged(failure) => CatalogError::Unreadable(failure),
            })
        })
        .await
    }

    async fn resolve_path(&self, path: &str) -> Result<Arc<ModelRef>, CatalogError> {
        self.inspected(self.local(path).await?).await
    }

    async fn resolve_hub(&self, asked: &str, unknown: CatalogError) -> Result<Arc<ModelRef>, CatalogError> {
        self.inspected(self.hub(asked, unknown).await?).await
    }

    async fn inspected(&self, local: local::LocalModel) -> Result<Arc<ModelRef>, CatalogError> {
        let card =
            self.inner.inspector.card(&resolve::local_subject(&local)).await.map_err(CatalogError::Unreadable)?;
        Ok(Arc::new(resolve::local_model(local, card)))
    }

    /// The model of this name in the Hugging Face cache; what the stores said of it where it can't be one of there.
    async fn hub(&self, asked: &str, unknown: CatalogError) -> Result<local::LocalModel, CatalogError> {
        let Some(name) = HubName::parse(asked) else { return Err(unknown) };
        let (inner, asked) = (Arc::clone(&self.inner), asked.to_owned());
        blocking("look into the Hugging Face cache", move || {
            if matches!(unknown, CatalogError::InvalidName(_)) && !hub::has(&inner.hub_dir, &name) {
                return Err(unknown);
            }
            hub::find(&inner.hub_dir, &name, &asked)
        })
        .await
    }

    async fn local(&self, path: &str) -> Result<local::LocalModel, CatalogError> {
        let asked = path.to_owned();
        blocking("look at a path", move || local::find(&asked).ok_or(CatalogError::NotFound(asked))).await
    }
}

impl Inner {
    /// A name that no store has: models of the Hugging Face cache are there, but not ours to change.
    fn absent(&self, asked: &str, advice: &str) -> CatalogError {
        match HubName::parse(asked) {
            Some(name) if hub::has(&self.hub_dir, &name) => {
                let message = format!("model '{asked}' is in the Hugging Face cache, which is only read; {advice}");
                CatalogError::Refused { status_hint: 403, message }
            }
            _ => CatalogError::NotFound(asked.to_owned()),
        }
    }

    /// Writes a manifest and removes what only its predecessor needed. The lock is held.
    fn publish(&self, name: &Name, bytes: &[u8]) -> Result<ModelId, CatalogError> {
        let name = self.store.respell(name);
        let manifest = Manifest::parse(bytes).map_err(|error| {
            let failure = Failure::new(FailureKind::ModelInvalid, format!("{}: {error}", name.shortest()));
            CatalogError::Unreadable(failure)
        })?;
        for layer in manifest.blobs() {
            if !matches!(self.store.blob(&layer.digest), Ok(Some(_))) {
                return Err(CatalogError::BlobMissing(layer.digest.to_string()));
            }
        }
        let former = self.store.locate(&name).filter(Located::is_writable);
        let former = former.and_then(|located| self.store.read_manifest(&located).ok());
        self.store.write_manifest(&name, bytes).map_err(io_error("write a manifest"))?;
        if let Some(former) = former.and_then(|file| Manifest::parse(&file.bytes).ok())
            && self.prune
            && former != manifest
        {
            self.store.prune(&former);
            self.views.prune(&self.store, &former.layers);
        }
        Ok(ModelId(Digest::of(bytes).hex().to_owned()))
    }
}

/// The command that downloads a model of this name to the Hugging Face cache, if the name is one of there.
#[must_use]
pub fn download_advice(name: &str) -> Option<String> {
    HubName::parse(name).map(|name| name.download())
}

fn parse_name(text: &str) -> Result<Name, CatalogError> {
    Name::parse(text).map_err(|error| match error {
        NameError::Invalid => CatalogError::InvalidName(text.to_owned()),
        NameError::Cloud => cloud(),
        NameError::LocalAndCloud => CatalogError::Refused {
            status_hint: 400,
            message: format!("use either :local or :cloud, not both: {text:?}"),
        },
    })
}

fn cloud() -> CatalogError {
    CatalogError::Refused { status_hint: 403, message: NameError::Cloud.to_string() }
}

fn parse_digest(text: &str) -> Result<Digest, CatalogError> {
    Digest::parse(text).ok_or_else(|| CatalogError::InvalidDigest(text.to_owned()))
}

fn check_manifest(located: &Located, bytes: &[u8]) -> Result<Manifest, CatalogError> {
    Manifest::parse(bytes).map_err(|error| {
        let public = format!("{}: {error}", located.name.shortest());
        CatalogError::Unreadable(Failure::new(FailureKind::ModelInvalid, public))
    })
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> CatalogError {
    move |source| CatalogError::Io { what: what.to_owned(), source }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, CatalogError> + Send + 'static,
) -> Result<T, CatalogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(CatalogError::Io { what: what.to_owned(), source: io::Error::other(error) }),
    }
}
