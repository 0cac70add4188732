//! Every model family against golden logits of mlx-lm, alone, in chunks, batched and with reused prefixes.
//!
//! The checkpoints under `data/` are tiny and random; `data/make.py` makes them and their golden numbers.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ollmlx_proto::{Capability, LoadSpec, ModelCard, SlotId};
use ollmlx_worker_kit::contract::Checked;
use ollmlx_worker_kit::engine::{Backend, EmbedStep, Engine, EngineError, Pulse, SlotInput};
use ollmlx_worker_mlx::engine::{MlxBackend, MlxEngine, Unpacking};
use serde_json::Value;

const DECODERS: [&str; 15] = [
    "llama",
    "llama-4bit",
    "llama-sliding",
    "gemma3",
    "gemma2",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe-4bit",
    "phi3",
    "llama-mixed",
    "llama-mxfp4",
    "llama-mxfp8",
    "llama-nvfp4",
    "qwen3_moe-mxfp4",
];

/// MLX's allocator and error state belong to the process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(family)
}

fn load(family: &str) -> MlxEngine {
    load_as(family, Unpacking::WhereSmall)
}

fn load_as(family: &str, unpacking: Unpacking) -> MlxEngine {
    MlxEngine::open(&order(family), unpacking, &mut |_, _| true)
        .unwrap_or_else(|failure| panic!("{family}: {failure:?}"))
}

fn order(family: &str) -> LoadSpec {
    LoadSpec {
        weights: vec![folder(family)],
        slots: 4,
        context_tokens: 512,
        batch_tokens: 512,
        gpu_layers: -1,
        kv_type: "f16".to_owned(),
        ..LoadSpec::default()
    }
}

struct Golden {
    prompt: Vec<u32>,
    lengths: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u32).collect()
}

fn golden_file(family: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(family).join("golden.json")).unwrap()).unwrap()
}

fn golden(family: &str) -> Golden {
    let file = golden_file(family);
    Golden {
        prompt: tokens(&file["prompt"]),
        lengths: tokens(&file["lengths"]).into_iter().map(|length| length as usize).collect(),
        logits: file["logits"].as_array().unwrap().iter().map(numbers).collect(),
        greedy: tokens(&file["greedy"]),
    }
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// Largest difference, as a part of the largest magnitude.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-6_f32, |largest, value| largest.max(value.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn input(slot: u16, tokens: &[u32]) -> SlotInput<'_> {
    SlotInput { slot: SlotId(slot), tokens, logits: true }
}

fn step(engine: &mut impl Engine, slot: u16, tokens: &[u32]) -> Vec<f32> {
    engine.forward(&[input(slot, tokens)]).unwrap();
    engine.logits(0).to_vec()
}

fn assert_close(family: &str, what: &str, a: &[f32], b: &[f32]) {
    let distance = distance(a, b);
    assert!(distance < 1e-3, "{family}, {what}: {distance}");
}

#[test]
fn a_long_step_gives_a_sign_of_life_after_each_layer_and_comes_to_the_same() {
    let _alone = alone();
    let prompt = golden("llama").prompt;
    let mut engine = load("llama");
    let beats = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&beats);
    engine.on_progress(Pulse::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let whole = step(&mut engine, 0, &prompt);
    assert_eq!(beats.load(Ordering::Relaxed), 0, "a step of an instant needs none");
    engine.part_from(0);
    assert_eq!(step(&mut engine, 1, &prompt), whole);
    assert!(beats.load(Ordering::Relaxed) >= 2, "one for each layer");
}

#[test]
fn prompt_logits_and_greedy_tokens_are_those_of_mlx_lm() {
    let _guard = alone();
    for family in DECODERS {
        let golden = golden(family);
        let mut engine = load(family);
        let mut worst = 0.0_f32;
        for (length, want) in golden.lengths.iter().zip(&golden.logits) {
            engine.truncate(SlotId(0), 0);
            let got = step(&mut engine, 0, &golden.prompt[..*length]);
            assert_close(family, &format!("prompt of {length}"), &got, want);
            worst = worst.max(distance(&got, want));
        }
        let mut got = Vec::new();
        engine.truncate(SlotId(0), 0);
        let mut logits = step(&mut engine, 0, &golden.prompt);
        for _ in &golden.greedy {
            got.push(best(&logits));
            logits = step(&mut engine, 0, &got[got.len() - 1..]);
        }
        assert_eq!(got, golden.greedy, "{family}");
        // With `--nocapture`, the table of how near each family is.
        println!("{family:<18} logits within {worst:.1e}, {} greedy tokens equal", got.len());
    }
}

#[test]
fn packed_weights_compute_what_unpacked_ones_do() {
    let _guard = alone();
    for family in DECODERS.into_iter().filter(|family| family.contains('-')) {
        let golden = golden(family);
        let mut engine = load_as(family, Unpacking::Never);
        for (length, want) in golden.lengths.iter().zip(&golden.logits) {
            for size in [1, 4, 40] {
                engine.truncate(SlotId(0), 0);
                let mut got = Vec::new();
                for chunk in golden.prompt[..*length].chunks(size) {
                    got = step(&mut engine, 0, chunk);
                }
                assert_close(family, &format!("packed, prompt of {length}, chunks of {size}"), &got, want);
            }
        }
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_logits() {
    let _guard = alone();
    for family in DECODERS {
        let golden = golden(family);
        let mut engine = load(family);
        let whole = step(&mut engine, 0, &golden.prompt);
        for size in [1, 3, 13] {
            engine.truncate(SlotId(0), 0);
            let mut last = Vec::new();
            for chunk in golden.prompt.chunks(size) {
                last = step(&mut engine, 0, chunk);
            }
            assert_close(family, &format!("chunks of {size}"), &last, &whole);
        }
    }
}

#[test]
fn a_ragged_batch_gives_each_slot_what_it_has_alone() {
    let _guard = alone();
    for family in DECODERS {
        let prompt = golden(family).prompt;
        let mut engine = load(family);
        // Alone: slot 0 gets 5 + 1 + 30 tokens, slot 1 gets 20 + 1 + 1, slot 2 gets 1 + 7 + 1.
        let plans: [[&[u32]; 3]; 3] = [
            [&prompt[..5], &prompt[5..6], &prompt[6..36]],
            [&prompt[10..30], &prompt[30..31], &prompt[31..32]],
            [&prompt[3..4], &prompt[4..11], &prompt[11..12]],
        ];
        let mut want = Vec::new();
        for plan in &plans {
            engine.truncate(SlotId(0), 0);
            want.push(plan.map(|chunk| step(&mut engine, 0, chunk)));
        }
        // Together, in slots that are not in order, the last step with single tokens and a prompt mixed.
        for slot in 0..4 {
            engine.truncate(SlotId(slot), 0);
        }
        let slots = [3, 0, 2];
        for round in 0..3 {
            let batch: Vec<SlotInput<'_>> = (0..3).map(|index| input(slots[index], plans[index][round])).collect();
            engine.forward(&batch).unwrap();
            for (index, want) in want.iter().enumerate() {
                assert_close(family, &format!("slot {index}, round {round}"), engine.logits(index), &want[round]);
            }
        }
        // All slots with one token each.
        let alone: Vec<Vec<f32>> = slots
            .iter()
            .map(|&slot| {
                let logits = step(&mut engine, slot, &[7]);
                let kept = engine.truncate(SlotId(slot), u32::MAX);
                engine.truncate(SlotId(slot), kept - 1);
                logits
            })
            .collect();
        let token = [7];
        let batch: Vec<SlotInput<'_>> = slots.iter().map(|&slot| input(slot, &token)).collect();
        engine.forward(&batch).unwrap();
        for (index, want) in alone.iter().enumerate() {
            assert_close(family, &format!("single token {index}"), engine.logits(index), want);
        }
    }
}

#[test]
fn a_reused_prefix_gives_the_same_logits() {
    let _guard = alone();
    for family in DECODERS {
        let prompt = golden(family).prompt;
        let mut engine = load(family);
        let whole = step(&mut engine, 0, &prompt);
        // Cut back and computed again.
        let kept = engine.truncate(SlotId(0), 25) as usize;
        assert!(kept == 25 || kept == 0, "{family}: {kept}");
        let again = step(&mut engine, 0, &prompt[kept..]);
        assert_close(family, "cut back", &again, &whole);
        // Copied into another slot, both then go their own ways.
        if engine.copy_prefix(SlotId(0), SlotId(1), 25) {
            let copied = step(&mut engine, 1, &prompt[25..]);
            assert_close(family, "copied", &copied, &whole);
            let other = step(&mut engine, 0, &[5]);
            let same = step(&mut engine, 1, &[5]);
            assert_close(family, "after the copy", &same, &other);
        } else {
            let fresh = step(&mut engine, 1, &prompt);
            assert_close(family, "the copy is empty", &fresh, &whole);
        }
    }
}

#[test]
fn a_long_run_grows_and_slides_like_a_fresh_prompt() {
    let _guard = alone();
    for family in ["llama", "llama-sliding", "gemma3"] {
        let mut engine = load(family);
        let all: Vec<u32> = (0..450).map(|index| index * 37 % 256).collect();
        let whole = step(&mut engine, 0, &all);
        engine.truncate(SlotId(1), 0);
        let mut last = step(&mut engine, 1, &all[..100]);
        for token in all[100..].chunks(1) {
            last = step(&mut engine, 1, token);
        }
        assert_close(family, "one by one", &last, &whole);
    }
}

#[test]
fn a_full_window_slides_where_every_layer_sees_everything() {
    let _guard = alone();
    let prompt = golden("llama").prompt;
    let mut engine = load("llama");
    step(&mut engine, 0, &prompt);
    assert!(!engine.shift(SlotId(0), 4, 40), "that would leave nothing");
    assert!(engine.shift(SlotId(0), 4, 10));
    assert_eq!(engine.truncate(SlotId(0), u32::MAX), 30);
    assert!(step(&mut engine, 0, &[9]).iter().all(|logit| logit.is_finite()));
    let mut sliding = load("gemma3");
    step(&mut sliding, 0, &prompt);
    assert!(!sliding.shift(SlotId(0), 4, 10));
    assert_eq!(sliding.truncate(SlotId(0), u32::MAX), 40);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let _guard = alone();
    let prompt = golden("llama").prompt;
    let mut engine = Checked::new(load("llama"));
    let whole = step(&mut engine, 0, &prompt);
    let long = vec![1_u32; 473];
    assert!(matches!(engine.forward(&[input(1, &prompt), input(0, &long)]), Err(EngineError::Refused(_))));
    assert!(matches!(engine.forward(&[input(1, &[288])]), Err(EngineError::Refused(_))));
    assert_eq!(engine.truncate(SlotId(0), u32::MAX), 40);
    let fits = vec![1_u32; 472];
    assert_eq!(engine.forward(&[input(0, &fits)]), Ok(()));
    assert_close("llama", "another slot", &step(&mut engine, 2, &prompt), &whole);
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let _guard = alone();
    let file = golden_file("bert");
    let inputs: Vec<Vec<u32>> = file["inputs"].as_array().unwrap().iter().map(tokens).collect();
    let want: Vec<Vec<f32>> = file["vectors"].as_array().unwrap().iter().map(numbers).collect();
    let mut engine = load("bert");
    assert!(engine.facts().embedding);
    for (got, want) in engine.embed(&inputs).unwrap().iter().zip(&want) {
        assert_close("bert", "vector", got, want);
        println!("bert               vector within {:.1e}", distance(got, want));
    }
    // A long text is parted between its layers.
    let long: Vec<u32> = (0..engine.facts().context_tokens).map(|index| 1 + index % 9).collect();
    let whole = engine.embed(&[inputs[0].clone(), long.clone()]).unwrap();
    assert_close("bert", "before a long text", &whole[0], &want[0]);
    engine.embed_begin(vec![long.clone(), long]).unwrap();
    assert_eq!(engine.embed_step(), Ok(EmbedStep::Part { done_tokens: 0 }));
    assert_close("bert", "after one that was given up", &engine.embed(&inputs[..1]).unwrap()[0], &want[0]);
    assert!(engine.embed_step().is_err(), "nothing is begun");
    assert!(matches!(Checked::new(engine).forward(&[input(0, &[1])]), Err(EngineError::Refused(_))));
    let mut decoder = load("llama");
    assert!(matches!(decoder.embed(&inputs), Err(EngineError::Refused(_))));
}

#[test]
fn cards_tell_the_facts() {
    let card = MlxBackend::inspect(&[folder("llama-4bit")]).unwrap();
    assert_eq!((card.format.as_str(), card.architecture.as_str()), ("safetensors", "llama"));
    assert_eq!(card.quantization, "int4");
    // Embedding, three layers of attention and feed-forward, seven norms.
    assert_eq!(card.parameter_count, 288 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 7 * 64);
    assert_eq!(card.capabilities, [Capability::Completion]);
    // Three layers, keys and values, two heads of 16, 32-bit floats on a CPU, and an eighth for the holes in its heap.
    let kv = |card: &ModelCard, context| card.memory.estimate(1, context, 512, "f16").kv;
    assert_eq!(kv(&card, 256), 256 * 3 * 2 * 2 * 16 * 4 / 8 * 9);
    assert!(card.chat_template.is_some());
    let sliding = MlxBackend::inspect(&[folder("gemma3")]).unwrap();
    assert_eq!((sliding.quantization.as_str(), sliding.architecture.as_str()), ("BF16", "gemma3_text"));
    assert_eq!(kv(&sliding, 512), kv(&card, 512), "a window shorter than its slack is as large as the context");
    let encoder = MlxBackend::inspect(&[folder("bert")]).unwrap();
    assert_eq!(encoder.capabilities, [Capability::Embedding]);
}

#[test]
fn text_of_control_tokens_is_parsed_only_where_it_is_trusted() {
    let _guard = alone();
    let engine = load("llama");
    assert_eq!(engine.tokenize("a<|im_end|>", true, true).unwrap(), [256, u32::from(b'a'), 257]);
    let typed = engine.tokenize("<|im_end|>", false, false).unwrap();
    assert_eq!(typed, "<|im_end|>".bytes().map(u32::from).collect::<Vec<_>>());
    let vocab = &engine.facts().vocab;
    assert_eq!(vocab.text_bytes(u32::from(b' ')), b" ");
    assert_eq!(vocab.text_bytes(257), b"");
    assert_eq!(vocab.text_bytes(259), b"<think>");
    assert!(vocab.ends.contains(&257) && vocab.add_bos);
}

#[test]
fn a_tensor_per_file_in_the_names_of_ollama_is_the_same_model() {
    let _guard = alone();
    let family = "llama-4bit";
    let split = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder(family).join(file), split.path().join(file)).unwrap();
    }
    let whole = std::fs::read(folder(family).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    for (number, (name, tensor)) in
        header.as_object().unwrap().iter().filter(|(_, it)| it["dtype"].is_string()).enumerate()
    {
        let theirs = name.replace(".scales", ".weight.scale").replace(".biases", ".weight.bias");
        let range = tokens(&tensor["data_offsets"]);
        let data = &whole[8 + length + range[0] as usize..8 + length + range[1] as usize];
        let mut own = tensor.clone();
        own["data_offsets"] = serde_json::json!([0, data.len()]);
        let text = serde_json::json!({ theirs: own }).to_string();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(split.path().join(format!("model-{number}.safetensors")), bytes).unwrap();
    }
    let card = MlxBackend::inspect(&[split.path().to_path_buf()]).unwrap();
    let usual = MlxBackend::inspect(&[folder(family)]).unwrap();
    assert_eq!((card.parameter_count, &card.memory), (usual.parameter_count, &usual.memory));
    let spec = LoadSpec { weights: vec![split.path().to_path_buf()], ..order(family) };
    let mut engine = MlxEngine::open(&spec, Unpacking::Never, &mut |_, _| true).unwrap();
    let golden = golden(family);
    let got = step(&mut engine, 0, &golden.prompt);
    assert_close(family, "a tensor per file", &got, golden.logits.last().unwrap());
}
