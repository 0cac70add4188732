//! Rotary positions: the kinds of `rope_scaling`, as mlx-lm computes them.
//!
//! MLX takes either a base or a table of periods, one per pair of dimensions (angle = position / period). Positions
//! are given per row, so one call turns all tokens of all slots.

use crate::quant::Result;
use mlx_rs::fast::rope_dynamic;
use mlx_rs::ops::{concatenate, multiply};
use mlx_rs::{Array, ops::indexing::TryIndexOp};
use ollmlx_proto::Failure;

use crate::config::{Config, invalid};

/// A rotation.
#[derive(Clone, Debug)]
pub struct Rope {
    dimensions: i32,
    traditional: bool,
    base: f32,
    scale: f32,
    periods: Option<Array>,
    /// Factor of the rotated part, before it is turned.
    magnitude: f32,
}

impl Rope {
    /// Turns by `base` alone.
    #[must_use]
    pub fn plain(dimensions: i32, base: f64) -> Self {
        Self { dimensions, traditional: false, base: base as f32, scale: 1.0, periods: None, magnitude: 1.0 }
    }

    /// Reads `rope_scaling` (or `rope_parameters`) of a configuration.
    ///
    /// # Errors
    /// A value is bad (named), or the kind is unknown.
    pub fn from_config(config: &Config<'_>, dimensions: i32, base: f64) -> Result<Self, Failure> {
        let mut rope = Self::plain(dimensions, base);
        rope.traditional = config.flag("rope_traditional")?.unwrap_or(false);
        let scaling = match config.object("rope_scaling", "rope_scaling.")? {
            Some(scaling) => Some(scaling),
            None => config.object("rope_parameters", "rope_parameters.")?,
        };
        let Some(scaling) = scaling else { return Ok(rope) };
        let kind = match scaling.text("rope_type")? {
            Some(kind) => kind,
            None => scaling.text("type")?.unwrap_or("default"),
        };
        let factor = || scaling.number("factor", 1e-3..=1e6);
        match kind {
            "default" | "mrope" => {}
            "linear" => rope.scale = 1.0 / factor()? as f32,
            "llama3" => rope.periods = Some(llama3(&scaling, dimensions, base, factor()?)?),
            "yarn" | "deepseek_yarn" => {
                let (periods, magnitude) = yarn(&scaling, dimensions, base, factor()?)?;
                rope.periods = Some(periods);
                rope.magnitude = magnitude;
            }
            "longrope" | "su" => {
                let (periods, magnitude) = longrope(config, &scaling, dimensions, base)?;
                rope.periods = Some(periods);
                rope.magnitude = magnitude;
            }
            other => {
                let other: String = other.chars().take(32).collect();
                return Err(invalid(format!("config.json: rope_scaling.rope_type {other} is not supported")));
            }
        }
        Ok(rope)
    }

    /// Turns `x` of shape `[rows, heads, width]`, row `i` to `positions[i]`.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn apply(&self, x: &Array, positions: &Array) -> Result<Array> {
        let (rows, heads, width) = (x.dim(0), x.dim(1), x.dim(2));
        let x = if (self.magnitude - 1.0).abs() > f32::EPSILON { self.magnify(x)? } else { x.clone() };
        // Each row is a batch entry of its own, one token long.
        self.turn(&x.reshape(&[rows, heads, 1, width])?, positions)?.reshape(&[rows, heads, width])
    }

    fn magnify(&self, x: &Array) -> Result<Array> {
        let factor = Array::from_f32(self.magnitude).as_dtype(x.dtype())?;
        let width = x.dim(-1);
        if self.dimensions == width {
            return multiply(x, &factor);
        }
        let head = multiply(x.try_index((.., .., 0..self.dimensions))?, &factor)?;
        concatenate(&[&head, &x.try_index((.., .., self.dimensions..width))?], -1)
    }

    fn turn(&self, x: &Array, positions: &Array) -> Result<Array> {
        let base = if self.periods.is_some() { None } else { Some(self.base) };
        rope_dynamic(x, self.dimensions, self.traditional, base, self.scale, positions, self.periods.as_ref())
    }

    /// Turns keys of shape `[1, heads, tokens, width]` back by `distance` positions.
    ///
    /// # Errors
    /// MLX refused the shapes.
    pub fn turn_back(&self, keys: &Array, distance: i32) -> Result<Array> {
        let (heads, tokens, width) = (keys.dim(1), keys.dim(2), keys.dim(3));
        let rows = heads * tokens;
        let back = Array::from_slice(&vec![-distance; usize::try_from(rows).unwrap_or(0)], &[rows]);
        self.turn(&keys.reshape(&[rows, 1, 1, width])?, &back)?.reshape(&[1, heads, tokens, width])
    }
}

/// `base^(2i/d)`: the periods without scaling.
fn plain_periods(dimensions: i32, base: f64) -> Vec<f64> {
    (0..dimensions / 2).map(|pair| base.powf(f64::from(2 * pair) / f64::from(dimensions))).collect()
}

fn table(periods: impl IntoIterator<Item = f64>) -> Array {
    let periods: Vec<f32> = periods.into_iter().map(|period| period as f32).collect();
    let len = i32::try_from(periods.len()).expect("half of a head's width");
    Array::from_slice(&periods, &[len])
}

fn llama3(scaling: &Config<'_>, dimensions: i32, base: f64, factor: f64) -> Result<Array, Failure> {
    let low = scaling.number_or("low_freq_factor", 1e-3..=1e6, 1.0)?;
    let high = scaling.number_or("high_freq_factor", 1e-3..=1e6, 4.0)?;
    let context = f64::from(scaling.count_or("original_max_position_embeddings", 1 << 30, 8192)?);
    Ok(table(plain_periods(dimensions, base).into_iter().map(|period| {
        let wavelength = 2.0 * std::f64::consts::PI * period;
        if wavelength > context / low {
            period * factor
        } else if wavelength <= context / high {
            period
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            period / ((1.0 - smooth) / factor + smooth)
        }
    })))
}

fn yarn(scaling: &Config<'_>, dimensions: i32, base: f64, factor: f64) -> Result<(Array, f32), Failure> {
    let context = f64::from(scaling.count_or("original_max_position_embeddings", 1 << 30, 4096)?);
    let beta_fast = scaling.number_or("beta_fast", 1e-3..=1e6, 32.0)?;
    let beta_slow = scaling.number_or("beta_slow", 1e-3..=1e6, 1.0)?;
    let mscale = scaling.number_or("mscale", 0.0..=1e3, 1.0)?;
    let mscale_all = scaling.number_or("mscale_all_dim", 0.0..=1e3, 0.0)?;
    let d = f64::from(dimensions);
    let correction = |rotations: f64| d * (context / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
    let low = correction(beta_fast).floor().max(0.0);
    let mut high = correction(beta_slow).ceil().min(d - 1.0);
    if (high - low).abs() < f64::EPSILON {
        high += 0.001;
    }
    let periods = plain_periods(dimensions, base).into_iter().enumerate().map(|(pair, extra)| {
        let mask = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let inter = factor * extra;
        inter * extra / (inter * mask + extra * (1.0 - mask))
    });
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    Ok((table(periods), (magnitude(mscale) / magnitude(mscale_all)) as f32))
}

/// The long table always, as mlx-lm does it: with one cache per slot the short one can't be swapped in halfway.
fn longrope(config: &Config<'_>, scaling: &Config<'_>, dimensions: i32, base: f64) -> Result<(Array, f32), Failure> {
    let longest = f64::from(config.count_or("max_position_embeddings", 1 << 30, 131_072)?);
    let original = match scaling.get("original_max_position_embeddings") {
        Some(_) => scaling.count("original_max_position_embeddings", 1 << 30)?,
        None => config.count_or("original_max_position_embeddings", 1 << 30, 4096)?,
    };
    let pairs = usize::try_from(dimensions / 2).map_err(|_| invalid("config.json: head_dim is too small"))?;

    let factors = scaling.numbers("long_factor", pairs)?;
    let stretch = longest / f64::from(original);
    let default = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / f64::from(original).ln()).sqrt() };
    let magnitude = scaling.number_or("long_mscale", 1e-3..=1e3, default)?;
    let periods = plain_periods(dimensions, base).into_iter().zip(factors).map(|(period, factor)| period * factor);
    Ok((table(periods), magnitude as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_turned_back_are_those_of_an_earlier_position() {
        let values: Vec<f32> = (0..2 * 3 * 8).map(|index| (index as f32 * 0.7).sin()).collect();
        let x = Array::from_slice(&values, &[3, 2, 8]);
        let rope = Rope::plain(8, 1e4);
        let early = rope.apply(&x, &Array::from_slice(&[4, 5, 6], &[3])).unwrap();
        let late = rope.apply(&x, &Array::from_slice(&[11, 12, 13], &[3])).unwrap();
        let by_head = late.transpose_axes(&[1, 0, 2]).unwrap().expand_dims(0).unwrap();
        let back = rope.turn_back(&by_head, 7).unwrap().squeeze_axes(&[0]).unwrap();
        let back = back.transpose_axes(&[1, 0, 2]).unwrap().contiguous().unwrap();
        let early = early.contiguous().unwrap();
        for (a, b) in back.try_as_slice::<f32>().unwrap().iter().zip(early.try_as_slice::<f32>().unwrap()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
