//! What each part of the server needs of the settings; also for a look at a model without a server.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ServerError;
use crate::VERSION;
use crate::catalog::{self, Catalog, CatalogConfig};
use crate::config::{Config, EffectiveLimit, Keys, Machine, MemoryShrink, Span, WorkerSandbox};
use crate::driver::DriverConfig;
use crate::http::HttpConfig;
use crate::os::sandbox::{Launcher, Policy};
use crate::os::worker_cgroup::CgroupParent;
use crate::os::{cgroup, memory, sandbox};
use crate::scheduler::SchedulerConfig;
use crate::types::{KeepAlive, Shrink};

/// Where it is kept what models took.
pub(super) fn learned_path(config: &Config) -> PathBuf {
    config.state_dir.join("learned.json")
}

/// What starts the workers. Tells of walls that are missing. Blocks for as long as it takes to try them.
pub(super) fn launcher(config: &Config) -> Launcher {
    let policy = match config.worker_sandbox {
        WorkerSandbox::Auto => Policy::Auto,
        WorkerSandbox::Require => Policy::Require,
        WorkerSandbox::Off => Policy::Off,
    };
    Launcher::tried(policy, config.landlock_abi_max, catalog::views_dir(&config.state_dir))
}

/// One line or more about the walls, for the log.
pub(super) fn tell_walls(launcher: &Launcher) {
    let walls = launcher.walls();
    if launcher.policy() == Policy::Off {
        tracing::warn!("workers are not walled in: worker_sandbox is off");
    } else {
        tracing::info!(walls = walls.stand.join(", "), "workers are walled in");
    }
    if !walls.missing.is_empty() {
        tracing::warn!(missing = walls.missing.join("; "), "this system lacks walls for workers");
    }
    if sandbox::is_root() {
        tracing::warn!(
            "the server runs as root: its workers lose root's capabilities and keep its user, a user of its own is safer"
        );
    }
}

/// Opens the stores. Only a server may prune.
pub(super) fn catalog(
    config: &Config,
    worker_dir: PathBuf,
    launcher: Launcher,
    prune: bool,
) -> Result<Catalog, ServerError> {
    Catalog::open(CatalogConfig {
        stores: config.stores(),
        state_dir: config.state_dir.clone(),
        worker_dir,
        launcher,
        hub_dir: config.hub_cache_dir.clone(),
        prune,
        flash_attention: config.flash_attention,
    })
    .map_err(|error| ServerError::Store(error.to_string()))
}

/// Where the workers' binaries lie: as set, or beside our own.
pub(super) fn worker_dir(config: &Config) -> std::io::Result<PathBuf> {
    if let Some(folder) = &config.worker_dir {
        return Ok(folder.clone());
    }
    let own = std::env::current_exe()?.canonicalize()?;
    Ok(own.parent().map(std::path::Path::to_path_buf).unwrap_or_default())
}

/// What the scheduler needs of the settings.
pub(super) fn scheduler_config(config: &Config) -> SchedulerConfig {
    let mut scheduler = SchedulerConfig {
        queue_max: config.max_queue,
        workers_max: config.max_loaded_models.get(),
        memory_limit: memory_limit(config).bytes,
        shrink: match config.memory_shrink {
            MemoryShrink::None => Shrink::Nothing,
            MemoryShrink::Slots => Shrink::Slots,
            MemoryShrink::Context => Shrink::Context,
        },
        default_keep_alive: match config.keep_alive {
            Span::Forever => KeepAlive::Forever,
            Span::For(span) if span.is_zero() => KeepAlive::Unload,
            Span::For(span) => KeepAlive::ForMs(millis(span)),
        },
        ..SchedulerConfig::default()
    };
    scheduler.timeouts.load_stall_ms = match config.load_timeout {
        Span::Forever => u64::MAX,
        Span::For(span) => millis(span),
    };
    scheduler.timeouts.silence_ms = match config.hang_timeout {
        Span::Forever => u64::MAX,
        Span::For(span) => millis(span),
    };
    scheduler
}

/// What the driver needs of the settings.
pub(super) fn driver_config(config: &Config, worker_dir: PathBuf, launcher: Launcher) -> DriverConfig {
    let scheduler = scheduler_config(config);
    // Told at the start, so that a refusal is no riddle.
    let limit = memory_limit(config);
    match limit.bytes {
        Some(bytes) => tracing::info!(bytes, mib = bytes >> 20, basis = limit.basis, "memory limit"),
        None => tracing::info!(basis = limit.basis, "no memory limit"),
    }
    let cgroup_parent = scheduler.memory_limit.and_then(|_| cgroup_parent());
    let fault = config.fault.clone();
    DriverConfig { worker_dir: Some(worker_dir), launcher, fault, cgroup_parent, scheduler, ..DriverConfig::default() }
}

/// What the memory limit comes to here.
fn memory_limit(config: &Config) -> EffectiveLimit {
    let machine = Machine {
        physical_bytes: memory::total_bytes(),
        cgroup_bytes: cgroup::limit_bytes(),
        is_mac: cfg!(target_os = "macos"),
    };
    config.memory_limit.on(machine)
}

/// Control groups for workers, where the system gave us one to divide.
fn cgroup_parent() -> Option<CgroupParent> {
    match CgroupParent::open() {
        Ok(parent) => {
            tracing::info!(folder = %parent.folder().display(), "workers get control groups of their own");
            Some(parent)
        }
        Err(error) => {
            tracing::info!(%error, "workers get no control groups; their memory is watched");
            None
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the HTTP side needs of the settings.
pub(super) fn http_config(config: &Config, keys: Keys, address: std::net::SocketAddr) -> HttpConfig {
    HttpConfig {
        address,
        origins: config.origins.clone(),
        version: VERSION.to_owned(),
        allowed_hosts: config.allowed_hosts.clone(),
        keys,
        context_tokens: config.context_length.get(),
        slots: u16::try_from(config.num_parallel.get()).unwrap_or(u16::MAX),
        kv_type: config.kv_cache_type.as_str().to_owned(),
        flash_attention: config.flash_attention,
        threads: config.threads.map_or(0, |threads| u16::try_from(threads.get()).unwrap_or(u16::MAX)),
        gpu_layers: config.gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX)),
        wired_limit_bytes: config.wired_limit_bytes.unwrap_or_default(),
        rules: config.rules.clone(),
    }
}
