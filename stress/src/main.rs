//! `ollmlx-stress`: black-box runs against real servers, over HTTP only.
//!
//! But for one worker that is driven without supervisor it knows nothing of the product's crates, so that what it measures is what a client sees. Figures are ratios of
//! medians over alternating rounds of one run: both servers are up, one at a time is under load, and whatever else
//! the machine does hits both.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is run by a person, who reads it")]

mod chaos;
mod checkpoint;
mod compare;
mod compare_mlx;
mod direct;
mod estimate;
mod lines;
mod load;
mod report;
mod server;
mod soak;
mod stats;
mod supervision;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Load and comparison runs against ollmlx.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Decode and first-token speed against llama-server, with the same file and thread count.
    Compare(Compare),
    /// Decode and prompt speed against mlx_lm.server, with the same checkpoint on the CPU, and the worker's peak memory.
    CompareMlx(CompareMlx),
    /// The pause when a worker is killed, the speed that supervision costs, idle connections, and clients that leave.
    Supervision(Supervision),
    /// Kill workers at random under streaming clients, and hold every stream against a calm run of its prompt.
    ///
    /// Starts a server of its own, records a greedy answer to each of a fixed set of prompts alone, then lets clients stream
    /// them in a loop (NDJSON and SSE) while a random worker is struck again and again with SIGKILL, SIGSTOP, SIGTERM, SIGABRT
    /// or SIGSEGV.
    ///
    /// What is promised, and must be zero for exit status 0: tokens lost, duplicated or reordered, streams that error, end
    /// twice or are counted wrongly, and answers that go another way where no two tokens were as good as equal.
    ///
    /// What is not promised: the same choice between two tokens that are as good as equal (log probabilities within 0.5),
    /// since sums are rounded in another order where other requests share a step. Such streams are counted apart; with
    /// --strict they must be zero as well.
    ///
    /// SIGABRT and SIGSEGV look like crashes of the engine, and a request that is alone at its second crash within 16 tokens
    /// is taken for their reason. So they are only sent to a worker all of whose streams have got on since it was last
    /// struck; else SIGKILL is sent in their place. SIGKILL and SIGTERM from outside are never held against a request.
    #[command(verbatim_doc_comment)]
    Chaos(Chaos),
    /// What models were expected to take against what they took with every slot filled, or as many inputs embedded (Linux).
    Estimate(Estimate),
    /// Models that do not fit together take turns for a long time; what grows, fails or is left behind (Linux).
    Soak(Soak),
}

#[derive(Debug, clap::Args)]
struct Compare {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// GGUF file that both servers load.
    #[arg(long)]
    model: PathBuf,
    /// The llama-server binary to compare with.
    #[arg(long)]
    llama_server: PathBuf,
    /// Threads of either engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Alternating rounds; medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens per answer.
    #[arg(long, default_value_t = 128)]
    tokens: u32,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct CompareMlx {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// Checkpoint folder, in its stock precision (`./dev models` names one).
    #[arg(long)]
    model: PathBuf,
    /// The same with 32-bit scales, for the peer (tests/models/mlx_float32.py makes it).
    #[arg(long)]
    float32: PathBuf,
    /// A Python that has mlx-lm and mlx[cpu].
    #[arg(long)]
    python: PathBuf,
    /// Threads of our engine, and of the peer's matrix library.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Alternating rounds; medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens per answer.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Tokens of the peer's answer with the stock checkpoint, some seconds each; 0 leaves it out.
    #[arg(long, default_value_t = 8)]
    stock_tokens: u32,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Supervision {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// A GGUF file or a checkpoint's folder; may be given several times.
    #[arg(long, required = true)]
    model: Vec<PathBuf>,
    /// Threads of the engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Kills, and as many of everything else; medians are reported.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Tokens of an answer whose speed is measured.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Estimate {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// GGUF files and MLX folders.
    #[arg(long, required = true, num_args = 1..)]
    model: Vec<PathBuf>,
    /// Windows of a slot, in tokens; longer than the model's own are that.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048, 8192])]
    contexts: Vec<u32>,
    /// Numbers of slots.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8])]
    slots: Vec<usize>,
    /// Have models that generate embed instead; those for embeddings always do.
    #[arg(long)]
    embed: bool,
    /// Threads of an engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Soak {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// GGUF files and MLX folders, two at least.
    #[arg(long, required = true, num_args = 1..)]
    model: Vec<PathBuf>,
    /// For how long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Threads of an engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Chaos {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// A model: a GGUF file or an MLX checkpoint's folder. May be given several times.
    #[arg(long = "model", required = true)]
    models: Vec<PathBuf>,
    /// How long new streams are begun.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The same in seconds.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,
    /// Streams at the same time, over all models.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// From one strike to the next; 0 is none at all.
    #[arg(long, default_value_t = 2000)]
    kill_every_ms: u64,
    /// Of the choice of victims and signals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of each engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Whether a tie must be decided as in the calm run, too.
    #[arg(long)]
    strict: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Chaos {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(self.minutes * 60))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let held = match &arguments.command {
        Command::Compare(options) => runtime.block_on(compare::run(options)),
        Command::Estimate(options) => runtime.block_on(estimate::run(options)),
        Command::CompareMlx(options) => runtime.block_on(compare_mlx::run(options)),
        Command::Supervision(options) => runtime.block_on(supervision::run(options)),
        Command::Soak(options) => runtime.block_on(soak::run(options)),
        Command::Chaos(options) => runtime.block_on(chaos::run(options)),
    };
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
