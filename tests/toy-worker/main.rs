//! A worker with a toy model: the real worker kit (sockets, batching, sampling, text, stop strings, grammars, chat formats,
//! injected faults) around an engine that computes in microseconds.

#![forbid(unsafe_code)]

mod engine;

use std::process::ExitCode;

fn main() -> ExitCode {
    ollmlx_worker_kit::serve::main::<engine::ToyBackend>()
}
