//! Model files outside any store, named by their absolute path.
//!
//! Blocking file work. A path is a model only where it is a GGUF file called `*.gguf`, or a folder with `config.json`
//! and `*.safetensors`. Every other path, absent, forbidden or of another kind, gives the same nothing, so that no
//! answer tells what exists on the machine (CVE-2024-39722).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::limits::MODEL_FILES_MAX;
use ollmlx_proto::ModelId;

use super::digest::Digest;
use super::model::{Backend, ModelRef};
use super::store::{has_gguf_magic, open_regular};
use crate::os::folder::{Folder, Leaf, Place, cache_of};

/// A model found at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalModel {
    pub(crate) id: ModelId,
    /// What it is called: its path, or its name in a cache.
    pub(crate) name: String,
    /// The same with its host, where it has one.
    pub(crate) full_name: String,
    pub(crate) backend: Backend,
    /// The file with its shards, first first; or the folder.
    pub(crate) weights: Vec<PathBuf>,
    pub(crate) size_bytes: u64,
    pub(crate) modified_at: SystemTime,
}

/// Whether a client's text is a path and not a name.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with('/')
}

/// The model at this absolute path, if there is one.
pub(crate) fn find(text: &str) -> Option<LocalModel> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_path(text) || !plain || text.contains('\0') {
        return None;
    }
    let kind = fs::metadata(path).ok()?;
    let (backend, weights, counted) = if kind.is_file() {
        let shards = gguf_files(path)?;
        (Backend::Gguf, shards.clone(), shards)
    } else if kind.is_dir() {
        (Backend::Mlx, vec![path.to_owned()], mlx_files(path)?)
    } else {
        return None;
    };
    measured(text, backend, weights, &counted)
}

/// Whether a model that was found at a path is still the one that lies there. Blocks.
pub(crate) fn is_unchanged(model: &ModelRef) -> bool {
    find(&model.full_name).is_some_and(|found| found.id == model.id)
}

/// The model of these files, known by a text and by the size and age of those that count. Nothing where one is gone.
pub(crate) fn measured(text: &str, backend: Backend, weights: Vec<PathBuf>, counted: &[PathBuf]) -> Option<LocalModel> {
    let (mut size_bytes, mut modified_at) = (0_u64, UNIX_EPOCH);
    for file in counted {
        let meta = fs::metadata(file).ok()?;
        size_bytes = size_bytes.saturating_add(meta.len());
        modified_at = modified_at.max(meta.modified().ok()?);
    }
    let nanos = modified_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let id = Digest::of(format!("{text}\0{size_bytes}\0{nanos}").as_bytes());
    Some(LocalModel {
        id: ModelId(id.hex().to_owned()),
        name: text.to_owned(),
        full_name: text.to_owned(),
        backend,
        weights,
        size_bytes,
        modified_at,
    })
}

/// `name-00001-of-00003.gguf` as `("name", 1, 3)`.
pub(crate) fn shard_of(file_name: &str) -> Option<(&str, usize, usize)> {
    let stem = cut_extension(file_name)?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (prefix, index) = stem.rsplit_once('-')?;
    let number = |digits: &str| {
        let valid = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| digits.parse::<usize>().ok()).flatten()
    };
    let (index, count) = (number(index)?, number(count)?);
    (index >= 1 && index <= count && count <= MODEL_FILES_MAX).then_some((prefix, index, count))
}

/// The stem of a `.gguf` file's name.
pub(crate) fn cut_extension(file_name: &str) -> Option<&str> {
    let dot = file_name.len().checked_sub(".gguf".len())?;
    file_name.get(dot..)?.eq_ignore_ascii_case(".gguf").then(|| &file_name[..dot])
}

/// The file of this name, or all shards where it is one of several, whether they are there or not.
pub(crate) fn shards(path: &Path, name: &str) -> Vec<PathBuf> {
    match shard_of(name) {
        None => vec![path.to_owned()],
        Some((prefix, _, count)) => {
            (1..=count).map(|index| path.with_file_name(format!("{prefix}-{index:05}-of-{count:05}.gguf"))).collect()
        }
    }
}

/// The file, or all shards where it is one of several. Nothing where one is missing.
fn gguf_files(path: &Path) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    cut_extension(name)?;
    let files = shards(path, name);
    files.iter().all(|file| open_regular(file).and_then(|file| has_gguf_magic(&file)).unwrap_or(false)).then_some(files)
}

/// The files that make a folder a model: all that belong to its checkpoint.
fn mlx_files(folder: &Path) -> Option<Vec<PathBuf>> {
    let files: Vec<PathBuf> = Checkpoint::read(folder)?.names.iter().map(|name| folder.join(name)).collect();
    let has = |wanted: &dyn Fn(&Path) -> bool| files.iter().any(|path| wanted(path));
    let config = has(&|path| path.file_name().is_some_and(|name| name == "config.json"));
    let weights = has(&|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    (config && weights).then_some(files)
}

/// Kinds of files that belong to a checkpoint.
const CHECKPOINT_EXTENSIONS: [&str; 5] = ["safetensors", "json", "jinja", "model", "txt"];

/// The files of a checkpoint's folder. Links must stay in the folder, or in the cache that the folder is a
/// snapshot of (`models--owner--name/snapshots/<revision>`).
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// What links may lead to.
    home: Folder,
    /// Where the files lie in it.
    below: PathBuf,
    /// Sorted.
    pub(crate) names: Vec<String>,
}

impl Checkpoint {
    /// Nothing where a file is none, or a link that leads out.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let real = folder.canonicalize().ok()?;
        let home = cache_of(&real).unwrap_or(&real);
        let below = real.strip_prefix(home).ok()?.to_owned();
        let mut checkpoint = Self { home: Folder::open(home).ok()?, below, names: Vec::new() };
        let files = checkpoint.home.find_folder(&checkpoint.below).ok()?;
        for name in files.names().ok()?.flatten() {
            let extension = Path::new(&name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if name.starts_with('.') || !CHECKPOINT_EXTENSIONS.contains(&extension) {
                continue;
            }
            match checkpoint.home.find(&checkpoint.below.join(&name)) {
                Ok(Place::Folder(_)) => {}
                Ok(Place::Leaf(leaf)) if leaf.is_file() && checkpoint.names.len() < MODEL_FILES_MAX => {
                    checkpoint.names.push(name);
                }
                _ => return None,
            }
        }
        checkpoint.names.sort();
        Some(checkpoint)
    }

    /// One of them, as it is now.
    pub(crate) fn file(&self, name: &str) -> io::Result<Leaf> {
        self.home.find_file(&self.below.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_recognised_by_their_name() {
        assert_eq!(shard_of("m-q4-00002-of-00003.gguf"), Some(("m-q4", 2, 3)));
        for name in
            ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf", "m-00001-of-99999.gguf"]
        {
            assert_eq!(shard_of(name), None, "{name}");
        }
    }

    #[test]
    fn s05_only_model_files_are_models() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("good.GGUF"), b"GGUF and more").unwrap();
        fs::write(path("bad.gguf"), b"root:x:0:0").unwrap();
        fs::write(path("empty.gguf"), b"").unwrap();
        fs::write(path("plain"), b"GGUF").unwrap();
        fs::create_dir(path("folder.gguf")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("link.gguf")).unwrap();
        nix::unistd::mkfifo(Path::new(&path("pipe.gguf")), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(find(&path("good.GGUF")).unwrap().weights, vec![PathBuf::from(path("good.GGUF"))]);
        for name in ["bad.gguf", "empty.gguf", "plain", "folder.gguf", "link.gguf", "pipe.gguf", "none.gguf"] {
            assert_eq!(find(&path(name)), None, "{name}");
        }
        for text in ["/etc/passwd", "/nonexistent", "/", "/dev/zero", "/proc/self/mem", "good.GGUF", "", "/\0.gguf"] {
            assert_eq!(find(text), None, "{text}");
        }
        assert_eq!(find(&path("x/../good.GGUF")), None);
    }

    #[test]
    fn the_id_follows_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, b"GGUF1").unwrap();
        let first = find(path.to_str().unwrap()).unwrap();
        assert_eq!(first.id, find(path.to_str().unwrap()).unwrap().id);
        fs::write(&path, b"GGUF12").unwrap();
        assert_ne!(first.id, find(path.to_str().unwrap()).unwrap().id);
    }

    #[test]
    fn all_shards_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |index: u32| dir.path().join(format!("m-{index:05}-of-00002.gguf"));
        fs::write(shard(2), b"GGUF").unwrap();
        assert_eq!(find(shard(2).to_str().unwrap()), None);
        fs::write(shard(1), b"GGUF").unwrap();
        assert_eq!(find(shard(2).to_str().unwrap()).unwrap().weights, vec![shard(1), shard(2)]);
    }

    #[test]
    fn s07_links_of_a_folder_stay_inside_or_in_its_cache() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--a--b/snapshots/r1");
        let blobs = dir.path().join("models--a--b/blobs");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("c"), b"{}").unwrap();
        fs::write(blobs.join("w"), b"w").unwrap();
        std::os::unix::fs::symlink("../../blobs/c", snapshot.join("config.json")).unwrap();
        std::os::unix::fs::symlink("../../blobs/w", snapshot.join("model.safetensors")).unwrap();
        let found = find(snapshot.to_str().unwrap()).unwrap();
        assert_eq!((found.backend, found.size_bytes), (Backend::Mlx, 3));
        std::os::unix::fs::symlink("/etc/passwd", snapshot.join("evil.safetensors")).unwrap();
        assert_eq!(find(snapshot.to_str().unwrap()), None);
        fs::remove_file(snapshot.join("evil.safetensors")).unwrap();
        // What takes a file's place after the look is not followed out either.
        let checkpoint = Checkpoint::read(&snapshot).unwrap();
        checkpoint.file("config.json").unwrap().open().unwrap();
        fs::remove_file(snapshot.join("config.json")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", snapshot.join("config.json")).unwrap();
        assert!(checkpoint.file("config.json").is_err());
    }
}
