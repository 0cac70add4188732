//! Puts the server's parts together: catalogue, driver, door. The one place that knows them all.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ollmlx_proto::limits::{FAREWELL_MS, UPGRADE_DRAIN_MS};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::error::CliError;
use super::estate;
use super::serve::Leaving;
use super::service::Pulse;
use super::version::OWN;
use crate::catalog::{Catalog, CatalogConfig, Learned};
use crate::config::{Config, EffectiveLimit, Machine, MemoryShrink, Span};
use crate::driver::{self, DriverConfig};
use crate::http::{self, AppState, HttpConfig};
use crate::os::nest::Nest;
use crate::os::{cgroup, memory};
use crate::scheduler::SchedulerConfig;
use crate::types::{KeepAlive, Shrink};

/// What the house needs to know of the world around it.
pub(super) struct World {
    /// How it is being asked to leave.
    pub(super) leaving: watch::Receiver<Leaving>,
    /// Why the last upgrade failed.
    pub(super) upgrade: watch::Receiver<Option<String>>,
    /// Gives signs of life to whoever waits for them.
    pub(super) pulse: Pulse,
    /// Told what this server holds of the memory.
    pub(super) held: watch::Sender<u64>,
    /// Where a predecessor tells what it holds.
    pub(super) predecessor: Option<UnixStream>,
    /// Called once it serves.
    pub(super) ready: Box<dyn FnOnce() + Send>,
}

/// Serves until somebody asks to leave and the last worker is reaped.
///
/// # Errors
/// A part that could not start.
pub(super) async fn run(config: Config, listener: TcpListener, world: World) -> Result<(), CliError> {
    let World { mut leaving, upgrade, pulse, held, predecessor, ready } = world;
    let mut further = leaving.clone();
    let system = |step| move |source| CliError::System { step, source };
    let address = listener.local_addr().map_err(system("read the address"))?;
    let worker_dir = worker_dir(&config).map_err(system("find the workers"))?;
    let catalog = catalog(&config, worker_dir.clone(), !config.noprune)?;
    let (handle, driving) =
        driver::start(driver_config(&config, worker_dir)).await.map_err(system("start the driver"))?;
    // Ends with the driver.
    tokio::spawn(estate::follow(handle.snapshots(), estate::settled(leaving.clone()), held));
    if let Some(line) = predecessor {
        // Nothing is loaded until it is known what there is.
        handle.elsewhere_held(estate::EVERYTHING).await;
        // Ends with the predecessor.
        tokio::spawn(estate::heed(line, handle.clone()));
    }
    super::watchdog::watch(handle.clone(), pulse).map_err(system("start the watchdog"))?;
    let (deaths, deaths_out) = watch::channel(http::metrics::DeathCounts::new());
    // Ends with the driver.
    tokio::spawn(http::metrics::follow(handle.snapshots(), deaths));
    let metrics = Arc::new(http::metrics::Metrics::new(deaths_out));
    let path = learned_path(&config);
    let (learned, learned_out) = watch::channel(Learned::read(&path));
    let (forget, forgotten) = mpsc::channel(http::learn::FORGET_LEN_MAX);
    // Ends with the driver as well.
    let learning = tokio::spawn(http::learn::follow(handle.snapshots(), learned, path, forgotten));
    let told = http::Told { learned: learned_out, forget, upgrade };
    let state = Arc::new(AppState::new(handle.clone(), catalog, http_config(&config, address), metrics, told));
    let (closing, closed) = watch::channel(http::Door::Open);
    let mut door = tokio::spawn(http::serve(listener, state, closed));

    ready();
    let mut driving = std::pin::pin!(driving.join());
    let mut asked = Leaving::No;
    loop {
        tokio::select! {
            // Only a shutdown, or a defect, ends the driver.
            ended = &mut driving => {
                ended.map_err(system("keep the driver"))?;
                break;
            }
            changed = leaving.wait_for(|leaving| *leaving > asked) => {
                asked = changed.map_or(Leaving::AtOnce, |leaving| *leaving);
                if asked == Leaving::Replaced {
                    let _ = closing.send(http::Door::HandedOver);
                    handle.replaced().await;
                    let patience = Duration::from_millis(UPGRADE_DRAIN_MS);
                    let mut snapshots = handle.snapshots();
                    let served = async {
                        let _ended = (&mut door).await;
                        // What this one's own predecessor holds the successor hears from here only.
                        let _driver_gone = snapshots.wait_for(|snapshot| snapshot.elsewhere_bytes == 0).await.is_err();
                    };
                    tokio::select! {
                        // Whoever waits or runs is served to the end; then the driver may go.
                        _ = tokio::time::timeout(patience, served) => asked = Leaving::Politely,
                        more = further.wait_for(|leaving| *leaving > Leaving::Replaced) => {
                            asked = more.map_or(Leaving::AtOnce, |leaving| *leaving);
                        }
                    }
                }
                let _ = closing.send(http::Door::Closed);
                handle.shutdown(asked == Leaving::AtOnce).await;
                if asked == Leaving::AtOnce {
                    driving.await.map_err(system("end the driver"))?;
                    break;
                }
            }
        }
    }
    if !door.is_finished() && tokio::time::timeout(Duration::from_millis(FAREWELL_MS), &mut door).await.is_err() {
        door.abort();
    }
    // What the last processes took is worth the moment that a small file takes.
    let _written = tokio::time::timeout(Duration::from_millis(FAREWELL_MS), learning).await;
    Ok(())
}

/// Where it is kept what models took.
pub(super) fn learned_path(config: &Config) -> PathBuf {
    config.state_dir.join("learned.json")
}

/// Opens the stores. Only a server may prune.
pub(super) fn catalog(config: &Config, worker_dir: PathBuf, prune: bool) -> Result<Catalog, CliError> {
    Catalog::open(CatalogConfig {
        stores: config.stores(),
        state_dir: config.state_dir.clone(),
        worker_dir,
        hub_dir: config.hub_cache_dir.clone(),
        prune,
    })
    .map_err(|error| CliError::Store(error.to_string()))
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

fn driver_config(config: &Config, worker_dir: PathBuf) -> DriverConfig {
    let scheduler = scheduler_config(config);
    // Told at the start, so that a refusal is no riddle.
    let limit = memory_limit(config);
    match limit.bytes {
        Some(bytes) => tracing::info!(bytes, mib = bytes >> 20, basis = limit.basis, "memory limit"),
        None => tracing::info!(basis = limit.basis, "no memory limit"),
    }
    let nest = scheduler.memory_limit.and_then(|_| nest());
    let fault = config.fault.clone();
    DriverConfig { worker_dir: Some(worker_dir), fault, nest, scheduler, ..DriverConfig::default() }
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
fn nest() -> Option<Nest> {
    match Nest::open() {
        Ok(nest) => {
            tracing::info!(folder = %nest.folder().display(), "workers get control groups of their own");
            Some(nest)
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

/// What the door needs of the settings; also for a look at a model without a server.
pub(super) fn http_config(config: &Config, address: std::net::SocketAddr) -> HttpConfig {
    HttpConfig {
        address,
        origins: config.origins.clone(),
        version: OWN.to_owned(),
        api_key: config.api_key.clone(),
        context_tokens: config.context_length.get(),
        slots: u16::try_from(config.num_parallel.get()).unwrap_or(u16::MAX),
        kv_type: config.kv_cache_type.as_str().to_owned(),
        threads: config.threads.map_or(0, |threads| u16::try_from(threads.get()).unwrap_or(u16::MAX)),
        gpu_layers: config.gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX)),
        wired_limit_bytes: config.wired_limit_bytes.unwrap_or_default(),
        rules: config.rules.clone(),
    }
}
