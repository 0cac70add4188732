//! The model families, and what the engine needs of any of them.
//!
//! A family file turns `config.json` into a [`decoder::DecoderSpec`]: sizes, norms, windows, rotations. The
//! computation is in [`decoder`], once for all. Text encoders are [`bert`].

pub mod attention;
pub mod bert;
pub mod decoder;
pub mod gemma;
pub mod llama;
pub mod mlp;
pub mod phi;
pub mod qwen;
pub mod rope;

use ollmlx_proto::Failure;

use crate::config::{Config, invalid};
use decoder::DecoderSpec;

/// What a configuration describes.
#[derive(Clone, Debug)]
pub enum ModelSpec {
    /// Text continues.
    Decoder(Box<DecoderSpec>),
    /// Text becomes a vector.
    Encoder(bert::BertSpec),
}

/// Reads `config.json` of a supported family.
///
/// # Errors
/// The family is not supported, or a value is bad (named).
pub fn read_spec(config: &Config<'_>) -> Result<ModelSpec, Failure> {
    let family = config.text("model_type")?.ok_or_else(|| invalid("config.json: model_type is missing"))?;
    if config.get("model_file").is_some() || config.get("auto_map").is_some() && !is_known(family) {
        return Err(invalid("config.json names Python code of its own, which is never run"));
    }
    let decoder = |spec: DecoderSpec| Ok(ModelSpec::Decoder(Box::new(spec)));
    match family {
        "llama" | "mistral" => decoder(llama::spec(config)?),
        "qwen2" => decoder(qwen::spec2(config)?),
        "qwen3" => decoder(qwen::spec3(config)?),
        "qwen3_moe" => decoder(qwen::spec3_moe(config)?),
        "gemma2" => decoder(gemma::spec2(config)?),
        "gemma3_text" => decoder(gemma::spec3(config)?),
        "gemma3" => {
            let text = config.object("text_config", "text_config.")?;
            decoder(gemma::spec3(&text.ok_or_else(|| invalid("config.json: text_config is missing"))?)?)
        }
        "phi3" => decoder(phi::spec(config)?),
        "bert" => bert::spec(config).map(ModelSpec::Encoder),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(invalid(format!("config.json: the model_type {other} is not supported by the MLX engine")))
        }
    }
}

fn is_known(family: &str) -> bool {
    matches!(
        family,
        "llama" | "mistral" | "qwen2" | "qwen3" | "qwen3_moe" | "gemma2" | "gemma3" | "gemma3_text" | "phi3" | "bert"
    )
}
