//! ollmlx: the long-lived process. (Architecture page to follow.)

#![forbid(unsafe_code)]

pub mod catalog;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod driver;
pub mod http;
pub mod os;
pub mod scheduler;
pub mod telemetry;
pub mod worker;
