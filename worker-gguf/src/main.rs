//! The GGUF engine process of ollmlx.

use std::process::ExitCode;

use ollmlx_worker_gguf::GgufBackend;

fn main() -> ExitCode {
    ollmlx_worker_kit::serve::main::<GgufBackend>()
}
