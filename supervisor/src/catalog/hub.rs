//! Models in the cache that Hugging Face's own programs fill: `models--<owner>--<name>/snapshots/<revision>`.
//!
//! Blocking file work, and nothing but reading. A text becomes part of a path only after [`HubName`] has parsed it, and
//! a revision only after it was seen to be hexadecimal. Files of a snapshot are links to `../../blobs`; what they lead
//! to must lie in the repository's own folder. A repository that is there and can't be served says why: its errors
//! never read like those of one that is absent, for clients answer those by downloading.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::limits::{HUB_ENTRIES_MAX, HUB_PART_BYTES_MAX, HUB_REF_BYTES_MAX, MODEL_FILES_MAX};
use ollmlx_proto::{Failure, FailureKind};

use super::CatalogError;
use super::local::{self, LocalModel, cut_extension, shard_of};
use super::model::Backend;
use super::store::has_gguf_magic;
use crate::os::folder::{Folder, Place, read_bounded};

/// `owner/name`, with a revision or a quantisation where the text gives one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubName {
    owner: String,
    repo: String,
    tag: Option<String>,
}

/// Hosts that a name of this kind may begin with.
const HOSTS: [&str; 4] = ["hf.co", "huggingface.co", "www.huggingface.co", "hf-mirror.com"];
/// Folder of a repository's revisions.
const SNAPSHOTS: &str = "snapshots";
/// What no tag means to Ollama's clients, and what they add to a name without one.
const NO_TAG: &str = "latest";
/// The revision that is meant where none is named.
const MAIN: &str = "main";
/// The quantisation that is taken where several are there and none is named, as in Ollama.
const USUAL_QUANTISATION: &str = "Q4_K_M";
/// Weights in formats that can hold code.
const PICKLES: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

impl HubName {
    /// Reads `[https://][hf.co/]owner/name[:tag]`; `@` may stand for the colon.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = match rest.split_once('/') {
            Some((host, path)) if HOSTS.iter().any(|known| known.eq_ignore_ascii_case(host)) => path,
            _ if rest.len() == text.len() => rest,
            _ => return None,
        };
        let (owner, rest) = rest.split_once('/')?;
        let (repo, tag) = match rest.split_once([':', '@']) {
            Some((repo, tag)) => (repo, Some(tag)),
            None => (rest, None),
        };
        let valid = is_part(owner) && is_part(repo) && tag.is_none_or(is_tag);
        let tag = tag.filter(|tag| !tag.eq_ignore_ascii_case(NO_TAG)).map(str::to_owned);
        valid.then(|| Self { owner: owner.to_owned(), repo: repo.to_owned(), tag })
    }

    /// `owner/name`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.owner, self.repo)
    }

    /// What it is called here: the tag is always shown.
    fn shown(&self) -> String {
        format!("{}:{}", self.id(), self.tag.as_deref().unwrap_or(NO_TAG))
    }

    /// How to get it.
    pub(crate) fn download(&self) -> String {
        match &self.tag {
            Some(tag) if looks_quantised(tag) => format!("hf download {} --include '*{tag}*.gguf'", self.id()),
            Some(tag) if tag != MAIN => format!("hf download {} --revision {tag}", self.id()),
            _ => format!("hf download {}", self.id()),
        }
    }

    fn absent(&self, asked: &str, why: &str) -> CatalogError {
        let advice = format!("{why}, to download it: {}", self.download());
        CatalogError::NotCached { name: asked.to_owned(), advice }
    }

    fn broken(&self, what: impl std::fmt::Display) -> CatalogError {
        let public = format!("{}: {what}", self.id());
        CatalogError::Unreadable(Failure::new(FailureKind::ModelInvalid, public))
    }

    fn unfinished(&self, what: &str) -> CatalogError {
        self.broken(format!("its download is not complete ({what}), to complete it: {}", self.download()))
    }
}

/// There is nothing that could be looked at without a download, and ollmlx does none.
const NOT_HERE: &str = "it is neither in the stores nor in the Hugging Face cache, and ollmlx can't pull models yet; a local file \
                        can be given by its path";

/// Whether the cache has a folder for this repository, whatever is in it.
pub(crate) fn has(cache: &Path, name: &HubName) -> bool {
    repository(cache, name).is_some()
}

/// The model of this name.
pub(crate) fn find(cache: &Path, name: &HubName, asked: &str) -> Result<LocalModel, CatalogError> {
    let absent = || name.absent(asked, NOT_HERE);
    let home = repository(cache, name).ok_or_else(absent)?;
    let home = home.canonicalize().and_then(|home| Folder::open(&home)).map_err(|_| absent())?;
    let (snapshot, quantisation) = snapshot(&home, name, asked)?;
    let files = Files::read(home, &snapshot, name)?;
    let (backend, weights, counted) = match quantisation {
        Some(wanted) => files.gguf(Some(wanted), name, asked)?,
        None if files.has("safetensors") => files.mlx(&snapshot, name)?,
        None if files.has("gguf") => files.gguf(None, name, asked)?,
        None => return Err(files.no_weights(name)),
    };
    let key = snapshot.display().to_string();
    let key = weights.iter().fold(key, |key, path| format!("{key}\0{}", path.display()));
    let found = local::measured(&key, backend, weights, &counted);
    let found = found.ok_or_else(|| name.unfinished("a file went away while it was looked at"))?;
    Ok(LocalModel { name: name.shown(), full_name: format!("hf.co/{}", name.shown()), ..found })
}

/// The repository's folder. Its own spelling is tried first; the hub itself ignores case.
fn repository(cache: &Path, name: &HubName) -> Option<PathBuf> {
    let folder = format!("models--{}--{}", name.owner, name.repo);
    let exact = cache.join(&folder);
    if exact.is_dir() {
        return Some(exact);
    }
    let entries = fs::read_dir(cache).ok()?.take(HUB_ENTRIES_MAX).flatten();
    let same = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|text| text.eq_ignore_ascii_case(&folder));
    entries.filter(same).map(|entry| entry.path()).find(|path| path.is_dir())
}

/// The snapshot that a tag leads to, and the quantisation where the tag is no revision.
fn snapshot<'a>(home: &Folder, name: &'a HubName, asked: &str) -> Result<(PathBuf, Option<&'a str>), CatalogError> {
    if let Some(tag) = name.tag.as_deref() {
        if let Some(path) = by_ref(home, name, tag)? {
            return Ok((path, None));
        }
        if is_revision(tag)
            && let Some(path) = snapshot_folder(home, tag)
        {
            return Ok((path, None));
        }
        if !looks_quantised(tag) && cut_extension(tag).is_none() {
            return Err(name.absent(asked, &format!("the Hugging Face cache has no revision {tag:?} of {}", name.id())));
        }
    }
    let quantisation = name.tag.as_deref();
    if let Some(path) = by_ref(home, name, MAIN)? {
        return Ok((path, quantisation));
    }
    let newest = newest_snapshot(home);
    let path = newest.ok_or_else(|| match unfinished_blob(home) {
        Some(blob) => name.unfinished(&format!("{blob} is there")),
        None => name.unfinished("it has no snapshot"),
    })?;
    Ok((path, quantisation))
}

/// The snapshot that `refs/<reference>` names, if there is such a reference.
fn by_ref(home: &Folder, name: &HubName, reference: &str) -> Result<Option<PathBuf>, CatalogError> {
    let Ok(refs) = home.find_folder(Path::new("refs")) else { return Ok(None) };
    if refs.names_nothing(reference) {
        return Ok(None);
    }
    let read = refs.find_file(Path::new(reference)).and_then(|leaf| read_bounded(leaf.open()?.0, HUB_REF_BYTES_MAX));
    let revision = read.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let revision = revision.as_deref().map(str::trim).filter(|text| is_revision(text));
    let revision = revision.ok_or_else(|| name.broken(format!("refs/{reference} of its cache names no revision")))?;
    let found = snapshot_folder(home, revision);
    found.map(Some).ok_or_else(|| name.unfinished(&format!("revision {revision} has no snapshot")))
}

fn snapshot_folder(home: &Folder, revision: &str) -> Option<PathBuf> {
    let found = home.find_folder(&Path::new(SNAPSHOTS).join(revision)).ok()?;
    Some(found.path().to_owned())
}

fn newest_snapshot(home: &Folder) -> Option<PathBuf> {
    let names = home.find_folder(Path::new(SNAPSHOTS)).ok()?.names().ok()?.take(HUB_ENTRIES_MAX).flatten();
    let folders = names.filter_map(|name| {
        let path = snapshot_folder(home, &name)?;
        Some((fs::metadata(&path).ok()?.modified().ok()?, path))
    });
    folders.max().map(|(_, path)| path)
}

/// A blob that is still on its way, if there is one.
fn unfinished_blob(home: &Folder) -> Option<String> {
    let names = home.find_folder(Path::new("blobs")).ok()?.names().ok()?.take(HUB_ENTRIES_MAX).flatten();
    names.into_iter().find(|name| name.ends_with(".incomplete"))
}

/// The files of a snapshot that could matter to a model, by their path in it.
struct Files {
    /// The repository, which no link may leave.
    home: Folder,
    all: Vec<(String, PathBuf)>,
    /// Links that lead nowhere.
    dangling: Vec<String>,
}

impl Files {
    fn read(home: Folder, snapshot: &Path, name: &HubName) -> Result<Self, CatalogError> {
        let mut files = Self { home, all: Vec::new(), dangling: Vec::new() };
        files.read_folder(snapshot, "", name)?;
        files.all.sort();
        Ok(files)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str, name: &HubName) -> Result<(), CatalogError> {
        let held = self.below(folder).and_then(|below| self.home.find_folder(below));
        let held = held.map_err(|_| name.broken("its snapshot can't be read"))?;
        let names = held.names().map_err(|_| name.broken("its snapshot can't be read"))?;
        for (count, file_name) in names.enumerate() {
            if count >= HUB_ENTRIES_MAX || self.all.len() >= MODEL_FILES_MAX {
                return Err(name.broken("its snapshot has more files than any model needs"));
            }
            let Ok(file_name) = file_name else { continue };
            let (path, key) = (folder.join(&file_name), format!("{prefix}{file_name}"));
            let is_folder = held.child(&file_name).is_ok();
            if is_folder && prefix.is_empty() {
                // GGUF shards often have a folder of their own; nothing of a model lies deeper.
                self.read_folder(&path, &format!("{file_name}/"), name)?;
            }
            if is_folder || !matters(&path) {
                continue;
            }
            match self.below(&path).and_then(|below| self.home.find(below)) {
                Ok(Place::Leaf(leaf)) if leaf.is_file() => self.all.push((key, path)),
                Ok(_) => return Err(name.broken(format!("its file {key} is not a regular file"))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.dangling.push(key),
                Err(_) => return Err(name.broken(format!("its file {key} is a link that leaves the repository"))),
            }
        }
        Ok(())
    }

    /// Where a path to a file of the repository lies in it.
    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(self.home.path()).map_err(|_| io::ErrorKind::NotFound.into())
    }

    fn is_file(&self, path: &Path) -> bool {
        self.below(path).and_then(|below| self.home.find_file(below)).is_ok()
    }

    fn is_gguf(&self, path: &Path) -> io::Result<bool> {
        has_gguf_magic(&self.home.find_file(self.below(path)?)?.open()?.0)
    }

    fn of(&self, extension: &str) -> impl Iterator<Item = &(String, PathBuf)> {
        self.all.iter().filter(move |(_, path)| path.extension().is_some_and(|found| found == extension))
    }

    fn has(&self, extension: &str) -> bool {
        self.of(extension).next().is_some()
    }

    /// The folder, if it is a whole checkpoint as far as names tell.
    fn mlx(&self, snapshot: &Path, name: &HubName) -> Result<Parts, CatalogError> {
        if let Some(key) = self.dangling.first() {
            return Err(name.unfinished(&format!("{key} is a link to a blob that is gone")));
        }
        let weights: Vec<&(String, PathBuf)> = self.of("safetensors").filter(|(key, _)| !key.contains('/')).collect();
        for (key, _) in &weights {
            if let Some(missing) = missing_shard(key, &|wanted| self.all.iter().any(|(key, _)| key == wanted)) {
                return Err(name.unfinished(&format!("the shard {missing} is missing")));
            }
        }
        if !self.all.iter().any(|(key, _)| key == "config.json") {
            return Err(match unfinished_blob(&self.home) {
                Some(_) => name.unfinished("config.json is missing"),
                None => name.broken("it has weights, but its config.json is missing"),
            });
        }
        if weights.is_empty() {
            return Err(name.broken("it is no language model: its weights lie in folders of their own"));
        }
        let config = self.all.iter().filter(|(key, _)| !key.contains('/') && key.ends_with(".json"));
        let counted = config.chain(weights).map(|(_, path)| path.clone()).collect();
        Ok((Backend::Mlx, vec![snapshot.to_owned()], counted))
    }

    /// One GGUF file, or all shards of one.
    fn gguf(&self, wanted: Option<&str>, name: &HubName, asked: &str) -> Result<Parts, CatalogError> {
        let key_of = |key: &str| key.rsplit('/').next().unwrap_or(key).to_ascii_lowercase();
        let firsts: Vec<&(String, PathBuf)> = self
            .of("gguf")
            .filter(|(key, _)| !key_of(key).starts_with("mmproj"))
            .filter(|(key, _)| shard_of(&key_of(key)).is_none_or(|(_, index, _)| index == 1))
            .collect();
        let choose =
            |wanted: &str| firsts.iter().copied().filter(|(key, _)| is_variant(&key_of(key), wanted)).collect();
        let chosen: Vec<&(String, PathBuf)> = match wanted {
            Some(wanted) => choose(wanted),
            None if firsts.len() == 1 => firsts.clone(),
            None => choose(USUAL_QUANTISATION),
        };
        let listed = || firsts.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
        match (chosen.as_slice(), wanted) {
            ([(key, path)], _) => {
                let file = key.rsplit('/').next().unwrap_or(key);
                let here = |wanted: &str| self.is_file(&path.with_file_name(wanted));
                if let Some(missing) = missing_shard(file, &here) {
                    return Err(name.unfinished(&format!("the shard {missing} is missing")));
                }
                let shards = local::shards(path, file);
                if !shards.iter().all(|path| self.is_gguf(path).unwrap_or(false)) {
                    return Err(name.broken(format!("{key} is not a GGUF file")));
                }
                Ok((Backend::Gguf, shards.clone(), shards))
            }
            ([], Some(wanted)) if firsts.is_empty() || self.dangling.is_empty() => {
                let why = format!("the Hugging Face cache has no {wanted} of {} (it has: {})", name.id(), listed());
                Err(name.absent(asked, &why))
            }
            ([], Some(_)) => Err(name.unfinished("a link to a blob that is gone")),
            _ => {
                let id = name.id();
                let message = format!("{id} has several GGUF files, choose one as {id}:QUANTISATION: {}", listed());
                Err(CatalogError::Refused { status_hint: 400, message })
            }
        }
    }

    fn no_weights(&self, name: &HubName) -> CatalogError {
        let pickle = PICKLES.iter().find_map(|extension| self.of(extension).next());
        if let Some(key) = self.dangling.first() {
            return name.unfinished(&format!("{key} is a link to a blob that is gone"));
        }
        if let Some(blob) = unfinished_blob(&self.home) {
            return name.unfinished(&format!("{blob} is there"));
        }
        match pickle {
            Some((key, _)) => name.broken(format!(
                "it has only pickled weights ({key}), which are not read since they can hold code, to convert them: \
                 mlx_lm.convert --hf-path {}",
                name.id()
            )),
            None => name.broken(format!(
                "its snapshot has no weights, neither safetensors nor GGUF, to download them: {}",
                name.download()
            )),
        }
    }
}

/// Who serves it, what the worker is given, and the files whose change makes it another model.
type Parts = (Backend, Vec<PathBuf>, Vec<PathBuf>);

/// Whether a file's kind is one that workers read, or one that explains why there is nothing to read.
fn matters(path: &Path) -> bool {
    const READ: [&str; 6] = ["safetensors", "json", "gguf", "jinja", "model", "txt"];
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    READ.contains(&extension) || PICKLES.contains(&extension)
}

/// The first shard of the series `name-00001-of-00003.ext` that is not there.
fn missing_shard(file: &str, here: &dyn Fn(&str) -> bool) -> Option<String> {
    let (stem, extension) = file.rsplit_once('.')?;
    let as_gguf = format!("{stem}.gguf");
    let (prefix, _, count) = shard_of(&as_gguf)?;
    (1..=count).map(|index| format!("{prefix}-{index:05}-of-{count:05}.{extension}")).find(|shard| !here(shard))
}

/// Whether a file's name (lower case) is that of the wanted quantisation, or the wanted name itself.
fn is_variant(file: &str, wanted: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    let Some(stem) = cut_extension(file) else { return false };
    let stem = shard_of(file).map_or(stem, |(prefix, _, _)| prefix);
    if file == wanted || stem == wanted {
        return true;
    }
    let rest = stem.strip_suffix(wanted.as_str());
    rest.is_some_and(|rest| rest.ends_with(['-', '.', '_']))
}

/// `Q4_K_M`, `IQ2_XXS`, `UD-Q4_K_XL`, `BF16`, `MXFP4`: words for the type of weights.
fn looks_quantised(tag: &str) -> bool {
    let upper = tag.to_ascii_uppercase();
    let word = upper.strip_prefix("UD-").unwrap_or(&upper);
    let digit_after = |prefix: &str| {
        word.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    ["Q", "IQ", "TQ", "F", "BF", "FP", "MXFP", "NVFP"].iter().any(|prefix| digit_after(prefix))
}

fn is_revision(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hub's own rule for owners and names; it keeps `models--a--b` unambiguous and every part one path component.
fn is_part(part: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = part.as_bytes();
    bytes.len() <= HUB_PART_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && !part.contains("--")
        && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let starts_well = tag.as_bytes().first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    starts_well
        && tag.len() <= HUB_PART_BYTES_MAX
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
