//! The Hugging Face cache as its programs leave it, and as somebody with bad intentions would.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::CatalogError;
use super::hub::{HubName, find};
use super::local::LocalModel;
use super::model::Backend;

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn repo(&self) -> PathBuf {
        self.0.path().join("models--org--tiny")
    }

    /// A file as the downloader leaves it: a blob, and a link to it.
    fn put(&self, revision: &str, name: &str, content: &[u8]) {
        let blob = format!("blob-{}", name.replace('/', "-"));
        fs::create_dir_all(self.repo().join("blobs")).unwrap();
        fs::write(self.repo().join("blobs").join(&blob), content).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        self.link(revision, name, &format!("{up}blobs/{blob}"));
    }

    fn link(&self, revision: &str, name: &str, target: &str) {
        let path = self.repo().join("snapshots").join(revision).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn reference(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(self.repo().join("refs")).unwrap();
        fs::write(self.repo().join("refs").join(name), content).unwrap();
    }

    fn mlx() -> Self {
        let cache = Self::new();
        cache.put(REVISION, "config.json", b"{}");
        cache.put(REVISION, "model.safetensors", b"weights");
        cache.reference("main", REVISION.as_bytes());
        cache
    }

    fn find(&self, text: &str) -> Result<LocalModel, CatalogError> {
        find(self.0.path(), &HubName::parse(text).unwrap(), text)
    }

    /// The text of a fault that must not look like absence.
    fn fault(&self, text: &str) -> String {
        let error = self.find(text).unwrap_err();
        let CatalogError::Unreadable(failure) = error else { panic!("not a fault: {error:?}") };
        assert!(!failure.public.contains("not found"), "{}", failure.public);
        failure.public
    }

    fn absence(&self, text: &str) -> String {
        let error = self.find(text).unwrap_err();
        assert!(matches!(error, CatalogError::NotCached { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("model '") && text.contains("not found"), "{text}");
        text
    }
}

fn ends_with(path: &Path, tail: &str) -> bool {
    path.ends_with(tail)
}

#[test]
fn names_of_the_hub_are_told_from_others() {
    for (text, id, download) in [
        ("org/tiny", "org/tiny", "hf download org/tiny"),
        ("org/tiny:latest", "org/tiny", "hf download org/tiny"),
        ("hf.co/org/tiny:main", "org/tiny", "hf download org/tiny"),
        ("https://huggingface.co/org/ti.ny-4bit", "org/ti.ny-4bit", "hf download org/ti.ny-4bit"),
        ("org/tiny@v1.2", "org/tiny", "hf download org/tiny --revision v1.2"),
        ("o.rg/tiny-GGUF:Q4_K_M", "o.rg/tiny-GGUF", "hf download o.rg/tiny-GGUF --include '*Q4_K_M*.gguf'"),
    ] {
        let name = HubName::parse(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((name.id().as_str(), name.download().as_str()), (id, download), "{text}");
    }
    for text in [
        "tiny",
        "",
        "/org/tiny",
        "org/",
        "a/b/c",
        "localhost:5000/org/tiny",
        "https://example.org/org/tiny",
        "org--x/tiny",
        "org/ti--ny",
        "../tiny",
        "org/..",
        "org/t..y",
        "-org/tiny",
        "org/tiny-",
        ".org/tiny",
        "org/tiny:",
        "org/tiny:../x",
        "org/tiny:a/b",
        "org/tiny:.x",
        "org/ti\0ny",
        "org/t y",
        "\u{f6}rg/tiny",
    ] {
        assert_eq!(HubName::parse(text), None, "{text:?}");
    }
    assert!(HubName::parse(&format!("org/{}", "x".repeat(96))).is_some());
    assert_eq!(HubName::parse(&format!("org/{}", "x".repeat(97))), None);
}

#[test]
fn a_reference_leads_to_its_snapshot() {
    let cache = Cache::mlx();
    cache.put(OTHER, "config.json", b"{}");
    let found = cache.find("org/tiny").unwrap();
    assert_eq!((found.backend, found.name.as_str()), (Backend::Mlx, "org/tiny:latest"));
    assert_eq!((found.full_name.as_str(), found.size_bytes), ("hf.co/org/tiny:latest", 9));
    assert!(ends_with(&found.weights[0], &format!("snapshots/{REVISION}")));
    for same in ["hf.co/org/tiny:main", "ORG/Tiny", "org/tiny:latest", &format!("org/tiny@{REVISION}")] {
        assert_eq!(cache.find(same).unwrap().id, found.id, "{same}");
    }
    cache.reference("main", format!("{REVISION}\n").as_bytes());
    assert!(cache.find("org/tiny").is_ok());
    assert!(cache.absence("org/tiny:v2").contains("no revision \"v2\""));
}

#[test]
fn without_a_reference_the_newest_snapshot_is_taken() {
    let cache = Cache::mlx();
    fs::remove_dir_all(cache.repo().join("refs")).unwrap();
    assert!(cache.find("org/tiny").is_ok());
    cache.put(OTHER, "config.json", b"{}");
    cache.put(OTHER, "model.safetensors", b"newer");
    let old = fs::File::open(cache.repo().join("snapshots").join(REVISION)).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(ends_with(&cache.find("org/tiny").unwrap().weights[0], OTHER));
}

#[test]
fn an_absent_repository_says_how_to_get_it() {
    let cache = Cache::new();
    let text = cache.absence("org/tiny");
    assert!(text.starts_with("model 'org/tiny' not found"), "{text}");
    assert!(text.ends_with("hf download org/tiny"), "{text}");
}

#[test]
fn an_unfinished_download_is_no_absence() {
    let cache = Cache::new();
    fs::create_dir_all(cache.repo().join("blobs")).unwrap();
    fs::write(cache.repo().join("blobs/abc.incomplete"), b"").unwrap();
    assert!(cache.fault("org/tiny").contains("download is not complete"));
    cache.reference("main", REVISION.as_bytes());
    assert!(cache.fault("org/tiny").contains("has no snapshot"));
    cache.put(REVISION, "config.json", b"{}");
    assert!(cache.fault("org/tiny").contains("abc.incomplete is there"));
    cache.put(REVISION, "model.safetensors", b"w");
    assert!(cache.find("org/tiny").is_ok(), "remains of an older attempt do no harm");
    cache.link(REVISION, "tokenizer.json", "../../blobs/gone");
    let text = cache.fault("org/tiny");
    assert!(text.contains("tokenizer.json is a link to a blob that is gone"), "{text}");
    assert!(text.ends_with("hf download org/tiny"), "{text}");
}

#[test]
fn missing_parts_are_named() {
    let cache = Cache::new();
    cache.reference("main", REVISION.as_bytes());
    cache.put(REVISION, "README.md", b"x");
    assert!(cache.fault("org/tiny").contains("no weights"));
    cache.put(REVISION, "pytorch_model.bin", b"x");
    let text = cache.fault("org/tiny");
    assert!(text.contains("pickled weights (pytorch_model.bin)") && text.contains("mlx_lm.convert"), "{text}");
    cache.put(REVISION, "model-00001-of-00002.safetensors", b"x");
    assert!(cache.fault("org/tiny").contains("the shard model-00002-of-00002.safetensors is missing"));
    cache.put(REVISION, "model-00002-of-00002.safetensors", b"x");
    assert!(cache.fault("org/tiny").contains("config.json is missing"));
    cache.put(REVISION, "config.json", b"{}");
    assert!(cache.find("org/tiny").is_ok());
}

#[test]
fn s07_nothing_leaves_the_repository() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("w"), b"weights").unwrap();
    for name in ["evil.safetensors", "tokenizer.json", "chat_template.jinja", "sub/evil.gguf"] {
        let cache = Cache::mlx();
        cache.link(REVISION, name, secret.path().join("w").to_str().unwrap());
        assert!(cache.fault("org/tiny").contains("leaves the repository"), "{name}");
    }
    // Another repository of the same cache is outside as well.
    let cache = Cache::mlx();
    fs::create_dir_all(cache.0.path().join("models--org--private/blobs")).unwrap();
    fs::write(cache.0.path().join("models--org--private/blobs/w"), b"w").unwrap();
    cache.link(REVISION, "more.json", "../../../models--org--private/blobs/w");
    assert!(cache.fault("org/tiny").contains("leaves the repository"));
    // So is a snapshot that is a link.
    let cache = Cache::mlx();
    fs::remove_dir_all(cache.repo().join("snapshots").join(REVISION)).unwrap();
    symlink(secret.path(), cache.repo().join("snapshots").join(REVISION)).unwrap();
    assert!(cache.fault("org/tiny").contains("has no snapshot"));
    // Folders and pipes in place of files.
    let cache = Cache::mlx();
    let pipe = cache.repo().join("blobs/pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    cache.link(REVISION, "x.json", "../../blobs/pipe");
    assert!(cache.fault("org/tiny").contains("not a regular file"));
}

#[test]
fn s01_a_reference_is_a_revision_or_nothing() {
    let huge = vec![b'a'; 1 << 20];
    let cases: [&[u8]; 7] =
        [b"../..", b"../../../../etc", b"", b"main", b"/etc", b"0123456789abcdef/../..", huge.as_slice()];
    for content in cases {
        let cache = Cache::mlx();
        cache.reference("main", content);
        assert!(cache.fault("org/tiny").contains("names no revision"), "{:?}", content.get(..20));
    }
    let cache = Cache::mlx();
    fs::remove_file(cache.repo().join("refs/main")).unwrap();
    symlink("/etc/hostname", cache.repo().join("refs/main")).unwrap();
    assert!(cache.fault("org/tiny").contains("names no revision"));
}

#[test]
fn gguf_files_are_chosen_by_their_quantisation() {
    let cache = Cache::new();
    cache.reference("main", REVISION.as_bytes());
    cache.put(REVISION, "tiny-Q8_0.gguf", b"GGUF");
    cache.put(REVISION, "mmproj-tiny.gguf", b"GGUF");
    let name = |text: &str| cache.find(text).unwrap().weights[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name("org/tiny"), "tiny-Q8_0.gguf");
    cache.put(REVISION, "tiny.Q4_K_S.gguf", b"GGUF");
    let error = cache.find("org/tiny").unwrap_err();
    assert!(error.to_string().contains("choose one as org/tiny:QUANTISATION: tiny-Q8_0.gguf, tiny.Q4_K_S.gguf"));
    cache.put(REVISION, "tiny-Q4_K_M.gguf", b"GGUF");
    assert_eq!(name("org/tiny"), "tiny-Q4_K_M.gguf");
    assert_eq!(name("hf.co/org/tiny:q4_k_s"), "tiny.Q4_K_S.gguf");
    assert_eq!(name("org/tiny:tiny-Q8_0.gguf"), "tiny-Q8_0.gguf");
    let text = cache.absence("org/tiny:Q2_K");
    assert!(text.contains("has no Q2_K of org/tiny (it has: ") && text.ends_with("--include '*Q2_K*.gguf'"), "{text}");
    cache.put(REVISION, "F16/tiny-F16-00001-of-00002.gguf", b"GGUF");
    assert!(cache.fault("org/tiny:F16").contains("tiny-F16-00002-of-00002.gguf is missing"));
    cache.put(REVISION, "F16/tiny-F16-00002-of-00002.gguf", b"GGUF");
    assert_eq!(cache.find("org/tiny:f16").unwrap().weights.len(), 2);
    cache.put(REVISION, "tiny-Q3_K.gguf", b"<html>");
    assert!(cache.fault("org/tiny:Q3_K").contains("not a GGUF file"));
}
