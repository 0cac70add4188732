//! The catalogue on real folders, with an inspector of our own: a script that obeys what the file says.

mod mlx;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ollmlx_proto::{Capability, FlashAttention, MemoryModel, ModelCard};
use serde_json::json;
use tempfile::TempDir;

use crate::os::sandbox::Launcher;

use super::*;

const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = inspect ] || exit 9
shift
echo run >> "$1.log"
case "$(head -c 9 "$1" | tail -c 5)" in
    KILLS) kill -SEGV $$ ;;
    EXITS) exit 7 ;;
    FAILS) printf '%s' '{"kind":"ModelInvalid","retry":"Never","public":"token 3 is broken","detail":""}'
           exit 2 ;;
    WAITS) echo $$ > "$1.pid"; exec sleep 600 ;;
    JUNK!) echo junk; exit 0 ;;
    FLOOD) exec cat /dev/zero ;;
    NOISY) head -c 1000000 /dev/zero >&2 ;;
    CLIP!) sed s/llama/clip/g "${0%/*}/card.json"; exit 0 ;;
esac
cat "${0%/*}/card.json"
"#;

fn card() -> ModelCard {
    ModelCard {
        format: "gguf".into(),
        architecture: "llama".into(),
        parameter_count: 134_515_008,
        quantization: "Q4_1".into(),
        context_length: 8192,
        embedding_length: 576,
        block_count: 30,
        vocab_size: 49152,
        weight_bytes: 1,
        memory: MemoryModel::default(),
        chat_template: None,
        chat_template_fault: None,
        builtin_template: None,
        capabilities: vec![Capability::Completion],
        metadata: "{}".into(),
        tensors: Vec::new(),
    }
}

/// Written once, before any test starts a process.
pub(super) fn worker_dir() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("card.json"), serde_json::to_vec(&card()).unwrap()).unwrap();
        let script = dir.path().join("ollmlx-worker-gguf");
        fs::write(&script, SCRIPT).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        mlx::add_inspector(dir.path());
        dir
    })
    .path()
}

/// A catalogue in a folder of its own.
struct House {
    dir: TempDir,
    catalog: Catalog,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(&dir, true);
        Self { dir, catalog }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("store").join(below)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.path("manifests/registry.ollama.ai/library").join(name)
    }

    fn write_manifest(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.manifest(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn blobs(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("blobs"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".log"))
            .collect();
        names.sort();
        names
    }

    async fn upload(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        let mut writer = self.catalog.blob_writer(&digest).await.unwrap();
        writer.write(bytes).await.unwrap();
        writer.finish().await.unwrap();
        digest
    }

    async fn create(&self, spec: CreateSpec) -> (Vec<String>, Result<ModelId, CatalogError>) {
        let (sender, mut receiver) = mpsc::channel(64);
        let result = self.catalog.create(spec, sender).await;
        let mut statuses = Vec::new();
        while let Some(status) = receiver.recv().await {
            statuses.push(match status {
                Progress::Status(status) => status,
                Progress::Copying { status, completed_bytes, total_bytes } => {
                    format!("{status} {completed_bytes}/{total_bytes}")
                }
            });
        }
        (statuses, result)
    }

    /// A model of one file with this content.
    async fn make(&self, name: &str, content: &[u8]) -> Result<ModelId, CatalogError> {
        let digest = self.upload(content).await;
        self.create(spec(name, "m.gguf", &digest)).await.1
    }
}

fn open(dir: &TempDir, prune: bool) -> Catalog {
    Catalog::open(CatalogConfig {
        hub_dir: dir.path().join("hub"),
        stores: vec![dir.path().join("store"), dir.path().join("second")],
        state_dir: dir.path().join("state"),
        worker_dir: worker_dir().to_owned(),
        launcher: Launcher::default(),
        prune,
        flash_attention: FlashAttention::Auto,
    })
    .unwrap()
}

fn spec(name: &str, key: &str, digest: &str) -> CreateSpec {
    let files = [(key.to_owned(), digest.to_owned())].into();
    CreateSpec { name: name.into(), files, ..CreateSpec::default() }
}

fn derived(name: &str, from: &str) -> CreateSpec {
    CreateSpec { name: name.into(), from: Some(from.into()), ..CreateSpec::default() }
}

fn refusal(error: CatalogError) -> (u16, String) {
    match error {
        CatalogError::Refused { status_hint, message } => (status_hint, message),
        other => panic!("not a refusal: {other:?}"),
    }
}

fn runs(file: &Path) -> usize {
    let log = PathBuf::from(format!("{}.log", file.display()));
    fs::read_to_string(log).map_or(0, |text| text.lines().count())
}

fn age(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(crate::os::wall::wall_now() - Duration::from_secs(seconds)).unwrap();
}

#[tokio::test]
async fn an_uploaded_file_becomes_a_model_with_the_facts_of_its_card() {
    let house = House::new();
    let digest = house.upload(b"GGUF tiny").await;
    let (statuses, id) = house.create(spec("Tiny", "m.gguf", &digest)).await;
    let existing = format!("using existing layer {digest}");
    assert_eq!(statuses, ["parsing GGUF", existing.as_str(), "writing manifest", "success"]);
    for name in ["tiny", "TINY:LATEST", "registry.ollama.ai/library/Tiny", "tiny:local"] {
        let model = house.catalog.resolve(name).await.unwrap();
        assert_eq!((model.name.as_str(), &model.id), ("Tiny:latest", id.as_ref().unwrap()), "{name}");
    }
    let model = house.catalog.resolve("tiny").await.unwrap();
    let manifest = fs::read(house.manifest("Tiny/latest")).unwrap();
    assert_eq!(model.digest, Digest::of(&manifest).hex());
    let config = Manifest::parse(&manifest).unwrap().config.size;
    assert_eq!(model.size_bytes, 9 + config);
    assert_eq!(model.details.parameter_size, "134.52M");
    assert_eq!((model.details.family.as_str(), model.details.quantization_level.as_str()), ("llama", "Q4_1"));
    assert_eq!(model.details.families, Some(vec!["llama".into()]));
    assert_eq!(
        (model.details.context_length, model.capabilities.as_slice()),
        (8192, [Capability::Completion].as_slice())
    );
    assert_eq!(model.weights, [house.path("blobs").join(Digest::of(b"GGUF tiny").file_name())]);
    assert_eq!(model.full_name, "registry.ollama.ai/library/Tiny:latest");
}

#[tokio::test]
async fn a_derived_model_inherits_and_merges_key_by_key() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let mut first = derived("one", "tiny");
    first.template = Some("{{ .System }}{{ if .Tools }}t{{ end }}<think>".into());
    first.parameters = json!({"temperature": 0.5, "stop": ["a"]}).as_object().unwrap().clone();
    first.license = vec!["MIT".into(), "\"quoted\"\nlines".into()];
    first.messages = vec![StoredMessage { role: "user".into(), content: "hi".into() }];
    house.create(first).await.1.unwrap();
    let mut second = derived("two", "one");
    second.system = Some("Talk like a pirate.".into());
    second.parameters = json!({"temperature": 1, "top_k": 4}).as_object().unwrap().clone();
    let (statuses, id) = house.create(second).await;
    id.unwrap();
    let kinds: Vec<&str> = statuses.iter().map(|status| status.split(" sha256").next().unwrap()).collect();
    let (old, new) = ("using existing layer", "creating new layer");
    assert_eq!(kinds, [old, old, old, old, old, new, new, "writing manifest", "success"]);
    let model = house.catalog.resolve("two").await.unwrap();
    assert_eq!(Value::Object(model.params.clone()), json!({"stop": ["a"], "temperature": 1, "top_k": 4}));
    assert_eq!(model.system.as_deref(), Some("Talk like a pirate."));
    assert_eq!((model.licenses.len(), model.messages.len(), model.parent.as_str()), (2, 1, "one:latest"));
    assert_eq!(model.capabilities, [Capability::Completion, Capability::Tools, Capability::Thinking]);

    let text = house.catalog.modelfile(&model);
    assert!(text.starts_with("# Modelfile generated by \"ollama show\"\n"), "{text}");
    assert!(text.contains("# FROM two:latest\n\nFROM /"), "{text}");
    let parsed = modelfile::parse(&text).unwrap();
    assert_eq!((parsed.template, parsed.system), (model.template.clone(), model.system.clone()));
    assert_eq!((parsed.license, parsed.messages), (model.licenses.clone(), model.messages.clone()));
    assert_eq!(Value::Object(parsed.parameters), Value::Object(model.params.clone()));
}

#[tokio::test]
async fn a_create_that_can_not_be_is_refused_with_ollama_s_words() {
    let house = House::new();
    let good = house.upload(b"GGUF tiny").await;
    let text = house.upload(b"no weights").await;
    let refused = |spec: CreateSpec| async { refusal(house.create(spec).await.1.unwrap_err()) };
    let bad = |message: &str| (400, message.to_owned());
    assert_eq!(
        refused(CreateSpec { name: "m".into(), ..CreateSpec::default() }).await,
        bad("neither 'from' or 'files' was specified")
    );
    for key in ["/etc/passwd", "../m.gguf", "a/../../m.gguf", "", "./m.gguf", "a//m.gguf", "m\0.gguf"] {
        assert_eq!(refused(spec("m", key, &good)).await, bad("file path must be relative"), "{key:?}");
    }
    assert_eq!(refused(spec("m", "m.gguf", &text)).await, bad("supplied file was not in GGUF format"));
    assert_eq!(refused(spec("m", "readme", &text)).await, bad("unknown type"));
    let mut adapters = spec("m", "m.gguf", &good);
    adapters.adapters = [("a".to_owned(), good.clone()), ("b".to_owned(), good.clone())].into();
    assert_eq!(refused(adapters).await, bad("only one adapter is currently supported"));
    let quantize = |kind: &str| CreateSpec { quantize: Some(kind.into()), ..spec("m", "m.gguf", &good) };
    assert_eq!(
        refused(quantize("Q3")).await.1,
        "unsupported quantization type Q3 - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
    );
    assert_eq!(
        refused(quantize("q4_k_m")).await,
        (500, "quantization is only supported for F16, BF16 and F32 models".into())
    );
    let template = CreateSpec { template: Some("{{ if }}".into()), ..spec("m", "m.gguf", &good) };
    assert!(refused(template).await.1.starts_with("template error: "));
    let halves = spec("m", "m-00001-of-00002.gguf", &good);
    assert_eq!(refused(halves).await, bad("the shard \"m-00002-of-00002.gguf\" is missing"));
    for name in ["", "../m", "/m.gguf", "m:", "a/b/c/d"] {
        let error = house.create(spec(name, "m.gguf", &good)).await.1.unwrap_err();
        assert!(matches!(error, CatalogError::InvalidName(_)), "{name}: {error:?}");
    }
    let absent = Digest::of(b"absent").to_string();
    let error = house.create(spec("m", "m.gguf", &absent)).await.1.unwrap_err();
    assert!(matches!(error, CatalogError::BlobMissing(digest) if digest == absent));
    let error = house.create(spec("m", "m.gguf", "sha256:../../x")).await.1.unwrap_err();
    assert!(matches!(error, CatalogError::InvalidDigest(_)));
    assert!(house.catalog.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn shards_and_projectors_find_their_places() {
    let house = House::new();
    let (one, two) = (house.upload(b"GGUF one").await, house.upload(b"GGUF two").await);
    let mut shards = spec("split", "m-00002-of-00002.gguf", &two);
    shards.files.insert("m-00001-of-00002.gguf".into(), one);
    house.create(shards).await.1.unwrap();
    let model = house.catalog.resolve("split").await.unwrap();
    let names: Vec<&str> = model.weights.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, [Digest::of(b"GGUF one").file_name(), Digest::of(b"GGUF two").file_name()]);
    let projector = house.upload(b"GGUFCLIP!").await;
    let mut pair = spec("pair", "z.gguf", &two);
    pair.files.insert("a-mmproj.gguf".into(), projector);
    house.create(pair).await.1.unwrap();
    assert_eq!(house.catalog.resolve("pair").await.unwrap().weights.len(), 1);
}

#[tokio::test]
async fn s01_no_strange_digest_reaches_the_disk() {
    let house = House::new();
    let hex = Digest::of(b"x").hex().to_owned();
    for digest in [
        "sha256:../../../../var/pwn".to_owned(),
        "sha256-..%2f..%2fpwn".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256-{hex}"),
        String::new(),
    ] {
        assert!(matches!(house.catalog.blob_exists(&digest).await, Err(CatalogError::InvalidDigest(_))), "{digest}");
        assert!(matches!(house.catalog.blob_writer(&digest).await, Err(CatalogError::InvalidDigest(_))), "{digest}");
        let layer = json!({"mediaType": manifest::media::MODEL, "digest": digest, "size": 1});
        let good = json!({"mediaType": manifest::media::CONFIG, "digest": format!("sha256:{hex}"), "size": 1});
        for manifest in [json!({"config": good, "layers": [layer]}), json!({"config": layer, "layers": [good]})] {
            house.write_manifest("evil/latest", manifest.to_string());
            match house.catalog.resolve("evil").await {
                Err(CatalogError::Unreadable(failure)) => assert!(failure.public.contains(&digest), "{failure}"),
                other => panic!("{digest}: {other:?}"),
            }
            let name = Name::parse("other").unwrap();
            let published = house.catalog.publish_manifest(&name, manifest.to_string().into_bytes()).await;
            assert!(matches!(published, Err(CatalogError::Unreadable(_))));
            assert!(matches!(house.catalog.copy("evil", "other").await, Err(CatalogError::Unreadable(_))));
        }
    }
    assert!(house.catalog.list().await.unwrap().is_empty());
    assert!(house.blobs().is_empty());
}

#[tokio::test]
async fn a_wrong_hash_leaves_no_file_and_the_right_one_a_blob() {
    let house = House::new();
    let digest = Digest::of(b"right").to_string();
    let mut writer = house.catalog.blob_writer(&digest).await.unwrap();
    writer.write(b"wrong").await.unwrap();
    let error = writer.finish().await.unwrap_err();
    let actual = Digest::of(b"wrong").to_string();
    assert_eq!(error.to_string(), format!("digest mismatch, expected \"{digest}\", got \"{actual}\""));
    assert!(!house.catalog.blob_exists(&digest).await.unwrap());
    let mut dropped = house.catalog.blob_writer(&digest).await.unwrap();
    dropped.write(&vec![0; 3 * crate::limits::BLOB_BUFFER_BYTES]).await.unwrap();
    drop(dropped);
    assert!(house.blobs().is_empty());
    for created in [true, false] {
        let mut writer = house.catalog.blob_writer(&digest).await.unwrap();
        writer.write(b"ri").await.unwrap();
        writer.write(b"ght").await.unwrap();
        assert_eq!(writer.finish().await.unwrap(), created);
    }
    assert!(house.catalog.blob_exists(&digest).await.unwrap());
    let mode = fs::metadata(house.path("blobs").join(Digest::of(b"right").file_name())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn s07_what_is_written_is_its_owner_s_and_a_store_of_ollama_s_keeps_its_modes() {
    let house = House::new();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let below = |folder: &str| walk(&house.dir.path().join(folder));
    for path in below("store").into_iter().chain(below("state")) {
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        set(&path, if path.is_dir() { 0o755 } else { 0o644 });
    }
    let old = below("store");
    let secret = CreateSpec { system: Some("a secret".into()), ..derived("pirate", "tiny") };
    house.create(secret).await.1.unwrap();
    house.catalog.copy("tiny", "copy").await.unwrap();
    open(&house.dir, true).resolve("pirate").await.unwrap();
    for path in below("store") {
        let bits = match (old.contains(&path), path.is_dir()) {
            (true, true) => 0o755,
            (true, false) => 0o644,
            (false, true) => 0o700,
            (false, false) => 0o600,
        };
        assert_eq!(mode(&path), bits, "{}", path.display());
    }
}

/// Everything below a folder, but for what the inspector wrote.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let entries = entries.filter(|path| path.extension().is_none_or(|extension| extension != "log"));
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], walk(&path)].concat() } else { vec![path] })
        .collect()
}

#[tokio::test]
async fn s03_nothing_is_removed_where_the_manifests_disk_is_away() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    fs::write(house.path("blobs/draft.tmp"), "mine").unwrap();
    fs::write(house.path("blobs/sha256-notes"), "mine").unwrap();
    let blobs = house.blobs();
    blobs.iter().for_each(|name| age(&house.path("blobs").join(name), crate::limits::BLOB_ORPHAN_AGE_S + 60));
    let away = house.dir.path().join("away");
    fs::rename(house.path("manifests"), &away).unwrap();
    symlink(house.dir.path().join("disk"), house.path("manifests")).unwrap();
    open(&house.dir, true);
    assert_eq!(house.blobs(), blobs);
    fs::remove_file(house.path("manifests")).unwrap();
    open(&house.dir, true);
    assert_eq!(house.blobs(), ["draft.tmp", "sha256-notes"], "without any manifest only what is no server's stays");
}

#[tokio::test]
async fn delete_removes_only_what_nobody_shares() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let mut pirate = derived("pirate", "tiny");
    pirate.system = Some("Arr".into());
    let id = house.create(pirate).await.1.unwrap();
    house.catalog.copy("PIRATE", "me/Copy:v1").await.unwrap();
    house.catalog.copy("pirate", "pirate").await.unwrap();
    let all = house.blobs();
    assert_eq!(house.catalog.delete("pirate").await.unwrap(), id);
    assert_eq!(house.blobs(), all, "the copy shares every blob");
    assert!(!house.manifest("pirate").exists(), "empty folders go");
    assert_eq!(house.catalog.delete("ME/copy:V1").await.unwrap(), id);
    assert_eq!(house.blobs().len(), all.len() - 1, "the system text was not shared; config and weights are");
    assert!(matches!(house.catalog.delete("pirate").await, Err(CatalogError::NotFound(name)) if name == "pirate"));
    house.catalog.delete("tiny").await.unwrap();
    assert!(house.blobs().is_empty());
}

#[tokio::test]
async fn existing_spelling_is_reused_part_by_part() {
    let house = House::new();
    house.make("foo/baz", b"GGUF tiny").await.unwrap();
    house.catalog.copy("FOO/BAZ", "Foo/Bar").await.unwrap();
    house.catalog.copy("foo/baz", "FOO/BAR:Latest").await.unwrap();
    let mut names: Vec<String> = house.catalog.list().await.unwrap().iter().map(|model| model.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["foo/Bar:latest", "foo/baz:latest"]);
    let errors =
        [house.catalog.copy("x y", "z").await.unwrap_err(), house.catalog.copy("foo/baz", "..").await.unwrap_err()];
    assert!(matches!(&errors[0], CatalogError::InvalidName(name) if name == "x y"));
    assert!(matches!(&errors[1], CatalogError::InvalidName(name) if name == ".."));
}

#[tokio::test]
async fn a_listing_is_newest_first_and_skips_what_it_can_not_read() {
    let house = House::new();
    for (name, seconds) in [("old", 300), ("new", 100), ("middle", 200)] {
        house
            .make(
                name,
                name.as_bytes()
                    .iter()
                    .fold(b"GGUF ".to_vec(), |mut bytes, byte| {
                        bytes.push(*byte);
                        bytes
                    })
                    .as_slice(),
            )
            .await
            .unwrap();
        age(&house.manifest(&format!("{name}/latest")), seconds);
    }
    house.write_manifest("broken/latest", "{");
    house.write_manifest("huge/latest", vec![b' '; 2 << 20]);
    house.write_manifest("remote/latest", "[]");
    fs::write(house.path("manifests/.DS_Store"), "x").unwrap();
    let names = |models: Vec<Arc<ModelRef>>| models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(house.catalog.list().await.unwrap()), ["new:latest", "middle:latest", "old:latest"]);
    // Without any card the config's labels do.
    fs::remove_dir_all(house.dir.path().join("state")).unwrap();
    let models = open(&house.dir, true).list().await.unwrap();
    assert_eq!(models[0].details.parameter_size, "134.52M");
    assert_eq!(models[0].details.quantization_level, "Q4_1");
    assert_eq!(models[0].capabilities, [Capability::Completion]);
}

#[tokio::test]
async fn s03_a_canary_survives_everything_that_prunes() {
    let house = House::new();
    let canary = house.dir.path().join("canary");
    fs::write(&canary, "sings").unwrap();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let orphan = house.path("blobs").join(Digest::of(b"orphan").file_name());
    fs::write(&orphan, b"orphan").unwrap();
    age(&orphan, 10_000);
    let config = json!({"mediaType": manifest::media::CONFIG, "digest": Digest::of(b"c").to_string(), "size": 1});
    let layer = json!({"mediaType": manifest::media::MODEL, "digest": "sha256:../../../canary", "size": 1});
    let evil = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let plant = || house.write_manifest("victim/latest", &evil);
    let sings = || assert_eq!(fs::read_to_string(&canary).unwrap(), "sings");

    plant();
    open(&house.dir, true);
    sings();
    assert!(orphan.exists(), "nothing is pruned while a manifest is unreadable");
    let bytes = fs::read(house.manifest("tiny/latest")).unwrap();
    house.catalog.publish_manifest(&Name::parse("victim").unwrap(), bytes).await.unwrap();
    sings();
    plant();
    house.create(derived("victim", "tiny")).await.1.unwrap();
    sings();
    plant();
    house.catalog.copy("tiny", "victim").await.unwrap();
    sings();
    plant();
    house.catalog.delete("victim").await.unwrap();
    sings();
    assert!(!house.manifest("victim").exists());
    open(&house.dir, true);
    sings();
    assert!(!orphan.exists(), "with every manifest readable the orphan goes");
    house.catalog.resolve("tiny").await.unwrap();
}

#[tokio::test]
async fn s05_paths_answer_alike_whether_they_exist_or_not() {
    let house = House::new();
    let text = house.dir.path().join("secret.gguf");
    fs::write(&text, "root:x:0").unwrap();
    let secret = text.to_str().unwrap().to_owned();
    for path in
        ["/etc/passwd", "/nonexistent", "/etc", "/srv/x.gguf", "/nonexistent.gguf", &secret, "/etc/../etc/passwd"]
    {
        for error in [
            house.catalog.resolve(path).await.unwrap_err(),
            house.create(derived("m", path)).await.1.unwrap_err(),
            house.catalog.delete(path).await.unwrap_err(),
        ] {
            assert_eq!(format!("{error:?}"), format!("NotFound({path:?})"));
        }
    }
    for name in ["../../etc/passwd", "../../etc/nonexistent", "./x.gguf"] {
        for error in
            [house.catalog.resolve(name).await.unwrap_err(), house.create(derived("m", name)).await.1.unwrap_err()]
        {
            assert_eq!(format!("{error:?}"), format!("InvalidName({name:?})"));
        }
    }
}

#[tokio::test]
async fn a_file_outside_the_store_can_be_used_and_derived_from() {
    let house = House::new();
    let path = house.dir.path().join("my model.GGUF");
    fs::write(&path, b"GGUF mine").unwrap();
    let text = path.to_str().unwrap();
    let model = house.catalog.resolve(text).await.unwrap();
    assert_eq!((model.name.as_str(), model.size_bytes, model.id.0.as_str()), (text, 9, model.digest.as_str()));
    assert_eq!(model.details.parameter_size, "134.52M");
    let (statuses, id) = house.create(derived("mine", text)).await;
    id.unwrap();
    assert_eq!(statuses[0], "parsing GGUF");
    assert!(house.catalog.blob_exists(&Digest::of(b"GGUF mine").to_string()).await.unwrap());
    assert_eq!(house.catalog.resolve("mine").await.unwrap().card.block_count, 30);
}

#[tokio::test]
async fn s07_links_out_of_the_store_are_refused_and_links_of_its_folders_work() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    house.make("good", b"GGUF good").await.unwrap();
    let blob = house.path("blobs").join(Digest::of(b"GGUF tiny").file_name());
    let secret = house.dir.path().join("shadow");
    fs::write(&secret, b"GGUF tiny").unwrap();
    fs::remove_file(&blob).unwrap();
    symlink(&secret, &blob).unwrap();
    assert!(matches!(house.catalog.resolve("tiny").await, Err(CatalogError::Unreadable(_))));
    assert!(!house.catalog.blob_exists(&Digest::of(b"GGUF tiny").to_string()).await.unwrap());
    let spec = spec("again", "m.gguf", &Digest::of(b"GGUF tiny").to_string());
    assert!(matches!(house.create(spec).await.1, Err(CatalogError::BlobMissing(_))));

    let outside = house.dir.path().join("manifest");
    fs::copy(house.manifest("good/latest"), &outside).unwrap();
    symlink(&outside, house.manifest("good/linked")).unwrap();
    assert!(matches!(house.catalog.resolve("good:linked").await, Err(CatalogError::NotFound(_))));
    assert_eq!(house.catalog.list().await.unwrap().len(), 1);
    let elsewhere = house.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, house.path("manifests/registry.ollama.ai/me")).unwrap();
    assert!(house.catalog.copy("good", "me/x").await.is_err());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);

    // The folders themselves may be on another disk.
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    for folder in ["manifests", "blobs"] {
        let moved = house.dir.path().join(format!("disk-{folder}"));
        fs::rename(house.path(folder), &moved).unwrap();
        symlink(&moved, house.path(folder)).unwrap();
    }
    house.catalog.resolve("tiny").await.unwrap();
    house.create(derived("two", "tiny")).await.1.unwrap();
    assert_eq!(house.catalog.list().await.unwrap().len(), 2);
    // Uploading heals a blob that was replaced by a link, without touching the link's target.
    let blob = house.path("blobs").join(Digest::of(b"GGUF tiny").file_name());
    fs::remove_file(&blob).unwrap();
    symlink("/etc/hostname", &blob).unwrap();
    house.upload(b"GGUF tiny").await;
    assert!(fs::symlink_metadata(&blob).unwrap().is_file());
}

#[tokio::test]
async fn a_file_that_kills_its_inspector_is_named_with_the_fault() {
    let house = House::new();
    for (content, fault) in [
        ("GGUFKILLS", "m.gguf: inspecting it killed the inspector (SIGSEGV)"),
        ("GGUFEXITS", "m.gguf: inspecting it ended the inspector with status 7"),
        ("GGUFFAILS", "m.gguf: token 3 is broken"),
        ("GGUFFLOOD", "m.gguf: inspecting it brought more facts than any model has"),
        ("GGUFJUNK!", "m.gguf: the inspector's answer can't be used"),
    ] {
        match house.make("evil", content.as_bytes()).await {
            Err(CatalogError::Unreadable(failure)) => assert_eq!(failure.public, fault),
            other => panic!("{content}: {other:?}"),
        }
    }
    let blob = house.path("blobs").join(Digest::of(b"GGUFKILLS").file_name());
    for _ in 0..5 {
        assert!(house.make("evil", b"GGUFKILLS").await.is_err());
    }
    assert_eq!(runs(&blob), 1, "a refused file is not inspected again at once");
    assert!(house.catalog.list().await.unwrap().is_empty());
    house.make("fine", b"GGUF fine").await.unwrap();
    house.make("noisy", b"GGUFNOISY").await.unwrap();
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_inspection_and_its_card_is_kept() {
    let house = House::new();
    let path = house.dir.path().join("m.gguf");
    fs::write(&path, b"GGUF many").unwrap();
    let text = path.to_str().unwrap().to_owned();
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (catalog, text) = (house.catalog.clone(), text.clone());
        asked.spawn(async move { catalog.resolve(&text).await.unwrap() });
    }
    assert_eq!(asked.join_all().await.len(), 16);
    open(&house.dir, true).resolve(&text).await.unwrap();
    assert_eq!(runs(&path), 1);
    // A damaged card is asked for again; a folder that can't be written to is no obstacle.
    let cards = house.dir.path().join("state/cards");
    for entry in fs::read_dir(&cards).unwrap() {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
    open(&house.dir, true).resolve(&text).await.unwrap();
    assert_eq!(runs(&path), 2);
    fs::remove_dir_all(&cards).unwrap();
    fs::write(&cards, "in the way").unwrap();
    open(&house.dir, true).resolve(&text).await.unwrap();
    assert_eq!(runs(&path), 3);
}

#[tokio::test]
async fn who_leaves_takes_the_inspector_along() {
    let house = House::new();
    let path = house.dir.path().join("m.gguf");
    fs::write(&path, b"GGUFWAITS").unwrap();
    let pid_file = house.dir.path().join("m.gguf.pid");
    let (catalog, text) = (house.catalog.clone(), path.to_str().unwrap().to_owned());
    let asked = tokio::spawn(async move { catalog.resolve(&text).await.map(drop) });
    let deadline = crate::os::clock::instant_now() + Duration::from_secs(20);
    let until = |what: &str| assert!(crate::os::clock::instant_now() < deadline, "{what}");
    let pid = loop {
        match fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok()) {
            Some(pid) => break nix::unistd::Pid::from_raw(pid),
            None => until("the inspector must start"),
        }
        tokio::task::yield_now().await;
    };
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    while nix::sys::signal::kill(pid, None).is_ok() {
        until("the inspector must be killed and waited for");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn start_up_removes_old_orphans_only() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let put = |name: &str, seconds: u64| {
        let path = house.path("blobs").join(name);
        fs::write(&path, "x").unwrap();
        age(&path, seconds);
        path
    };
    let limit = crate::limits::BLOB_ORPHAN_AGE_S;
    let (old, young) = (Digest::of(b"old").file_name(), Digest::of(b"young").file_name());
    let gone = [put(&old, limit + 60), put(&format!("{old}-partial-0"), limit + 60), put("upload-x.tmp", limit + 60)];
    let stays = [put(&young, limit - 60), put("notes.txt", limit + 60), put("upload-y.tmp", 5)];
    age(&house.path("blobs").join(Digest::of(b"GGUF tiny").file_name()), limit + 60);
    open(&house.dir, false);
    assert!(gone.iter().all(|path| path.exists()), "not where pruning is turned off");
    open(&house.dir, true);
    assert!(!gone.iter().any(|path| path.exists()));
    assert!(stays.iter().all(|path| path.exists()));
    house.catalog.resolve("tiny").await.unwrap();
}

#[tokio::test]
async fn a_second_store_is_read_and_never_written() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    fs::rename(house.path(""), house.dir.path().join("second")).unwrap();
    let model = house.catalog.resolve("tiny").await.unwrap();
    assert!(model.weights[0].starts_with(house.dir.path().join("second")));
    assert_eq!(refusal(house.catalog.delete("tiny").await.unwrap_err()).0, 403);
    house.catalog.copy("tiny", "mine").await.unwrap();
    assert_eq!(house.catalog.list().await.unwrap().len(), 2);
    house.catalog.delete("mine").await.unwrap();
    house.catalog.resolve("tiny").await.unwrap();
}

#[tokio::test]
async fn models_that_run_elsewhere_are_refused() {
    let house = House::new();
    let config = house.upload(br#"{"model_format":"","remote_host":"https://ollama.com","remote_model":"x"}"#).await;
    let layer = json!({"mediaType": manifest::media::CONFIG, "digest": config, "size": 2});
    house.write_manifest("far/latest", json!({"config": layer, "layers": []}).to_string());
    let cloud = (403, "ollama cloud is disabled: remote model is unavailable".to_owned());
    for name in ["far", "far:cloud", "far:1b-cloud"] {
        assert_eq!(refusal(house.catalog.resolve(name).await.unwrap_err()), cloud, "{name}");
    }
    assert!(matches!(house.catalog.resolve("far:latest:local").await, Err(CatalogError::NotFound(_))));
    let both = refusal(house.catalog.resolve("far:local:cloud").await.unwrap_err());
    assert_eq!(both, (400, "use either :local or :cloud, not both: \"far:local:cloud\"".into()));
}

#[tokio::test]
async fn a_blob_that_was_cut_short_is_inspected_again() {
    let house = House::new();
    house.make("tiny", b"GGUF tiny").await.unwrap();
    let blob = house.path("blobs").join(Digest::of(b"GGUF tiny").file_name());
    house.catalog.resolve("tiny").await.unwrap();
    assert_eq!(runs(&blob), 1);
    fs::write(&blob, b"GGUF").unwrap();
    open(&house.dir, true).resolve("tiny").await.unwrap();
    house.catalog.resolve("tiny").await.unwrap();
    assert_eq!(runs(&blob), 2, "neither memory nor disk answers for other bytes");
}
