//! Folders for models whose files are blobs: a link for each file, under its own name, for a worker that reads folders.
//!
//! Blocking file work. A view is named by the names and digests of its files, so that models that differ in texts
//! alone share one. It holds nothing but links: it is made in one step where it is missing or not as it should be,
//! and removed with the last model that has it. Names come from manifests and are hostile.
//!
//! Two layouts of weights are read: whole files (`name` ends in `.safetensors`), as this program imports them, and
//! one blob for each tensor (`name` is the tensor's), as Ollama imports them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::manifest::{Layer, Manifest, media};
use super::store::Store;

/// Parts of a file's name within a model.
const NAME_PARTS_MAX: usize = 4;
/// Bytes of a file's name within a model.
const NAME_BYTES_MAX: usize = 255;
/// Tensors of a draft model, which is not used.
const DRAFT_PREFIX: &str = "draft.";
/// It tells which file has which tensor; in a layout of single tensors it would tell of files that are not there.
const INDEX: &str = "model.safetensors.index.json";

/// The folder of all views.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    dir: PathBuf,
}

/// What one view consists of.
#[derive(Clone, Debug)]
pub(crate) struct ModelView {
    /// 64 hexadecimal digits.
    pub(crate) key: String,
    /// The folder, once it was made.
    pub(crate) folder: PathBuf,
    /// Names within it, and what they lead to.
    files: Vec<(String, PathBuf)>,
    /// Bytes of all files.
    pub(crate) size_bytes: u64,
}

/// Why the layers of a manifest make no folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    #[error("its layer {0} has no usable file name")]
    Name(Digest),
    #[error("two of its layers are called {0:?}")]
    Twice(String),
    #[error("its blob {digest} {what}")]
    Blob {
        digest: Digest,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Views {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("views") }
    }

    /// The view of these layers. Nothing is written yet.
    pub(crate) fn plan(&self, store: &Store, layers: &[Layer]) -> Result<ModelView, ViewError> {
        let named = named(layers)?;
        let key = key_of(&named);
        let (mut files, mut size_bytes) = (Vec::with_capacity(named.len()), 0_u64);
        for (name, digest) in named {
            let found = store.blob(digest).and_then(|path| {
                let path = path.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.canonicalize()?;
                let length = fs::metadata(&path)?.len();
                Ok((path, length))
            });
            let (path, length) = found.map_err(|source| {
                let absent = source.kind() == io::ErrorKind::NotFound;
                let what = if absent { "is missing" } else { "can't be used" };
                ViewError::Blob { digest: digest.clone(), what, source }
            })?;
            size_bytes = size_bytes.saturating_add(length);
            files.push((name, path));
        }
        Ok(ModelView { folder: self.dir.join(&key), key, files, size_bytes })
    }

    /// Makes the folder, unless it is there as it should be.
    pub(crate) fn ensure(&self, view: &ModelView) -> io::Result<()> {
        if view.is_whole() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        let draft = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.dir)?;
        for (name, target) in &view.files {
            let link = draft.path().join(name);
            if let Some(folder) = link.parent() {
                fs::create_dir_all(folder)?;
            }
            symlink(target, link)?;
        }
        if fs::symlink_metadata(&view.folder).is_ok() {
            discard(&view.folder)?;
        }
        match fs::rename(draft.path(), &view.folder) {
            Ok(()) => Ok(()),
            Err(_) if view.is_whole() => Ok(()), // Somebody else was faster.
            Err(error) => Err(error),
        }
    }

    /// Removes the view that these layers had, unless a model of a store still has it.
    pub(crate) fn prune(&self, store: &Store, layers: &[Layer]) {
        let Some(key) = named(layers).ok().filter(|named| !named.is_empty()).map(|named| key_of(&named)) else {
            return;
        };
        if kept(store).is_some_and(|kept| !kept.contains(&key)) {
            let _ = discard(&self.dir.join(key));
        }
    }

    /// Start-up: removes the views that no model has, and half-made ones.
    pub(crate) fn sweep(&self, store: &Store) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let Some(kept) = kept(store) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
                let _ = discard(&entry.path());
            }
        }
    }
}

impl ModelView {
    fn is_whole(&self) -> bool {
        let as_it_should = |(name, target): &(String, PathBuf)| {
            fs::read_link(self.folder.join(name)).is_ok_and(|link| link == *target)
        };
        !self.files.is_empty() && self.files.iter().all(as_it_should)
    }
}

/// Whether a text is a file's name within a model: relative, short, without hidden parts.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.split('/').count() <= NAME_PARTS_MAX
        && !name.contains(['\0', '\\'])
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// The media type of a file of a checkpoint.
pub(crate) fn media_type_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("safetensors") => media::TENSOR,
        Some("json") => media::JSON,
        _ => media::FILE,
    }
}

/// The files that layers make, sorted by name. Tensors of their own get a file name by their rank.
fn named(layers: &[Layer]) -> Result<Vec<(String, &Digest)>, ViewError> {
    let tensor_wise = layers.iter().any(|layer| layer.media_type == media::TENSOR && !is_whole_file(layer));
    let mut files = Vec::new();
    for layer in layers {
        let name = layer.name.as_deref().unwrap_or_default();
        let name = match layer.media_type.as_str() {
            media::TENSOR if is_whole_file(layer) => name.to_owned(),
            media::TENSOR if name.starts_with(DRAFT_PREFIX) => continue,
            media::TENSOR if name.is_empty() => return Err(ViewError::Name(layer.digest.clone())),
            media::TENSOR => format!("model-tensor-{:05}.safetensors", files.len()),
            media::JSON | media::FILE if tensor_wise && name == INDEX => continue,
            media::JSON | media::FILE => name.to_owned(),
            _ => continue,
        };
        if !is_file_name(&name) {
            return Err(ViewError::Name(layer.digest.clone()));
        }
        files.push((name, &layer.digest));
    }
    files.sort();
    for (index, (name, _)) in files.iter().enumerate() {
        // `a` next to `a/b` can't be a file and a folder at once.
        let folder = format!("{name}/");
        if files[index + 1..].iter().any(|(other, _)| other == name || other.starts_with(&folder)) {
            return Err(ViewError::Twice(name.clone()));
        }
    }
    Ok(files)
}

fn is_whole_file(layer: &Layer) -> bool {
    layer.name.as_deref().is_some_and(|name| name.ends_with(".safetensors"))
}

fn key_of(named: &[(String, &Digest)]) -> String {
    let list: Vec<String> = named.iter().map(|(name, digest)| format!("{name}\0{}", digest.hex())).collect();
    Digest::of(list.join("\n").as_bytes()).hex().to_owned()
}

/// The keys of all models' views, or nothing where a manifest can't be read.
fn kept(store: &Store) -> Option<HashSet<String>> {
    let walk = store.walk();
    let mut keys = HashSet::new();
    for located in walk.complete.then_some(walk.found)? {
        let manifest = Manifest::parse(&store.read_manifest(&located).ok()?.bytes).ok()?;
        if let Ok(named) = named(&manifest.layers)
            && !named.is_empty()
        {
            keys.insert(key_of(&named));
        }
    }
    Some(keys)
}

/// Removes a folder of links, or whatever lies in its place. Links are removed, not what they lead to.
fn discard(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}
