//! The worker process of MLX models.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use ollmlx_worker_mlx::engine::MlxBackend;

fn main() -> ExitCode {
    ollmlx_worker_kit::serve::main::<MlxBackend>()
}
