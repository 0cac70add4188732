//! Takes named tensors out of a checkpoint and makes layers of them, with every shape checked.
//!
//! Arrays are lazy until evaluated, so a tensor that is never taken is never read. On a CPU device everything is
//! turned to 32-bit floats as it is taken: half-precision kernels are scalar code there, 30 times slower.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype, error::Exception};
use ollmlx_proto::{Failure, FailureKind};

use crate::checkpoint::{Checkpoint, usual_name};
use crate::config::{Config, invalid};
use crate::quant::{Embedding, Linear, Mode, Packing, Weight};

/// Where and in what type weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Whether MLX computes on the CPU: floats become 32 bits wide.
    pub on_cpu: bool,
    /// Whether quantised weights are unpacked as they are loaded: more memory, faster on a CPU.
    pub unpack: bool,
}

/// The tensors of a checkpoint that are not yet taken.
pub struct Weights {
    arrays: HashMap<String, Array>,
    placement: Placement,
}

/// A fault of MLX while loading.
#[must_use]
pub fn load_failed(error: &Exception) -> Failure {
    Failure::new(FailureKind::LoadFailed, "the model could not be loaded").with_detail(error.what().to_owned())
}

impl Weights {
    /// Opens every shard; nothing is read yet but the headers.
    ///
    /// # Errors
    /// MLX refused a file.
    pub fn open(checkpoint: &Checkpoint, placement: Placement) -> Result<Self, Failure> {
        let mut arrays = HashMap::new();
        for shard in &checkpoint.shards {
            let loaded = Array::load_safetensors(shard).map_err(|error| {
                let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
                invalid(format!("{name} can't be loaded")).with_detail(error.to_string())
            })?;
            arrays.extend(loaded.into_iter().map(|(name, array)| (usual_name(&name), array)));
        }
        Ok(Self { arrays, placement })
    }

    /// Where weights go.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// Renames tensors that begin with `from` (`language_model.model.` to `model.`).
    pub fn rename_prefix(&mut self, from: &str, to: &str) {
        let names: Vec<String> = self.arrays.keys().filter(|name| name.starts_with(from)).cloned().collect();
        for name in names {
            if let Some(array) = self.arrays.remove(&name) {
                self.arrays.insert(format!("{to}{}", &name[from.len()..]), array);
            }
        }
    }

    fn raw(&mut self, name: &str) -> Result<Array, Failure> {
        self.arrays.remove(name).ok_or_else(|| invalid(format!("the tensor {name} is missing")))
    }

    /// A dense tensor of exactly this shape.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn tensor(&mut self, name: &str, shape: &[i32]) -> Result<Array, Failure> {
        let array = self.raw(name)?;
        check_shape(name, &array, shape)?;
        self.float(name, array)
    }

    fn float(&self, name: &str, array: Array) -> Result<Array, Failure> {
        match array.dtype() {
            Dtype::Float16 | Dtype::Bfloat16 if self.placement.on_cpu => {
                array.as_dtype(Dtype::Float32).map_err(|error| load_failed(&error))
            }
            Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 => Ok(array),
            other => Err(invalid(format!("the tensor {name} has the element type {other:?}, floats are needed"))),
        }
    }

    /// The weight `path.weight` of shape `[leading…, out, in]`, quantised where `path.scales` exists.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes.
    pub fn weight(&mut self, path: &str, leading: &[i32], out: i32, input: i32) -> Result<Weight, Failure> {
        let name = format!("{path}.weight");
        let shape = |last: i32| leading.iter().copied().chain([out, last]).collect::<Vec<i32>>();
        if !self.has(&format!("{path}.scales")) {
            return Ok(Weight::Dense(self.tensor(&name, &shape(input))?));
        }
        let packed = self.raw(&name)?;
        let scales = self.raw(&format!("{path}.scales"))?;
        let offsets = self.arrays.remove(&format!("{path}.biases"));
        let packing = packing(&name, &packed, &scales, offsets.is_some(), input)?;
        if self.has(&format!("{path}.global_scale")) || self.has(&format!("{name}.global_scale")) {
            return Err(invalid(format!("{path} has a global scale, which is not supported")));
        }
        check_shape(&name, &packed, &shape(packed.dim(-1)))?;
        check_shape(&format!("{path}.scales"), &scales, &shape(scales.dim(-1)))?;
        let (scales, biases) = match offsets {
            Some(offsets) => {
                check_shape(&format!("{path}.biases"), &offsets, &shape(scales.dim(-1)))?;
                (self.float(path, scales)?, Some(self.float(path, offsets)?))
            }
            None => (scales, None),
        };
        // Floats of 8 bits say nothing of the activations; MLX computes with 16 bits there.
        let dtype = match (&biases, self.placement.on_cpu) {
            (Some(biases), _) => biases.dtype(),
            (None, true) => Dtype::Float32,
            (None, false) => Dtype::Bfloat16,
        };
        let weight = Weight::Quantised { packed, scales, biases, packing, dtype };
        if self.placement.unpack {
            return weight.unpacked().map(Weight::Dense).map_err(|error| load_failed(&error));
        }
        Ok(weight)
    }

    /// A linear layer; its bias is taken where the checkpoint has one and `bias` allows it.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes.
    pub fn linear(&mut self, path: &str, out: i32, input: i32) -> Result<Linear, Failure> {
        let weight = self.weight(path, &[], out, input)?;
        let name = format!("{path}.bias");
        let bias = if self.has(&name) { Some(self.tensor(&name, &[out])?) } else { None };
        Ok(Linear { weight, bias, on_cpu: self.placement.on_cpu })
    }

    /// A linear layer that is used as it is, laid out for its device.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes.
    pub fn final_linear(&mut self, path: &str, out: i32, input: i32) -> Result<Linear, Failure> {
        self.linear(path, out, input)?.laid_out().map_err(|error| load_failed(&error))
    }

    /// Several linear layers of one input as one, where their weights are held alike.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes.
    pub fn side_by_side(
        &mut self,
        parts: &[(String, i32)],
        input: i32,
    ) -> Result<Result<Linear, Vec<Linear>>, Failure> {
        let mut layers = Vec::new();
        for (path, out) in parts {
            layers.push(self.linear(path, *out, input)?);
        }
        let fault = |error| load_failed(&error);
        let joined = Linear::side_by_side(&layers.iter().collect::<Vec<_>>()).map_err(fault)?;
        match joined {
            Some(joined) => joined.laid_out().map(Ok).map_err(fault),
            None => layers.into_iter().map(Linear::laid_out).collect::<Result<_, _>>().map(Err).map_err(fault),
        }
    }

    /// A table of `count` vectors.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes.
    pub fn embedding(&mut self, path: &str, count: i32, width: i32) -> Result<Embedding, Failure> {
        let weight = self.weight(path, &[], count, width)?;
        let dtype = match &weight {
            Weight::Dense(array) => array.dtype(),
            Weight::Quantised { dtype, .. } => *dtype,
        };
        Ok(Embedding { weight, dtype, on_cpu: self.placement.on_cpu })
    }
}

/// Mode and geometry of a packed tensor. Its shapes and types tell them, whatever the configuration says of the layer.
fn packing(name: &str, packed: &Array, scales: &Array, offsets: bool, input: i32) -> Result<Packing, Failure> {
    let words = i64::from(packed.shape().last().copied().unwrap_or(0));
    let groups = i64::from(scales.shape().last().copied().unwrap_or(0));
    let width = i64::from(input);
    let bits = words * 32 / width;
    let group_size = if groups > 0 { width / groups } else { 0 };
    let whole = words * 32 == bits * width && groups * group_size == width && packed.dtype() == Dtype::Uint32;
    let small_floats = scales.dtype() == Dtype::Uint8;
    let mode = match (small_floats, offsets, bits, group_size) {
        (false, true, 2..=6 | 8, 32 | 64 | 128) => Some(Mode::Affine),
        (true, false, 4, 32) => Some(Mode::Mxfp4),
        (true, false, 8, 32) => Some(Mode::Mxfp8),
        (true, false, 4, 16) => Some(Mode::Nvfp4),
        _ => None,
    };
    match mode {
        Some(mode) if whole => Ok(Packing {
            mode,
            group_size: i32::try_from(group_size).expect("checked above"),
            bits: i32::try_from(bits).expect("checked above"),
        }),
        _ => Err(invalid(format!("the tensor {name} is not packed in a known way"))),
    }
}

fn check_shape(name: &str, array: &Array, shape: &[i32]) -> Result<(), Failure> {
    if array.shape() == shape {
        return Ok(());
    }
    Err(invalid(format!("the tensor {name} has the shape {:?}, config.json asks for {shape:?}", array.shape())))
}

/// Checks the quantisation block and returns its label (`int4`, `mxfp4`), if there is one.
///
/// # Errors
/// A value is bad (named), or the scheme is another framework's.
pub fn quantisation_label(config: &Config<'_>) -> Result<Option<String>, Failure> {
    let Some(block) = config.object("quantization", "quantization.")? else {
        if let Some(foreign) = config.object("quantization_config", "quantization_config.")?
            && let Some(method) = foreign.text("quant_method")?
        {
            let method: String = method.chars().take(32).collect();
            return Err(invalid(format!("config.json: quantization_config.quant_method {method} is not supported")));
        }
        return Ok(None);
    };
    check_geometry(&block)?;
    let bits = block.count_or("bits", 8, 4)?;
    for (path, value) in block.entries() {
        if let serde_json::Value::Object(map) = value {
            check_geometry(&Config::new(map, &format!("quantization.{path}.")))?;
        }
    }
    Ok(Some(match block.text("mode")? {
        None | Some("affine") => format!("int{bits}"),
        Some(mode) => mode.to_owned(),
    }))
}

fn check_geometry(block: &Config<'_>) -> Result<(), Failure> {
    let bits = block.count_or("bits", 8, 4)?;
    let group_size = block.count_or("group_size", 128, 64)?;
    if !matches!(bits, 2..=6 | 8) {
        return Err(invalid(format!("config.json: quantization.bits {bits} is not one of 2, 3, 4, 5, 6, 8")));
    }
    if let Some(mode) = block.text("mode")?
        && Mode::named(mode).is_none()
    {
        let mode: String = mode.chars().take(32).collect();
        let known = "affine, mxfp4, mxfp8 and nvfp4 are";
        return Err(invalid(format!("config.json: quantization.mode {mode} is not supported, {known}")));
    }
    if !matches!(group_size, 16 | 32 | 64 | 128) {
        return Err(invalid(format!(
            "config.json: quantization.group_size {group_size} is not one of 16, 32, 64, 128"
        )));
    }
    Ok(())
}
