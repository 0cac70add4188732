//! Runs the engine alone, without a supervisor: greedy text, and how fast it is.
//!
//! `run FOLDER text PROMPT [COUNT]` continues a prompt; `run FOLDER speed` measures a prompt of 512 tokens and tokens per
//! second at 1, 4 and 8 slots, `run FOLDER speed SLOTS` at that many only; `run FOLDER embed TEXT…` compares texts; `run FOLDER inspect` prints the model's card.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures for a person")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use ollmlx_proto::{LoadSpec, SlotId};
use ollmlx_worker_kit::engine::{Backend, Engine, SlotInput};
use ollmlx_worker_mlx::engine::{MlxBackend, MlxEngine};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, what, rest @ ..] = &args[..] else { bail!("usage: run FOLDER text|speed|inspect …") };
    let folder = PathBuf::from(folder);
    if what == "inspect" {
        let mut card = MlxBackend::inspect(&[folder])?;
        card.tensors.truncate(4);
        println!("{}", serde_json::to_string_pretty(&card)?);
        return Ok(());
    }
    let started = Instant::now();
    let mut engine = load(folder)?;
    eprintln!("loaded in {:.2} s, {:?}", started.elapsed().as_secs_f64(), engine.memory());
    match (&what[..], rest) {
        ("text", [prompt, rest @ ..]) => {
            let count = rest.first().map_or(Ok(64), |count| count.parse())?;
            text(&mut engine, prompt, count)
        }
        ("embed", texts) => embed(&mut engine, texts),
        ("speed", slots) => speed(&mut engine, slots),
        _ => bail!("unknown: {what}"),
    }
}

fn load(folder: PathBuf) -> anyhow::Result<MlxEngine> {
    let spec = LoadSpec {
        weights: vec![folder],
        slots: 8,
        context_tokens: 2048,
        batch_tokens: 512,
        gpu_layers: -1,
        kv_type: "f16".to_owned(),
        ..LoadSpec::default()
    };
    Ok(MlxBackend::load(&spec, &mut |_, _| true)?)
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

fn text(engine: &mut MlxEngine, prompt: &str, count: usize) -> anyhow::Result<()> {
    let tokens = engine.tokenize(prompt, true, true)?;
    println!("prompt tokens {tokens:?}");
    engine.forward(&[SlotInput { slot: SlotId(0), tokens: &tokens, logits: true }])?;
    let mut out = Vec::new();
    for _ in 0..count {
        let next = best(engine.logits(0));
        out.push(next);
        engine.forward(&[SlotInput { slot: SlotId(0), tokens: &[next], logits: true }])?;
    }
    println!("tokens {out:?}");
    let vocab = engine.facts().vocab.clone();
    let bytes: Vec<u8> = out.iter().flat_map(|&token| vocab.spelling(token).to_vec()).collect();
    println!("{}", String::from_utf8_lossy(&bytes));
    Ok(())
}

fn embed(engine: &mut MlxEngine, texts: &[String]) -> anyhow::Result<()> {
    let inputs: Vec<Vec<u32>> =
        texts.iter().map(|text| engine.tokenize(text, true, false)).collect::<Result<_, _>>()?;
    let started = Instant::now();
    let vectors = engine.embed(&inputs)?;
    println!("{:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (tokens, vector) in inputs.iter().zip(&vectors) {
        let dot: f32 = vector.iter().zip(&vectors[0]).map(|(a, b)| a * b).sum();
        let likeness = dot / length(vector) / length(&vectors[0]);
        println!("{tokens:?} {:?}… likeness to the first {likeness:.4}", &vector[..3]);
    }
    Ok(())
}

fn speed(engine: &mut MlxEngine, slots: &[String]) -> anyhow::Result<()> {
    let asked: Vec<u16> = slots.iter().map(|slots| slots.parse()).collect::<Result<_, _>>()?;
    let prompt: Vec<u32> = (0..512).map(|index| 100 + index * 7 % 1000).collect();
    for _ in 0..if asked.is_empty() { 2 } else { 0 } {
        engine.truncate(SlotId(0), 0);
        let started = Instant::now();
        engine.forward(&[SlotInput { slot: SlotId(0), tokens: &prompt, logits: true }])?;
        let took = started.elapsed().as_secs_f64();
        println!("prompt of 512: {:.1} ms, {:.0} tokens/s", took * 1e3, 512.0 / took);
    }
    for slots in if asked.is_empty() { vec![1, 4, 8] } else { asked } {
        for slot in 0..slots {
            engine.truncate(SlotId(slot), 0);
            engine.forward(&[SlotInput { slot: SlotId(slot), tokens: &prompt[..64], logits: true }])?;
        }
        let steps = 48;
        let token = [200_u32];
        let inputs: Vec<SlotInput<'_>> =
            (0..slots).map(|slot| SlotInput { slot: SlotId(slot), tokens: &token, logits: true }).collect();
        engine.forward(&inputs)?;
        let started = Instant::now();
        for _ in 0..steps {
            engine.forward(&inputs)?;
        }
        let took = started.elapsed().as_secs_f64();
        let per_second = f64::from(steps * i32::from(slots)) / took;
        println!("{slots} slots: {:.1} ms a step, {per_second:.1} tokens/s", took * 1e3 / f64::from(steps));
    }
    println!("{:?}, MLX's peak {} MB", engine.memory(), mlx_rs::memory::peak_memory()? / 1_000_000);
    // Linux only.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status
            .lines()
            .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
            .for_each(|line| println!("{line}"));
    }
    best(engine.logits(0)).checked_add(0).context("no logits")?;
    Ok(())
}
