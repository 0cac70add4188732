//! The folders of a store: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.
//!
//! Blocking file work; callers run it off the async threads. The first root is written to, the others are only
//! read. Links are followed only while they stay inside: a blob may be a link into the blobs folder, a manifest
//! one into the manifests folder; the root, `blobs` and `manifests` themselves may be links to anywhere. All reads
//! are bounded, nothing but a regular file is ever read, and what was looked at is what is read (see [`Folder`]).
//!
//! Files are made for their owner alone, since system texts are among them. What Ollama made keeps the mode it has.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::limits::{BLOB_ORPHAN_AGE_S, MANIFEST_BYTES_MAX, STORE_MANIFESTS_MAX};
use nix::fcntl::OFlag;

use super::digest::Digest;
use super::manifest::{Layer, Manifest};
use super::name::Name;
use crate::os::folder::{Draft, Folder, Leaf, Place, read_bounded};

/// What an upload is called until it is a blob.
const UPLOAD: (&str, &str) = ("upload-", ".tmp");
/// What follows a blob's name in that of a part of it, which Ollama leaves behind.
const PARTIAL: &str = "-partial";

/// One or more stores, looked through in order.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// Never empty; the first is the one that is written to.
    roots: Vec<PathBuf>,
}

/// A manifest's file.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// As spelled on disk.
    pub(crate) name: Name,
    /// Which of the stores has it.
    root: usize,
}

impl Located {
    /// Whether it lies in the store that is written to.
    pub(crate) fn is_writable(&self) -> bool {
        self.root == 0
    }
}

/// The bytes of a manifest and when they were written.
#[derive(Clone, Debug)]
pub(crate) struct ManifestFile {
    pub(crate) bytes: Vec<u8>,
    pub(crate) modified_at: SystemTime,
}

/// Every manifest of every root.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) found: Vec<Located>,
    /// Whether all of it could be looked at. Nothing is pruned where this is false.
    pub(crate) complete: bool,
}

impl Store {
    pub(crate) fn new(roots: Vec<PathBuf>) -> Self {
        assert!(!roots.is_empty(), "a catalogue needs a store to write to");
        Self { roots }
    }

    fn manifests(root: &Path) -> io::Result<Folder> {
        Folder::open(&root.join("manifests"))
    }

    /// Where new blobs go.
    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.roots[0].join("blobs")
    }

    /// The file of a blob, or nothing where there is none. An error of kind `PermissionDenied` where it is a link
    /// out of the store or no regular file.
    pub(crate) fn blob(&self, digest: &Digest) -> io::Result<Option<Leaf>> {
        let name = digest.file_name();
        for root in &self.roots {
            match Folder::open(&root.join("blobs")).and_then(|blobs| blobs.find_file(Path::new(&name))) {
                Ok(leaf) => return Ok(Some(leaf)),
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A small blob's content.
    pub(crate) fn read_blob(&self, digest: &Digest, bytes_max: u64) -> io::Result<Vec<u8>> {
        let leaf = self.blob(digest)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        read_bounded(leaf.open()?.0, bytes_max)
    }

    /// Stores a small blob, unless it is there. Says whether it is new.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> io::Result<(Digest, bool)> {
        let digest = Digest::of(bytes);
        if let Ok(Some(_)) = self.blob(&digest) {
            return Ok((digest, false));
        }
        let mut file = self.new_blob_file()?;
        file.write_all(bytes)?;
        file.publish(&digest.file_name())?;
        Ok((digest, true))
    }

    /// A file that disappears unless it is published under the name of the digest that its content has.
    pub(crate) fn new_blob_file(&self) -> io::Result<Draft> {
        Folder::make(&self.blobs_dir())?.draft(UPLOAD.0, UPLOAD.1)
    }

    /// The manifest of a name, compared without regard to case.
    pub(crate) fn locate(&self, name: &Name) -> Option<Located> {
        self.roots.iter().enumerate().find_map(|(index, root)| {
            let mut parts = Vec::with_capacity(4);
            if !find_file(&Self::manifests(root).ok()?, &name.parts(), &mut parts) {
                return None;
            }
            let [host, namespace, model, tag] = parts.as_slice() else { return None };
            Some(Located { name: Name::from_parts(host, namespace, model, tag)?, root: index })
        })
    }

    /// Reads a manifest's bytes.
    pub(crate) fn read_manifest(&self, located: &Located) -> io::Result<ManifestFile> {
        let path: PathBuf = located.name.parts().iter().collect();
        let (file, facts) = Self::manifests(&self.roots[located.root])?.find_file(&path)?.open()?;
        Ok(ManifestFile { modified_at: facts.modified()?, bytes: read_bounded(file, MANIFEST_BYTES_MAX)? })
    }

    /// The name with the spelling of what is already there, part by part.
    pub(crate) fn respell(&self, name: &Name) -> Name {
        let mut dir = Self::manifests(&self.roots[0]).ok();
        let mut parts: Vec<String> = Vec::with_capacity(4);
        for part in name.parts() {
            let spelled = dir.as_ref().and_then(|dir| spellings(dir, part).into_iter().next());
            let spelled = spelled.unwrap_or_else(|| part.to_owned());
            dir = dir.and_then(|dir| dir.find_folder(Path::new(&spelled)).ok());
            parts.push(spelled);
        }
        let [host, namespace, model, tag] = parts.as_slice() else { return name.clone() };
        Name::from_parts(host, namespace, model, tag).unwrap_or_else(|| name.clone())
    }

    /// Writes a manifest under a name as spelled, in one step: readers see the old one or the new one.
    pub(crate) fn write_manifest(&self, name: &Name, bytes: &[u8]) -> io::Result<()> {
        let manifests = Folder::make(&self.roots[0].join("manifests"))?;
        let (mut dir, mut below) = (manifests.clone(), PathBuf::new());
        for part in &name.parts()[..3] {
            match dir.make_new(part) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // At every level, so that nothing is created behind a link that leads out.
            below.push(part);
            dir = manifests.find_folder(&below)?;
        }
        let mut file = dir.draft(".manifest-", "")?;
        file.write_all(bytes)?;
        file.publish(&name.tag)
    }

    /// Removes a manifest and the folders that it leaves empty.
    pub(crate) fn remove_manifest(&self, located: &Located) -> io::Result<()> {
        let manifests = Self::manifests(&self.roots[0])?;
        let parts = located.name.parts();
        let folder = |depth: usize| manifests.find_folder(&parts[..depth].iter().collect::<PathBuf>());
        folder(3)?.remove(parts[3])?;
        for depth in (0..3).rev() {
            if folder(depth).and_then(|folder| folder.remove_folder(parts[depth])).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// All manifests of all roots.
    pub(crate) fn walk(&self) -> Walk {
        let mut walk = Walk { found: Vec::new(), complete: true };
        for (index, root) in self.roots.iter().enumerate() {
            match Self::manifests(root) {
                Ok(manifests) => walk_into(&mut walk, &manifests, &manifests, &mut Vec::new(), index),
                // A link that leads nowhere may lead to a disk that isn't there now.
                Err(error) if is_absence(&error) => walk.complete &= fs::read_link(root.join("manifests")).is_err(),
                Err(error) => walk.is_cut(&error),
            }
        }
        walk
    }

    /// Every digest that some manifest names, or nothing where a manifest can't be read.
    pub(crate) fn referenced(&self) -> Option<HashSet<Digest>> {
        let walk = self.walk();
        if !walk.complete {
            return None;
        }
        let mut digests = HashSet::new();
        for located in &walk.found {
            let bytes = self.read_manifest(located).ok()?.bytes;
            let manifest = Manifest::parse(&bytes).ok()?;
            digests.extend(manifest.blobs().map(|layer| layer.digest.clone()));
        }
        Some(digests)
    }

    /// Removes those of a former manifest's blobs that no manifest names any more. Removes nothing while any
    /// manifest is unreadable, for it may name them.
    pub(crate) fn prune(&self, former: &Manifest) {
        self.prune_blobs(former.blobs());
    }

    /// The same for some layers.
    pub(crate) fn prune_layers(&self, layers: &[Layer]) {
        self.prune_blobs(layers.iter());
    }

    fn prune_blobs<'a>(&self, blobs: impl Iterator<Item = &'a Layer>) {
        let Some(kept) = self.referenced() else {
            tracing::warn!("unused blobs were kept because a manifest is unreadable");
            return;
        };
        let Ok(folder) = Folder::open(&self.blobs_dir()) else { return };
        for layer in blobs.filter(|layer| !kept.contains(&layer.digest)) {
            match folder.remove(&layer.digest.file_name()) {
                Ok(()) => tracing::debug!(digest = %layer.digest, "unused blob was removed"),
                Err(error) if is_absence(&error) => {}
                Err(error) => tracing::warn!(digest = %layer.digest, %error, "unused blob could not be removed"),
            }
        }
    }

    /// Start-up: removes old blobs that no manifest names, and remains of transfers.
    pub(crate) fn sweep(&self) {
        let Some(kept) = self.referenced() else {
            tracing::warn!("unused blobs were not looked for because a manifest is unreadable");
            return;
        };
        let Ok(folder) = Folder::open(&self.blobs_dir()) else { return };
        let mut removed = 0_u32;
        for name in folder.names().into_iter().flatten().flatten().filter(|name| is_left_behind(name, &kept)) {
            let modified = folder.find_file(Path::new(&name)).and_then(|leaf| leaf.open()?.1.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age.as_secs() > BLOB_ORPHAN_AGE_S) && folder.remove(&name).is_ok() {
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "unused blobs were removed");
        }
    }
}

impl Walk {
    fn is_cut(&mut self, error: &io::Error) {
        tracing::warn!(%error, "a folder of manifests could not be read");
        self.complete = false;
    }
}

/// Whether a server like this one, or Ollama, leaves files of this name behind; others in the folder are not ours.
fn is_left_behind(name: &str, kept: &HashSet<Digest>) -> bool {
    if name.starts_with(UPLOAD.0) && name.ends_with(UPLOAD.1) {
        return true;
    }
    match name.split_once(PARTIAL) {
        Some((blob, _)) => Digest::from_file_name(blob).is_some(),
        None => Digest::from_file_name(name).is_some_and(|digest| !kept.contains(&digest)),
    }
}

/// Opens a regular file that a person has named; anything else is refused before a byte is read.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused("not a regular file")) }
}

/// Whether a file begins like a GGUF file does. It is read from there on.
pub(crate) fn has_gguf_magic(mut file: &File) -> io::Result<bool> {
    let mut magic = [0_u8; 4];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == b"GGUF"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// The entries of a folder that equal this part but for case; the exact one first.
fn spellings(dir: &Folder, part: &str) -> Vec<String> {
    let names = dir.names().into_iter().flatten().flatten();
    let mut found: Vec<String> = names.filter(|name| name.eq_ignore_ascii_case(part)).collect();
    found.sort_by_key(|name| (name != part, name.clone()));
    found
}

/// Finds the file whose path equals the parts but for case, and collects its spelling: what is spelled already leads to the folder
/// that the first of the parts is looked for in.
fn find_file(manifests: &Folder, parts: &[&str], spelled: &mut Vec<String>) -> bool {
    let [part, rest @ ..] = parts else { return false };
    let Ok(dir) = manifests.find_folder(&spelled.iter().collect::<PathBuf>()) else { return false };
    // Most names are spelled as on disk, and then no folder needs to be read. Where the file system itself ignores
    // case, only the folder knows the spelling.
    let exact = !cfg!(target_os = "macos") && !dir.names_nothing(part);
    let others = || spellings(&dir, part).into_iter().filter(|name| !exact || name != part);
    let exact = exact.then(|| (*part).to_owned());
    for name in exact.into_iter().chain(std::iter::once_with(others).flatten()) {
        spelled.push(name);
        let found = if rest.is_empty() {
            manifests.find_file(&spelled.iter().collect::<PathBuf>()).is_ok()
        } else {
            find_file(manifests, rest, spelled)
        };
        if found {
            return true;
        }
        spelled.pop();
    }
    false
}

fn walk_into(walk: &mut Walk, manifests: &Folder, dir: &Folder, parts: &mut Vec<String>, root: usize) {
    let names = match dir.names() {
        Ok(names) => names,
        Err(error) => return walk.is_cut(&error),
    };
    for name in names {
        let Ok(part) = name else {
            walk.complete = false;
            continue;
        };
        if part.starts_with('.') {
            continue; // Finder's and our own unfinished files.
        }
        // A link may lead out of this folder, though not out of all.
        let place = dir
            .find(Path::new(&part))
            .or_else(|_| manifests.find(&parts.iter().chain(std::iter::once(&part)).collect::<PathBuf>()));
        let Ok(place) = place else {
            tracing::warn!(entry = %part, "an entry among the manifests was skipped: a broken link, or one that leads out");
            walk.complete = false;
            continue;
        };
        parts.push(part);
        match place {
            Place::Folder(folder) if parts.len() < 4 => walk_into(walk, manifests, &folder, parts, root),
            Place::Leaf(_) if parts.len() < 4 => {}
            Place::Leaf(leaf) if leaf.is_file() && walk.found.len() < STORE_MANIFESTS_MAX => {
                match Name::from_parts(&parts[0], &parts[1], &parts[2], &parts[3]) {
                    Some(name) => walk.found.push(Located { name, root }),
                    None => walk.complete = false,
                }
            }
            Place::Folder(_) | Place::Leaf(_) => walk.complete = false,
        }
        parts.pop();
    }
}
