//! The one test binary: simulation of the scheduler, and process tests with a scripted worker.

mod nth_failure;
mod process;
mod sim;
mod world;
