//! BERT text encoders: one vector per text.
//!
//! Texts are computed one after the other: attention sees the whole text, there is no cache.

use std::ops::Range;

use crate::limits::{HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX};
use crate::quant::Result;
use mlx_rs::Array;
use mlx_rs::fast::{layer_norm, scaled_dot_product_attention};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{add, divide, erf, multiply};
use ollmlx_proto::Failure;

use crate::config::{Config, invalid};
use crate::quant::{Embedding, Linear, split_last};
use crate::weights::{Weights, load_failed};

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    First,
}

/// Sizes of an encoder.
#[derive(Clone, Copy, Debug)]
pub struct BertSpec {
    /// Layers.
    pub layers: i32,
    /// Width of the hidden state.
    pub hidden: i32,
    /// Heads.
    pub heads: i32,
    /// Width of the feed-forward layer.
    pub feed_forward: i32,
    /// Vocabulary entries.
    pub vocab: i32,
    /// Longest text, in tokens.
    pub context: u32,
    /// Kinds of segment.
    pub types: i32,
    /// Added to the variance of a norm.
    pub eps: f32,
    /// From the pooling module's own file; the mean where there is none.
    pub pooling: Pooling,
}

/// Reads a configuration.
///
/// # Errors
/// A value is bad (named).
pub fn spec(config: &Config<'_>) -> Result<BertSpec, Failure> {
    let hidden = config.count("hidden_size", WIDTH_MAX)?;
    let heads = config.count("num_attention_heads", HEADS_MAX)?;
    if !hidden.is_multiple_of(heads) {
        return Err(invalid("config.json: hidden_size is no multiple of num_attention_heads"));
    }
    if let Some(activation) = config.text("hidden_act")?
        && activation != "gelu"
    {
        return Err(invalid("config.json: hidden_act must be gelu"));
    }
    Ok(BertSpec {
        layers: config.count("num_hidden_layers", LAYERS_MAX)? as i32,
        hidden: hidden as i32,
        heads: heads as i32,
        feed_forward: config.count("intermediate_size", WIDTH_MAX)? as i32,
        vocab: config.count("vocab_size", VOCAB_MAX)? as i32,
        context: config.count_or("max_position_embeddings", 1 << 20, 512)?,
        types: config.count_or("type_vocab_size", 16, 2)? as i32,
        eps: config.number_or("layer_norm_eps", 0.0..=1.0, 1e-12)? as f32,
        pooling: Pooling::Mean,
    })
}

struct Norm {
    weight: Array,
    bias: Array,
    eps: f32,
}

impl Norm {
    fn load(weights: &mut Weights, path: &str, spec: &BertSpec) -> Result<Self, Failure> {
        Ok(Self {
            weight: weights.tensor(&format!("{path}.weight"), &[spec.hidden])?,
            bias: weights.tensor(&format!("{path}.bias"), &[spec.hidden])?,
            eps: spec.eps,
        })
    }

    fn apply(&self, x: &Array) -> Result<Array> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

struct Layer {
    projection: Linear,
    output: Linear,
    norm_attention: Norm,
    inner: Linear,
    outer: Linear,
    norm_out: Norm,
}

impl Layer {
    fn load(weights: &mut Weights, spec: &BertSpec, path: &str) -> Result<Self, Failure> {
        let width = spec.hidden;
        let part = |name: &str| (format!("{path}.attention.self.{name}"), width);
        let projection = weights
            .side_by_side(&[part("query"), part("key"), part("value")], width)?
            .map_err(|_| invalid(format!("{path}.attention is quantised in different ways")))?;
        Ok(Self {
            projection,
            output: weights.final_linear(&format!("{path}.attention.output.dense"), width, width)?,
            norm_attention: Norm::load(weights, &format!("{path}.attention.output.LayerNorm"), spec)?,
            inner: weights.final_linear(&format!("{path}.intermediate.dense"), spec.feed_forward, width)?,
            outer: weights.final_linear(&format!("{path}.output.dense"), width, spec.feed_forward)?,
            norm_out: Norm::load(weights, &format!("{path}.output.LayerNorm"), spec)?,
        })
    }

    fn arrays(&self) -> Vec<&Array> {
        let mut arrays = Vec::new();
        for linear in [&self.projection, &self.output, &self.inner, &self.outer] {
            arrays.extend(linear.arrays());
        }
        for norm in [&self.norm_attention, &self.norm_out] {
            arrays.extend([&norm.weight, &norm.bias]);
        }
        arrays
    }

    fn apply(&self, x: &Array, spec: &BertSpec) -> Result<Array> {
        let (rows, width) = (x.dim(0), spec.hidden / spec.heads);
        let parts = split_last(&self.projection.apply(x)?, &[spec.hidden; 3])?;
        let by_head = |part: &Array| -> Result<Array> {
            part.reshape(&[1, rows, spec.heads, width])?.transpose_axes(&[0, 2, 1, 3])
        };
        let (q, k, v) = (by_head(&parts[0])?, by_head(&parts[1])?, by_head(&parts[2])?);
        let scale = 1.0 / (width as f32).sqrt();
        let seen = scaled_dot_product_attention(q, k, v, scale, None, None)?;
        let seen = seen.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows, spec.hidden])?;
        let x = self.norm_attention.apply(&add(self.output.apply(&seen)?, x)?)?;
        let y = self.outer.apply(&gelu(&self.inner.apply(&x)?)?)?;
        self.norm_out.apply(&add(y, x)?)
    }
}

/// The exact form: `x · (1 + erf(x / √2)) / 2`.
fn gelu(x: &Array) -> Result<Array> {
    let number = |value: f32| Array::from_f32(value).as_dtype(x.dtype());
    let inner = erf(divide(x, number(std::f32::consts::SQRT_2)?)?)?;
    multiply(multiply(x, number(0.5)?)?, add(inner, number(1.0)?)?)
}

/// A loaded encoder.
pub struct Bert {
    spec: BertSpec,
    words: Embedding,
    /// Positions plus the vector of the first segment kind, `[context, hidden]`.
    positions: Array,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Takes the weights and evaluates them.
    ///
    /// # Errors
    /// Tensors are missing or of another shape, MLX failed, or `progress` (called with layers done) says stop.
    pub fn load(
        weights: &mut Weights,
        spec: BertSpec,
        progress: &mut dyn FnMut(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let fault = |error| load_failed(&error);
        // Checkpoints of the bare model and of a model with a head differ in this prefix.
        weights.rename_prefix("bert.", "");
        let context = i32::try_from(spec.context).map_err(|_| invalid("config.json: max_position_embeddings"))?;
        let words = weights.embedding("embeddings.word_embeddings", spec.vocab, spec.hidden)?;
        let positions = weights.embedding("embeddings.position_embeddings", context, spec.hidden)?;
        let types = weights.embedding("embeddings.token_type_embeddings", spec.types, spec.hidden)?;
        let first = types.rows(&Array::from_slice(&[0_i32], &[1])).map_err(fault)?;
        let positions = positions.weight.to_dense().and_then(|all| add(all, first)).map_err(fault)?;
        let norm = Norm::load(weights, "embeddings.LayerNorm", &spec)?;
        mlx_rs::transforms::eval([&positions, &norm.weight, &norm.bias]).map_err(fault)?;
        mlx_rs::transforms::eval(words.weight.arrays()).map_err(fault)?;
        let mut layers = Vec::new();
        for index in 0..spec.layers {
            let layer = Layer::load(weights, &spec, &format!("encoder.layer.{index}"))?;
            mlx_rs::transforms::eval(layer.arrays()).map_err(fault)?;
            layers.push(layer);
            progress(index as u64 + 1)?;
        }
        Ok(Self { spec, words, positions, norm, layers })
    }

    /// Sizes.
    #[must_use]
    pub fn spec(&self) -> &BertSpec {
        &self.spec
    }

    /// The hidden states of one text before the first layer, `[tokens, hidden]`; lazy, as all of the following.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn begin(&self, tokens: &[i32]) -> Result<Array> {
        let count = tokens.len() as i32;
        let words = self.words.rows(&Array::from_slice(tokens, &[count]))?;
        self.norm.apply(&add(words, self.positions.try_index(0..count)?)?)
    }

    /// The hidden states after some of the layers.
    ///
    /// # Errors
    /// As [`Bert::begin`].
    pub fn layers(&self, h: Array, which: Range<usize>) -> Result<Array> {
        self.layers[which].iter().try_fold(h, |h, layer| layer.apply(&h, &self.spec))
    }

    /// The vector of a text after the last layer, `[hidden]`.
    ///
    /// # Errors
    /// As [`Bert::begin`].
    pub fn pool(&self, h: &Array) -> Result<Array> {
        let pooled = match self.spec.pooling {
            Pooling::Mean => h.mean_axis(0, false)?,
            Pooling::First => h.try_index(0)?,
        };
        pooled.as_dtype(mlx_rs::Dtype::Float32)
    }
}
