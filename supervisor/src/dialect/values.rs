//! Values that several dialects write the same way.

use crate::limits::TOP_LOGPROBS_MAX;
use ollmlx_proto::{Logprobs, ThinkLevel};

use super::Rejection;

/// Checks `top_logprobs` and puts it together with its switch.
pub(super) fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<Logprobs>, Rejection> {
    let top = u8::try_from(top.unwrap_or(0)).ok().filter(|top| *top <= TOP_LOGPROBS_MAX);
    let top = top.ok_or_else(|| Rejection::bad_request("top_logprobs must be between 0 and 20"))?;
    Ok(wanted.unwrap_or(false).then_some(Logprobs { top }))
}

/// A level of thinking by its word.
pub(super) fn think_level(word: &str) -> Option<ThinkLevel> {
    match word {
        "low" => Some(ThinkLevel::Low),
        "medium" => Some(ThinkLevel::Medium),
        "high" => Some(ThinkLevel::High),
        "max" => Some(ThinkLevel::Max),
        _ => None,
    }
}
