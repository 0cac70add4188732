//! Gemma 2 and 3 (text).
//!
//! Norm weights are stored less one, outputs of attention and feed-forward are normed too, embeddings are scaled by
//! √hidden (rounded to bfloat16 in Gemma 3), and some layers see a window only.

use ollmlx_proto::Failure;
use serde_json::Map;

use crate::config::Config;
use crate::limits::LAYERS_MAX;
use crate::model::decoder::DecoderSpec;
use crate::model::mlp::Activation;
use crate::model::rope::Rope;

fn common(config: &Config<'_>, rope_base: f64) -> Result<DecoderSpec, Failure> {
    let mut spec = DecoderSpec::common(config, rope_base)?;
    spec.norm_plus_one = true;
    spec.norm_outputs = true;
    spec.activation = Activation::GeluTanh;
    spec.embedding_scale = Some((spec.hidden as f32).sqrt());
    Ok(spec)
}

/// Gemma 2: soft caps, and a window in every other layer.
///
/// # Errors
/// A value is bad (named).
pub fn spec2(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut spec = common(config, 1e4)?;
    let scalar = config.number_or("query_pre_attn_scalar", 1e-3..=1e6, 144.0)?;
    spec.score_scale = (1.0 / scalar.sqrt()) as f32;
    spec.score_cap = Some(config.number_or("attn_logit_softcapping", 1e-3..=1e6, 50.0)? as f32);
    spec.logit_cap = Some(config.number_or("final_logit_softcapping", 1e-3..=1e6, 30.0)? as f32);
    let sliding = match spec.read_layer_types(config)? {
        Some(sliding) => sliding,
        None => (0..spec.layers).map(|index| index % 2 == 0).collect(),
    };
    spec.set_windows(&sliding, config.count_or("sliding_window", 1 << 30, 4096)?);
    Ok(spec)
}

/// What Gemma 3's configuration class assumes where the file is silent (files of the larger ones are).
const GEMMA3_DEFAULTS: [(&str, u32); 8] = [
    ("hidden_size", 1152),
    ("num_hidden_layers", 26),
    ("intermediate_size", 6912),
    ("num_attention_heads", 4),
    ("num_key_value_heads", 1),
    ("head_dim", 256),
    ("vocab_size", 262_144),
    ("max_position_embeddings", 32_768),
];

/// Gemma 3: queries and keys are normed by head, one layer in six sees everything, the others turn faster.
///
/// # Errors
/// A value is bad (named).
pub fn spec3(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut full: Map<String, serde_json::Value> =
        config.entries().map(|(key, value)| (key.clone(), value.clone())).collect();
    for (key, value) in GEMMA3_DEFAULTS {
        // A null is not filled in: it is refused where it is read.
        full.entry(key).or_insert_with(|| value.into());
    }
    let config = &Config::new(&full, "");
    let mut spec = common(config, 1e6)?;
    spec.norm_heads = true;
    let scalar = config.number_or("query_pre_attn_scalar", 1e-3..=1e6, 256.0)?;
    spec.score_scale = (1.0 / scalar.sqrt()) as f32;
    spec.embedding_scale = spec.embedding_scale.map(round_to_bfloat16);
    let local = config.number_or("rope_local_base_freq", 1.0..=1e12, 1e4)?;
    spec.rope_sliding = Some(Rope::plain(spec.head_width, local));
    let pattern_key = if config.get("sliding_window_pattern").is_some() {
        "sliding_window_pattern"
    } else {
        "_sliding_window_pattern"
    };
    let pattern = config.count_or(pattern_key, LAYERS_MAX, 6)? as i32;
    let sliding = match spec.read_layer_types(config)? {
        Some(sliding) => sliding,
        None => (0..spec.layers).map(|index| (index + 1) % pattern != 0).collect(),
    };
    spec.set_windows(&sliding, config.count_or("sliding_window", 1 << 30, 512)?);
    // Tied unless the checkpoint has an output layer.
    spec.tied = None;
    Ok(spec)
}

/// Round half to even on the upper 16 bits.
fn round_to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedding_scale_is_rounded_as_bfloat16() {
        // √640 = 25.298…; bfloat16 has 8 bits of mantissa.
        assert_eq!(round_to_bfloat16(640_f32.sqrt()), 25.25);
        assert_eq!(round_to_bfloat16(1.0), 1.0);
    }
}
