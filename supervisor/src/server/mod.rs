//! The server: its parts put together, and its life as a process from the first signal handler to the last.
//!
//! Each file knows only files further down:
//!
//! | file | |
//! |---|---|
//! | `serve` | log, limits, runtime, socket, signals, the end |
//! | `assembly` | catalogue, driver and HTTP become one server |
//! | `offline` | what `ollmlx fit` says without a server |
//! | `settings` | what each part needs of the settings |
//! | `successor`, `predecessor` | an upgrade, from the old server's side and from the new one's |
//! | `handover` | the line between those two, and how they divide the memory |
//! | `claim` | one server for one state folder |
//! | `watchdog` | a server that stands still is ended |
//! | `service` | what the service manager is told |
//! | `bind` | the listening socket |
//! | `leaving`, `error` | the words of this room |

mod assembly;
mod bind;
mod claim;
mod error;
mod handover;
mod leaving;
mod offline;
mod predecessor;
mod serve;
mod service;
mod settings;
mod successor;
mod watchdog;

pub use error::ServerError;
pub use offline::judge as judge_offline;
pub use predecessor::say_why;
pub use serve::run;
