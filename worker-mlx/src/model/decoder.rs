//! The decoder-only transformer, described by a [`DecoderSpec`] and computed for a ragged batch.
//!
//! All tokens of all slots lie in one `[rows, width]` matrix: every product sees all of them, and only attention looks
//! at slots one by one. So prompts and single tokens mix freely, nothing is padded, and a prompt in chunks is just
//! several batches. Nothing is evaluated here; the caller does it once per batch.

use crate::limits::{HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX};
use crate::quant::Result;
use mlx_rs::fast::rms_norm;
use mlx_rs::ops::{add, divide, maximum, minimum, multiply, tanh};
use mlx_rs::{Array, Dtype};
use ollmlx_proto::Failure;

use crate::config::{Config, invalid};
use crate::kv::{KvPacking, KvShape, SlotCache};
use crate::model::attention::{Attention, Masks, Span};
use crate::model::mlp::{Activation, FeedForward, MoeSpec};
use crate::model::rope::Rope;
use crate::quant::{Embedding, Linear};
use crate::weights::{Weights, load_failed};

/// Sizes and switches of a model.
#[derive(Clone, Debug)]
pub struct DecoderSpec {
    /// Layers.
    pub layers: i32,
    /// Width of the hidden state.
    pub hidden: i32,
    /// Query heads.
    pub heads: i32,
    /// Key-value heads.
    pub kv_heads: i32,
    /// Width of a head.
    pub head_width: i32,
    /// Width of the feed-forward layer.
    pub feed_forward: i32,
    /// Vocabulary entries.
    pub vocab: i32,
    /// Added to the mean square of a norm.
    pub eps: f32,
    /// Window it was trained for, in tokens.
    pub context: u32,
    /// Factor of the attention scores.
    pub score_scale: f32,
    /// Whether norm weights are stored less one (Gemma).
    pub norm_plus_one: bool,
    /// Whether the outputs of attention and feed-forward are normed too (Gemma).
    pub norm_outputs: bool,
    /// Whether queries and keys are normed by head.
    pub norm_heads: bool,
    /// Whether q, k, v and gate, up are stored as one tensor each (Phi).
    pub fused: bool,
    /// The gate's function.
    pub activation: Activation,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f32>,
    /// Bound of the attention scores.
    pub score_cap: Option<f32>,
    /// Bound of the logits.
    pub logit_cap: Option<f32>,
    /// Whether the embedding is the output layer; `None`: where `lm_head` is absent.
    pub tied: Option<bool>,
    /// Tokens that a query sees, by layer.
    pub windows: Vec<Option<i32>>,
    /// The rotation of layers that see everything.
    pub rope: Rope,
    /// The rotation of layers with a window, where it differs.
    pub rope_sliding: Option<Rope>,
    /// Mixture of experts, and in which layers.
    pub moe: Option<(MoeSpec, Vec<bool>)>,
}

impl DecoderSpec {
    /// What all families read alike; `rope_base` is the default of `rope_theta`.
    ///
    /// # Errors
    /// A value is bad (named).
    pub fn common(config: &Config<'_>, rope_base: f64) -> Result<Self, Failure> {
        let hidden = config.count("hidden_size", WIDTH_MAX)?;
        let heads = config.count("num_attention_heads", HEADS_MAX)?;
        let kv_heads = config.count_or("num_key_value_heads", HEADS_MAX, heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(invalid(format!(
                "config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_width = match config.get("head_dim") {
            Some(_) => config.count("head_dim", WIDTH_MAX)?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(invalid("config.json: hidden_size is no multiple of num_attention_heads")),
        };
        if u64::from(heads) * u64::from(head_width) > u64::from(WIDTH_MAX) {
            return Err(invalid("config.json: num_attention_heads times head_dim is too large"));
        }
        if !head_width.is_multiple_of(2) {
            return Err(invalid("config.json: head_dim must be even"));
        }
        let layers = config.count("num_hidden_layers", LAYERS_MAX)?;
        let base = match config.object("rope_parameters", "rope_parameters.")? {
            Some(parameters) if parameters.get("rope_theta").is_some() => {
                parameters.number_or("rope_theta", 1.0..=1e12, rope_base)?
            }
            _ => config.number_or("rope_theta", 1.0..=1e12, rope_base)?,
        };
        let partial = config.number_or("partial_rotary_factor", 0.01..=1.0, 1.0)?;
        let rotated = (f64::from(head_width) * partial) as i32 / 2 * 2;
        if rotated == 0 {
            return Err(invalid("config.json: partial_rotary_factor leaves nothing of a head to be turned"));
        }
        Ok(Self {
            layers: layers as i32,
            hidden: hidden as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_width: head_width as i32,
            feed_forward: config.count("intermediate_size", WIDTH_MAX)? as i32,
            vocab: config.count("vocab_size", VOCAB_MAX)? as i32,
            eps: config.number_or("rms_norm_eps", 0.0..=1.0, 1e-6)? as f32,
            context: config.count_or("max_position_embeddings", 1 << 30, 4096)?,
            score_scale: 1.0 / (f64::from(head_width)).sqrt() as f32,
            norm_plus_one: false,
            norm_outputs: false,
            norm_heads: false,
            fused: false,
            activation: Activation::Silu,
            embedding_scale: None,
            score_cap: None,
            logit_cap: None,
            tied: config.flag("tie_word_embeddings")?,
            windows: vec![None; layers as usize],
            rope: Rope::from_config(config, rotated, base)?,
            rope_sliding: None,
            moe: None,
        })
    }

    /// Sets the window of each layer that `layer_types` calls sliding; `None` where there is no such list.
    ///
    /// # Errors
    /// The list is of another length or holds something else.
    pub fn read_layer_types(&self, config: &Config<'_>) -> Result<Option<Vec<bool>>, Failure> {
        let Some(list) = config.list("layer_types", LAYERS_MAX as usize)? else { return Ok(None) };
        if list.len() != self.layers as usize {
            return Err(invalid("config.json: layer_types and num_hidden_layers disagree"));
        }
        list.iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(invalid("config.json: layer_types holds a kind that is not supported")),
            })
            .collect::<Result<Vec<bool>, Failure>>()
            .map(Some)
    }

    /// Gives the layers marked in `sliding` a window.
    pub fn set_windows(&mut self, sliding: &[bool], window: u32) {
        let window = i32::try_from(window).unwrap_or(i32::MAX);
        self.windows = sliding.iter().map(|&sliding| sliding.then_some(window)).collect();
    }

    /// What the caches of each layer look like.
    #[must_use]
    pub fn kv_shapes(&self, dtype: Dtype, packing: KvPacking) -> Vec<KvShape> {
        let shape = |&window| KvShape { heads: self.kv_heads, width: self.head_width, dtype, window, packing };
        self.windows.iter().map(shape).collect()
    }
}

/// A norm weight of `width`, with Gemma's one added.
pub(crate) fn norm(weights: &mut Weights, name: &str, width: i32, plus_one: bool) -> Result<Array, Failure> {
    let weight = weights.tensor(&format!("{name}.weight"), &[width])?;
    if !plus_one {
        return Ok(weight);
    }
    let one = Array::from_f32(1.0).as_dtype(weight.dtype()).map_err(|error| load_failed(&error))?;
    add(&weight, one).map_err(|error| load_failed(&error))
}

struct Layer {
    norm_attention: Array,
    norm_attention_out: Option<Array>,
    attention: Attention,
    norm_feed_forward: Array,
    norm_feed_forward_out: Option<Array>,
    feed_forward: FeedForward,
}

impl Layer {
    fn load(weights: &mut Weights, spec: &DecoderSpec, index: usize) -> Result<Self, Failure> {
        let path = format!("model.layers.{index}");
        let mut take = |name: &str| norm(weights, &format!("{path}.{name}"), spec.hidden, spec.norm_plus_one);
        let norm_attention = take("input_layernorm")?;
        let after = take("post_attention_layernorm")?;
        // The same name means the norm before the feed-forward layer in one family and after attention in the other.
        let (norm_attention_out, norm_feed_forward, norm_feed_forward_out) = if spec.norm_outputs {
            (Some(after), take("pre_feedforward_layernorm")?, Some(take("post_feedforward_layernorm")?))
        } else {
            (None, after, None)
        };
        Ok(Self {
            norm_attention,
            norm_attention_out,
            attention: Attention::load(weights, spec, index)?,
            norm_feed_forward,
            norm_feed_forward_out,
            feed_forward: FeedForward::load(weights, spec, index)?,
        })
    }

    fn arrays(&self) -> Vec<&Array> {
        let mut arrays = vec![&self.norm_attention, &self.norm_feed_forward];
        arrays.extend(&self.norm_attention_out);
        arrays.extend(&self.norm_feed_forward_out);
        arrays.extend(self.attention.arrays());
        arrays.extend(self.feed_forward.arrays());
        arrays
    }
}

/// A loaded model.
pub struct Decoder {
    spec: DecoderSpec,
    embedding: Embedding,
    embedding_scale: Option<Array>,
    layers: Vec<Layer>,
    norm: Array,
    /// `None`: the embedding.
    head: Option<Linear>,
}

/// One ragged batch.
pub struct Batch<'a> {
    /// All tokens, slot after slot.
    pub tokens: &'a [i32],
    /// The position of each token in its slot.
    pub positions: &'a [i32],
    /// Which rows belong to which slot.
    pub spans: &'a [Span],
    /// The rows whose logits are wanted.
    pub wanted: &'a [i32],
    /// Window of a slot, in tokens.
    pub context_max: i32,
    /// Given the hidden states after each layer, which it may evaluate.
    pub after_layer: &'a dyn Fn(&Array) -> Result<()>,
}

impl Decoder {
    /// Takes the weights and evaluates them layer by layer, so that no more than a layer is held twice.
    ///
    /// # Errors
    /// Tensors are missing or of another shape, MLX failed, or `progress` (called with layers done) says stop.
    pub fn load(
        weights: &mut Weights,
        spec: DecoderSpec,
        progress: &mut dyn FnMut(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let fault = |error| load_failed(&error);
        let embedding = weights.embedding("model.embed_tokens", spec.vocab, spec.hidden)?;
        mlx_rs::transforms::eval(embedding.weight.arrays()).map_err(fault)?;
        let mut layers = Vec::new();
        for index in 0..spec.layers as usize {
            let layer = Layer::load(weights, &spec, index)?;
            mlx_rs::transforms::eval(layer.arrays()).map_err(fault)?;
            layers.push(layer);
            progress(index as u64 + 1)?;
        }
        let norm = norm(weights, "model.norm", spec.hidden, spec.norm_plus_one)?;
        let tied = spec.tied.unwrap_or_else(|| !weights.has("lm_head.weight"));
        let head = if tied { None } else { Some(weights.final_linear("lm_head", spec.vocab, spec.hidden)?) };
        let mut rest = vec![&norm];
        rest.extend(head.iter().flat_map(Linear::arrays));
        mlx_rs::transforms::eval(rest).map_err(fault)?;
        let embedding_scale = match spec.embedding_scale {
            Some(scale) => Some(Array::from_f32(scale).as_dtype(embedding.dtype).map_err(fault)?),
            None => None,
        };
        Ok(Self { spec, embedding, embedding_scale, layers, norm, head })
    }

    /// Sizes and switches.
    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Element type of activations and caches.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.embedding.dtype
    }

    fn residual(&self, h: &Array, y: &Array) -> Result<Array> {
        if self.spec.norm_outputs && h.dtype() == Dtype::Float16 { add_clipped(h, y) } else { add(h, y) }
    }

    /// Appends a batch to its slots' caches; logits of the wanted rows, `[wanted, vocabulary]` in 32-bit floats, or
    /// `None` where none are wanted. Lazy: evaluate the result together with the caches.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn forward(&self, batch: &Batch<'_>, slots: &mut [SlotCache]) -> Result<Option<Array>> {
        let rows = batch.tokens.len() as i32;
        let positions = Array::from_slice(batch.positions, &[rows]);
        let mut h = self.embedding.rows(&Array::from_slice(batch.tokens, &[rows]))?;
        if let Some(scale) = &self.embedding_scale {
            h = multiply(&h, scale)?;
        }
        let mut masks = Masks::default();
        for (index, layer) in self.layers.iter().enumerate() {
            let eps = self.spec.eps;
            let x = rms_norm(&h, Some(&layer.norm_attention), eps)?;
            let mut y = layer.attention.apply(&x, &positions, batch, slots, index, &mut masks)?;
            if let Some(weight) = &layer.norm_attention_out {
                y = rms_norm(&y, Some(weight), eps)?;
            }
            h = self.residual(&h, &y)?;
            let x = rms_norm(&h, Some(&layer.norm_feed_forward), eps)?;
            let mut y = layer.feed_forward.apply(&x)?;
            if let Some(weight) = &layer.norm_feed_forward_out {
                y = rms_norm(&y, Some(weight), eps)?;
            }
            h = self.residual(&h, &y)?;
            (batch.after_layer)(&h)?;
        }
        if batch.wanted.is_empty() {
            return Ok(None);
        }
        let wanted = Array::from_slice(batch.wanted, &[batch.wanted.len() as i32]);
        let last = rms_norm(h.take_axis(&wanted, 0)?, Some(&self.norm), self.spec.eps)?;
        let logits = match &self.head {
            Some(head) => head.apply(&last)?,
            None => self.embedding.as_linear(&last)?,
        };
        let logits = logits.as_dtype(Dtype::Float32)?;
        match self.spec.logit_cap {
            Some(cap) => soft_cap(&logits, cap).map(Some),
            None => Ok(Some(logits)),
        }
    }
}

/// Gemma's hidden state leaves the range of 16-bit floats (it was trained in bfloat16), so sums end at its edge.
fn add_clipped(h: &Array, y: &Array) -> Result<Array> {
    let edge = 65_504.0;
    let sum = add(h.as_dtype(Dtype::Float32)?, y.as_dtype(Dtype::Float32)?)?;
    let sum = minimum(maximum(sum, Array::from_f32(-edge))?, Array::from_f32(edge))?;
    sum.as_dtype(Dtype::Float16)
}

/// `cap · tanh(x / cap)`.
pub(crate) fn soft_cap(x: &Array, cap: f32) -> Result<Array> {
    let cap = Array::from_f32(cap).as_dtype(x.dtype())?;
    multiply(tanh(divide(x, &cap)?)?, &cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_half_floats_end_at_the_edge_of_their_range() {
        let large = Array::from_slice(&[60_000.0_f32, -60_000.0, 1.0], &[3]).as_dtype(Dtype::Float16).unwrap();
        let sum = add_clipped(&large, &large).unwrap().as_dtype(Dtype::Float32).unwrap();
        assert_eq!(sum.try_as_slice::<f32>().unwrap(), [65_504.0, -65_504.0, 2.0]);
    }
}
