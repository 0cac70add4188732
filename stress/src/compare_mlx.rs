//! ollmlx against mlx_lm.server: the same checkpoint, on the CPU device, alternating rounds of one run.
//!
//! Stock half precision is hopelessly slow in mlx-lm on x86, so it gets the same weights with 32-bit scales for most
//! figures, and the stock checkpoint for a few tokens.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::CompareMlx;
use crate::checkpoint::Sizes;
use crate::lines::get;
use crate::load::{Ask, Seen, ask, together};
use crate::report::{Row, print};
use crate::server::{Server, free_address, mlx_lm_server, ollmlx};

const SLOTS: usize = 8;
const LONG_WORDS: usize = 512;
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Beyond weights and caches: code, the vocabulary, scratch buffers.
const PEAK_RATIO_MAX: f64 = 1.3;
const DECODE_1_RATIO_MIN: f64 = 1.0;
const DECODE_8_RATIO_MIN: f64 = 2.0;
const PROMPT_RATIO_MIN: f64 = 3.0;
const STOCK_RATIO_MIN: f64 = 10.0;

/// One server's figures over the rounds, in tokens per second.
#[derive(Debug, Default)]
struct Figures {
    decode_1: Vec<f64>,
    decode_8: Vec<f64>,
    prompt: Vec<f64>,
    /// Tokens of the long prompt.
    longest: u64,
    /// Tokens of all eight streams.
    streams: u64,
}

/// Runs the comparison and prints it. Returns whether every target holds.
pub(crate) async fn run(options: &CompareMlx) -> Result<bool> {
    let home = tempfile::tempdir()?;
    let stock = options.model.canonicalize().context("the checkpoint is not there")?;
    let wide = options.float32.canonicalize().context("the 32-bit copy is not there")?;
    let sizes = Sizes::of(&stock)?;

    let address = free_address()?;
    let ours = Server::start(ollmlx(&options.bin_dir, home.path(), address, SLOTS, options.threads), address).await?;
    get(address, "/api/version").await?;
    let theirs = start_peer(options, &wide).await?;
    let (our_name, their_name) = (text(&stock)?, text(&wide)?);

    let (mut our, mut their, mut warm_up) = (Figures::default(), Figures::default(), Figures::default());
    for (server, name) in [(&ours, our_name), (&theirs, their_name)] {
        measure(server.address, name, options.tokens.min(4), usize::MAX, &mut warm_up).await?;
    }
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        let mut turns = [(&ours, our_name, &mut our), (&theirs, their_name, &mut their)];
        // Who goes first alternates as well.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (server, name, figures) in turns {
            measure(server.address, name, options.tokens, round, figures).await?;
        }
    }
    let peak_bytes = ours.worker_peak_bytes()?;
    drop(theirs);

    let mut rows = vec![
        Row::more(
            "decode, 1 stream, peer with 32-bit scales (tokens/s)",
            &our.decode_1,
            &their.decode_1,
            DECODE_1_RATIO_MIN,
        ),
        Row::more("decode, 8 streams together (tokens/s)", &our.decode_8, &their.decode_8, DECODE_8_RATIO_MIN),
        Row::more("prompt of 512 words (tokens/s)", &our.prompt, &their.prompt, PROMPT_RATIO_MIN),
    ];
    if options.stock_tokens > 1 {
        eprintln!("the peer's stock checkpoint: {} tokens", options.stock_tokens);
        let peer = start_peer(options, &stock).await?;
        let seen = ask(peer.address, &Ask::Continue("1, 2,"), our_name, options.stock_tokens).await?;
        rows.push(Row::more(
            "decode, 1 stream, peer as stock (tokens/s)",
            &our.decode_1,
            &[decode(&seen)],
            STOCK_RATIO_MIN,
        ));
    }
    let longest = our.longest.max(warm_up.longest);
    // One long prompt and eight streams: what idle slots still hold of earlier rounds counts against us.
    let held_bytes = sizes.weight_bytes + (longest + our.streams) * sizes.kv_bytes_per_token;
    let name = "worker's peak, against weights and caches (MB)";
    rows.push(Row::less(name, &[peak_bytes as f64 / 1e6], &[held_bytes as f64 / 1e6], PEAK_RATIO_MAX));
    let heading = format!(
        "{} threads, {} tokens an answer, {longest} tokens of the long prompt",
        options.threads, options.tokens
    );
    print(&rows, "mlx_lm", options.rounds, &heading, options.json);
    Ok(rows.iter().all(Row::holds))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the checkpoint's path is not UTF-8")
}

async fn start_peer(options: &CompareMlx, folder: &Path) -> Result<Server> {
    let address = free_address()?;
    let peer = Server::start(mlx_lm_server(&options.python, folder, address, options.threads), address).await?;
    let asked = Instant::now();
    while get(address, "/health").await.is_err() {
        ensure!(asked.elapsed() < READY_TIMEOUT, "mlx_lm.server is not ready after {READY_TIMEOUT:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(peer)
}

fn decode(seen: &Seen) -> f64 {
    seen.tokens.saturating_sub(1) as f64 / (seen.last - seen.first).as_secs_f64()
}

/// One round on one server: a long prompt, a single stream, then eight at once.
async fn measure(address: SocketAddr, model: &str, tokens: u32, round: usize, figures: &mut Figures) -> Result<()> {
    let seen = ask(address, &Ask::Continue(&words(round)), model, 1).await?;
    figures.prompt.push(seen.prompt_tokens as f64 / (seen.last - seen.sent).as_secs_f64());
    figures.longest = figures.longest.max(seen.prompt_tokens + seen.tokens);

    let seen = ask(address, &Ask::Continue(&count_on(round, SLOTS)), model, tokens).await?;
    figures.decode_1.push(decode(&seen));

    let asks = (0..SLOTS).map(|stream| Ask::Continue(count_on(round, stream))).collect();
    let eight = together(address, asks, model, tokens).await?;
    let streams = eight.all.iter().map(|seen| seen.prompt_tokens + seen.tokens).sum();
    figures.streams = figures.streams.max(streams);
    figures.decode_8.push(eight.tokens_per_second);
    Ok(())
}

/// What a small model continues for long; no two calls begin alike, so that no cache helps.
fn count_on(round: usize, stream: usize) -> String {
    let start = 1 + stream * 17 + (round % 1000) * 131;
    let numbers: Vec<String> = (start..start + 6).map(|number| number.to_string()).collect();
    format!("{},", numbers.join(", "))
}

/// Common words, about one token each, in another order each round.
fn words(round: usize) -> String {
    const WORDS: [&str; 16] = [
        "time", "water", "people", "year", "house", "light", "school", "world", "night", "river", "music", "story",
        "door", "city", "road", "paper",
    ];
    let mut state = (round % 1000) * 4_099 + 1;
    let mut found = Vec::with_capacity(LONG_WORDS);
    for _ in 0..LONG_WORDS {
        state = (state * 1_105 + 12_345) % 65_536;
        found.push(WORDS[state / 256 % WORDS.len()]);
    }
    found.join(" ")
}
