//! A worker that dies of a signal before it is ready may have been given instructions that its CPU does not have, whatever
//! the CPU says of itself. The next one is told to use fewer.
//!
//! The choice holds for this model until it is pardoned or the server ends; it isn't written down, because a new kernel or
//! machine is a new chance.

use nix::sys::signal::Signal;

use super::model::Model;
use crate::catalog::Backend;

use crate::types::Cause;

/// Below the best level that the worker finds by itself: one that every CPU of the last ten years has, and one that
/// every CPU of this kind has.
const LADDER: &[&str] = if cfg!(all(target_os = "linux", target_arch = "x86_64")) { &["haswell", "x64"] } else { &[] };

/// The level after a death before `Ready`: the next lower one where that may help, none where all have been tried.
pub(super) fn after(model: &Model, why: &Cause) -> Option<&'static str> {
    let suspicious = match why {
        Cause::Signalled { signal } => matches!(
            Signal::try_from(*signal),
            Ok(Signal::SIGILL | Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGBUS | Signal::SIGFPE)
        ),
        // The level itself may be one that this CPU doesn't have.
        Cause::LoadFailed(_) => model.cpu_level.is_some(),
        _ => false,
    };
    if !suspicious || model.model.backend != Backend::Gguf {
        return model.cpu_level;
    }
    let tried = model.cpu_level.and_then(|tried| LADDER.iter().position(|level| *level == tried));
    LADDER.get(tried.map_or(0, |tried| tried + 1)).copied()
}
