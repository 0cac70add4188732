//! `ollmlx-worker-gguf`: serves one GGUF model on llama.cpp. Started by the supervisor, not by hand.

#![deny(unsafe_op_in_unsafe_fn)]

mod cpu;
mod engine;
mod facts;
mod ffi;
mod gguf;
mod load;
mod sanity;

use std::process::ExitCode;

fn main() -> ExitCode {
    ollmlx_worker_kit::serve::main::<load::GgufBackend>()
}
