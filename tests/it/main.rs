//! The one test binary: simulation of the scheduler, and process tests with a scripted worker.

#![expect(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod askers;
mod cgroups;
mod corpora;
mod crowd;
mod deaths;
mod docs;
mod door;
mod every_index;
mod fits;
mod house;
mod memory;
mod nth_failure;
mod orphan;
mod own_limit;
mod process;
mod relief;
mod replay;
mod resume;
mod room;
mod rows;
#[cfg(target_os = "linux")]
mod sandbox;
mod service;
mod settings;
mod sim;
mod tidy;
mod together;
mod waiting;
mod world;
