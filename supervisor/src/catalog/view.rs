//! Folders for models whose files are blobs: a link for each file, under its own name, for a worker that reads folders.
//!
//! Blocking file work. A view is named by the names and digests of its files, so that models that differ in texts
//! alone share one. It holds nothing but links: it is made in one step where it is missing or not as it should be,
//! and removed with the last model that has it. Names come from manifests and are hostile.
//!
//! What is removed is proven to be a view first. At the start its name has to be the digest of what it holds; in the place of a
//! view that is needed or was needed, there may be nothing but links. Anything else is somebody's, and stays.
//!
//! Two layouts of weights are read: whole files (`name` ends in `.safetensors`), as this program imports them, and
//! one blob for each tensor (`name` is the tensor's), as Ollama imports them.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::digest::Digest;
use super::manifest::{Layer, Manifest, media};
use super::store::Store;
use crate::os::folder::Folder;
use crate::os::rng;

/// Parts of a file's name within a model.
const NAME_PARTS_MAX: usize = 4;
/// Bytes of a file's name within a model.
const NAME_BYTES_MAX: usize = 255;
/// Tensors of a draft model, which is not used.
const DRAFT_PREFIX: &str = "draft.";
/// It tells which file has which tensor; in a layout of single tensors it would tell of files that are not there.
const INDEX: &str = "model.safetensors.index.json";

/// The folder of all views in the state folder.
const FOLDER: &str = "views";
/// What the name of a view begins with that is being made.
const DRAFT: &str = ".new-";

/// Where all views lie.
#[must_use]
pub fn views_dir(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER)
}

/// The folder of all views.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    state_dir: PathBuf,
    /// Held while a view is made or removed: one that was just made must not give way to its like, since whoever was told of it
    /// may be reading it already.
    changes: Arc<Mutex<()>>,
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
        Self { state_dir: state_dir.to_owned(), changes: Arc::default() }
    }

    /// The view of these layers. Nothing is written yet.
    pub(crate) fn plan(&self, store: &Store, layers: &[Layer]) -> Result<ModelView, ViewError> {
        let named = named(layers)?;
        let key = key_of(&named);
        let (mut files, mut size_bytes) = (Vec::with_capacity(named.len()), 0_u64);
        for (name, digest) in named {
            let found = store.blob(digest).and_then(|leaf| {
                let leaf = leaf.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                Ok((leaf.path().canonicalize()?, leaf.bytes))
            });
            let (path, length) = found.map_err(|source| {
                let absent = source.kind() == io::ErrorKind::NotFound;
                let what = if absent { "is missing" } else { "can't be used" };
                ViewError::Blob { digest: digest.clone(), what, source }
            })?;
            size_bytes = size_bytes.saturating_add(length);
            files.push((name, path));
        }
        Ok(ModelView { folder: self.state_dir.join(FOLDER).join(&key), key, files, size_bytes })
    }

    /// Makes the folder, unless it is there as it should be.
    pub(crate) fn ensure(&self, view: &ModelView) -> io::Result<()> {
        let _guard = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.folder().is_ok_and(|views| view.is_whole(&views)) {
            return Ok(());
        }
        let views = Folder::make(&self.state_dir)?.make_child(FOLDER)?;
        let draft = format!("{DRAFT}{:016x}", rng::luck());
        views.make_new(&draft)?;
        let made = view.fill(&views, &draft).and_then(|()| discard(&views, &view.key));
        match made.and_then(|()| views.rename(&draft, &view.key)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let _ = discard(&views, &draft);
                Err(error)
            }
        }
    }

    /// Removes the view that these layers had, unless a model of a store still has it.
    pub(crate) fn prune(&self, store: &Store, layers: &[Layer]) {
        let Some(key) = named(layers).ok().filter(|named| !named.is_empty()).map(|named| key_of(&named)) else {
            return;
        };
        let _guard = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(views) = self.folder()
            && kept(store).is_some_and(|kept| !kept.contains(&key))
        {
            let _ = discard(&views, &key);
        }
    }

    /// Start-up: removes the views that no model has, and half-made ones.
    pub(crate) fn sweep(&self, store: &Store) {
        let Ok(views) = self.folder() else { return };
        let Some(kept) = kept(store) else { return };
        let names = views.names().into_iter().flatten().flatten().filter(|name| !kept.contains(name));
        let left = names.filter(|name| !is_ours(&views, name) || discard(&views, name).is_err()).count();
        if left > 0 {
            let folder = self.state_dir.join(FOLDER);
            tracing::warn!(left, folder = %folder.display(), "what no server has made was left where it is");
        }
    }

    fn folder(&self) -> io::Result<Folder> {
        Folder::open(&self.state_dir)?.child(FOLDER)
    }
}

impl ModelView {
    fn is_whole(&self, views: &Folder) -> bool {
        let Ok(folder) = views.child(&self.key) else { return false };
        let as_it_should = |(name, target): &(String, PathBuf)| {
            let link = place(&folder, name, Folder::child).and_then(|(parent, last)| parent.read_link(last));
            link.is_ok_and(|link| link == *target)
        };
        !self.files.is_empty() && self.files.iter().all(as_it_should)
    }

    fn fill(&self, views: &Folder, draft: &str) -> io::Result<()> {
        let folder = views.child(draft)?;
        for (name, target) in &self.files {
            let (parent, last) = place(&folder, name, Folder::make_child)?;
            parent.link(last, target)?;
        }
        Ok(())
    }
}

/// The folder that a file of a view lies in, and its name there.
fn place<'a>(
    folder: &Folder,
    name: &'a str,
    enter: fn(&Folder, &str) -> io::Result<Folder>,
) -> io::Result<(Folder, &'a str)> {
    let (parents, last) = name.rsplit_once('/').unwrap_or(("", name));
    let mut parents = parents.split('/').filter(|part| !part.is_empty());
    Ok((parents.try_fold(folder.clone(), |folder, part| enter(&folder, part))?, last))
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

/// Whether a server has made the folder of this name: that is the digest of what it holds, which are links to blobs.
fn is_ours(views: &Folder, name: &str) -> bool {
    let Ok(found) = views.child(name).and_then(|folder| links(&folder, "", NAME_PARTS_MAX)) else { return false };
    let digest_of = |target: PathBuf| Digest::from_file_name(target.file_name()?.to_str()?);
    let files = found.into_iter().map(|(name, target)| Some((name, digest_of(target)?)));
    let Some(mut files) = files.collect::<Option<Vec<(String, Digest)>>>() else { return false };
    files.sort();
    let named: Vec<(String, &Digest)> = files.iter().map(|(name, digest)| (name.clone(), digest)).collect();
    name.starts_with(DRAFT) || !named.is_empty() && key_of(&named) == name
}

/// The links of a folder and where they lead; an error where there is anything but links, and folders down to this depth.
fn links(folder: &Folder, prefix: &str, depth: usize) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for name in folder.names()? {
        let name = name?;
        match folder.read_link(&name) {
            Ok(target) => found.push((format!("{prefix}{name}"), target)),
            Err(_) if depth > 1 => {
                found.extend(links(&folder.child(&name)?, &format!("{prefix}{name}/"), depth - 1)?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Removes a folder of links, if there is one. Links are removed, not what they lead to. A folder with anything else in it stays
/// as it is.
fn discard(views: &Folder, name: &str) -> io::Result<()> {
    if views.names_nothing(name) {
        return Ok(());
    }
    if views.is_link(name) {
        return views.remove(name);
    }
    links(&views.child(name)?, "", NAME_PARTS_MAX)?;
    empty(&views.child(name)?)?;
    views.remove_folder(name)
}

fn empty(folder: &Folder) -> io::Result<()> {
    for name in folder.names()?.collect::<io::Result<Vec<_>>>()? {
        if folder.is_link(&name) {
            folder.remove(&name)?;
        } else {
            empty(&folder.child(&name)?)?;
            folder.remove_folder(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn s03_only_what_a_server_made_is_removed_at_the_start() {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join("views").join(name);
        let blob = Digest::of(b"blob");
        let target = format!("/store/blobs/{}", blob.file_name());
        let ours = key_of(&[("a/b.json".to_owned(), &blob), ("c.json".to_owned(), &blob)]);
        for folder in [&ours, ".new-1", ".new-2", "admin", &"0".repeat(64), &"1".repeat(64)] {
            fs::create_dir_all(at(folder).join("a")).unwrap();
        }
        for link in [format!("{ours}/a/b.json"), format!("{ours}/c.json"), format!("{}/x.json", "0".repeat(64))] {
            symlink(&target, at(&link)).unwrap();
        }
        symlink(&target, at(".new-1/c.json")).unwrap();
        symlink("/home/me/photo", at(".new-2/photo")).unwrap();
        fs::write(at("admin/page.html"), "mine").unwrap();
        fs::write(at("notes"), "mine").unwrap();
        symlink(state.path(), at("link")).unwrap();
        let store = Store::new(vec![state.path().join("store")]);
        Views::new(state.path()).sweep(&store);
        for (name, stays) in
            [(ours.as_str(), false), (".new-1", false), (".new-2/photo", true), ("admin/page.html", true)]
        {
            assert_eq!(fs::symlink_metadata(at(name)).is_ok(), stays, "{name}");
        }
        for name in [format!("{}/x.json", "0".repeat(64)), "1".repeat(64), "notes".to_owned(), "link".to_owned()] {
            assert!(fs::symlink_metadata(at(&name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_view_that_several_ask_for_is_made_once() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let views = Views::new(state.path());
        let start = std::sync::Barrier::new(4);
        for round in 0..100 {
            let key = Digest::of(&[round]).hex().to_owned();
            let folder = state.path().join("views").join(&key);
            let files = (0..8).map(|file| (format!("{file}.json"), state.path().join("blob"))).collect();
            let view = ModelView { key, folder: folder.clone(), files, size_bytes: 0 };
            let make = || {
                start.wait();
                views.ensure(&view).unwrap();
                fs::metadata(&folder).unwrap().ino()
            };
            let made: HashSet<u64> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(made.len(), 1, "round {round}");
        }
    }

    #[test]
    fn s03_nothing_but_links_gives_way_to_a_view() {
        let state = tempfile::tempdir().unwrap();
        let views = Views::new(state.path());
        let target = state.path().join("blob");
        let files = vec![("a/b.json".to_owned(), target.clone()), ("c.json".to_owned(), target)];
        let key = Digest::of(b"").hex().to_owned();
        let folder = state.path().join("views").join(&key);
        let view = ModelView { key, folder: folder.clone(), files, size_bytes: 0 };
        views.ensure(&view).unwrap();
        fs::remove_file(folder.join("c.json")).unwrap();
        fs::write(folder.join("c.json"), "mine").unwrap();
        assert!(views.ensure(&view).is_err());
        assert_eq!(fs::read_to_string(folder.join("c.json")).unwrap(), "mine");
        assert_eq!(fs::read_dir(state.path().join("views")).unwrap().count(), 1, "the half-made one is gone");
        fs::remove_file(folder.join("c.json")).unwrap();
        symlink("/etc/passwd", folder.join("d.json")).unwrap();
        views.ensure(&view).unwrap();
        assert!(!folder.join("d.json").exists() && fs::read_link(folder.join("c.json")).is_ok());
        // In the place of the folder of all views nothing is followed either.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(state.path().join("views"), elsewhere.path().join("views")).unwrap();
        symlink(elsewhere.path().join("views"), state.path().join("views")).unwrap();
        assert!(views.ensure(&view).is_err());
    }
}
