//! The words that all rooms share: plain values without a clock, a task or a lock. This room knows nobody but the catalogue's
//! [`crate::catalog::ModelRef`]; whatever two rooms say to each other about a model, a request or a death stands here.

mod caller;
mod cause;
mod death;
mod outlook;
mod plan;
mod snapshot;
mod ticket;
mod time;

pub use caller::{Caller, KeyName};
pub use cause::{Cause, too_large};
pub use death::{After, DeathRecord, Fate, HeldRequest, ModelDeaths};
pub use outlook::{LoadWish, Outlook, Prospect, WishedLoad};
pub use plan::{Job, KeepAlive, LoadPlan, Shrink, Terms};
pub use snapshot::{Account, Snapshot, Step, Totals, WorkerView};
pub use ticket::TicketItem;
pub use time::Mono;
