//! Attention with grouped heads over the slots of a batch, each on its own cache.

use std::collections::HashMap;

use crate::quant::Result;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::fast::{ScaledDotProductAttentionMask, rms_norm, scaled_dot_product_attention};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{add, concatenate, matmul, multiply, select, softmax_axis};
use ollmlx_proto::Failure;

use crate::kv::SlotCache;
use crate::model::decoder::{Batch, DecoderSpec, norm, soft_cap};
use crate::model::rope::Rope;
use crate::quant::{Linear, split_last};
use crate::weights::Weights;

/// The rows of a batch that belong to one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index of the slot.
    pub slot: usize,
    /// First row.
    pub from: i32,
    /// Row after the last.
    pub to: i32,
}

/// Masks of one batch by `(queries, keys, window)`, shared by its layers.
#[derive(Default)]
pub struct Masks {
    made: HashMap<(i32, i32, i32), Array>,
}

impl Masks {
    /// True where the query may look: its own key and up to `window - 1` before it. The last query's own key is the
    /// last key.
    fn window(&mut self, queries: i32, keys: i32, window: i32) -> &Array {
        self.made.entry((queries, keys, window)).or_insert_with(|| {
            let mut seen = Vec::with_capacity((queries * keys) as usize);
            for query in 0..queries {
                let own = keys - queries + query;
                seen.extend((0..keys).map(|key| key <= own && own - key < window));
            }
            Array::from_slice(&seen, &[queries, keys])
        })
    }
}

enum Projection {
    /// q, k and v side by side.
    Fused(Linear),
    Apart(Vec<Linear>),
}

/// The attention of one layer.
pub struct Attention {
    projection: Projection,
    output: Linear,
    norm_queries: Option<Array>,
    norm_keys: Option<Array>,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    head_width: i32,
    eps: f32,
    score_scale: f32,
    score_cap: Option<f32>,
    window: Option<i32>,
}

impl Attention {
    /// Takes the tensors of layer `index`.
    ///
    /// # Errors
    /// Tensors are missing or of another shape.
    pub fn load(weights: &mut Weights, spec: &DecoderSpec, index: usize) -> Result<Self, Failure> {
        let path = format!("model.layers.{index}.self_attn");
        let (q_width, kv_width) = (spec.heads * spec.head_width, spec.kv_heads * spec.head_width);
        let projection = if spec.fused {
            Projection::Fused(weights.final_linear(&format!("{path}.qkv_proj"), q_width + 2 * kv_width, spec.hidden)?)
        } else {
            let part = |name: &str, width| (format!("{path}.{name}"), width);
            let parts = [part("q_proj", q_width), part("k_proj", kv_width), part("v_proj", kv_width)];
            match weights.side_by_side(&parts, spec.hidden)? {
                Ok(joined) => Projection::Fused(joined),
                Err(apart) => Projection::Apart(apart),
            }
        };
        let mut head_norm = |name: &str| {
            let name = format!("{path}.{name}");
            spec.norm_heads.then(|| norm(weights, &name, spec.head_width, spec.norm_plus_one)).transpose()
        };
        let (norm_queries, norm_keys) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let window = spec.windows.get(index).copied().flatten();
        let rope = match (&spec.rope_sliding, window) {
            (Some(rope), Some(_)) => rope.clone(),
            _ => spec.rope.clone(),
        };
        Ok(Self {
            projection,
            output: weights.final_linear(&format!("{path}.o_proj"), spec.hidden, q_width)?,
            norm_queries,
            norm_keys,
            rope,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_width: spec.head_width,
            eps: spec.eps,
            score_scale: spec.score_scale,
            score_cap: spec.score_cap,
            window,
        })
    }

    /// The arrays it holds, to be evaluated.
    pub fn arrays(&self) -> Vec<&Array> {
        let mut arrays = match &self.projection {
            Projection::Fused(linear) => linear.arrays(),
            Projection::Apart(three) => three.iter().flat_map(Linear::arrays).collect(),
        };
        arrays.extend(self.output.arrays());
        arrays.extend(&self.norm_queries);
        arrays.extend(&self.norm_keys);
        arrays
    }

    /// `[rows, hidden]` to `[rows, hidden]`; keys and values are appended to the slots' caches of layer `index`.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn apply(
        &self,
        x: &Array,
        positions: &Array,
        batch: &Batch<'_>,
        slots: &mut [SlotCache],
        index: usize,
        masks: &mut Masks,
    ) -> Result<Array> {
        let (q_width, kv_width) = (self.heads * self.head_width, self.kv_heads * self.head_width);
        let parts = match &self.projection {
            Projection::Fused(linear) => {
                let joined = linear.apply(x)?;
                match self.turn_together(&joined, positions)? {
                    Some(parts) => parts,
                    None => self.turn(&split_last(&joined, &[q_width, kv_width, kv_width])?, positions)?,
                }
            }
            Projection::Apart(three) => {
                let parts = three.iter().map(|linear| linear.apply(x)).collect::<Result<Vec<_>>>()?;
                self.turn(&parts, positions)?
            }
        };
        let [queries, keys, values] = parts;
        let mut outputs = Vec::with_capacity(batch.spans.len());
        for span in batch.spans {
            let cache = &mut slots[span.slot].layers[index];
            let part = |all: &Array| by_head(all, *span);
            let (all_keys, all_values) = cache.append(&part(&keys)?, &part(&values)?, batch.context_max)?;
            let seen = self.attend(&part(&queries)?, &all_keys, &all_values, masks)?;
            outputs.push(seen.transpose_axes(&[0, 2, 1, 3])?.reshape(&[span.to - span.from, q_width])?);
        }
        let joined = match &outputs[..] {
            [one] => one.clone(),
            many => concatenate(many, 0)?,
        };
        self.output.apply(&joined)
    }

    /// Queries, keys and values by row and head, `[rows, heads, width]`, normed and turned to their positions.
    fn turn(&self, parts: &[Array], positions: &Array) -> Result<[Array; 3]> {
        let [queries, keys, values] = parts else { return Err(Exception::custom("three projections are needed")) };
        let by_row = |part: &Array, heads: i32| part.reshape(&[part.dim(0), heads, self.head_width]);
        let mut queries = by_row(queries, self.heads)?;
        let mut keys = by_row(keys, self.kv_heads)?;
        if let Some(weight) = &self.norm_queries {
            queries = rms_norm(&queries, Some(weight), self.eps)?;
        }
        if let Some(weight) = &self.norm_keys {
            keys = rms_norm(&keys, Some(weight), self.eps)?;
        }
        let queries = self.rope.apply(&queries, positions)?;
        Ok([queries, self.rope.apply(&keys, positions)?, by_row(values, self.kv_heads)?])
    }

    /// The same in one turn, where queries and keys lie side by side and are not normed: a rotation has many steps on
    /// a CPU.
    fn turn_together(&self, joined: &Array, positions: &Array) -> Result<Option<[Array; 3]>> {
        if self.norm_queries.is_some() || self.norm_keys.is_some() {
            return Ok(None);
        }
        let all = joined.reshape(&[joined.dim(0), self.heads + 2 * self.kv_heads, self.head_width])?;
        let turned_heads = self.heads + self.kv_heads;
        let turned = self.rope.apply(&all.try_index((.., 0..turned_heads, ..))?, positions)?;
        let queries = turned.try_index((.., 0..self.heads, ..))?;
        let keys = turned.try_index((.., self.heads..turned_heads, ..))?;
        Ok(Some([queries, keys, all.try_index((.., turned_heads.., ..))?]))
    }

    /// `[1, heads, queries, width]` over `[1, kv heads, keys, width]`.
    fn attend(&self, queries: &Array, keys: &Array, values: &Array, masks: &mut Masks) -> Result<Array> {
        let (query_count, key_count) = (queries.dim(2), keys.dim(2));
        let mask = match self.window {
            _ if query_count == 1 => None,
            Some(window) if key_count > window => {
                Some(ScaledDotProductAttentionMask::Array(masks.window(query_count, key_count, window)))
            }
            _ if self.score_cap.is_some() => {
                Some(ScaledDotProductAttentionMask::Array(masks.window(query_count, key_count, i32::MAX)))
            }
            _ => Some(ScaledDotProductAttentionMask::Causal),
        };
        match self.score_cap {
            None => scaled_dot_product_attention(queries, keys, values, self.score_scale, mask, None),
            Some(cap) => self.attend_capped(queries, keys, values, mask, cap),
        }
    }

    /// The fused kernel knows no cap.
    fn attend_capped(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        mask: Option<ScaledDotProductAttentionMask<'_>>,
        cap: f32,
    ) -> Result<Array> {
        let (count, group) = (queries.dim(2), self.heads / self.kv_heads);
        let scale = Array::from_f32(self.score_scale).as_dtype(queries.dtype())?;
        let queries = multiply(queries, scale)?.reshape(&[1, self.kv_heads, group, count, self.head_width])?;
        let keys = keys.expand_dims(2)?;
        let values = values.expand_dims(2)?;
        let mut scores = soft_cap(&matmul(&queries, keys.swap_axes(-1, -2)?)?, cap)?;
        if let Some(ScaledDotProductAttentionMask::Array(mask)) = mask {
            let seen = Array::from_f32(0.0).as_dtype(scores.dtype())?;
            let hidden = Array::from_f32(-1e9).as_dtype(scores.dtype())?;
            scores = add(scores, select(mask, seen, hidden)?)?;
        }
        let weights = softmax_axis(&scores, -1, true)?;
        matmul(weights, values)?.reshape(&[1, self.heads, count, self.head_width])
    }
}

/// The rows of one slot, `[rows, heads, width]` to `[1, heads, tokens, width]`.
fn by_head(all: &Array, span: Span) -> Result<Array> {
    let (heads, width) = (all.dim(1), all.dim(2));
    let part = if span.from == 0 && span.to == all.dim(0) { all.clone() } else { all.try_index(span.from..span.to)? };
    if span.to - span.from == 1 {
        return part.reshape(&[1, heads, 1, width]);
    }
    part.transpose_axes(&[1, 0, 2])?.expand_dims(0)
}
