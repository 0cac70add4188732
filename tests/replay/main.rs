//! Replays a record of `ollmlx why --record FILE` and prints what is decided at which time:
//! `cargo run -p ollmlx-tests --bin replay -- FILE`. Exit status 1 where that is something else than was decided then; in a
//! record that begins late this is only told.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "whoever started it reads it")]

use std::process::ExitCode;

use ollmlx_supervisor::driver::record::{Replay, ReplayedStep, replay};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: replay FILE");
        return ExitCode::from(2);
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    match replay(&text) {
        Ok(replay) => told(&replay),
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}

fn told(replay: &Replay) -> ExitCode {
    println!("written by ollmlx {}: {} events", replay.version, replay.steps.len());
    if replay.forgotten > 0 {
        println!("begins late: {} events before it are not in it, so what is decided may differ", replay.forgotten);
    }
    let differ = replay.steps.iter().filter(|step| !step_told(step)).count();
    println!("{differ} events led to something else than they did then");
    if differ > 0 && replay.forgotten == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether the same was decided.
fn step_told(step: &ReplayedStep) -> bool {
    let same = step.recorded == step.decided;
    println!("{:>14.6} s  {}", step.at.0 as f64 / 1e9, step.event);
    for decision in &step.decided {
        println!("                    -> {decision}");
    }
    if !same {
        for decision in &step.recorded {
            println!("                  then {decision}");
        }
    }
    same
}
