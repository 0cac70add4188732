//! Linear layers and embeddings, dense or with packed weights.
//!
//! A packed weight is `packed` (unsigned 32-bit words, `[out, in·bits/32]`) and `scales` (`[out, in/group]`). In the
//! affine mode there are `biases` too and a value is `q·scale + bias`; in the others `q` is a small float, the scale is
//! one of 8 bits, and a value is their product. Activations are flat, `[rows, width]`: all tokens of all slots.
//! This file knows no architecture and no tensor names.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{add, concatenate, gather_mm, matmul, stack, zeros_dtype};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use crate::ffi::packed::{self, Packed};
use crate::limits::{CPU_DEQUANTISE_ROWS, UNPACK_PIECE_VALUES};

/// What a call of MLX gives.
pub type Result<T, E = Exception> = std::result::Result<T, E>;

/// What packed values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `q·scale + bias`.
    Affine,
    /// 4-bit floats in groups of 32, scales are powers of two (OCP microscaling).
    Mxfp4,
    /// The same with 8-bit floats.
    Mxfp8,
    /// 4-bit floats in groups of 16, scales are 8-bit floats.
    Nvfp4,
}

impl Mode {
    /// The word of a configuration.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "affine" => Some(Self::Affine),
            "mxfp4" => Some(Self::Mxfp4),
            "mxfp8" => Some(Self::Mxfp8),
            "nvfp4" => Some(Self::Nvfp4),
            _ => None,
        }
    }
}

/// Mode and geometry of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// What the values mean.
    pub mode: Mode,
    /// Inputs that share a scale.
    pub group_size: i32,
    /// Bits of a value.
    pub bits: i32,
}

/// How a weight is held.
#[derive(Clone, Debug)]
pub enum Weight {
    /// `[out, in]`.
    Dense(Array),
    /// See the module's description.
    Quantised {
        /// The values.
        packed: Array,
        /// Factor of each group.
        scales: Array,
        /// Offset of each group; in the affine mode only.
        biases: Option<Array>,
        /// Mode and geometry.
        packing: Packing,
        /// Element type of what it is multiplied with.
        dtype: Dtype,
    },
}

impl Weight {
    /// The weight as one dense array `[out, in]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn to_dense(&self) -> Result<Array> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Quantised { packed, scales, biases, packing, dtype } => {
                packed::dense(Packed { values: packed, scales, biases: biases.as_ref(), packing: *packing }, *dtype)
            }
        }
    }

    /// The same for good: filled in piece by piece, since MLX holds several copies of what it unpacks meanwhile.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn unpacked(&self) -> Result<Array> {
        let Self::Quantised { packed, scales, biases, packing, dtype } = self else { return self.to_dense() };
        let (rows, width) = (packed.dim(0), packed.dim(-1) * 32 / packing.bits);
        let piece = (UNPACK_PIECE_VALUES / width.max(1)).max(1);
        if packed.ndim() != 2 || rows <= piece {
            return self.to_dense();
        }
        let mut dense = zeros_dtype(&[rows, width], *dtype)?;
        for from in (0..rows).step_by(piece as usize) {
            let cut = from..(from + piece).min(rows);
            let values = packed.try_index(cut.clone())?;
            let scales = scales.try_index(cut.clone())?;
            let biases = biases.as_ref().map(|biases| biases.try_index(cut.clone())).transpose()?;
            let part = Packed { values: &values, scales: &scales, biases: biases.as_ref(), packing: *packing };
            dense.try_index_mut(cut, packed::dense(part, *dtype)?)?;
            eval([&dense])?;
        }
        Ok(dense)
    }

    /// Joins weights of one input width along their outputs; `None` where they are held differently.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn join(weights: &[&Self]) -> Result<Option<Self>> {
        Self::combine(weights, |parts| concatenate(parts, 0))
    }

    /// Stacks weights of one shape along a new first axis; `None` where they are held differently.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn stack(weights: &[&Self]) -> Result<Option<Self>> {
        Self::combine(weights, |parts| stack(parts, 0))
    }

    fn combine(weights: &[&Self], combine: impl Fn(&[&Array]) -> Result<Array>) -> Result<Option<Self>> {
        let (mut dense, mut values, mut factors, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut held = None;
        for weight in weights {
            match weight {
                Self::Dense(array) => dense.push(array),
                Self::Quantised { packed, scales, biases, packing, dtype } => {
                    if *held.get_or_insert((*packing, *dtype)) != (*packing, *dtype) {
                        return Ok(None);
                    }
                    values.push(packed);
                    factors.push(scales);
                    offsets.extend(biases);
                }
            }
        }
        match held {
            None => Ok(Some(Self::Dense(combine(&dense)?))),
            Some((packing, dtype)) if dense.is_empty() => Ok(Some(Self::Quantised {
                packed: combine(&values)?,
                scales: combine(&factors)?,
                biases: if offsets.is_empty() { None } else { Some(combine(&offsets)?) },
                packing,
                dtype,
            })),
            Some(_) => Ok(None),
        }
    }

    /// The arrays it holds, to be evaluated.
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Dense(array) => vec![array],
            Self::Quantised { packed, scales, biases, .. } => [packed, scales].into_iter().chain(biases).collect(),
        }
    }

    /// `x · weightᵀ` for `x` of shape `[rows, in]`.
    fn apply(&self, x: &Array, on_cpu: bool) -> Result<Array> {
        match self {
            Self::Dense(weight) => matmul(x, weight.transpose()?),
            Self::Quantised { packed, scales, biases, packing, .. } => {
                if on_cpu && x.dim(0) >= CPU_DEQUANTISE_ROWS {
                    return matmul(x, self.to_dense()?.transpose()?);
                }
                packed::product(x, Packed { values: packed, scales, biases: biases.as_ref(), packing: *packing }, None)
            }
        }
    }

    /// `x · weight[expert]ᵀ` for each of a row's experts; the weight is `[experts, out, in]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn apply_experts(&self, x: &Array, experts: &Array) -> Result<Array> {
        match self {
            Self::Dense(weight) => gather_mm(x, weight.swap_axes(-1, -2)?, None, Some(experts), false),
            Self::Quantised { packed, scales, biases, packing, .. } => packed::product(
                x,
                Packed { values: packed, scales, biases: biases.as_ref(), packing: *packing },
                Some(experts),
            ),
        }
    }
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Array>,
    /// Whether it computes on the CPU.
    pub on_cpu: bool,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        let y = self.weight.apply(x, self.on_cpu)?;
        match &self.bias {
            Some(bias) => add(y, bias),
            None => Ok(y),
        }
    }

    /// One layer that computes what `layers` compute, side by side: one large product is faster than three small ones.
    /// `None` where their weights are held differently.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn side_by_side(layers: &[&Self]) -> Result<Option<Self>> {
        let weights: Vec<&Weight> = layers.iter().map(|layer| &layer.weight).collect();
        let biases: Vec<&Array> = layers.iter().filter_map(|layer| layer.bias.as_ref()).collect();
        if !biases.is_empty() && biases.len() != layers.len() {
            return Ok(None);
        }
        let Some(weight) = Weight::join(&weights)? else { return Ok(None) };
        let bias = if biases.is_empty() { None } else { Some(concatenate(&biases, 0)?) };
        let on_cpu = layers.iter().all(|layer| layer.on_cpu);
        Ok(Some(Self { weight, bias, on_cpu }))
    }

    /// Lays a dense weight of a CPU out by inputs, which BLAS multiplies up to three times faster for a few rows.
    ///
    /// # Errors
    /// MLX refused the memory.
    pub fn laid_out(mut self) -> Result<Self> {
        if let (Weight::Dense(weight), true) = (&self.weight, self.on_cpu) {
            self.weight = Weight::Dense(weight.transpose()?.contiguous()?.transpose()?);
        }
        Ok(self)
    }

    /// The arrays it holds, to be evaluated.
    pub fn arrays(&self) -> Vec<&Array> {
        let mut arrays = self.weight.arrays();
        arrays.extend(&self.bias);
        arrays
    }
}

/// A table of vectors by token, which may serve as the output layer too.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[vocabulary, width]`.
    pub weight: Weight,
    /// Element type of what comes out.
    pub dtype: Dtype,
    /// Whether it computes on the CPU.
    pub on_cpu: bool,
}

impl Embedding {
    /// Rows of the table: `[tokens]` to `[tokens, width]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn rows(&self, tokens: &Array) -> Result<Array> {
        let rows = match &self.weight {
            Weight::Dense(weight) => weight.take_axis(tokens, 0)?,
            Weight::Quantised { packed, scales, biases, packing, dtype } => {
                let biases = biases.as_ref().map(|biases| biases.take_axis(tokens, 0)).transpose()?;
                let values = packed.take_axis(tokens, 0)?;
                let scales = scales.take_axis(tokens, 0)?;
                packed::dense(
                    Packed { values: &values, scales: &scales, biases: biases.as_ref(), packing: *packing },
                    *dtype,
                )?
            }
        };
        rows.as_dtype(self.dtype)
    }

    /// The table as output layer: `[rows, width]` to `[rows, vocabulary]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn as_linear(&self, x: &Array) -> Result<Array> {
        self.weight.apply(x, self.on_cpu)
    }
}

/// Splits the last axis at the running sums of `widths`.
///
/// # Errors
/// MLX refused the shapes.
pub fn split_last(x: &Array, widths: &[i32]) -> Result<Vec<Array>> {
    let mut cuts = Vec::with_capacity(widths.len());
    let mut at = 0;
    for width in widths {
        at += width;
        cuts.push(at);
    }
    cuts.pop();
    let parts = x.split_at_indices(&cuts, -1)?;
    if parts.len() == widths.len() {
        Ok(parts)
    } else {
        Err(Exception::custom("a split gave the wrong number of parts"))
    }
}
