//! Phi 3 and 4: queries, keys and values stored as one tensor, gate and up as another.

use ollmlx_proto::Failure;

use crate::config::Config;
use crate::model::decoder::DecoderSpec;

/// Reads a configuration.
///
/// # Errors
/// A value is bad (named).
pub fn spec(config: &Config<'_>) -> Result<DecoderSpec, Failure> {
    let mut spec = DecoderSpec::common(config, 1e4)?;
    spec.fused = true;
    spec.tied = Some(spec.tied.unwrap_or(false));
    Ok(spec)
}
