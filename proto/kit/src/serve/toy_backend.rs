//! The toy engine as a backend: what happens depends on the file name.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use ollmlx_proto::{Failure, FailureKind, LoadSpec, ModelCard};

use crate::batch::toy::Toy;
use crate::engine::{Backend, EngineError, LoadProgress};

/// Until then the first step of `long.gguf` computes.
pub(crate) static LONG_STEP_ENDS: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
pub(crate) struct ToyBackend;

fn name(paths: &[PathBuf]) -> String {
    paths.first().map(|path| path.display().to_string()).unwrap_or_default()
}

impl Backend for ToyBackend {
    type Engine = Toy;

    fn inspect(paths: &[PathBuf]) -> Result<ModelCard, Failure> {
        match name(paths).as_str() {
            "missing.gguf" => Err(Failure::new(FailureKind::ModelInvalid, "no such file")),
            "panic.gguf" => panic!("as asked"),
            _ => Ok(ModelCard {
                format: "gguf".to_owned(),
                architecture: "toy".to_owned(),
                parameter_count: 1,
                quantization: "F32".to_owned(),
                context_length: 64,
                embedding_length: 4,
                block_count: 1,
                vocab_size: 258,
                weight_bytes: 4,
                memory: ollmlx_proto::MemoryModel::default(),
                chat_template: None,
                chat_template_fault: None,
                builtin_template: None,
                capabilities: Vec::new(),
                metadata: "{}".to_owned(),
                tensors: Vec::new(),
            }),
        }
    }

    fn load(spec: &LoadSpec, progress: LoadProgress<'_>) -> Result<Toy, Failure> {
        for done in 0..=1000 {
            if !progress(done, 1000) {
                return Err(Failure::new(FailureKind::LoadFailed, "aborted"));
            }
        }
        let mut toy = Toy::load(spec);
        match name(&spec.weights).as_str() {
            "missing.gguf" => return Err(Failure::new(FailureKind::ModelInvalid, "no such file")),
            "panic.gguf" => panic!("as asked"),
            "broken.gguf" => toy.failures.push_back(Some(EngineError::Broken("as asked".to_owned()))),
            "long.gguf" => toy.long_until = Some(&LONG_STEP_ENDS),
            "explode.gguf" => toy.explode = true,
            _ => {}
        }
        Ok(toy)
    }
}
