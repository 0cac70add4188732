//! Every key of small models of several kinds is set to every hostile value, and the file is loaded as a worker does it, up to
//! a first token: it is refused, or it loads. Neither may end the process, so a second process does the loading.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ollmlx_proto::{FailureKind, LoadSpec};

use crate::gguf::keys;
use crate::gguf::testing::{
    Writer, text, tiny_encoder, tiny_experts, tiny_llama, tiny_sections, tiny_states, tiny_windows,
};

/// The folder whose files the second process is to load.
const FOLDER: &str = "OLLMLX_TEST_MUTATIONS";
/// The first of them.
const FIRST: &str = "OLLMLX_TEST_MUTATIONS_FIRST";
/// Files that one process loads: a model is never freed.
const LOADS_PER_PROCESS: usize = 200;
/// Deaths that the test's own words tell.
const DEATHS_TOLD_MAX: usize = 20;

/// A value as it stands in a file: the number of its type, and its bytes.
type Raw = (u32, Vec<u8>);

fn array(kind: u32, len: usize, items: &[u8]) -> Raw {
    (9, [&kind.to_le_bytes()[..], &(len as u64).to_le_bytes(), items].concat())
}

/// Wrong types, and what counts wrap at.
fn few_values() -> Vec<Raw> {
    let unsigned = [0, 1, i32::MAX as u32, 1 << 31, u32::MAX].map(|number: u32| (4, number.to_le_bytes().to_vec()));
    let mut values = unsigned.to_vec();
    values.push((5, (-1_i32).to_le_bytes().to_vec()));
    values.extend([1.0, -1.0, f32::NAN].map(|number: f32| (6, number.to_le_bytes().to_vec())));
    values.push((7, vec![1]));
    values.push((8, text(b"x")));
    values.extend([0, 1, 513].map(|len| array(4, len, &1_u32.to_le_bytes().repeat(len))));
    values
}

/// The same and more: neighbours of limits, and arrays of each type and length.
fn many_values() -> Vec<Raw> {
    let mut values = few_values();
    values.extend([2, 3, 5, 7, 511, 513, 1025, 65_535].map(|number: u32| (4, number.to_le_bytes().to_vec())));
    values.extend([0, 1, i32::MIN].map(|number: i32| (5, number.to_le_bytes().to_vec())));
    values.extend([0.0, f32::MAX, f32::INFINITY].map(|number: f32| (6, number.to_le_bytes().to_vec())));
    values.push((2, 1_u16.to_le_bytes().to_vec()));
    values.push((10, u64::MAX.to_le_bytes().to_vec()));
    values.push((12, f64::NAN.to_le_bytes().to_vec()));
    values.extend(["", "yarn", "none"].map(|word| (8, text(word.as_bytes()))));
    for (kind, item) in [(4, 0), (4, u32::MAX), (5, u32::MAX), (6, f32::NAN.to_bits())] {
        values.extend([0, 1, 2, 4, 513, 100_000].map(|len| array(kind, len, &item.to_le_bytes().repeat(len))));
    }
    values.push(array(4, 2, &[1_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat()));
    values.push(array(7, 2, &[1, 0]));
    values.push(array(8, 1, &text(b"x")));
    values.push(array(8, 0, &[]));
    values
}

/// One change of a model: a key, and its value or none.
struct Change {
    key: String,
    value: Option<Raw>,
}

fn changes(sound: &Writer, architecture: &str) -> Vec<Change> {
    let there = sound.keys();
    let mut others = keys::all(architecture);
    let roles = ["bos", "eos", "eot", "unknown", "seperator", "padding", "mask", "fim_pre"];
    others.extend(roles.map(|role| format!("tokenizer.ggml.{role}_token_id")));
    others.extend(["merges", "suppress_tokens", "precompiled_charsmap"].map(|list| format!("tokenizer.ggml.{list}")));
    others.retain(|key| !there.contains(key));
    let of = |keys: Vec<String>, values: Vec<Raw>| -> Vec<Change> {
        let change = |key: &String, value| Change { key: key.clone(), value };
        keys.iter().flat_map(|key| values.iter().map(move |value| change(key, Some(value.clone())))).collect()
    };
    let mut changes: Vec<Change> = there.iter().map(|key| Change { key: key.clone(), value: None }).collect();
    changes.extend(of(there, many_values()));
    changes.extend(of(others, few_values()));
    for model in ["llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "whitespace", "hybriddna", "test", "none"]
    {
        let value = Some((8, text(model.as_bytes())));
        changes.push(Change { key: "tokenizer.ggml.model".to_owned(), value });
    }
    changes
}

#[test]
fn every_value_of_every_key_is_refused_or_loads() {
    if std::env::var_os(FOLDER).is_some() {
        return load_all();
    }
    let (mut deaths, mut tried, mut loaded) = (Vec::new(), 0, 0);
    for (name, sound, architecture) in [
        ("llama", tiny_llama(), "llama"),
        ("experts", tiny_experts(), "llama"),
        ("windows", tiny_windows(), "gemma3"),
        ("sections", tiny_sections(), "qwen2vl"),
        ("states", tiny_states(), "mamba2"),
        ("encoder", tiny_encoder(), "bert"),
    ] {
        let mut batch = Batch::new();
        batch.add(format!("{name} as it is"), &sound);
        assert_eq!(batch.names.len(), 1, "{name} is sound");
        for Change { key, value } in changes(&sound, architecture) {
            let (changed, shown) = match value {
                None => (sound.clone().without(&key), "nothing".to_owned()),
                Some((kind, bytes)) => {
                    (sound.clone().raw(&key, kind, &bytes), format!("{kind}:{:02x?}", &bytes[..bytes.len().min(16)]))
                }
            };
            tried += 1;
            batch.add(format!("{name} with {key} = {shown}"), &changed);
            if batch.names.len() == LOADS_PER_PROCESS {
                loaded += batch.names.len();
                deaths.extend(std::mem::replace(&mut batch, Batch::new()).deaths());
            }
        }
        loaded += batch.names.len();
        deaths.extend(batch.deaths());
    }
    let told = deaths.iter().take(DEATHS_TOLD_MAX).fold(String::new(), |mut told, death| {
        let _ = writeln!(told, "  {death}");
        told
    });
    println!("{tried} files, {loaded} of them given to llama.cpp");
    assert!(deaths.is_empty(), "{} files ended the process that loaded them:\n{told}", deaths.len());
    assert!(tried > 10_000 && loaded > 2_000, "{loaded} of {tried}");
}

/// Files that have passed the check, to be loaded by one process.
struct Batch {
    folder: tempfile::TempDir,
    names: Vec<String>,
}

impl Batch {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), names: Vec::new() }
    }

    /// Takes a file, if an inspector would.
    fn add(&mut self, name: String, writer: &Writer) {
        let path = file(self.folder.path(), self.names.len());
        std::fs::write(&path, writer.bytes()).unwrap();
        match crate::card::inspect(std::slice::from_ref(&path)) {
            Ok(_) => self.names.push(name),
            Err(failure) => {
                std::fs::remove_file(&path).unwrap();
                assert_eq!(failure.kind, FailureKind::ModelInvalid, "{name}");
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                assert!(failure.public.starts_with(&format!("model file {file}: ")), "{name}: {failure}");
            }
        }
    }

    /// Those that ended the process, with its last words. It is started anew behind each.
    fn deaths(self) -> Vec<String> {
        let (mut deaths, mut first) = (Vec::new(), 0);
        while first < self.names.len() {
            let (reached, words) = load_from(self.folder.path(), first);
            deaths.extend(self.names.get(reached).map(|name| format!("{name}: {words}")));
            first = reached + 1;
        }
        deaths
    }
}

fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.gguf"))
}

/// The file at which a process ends, and its last words.
fn load_from(folder: &Path, first: usize) -> (usize, String) {
    let test = "engine::mutations::every_value_of_every_key_is_refused_or_loads";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .env("GGML_NO_BACKTRACE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = child.stderr.take().unwrap();
    let words = std::thread::spawn(move || {
        let lines = BufReader::new(errors).lines().map_while(Result::ok);
        lines.filter(|line| !line.trim().is_empty()).last().unwrap_or_default()
    });
    let mut reached = first;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The first one stands behind the harness's own words.
        if let Some((_, number)) = line.split_once("loaded or refused ") {
            reached = number.parse::<usize>().unwrap() + 1;
        }
    }
    let status = child.wait().unwrap();
    (reached, format!("{status}: {}", words.join().unwrap()))
}

/// The second process: each file up to a first token.
fn load_all() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let first: usize = std::env::var(FIRST).unwrap().parse().unwrap();
    crate::ffi::log::tell_crashes();
    for number in first.. {
        let path = file(&folder, number);
        if !path.exists() {
            return;
        }
        let spec = LoadSpec {
            weights: vec![path],
            slots: 2,
            context_tokens: 512,
            batch_tokens: 64,
            threads: 1,
            kv_type: "f16".to_owned(),
            ..LoadSpec::default()
        };
        if let Err(failure) = super::load(&spec, &mut |_, _| true) {
            assert!(!failure.public.contains(".cpp:"), "{failure}");
        }
        println!("loaded or refused {number}");
    }
}
