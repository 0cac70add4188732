//! The engine against a tiny model with random weights: what the contract says of slots, whatever the layout.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ollmlx_proto::{FailureKind, FlashAttention, LoadSpec, SlotId};
use ollmlx_worker_kit::contract::{CellType, Checked};
use ollmlx_worker_kit::engine::{EmbedStep, Engine, EngineError, Pulse, SlotInput};
use ollmlx_worker_kit::vocab::TokenKind;

use super::GgufEngine;
use super::embed::{Embedder, Whole};
use super::load::{load, load_as};
use crate::ffi::batch::{Batch, Place};
use crate::ffi::context::{Context, Outputs, Pooling, Settings};
use crate::gguf::testing::{Writer, tiny_encoder, tiny_experts, tiny_llama, tiny_sections, tiny_states, tiny_windows};
use crate::memory::Layout;

const LAYOUTS: [Layout; 2] = [Layout::Shared, Layout::Streams];

fn spec(writer: &Writer) -> (LoadSpec, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    let spec = LoadSpec {
        weights: vec![path],
        slots: 4,
        context_tokens: 128,
        batch_tokens: 64,
        threads: 1,
        kv_type: "f16".into(),
        ..LoadSpec::default()
    };
    (spec, folder)
}

fn engine(layout: Layout) -> GgufEngine {
    let (spec, _folder) = spec(&tiny_llama());
    load_as(&spec, &mut |_, _| true, Some(layout)).unwrap()
}

fn forward(engine: &mut GgufEngine, slot: u16, tokens: &[u32]) -> Vec<f32> {
    engine.forward(&[SlotInput { slot: SlotId(slot), tokens, logits: true }]).unwrap();
    engine.logits(0).to_vec()
}

#[track_caller]
fn assert_close(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    let largest = left.iter().map(|it| it.abs()).fold(1.0, f32::max);
    let error = left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
    // The cache has 16 bits.
    assert!(error < 0.01 * largest, "{error} of {largest}");
}

fn differ(left: &[f32], right: &[f32]) -> bool {
    left.iter().zip(right).any(|(left, right)| (left - right).abs() > 0.1)
}

#[test]
fn vocabulary_is_read() {
    let engine = engine(Layout::Shared);
    let vocab = &engine.facts().vocab;
    assert_eq!(vocab.len(), 267);
    assert_eq!((vocab.bos, vocab.eos), (Some(1), Some(2)));
    assert!(vocab.add_bos && vocab.add_space_prefix);
    assert!(vocab.ends.contains(&2) && vocab.ends.contains(&3), "{:?}", vocab.ends);
    assert_eq!(vocab.kinds[1], TokenKind::Control);
    assert_eq!(vocab.spelling(1), b"<s>");
    assert_eq!(vocab.text_bytes(1), b"");
    assert_eq!(vocab.text_bytes(4 + 0x0a), b"\n");
    assert_eq!(vocab.text_bytes(261), b" hello");
    assert_eq!(engine.facts().chat.jinja.as_deref(), Some("{{ messages }}"));
    assert_eq!(engine.facts().chat.architecture, "llama");
    let tokens = engine.tokenize("hello</s>", true, true).unwrap();
    assert_eq!(tokens.first(), Some(&1));
    assert_eq!(tokens.last(), Some(&2));
    assert_ne!(engine.tokenize("hello</s>", true, false).unwrap().last(), Some(&2));
}

#[test]
fn ragged_batches_equal_single_ones() {
    for layout in LAYOUTS {
        let mut engine = engine(layout);
        let (long, short, one): (Vec<u32>, Vec<u32>, Vec<u32>) = ((4..40).collect(), vec![1, 7, 9], vec![30]);
        let alone = [forward(&mut engine, 0, &long), forward(&mut engine, 1, &short), forward(&mut engine, 3, &one)];
        (0..4).for_each(|slot| assert_eq!(engine.truncate(SlotId(slot), 0), 0));
        let input = |slot, tokens, logits| SlotInput { slot: SlotId(slot), tokens, logits };
        engine.forward(&[input(3, &one, true), input(0, &long, true), input(1, &short, true)]).unwrap();
        for (index, expected) in [(1, 0), (2, 1), (0, 2)] {
            assert_close(engine.logits(index), &alone[expected]);
        }
    }
}

#[test]
fn truncated_slot_goes_on_as_if_it_never_saw_the_rest() {
    for layout in LAYOUTS {
        let mut engine = engine(layout);
        forward(&mut engine, 0, &[1, 20, 21]);
        let expected = forward(&mut engine, 0, &[22]);
        forward(&mut engine, 1, &[1, 20, 21, 90, 91, 92]);
        assert_eq!(engine.truncate(SlotId(1), 3), 3);
        assert_close(&forward(&mut engine, 1, &[22]), &expected);
        assert_eq!(engine.truncate(SlotId(1), 99), 4, "more than there is");
        assert_eq!(engine.truncate(SlotId(1), 0), 0);
        assert_eq!(engine.truncate(SlotId(77), 5), 0, "no such slot");
    }
}

#[test]
fn copied_prefix_is_independent() {
    for layout in LAYOUTS {
        let mut engine = engine(layout);
        forward(&mut engine, 0, &[1, 20, 21]);
        let expected = forward(&mut engine, 0, &[22]);
        forward(&mut engine, 0, &[50, 51]);
        forward(&mut engine, 2, &[60, 61]);
        assert!(engine.copy_prefix(SlotId(0), SlotId(2), 3));
        engine.truncate(SlotId(0), 0);
        forward(&mut engine, 0, &[99, 98, 97]);
        assert_close(&forward(&mut engine, 2, &[22]), &expected);
        assert!(!engine.copy_prefix(SlotId(0), SlotId(1), 4), "more than there is");
        assert_eq!(engine.truncate(SlotId(1), 9), 0, "the target is empty then");
    }
}

#[test]
fn shifted_slot_goes_on_from_the_new_positions() {
    for layout in LAYOUTS {
        let mut engine = engine(layout);
        forward(&mut engine, 0, &(1..61).collect::<Vec<_>>());
        forward(&mut engine, 0, &(61..100).collect::<Vec<_>>());
        assert!(engine.shift(SlotId(0), 1, 50));
        assert_eq!(engine.truncate(SlotId(0), 200), 49);
        let after = forward(&mut engine, 0, &[5]);
        assert!(after.iter().all(|logit| logit.is_finite()));
        assert!(!engine.shift(SlotId(0), 40, 40), "not so many tokens");
    }
}

#[test]
fn shared_cells_are_never_shifted() {
    let mut engine = engine(Layout::Shared);
    forward(&mut engine, 0, &(1..60).collect::<Vec<_>>());
    assert!(engine.copy_prefix(SlotId(0), SlotId(1), 40));
    assert!(!engine.shift(SlotId(0), 1, 20), "the other slot's positions would move too");
    assert!(!engine.shift(SlotId(1), 1, 20));
    engine.truncate(SlotId(1), 0);
    assert!(engine.shift(SlotId(0), 1, 20), "nobody shares any more");
}

#[test]
fn impossible_batches_fail_before_llama_cpp_sees_them() {
    let mut engine = Checked::new(engine(Layout::Streams));
    let input = |slot, tokens| SlotInput { slot: SlotId(slot), tokens, logits: true };
    let many: Vec<u32> = vec![5; 65];
    let batches: [&[SlotInput<'_>]; 6] = [
        &[input(0, &[267])],
        &[input(0, &[u32::MAX])],
        &[input(4, &[5])],
        &[input(0, &[])],
        &[input(0, &[5]), input(0, &[6])],
        &[input(0, &many)],
    ];
    for batch in batches {
        assert!(matches!(engine.forward(batch), Err(EngineError::Refused(_))), "{batch:?}");
    }
    for _ in 0..2 {
        engine.forward(&[input(0, &many[..64])]).unwrap();
    }
    assert!(matches!(engine.forward(&[input(0, &[5])]), Err(EngineError::Refused(_))), "the window is full");
    assert_eq!(engine.truncate(SlotId(0), 999), 128, "nothing was lost");
}

#[test]
fn generative_model_embeds() {
    let mut engine = engine(Layout::Streams);
    let inputs = [vec![1, 20, 21], vec![1, 90], (1..100).collect()];
    let together = engine.embed(&inputs).unwrap();
    assert!(together.iter().all(|vector| vector.len() == 32));
    assert!(differ(&together[0], &together[1]));
    for (input, vector) in inputs.iter().zip(&together) {
        assert_close(&engine.embed(std::slice::from_ref(input)).unwrap()[0], vector);
    }
    let mut engine = Checked::new(engine);
    assert!(engine.embed(&[vec![]]).is_err());
    assert!(engine.embed(&[vec![1; 129]]).is_err());
    assert!(engine.embed(&[vec![9999]]).is_err());
    engine.forward(&[SlotInput { slot: SlotId(0), tokens: &[1], logits: true }]).unwrap();
}

/// The vector of an input that is computed in one piece, in a context of its own.
fn in_one_piece(engine: &GgufEngine, pooling: Pooling, input: &[u32]) -> Vec<f32> {
    let settings = Settings {
        cells: 512,
        layout: Layout::Shared,
        cell_type: CellType::F16,
        flash_attention: FlashAttention::Auto,
        batch_tokens: 512,
        micro_batch_tokens: 512,
        sequences: 1,
        threads: 1,
        outputs: Outputs::Vectors(pooling),
    };
    let mut context = Context::open(engine.model, &settings).unwrap();
    let mut batch = Batch::default();
    for (position, &token) in (0..).zip(input) {
        batch.add(Place { token, position, sequence: 0, output: true });
    }
    context.decode(&mut batch).unwrap();
    context.vector(0).unwrap().to_vec()
}

#[test]
fn an_input_computed_in_parts_has_the_vector_of_the_whole() {
    let inputs: [Vec<u32>; 5] = [
        (0..500).map(|index| 4 + index * 7 % 260).collect(),
        vec![1, 20, 21],
        vec![9],
        (0..129).map(|index| 4 + index * 3 % 260).collect(),
        (0..128).map(|index| 4 + index * 5 % 260).collect(),
    ];
    let kinds = [(None, Pooling::Last), (Some(1), Pooling::Mean), (Some(2), Pooling::First), (Some(3), Pooling::Last)];
    for (stated, pooling) in kinds {
        let writer = stated.map_or(tiny_llama(), |stated| tiny_llama().number("llama.pooling_type", stated));
        let (spec, _folder) = spec(&writer);
        let spec = LoadSpec { context_tokens: 512, batch_tokens: 512, ..spec };
        let mut engine = load(&spec, &mut |_, _| true).unwrap();
        assert_eq!(engine.facts().embedding, stated.is_some());
        engine.embed_begin(inputs.to_vec()).unwrap();
        let (mut parts, mut done) = (0, 0);
        let vectors = loop {
            match engine.embed_step().unwrap() {
                EmbedStep::Vectors(vectors) => break vectors,
                EmbedStep::Part { done_tokens } => {
                    assert!(done_tokens > done, "{pooling:?}");
                    (parts, done) = (parts + 1, done_tokens);
                }
            }
        };
        let parts_min = if pooling == Pooling::First { 4 } else { 5 };
        assert!(parts >= parts_min, "{pooling:?}: {parts} parts");
        for (input, vector) in inputs.iter().zip(&vectors) {
            assert_close(vector, &in_one_piece(&engine, pooling, input));
        }
        assert!(engine.embed_step().is_err(), "nothing is begun any more");
    }
}

#[test]
fn embeddings_that_are_given_up_leave_no_trace() {
    let mut engine = engine(Layout::Streams);
    let expected = forward(&mut engine, 0, &[1, 20, 21]);
    let alone = engine.embed(&[vec![1, 90]]).unwrap();
    engine.embed_begin(vec![(1..100).collect()]).unwrap();
    assert!(matches!(engine.embed_step(), Ok(EmbedStep::Part { .. })));
    assert_close(&engine.embed(&[vec![1, 90]]).unwrap()[0], &alone[0]);
    engine.embed_begin(vec![(1..100).collect()]).unwrap();
    assert!(matches!(engine.embed_step(), Ok(EmbedStep::Part { .. })));
    engine.truncate(SlotId(0), 0);
    assert_close(&forward(&mut engine, 0, &[1, 20, 21]), &expected);
}

#[test]
fn every_context_gives_signs_of_life_while_it_computes() {
    let beats = Arc::new(AtomicU32::new(0));
    let pulse = || {
        let beats = Arc::clone(&beats);
        Pulse::new(move || {
            beats.fetch_add(1, Ordering::Relaxed);
        })
    };
    let mut generator = engine(Layout::Shared);
    generator.on_progress(pulse());
    assert_eq!(beats.swap(0, Ordering::Relaxed), 0);
    forward(&mut generator, 0, &[1, 5, 6, 7]);
    assert!(beats.swap(0, Ordering::Relaxed) > 1, "a pass over two layers is more than one sign");
    generator.embed(&[vec![1, 5, 6]]).unwrap();
    assert!(beats.swap(0, Ordering::Relaxed) > 1);

    let whole = Whole::open(generator.model, (64, 1), FlashAttention::Auto, Pooling::Mean).unwrap();
    generator.embedder = Embedder::Whole(whole);
    generator.on_progress(pulse());
    generator.embed(&[vec![1, 5, 6]]).unwrap();
    assert!(beats.swap(0, Ordering::Relaxed) > 1);
}

#[test]
fn a_generative_model_that_looks_both_ways_refuses_to_embed() {
    let (spec, _folder) = spec(&tiny_llama().flag("llama.attention.causal", false));
    let mut engine = load(&spec, &mut |_, _| true).unwrap();
    assert!(matches!(engine.embed(&[vec![1, 5]]), Err(EngineError::Refused(_))));
}

#[test]
fn embedding_model_only_embeds() {
    let (mut spec, _folder) = spec(&tiny_llama().number("llama.pooling_type", 3));
    spec.embedding = true;
    let mut engine = Checked::new(load(&spec, &mut |_, _| true).unwrap());
    assert!(engine.facts().embedding);
    assert_eq!(engine.memory().kv, 256 * 2 * 2 * 16 * 2, "one window of 128, rounded up, whatever the slots");
    assert_eq!(engine.embed(&[vec![1, 5], vec![7]]).unwrap().len(), 2);
    let input = SlotInput { slot: SlotId(0), tokens: &[1], logits: true };
    assert!(matches!(engine.forward(&[input]), Err(EngineError::Refused(_))));
}

/// llama.cpp aborts on a batch larger than it was made for, which a small window makes small.
#[test]
fn inputs_that_share_a_small_window_are_computed_one_after_the_other() {
    for window in [8, 64] {
        let (spec, _folder) = spec(&tiny_llama().number("llama.pooling_type", 3));
        let mut engine = load(&LoadSpec { embedding: true, context_tokens: window, ..spec }, &mut |_, _| true).unwrap();
        let inputs: Vec<Vec<u32>> =
            (0..6).map(|first| (0..window * 2 / 3).map(|index| 4 + first + index).collect()).collect();
        let together = engine.embed(&inputs).unwrap();
        for (input, vector) in inputs.iter().zip(&together) {
            assert_close(&engine.embed(std::slice::from_ref(input)).unwrap()[0], vector);
        }
        assert_eq!(engine.embed(&vec![vec![9]; 20]).unwrap().len(), 20);
    }
}

#[test]
fn facts_and_memory_are_those_of_the_order() {
    let (mut spec, _folder) = spec(&tiny_llama());
    spec.context_tokens = 9999;
    spec.kv_type = "q8_0".into();
    let mut reports = Vec::new();
    let failure = load(&spec, &mut |done, total| {
        reports.push((done, total));
        true
    });
    // Heads of 16 elements make no blocks of 32: llama.cpp's own refusal reaches the client.
    let failure = failure.unwrap_err();
    assert!(failure.public.contains("llama.cpp refuses"), "{failure}");
    spec.kv_type = "f16".into();
    let engine = load(&spec, &mut |_, _| true).unwrap();
    assert_eq!(engine.facts().context_tokens, 512, "what the model was trained for");
    assert_eq!(engine.memory().kv, 4 * 512 * 2 * 2 * 16 * 2, "slots, window, layers, keys and values, width, bytes");
    assert_eq!(engine.memory().weights, 142_720);
    assert!(reports.iter().all(|(done, total)| done <= total && *total == 142_720), "{reports:?}");
}

#[test]
fn attention_is_computed_as_ordered_and_comes_to_the_same() {
    let (spec, _folder) = spec(&tiny_llama());
    let prompt: Vec<u32> = (4..60).collect();
    let answer = |flash_attention, kv_type: &str| {
        let spec = LoadSpec { flash_attention, kv_type: kv_type.to_owned(), ..spec.clone() };
        let mut engine = load(&spec, &mut |_, _| true).unwrap();
        (forward(&mut engine, 0, &prompt), engine.memory())
    };
    let (auto, with) = answer(FlashAttention::Auto, "f16");
    let (on, with_too) = answer(FlashAttention::On, "f16");
    let (off, without) = answer(FlashAttention::Off, "f16");
    assert_eq!(auto, on, "this engine fuses where it can");
    assert_close(&off, &on);
    assert_ne!(off, on, "sums are in another order");
    assert_eq!(with, with_too);
    assert!(without.compute > with.compute && without.kv == with.kv, "{without:?} {with:?}");
    // Heads of 16 elements make no blocks of 32, so that this load would fail if the type were kept.
    let (quantised, report) = answer(FlashAttention::Off, "q8_0");
    assert_eq!((quantised, report), (off, without), "the cache stays f16");
}

#[test]
fn failed_loads_say_why() {
    let (mut spec, _folder) = spec(&tiny_llama());
    let aborted = load(&spec, &mut |_, _| false);
    assert_eq!(aborted.unwrap_err().kind, FailureKind::Cancelled);
    spec.kv_type = "q9".into();
    assert!(load(&spec, &mut |_, _| true).unwrap_err().public.contains("q9"));
    spec.kv_type = "f16".into();
    spec.adapters = vec![PathBuf::from("a"), PathBuf::from("b")];
    assert_eq!(load(&spec, &mut |_, _| true).unwrap_err().kind, FailureKind::Unsupported);
    spec.adapters = spec.weights.clone();
    assert!(load(&spec, &mut |_, _| true).unwrap_err().public.contains("adapter"));
    spec.weights = vec![PathBuf::from("/nonexistent/model.gguf")];
    let missing = load(&spec, &mut |_, _| true).unwrap_err();
    assert_eq!(missing.kind, FailureKind::ModelInvalid);
    assert!(missing.public.starts_with("model file model.gguf: can't be opened"), "{missing}");
}

#[test]
fn row_10_weights_that_compute_no_numbers_are_never_ready() {
    let (spec, _folder) = spec(&tiny_llama());
    let mut bytes = std::fs::read(&spec.weights[0]).unwrap();
    let norm = 1_f32.to_le_bytes().repeat(32);
    let at = bytes.windows(norm.len()).rposition(|window| window == norm).expect("a norm");
    bytes[at..at + norm.len()].copy_from_slice(&f32::NAN.to_le_bytes().repeat(32));
    std::fs::write(&spec.weights[0], bytes).unwrap();
    let failure = load(&spec, &mut |_, _| true).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ModelInvalid);
    assert!(failure.public.contains("NaN"), "{failure}");
}

#[test]
fn llama_cpps_own_refusal_is_passed_on() {
    let (spec, _folder) = spec(
        &tiny_llama()
            .text("general.architecture", "llama9000")
            .number("llama9000.block_count", 2)
            .number("llama9000.context_length", 512)
            .number("llama9000.embedding_length", 32)
            .number("llama9000.attention.head_count", 2),
    );
    let failure = load(&spec, &mut |_, _| true).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ModelInvalid);
    assert!(failure.public.contains("unknown model architecture: 'llama9000'"), "{failure}");
}

#[test]
fn kinds_of_models_whose_headers_are_checked_load() {
    for (name, model) in [
        ("experts", tiny_experts()),
        ("windows", tiny_windows()),
        ("sections", tiny_sections()),
        ("states", tiny_states()),
        ("encoder", tiny_encoder()),
    ] {
        let (spec, _folder) = spec(&model);
        load(&spec, &mut |_, _| true).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
}

#[test]
fn a_rotation_of_nothing_is_refused_since_it_would_not_end() {
    for key in ["gemma3.rope.dimension_count", "gemma3.rope.dimension_count_swa"] {
        let (spec, _folder) = spec(&tiny_windows().without(key).number(key, 0));
        let failure = load(&spec, &mut |_, _| true).unwrap_err();
        assert!(failure.public.contains(key), "{failure}");
    }
}

#[test]
fn an_adapter_changes_what_it_is_made_for() {
    let (mut spec, folder) = spec(&tiny_llama());
    let without = forward(&mut load(&spec, &mut |_, _| true).unwrap(), 0, &[1, 20, 21]);
    let mut row = vec![0.0; without.len()];
    row[100] = 10.0;
    let adapter = Writer::new()
        .text("general.architecture", "llama")
        .text("general.type", "adapter")
        .text("adapter.type", "lora")
        .float("adapter.lora.alpha", 1.0)
        .tensor("output.weight.lora_a", &[32, 1], vec![1.0; 32])
        .tensor("output.weight.lora_b", &[1, row.len() as u64], row);
    let path = folder.path().join("adapter.gguf");
    std::fs::write(&path, adapter.bytes()).unwrap();
    spec.adapters = vec![path];
    let mut with = forward(&mut load(&spec, &mut |_, _| true).unwrap(), 0, &[1, 20, 21]);
    assert!((with[100] - without[100]).abs() > 1.0, "{} and {}", with[100], without[100]);
    with[100] = without[100];
    assert_close(&with, &without);
}
