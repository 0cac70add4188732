//! Everything the supervisor decides. (to be written)
pub mod effect;
pub mod event;
pub mod snapshot;
pub use effect::{Effect, Push};
pub use event::{Cause, Event, Job, KeepAlive, LoadPlan, Mono};
pub use snapshot::{Snapshot, WorkerView};
