//! Key-value caches: one per slot and layer.
//!
//! A cache holds keys and values of consecutive positions in order, `[1, heads, capacity, width]`, and is filled by
//! updates that MLX makes in place. A layer with a sliding window keeps the same form: its buffer has slack, and when
//! the slack is used up the last window is moved to the front. So masks never have to know about rotation, and a
//! sliding cache can be cut back as far as its slack reaches. Positions are those of the slot's token list.
//!
//! Where the load order asks for it, keys and values are held packed (affine, by token and head, [`KvPacking`]) and are
//! unpacked layer by layer as they are used.

use crate::limits::{CELLS_MULTIPLE, SLIDING_SLACK_TOKENS, SPARE_PART};
use crate::quant::Result;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, quantize, zeros_dtype};
use mlx_rs::{Array, Dtype};
use ollmlx_worker_kit::contract::CellType;

use crate::ffi::packed::{self, Packed};
use crate::model::rope::Rope;
use crate::quant::{Mode, Packing};

/// How keys and values are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPacking {
    /// In the element type that is computed with.
    #[default]
    Plain,
    /// In this many bits a value, with a scale and an offset per group.
    Bits(i32),
}

impl KvPacking {
    /// What a load order asks for, in llama.cpp's words.
    #[must_use]
    pub fn of(cells: CellType) -> Self {
        match cells {
            CellType::F32 | CellType::F16 | CellType::Bf16 => Self::Plain,
            CellType::Q8_0 => Self::Bits(8),
            CellType::Q4_0 => Self::Bits(4),
        }
    }
}

/// What a layer's caches look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key-value heads.
    pub heads: i32,
    /// Width of a head.
    pub width: i32,
    /// Element type that is computed with.
    pub dtype: Dtype,
    /// Tokens that a query sees, its own included; `None`: all.
    pub window: Option<i32>,
    /// Packed where [`Self::group_size`] allows.
    pub packing: KvPacking,
}

impl KvShape {
    /// Values that share a scale; `None` where a head is no whole number of groups, and the cache stays plain.
    #[must_use]
    pub fn group_size(&self) -> Option<i32> {
        [64, 32].into_iter().find(|size| self.width % *size == 0)
    }

    fn packed(&self) -> Option<Packing> {
        match (self.packing, self.group_size()) {
            (KvPacking::Bits(bits), Some(group_size)) => Some(Packing { mode: Mode::Affine, group_size, bits }),
            _ => None,
        }
    }

    /// Bytes of the keys and values of one token.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        let element = if self.dtype == Dtype::Float32 { 4 } else { 2 };
        let width = self.width as u64;
        let head = match self.packed() {
            None => width * element,
            Some(packing) => width * packing.bits as u64 / 8 + width / packing.group_size as u64 * 2 * element,
        };
        2 * self.heads as u64 * head
    }

    /// Last dimension and element type of each part that a buffer has.
    fn parts(&self) -> Vec<(i32, Dtype)> {
        match self.packed() {
            None => vec![(self.width, self.dtype)],
            Some(packing) => {
                let groups = (self.width / packing.group_size, self.dtype);
                vec![(self.width * packing.bits / 32, Dtype::Uint32), groups, groups]
            }
        }
    }

    fn encode(&self, plain: &Array) -> Result<Vec<Array>> {
        match self.packed() {
            None => Ok(vec![plain.clone()]),
            Some(packing) => {
                let (values, scales, offsets) = quantize(plain, packing.group_size, packing.bits)?;
                Ok(vec![values, scales, offsets])
            }
        }
    }

    fn decode(&self, parts: &[Array]) -> Result<Array> {
        match (self.packed(), parts) {
            (None, [plain]) => Ok(plain.clone()),
            (Some(packing), [values, scales, offsets]) => {
                packed::dense(Packed { values, scales, biases: Some(offsets), packing }, self.dtype)
            }
            _ => Err(mlx_rs::error::Exception::custom("a cache without buffers")),
        }
    }
}

/// Keys and values of one slot in one layer.
#[derive(Clone, Debug)]
pub struct LayerCache {
    shape: KvShape,
    keys: Vec<Array>,
    values: Vec<Array>,
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
        Self { shape, keys: Vec::new(), values: Vec::new(), capacity: 0, base: 0, end: 0 }
    }

    /// Bytes of its buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    /// Appends keys and values (`[1, heads, tokens, width]`) and returns all that their queries may see.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn append(&mut self, keys: &Array, values: &Array, context_max: i32) -> Result<(Array, Array)> {
        let count = keys.dim(2);
        let need = self.end - self.base + count;
        // A short prompt that follows a long one gives its room back.
        if need > self.capacity || self.capacity > 2 * self.room_for(need, context_max) {
            self.make_room(count, context_max)?;
        }
        let at = self.end - self.base;
        self.end += count;
        let (from, to) = (self.first_seen(count) - self.base, at + count);
        let written = at..at + count;
        for (buffer, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (part, new) in buffer.iter_mut().zip(self.shape.encode(new)?) {
                part.try_index_mut((.., .., written.clone(), ..), &new)?;
            }
        }
        Ok((self.read(&self.keys, from..to)?, self.read(&self.values, from..to)?))
    }

    fn read(&self, buffer: &[Array], cells: std::ops::Range<i32>) -> Result<Array> {
        let parts: Vec<Array> =
            buffer.iter().map(|part| part.try_index((.., .., cells.clone(), ..))).collect::<Result<_>>()?;
        self.shape.decode(&parts)
    }

    /// The first position that the oldest of the last `count` queries sees.
    fn first_seen(&self, count: i32) -> i32 {
        match self.shape.window {
            Some(window) => (self.end - count - window + 1).max(self.base),
            None => self.base,
        }
    }

    /// The capacity for `need` tokens and some more.
    fn room_for(&self, need: i32, context_max: i32) -> i32 {
        let capacity = match self.shape.window {
            // The whole context at most: a short context never slides.
            Some(window) => (need.max(window) + SLIDING_SLACK_TOKENS).min(context_max.max(need)),
            None => (need + (need / SPARE_PART).max(CELLS_MULTIPLE)).min(context_max.max(need)),
        };
        (capacity + CELLS_MULTIPLE - 1) / CELLS_MULTIPLE * CELLS_MULTIPLE
    }

    fn make_room(&mut self, count: i32, context_max: i32) -> Result<()> {
        let first = match self.shape.window {
            Some(window) => (self.end - window + 1).max(self.base),
            None => self.base,
        };
        let kept = self.end - first;
        let capacity = self.room_for(kept + count, context_max);
        let used = first - self.base..self.end - self.base;
        for buffer in [&mut self.keys, &mut self.values] {
            let mut grown = Vec::new();
            for (part, (width, dtype)) in self.shape.parts().into_iter().enumerate() {
                let room = zeros_dtype(&[1, self.shape.heads, capacity - kept, width], dtype)?;
                grown.push(match buffer.get(part) {
                    Some(old) if kept > 0 => concatenate(&[&old.try_index((.., .., used.clone(), ..))?, &room], 2)?,
                    _ => room,
                });
            }
            *buffer = grown;
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
        if self.keys.is_empty() {
            return Ok(());
        }
        let (from, end) = (keep + discard, self.end);
        let moved = self.shape.encode(&rope.turn_back(&self.read(&self.keys, from..end)?, discard)?)?;
        let join = |part: &Array, moved: &Array| -> Result<Array> {
            let head = part.try_index((.., .., 0..keep, ..))?;
            let spare = zeros_dtype(&[1, self.shape.heads, discard, part.dim(-1)], part.dtype())?;
            let tail = part.try_index((.., .., end..self.capacity, ..))?;
            concatenate(&[&head, moved, &spare, &tail], 2)
        };
        let keys = self.keys.iter().zip(&moved).map(|(part, moved)| join(part, moved)).collect::<Result<_>>()?;
        let values = self
            .values
            .iter()
            .map(|part| join(part, &part.try_index((.., .., from..end, ..))?))
            .collect::<Result<_>>()?;
        self.keys = keys;
        self.values = values;
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

#[cfg(test)]
mod tests {
    use mlx_rs::random;

    use super::*;

    fn shape(packing: KvPacking, window: Option<i32>) -> KvShape {
        KvShape { heads: 2, width: 64, dtype: Dtype::Float32, window, packing }
    }

    fn noise(tokens: i32, seed: u64) -> Array {
        random::normal::<f32>(&[1, 2, tokens, 64], None, None, &random::key(seed).unwrap()).unwrap()
    }

    fn distance(a: &Array, b: &Array) -> f32 {
        assert_eq!(a.shape(), b.shape());
        a.subtract(b).unwrap().abs().unwrap().max(None).unwrap().item_exact::<f32>()
    }

    #[test]
    fn a_packed_cache_holds_what_a_plain_one_does_in_less_memory() {
        for window in [None, Some(24)] {
            for (bits, tolerance) in [(8, 0.03), (4, 0.5)] {
                let mut plain = LayerCache::new(shape(KvPacking::Plain, window));
                let mut packed = LayerCache::new(shape(KvPacking::Bits(bits), window));
                for (step, tokens) in [7, 1, 1, 300, 1, 64, 1].into_iter().enumerate() {
                    let (keys, values) = (noise(tokens, step as u64), noise(tokens, 100 + step as u64));
                    let a = plain.append(&keys, &values, 2048).unwrap();
                    let b = packed.append(&keys, &values, 2048).unwrap();
                    assert!(distance(&a.0, &b.0) < tolerance, "{bits} bits, step {step}");
                    assert!(distance(&a.1, &b.1) < tolerance, "{bits} bits, step {step}");
                }
                let cells = plain.capacity as u64;
                assert_eq!(plain.bytes(), cells * plain.shape.token_bytes());
                assert_eq!(packed.bytes(), cells * packed.shape.token_bytes());
                assert!(packed.bytes() * 100 < plain.bytes() * if bits == 8 { 29 } else { 17 });
            }
        }
    }

    #[test]
    fn a_packed_cache_shifts_like_a_plain_one() {
        let rope = Rope::plain(64, 10_000.0);
        let mut plain = LayerCache::new(shape(KvPacking::Plain, None));
        let mut packed = LayerCache::new(shape(KvPacking::Bits(8), None));
        for cache in [&mut plain, &mut packed] {
            cache.append(&noise(40, 1), &noise(40, 2), 512).unwrap();
            cache.shift(4, 10, &rope).unwrap();
            cache.truncate(25);
        }
        let a = plain.append(&noise(1, 3), &noise(1, 4), 512).unwrap();
        let b = packed.append(&noise(1, 3), &noise(1, 4), 512).unwrap();
        assert!(distance(&a.0, &b.0) < 0.04);
        assert!(distance(&a.1, &b.1) < 0.02);
    }

    #[test]
    fn a_short_prompt_after_a_long_one_gives_the_room_back_and_reads_the_same() {
        for window in [None, Some(24)] {
            let mut used = LayerCache::new(shape(KvPacking::Plain, window));
            let mut fresh = used.clone();
            let (start, rest) = ((noise(3, 1), noise(3, 2)), (noise(5, 3), noise(5, 4)));
            used.append(&start.0, &start.1, 4096).unwrap();
            fresh.append(&start.0, &start.1, 4096).unwrap();
            used.append(&noise(400, 5), &noise(400, 6), 4096).unwrap();
            let long = used.bytes();
            used.truncate(3);
            let a = used.append(&rest.0, &rest.1, 4096).unwrap();
            let b = fresh.append(&rest.0, &rest.1, 4096).unwrap();
            assert_eq!((distance(&a.0, &b.0), distance(&a.1, &b.1)), (0.0, 0.0));
            assert_eq!(used.bytes(), fresh.bytes());
            assert!(window.is_some() || used.bytes() * 2 < long);
        }
    }

    #[test]
    fn a_head_that_is_no_whole_number_of_groups_stays_plain() {
        let narrow = KvShape { width: 48, ..shape(KvPacking::Bits(8), None) };
        assert_eq!(narrow.token_bytes(), KvShape { packing: KvPacking::Plain, ..narrow }.token_bytes());
    }
}
