//! `ollmlx-stress`: black-box runs against real servers, over HTTP only.
//!
//! It knows nothing of the product's crates, so that what it measures is what a client sees. Figures are ratios of
//! medians over alternating rounds of one run: both servers are up, one at a time is under load, and whatever else
//! the machine does hits both.

#![forbid(unsafe_code)]

mod compare;
mod load;
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Command::Compare(options) = arguments.command;
    match runtime.block_on(compare::run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
