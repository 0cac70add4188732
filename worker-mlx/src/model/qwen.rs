//! Qwen 2, Qwen 3 and Qwen 3 with experts.

use ollmlx_proto::Failure;

use crate::config::{Config, invalid};
use crate::limits::{EXPERTS_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::model::decoder::DecoderSpec;
use crate::model::mlp::MoeSpec;

/// Qwen 2: biases on queries, keys and values, which the checkpoint brings.
///
/// # Errors
/// A value is bad (named).
pub fn spec2(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    DecoderSpec::common(config, 1e6)
}

/// Qwen 3: queries and keys are normed by head.
///
/// # Errors
/// A value is bad (named).
pub fn spec3(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut spec = DecoderSpec::common(config, 1e6)?;
    spec.norm_heads = true;
    Ok(spec)
}

/// Qwen 3 with experts.
///
/// # Errors
/// A value is bad (named).
pub fn spec3_moe(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut spec = spec3(config)?;
    let experts = config.count("num_experts", EXPERTS_MAX)?;
    let chosen = config.count("num_experts_per_tok", experts)?;
    let step = config.count_or("decoder_sparse_step", LAYERS_MAX, 1)?;
    let dense = config.list("mlp_only_layers", LAYERS_MAX as usize)?.unwrap_or_default();
    let mut layers = Vec::new();
    for index in 0..spec.layers as u32 {
        let listed = dense.iter().any(|layer| layer.as_u64() == Some(u64::from(index)));
        layers.push(!listed && (index + 1).is_multiple_of(step));
    }
    if dense.iter().any(|layer| !layer.is_u64()) {
        return Err(invalid("config.json: mlp_only_layers must be a list of layer numbers"));
    }
    let moe = MoeSpec {
        experts: experts as i32,
        chosen: chosen as i32,
        width: config.count("moe_intermediate_size", WIDTH_MAX)? as i32,
        normalise: config.flag("norm_topk_prob")?.unwrap_or(false),
    };
    spec.moe = Some((moe, layers));
    Ok(spec)
}
