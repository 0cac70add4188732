//! Models that do not fit together take turns, one switch after the other for a long time: nobody may fail, the server may
//! not grow, and nothing may be left when it has ended: no process, no file, no descriptor (Linux).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::Soak;
use crate::load::{Ask, ask, fetch};
use crate::report::{Row, print};
use crate::server::{Server, free_address, ollmlx};
use crate::stats::slope;

/// Slots of every model.
const SLOTS: usize = 2;
/// Tokens of an answer.
const ANSWER_TOKENS: u32 = 4;
const PROMPT: &str = "1, 2, 3, 4, 5, 6,";
/// Between two switches of the model.
const SWITCH_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the server's memory.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Part of the time, in percent, after which growth counts: what is kept once for each model is there by then.
const WARM_PERCENT: u32 = 20;
/// What the server may grow by, in bytes a minute: noise of the allocator, and a tenth of what one lost log line for each
/// switch would make.
const GROWTH_MAX: f64 = 64.0 * 1024.0;

/// What the server itself holds at a moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    minutes: f64,
    resident_bytes: f64,
    descriptors: f64,
}

/// Runs it and prints what came of it. Returns whether every target holds.
pub(crate) async fn run(options: &Soak) -> Result<bool> {
    ensure!(options.model.len() >= 2, "two models are needed to switch between");
    let mut models = Vec::new();
    for model in &options.model {
        let path = model.canonicalize().with_context(|| format!("{} is not there", model.display()))?;
        models.push(path.to_str().context("a model's path is not UTF-8")?.to_owned());
    }
    let limit = room_for_one(options, &models).await?;
    let home = tempfile::tempdir()?;
    let litter = home.path().join("t");
    std::fs::create_dir(&litter)?;
    let address = free_address()?;
    let mut command = ollmlx(&options.bin_dir, home.path(), address, SLOTS, options.threads);
    command.env("OLLMLX_MEMORY_LIMIT", limit.to_string()).env("OLLMLX_MEMORY_SHRINK", "none");
    command.env("TMPDIR", &litter).env("XDG_RUNTIME_DIR", &litter);
    let server = Server::start(command, address).await?;
    let span = Duration::from_secs(options.minutes * 60);
    eprintln!("room for one of {} models: {} MiB", models.len(), limit >> 20);
    let soaked = soak(&server, &models, span).await?;
    drop(server);

    let left = soaked.workers.iter().filter(|pid| is_worker(**pid)).count();
    let files = count_files(&litter)?;
    let warm =
        soaked.looks.iter().filter(|look| look.minutes >= span.as_secs_f64() / 60.0 * f64::from(WARM_PERCENT) / 100.0);
    let warm: Vec<Look> = warm.copied().collect();
    let (first, last) = (warm.first().context("too short")?, warm.last().context("too short")?);
    let growth = slope(&warm.iter().map(|look| (look.minutes, look.resident_bytes)).collect::<Vec<_>>());
    let rows = [
        Row::alone("answers that failed", soaked.failed as f64, 0.0),
        Row::alone("growth of the server (bytes a minute)", growth, GROWTH_MAX),
        Row::alone("descriptors at the end, less those at the start", fewest(&warm, true) - fewest(&warm, false), 0.0),
        Row::alone("workers left when the server has ended", left as f64, 0.0),
        Row::alone("files left in its temporary folders", files as f64, 0.0),
    ];
    let heading = format!(
        "{} switches in {} minutes between {} models, {} processes, server {:.1} MB then {:.1} MB",
        soaked.switches,
        options.minutes,
        models.len(),
        soaked.workers.len(),
        first.resident_bytes / 1e6,
        last.resident_bytes / 1e6
    );
    print(&rows, "-", 1, &heading, options.json);
    Ok(rows.iter().all(Row::holds))
}

/// A limit under which the largest of the models fits, and no two of them.
async fn room_for_one(options: &Soak, models: &[String]) -> Result<u64> {
    let home = tempfile::tempdir()?;
    let address = free_address()?;
    let mut command = ollmlx(&options.bin_dir, home.path(), address, SLOTS, options.threads);
    command.env("OLLMLX_MEMORY_LIMIT", "none").env("OLLMLX_MAX_LOADED_MODELS", models.len().to_string());
    let _server = Server::start(command, address).await?;
    for model in models {
        ask(address, &Ask::Continue(PROMPT), model, ANSWER_TOKENS).await?;
    }
    let ps = fetch(address, "/api/ps", None).await?;
    let rows = ps["models"].as_array().context("no model is loaded")?;
    let need = |row: &serde_json::Value| {
        let held = row["memory"]["measured"].as_u64().unwrap_or(0);
        row["memory"]["estimated"]["total"].as_u64().map(|estimate| estimate.max(held))
    };
    let needs = rows.iter().map(need).collect::<Option<Vec<u64>>>().context("the server tells no estimate")?;
    ensure!(needs.len() == models.len(), "not all models are loaded");
    let (least, most) = (needs.iter().min().copied().unwrap_or(0), needs.iter().max().copied().unwrap_or(0));
    // A quarter of slack for the worker that is a little above its estimate, and not enough for the smallest beside it.
    let limit = most + (most / 4).min(least / 2);
    Ok(limit)
}

#[derive(Debug, Default)]
struct Soaked {
    switches: u64,
    failed: u64,
    looks: Vec<Look>,
    workers: BTreeSet<u32>,
}

async fn soak(server: &Server, models: &[String], span: Duration) -> Result<Soaked> {
    let mut soaked = Soaked::default();
    let begun = Instant::now();
    let mut tick = tokio::time::interval(SWITCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = begun;
    for model in models.iter().cycle() {
        tick.tick().await;
        if begun.elapsed() >= span {
            break;
        }
        // A switch comes while the last model still answers somebody.
        let (one, two) = (switch(server.address, model), switch(server.address, model));
        let (one, two) = tokio::join!(one, two);
        soaked.switches += 1;
        for failure in [one, two].into_iter().filter_map(Result::err) {
            eprintln!("{:.0} s: {model}: {failure:#}", begun.elapsed().as_secs_f64());
            soaked.failed += 1;
        }
        let ps = fetch(server.address, "/api/ps", None).await?;
        let pids = ps["models"].as_array().into_iter().flatten().filter_map(|row| row["pid"].as_u64());
        soaked.workers.extend(pids.filter_map(|pid| u32::try_from(pid).ok()));
        if looked.elapsed() >= LOOK_EVERY || soaked.looks.is_empty() {
            looked = Instant::now();
            soaked.looks.push(Look {
                minutes: begun.elapsed().as_secs_f64() / 60.0,
                resident_bytes: server.resident_bytes()? as f64,
                descriptors: server.descriptors()? as f64,
            });
        }
    }
    Ok(soaked)
}

async fn switch(address: SocketAddr, model: &str) -> Result<()> {
    let body = json!({"model": model, "prompt": PROMPT, "stream": false, "options": {"num_predict": ANSWER_TOKENS}});
    let answer = fetch(address, "/api/generate", Some(&body)).await?;
    ensure!(answer["done"] == json!(true), "not done: {answer}");
    Ok(())
}

/// The least number of descriptors at the end or at the start: a connection more or less comes and goes.
fn fewest(looks: &[Look], at_the_end: bool) -> f64 {
    let count = (looks.len() / 4).max(1);
    let part = if at_the_end { &looks[looks.len() - count..] } else { &looks[..count] };
    part.iter().fold(f64::INFINITY, |least, look| least.min(look.descriptors))
}

fn is_worker(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("ollmlx-worker"))
}

fn count_files(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        eprintln!("left behind: {}", entry.path().display());
        count += 1;
    }
    Ok(count)
}
