//! The GGUF engine process of ollmlx.

use std::process::ExitCode;

use ollmlx_worker_gguf::{GgufBackend, cpu, ffi};

fn main() -> ExitCode {
    ffi::log::calm_crashes();
    cpu::calm_threads();
    ollmlx_worker_kit::serve::main::<GgufBackend>()
}
