//! Puts the server's parts together: catalogue, driver, HTTP. The one place that knows them all.

use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{FAREWELL_MS, UPGRADE_DRAIN_MS};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::error::ServerError;
use super::leaving::Leaving;
use super::service::Pulse;
use super::{handover, settings, watchdog};
use crate::catalog::Learned;
use crate::config::{Config, Keys};
use crate::driver::{self, Driver, Handle};
use crate::http::{self, AppState};

/// What the server needs to know of the world around it.
pub(super) struct Surroundings {
    /// Who may ask.
    pub(super) keys: Keys,
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

/// A server that serves.
struct Assembly {
    handle: Handle,
    driver: Driver,
    listening: JoinHandle<()>,
    closing: watch::Sender<http::Door>,
    /// Writes down what models take; ends with the driver.
    learning: JoinHandle<()>,
    /// Those that end with the driver, with the predecessor, or with this.
    followers: JoinSet<()>,
}

/// Serves until somebody asks to leave and the last worker is reaped.
///
/// # Errors
/// A part that could not start.
pub(super) async fn run(config: Config, listener: TcpListener, surroundings: Surroundings) -> Result<(), ServerError> {
    let leaving = surroundings.leaving.clone();
    let Assembly { handle, driver, mut listening, closing, learning, followers } =
        assemble(&config, listener, surroundings).await?;
    serve(&handle, driver, &mut listening, &closing, leaving).await?;
    if !listening.is_finished()
        && tokio::time::timeout(Duration::from_millis(FAREWELL_MS), &mut listening).await.is_err()
    {
        listening.abort();
    }
    // What the last processes took is worth the moment that a small file takes.
    let _written = tokio::time::timeout(Duration::from_millis(FAREWELL_MS), learning).await;
    drop(followers);
    Ok(())
}

async fn assemble(config: &Config, listener: TcpListener, surroundings: Surroundings) -> Result<Assembly, ServerError> {
    let Surroundings { keys, leaving, upgrade, pulse, held, predecessor, ready } = surroundings;
    let system = ServerError::system;
    let address = listener.local_addr().map_err(system("read the address"))?;
    let worker_dir = settings::worker_dir(config).map_err(system("find the workers"))?;
    let launcher = settings::launcher(config);
    settings::tell_walls(&launcher);
    let catalog = settings::catalog(config, worker_dir.clone(), launcher.clone(), !config.noprune)?;
    let driver_config = settings::driver_config(config, worker_dir.clone(), launcher.clone());
    let (handle, driver) = driver::start(driver_config).await.map_err(system("start the driver"))?;
    let mut followers = JoinSet::new();
    // Nobody waits for it; whoever starts a worker meanwhile does.
    followers.spawn_blocking(move || launcher.learn(&worker_dir));
    followers.spawn(handover::follow(handle.snapshots(), handover::settled(leaving), held));
    if let Some(line) = predecessor {
        // Nothing is loaded until it is known what there is.
        handle.elsewhere_held(handover::EVERYTHING).await;
        followers.spawn(handover::heed(line, handle.clone()));
    }
    followers.spawn(watchdog::watch(handle.clone(), pulse).map_err(system("start the watchdog"))?);
    let (deaths, deaths_out) = watch::channel(http::metrics::DeathCounts::new());
    followers.spawn(http::metrics::follow(handle.snapshots(), deaths));
    let metrics = Arc::new(http::metrics::Metrics::new(deaths_out));
    let path = settings::learned_path(config);
    let (learned, learned_out) = watch::channel(Learned::read(&path));
    let (forget, forgotten) = mpsc::channel(http::learn::FORGET_LEN_MAX);
    let learning = tokio::spawn(http::learn::follow(handle.snapshots(), learned, path, forgotten));
    let told = http::Told { learned: learned_out, forget, upgrade };
    let http_config = settings::http_config(config, keys, address);
    if let Some(exposure) = http_config.exposure() {
        tracing::warn!("{exposure}");
    }
    let state = Arc::new(AppState::new(handle.clone(), catalog, http_config, metrics, told));
    let (closing, closed) = watch::channel(http::Door::Open);
    let listening = tokio::spawn(http::serve(listener, state, closed));
    ready();
    Ok(Assembly { handle, driver, listening, closing, learning, followers })
}

/// Until the driver has ended.
async fn serve(
    handle: &Handle,
    driver: Driver,
    listening: &mut JoinHandle<()>,
    closing: &watch::Sender<http::Door>,
    mut leaving: watch::Receiver<Leaving>,
) -> Result<(), ServerError> {
    let further = leaving.clone();
    let mut driving = std::pin::pin!(driver.join());
    let mut asked = Leaving::No;
    loop {
        tokio::select! {
            // Only a shutdown, or a defect, ends the driver.
            ended = &mut driving => return ended.map_err(ServerError::system("keep the driver")),
            changed = leaving.wait_for(|leaving| *leaving > asked) => {
                asked = changed.map_or(Leaving::AtOnce, |leaving| *leaving);
            }
        }
        if asked == Leaving::Replaced {
            let _nobody_listens = closing.send(http::Door::HandedOver);
            handle.replaced().await;
            asked = served_to_the_end(handle, Pin::new(&mut *listening), further.clone()).await;
        }
        let _nobody_listens = closing.send(http::Door::Closed);
        handle.shutdown(asked == Leaving::AtOnce).await;
        if asked == Leaving::AtOnce {
            return driving.await.map_err(ServerError::system("end the driver"));
        }
    }
}

/// Waits, after a successor has taken over, until whoever waits or runs is served to the end; then the driver may go, as it is
/// asked to here.
async fn served_to_the_end(
    handle: &Handle,
    listening: Pin<&mut JoinHandle<()>>,
    mut leaving: watch::Receiver<Leaving>,
) -> Leaving {
    let mut snapshots = handle.snapshots();
    let served = async {
        let _ended = listening.await;
        // What this one's own predecessor holds the successor hears from here only.
        let _driver_gone = snapshots.wait_for(|snapshot| snapshot.elsewhere_bytes == 0).await.is_err();
    };
    tokio::select! {
        _ = tokio::time::timeout(Duration::from_millis(UPGRADE_DRAIN_MS), served) => Leaving::Politely,
        more = leaving.wait_for(|leaving| *leaving > Leaving::Replaced) => more.map_or(Leaving::AtOnce, |leaving| *leaving),
    }
}
