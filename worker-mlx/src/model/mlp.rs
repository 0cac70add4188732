//! Feed-forward layers: one gated layer, or a choice of experts.

use crate::quant::Result;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::ops::{
    add, argpartition_axis, divide, gather_mm, gather_qmm, multiply, negative, sigmoid, softmax_axis, stack, tanh,
};
use mlx_rs::{Array, Dtype};
use ollmlx_proto::Failure;

use crate::model::decoder::DecoderSpec;
use crate::quant::{Linear, Weight, split_last};
use crate::weights::{Weights, load_failed};

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
}

impl Activation {
    /// Applies it.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn apply(self, x: &Array) -> Result<Array> {
        match self {
            Self::Silu => multiply(x, sigmoid(x)?),
            Self::GeluTanh => {
                let number = |value: f32| Array::from_f32(value).as_dtype(x.dtype());
                let cube = multiply(multiply(x, x)?, multiply(x, number(0.044_715)?)?)?;
                let inner = multiply(add(x, cube)?, number((2.0 / std::f32::consts::PI).sqrt())?)?;
                multiply(multiply(x, number(0.5)?)?, add(tanh(inner)?, number(1.0)?)?)
            }
        }
    }
}

/// Sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeSpec {
    /// Experts of a layer.
    pub experts: i32,
    /// Experts that see a token.
    pub chosen: i32,
    /// Width of an expert.
    pub width: i32,
    /// Whether the weights of the chosen sum to one.
    pub normalise: bool,
}

/// The feed-forward part of one layer.
pub enum FeedForward {
    /// One gated layer.
    Gated(Gated),
    /// A choice of experts.
    Experts(Box<Experts>),
}

impl FeedForward {
    /// Takes the tensors of layer `index`.
    ///
    /// # Errors
    /// Tensors are missing or of another shape.
    pub fn load(weights: &mut Weights, spec: &DecoderSpec, index: usize) -> Result<Self, Failure> {
        let path = format!("model.layers.{index}.mlp");
        match &spec.moe {
            Some((moe, layers)) if layers.get(index).copied().unwrap_or(false) => {
                Experts::load(weights, spec, *moe, &path).map(|experts| Self::Experts(Box::new(experts)))
            }
            _ => Gated::load(weights, spec, &path).map(Self::Gated),
        }
    }

    /// The arrays it holds, to be evaluated.
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Gated(gated) => gated.arrays(),
            Self::Experts(experts) => experts.arrays(),
        }
    }

    /// `[rows, hidden]` to `[rows, hidden]`.
    ///
    /// # Errors
    /// MLX refused the shapes or the memory.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Gated(gated) => gated.apply(x),
            Self::Experts(experts) => experts.apply(x),
        }
    }
}

/// `down(f(gate(x)) · up(x))`.
pub struct Gated {
    /// Gate and up, side by side or apart.
    inner: (Linear, Option<Linear>),
    down: Linear,
    width: i32,
    activation: Activation,
}

impl Gated {
    fn load(weights: &mut Weights, spec: &DecoderSpec, path: &str) -> Result<Self, Failure> {
        let width = spec.feed_forward;
        let inner = if spec.fused {
            (weights.final_linear(&format!("{path}.gate_up_proj"), 2 * width, spec.hidden)?, None)
        } else {
            let parts = [(format!("{path}.gate_proj"), width), (format!("{path}.up_proj"), width)];
            match weights.side_by_side(&parts, spec.hidden)? {
                Ok(both) => (both, None),
                Err(mut apart) => {
                    let up = apart.pop();
                    (apart.pop().expect("two layers were given"), up)
                }
            }
        };
        let down = weights.final_linear(&format!("{path}.down_proj"), spec.hidden, width)?;
        Ok(Self { inner, down, width, activation: spec.activation })
    }

    fn arrays(&self) -> Vec<&Array> {
        let mut arrays = self.inner.0.arrays();
        arrays.extend(self.inner.1.iter().flat_map(Linear::arrays));
        arrays.extend(self.down.arrays());
        arrays
    }

    fn apply(&self, x: &Array) -> Result<Array> {
        let first = self.inner.0.apply(x)?;
        let (gate, up) = match &self.inner.1 {
            Some(up) => (first, up.apply(x)?),
            None => {
                let mut halves = split_last(&first, &[self.width, self.width])?;
                let up = halves.remove(1);
                (halves.remove(0), up)
            }
        };
        self.down.apply(&multiply(self.activation.apply(&gate)?, up)?)
    }
}

/// A router and its experts' weights, stacked `[experts, out, in]`.
pub struct Experts {
    router: Linear,
    gate: Weight,
    up: Weight,
    down: Weight,
    spec: MoeSpec,
    activation: Activation,
}

impl Experts {
    fn load(weights: &mut Weights, spec: &DecoderSpec, moe: MoeSpec, path: &str) -> Result<Self, Failure> {
        let mut stack = |name: &str, out: i32, input: i32| -> Result<Weight, Failure> {
            let stacked = format!("{path}.switch_mlp.{name}");
            if weights.has(&format!("{stacked}.weight")) {
                return weights.weight(&stacked, &[moe.experts], out, input);
            }
            let mut all = Vec::new();
            for expert in 0..moe.experts {
                all.push(weights.weight(&format!("{path}.experts.{expert}.{name}"), &[], out, input)?);
            }
            stack_experts(&all).map_err(|error| load_failed(&error))
        };
        let gate = stack("gate_proj", moe.width, spec.hidden)?;
        let up = stack("up_proj", moe.width, spec.hidden)?;
        let down = stack("down_proj", spec.hidden, moe.width)?;
        let router = weights.final_linear(&format!("{path}.gate"), moe.experts, spec.hidden)?;
        Ok(Self { router, gate, up, down, spec: moe, activation: spec.activation })
    }

    fn arrays(&self) -> Vec<&Array> {
        let mut arrays = self.router.arrays();
        for weight in [&self.gate, &self.up, &self.down] {
            arrays.extend(weight.arrays());
        }
        arrays
    }

    fn apply(&self, x: &Array) -> Result<Array> {
        let (rows, hidden, chosen) = (x.dim(0), x.dim(1), self.spec.chosen);
        let odds = softmax_axis(self.router.apply(x)?.as_dtype(Dtype::Float32)?, -1, true)?;
        let order = argpartition_axis(negative(&odds)?, chosen - 1, -1)?;
        let picked = order.try_index((.., 0..chosen))?;
        let mut shares = take_along_axis(&odds, &picked, -1)?;
        if self.spec.normalise {
            shares = divide(&shares, shares.sum_axis(-1, true)?)?;
        }
        let x = x.reshape(&[rows, 1, 1, hidden])?;
        let gate = self.activation.apply(&gathered(&x, &self.gate, &picked)?)?;
        let y = gathered(&multiply(gate, gathered(&x, &self.up, &picked)?)?, &self.down, &picked)?;
        let y = y.reshape(&[rows, chosen, hidden])?;
        let shares = shares.as_dtype(y.dtype())?.reshape(&[rows, chosen, 1])?;
        multiply(y, shares)?.sum_axis(1, false)
    }
}

/// `x · weight[expert]ᵀ` for each of a row's experts.
fn gathered(x: &Array, weight: &Weight, experts: &Array) -> Result<Array> {
    match weight {
        Weight::Dense(weight) => gather_mm(x, weight.swap_axes(-1, -2)?, None, Some(experts), false),
        Weight::Quantised { packed, scales, biases, affine } => gather_qmm(
            x,
            packed,
            scales,
            Some(biases),
            None,
            Some(experts),
            true,
            affine.group_size,
            affine.bits,
            false,
        ),
    }
}

fn stack_experts(all: &[Weight]) -> Result<Weight> {
    let unlike = || mlx_rs::error::Exception::custom("the experts of a layer are quantised in different ways");
    let mut dense = Vec::new();
    let mut parts = (Vec::new(), Vec::new(), Vec::new());
    let mut geometry = None;
    for weight in all {
        match weight {
            Weight::Dense(array) => dense.push(array),
            Weight::Quantised { packed, scales, biases, affine } => {
                if *geometry.get_or_insert(*affine) != *affine {
                    return Err(unlike());
                }
                parts.0.push(packed);
                parts.1.push(scales);
                parts.2.push(biases);
            }
        }
    }
    match geometry {
        None => Ok(Weight::Dense(stack(&dense, 0)?)),
        Some(affine) if dense.is_empty() => Ok(Weight::Quantised {
            packed: stack(&parts.0, 0)?,
            scales: stack(&parts.1, 0)?,
            biases: stack(&parts.2, 0)?,
            affine,
        }),
        Some(_) => Err(unlike()),
    }
}
