//! Damaged and malicious model folders: an error that names the fault, quickly, and nothing allocated by a lie.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use ollmlx_proto::{Failure, FailureKind, LoadSpec};
use ollmlx_worker_kit::engine::{Backend, Engine};
use ollmlx_worker_mlx::engine::{MlxBackend, MlxEngine};
use serde_json::{Value, json};

/// A copy of a good checkpoint whose configuration is changed by `change`.
fn changed(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama-4bit");
    let to = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), to.path().join(name)).unwrap();
    }
    let path = to.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
    to
}

fn inspect(folder: &Path) -> Result<(), Failure> {
    MlxBackend::inspect(&[folder.to_path_buf()]).map(|_| ())
}

fn load(folder: &Path) -> Result<MlxEngine, Failure> {
    let spec = LoadSpec {
        weights: vec![folder.to_path_buf()],
        slots: 1,
        context_tokens: 64,
        batch_tokens: 64,
        gpu_layers: -1,
        kv_type: "f16".to_owned(),
        ..LoadSpec::default()
    };
    MlxBackend::load(&spec, &mut |_, _| true)
}

fn assert_names(result: Result<(), Failure>, word: &str) {
    let failure = result.expect_err(word);
    assert_eq!(failure.kind, FailureKind::ModelInvalid, "{failure:?}");
    assert!(failure.public.contains(word), "{word}: {}", failure.public);
}

#[test]
fn bad_sizes_in_the_configuration_are_named() {
    let bad = || [json!(0), json!(-1), json!(1e308), json!("12"), json!([]), json!(1_u64 << 40), json!(12.5)];
    for key in
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim", "intermediate_size"]
    {
        for value in bad() {
            let folder = changed(|config| config[key] = value);
            assert_names(inspect(folder.path()), key);
        }
    }
    for key in ["hidden_size", "num_hidden_layers", "vocab_size"] {
        let folder = changed(|config| config[key] = Value::Null);
        assert_names(inspect(folder.path()), key);
    }
    let folder = changed(|config| config["num_hidden_layers"] = json!(1_431_655_766));
    assert_names(inspect(folder.path()), "num_hidden_layers");
}

/// Every value below `value`, by its place.
fn places(value: &Value, place: &str, out: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let place = format!("{place}/{key}");
        places(child, &place, out);
        out.push(place);
    }
}

/// Keys that a family reads where they are there.
const OPTIONAL: [&str; 22] = [
    "head_dim",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "layer_norm_eps",
    "partial_rotary_factor",
    "rope_theta",
    "rope_traditional",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "sliding_window_pattern",
    "layer_types",
    "tie_word_embeddings",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "rope_local_base_freq",
    "decoder_sparse_step",
    "mlp_only_layers",
    "type_vocab_size",
    "quantization",
    "eos_token_id",
];

#[test]
fn every_value_of_every_configuration_is_survived() {
    let values = [
        json!(0),
        json!(1),
        json!(-1),
        json!(i32::MAX),
        json!(1_u64 << 31),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(1e308),
        json!(0.5),
        json!("12"),
        json!(null),
        json!([]),
        json!([1, "x", null]),
        json!({}),
        json!({"type": "yarn", "rope_type": "yarn", "factor": 0}),
        json!({"rope_type": "longrope", "long_factor": [1]}),
        json!({"rope_type": "llama3", "factor": 1e-3, "low_freq_factor": 1e6, "high_freq_factor": 1e6}),
        json!(true),
    ];
    let mut tried = 0;
    for family in ["llama", "llama-4bit", "llama-sliding", "qwen2", "qwen3_moe", "gemma2", "gemma3", "phi3", "bert"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(family);
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
        }
        let path = folder.path().join("config.json");
        let sound: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut all = OPTIONAL.map(|key| format!("/{key}")).to_vec();
        places(&sound, "", &mut all);
        all.sort();
        all.dedup();
        for place in &all {
            for value in &values {
                let mut config = sound.clone();
                match config.pointer_mut(place) {
                    Some(old) => old.clone_from(value),
                    None => config[&place[1..]] = value.clone(),
                }
                std::fs::write(&path, config.to_string()).unwrap();
                tried += 1;
                // Loading ends with a first token, so that what is taken for sound has been computed with.
                if let Err(failure) = load(folder.path()) {
                    let kind = failure.kind;
                    assert_eq!(kind, FailureKind::ModelInvalid, "{family}{place} = {value}: {failure:?}");
                }
            }
        }
    }
    assert!(tried > 3000, "{tried}");
}

#[test]
fn bad_quantisation_values_are_named() {
    for value in [json!(0), json!(64), json!("4"), json!(7)] {
        let folder = changed(|config| config["quantization"]["bits"] = value);
        assert_names(inspect(folder.path()), "quantization.bits");
    }
    let folder = changed(|config| config["quantization"]["group_size"] = json!(0));
    assert_names(inspect(folder.path()), "quantization.group_size");
    let folder = changed(|config| config["quantization"]["mode"] = json!("nf4"));
    assert_names(inspect(folder.path()), "nf4");
}

#[test]
fn sizes_that_the_tensors_do_not_have_are_refused_at_load() {
    for (key, value) in [("hidden_size", 128), ("vocab_size", 4_000_000), ("intermediate_size", 1 << 20)] {
        let folder = changed(|config| config[key] = json!(value));
        assert_names(load(folder.path()).map(|_| ()), "tensor");
    }
    let folder = changed(|config| config["num_hidden_layers"] = json!(1000));
    assert_names(load(folder.path()).map(|_| ()), "model.layers.3.");
}

#[test]
fn python_code_is_never_wanted() {
    let folder = changed(|config| config["model_file"] = json!("evil.py"));
    assert_names(inspect(folder.path()), "Python");
    let folder = changed(|config| config["model_type"] = json!("no_such_family"));
    assert_names(inspect(folder.path()), "no_such_family");
}

#[test]
fn a_truncated_weight_file_is_refused() {
    let folder = changed(|_| {});
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_names(inspect(folder.path()), "model.safetensors");
    }
}

#[test]
fn row_10_weights_that_compute_no_numbers_are_never_ready() {
    let folder = changed(|_| {});
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    // As floats of any size these are no numbers.
    bytes[8 + header..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    assert_names(load(folder.path()).map(|_| ()), "no finite numbers");
}

#[test]
fn a_damaged_tokenizer_is_refused() {
    let folder = changed(|_| {});
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "{").unwrap();
    assert_names(load(folder.path()).map(|_| ()), "tokenizer.json");
    std::fs::remove_file(&path).unwrap();
    assert_names(load(folder.path()).map(|_| ()), "tokenizer.json is missing");
}

#[test]
fn a_token_past_the_vocabulary_loads_and_is_refused_where_it_is_used() {
    let folder = changed(|_| {});
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for id in 260..300 {
        let mut token = added[0].clone();
        token["id"] = json!(id);
        token["content"] = json!(format!("<extra{id}>"));
        added.push(token);
    }
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let engine = load(folder.path()).unwrap();
    assert_eq!(engine.tokenize("<extra287>", false, true).unwrap(), [287]);
    assert_eq!(engine.tokenize("<extra288>", false, true).unwrap_err().kind, FailureKind::InvalidRequest);
}

/// A copy whose tokenizer has another part.
fn with_tokenizer(part: &str, value: Value) -> tempfile::TempDir {
    let folder = changed(|_| {});
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer[part] = value;
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    folder
}

#[test]
fn a_normaliser_that_blows_texts_up_is_refused() {
    let replace = json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"});
    assert_names(load(with_tokenizer("normalizer", replace).path()).map(|_| ()), "normalizer");
    let long = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(33)});
    assert_names(load(with_tokenizer("normalizer", long).path()).map(|_| ()), "normalizer");
    let good = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁".repeat(8)});
    assert!(load(with_tokenizer("normalizer", good).path()).is_ok());
}

#[test]
fn a_catastrophic_pattern_ends_in_time() {
    for pattern in ["(a+)+$", "(?=a)(a+)+\\1b", "(a|aa)+(?!a)b"] {
        let split = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        let folder = with_tokenizer("pre_tokenizer", split);
        let engine = load(folder.path()).unwrap();
        let started = std::time::Instant::now();
        let result = engine.tokenize(&"a".repeat(30_000), false, false);
        assert!(started.elapsed().as_secs() < 5, "{pattern}: {:?}", started.elapsed());
        assert!(result.is_ok() || result.is_err_and(|failure| failure.kind == FailureKind::InvalidRequest));
    }
}
