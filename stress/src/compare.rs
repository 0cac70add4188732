//! ollmlx against llama-server: the same file, the same threads, alternating rounds of one run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Compare;
use crate::lines::get;
use crate::load::{Ask, ask, together};
use crate::report::{Row, print};
use crate::server::{Server, free_address, llama_server, ollmlx};
use crate::stats::median;

const SLOTS: usize = 8;
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// One server's figures over the rounds.
#[derive(Debug, Default)]
struct Figures {
    decode_1: Vec<f64>,
    decode_8: Vec<f64>,
    ttft_8_ms: Vec<f64>,
}

/// Runs the comparison and prints it. Returns whether every target holds.
pub(crate) async fn run(options: &Compare) -> Result<bool> {
    let home = tempfile::tempdir()?;
    let model = options.model.canonicalize().context("the model file is not there")?;
    let name = model.to_str().context("the model's path is not UTF-8")?;

    let address = free_address()?;
    let ours = Server::start(ollmlx(&options.bin_dir, home.path(), address, SLOTS, options.threads), address).await?;
    get(address, "/api/version").await?;
    let idle_bytes = ours.resident_bytes()?;

    let address = free_address()?;
    let command = llama_server(&options.llama_server, &model, address, SLOTS, options.threads);
    let theirs = Server::start(command, address).await?;
    let asked = Instant::now();
    while get(address, "/health").await.is_err() {
        anyhow::ensure!(asked.elapsed() < READY_TIMEOUT, "llama-server is not ready after {READY_TIMEOUT:?}");
        tokio::time::sleep(POLL).await;
    }

    let (mut our_figures, mut their_figures) = (Figures::default(), Figures::default());
    let mut warm_up = Figures::default();
    for server in [&ours, &theirs] {
        measure(server.address, name, options.tokens, usize::MAX, &mut warm_up).await?;
    }
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        // Who goes first alternates as well.
        let mut turns = [(&ours, &mut our_figures), (&theirs, &mut their_figures)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (server, figures) in turns {
            measure(server.address, name, options.tokens, round, figures).await?;
        }
    }
    let rows = rows(&ours, idle_bytes, &our_figures, &their_figures);
    let heading = format!("{} threads, {} tokens an answer", options.threads, options.tokens);
    print(&rows, "llama-server", options.rounds, &heading, options.json);
    Ok(rows.iter().all(Row::holds))
}

fn rows(ours: &Server, idle_bytes: u64, our: &Figures, their: &Figures) -> Vec<Row> {
    vec![
        Row::more("decode, 1 stream (tokens/s)", &our.decode_1, &their.decode_1, 0.95),
        Row::more("decode, 8 streams together (tokens/s)", &our.decode_8, &their.decode_8, 0.95),
        Row::less("time to first token, 8 streams (ms, median)", &our.ttft_8_ms, &their.ttft_8_ms, 1.1),
        Row::alone("supervisor resident, idle (MB)", idle_bytes as f64 / 1e6, 20.0),
        Row::alone("accepts connections after (ms)", ours.accepted_after.as_secs_f64() * 1e3, 100.0),
    ]
}

/// One round on one server: a single stream, then eight at once.
async fn measure(address: SocketAddr, model: &str, tokens: u32, round: usize, figures: &mut Figures) -> Result<()> {
    let seen = ask(address, &Ask::Chat(&prompt(round, SLOTS)), model, tokens).await?;
    figures.decode_1.push((seen.tokens - 1) as f64 / (seen.last - seen.first).as_secs_f64());

    let asks = (0..SLOTS).map(|stream| Ask::Chat(prompt(round, stream))).collect();
    let eight = together(address, asks, model, tokens).await?;
    figures.decode_8.push(eight.tokens_per_second);
    let firsts: Vec<f64> = eight.all.iter().map(|seen| (seen.first - seen.sent).as_secs_f64() * 1e3).collect();
    figures.ttft_8_ms.push(median(&firsts));
    Ok(())
}

/// A prompt that neither server has in its cache, and that a small model continues for long.
fn prompt(round: usize, stream: usize) -> String {
    let start = 1 + stream * 17 + (round % 1000) * 131;
    let numbers: Vec<String> = (start..start + 12).map(|number| number.to_string()).collect();
    format!("Series {round}-{stream}. Count on without an end: {},", numbers.join(", "))
}
