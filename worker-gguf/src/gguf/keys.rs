//! The keys that llama.cpp's loader reads and computes with, and what each may be.
//!
//! One table: a key, its bound, and what happens without it. It was made by going through `llama-arch.cpp`,
//! `llama-model.cpp` and `models/*.cpp`. A key that is not in it is not counted with. What depends on several keys is in
//! [`super::relations`].

use super::limits::{
    CONTEXT_MAX, EXPERTS_MAX, GROUPS_MAX, HEADS_MAX, LAYERS_MAX, SCALE_MAX, STATE_MAX, VOCAB_MAX, WIDTH_MAX,
};
use super::{GgufError, Header, Value};

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// An integer.
    Count(u64, u64),
    /// An integer, or a list of integers or flags with one for each layer.
    PerLayer(u64, u64),
    /// A list of at most so many integers, or one integer.
    List(u64, u64),
    /// A finite number.
    Number(f64, f64),
    /// The same, or a list of numbers.
    Numbers,
    /// True or false.
    Flag,
    /// A text.
    Text,
}

use Bound::{Count, Flag, List, Number, Numbers, PerLayer, Text};

/// Of the architecture: what follows its name, the bound, and why there is one.
const OF_ARCHITECTURE: &[(&str, Bound, &str)] = &[
    ("block_count", Count(1, LAYERS_MAX), "arrays of this many layers"),
    ("embedding_length", Count(1, WIDTH_MAX), "sizes are products of it"),
    ("context_length", Count(1, CONTEXT_MAX), "positions have 31 bits"),
    ("vocab_size", Count(0, VOCAB_MAX), "tokens are made for it"),
    ("embedding_length_out", Count(0, WIDTH_MAX), "vectors are copied by it"),
    ("embedding_length_per_layer_input", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("features_length", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("leading_dense_block_count", Count(0, LAYERS_MAX), "layers are counted from it"),
    ("attn_res.block_size", Count(0, LAYERS_MAX), "layers are divided by it"),
    ("feed_forward_length", PerLayer(0, WIDTH_MAX), "copied to a fixed array"),
    ("expert_feed_forward_length", PerLayer(0, WIDTH_MAX), "copied to a fixed array"),
    ("expert_shared_feed_forward_length", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("expert_chunk_feed_forward_length", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("expert_count", Count(0, EXPERTS_MAX), "a fixed array; more ends the process"),
    ("expert_used_count", PerLayer(0, EXPERTS_MAX), "copied to a fixed array"),
    ("expert_shared_count", Count(0, EXPERTS_MAX), "sizes are products of it"),
    ("expert_group_count", Count(0, EXPERTS_MAX), "experts are divided by it"),
    ("expert_group_used_count", Count(0, EXPERTS_MAX), "groups are chosen by it"),
    ("experts_per_group", Count(1, EXPERTS_MAX), "experts are divided by it"),
    ("expert_latent_length", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("expert_gating_func", Count(1, 4), "an enumeration; others end the process"),
    ("expert_weights_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("expert_group_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("expert_weights_norm", Flag, "computed with"),
    ("moe_every_n_layers", Count(0, LAYERS_MAX), "layers are divided by it"),
    ("moe_latent_size", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("interleave_moe_layer_step", Count(0, LAYERS_MAX), "layers are divided by it"),
    ("nextn_predict_layers", Count(0, LAYERS_MAX - 1), "layers are counted down by it"),
    ("n_deepstack_layers", Count(0, LAYERS_MAX), "sizes are products of it"),
    ("deepstack_mapping", List(LAYERS_MAX, LAYERS_MAX), "copied to a fixed array"),
    ("full_attention_interval", Count(1, LAYERS_MAX), "layers are divided by it: 0 ends the process"),
    ("num_loops", Count(1, LAYERS_MAX), "layers are repeated by it"),
    ("hrm.layers_per_stack", Count(1, LAYERS_MAX), "0 ends the process"),
    ("hrm.h_cycles", Count(1, LAYERS_MAX), "0 ends the process"),
    ("hrm.l_cycles", Count(1, LAYERS_MAX), "0 ends the process"),
    ("hash_layer_count", Count(0, LAYERS_MAX), "layers are counted from it"),
    ("decoder_block_count", Count(0, LAYERS_MAX), "arrays of this many layers"),
    ("decision.block_count", Count(0, LAYERS_MAX), "layers are counted down by it"),
    ("decision.routing_block_count", Count(0, LAYERS_MAX), "arrays of this many layers"),
    ("decision.head_count", Count(1, HEADS_MAX), "widths are divided by it"),
    ("adapters.count", Count(0, EXPERTS_MAX), "sizes are products of it"),
    ("adapters.lora_rank", Count(0, EXPERTS_MAX), "sizes are products of it"),
    ("rescale_every_n_layers", Count(0, LAYERS_MAX), "layers are divided by it"),
    ("time_mix_extra_dim", Count(1, HEADS_MAX), "sizes are products of it"),
    ("time_decay_extra_dim", Count(1, HEADS_MAX), "sizes are products of it"),
    ("token_shift_count", Count(1, GROUPS_MAX), "states are sized by it"),
    ("wkv.head_size", Count(1, HEADS_MAX), "widths are divided by it: 0 ends the process"),
    ("shortconv.l_cache", Count(1, STATE_MAX), "states are sized by one less"),
    ("kda.head_dim", Count(1, HEADS_MAX), "states are sized by its square"),
    ("kda.safe_gate", Flag, "computed with"),
    ("kda.gate_lower_bound", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("ssm.conv_kernel", Count(1, STATE_MAX), "states are sized by one less"),
    ("ssm.inner_size", Count(1, WIDTH_MAX), "states are sized by it"),
    ("ssm.state_size", Count(1, HEADS_MAX), "states are sized by it"),
    ("ssm.time_step_rank", Count(1, HEADS_MAX), "widths are divided by it: 0 ends the process"),
    ("ssm.group_count", Count(0, HEADS_MAX), "widths are divided by it"),
    ("ssm.dt_b_c_rms", Flag, "computed with"),
    ("hyper_connection.count", Count(1, GROUPS_MAX), "sizes are products of it"),
    ("hyper_connection.low_rank", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("hyper_connection.sinkhorn_iterations", Count(0, STATE_MAX), "a graph is built by it"),
    ("hyper_connection.epsilon", Number(0.0, 1.0), "computed with"),
    ("hyper_connection.magnitude", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("ple.ngram_size", Count(2, GROUPS_MAX), "copied to a fixed array"),
    ("ple.heads_per_ngram", Count(1, 64), "copied to a fixed array"),
    ("ple.conv_kernel", Count(1, STATE_MAX), "states are sized by one less"),
    ("ple.layers", List(1, LAYERS_MAX), "layers are indexed by it"),
    ("attention.head_count", PerLayer(0, HEADS_MAX), "copied to a fixed array"),
    ("attention.head_count_kv", PerLayer(0, HEADS_MAX), "copied to a fixed array"),
    ("attention.key_length", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.value_length", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.key_length_mla", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.value_length_mla", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.key_length_swa", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.value_length_swa", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.key_length_mla_swa", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.value_length_mla_swa", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.q_lora_rank", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.kv_lora_rank", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.kv_lora_rank_swa", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.decay_lora_rank", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.iclr_lora_rank", Count(1, HEADS_MAX), "sizes are products of it"),
    ("attention.value_residual_mix_lora_rank", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.gate_lora_rank", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.output_group_count", Count(1, HEADS_MAX), "heads are divided by it: 0 ends the process"),
    ("attention.output_lora_rank", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.compress_ratios", List(LAYERS_MAX, HEADS_MAX), "copied to a fixed array"),
    ("attention.group_norm_groups", Count(1, WIDTH_MAX), "widths are divided by it"),
    ("attention.relative_buckets_count", Count(2, HEADS_MAX), "positions are divided by it"),
    ("attention.sliding_window", Count(0, CONTEXT_MAX), "a cache is sized by it, in 32 bits"),
    ("attention.sliding_window_pattern", PerLayer(0, LAYERS_MAX), "copied to a fixed array"),
    ("attention.recurrent_layers", PerLayer(0, 1), "copied to a fixed array"),
    ("attention.rope_pattern", PerLayer(0, 1), "copied to a fixed array"),
    ("attention.shared_kv_layers", Count(0, LAYERS_MAX), "layers are counted down by it"),
    ("attention.temperature_length", Count(0, CONTEXT_MAX), "positions are divided by it"),
    ("attention.temperature_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("attention.indexer.head_count", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.indexer.key_length", Count(0, HEADS_MAX), "sizes are products of it"),
    ("attention.indexer.top_k", Count(0, CONTEXT_MAX), "positions are chosen by it"),
    ("attention.indexer.block_size", Count(1, CONTEXT_MAX), "positions are divided by it: 0 ends the process"),
    ("attention.indexer.local_blocks", Count(0, HEADS_MAX), "positions are chosen by it"),
    ("attention.indexer.kpool", Count(0, HEADS_MAX), "positions are divided by it"),
    ("attention.indexer.types", List(LAYERS_MAX, 1), "copied to a fixed array"),
    ("attention.indexer.kpool_select_tail", Flag, "computed with"),
    ("attention.causal", Flag, "decides how batches are cut"),
    ("attention.layer_norm_epsilon", Number(0.0, 1.0), "less than 0 ends the process"),
    ("attention.layer_norm_rms_epsilon", Number(0.0, 1.0), "less than 0 ends the process"),
    ("attention.group_norm_epsilon", Number(0.0, 1.0), "less than 0 ends the process"),
    ("attention.max_alibi_bias", Number(0.0, SCALE_MAX), "computed with"),
    ("attention.clamp_kqv", Number(0.0, SCALE_MAX), "computed with"),
    ("attention.scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("attention.output_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("attention.value_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("attention.compress_rope_freq_base", Number(0.0, SCALE_MAX), "computed with"),
    ("attn_logit_softcapping", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("router_logit_softcapping", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("final_logit_softcapping", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("logit_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("residual_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("embedding_scale", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("activation.situ_beta", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("activation.situ_linear_beta", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("adapters.router_gain", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("swiglu_clamp_exp", Numbers, "copied to a fixed array"),
    ("swiglu_clamp_shexp", Numbers, "copied to a fixed array"),
    ("use_parallel_residual", Flag, "computed with"),
    ("swin_norm", Flag, "computed with"),
    ("skip_loop_final_norm", Flag, "computed with"),
    ("hrm.prefix_lm", Flag, "computed with"),
    ("rope.dimension_count", Count(0, HEADS_MAX), "part of a head; more ends the process"),
    ("rope.dimension_count_swa", Count(0, HEADS_MAX), "part of a head; more ends the process"),
    ("rope.dimension_sections", List(4, HEADS_MAX), "parts of a head; more ends the process"),
    ("rope.freq_base", Number(0.0, SCALE_MAX), "computed with"),
    ("rope.freq_base_swa", Number(0.0, SCALE_MAX), "computed with"),
    ("rope.scale_linear", Number(0.0, SCALE_MAX), "divided by"),
    ("rope.scaling.factor", Number(0.0, SCALE_MAX), "divided by"),
    ("rope.scaling.alpha", Number(0.0, SCALE_MAX), "computed with"),
    ("rope.scaling.attn_factor", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("rope.scaling.original_context_length", Count(0, CONTEXT_MAX), "positions have 31 bits"),
    ("rope.scaling.finetuned", Flag, "computed with"),
    ("rope.scaling.yarn_log_multiplier", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("rope.scaling.yarn_ext_factor", Number(-1.0, SCALE_MAX), "no number ends the process"),
    ("rope.scaling.yarn_attn_factor", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("rope.scaling.yarn_beta_fast", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("rope.scaling.yarn_beta_slow", Number(-SCALE_MAX, SCALE_MAX), "computed with"),
    ("rope.scaling.type", Text, "a word; others end the process"),
    ("pooling_type", Count(0, 4), "an enumeration; others end the process"),
    ("classifier.pooling_type", Count(0, 4), "an enumeration; others end the process"),
    ("hidden_activation", Text, "a word"),
    ("dense_2_feat_in", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("dense_2_feat_out", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("dense_3_feat_in", Count(0, WIDTH_MAX), "sizes are products of it"),
    ("dense_3_feat_out", Count(0, WIDTH_MAX), "sizes are products of it"),
];

/// Of every architecture.
const GENERAL: &[(&str, Bound, &str)] = &[
    ("general.alignment", Count(1, super::limits::ALIGNMENT_MAX), "offsets are rounded by it"),
    ("general.file_type", Count(0, u32::MAX as u64), "an enumeration with a default"),
    ("general.quantization_version", Count(0, u32::MAX as u64), "a number that is shown"),
    ("general.name", Text, "shown"),
    ("general.type", Text, "decides what the file is"),
    ("split.no", Count(0, super::limits::SHARDS_MAX), "16 bits"),
    ("split.count", Count(0, super::limits::SHARDS_MAX), "16 bits"),
    ("split.tensors.count", Count(0, super::limits::TENSORS_MAX), "compared with what is there"),
    ("xielu.alpha_n", Numbers, "copied to a fixed array"),
    ("xielu.alpha_p", Numbers, "copied to a fixed array"),
    ("xielu.beta", Numbers, "copied to a fixed array"),
    ("xielu.eps", Numbers, "copied to a fixed array"),
    ("tokenizer.ggml.model", Text, "decides how texts are cut"),
    ("tokenizer.ggml.pre", Text, "decides how texts are cut"),
    ("tokenizer.ggml.token_type_count", Count(0, HEADS_MAX), "sizes are products of it"),
    ("tokenizer.ggml.add_bos_token", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.add_eos_token", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.add_sep_token", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.add_space_prefix", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.remove_extra_whitespaces", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.normalizer.lowercase", Flag, "decides how texts are cut"),
    ("tokenizer.ggml.normalizer.strip_accents", Flag, "decides how texts are cut"),
    ("tokenizer.chat_template", Text, "computed with"),
];

/// Checks every key of the table that the header has.
///
/// # Errors
/// The first that is out of its bound.
pub(super) fn check(header: &Header) -> Result<(), GgufError> {
    let architecture = header.architecture();
    let layers = header.arch_number("block_count").unwrap_or(LAYERS_MAX);
    let of_architecture =
        OF_ARCHITECTURE.iter().map(|(suffix, bound, why)| (format!("{architecture}.{suffix}"), *bound, *why));
    let general = GENERAL.iter().map(|(key, bound, why)| ((*key).to_owned(), *bound, *why));
    for (key, bound, why) in of_architecture.chain(general) {
        if let Some(value) = header.get(&key)
            && let Err(reason) = bound.holds(value, layers)
        {
            return Err(GgufError::Value { key, reason: format!("{reason} ({why})") });
        }
    }
    Ok(())
}

impl Bound {
    /// What is wrong with a value.
    fn holds(self, value: &Value, layers: u64) -> Result<(), String> {
        match (self, value) {
            (PerLayer(_, max) | List(_, max), Value::Array(array)) => {
                let (len_min, len_max) = match self {
                    List(len_max, _) => (0, len_max),
                    _ => (layers.min(LAYERS_MAX), LAYERS_MAX),
                };
                if array.texts {
                    return Err("texts where numbers belong".into());
                }
                if !(len_min..=len_max).contains(&array.len) {
                    return Err(format!("{} elements for {layers} layers", array.len));
                }
                // Some lists say -1 for "none".
                let min = if matches!(self, List(..)) { -1 } else { 0 };
                array.first.iter().try_for_each(|item| integer(item, min, max))
            }
            (Count(min, max) | PerLayer(min, max), value) => {
                integer(value, i64::try_from(min).unwrap_or(i64::MAX), max)
            }
            (List(_, max), value) => integer(value, 0, max),
            (Numbers, Value::Array(array)) if array.len <= LAYERS_MAX && !array.texts => {
                array.first.iter().try_for_each(|item| number(item, f64::NEG_INFINITY, f64::INFINITY))
            }
            (Numbers, value) => number(value, f64::NEG_INFINITY, f64::INFINITY),
            (Number(min, max), value) => number(value, min, max),
            (Flag, Value::Bool(_)) | (Text, Value::Text(_)) => Ok(()),
            (Flag, value) => Err(format!("{} where true or false belongs", value.kind())),
            (Text, value) => Err(format!("{} where a text belongs", value.kind())),
        }
    }
}

fn integer(value: &Value, min: i64, max: u64) -> Result<(), String> {
    let number = match value {
        Value::Unsigned(number) => i128::from(*number),
        Value::Signed(number) => i128::from(*number),
        Value::Bool(flag) => i128::from(*flag),
        other => return Err(format!("{} where an integer belongs", other.kind())),
    };
    if (i128::from(min)..=i128::from(max)).contains(&number) {
        Ok(())
    } else {
        Err(format!("{number}, which is not between {min} and {max}"))
    }
}

fn number(value: &Value, min: f64, max: f64) -> Result<(), String> {
    let number = match value {
        Value::Float(number) => f64::from(*number),
        Value::Double(number) => *number,
        other => return Err(format!("{} where a number with a point belongs", other.kind())),
    };
    // Comparing also refuses what is no number.
    if (min..=max).contains(&number) { Ok(()) } else { Err(format!("{number}, which is not between {min} and {max}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_in_the_table_twice() {
        let mut keys: Vec<&str> = OF_ARCHITECTURE.iter().chain(GENERAL).map(|(key, ..)| *key).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn bounds_hold_at_their_ends_and_not_past_them() {
        let long =
            |len| Value::Array(super::super::Array { len, first: vec![Value::Unsigned(1)], ..Default::default() });
        for (bound, inside, outside) in [
            (Count(1, 5), vec![Value::Unsigned(1), Value::Signed(5)], vec![Value::Unsigned(0), Value::Unsigned(6)]),
            (Count(0, 5), vec![Value::Unsigned(0)], vec![Value::Signed(-1), Value::Float(1.0), long(1)]),
            (PerLayer(0, 5), vec![Value::Unsigned(5), long(2), long(512)], vec![long(1), long(513), long(0)]),
            (List(4, 5), vec![long(0), long(4)], vec![long(5)]),
            (Number(0.0, 1.0), vec![Value::Float(0.0)], vec![Value::Float(f32::NAN), Value::Double(-1e-9)]),
            (Number(0.0, 1.0), vec![Value::Double(1.0)], vec![Value::Float(f32::INFINITY), Value::Unsigned(1)]),
            (Flag, vec![Value::Bool(true)], vec![Value::Unsigned(1)]),
            (Text, vec![Value::Text(String::new())], vec![Value::Bool(true)]),
        ] {
            for value in inside {
                assert_eq!(bound.holds(&value, 2), Ok(()), "{bound:?} {value:?}");
            }
            for value in outside {
                assert!(bound.holds(&value, 2).is_err(), "{bound:?} {value:?}");
            }
        }
    }
}
