//! The GGUF engine of ollmlx, on llama.cpp.
//!
//! [`GgufBackend`] reads a model's facts with an own, bounded parser ([`gguf`]) and loads it with llama.cpp
//! ([`engine`]). Nothing of requests, text or sampling is known here. llama.cpp aborts the process on some damaged
//! files and on arguments out of range: the first is why an engine is a process, the second is why the
//! kit checks every id and length before it goes down. `unsafe` is in [`ffi`] only.

pub mod card;
pub mod cpu;
pub mod engine;
pub mod ffi;
pub mod gguf;
pub mod limits;
pub mod memory;

use std::path::PathBuf;

use ollmlx_proto::{Failure, LoadSpec, ModelCard};
use ollmlx_worker_kit::engine::{Backend, LoadProgress};

/// What the worker binary gives to the kit.
#[derive(Clone, Copy, Debug)]
pub struct GgufBackend;

impl Backend for GgufBackend {
    type Engine = engine::GgufEngine;

    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
        card::inspect(paths)
    }

    fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<Self::Engine, Failure> {
        engine::load(spec, progress)
    }
}
