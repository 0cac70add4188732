//! Key-value caches: one per slot and layer.
//!
//! A cache holds keys and values of consecutive positions in order, `[1, heads, capacity, width]`, and is filled by
//! updates that MLX makes in place. A layer with a sliding window keeps the same form: its buffer has slack, and when
//! the slack is used up the last window is moved to the front. So masks never have to know about rotation, and a
//! sliding cache can be cut back as far as its slack reaches. Positions are those of the slot's token list.

use crate::quant::Result;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use crate::model::rope::Rope;

/// Tokens by which a growing cache grows at least.
const GROW_TOKENS: i32 = 256;
/// Tokens that a sliding cache holds beyond its window, before it is moved to the front again.
pub const SLIDING_SLACK_TOKENS: i32 = 512;

/// What a layer's caches look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key-value heads.
    pub heads: i32,
    /// Width of a head.
    pub width: i32,
    /// Element type.
    pub dtype: Dtype,
    /// Tokens that a query sees, its own included; `None`: all.
    pub window: Option<i32>,
}

/// Keys and values of one slot in one layer.
#[derive(Clone, Debug)]
pub struct LayerCache {
    shape: KvShape,
    keys: Option<Array>,
    values: Option<Array>,
    capacity: i32,
    /// Position of the first cell of the buffer.
    base: i32,
    /// Position after the last cell in use.
    end: i32,
}

impl LayerCache {
    /// An empty one, which takes no memory.
    #[must_use]
    pub fn new(shape: KvShape) -> Self {
        Self { shape, keys: None, values: None, capacity: 0, base: 0, end: 0 }
    }

    /// Bytes of its buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        [&self.keys, &self.values].into_iter().flatten().map(|array| array.nbytes() as u64).sum()
    }

    /// Appends keys and values (`[1, heads, tokens, width]`) and returns all that their queries may see.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn append(&mut self, keys: &Array, values: &Array, context_max: i32) -> Result<(Array, Array)> {
        let count = keys.dim(2);
        if self.end - self.base + count > self.capacity {
            self.make_room(count, context_max)?;
        }
        let at = self.end - self.base;
        self.end += count;
        let (from, to) = (self.first_seen(count) - self.base, at + count);
        let (Some(all_keys), Some(all_values)) = (&mut self.keys, &mut self.values) else {
            return Err(mlx_rs::error::Exception::custom("a cache without buffers"));
        };
        all_keys.try_index_mut((.., .., at..at + count, ..), keys)?;
        all_values.try_index_mut((.., .., at..at + count, ..), values)?;
        Ok((all_keys.try_index((.., .., from..to, ..))?, all_values.try_index((.., .., from..to, ..))?))
    }

    /// The first position that the oldest of the last `count` queries sees.
    fn first_seen(&self, count: i32) -> i32 {
        match self.shape.window {
            Some(window) => (self.end - count - window + 1).max(self.base),
            None => self.base,
        }
    }

    fn make_room(&mut self, count: i32, context_max: i32) -> Result<()> {
        let first = match self.shape.window {
            Some(window) => (self.end - window + 1).max(self.base),
            None => self.base,
        };
        let kept = self.end - first;
        let need = kept + count;
        let capacity = match self.shape.window {
            // The whole context at most: a short context never slides.
            Some(window) => (need.max(window) + SLIDING_SLACK_TOKENS).min(context_max.max(need)),
            None => (need + (need / 2).max(GROW_TOKENS)).min(context_max.max(need)),
        };
        let capacity = (capacity + 63) / 64 * 64;
        for buffer in [&mut self.keys, &mut self.values] {
            let room = zeros_dtype(&[1, self.shape.heads, capacity - kept, self.shape.width], self.shape.dtype)?;
            *buffer = Some(match buffer.take() {
                Some(old) if kept > 0 => {
                    let tail = old.try_index((.., .., first - self.base..self.end - self.base, ..))?;
                    concatenate(&[&tail, &room], 2)?
                }
                _ => room,
            });
        }
        self.base = first;
        self.capacity = capacity;
        Ok(())
    }

    /// Whether it can be cut back to its first `keep` tokens.
    #[must_use]
    pub fn can_truncate(&self, keep: i32) -> bool {
        keep >= self.end || self.shape.window.is_none_or(|window| (keep - window + 1).max(0) >= self.base)
    }

    /// Cuts it back to its first `keep` tokens, which [`Self::can_truncate`] has allowed.
    pub fn truncate(&mut self, keep: i32) {
        if keep < self.end {
            self.end = keep;
        }
        if self.end <= self.base {
            *self = Self::new(self.shape);
        }
    }

    /// Takes out `discard` tokens after the first `keep` and turns the keys behind them to their new positions.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn shift(&mut self, keep: i32, discard: i32, rope: &Rope) -> Result<()> {
        let (Some(keys), Some(values)) = (&self.keys, &self.values) else { return Ok(()) };
        let (from, end) = (keep + discard, self.end);
        let moved = rope.turn_back(&keys.try_index((.., .., from..end, ..))?, discard)?;
        let spare = zeros_dtype(&[1, self.shape.heads, discard, self.shape.width], self.shape.dtype)?;
        let join = |all: &Array, moved: &Array| -> Result<Array> {
            let head = all.try_index((.., .., 0..keep, ..))?;
            let tail = all.try_index((.., .., end..self.capacity, ..))?;
            concatenate(&[&head, moved, &spare, &tail], 2)
        };
        let new_keys = join(keys, &moved)?;
        let new_values = join(values, &values.try_index((.., .., from..end, ..))?)?;
        self.keys = Some(new_keys);
        self.values = Some(new_values);
        self.end -= discard;
        Ok(())
    }

    /// The buffers, to be evaluated.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.keys.iter().chain(&self.values)
    }
}

/// All layers of one slot.
#[derive(Clone, Debug)]
pub struct SlotCache {
    /// By layer.
    pub layers: Vec<LayerCache>,
    /// Tokens it holds.
    pub tokens: i32,
}

impl SlotCache {
    /// An empty one.
    #[must_use]
    pub fn new(shapes: &[KvShape]) -> Self {
        Self { layers: shapes.iter().map(|&shape| LayerCache::new(shape)).collect(), tokens: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            *layer = LayerCache::new(layer.shape);
        }
        self.tokens = 0;
    }

    /// Cuts back to `keep` tokens where every layer can, else to nothing. Returns what is kept.
    pub fn truncate(&mut self, keep: i32) -> i32 {
        if keep >= self.tokens {
            return self.tokens;
        }
        if keep == 0 || !self.layers.iter().all(|layer| layer.can_truncate(keep)) {
            self.clear();
            return 0;
        }
        for layer in &mut self.layers {
            layer.truncate(keep);
        }
        self.tokens = keep;
        keep
    }

    /// Whether a full window can slide: only where every layer sees everything.
    #[must_use]
    pub fn can_shift(&self) -> bool {
        self.layers.iter().all(|layer| layer.shape.window.is_none())
    }

    /// Bytes of all buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}
