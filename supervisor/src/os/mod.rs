//! The only callers of the real world: clock, luck, processes, memory, signals.
//!
//! Everything else gets values. On macOS the same code runs but for [`memory`], which says so.

pub mod clock;
pub mod memory;
pub mod process;
pub mod rng;
pub mod signal;
