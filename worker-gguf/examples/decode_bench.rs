//! Tokens per second of a GGUF file: one slot, then eight, greedy.
//!
//!     decode_bench MODEL.gguf [slots=8] [tokens=128] [threads=0] [level=] [batch=512]

#![expect(clippy::print_stdout, reason = "figures for a person")]

use std::path::PathBuf;
use std::time::Instant;

use ollmlx_proto::{LoadSpec, SlotId};
use ollmlx_worker_gguf::GgufBackend;
use ollmlx_worker_kit::engine::{Backend, Engine, SlotInput};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, default: &str| {
        let prefix = format!("{name}=");
        args.iter().find_map(|arg| arg.strip_prefix(&prefix)).unwrap_or(default).to_owned()
    };
    let number = |name: &str, default: &str| option(name, default).parse::<u32>().expect("a number");
    let slots = u16::try_from(number("slots", "8")).expect("few slots");
    let spec = LoadSpec {
        weights: vec![PathBuf::from(args.first().expect("a model file"))],
        slots,
        context_tokens: number("context", "2048"),
        batch_tokens: number("batch", "512"),
        threads: u16::try_from(number("threads", "0")).expect("few threads"),
        gpu_layers: -1,
        kv_type: option("kv", "f16"),
        cpu_level: option("level", ""),
        ..LoadSpec::default()
    };
    let start = Instant::now();
    let mut engine = GgufBackend::load(&spec, &mut |_, _| true).expect("the model loads");
    println!("load {:.0} ms, {}, {:?}", start.elapsed().as_secs_f64() * 1e3, engine.facts().device, engine.memory());
    let prompt =
        engine.tokenize(&"The quick brown fox jumps over the lazy dog. ".repeat(40), true, true).expect("tokens");
    for count in [1, slots] {
        run(&mut engine, count, &prompt, number("tokens", "128"));
    }
}

fn run(engine: &mut impl Engine, slots: u16, prompt: &[u32], tokens: u32) {
    let start = Instant::now();
    let mut next: Vec<u32> = Vec::new();
    for slot in 0..slots {
        let mut rest = &prompt[..prompt.len().min(400)];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(engine.facts().batch_tokens as usize));
            engine
                .forward(&[SlotInput { slot: SlotId(slot), tokens: now, logits: later.is_empty() }])
                .expect("prefill");
            rest = later;
        }
        next.push(best(engine.logits(0)));
    }
    let prefill_tokens = f64::from(slots) * prompt.len().min(400) as f64;
    let prefill = prefill_tokens / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..tokens {
        let inputs: Vec<_> = (0..slots)
            .zip(next.chunks(1))
            .map(|(slot, tokens)| SlotInput { slot: SlotId(slot), tokens, logits: true })
            .collect();
        engine.forward(&inputs).expect("decode");
        drop(inputs);
        for (input, token) in next.iter_mut().enumerate() {
            *token = best(engine.logits(input));
        }
    }
    let decode = f64::from(slots) * f64::from(tokens) / start.elapsed().as_secs_f64();
    println!("{slots} slots: prefill {prefill:.0} tokens/s, decode {decode:.1} tokens/s");
    for slot in 0..slots {
        engine.truncate(SlotId(slot), 0);
    }
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token);
    u32::try_from(best).expect("a token id")
}
