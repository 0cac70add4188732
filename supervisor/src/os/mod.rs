//! The only callers of the real clock, the real dice, processes, memory and signals. Everything above gets values.

pub mod cgroup;
pub mod clock;
pub mod descriptor;
pub mod folder;
pub mod lock;
pub mod memory;
pub mod notify;
pub mod private_file;
pub mod process;
pub mod rng;
pub mod sandbox;
pub mod signal;
pub mod stderr;
pub mod trusted_program;
pub mod wall;
pub mod worker_cgroup;
