//! What a model was expected to take against what it took: for each window and number of slots a fresh server, all slots
//! filled at the same time, or as many requests for embeddings with inputs as long as the window, and the worker's highest
//! resident size by the system's own count (Linux).

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::Estimate;
use crate::load::{Ask, ask, fetch, together};
use crate::server::{Server, free_address, ollmlx};

/// Part of a window that the prompts fill, in percent.
const FILL_PERCENT: f64 = 90.0;
/// Tokens of each answer.
const ANSWER_TOKENS: u32 = 8;
/// Words of the prompt that tells how many tokens a word has.
const PROBE_WORDS: usize = 64;
/// Most that estimate and peak may be apart, in parts of the peak.
const OFF_MAX: f64 = 0.1;

/// Inputs of each request for embeddings, the first of which fill the window; the others are short ones, to share a pass.
const EMBED_LONG_INPUTS: usize = 2;
const EMBED_SHORT_INPUTS: usize = 30;
/// Words of these.
const EMBED_SHORT_WORDS: usize = 12;

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Text,
    Vectors,
}

impl Work {
    fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Vectors => "vectors",
        }
    }
}

/// A model as the server describes it.
struct Subject<'a> {
    path: &'a Path,
    work: Work,
    window: u32,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    model: String,
    work: Work,
    context: u64,
    slots: u64,
    estimate_bytes: u64,
    parts: [u64; 3],
    peak_bytes: u64,
    /// Tokens in the fullest and in the emptiest slot.
    filled: (u64, u64),
}

impl Row {
    fn ratio(&self) -> f64 {
        self.estimate_bytes as f64 / self.peak_bytes as f64
    }

    fn holds(&self) -> bool {
        (self.ratio() - 1.0).abs() <= OFF_MAX
    }
}

/// Fills every combination and prints the table. Returns whether every row is within the target.
pub(crate) async fn run(options: &Estimate) -> Result<bool> {
    let mut rows = Vec::new();
    if !options.json {
        println!(
            "estimate against the worker's peak: text fills every slot to {FILL_PERCENT} % of its window, vectors are asked \
             for as many times at once"
        );
        println!(
            "{:<34} {:<7} {:>8} {:>6} {:>12} {:>27} {:>9} {:>15} {:>6}",
            "",
            "",
            "context",
            "slots",
            "estimate MB",
            "weights + caches + compute",
            "peak MB",
            "tokens in slots",
            "ratio"
        );
    }
    for model in &options.model {
        let path = model.canonicalize().with_context(|| format!("{} is not there", model.display()))?;
        let subject = look(options, &path).await?;
        let contexts = clamped(&options.contexts, subject.window);
        if contexts.len() < options.contexts.len() && !options.json {
            println!("{}: windows end at its own, {} tokens", model.display(), subject.window);
        }
        for &context in &contexts {
            for &slots in &options.slots {
                let row = fill(options, &subject, context, slots).await?;
                if !options.json {
                    print(&row);
                }
                rows.push(row);
            }
        }
    }
    if options.json {
        let told = rows.iter().map(|row| {
            json!({"model": row.model, "work": row.work.as_str(), "context": row.context, "slots": row.slots, "estimate_bytes": row.estimate_bytes,
                   "parts": row.parts, "peak_bytes": row.peak_bytes, "ratio": row.ratio(), "holds": row.holds()})
        });
        println!("{}", json!({"off_max": OFF_MAX, "rows": told.collect::<Vec<_>>()}));
    }
    Ok(rows.iter().all(Row::holds))
}

fn print(row: &Row) {
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let [weights, caches, compute] = row.parts.map(mb);
    let verdict = if row.holds() { "" } else { "  MISSED" };
    println!(
        "{:<34} {:<7} {:>8} {:>6} {:>12} {:>27} {:>9} {:>15} {:>6.2}{verdict}",
        row.model,
        row.work.as_str(),
        row.context,
        row.slots,
        mb(row.estimate_bytes),
        format!("{weights} + {caches} + {compute}"),
        mb(row.peak_bytes),
        format!("{}–{}", row.filled.1, row.filled.0),
        row.ratio()
    );
}

/// The windows that a model has, each once.
fn clamped(contexts: &[u32], window: u32) -> Vec<u32> {
    let mut contexts: Vec<u32> = contexts.iter().map(|&context| context.min(window)).collect();
    contexts.dedup();
    contexts
}

/// Asks a server what the model is for, without loading it.
async fn look<'a>(options: &Estimate, path: &'a Path) -> Result<Subject<'a>> {
    let home = tempfile::tempdir()?;
    let address = free_address()?;
    let _server = Server::start(ollmlx(&options.bin_dir, home.path(), address, 1, options.threads), address).await?;
    let name = path.to_str().context("the model's path is not UTF-8")?;
    let shown = fetch(address, "/api/show", Some(&json!({"model": name}))).await?;
    let embeds = shown["capabilities"].as_array().is_some_and(|all| all.iter().any(|one| one == "embedding"));
    let window = shown["details"]["context_length"].as_u64().and_then(|tokens| u32::try_from(tokens).ok());
    let work = if options.embed || embeds { Work::Vectors } else { Work::Text };
    Ok(Subject { path, work, window: window.filter(|&tokens| tokens > 0).unwrap_or(u32::MAX) })
}

async fn fill(options: &Estimate, subject: &Subject<'_>, context: u32, slots: usize) -> Result<Row> {
    let (path, work) = (subject.path, subject.work);
    let home = tempfile::tempdir()?;
    let address = free_address()?;
    let mut command = ollmlx(&options.bin_dir, home.path(), address, slots, options.threads);
    command.env("OLLAMA_CONTEXT_LENGTH", context.to_string()).env("OLLMLX_MEMORY_SHRINK", "none");
    let server = Server::start(command, address).await?;
    let name = path.to_str().context("the model's path is not UTF-8")?;
    let filled = match work {
        Work::Text => fill_slots(address, name, context, slots).await?,
        Work::Vectors => embed(address, name, context, slots).await?,
    };
    ensure!(filled.1 * 5 >= u64::from(context) * 4, "a window of {context} tokens got only {}", filled.1);
    let resident = fetch(address, "/api/ps", None).await?;
    let model = resident["models"].get(0).context("the model is not loaded any more")?;
    let loaded = (model["context_length"].as_u64(), model["slots"].as_u64());
    ensure!(loaded == (Some(context.into()), Some(slots as u64)), "it was loaded with {loaded:?}");
    let estimated = &model["memory"]["estimated"];
    let part = |key: &str| estimated[key].as_u64().context("the server tells no estimate");
    Ok(Row {
        model: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        work,
        context: context.into(),
        slots: slots as u64,
        estimate_bytes: part("total")?,
        parts: [part("weights")?, part("caches")?, part("compute")?],
        peak_bytes: server.worker_peak_bytes()?,
        filled,
    })
}

/// Fills every slot at the same time; returns the tokens of the fullest and of the emptiest.
async fn fill_slots(address: SocketAddr, name: &str, context: u32, slots: usize) -> Result<(u64, u64)> {
    let words = words_that_fill(address, name, context).await?;
    let prompts = (0..slots).map(|slot| Ask::Continue(prompt(slot, words))).collect();
    let seen = together(address, prompts, name, ANSWER_TOKENS).await?.all;
    let tokens = seen.iter().map(|seen| seen.prompt_tokens + seen.tokens);
    Ok((tokens.clone().max().unwrap_or(0), tokens.min().unwrap_or(0)))
}

/// As many requests for embeddings at the same time as there are slots, with inputs that are cut to the window; returns the
/// tokens of the longest input of each request, at most and at least.
async fn embed(address: SocketAddr, name: &str, context: u32, slots: usize) -> Result<(u64, u64)> {
    let short = |slot: usize| (0..EMBED_SHORT_INPUTS).map(move |index| prompt(slot * 100 + index, EMBED_SHORT_WORDS));
    let long = |slot: usize| (0..EMBED_LONG_INPUTS).map(move |index| prompt(slot * 100 + 50 + index, context as usize));
    let mut running = tokio::task::JoinSet::new();
    for slot in 0..slots {
        let inputs: Vec<String> = long(slot).chain(short(slot)).collect();
        let bodies =
            [json!({"model": name, "input": inputs}), json!({"model": name, "input": inputs[EMBED_LONG_INPUTS..]})];
        running.spawn(async move {
            let all = fetch(address, "/api/embed", Some(&bodies[0])).await?;
            let few = fetch(address, "/api/embed", Some(&bodies[1])).await?;
            let tokens =
                |answer: &serde_json::Value| answer["prompt_eval_count"].as_u64().context("no token count came");
            anyhow::Ok(tokens(&all)?.saturating_sub(tokens(&few)?) / EMBED_LONG_INPUTS as u64)
        });
    }
    let mut longest = Vec::new();
    while let Some(tokens) = running.join_next().await {
        longest.push(tokens??);
    }
    Ok((longest.iter().copied().max().unwrap_or(0), longest.iter().copied().min().unwrap_or(0)))
}

/// How many words fill a window as far as it is to be filled.
async fn words_that_fill(address: SocketAddr, name: &str, context: u32) -> Result<usize> {
    let few = ask(address, &Ask::Continue(prompt(999, 8)), name, 1).await?.prompt_tokens as f64;
    let more = ask(address, &Ask::Continue(prompt(998, PROBE_WORDS)), name, 1).await?.prompt_tokens as f64;
    let per_word = (more - few) / (PROBE_WORDS - 8) as f64;
    ensure!(per_word > 0.0, "a longer prompt has no more tokens");
    let template = (few - 8.0 * per_word).max(0.0);
    let wanted = f64::from(context) * FILL_PERCENT / 100.0 - f64::from(ANSWER_TOKENS) - template;
    Ok((wanted / per_word).max(1.0) as usize)
}

/// Common words, about one token each, in another order for each slot, so that no two share a beginning.
fn prompt(slot: usize, count: usize) -> String {
    const WORDS: [&str; 16] = [
        "time", "water", "people", "year", "house", "light", "school", "world", "night", "river", "music", "story",
        "door", "city", "road", "paper",
    ];
    let mut state = slot * 4_099 + 1;
    let mut found = vec![WORDS[slot % WORDS.len()]];
    while found.len() < count {
        state = (state * 1_105 + 12_345) % 65_536;
        found.push(WORDS[state / 256 % WORDS.len()]);
    }
    found.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_within_a_tenth_either_way() {
        let row = |estimate_bytes| {
            let model = String::new();
            Row {
                model,
                work: Work::Text,
                context: 1,
                slots: 1,
                estimate_bytes,
                parts: [0; 3],
                peak_bytes: 1000,
                filled: (1, 1),
            }
        };
        assert!(row(901).holds() && row(1099).holds());
        assert!(!row(899).holds() && !row(1101).holds());
    }

    #[test]
    fn no_window_is_larger_than_the_models_or_measured_twice() {
        assert_eq!(clamped(&[128, 512, 2048, 8192], 512), [128, 512]);
        assert_eq!(clamped(&[512, 2048], u32::MAX), [512, 2048]);
    }

    #[test]
    fn prompts_have_as_many_words_as_asked_and_differ_from_the_first_on() {
        assert_eq!(prompt(3, 700).split(' ').count(), 700);
        assert_ne!(prompt(0, 9).split(' ').next(), prompt(1, 9).split(' ').next());
    }
}
