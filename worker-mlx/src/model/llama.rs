//! Llama, and what is built like it: SmolLM2, Mistral, Yi.

use ollmlx_proto::Failure;

use crate::config::Config;
use crate::model::decoder::DecoderSpec;

/// Reads a configuration.
///
/// # Errors
/// A value is bad (named).
pub fn spec(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut spec = DecoderSpec::common(config, 1e4)?;
    // A window counts only where layers are marked as sliding: older Mistral files name one that is not meant.
    if let Some(sliding) = spec.read_layer_types(config)?
        && sliding.contains(&true)
    {
        spec.set_windows(&sliding, config.count("sliding_window", 1 << 30)?);
    }
    Ok(spec)
}
