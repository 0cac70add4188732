//! Whether a worker's death is nobody's problem: clients stream known answers while workers are struck at random.

mod killer;
mod prompt;
mod report;
mod verdict;
mod ward;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;

use self::killer::{Killer, Luck, Strikes};
use self::prompt::Prompt;
use self::report::Report;
use self::verdict::{Heard, Verdict, judge};
use self::ward::Ward;
use crate::Chaos;
use crate::lines::{get, post};
use crate::server::{Server, free_address, ollmlx};

/// Requests that a model answers at once.
const SLOTS: usize = 4;
/// Longest time without a byte. Above what the server takes to notice a hang.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// What all clients share.
#[derive(Debug)]
struct Round {
    address: SocketAddr,
    models: Vec<String>,
    prompts: Vec<Prompt>,
    calm: Vec<Heard>,
    wards: Vec<Arc<Ward>>,
    until: Instant,
    clients: usize,
}

/// One stream, judged.
#[derive(Debug)]
struct Outcome {
    verdict: Verdict,
    /// Where it went another way, and how close the next best token was there.
    diverged: Option<(usize, f64)>,
    /// Whether its worker was struck while it ran.
    struck: bool,
    tokens: usize,
    pauses: Vec<Duration>,
    what: String,
}

/// Runs it and prints what came of it. Returns whether nothing was lost.
pub(crate) async fn run(options: &Chaos) -> Result<bool> {
    let home = tempfile::tempdir()?;
    let address = free_address()?;
    let mut models = Vec::new();
    for model in &options.models {
        let path = model.canonicalize().with_context(|| format!("{} is not there", model.display()))?;
        models.push(path.to_str().context("a model's path is not UTF-8")?.to_owned());
    }
    ensure!(!models.is_empty() && options.clients > 0, "a model and a client are needed");
    let mut server =
        Server::start(ollmlx(&options.bin_dir, home.path(), address, SLOTS, options.threads), address).await?;
    let prompts = prompt::all(models.len());
    let mut calm = Vec::new();
    for prompt in &prompts {
        let heard = stream(address, prompt, &models[prompt.model], &Ward::default(), 0).await.0;
        ensure!(heard.trouble.is_none() && heard.ends == 1, "a calm run failed: {:?}", heard.trouble);
        ensure!(!heard.tokens.is_empty(), "a calm run brought no tokens");
        calm.push(heard);
    }
    eprintln!("{} prompts recorded; {} clients for {:?}", prompts.len(), options.clients, options.duration());
    let wards: Vec<Arc<Ward>> = models.iter().map(|_| Arc::default()).collect();
    let until = Instant::now() + options.duration();
    let round = Round { address, models, prompts, calm, wards, until, clients: options.clients };
    let (outcomes, strikes) = storm(Arc::new(round), options).await?;
    let metrics = get(address, "/metrics").await.context("the server does not answer after the storm")?;
    ensure!(server.is_running()?, "the server ended");
    let report = Report::of(&outcomes, &strikes, &metrics);
    report.print(options);
    Ok(report.holds(options))
}

async fn storm(round: Arc<Round>, options: &Chaos) -> Result<(Vec<Outcome>, Strikes)> {
    let mut clients = JoinSet::new();
    for client in 0..round.clients {
        clients.spawn(client_loop(Arc::clone(&round), client));
    }
    let killer = Killer {
        address: round.address,
        models: round.models.clone(),
        wards: round.wards.clone(),
        luck: Luck(options.seed),
        every: Duration::from_millis(options.kill_every_ms.max(1)),
    };
    let strikes = if options.kill_every_ms > 0 { killer.run(round.until).await? } else { Strikes::new() };
    let mut outcomes = Vec::new();
    while let Some(done) = clients.join_next().await {
        outcomes.extend(done?);
    }
    Ok((outcomes, strikes))
}

/// One client: one prompt after the other, each begun before the time is over heard to its end.
async fn client_loop(round: Arc<Round>, client: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let models = round.models.len();
    let each = round.prompts.len() / models;
    let mut turn = client / models;
    while Instant::now() < round.until {
        let index = (client % models) * each + turn % each;
        let (prompt, calm) = (&round.prompts[index], &round.calm[index]);
        let ward = &round.wards[prompt.model];
        let id = (turn * round.clients + client) as u64;
        let (heard, events) = stream(round.address, prompt, &round.models[prompt.model], ward, id).await;
        let (verdict, at) = judge(calm, &heard);
        let struck = events.first().zip(events.last()).is_some_and(|(from, to)| ward.was_struck(*from, *to));
        let diverged = at.map(|at| (at, calm.tokens.get(at).map_or(f64::INFINITY, |token| token.margin)));
        let what = match &heard.trouble {
            Some(trouble) => format!("{prompt:?}: {trouble}"),
            None => format!("{prompt:?}: {} of {} tokens, {:?}", heard.tokens.len(), calm.tokens.len(), heard.counts),
        };
        if verdict != Verdict::Exact {
            eprintln!("{}: {what} {diverged:?}{}", verdict.words(), if struck { ", struck" } else { "" });
        }
        let (tokens, pauses) = (heard.tokens.len(), ward.pauses(&events));
        outcomes.push(Outcome { verdict, diverged, struck, tokens, pauses, what });
        turn += 1;
    }
    outcomes
}

/// One answer to its end, and when what of it came, its start first.
async fn stream(address: SocketAddr, prompt: &Prompt, model: &str, ward: &Ward, id: u64) -> (Heard, Vec<Instant>) {
    let mut heard = Heard::default();
    let mut events = vec![Instant::now()];
    ward.open(id);
    let mut came = |tokens| {
        events.push(Instant::now());
        ward.got(id, tokens);
    };
    let listened = listen(address, prompt, model, &mut heard, &mut came).await;
    if let Err(error) = listened {
        heard.trouble.get_or_insert_with(|| format!("{error:#}"));
    }
    ward.close(id);
    (heard, events)
}

async fn listen(
    address: SocketAddr,
    prompt: &Prompt,
    model: &str,
    heard: &mut Heard,
    came: &mut impl FnMut(usize),
) -> Result<()> {
    let silent = || format!("silent for {SILENCE_MAX:?}");
    let body = prompt.body(model);
    let opened = tokio::time::timeout(SILENCE_MAX, post(address, prompt.path(), &body)).await;
    let mut lines = opened.with_context(silent)??;
    while let Some(line) = tokio::time::timeout(SILENCE_MAX, lines.next()).await.with_context(silent)?? {
        let tokens = prompt.take(&line, heard);
        if tokens > 0 {
            came(tokens);
        }
    }
    Ok(())
}
