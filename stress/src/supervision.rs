//! What supervision costs and what it is good for: the pause that a client sees when the worker is killed, the speed
//! lost against a worker without supervisor, ten thousand idle connections, and how soon a client that leaves frees its slot.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::Supervision;
use crate::direct::Worker;
use crate::load::{Ask, Seen, ask, fetch, watch};
use crate::report::{Row, print};
use crate::server::{CONTEXT_TOKENS, Server, free_address, ollmlx};
use crate::stats::median;

/// Between two looks whether a model has gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A gap after a kill that is shorter is none: tokens that were on their way arrive.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const KILL_AT_TOKEN: usize = 50;
const KILLED_TOKENS: u32 = 200;
const CANCEL_AT_TOKEN: usize = 20;
/// Resume, in multiples of a load with a prompt of as many tokens.
const PAUSE_RATIO_MAX: f64 = 1.2;
const OVERHEAD_RATIO_MIN: f64 = 0.98;
const IDLE_BYTES_MAX: f64 = 16.0 * 1024.0;
const IDLE_RATIO_MAX: f64 = 1.5;
/// Steps until the slot of a client that left is free.
const CANCEL_STEPS_MAX: f64 = 2.0;
const PROMPT: &str = "1, 2, 3, 4, 5, 6,";

/// Runs everything for each model and prints it. Returns whether every target holds.
pub(crate) async fn run(options: &Supervision) -> Result<bool> {
    let mut all_hold = true;
    for model in &options.model {
        let path = model.canonicalize().with_context(|| format!("{} is not there", model.display()))?;
        let rows = one(options, &path).await?;
        let heading = format!("{}, {} threads", path.file_name().unwrap_or_default().display(), options.threads);
        print(&rows, "compared", options.rounds, &heading, options.json);
        all_hold &= rows.iter().all(Row::holds);
    }
    Ok(all_hold)
}

async fn one(options: &Supervision, model: &Path) -> Result<Vec<Row>> {
    let home = tempfile::tempdir()?;
    let address = free_address()?;
    // One slot, so that the client that leaves is in the way of the next.
    let server = Server::start(ollmlx(&options.bin_dir, home.path(), address, 1, options.threads), address).await?;
    let name = model.to_str().context("the model's path is not UTF-8")?;
    ask(address, &Ask::Continue(PROMPT), name, 2).await?;

    // What must be computed after a death is the prompt and what was said: a fresh load is given as much.
    let body = json!({"model": name, "prompt": PROMPT, "max_tokens": KILL_AT_TOKEN, "temperature": 0});
    let answer = fetch(address, "/v1/completions", Some(&body)).await?;
    let said = answer["choices"][0]["text"].as_str().context("no text came")?;
    let as_much = format!("{PROMPT}{said}");

    eprintln!("pauses");
    let (mut pauses, mut drawn_pauses, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        cold.push(load_and_first_token(address, name, &as_much).await?);
        let (pause, drawn) = (killed(address, name, true).await?, killed(address, name, false).await?);
        let count = options.rounds;
        eprintln!("  {} of {count}: {pause:.0} ms, drawn {drawn:.0} ms, a load {:.0} ms", round + 1, cold[round]);
        pauses.push(pause);
        drawn_pauses.push(drawn);
    }

    eprintln!("speed with and without supervisor");
    let backend = if model.is_dir() { "mlx" } else { "gguf" };
    let program = options.bin_dir.join(format!("ollmlx-worker-{backend}"));
    let threads = u16::try_from(options.threads)?;
    let mut direct = Worker::start(&program, model, u32::try_from(CONTEXT_TOKENS)?, threads)?;
    let (mut through, mut alone) = (Vec::new(), Vec::new());
    direct.decode(PROMPT, 8)?;
    ask(address, &Ask::Continue(PROMPT), name, 8).await?;
    for round in 0..options.rounds {
        let mut turns = [true, false];
        if round % 2 == 1 {
            turns.reverse();
        }
        for supervised in turns {
            if supervised {
                let seen = ask(address, &Ask::Continue(PROMPT), name, options.tokens).await?;
                through.push(decode(&seen));
            } else {
                alone.push(direct.decode(PROMPT, options.tokens)?);
            }
        }
    }
    drop(direct);

    eprintln!("clients that leave");
    let step_ms = 1e3 / median(&through);
    let mut freed = Vec::new();
    for _ in 0..options.rounds {
        freed.push(left(address, name).await?);
    }

    eprintln!("idle connections");
    let idle = idle(&server, name, options.connections, options.rounds).await?;

    let steps = [step_ms];
    Ok(vec![
        Row::less("pause after kill -9 at token 50, greedy, against a load (ms)", &pauses, &cold, PAUSE_RATIO_MAX),
        Row::less("the same, drawn with no seed (ms)", &drawn_pauses, &cold, PAUSE_RATIO_MAX),
        Row::more("decode through the supervisor, against none (tokens/s)", &through, &alone, OVERHEAD_RATIO_MIN),
        Row::less("slot free after its client left, against a step (ms)", &freed, &steps, CANCEL_STEPS_MAX),
        Row::alone("memory of an idle connection (bytes)", idle.bytes_each, IDLE_BYTES_MAX),
        Row::less("first token beside idle connections, against none (ms)", &idle.beside, &idle.before, IDLE_RATIO_MAX),
    ])
}

fn decode(seen: &Seen) -> f64 {
    seen.tokens.saturating_sub(1) as f64 / (seen.last - seen.first).as_secs_f64()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// From the request to its first token, where the model is not loaded, in milliseconds.
async fn load_and_first_token(address: SocketAddr, model: &str, prompt: &str) -> Result<f64> {
    let unload = json!({"model": model, "keep_alive": 0});
    fetch(address, "/api/generate", Some(&unload)).await?;
    loop {
        let answer = fetch(address, "/api/ps", None).await?;
        if answer["models"].as_array().is_some_and(Vec::is_empty) {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let seen = ask(address, &Ask::Continue(prompt), model, 2).await?;
    Ok(ms(seen.first - seen.sent))
}

/// The wait for a text, in milliseconds, of an answer whose worker is killed on the way. One that must be the same as
/// without that is greedy, and is heard to its end; of another, the client leaves after the pause.
async fn killed(address: SocketAddr, model: &str, same: bool) -> Result<f64> {
    let what = if same { Ask::Continue(PROMPT) } else { Ask::Draw(PROMPT) };
    let pid = worker_pid(&fetch(address, "/api/ps", None).await?)?;
    let (mut count, mut killed_at, mut pause) = (0, None, None);
    let heard = watch(address, &what, model, KILLED_TOKENS, |now| {
        count += 1;
        match killed_at {
            None if count == KILL_AT_TOKEN => {
                killed_at = Some(Instant::now());
                kill(pid, Signal::SIGKILL).is_ok()
            }
            // One that was on its way may still arrive.
            Some(at) if pause.is_none() && now - at > PAUSE_MIN => {
                pause = Some(now - at);
                same
            }
            _ => true,
        }
    })
    .await;
    if same {
        let tokens = heard?.tokens;
        ensure!(tokens == u64::from(KILLED_TOKENS), "{tokens} tokens came");
    }
    Ok(ms(pause.context("the killed worker made no pause")?))
}

fn worker_pid(ps: &Value) -> Result<Pid> {
    let pid = ps["models"][0]["pid"].as_i64().context("no worker runs")?;
    Ok(Pid::from_raw(i32::try_from(pid)?))
}

/// From a client's leaving to the first token of the one that waits for its slot, less what that takes on a free slot, in
/// milliseconds.
async fn left(address: SocketAddr, model: &str) -> Result<f64> {
    // Both times the slot holds another prompt, of which nothing can be reused.
    ask(address, &Ask::Continue(PROMPT), model, 2).await?;
    let solo = ask(address, &Ask::Continue("a b c"), model, 2).await?;
    let (begun, begins) = oneshot::channel();
    let mut begun = Some(begun);
    let name = model.to_owned();
    let first = tokio::spawn(async move {
        let mut count = 0;
        let _left = watch(address, &Ask::Continue(PROMPT), &name, 1000, |_| {
            count += 1;
            if let Some(begun) = begun.take_if(|_| count == 2) {
                let _ = begun.send(());
            }
            count < CANCEL_AT_TOKEN
        })
        .await;
        Instant::now()
    });
    begins.await.context("the first stream did not begin")?;
    let second = ask(address, &Ask::Continue("a b c"), model, 2).await?;
    let left_at = first.await?;
    let waited = ms(second.first.saturating_duration_since(left_at));
    Ok((waited - ms(solo.first - solo.sent)).max(0.0))
}

struct Idle {
    bytes_each: f64,
    before: Vec<f64>,
    beside: Vec<f64>,
}

/// First-token times before and beside idle connections, and what each takes in the server.
async fn idle(server: &Server, model: &str, connections: usize, rounds: usize) -> Result<Idle> {
    let first = async || -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..rounds.min(5) {
            let seen = ask(server.address, &Ask::Continue(PROMPT), model, 2).await?;
            times.push(ms(seen.first - seen.sent));
        }
        Ok(times)
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wished = connections as u64 + 512;
    ensure!(hard >= wished, "the system allows {hard} open files only");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wished), hard)?;
    let before = first().await?;
    let resident = server.resident_bytes()?;
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(TcpStream::connect(server.address).await?);
    }
    let beside = first().await?;
    let more = server.resident_bytes()?.saturating_sub(resident);
    drop(open);
    Ok(Idle { bytes_each: more as f64 / connections.max(1) as f64, before, beside })
}
