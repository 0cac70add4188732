//! The one task that owns the scheduler: next event → step → perform the effects. [`Handle`] is the only way in.
//!
//! | file | |
//! |---|---|
//! | `handle` | what the rest of the supervisor holds: `Handle`, `Ticket` |
//! | `task` | the loop: from the world to events |
//! | `effects` | from effects to the world |
//! | `cgroups` | control groups, whose files may keep one waiting |
//! | `requests` | the way of a request between client, driver and links |
//! | `record`, `record_line` | the last events and decisions, and how they are replayed |
//! | `identity` | which work two requests ask for, without the work |
//!
//! The driver never waits for a client, a worker or a disk: it only receives, and what it sends has a reserved place.
//! Every queue is bounded: commands, reports, hellos, one place per ticket for the news that it was dropped.
//!
//! A request is kept, once, until its end; when its worker dies, its client and every token that was produced come back
//! from the link, and the next grant sends the request together with them.

mod cgroups;
mod effects;
mod handle;
mod identity;
mod oom;
pub mod record;
mod record_line;
mod requests;
mod task;

use std::io;
use std::path::PathBuf;

use crate::limits;
use tokio::task::JoinHandle;

pub use crate::types::TicketItem;
pub use handle::{Handle, Ticket, deadline_passed};
pub use record::Record;

use crate::os::sandbox::Launcher;
use crate::os::worker_cgroup::CgroupParent;
use crate::os::{clock::Clock, rng};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::types::{Outlook, Snapshot, WishedLoad};
use crate::worker::link::LinkConfig;
use crate::worker::socket::WorkerListener;
use identity::Salt;
use record::Recorder;

/// What the driver needs to know.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// Where the worker programs are; `None` is beside our own.
    pub worker_dir: Option<PathBuf>,
    /// Starts them, behind their walls.
    pub launcher: Launcher,
    /// Where the folder of the socket is made; `None` is the temporary folder.
    pub runtime_dir: Option<PathBuf>,
    /// For the pure core.
    pub scheduler: SchedulerConfig,
    /// A frame that has begun must end within this.
    pub frame_timeout_ms: u64,
    /// Where workers get control groups of their own; `None` is nowhere. Of use with a memory limit only.
    pub cgroup_parent: Option<CgroupParent>,
    /// What workers must do wrong on purpose, see [`ollmlx_proto::fault`].
    pub fault: Option<String>,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            worker_dir: None,
            launcher: Launcher::default(),
            runtime_dir: None,
            scheduler: SchedulerConfig::default(),
            frame_timeout_ms: limits::FRAME_TIMEOUT_MS,
            cgroup_parent: None,
            fault: None,
        }
    }
}

impl DriverConfig {
    fn link(&self) -> LinkConfig {
        let heard_interval_ms = limits::PROGRESS_INTERVAL_MS.min(self.scheduler.timeouts.silence_ms / 8);
        LinkConfig { frame_timeout_ms: self.frame_timeout_ms, heard_interval_ms }
    }
}

/// What a server with these settings would say that has nothing loaded, and how it looks.
#[must_use]
pub fn outlook_with_nothing_loaded(config: SchedulerConfig, wished: &WishedLoad) -> (Snapshot, Outlook) {
    let scheduler = Scheduler::new(config, 0);
    (scheduler.snapshot(), scheduler.outlook(wished))
}

/// The running driver. Dropping this doesn't stop it; [`Handle::shutdown`] does.
#[derive(Debug)]
pub struct Driver {
    task: JoinHandle<()>,
}

impl Driver {
    /// Waits until it has ended: every worker reaped, every client told.
    ///
    /// # Errors
    /// It panicked.
    pub async fn join(self) -> io::Result<()> {
        self.task.await.map_err(io::Error::other)
    }
}

/// Opens the worker socket and starts the driver.
///
/// # Errors
/// The socket can't be made, or the system has no luck to give.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn start(config: DriverConfig) -> io::Result<(Handle, Driver)> {
    let seed = rng::seed()?;
    tracing::info!(seed, "driver started");
    let listener = WorkerListener::open(config.runtime_dir.as_deref(), seed)?;
    let clock = Clock::start();
    let scheduler = Scheduler::new(config.scheduler.clone(), seed);
    // Limits and the like are known before anything happens.
    let (handle, inbox) = handle::pair(clock, config.launcher.clone(), scheduler.snapshot(), Salt(rng::seed()?));
    let recorder = Recorder::new(config.scheduler.clone(), seed);
    let task = task::Task::new(config, clock, (scheduler, recorder), listener.path(), inbox);
    let task = tokio::spawn(task.run(listener));
    Ok((handle, Driver { task }))
}
