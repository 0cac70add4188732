//! Feed-forward layers: one gated layer, or a choice of experts.

use crate::quant::Result;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::ops::{add, argpartition_axis, divide, multiply, negative, sigmoid, softmax_axis, tanh};
use mlx_rs::{Array, Dtype};
use ollmlx_proto::Failure;

use crate::config::invalid;
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
    Gated(Box<Gated>),
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
            _ => Gated::load(weights, spec, &path).map(|gated| Self::Gated(Box::new(gated))),
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
            let stacked = Weight::stack(&all.iter().collect::<Vec<_>>()).map_err(|error| load_failed(&error))?;
            stacked.ok_or_else(|| invalid(format!("{path}: the experts are quantised in different ways")))
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
        let gate = self.activation.apply(&self.gate.apply_experts(&x, &picked)?)?;
        let y = self.down.apply_experts(&multiply(gate, self.up.apply_experts(&x, &picked)?)?, &picked)?;
        let y = y.reshape(&[rows, chosen, hidden])?;
        let shares = shares.as_dtype(y.dtype())?.reshape(&[rows, chosen, 1])?;
        multiply(y, shares)?.sum_axis(1, false)
    }
}
