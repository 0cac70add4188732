//! The folders of a store: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.
//!
//! Blocking file work; callers run it off the async threads. The first root is written to, the others are only
//! read. Links are followed only while they stay inside: a blob may be a link into the blobs folder, a manifest
//! one into the manifests folder; the root, `blobs` and `manifests` themselves may be links to anywhere. All reads
//! are bounded, and nothing but a regular file is ever read.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::limits::{BLOB_ORPHAN_AGE_S, MANIFEST_BYTES_MAX, STORE_MANIFESTS_MAX};
use nix::fcntl::OFlag;
use tempfile::{Builder, NamedTempFile};

use super::digest::Digest;
use super::manifest::{Layer, Manifest};
use super::name::Name;

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
    /// The file, links resolved.
    pub(crate) path: PathBuf,
    /// Whether it lies in the store that is written to.
    pub(crate) writable: bool,
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

    fn manifests(root: &Path) -> PathBuf {
        root.join("manifests")
    }

    fn blobs(root: &Path) -> PathBuf {
        root.join("blobs")
    }

    /// Where new blobs go.
    pub(crate) fn blobs_dir(&self) -> PathBuf {
        Self::blobs(&self.roots[0])
    }

    /// The file of a blob, or nothing where there is none. An error of kind `PermissionDenied` where it is a link
    /// out of the store or no regular file.
    pub(crate) fn blob(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        for root in &self.roots {
            let blobs = Self::blobs(root);
            let path = blobs.join(digest.file_name());
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error) if is_absence(&error) => continue,
                Err(error) => return Err(error),
            };
            if meta.is_file() {
                return Ok(Some(path));
            }
            let target = if meta.is_symlink() { contained(&blobs, &path)? } else { path };
            if fs::symlink_metadata(&target)?.is_file() {
                return Ok(Some(target));
            }
            return Err(refused("blob is not a regular file"));
        }
        Ok(None)
    }

    /// A small blob's content.
    pub(crate) fn read_blob(&self, digest: &Digest, bytes_max: u64) -> io::Result<Vec<u8>> {
        let path = self.blob(digest)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(read_bounded(&path, bytes_max)?.bytes)
    }

    /// Stores a small blob, unless it is there. Says whether it is new.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> io::Result<(Digest, bool)> {
        let digest = Digest::of(bytes);
        if let Ok(Some(_)) = self.blob(&digest) {
            return Ok((digest, false));
        }
        let mut file = self.new_blob_file()?;
        file.write_all(bytes)?;
        self.publish_blob(file, &digest)?;
        Ok((digest, true))
    }

    /// A file that disappears unless it is published.
    pub(crate) fn new_blob_file(&self) -> io::Result<NamedTempFile> {
        let blobs = self.blobs_dir();
        fs::create_dir_all(&blobs)?;
        Builder::new()
            .prefix("upload-")
            .suffix(".tmp")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(&blobs)
    }

    /// Makes a finished file a blob. Its content must have this digest.
    pub(crate) fn publish_blob(&self, file: NamedTempFile, digest: &Digest) -> io::Result<()> {
        persist(file, &self.blobs_dir().join(digest.file_name()))
    }

    /// The manifest of a name, compared without regard to case.
    pub(crate) fn locate(&self, name: &Name) -> Option<Located> {
        self.roots.iter().enumerate().find_map(|(index, root)| {
            let manifests = Self::manifests(root);
            let mut parts = Vec::with_capacity(4);
            let path = find_file(&manifests, &name.parts(), &mut parts)?;
            let path = contained(&manifests, &path).ok()?;
            let [host, namespace, model, tag] = parts.as_slice() else { return None };
            let name = Name::from_parts(host, namespace, model, tag)?;
            Some(Located { name, path, writable: index == 0 })
        })
    }

    /// Reads a manifest's bytes.
    pub(crate) fn read_manifest(&self, located: &Located) -> io::Result<ManifestFile> {
        read_bounded(&located.path, MANIFEST_BYTES_MAX)
    }

    /// The name with the spelling of what is already there, part by part.
    pub(crate) fn respell(&self, name: &Name) -> Name {
        let mut dir = Self::manifests(&self.roots[0]);
        let mut parts: Vec<String> = Vec::with_capacity(4);
        for part in name.parts() {
            let spelled = spellings(&dir, part).into_iter().next().unwrap_or_else(|| part.to_owned());
            dir.push(&spelled);
            parts.push(spelled);
        }
        let [host, namespace, model, tag] = parts.as_slice() else { return name.clone() };
        Name::from_parts(host, namespace, model, tag).unwrap_or_else(|| name.clone())
    }

    /// Writes a manifest under a name as spelled, in one step: readers see the old one or the new one.
    pub(crate) fn write_manifest(&self, name: &Name, bytes: &[u8]) -> io::Result<()> {
        let manifests = Self::manifests(&self.roots[0]);
        fs::create_dir_all(&manifests)?;
        let mut dir = manifests.clone();
        for part in &name.parts()[..3] {
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            // Checked at every level, so that nothing is created behind a link that leads out.
            contained(&manifests, &dir)?;
        }
        let mut file =
            Builder::new().prefix(".manifest-").permissions(fs::Permissions::from_mode(0o644)).tempfile_in(&dir)?;
        file.write_all(bytes)?;
        persist(file, &dir.join(&name.tag))
    }

    /// Removes a manifest and the folders that it leaves empty.
    pub(crate) fn remove_manifest(&self, located: &Located) -> io::Result<()> {
        let manifests = Self::manifests(&self.roots[0]);
        let mut path = manifests.clone();
        path.extend(located.name.parts());
        fs::remove_file(&path)?;
        for dir in path.ancestors().skip(1).take(3) {
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// All manifests of all roots.
    pub(crate) fn walk(&self) -> Walk {
        let mut walk = Walk { found: Vec::new(), complete: true };
        for (index, root) in self.roots.iter().enumerate() {
            let manifests = Self::manifests(root);
            walk_into(&mut walk, &manifests, &manifests, &mut Vec::new(), index == 0);
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
        for layer in blobs.filter(|layer| !kept.contains(&layer.digest)) {
            let path = self.blobs_dir().join(layer.digest.file_name());
            match fs::remove_file(&path) {
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
        let Ok(entries) = fs::read_dir(self.blobs_dir()) else { return };
        let mut removed = 0_u32;
        for entry in entries.flatten() {
            let name = entry.file_name();
            // Only what a server like this one leaves behind; other files in the folder are not ours.
            let Some(name) = name.to_str().filter(|name| name.starts_with("sha256-") || name.ends_with(".tmp")) else {
                continue;
            };
            if Digest::from_file_name(name).is_some_and(|digest| kept.contains(&digest)) {
                continue;
            }
            let old = entry
                .metadata()
                .and_then(|meta| if meta.is_file() { meta.modified() } else { Err(refused("not a file")) })
                .ok()
                .and_then(|modified| modified.elapsed().ok())
                .is_some_and(|age| age.as_secs() > BLOB_ORPHAN_AGE_S);
            if old && fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "unused blobs were removed");
        }
    }
}

/// Opens a regular file without waiting for a pipe's other end and reads at most this much.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<ManifestFile> {
    let (file, meta) = open_regular(path)?;
    if meta.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes")));
    }
    Ok(ManifestFile { bytes, modified_at: meta.modified()? })
}

/// Opens a regular file; anything else is refused before a byte is read.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refused("not a regular file"));
    }
    Ok((file, meta))
}

/// Whether a file begins like a GGUF file does.
pub(crate) fn has_gguf_magic(path: &Path) -> io::Result<bool> {
    let (mut file, _) = open_regular(path)?;
    let mut magic = [0_u8; 4];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == b"GGUF"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The path with links resolved, where it lies inside the folder; `PermissionDenied` where it does not.
pub(crate) fn contained(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let target = path.canonicalize()?;
    if target.starts_with(folder.canonicalize()?) { Ok(target) } else { Err(refused("a link leads out of the folder")) }
}

/// Writes a file's content through to the disk, then gives it its name.
fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    if let Some(dir) = path.parent() {
        // The rename itself; not every file system can do this, and the content is safe already.
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
    }
    Ok(())
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// The entries of a folder that equal this part but for case; the exact one first.
fn spellings(dir: &Path, part: &str) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.eq_ignore_ascii_case(part))
        .collect();
    found.sort_by_key(|name| (name != part, name.clone()));
    found
}

/// Finds the file below `dir` whose path equals the parts but for case, and collects its spelling.
fn find_file(dir: &Path, parts: &[&str], spelled: &mut Vec<String>) -> Option<PathBuf> {
    let [part, rest @ ..] = parts else { return None };
    // Most names are spelled as on disk, and then no folder needs to be read. Where the file system itself ignores
    // case, only the folder knows the spelling.
    let exact = !cfg!(target_os = "macos") && fs::metadata(dir.join(part)).is_ok();
    let others = || spellings(dir, part).into_iter().filter(|name| !exact || name != part);
    let exact = exact.then(|| (*part).to_owned());
    for name in exact.into_iter().chain(std::iter::once_with(others).flatten()) {
        let path = dir.join(&name);
        spelled.push(name);
        let found = if rest.is_empty() {
            fs::metadata(&path).is_ok_and(|meta| meta.is_file()).then_some(path)
        } else {
            find_file(&path, rest, spelled)
        };
        if found.is_some() {
            return found;
        }
        spelled.pop();
    }
    None
}

fn walk_into(walk: &mut Walk, manifests: &Path, dir: &Path, parts: &mut Vec<String>, writable: bool) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) && parts.is_empty() => return,
        Err(error) => {
            tracing::warn!(%error, "a folder of manifests could not be read");
            walk.complete = false;
            return;
        }
    };
    for entry in entries {
        let Ok(entry) = entry else {
            walk.complete = false;
            continue;
        };
        let Ok(part) = entry.file_name().into_string() else {
            walk.complete = false;
            continue;
        };
        if part.starts_with('.') {
            continue; // Finder's and our own unfinished files.
        }
        let target = entry
            .file_type()
            .and_then(|kind| if kind.is_symlink() { contained(manifests, &entry.path()) } else { Ok(entry.path()) });
        let Ok(kind) = target.as_ref().map_err(|_| ()).and_then(|path| fs::metadata(path).map_err(|_| ())) else {
            tracing::warn!(entry = %part, "an entry among the manifests was skipped: a broken link, or one that leads out");
            walk.complete = false;
            continue;
        };
        parts.push(part);
        if parts.len() < 4 {
            if kind.is_dir() {
                walk_into(walk, manifests, &entry.path(), parts, writable);
            }
        } else if kind.is_file() && walk.found.len() < STORE_MANIFESTS_MAX {
            match (Name::from_parts(&parts[0], &parts[1], &parts[2], &parts[3]), target) {
                (Some(name), Ok(path)) => walk.found.push(Located { name, path, writable }),
                _ => walk.complete = false,
            }
        } else {
            walk.complete = false;
        }
        parts.pop();
    }
}
