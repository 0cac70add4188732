//! `ollmlx-stress`: black-box runs against real servers, over HTTP only.
//!
//! It knows nothing of the product's crates, so that what it measures is what a client sees. Figures are ratios of
//! medians over alternating rounds of one run: both servers are up, one at a time is under load, and whatever else
//! the machine does hits both.

#![forbid(unsafe_code)]

mod checkpoint;
mod compare;
mod compare_mlx;
mod estimate;
mod load;
mod report;
mod server;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

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
    /// What models were expected to take against what they took with every slot filled (Linux).
    Estimate(Estimate),
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
struct Estimate {
    /// Folder that holds `ollmlx` and its workers (the last line of `./dev build`).
    #[arg(long)]
    bin_dir: PathBuf,
    /// GGUF files and MLX folders.
    #[arg(long, required = true, num_args = 1..)]
    model: Vec<PathBuf>,
    /// Windows of a slot, in tokens.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048, 8192])]
    contexts: Vec<u32>,
    /// Numbers of slots.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8])]
    slots: Vec<usize>,
    /// Threads of an engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
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
