//! Checkpoints of many files: imported, uploaded, found in a cache, shown to a worker as a folder, and removed again.

use super::*;

const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = inspect ] && [ -f "$2/config.json" ] || exit 9
if grep -q refuse "$2/config.json"; then
    printf '%s' '{"kind":"ModelInvalid","retry":"Never","public":"model_type mamba is not supported","detail":""}'
    exit 2
fi
sed s/gguf/safetensors/ "${0%/*}/card.json"
"#;

/// A second inspector in the folder of the first.
pub(super) fn add_inspector(dir: &Path) {
    let script = dir.join("ollmlx-worker-mlx");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}

fn checkpoint(dir: &Path, config: &[u8]) -> String {
    fs::create_dir_all(dir).unwrap();
    for (name, content) in [
        ("config.json", config),
        ("model.safetensors", b"weights"),
        ("chat_template.jinja", b"template"),
        ("README.md", b"words"),
        (".hidden.json", b"{}"),
    ] {
        fs::write(dir.join(name), content).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

fn in_cache(house: &House, repo: &str) {
    let home = house.dir.path().join("hub").join(repo);
    let revision = "0123456789abcdef0123456789abcdef01234567";
    checkpoint(&home.join("snapshots").join(revision), b"{}");
    fs::create_dir_all(home.join("refs")).unwrap();
    fs::write(home.join("refs/main"), revision).unwrap();
}

fn views(house: &House) -> Vec<PathBuf> {
    let entries = fs::read_dir(house.dir.path().join("state/views")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_becomes_a_model_and_goes_without_a_trace() {
    let house = House::new();
    let from = checkpoint(&house.dir.path().join("mlx"), b"{}");
    let spec = CreateSpec { system: Some("be brief".into()), ..derived("m", &from) };
    let (statuses, made) = house.create(spec).await;
    made.unwrap();
    assert!(statuses.contains(&"copying file model.safetensors 7/7".to_owned()), "{statuses:?}");
    fs::remove_dir_all(&from).unwrap();
    let model = house.catalog.resolve("m").await.unwrap();
    assert_eq!((model.backend, model.details.format.as_str()), (Backend::Mlx, "safetensors"));
    assert_eq!(model.system.as_deref(), Some("be brief"));
    assert_eq!(names(&model.weights[0]), ["chat_template.jinja", "config.json", "model.safetensors"]);
    assert_eq!(fs::read(model.weights[0].join("model.safetensors")).unwrap(), b"weights");
    assert!(house.catalog.modelfile(&model).contains("FROM m:latest\n"));
    let manifest = fs::read_to_string(house.manifest("m/latest")).unwrap();
    for (kind, name) in [("ollama.image.tensor", "model.safetensors"), ("ollama.image.json", "config.json")] {
        assert!(manifest.contains(kind) && manifest.contains(&format!("\"name\":\"{name}\"")), "{manifest}");
    }
    // Derived and copied ones share the folder; it stays as long as one of them does.
    house.create(CreateSpec { system: Some("other".into()), ..derived("n", "m") }).await.1.unwrap();
    house.catalog.copy("m", "o").await.unwrap();
    assert_eq!(house.catalog.resolve("n").await.unwrap().parent, "m:latest");
    assert_eq!(views(&house).len(), 1);
    for (name, left) in [("m", 1), ("o", 1), ("n", 0)] {
        house.catalog.delete(name).await.unwrap();
        assert_eq!(views(&house).len(), left, "{name}");
    }
    assert!(house.blobs().is_empty(), "{:?}", house.blobs());
}

#[tokio::test]
async fn a_folder_of_links_is_made_again_where_it_is_damaged() {
    let house = House::new();
    let from = checkpoint(&house.dir.path().join("mlx"), b"{}");
    house.create(derived("m", &from)).await.1.unwrap();
    let folder = house.catalog.resolve("m").await.unwrap().weights[0].clone();
    fs::remove_dir_all(&folder).unwrap();
    house.catalog.resolve("m").await.unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    symlink("/etc/passwd", folder.join("config.json")).unwrap();
    house.catalog.resolve("m").await.unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{}");
    // One that no model has goes at the start.
    fs::create_dir_all(house.dir.path().join("state/views/.new-x")).unwrap();
    open(&house.dir, true);
    assert_eq!(views(&house), [folder]);
}

#[tokio::test]
async fn a_checkpoint_that_is_refused_leaves_nothing() {
    let house = House::new();
    let from = checkpoint(&house.dir.path().join("mlx"), b"{\"refuse\": 1}");
    let error = house.create(derived("m", &from)).await.1.unwrap_err();
    assert!(error.to_string().contains("model_type mamba is not supported"), "{error}");
    assert!(house.blobs().is_empty() && views(&house).is_empty());
    // So does one that fails after it was looked at.
    let from = checkpoint(&house.dir.path().join("mlx"), b"{}");
    let spec = CreateSpec { quantize: Some("Q4_K_M".into()), ..derived("m", &from) };
    refusal(house.create(spec).await.1.unwrap_err());
    assert!(house.blobs().is_empty() && views(&house).is_empty());
    symlink("/etc/passwd", house.dir.path().join("mlx/tokenizer.json")).unwrap();
    assert!(matches!(house.create(derived("m", &from)).await.1, Err(CatalogError::NotFound(_))));
}

#[tokio::test]
async fn uploaded_files_keep_their_names() {
    let house = House::new();
    let mut spec = CreateSpec { name: "m".into(), ..CreateSpec::default() };
    spec.files.insert("model.safetensors".into(), house.upload(b"weights").await);
    assert!(refusal(house.create(spec.clone()).await.1.unwrap_err()).1.contains("config.json is missing"));
    spec.files.insert("config.json".into(), house.upload(b"{}").await);
    house.create(spec.clone()).await.1.unwrap();
    let model = house.catalog.resolve("m").await.unwrap();
    assert_eq!(names(&model.weights[0]), ["config.json", "model.safetensors"]);
    spec.files.insert(".bashrc".into(), house.upload(b"{}").await);
    assert_eq!(refusal(house.create(spec).await.1.unwrap_err()).0, 400);
}

#[tokio::test]
async fn tensors_that_are_blobs_of_their_own_are_a_folder_as_well() {
    let house = House::new();
    let labels = br#"{"model_format":"safetensors","model_family":"","capabilities":["tools"],"context_length":4096}"#;
    let (labels, config) = (house.upload(labels).await, house.upload(b"{}").await);
    let (a, b) = (house.upload(b"tensor a").await, house.upload(b"tensor b").await);
    let layer =
        |kind: &str, digest: &str, name: &str| json!({"mediaType": kind, "digest": digest, "size": 8, "name": name});
    let write = |layers: Value| {
        let config = json!({"mediaType": manifest::media::CONFIG, "digest": labels, "size": 2});
        house.write_manifest("mlx/latest", json!({"config": config, "layers": layers}).to_string());
    };
    use manifest::media::{JSON, TENSOR};
    write(json!([
        layer(TENSOR, &a, "model.layers.0.mlp.up_proj.weight"),
        layer(TENSOR, &b, "model.norm.weight"),
        layer(TENSOR, &b, "draft.norm.weight"),
        layer(JSON, &config, "config.json"),
        layer(JSON, &config, "draft/config.json"),
    ]));
    let listed = house.catalog.list().await.unwrap();
    assert_eq!((listed[0].backend, listed[0].details.context_length), (Backend::Mlx, 4096));
    let model = house.catalog.resolve("mlx").await.unwrap();
    let folder = ["config.json", "draft", "model-tensor-00000.safetensors", "model-tensor-00001.safetensors"];
    assert_eq!(names(&model.weights[0]), folder);
    assert!(model.capabilities.contains(&Capability::Tools));
    for name in ["../evil.json", "/etc/x.json", ".ssh/x.json", "", "a/b/c/d/e.json", "config.json/x.json"] {
        write(json!([layer(TENSOR, &a, "a"), layer(JSON, &config, "config.json"), layer(JSON, &config, name)]));
        let error = house.catalog.resolve("mlx").await.unwrap_err();
        assert!(matches!(error, CatalogError::Unreadable(_)), "{name:?}: {error:?}");
    }
}

#[tokio::test]
async fn the_hugging_face_cache_is_searched_last_and_never_changed() {
    let house = House::new();
    in_cache(&house, "models--org--tiny");
    let model = house.catalog.resolve("org/tiny").await.unwrap();
    assert_eq!((model.backend, model.name.as_str()), (Backend::Mlx, "org/tiny:latest"));
    assert!(house.catalog.modelfile(&model).contains("FROM org/tiny:latest\n"));
    assert!(refusal(house.catalog.delete("org/tiny").await.unwrap_err()).1.contains("only read"));
    assert!(refusal(house.catalog.copy("org/tiny", "x").await.unwrap_err()).1.contains("FROM in a Modelfile"));
    house.create(derived("mine", "org/tiny")).await.1.unwrap();
    assert_eq!(house.catalog.resolve("mine").await.unwrap().details.format, "safetensors");
    house.make("org/tiny", b"GGUF tiny").await.unwrap();
    assert_eq!(house.catalog.resolve("org/tiny").await.unwrap().backend, Backend::Gguf);
    for (name, text) in [("org/none", "hf download org/none"), ("org/none:Q8_0", "--include '*Q8_0*.gguf'")] {
        let error = house.catalog.resolve(name).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("model '{name}' not found")) && error.contains(text), "{error}");
    }
    assert!(matches!(house.catalog.resolve("none").await, Err(CatalogError::NotFound(_))));
    assert!(matches!(house.catalog.resolve("n.s/m").await, Err(CatalogError::InvalidName(_))));
}
