//! The shell around a worker process: how it is started, who may dial in, how frames become events, how its end is seen.
//!
//! Nothing here decides anything; it reports to the driver and does what the driver says. A worker's life as a value is
//! `scheduler::lifecycle`.

pub mod link;
pub mod log_tail;
pub mod socket;
pub mod spawn;
