//! What a checkpoint takes in memory on a CPU, reckoned from its files alone: no word of the server is believed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const HEADER_BYTES_MAX: u64 = 64 << 20;
/// A CPU computes in 32-bit floats, and holds weights so where all of them together are no more than this.
const UNPACKED_BYTES_MAX: u64 = 2 << 30;
const FLOAT_BYTES: u64 = 4;

/// Sizes of a llama-like checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Weights as they are held.
    pub(crate) weight_bytes: u64,
    /// Keys and values of one token.
    pub(crate) kv_bytes_per_token: u64,
}

impl Sizes {
    /// Reads `config.json` and the header of `model.safetensors`.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_json::from_slice(&text)?;
        let number = |name: &str| config[name].as_u64().with_context(|| format!("config.json has no {name}"));
        let heads = number("num_attention_heads")?;
        ensure!(heads > 0, "config.json names no attention heads");
        let width = number("head_dim").or_else(|_| number("hidden_size").map(|hidden| hidden / heads))?;
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        let bits = config["quantization"]["bits"].as_u64().filter(|&bits| bits > 0).unwrap_or(32);
        Ok(Self {
            weight_bytes: weight_bytes(&header(folder)?, bits)?,
            kv_bytes_per_token: 2 * number("num_hidden_layers")? * kv_heads * width * FLOAT_BYTES,
        })
    }
}

fn header(folder: &Path) -> Result<Value> {
    let mut file = File::open(folder.join("model.safetensors")).context("the checkpoint must be one file")?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= HEADER_BYTES_MAX, "the header of model.safetensors is too long");
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

fn weight_bytes(header: &Value, bits: u64) -> Result<u64> {
    let (mut packed, mut unpacked) = (0, 0);
    for (name, tensor) in header.as_object().context("the header is no object")? {
        let Some(shape) = tensor["shape"].as_array() else { continue };
        let bytes = shape.iter().filter_map(Value::as_u64).product::<u64>() * FLOAT_BYTES;
        packed += bytes;
        // Scales and biases are gone once their weights are floats.
        unpacked += match tensor["dtype"].as_str() {
            Some("U32") => bytes * 32 / bits,
            _ if name.ends_with(".scales") || name.ends_with(".biases") => 0,
            _ => bytes,
        };
    }
    Ok(if unpacked <= UNPACKED_BYTES_MAX { unpacked } else { packed })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::weight_bytes;

    #[test]
    fn small_weights_are_floats_and_large_ones_stay_packed() {
        let header = |rows: u64| {
            json!({"__metadata__": {"format": "mlx"},
                   "w.weight": {"dtype": "U32", "shape": [rows, 8]}, "w.scales": {"dtype": "F16", "shape": [rows, 1]},
                   "w.biases": {"dtype": "F16", "shape": [rows, 1]}, "norm.weight": {"dtype": "F16", "shape": [64]}})
        };
        assert_eq!(weight_bytes(&header(10), 4).unwrap(), 4 * (10 * 64 + 64));
        let rows = 1 << 24;
        assert_eq!(weight_bytes(&header(rows), 4).unwrap(), 4 * (rows * 10 + 64));
    }
}
