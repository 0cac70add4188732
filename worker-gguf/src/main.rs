//! The GGUF engine process of ollmlx.

use std::process::ExitCode;

use ollmlx_worker_gguf::{GgufBackend, cpu};

fn main() -> ExitCode {
    cpu::calm_threads();
    ollmlx_worker_kit::serve::main::<GgufBackend>()
}
