//! Everything around the server's own work: log, files limit, runtime, the socket, signals, the end.
//!
//! The server's parts are put together in [`super::assembly`].

use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

use super::assembly::{self, Surroundings};
use super::claim::Claim;
use super::error::ServerError;
use super::leaving::Leaving;
use super::service::Service;
use super::successor::{Successor, UpgradeError};
use super::{bind, handover, predecessor};
use crate::VERSION;
use crate::config::{Config, Keys, LogLevel};
use crate::os::signal::{self, Asked, Signals};
use crate::telemetry;

/// Threads that move bytes and decide; the computing is done by other processes.
const RUNTIME_THREADS: usize = 2;
/// Open files wished for: connections, and what the workers' pipes and the store take.
const OPEN_FILES_WISHED: u64 = 2 * crate::limits::CONNECTIONS_MAX as u64;

/// Serves until a signal comes.
///
/// # Errors
/// The address can't be used, or the system refuses something.
pub fn run(config: Config) -> Result<(), ServerError> {
    telemetry::init(match config.log_level {
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    });
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(fault) = &config.fault {
        tracing::warn!(fault, "FAULTS ARE ON: workers will crash, hang or misbehave on purpose (OLLMLX_FAULT)");
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("ollmlx")
        .enable_all()
        .build()
        .map_err(ServerError::system("start the runtime"))?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), ServerError> {
    let system = ServerError::system;
    // First of all: whoever can't tell who may ask must not take anybody's place.
    let keys = Keys::read(config.api_key.as_deref(), config.api_keys_file.as_deref())?;
    // Before the socket opens, so that no signal is missed once anybody can know that we run.
    let (leaving, phase) = watch::channel(Leaving::No);
    let signals = Signals::new().map_err(system("listen to signals"))?;
    let upgrades = signal::upgrades().map_err(system("listen to signals"))?;
    let listener = if config.inherits_socket { predecessor::inherit()? } else { bind::bind(&config.host).await? };
    let address = listener.local_addr().map_err(system("read the address"))?;
    // After the socket, so that whoever wants a port that is taken hears of the port; before anything else is touched.
    let claim = Claim::stake(&config, address)?;
    let service = Service::of(&config.manager);
    let pulse = service.pulse();
    let ready = ready(&config, &claim, service.clone(), address);
    // Whatever a predecessor holds is told over the line that the lock came through.
    let predecessor = if config.inherits_socket { handover::line() } else { None };
    let (held, held_out) = watch::channel(handover::EVERYTHING);
    let successor = Successor::new(&listener, claim, held_out)?;
    let (upgrade_error, upgrade) = watch::channel(None);
    tracing::info!("Listening on {address} (version {VERSION})");
    let announcing = tokio::spawn(Announcer { signals, upgrades, leaving, service, upgrade_error }.run(successor));
    let surroundings = Surroundings { keys, leaving: phase, upgrade, pulse, held, predecessor, ready };
    let end = assembly::run(config, listener, surroundings).await;
    announcing.abort();
    tracing::info!("server stopped");
    end
}

/// What is said once the server serves.
fn ready(config: &Config, claim: &Claim, service: Service, address: SocketAddr) -> Box<dyn FnOnce() + Send> {
    if !config.inherits_socket {
        return Box::new(move || service.ready(address));
    }
    // Nobody keeps the claim beyond its successor.
    let signed = claim.clone();
    Box::new(move || {
        signed.sign();
        service.ready(address);
        predecessor::say_ready();
    })
}

/// Asks for more open files, up to what the system allows without asking.
fn raise_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wished = hard.min(OPEN_FILES_WISHED);
    if soft < wished
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wished, hard)
    {
        tracing::warn!(%error, "the limit of open files stayed at {soft}");
    }
}

/// Turns signals into the way out.
struct Announcer {
    signals: Signals,
    upgrades: Signal,
    leaving: watch::Sender<Leaving>,
    service: Service,
    upgrade_error: watch::Sender<Option<String>>,
}

impl Announcer {
    /// First signal: politely. Every further one: at once. What a successor needs is kept until there is one: from then on
    /// the claim to the state folder and the socket are its own.
    async fn run(mut self, successor: Successor) {
        let mut successor = Some(successor);
        let mut telling = JoinSet::new();
        let mut phase = Leaving::Politely;
        loop {
            let upgrade = tokio::select! {
                // All are cancel-safe.
                _ = self.upgrades.recv(), if successor.is_some() => true,
                heard = self.signals.asked() => match heard {
                    // A shell and the system may both send it when a terminal closes; it never hurries anybody.
                    Some(Asked::ByHangUp) if phase == Leaving::AtOnce => continue,
                    Some(_) => false,
                    None => return,
                },
            };
            if upgrade && let Some(next) = &successor {
                self.upgrade_error.send_replace(None);
                match next.start(self.signals.asked()).await {
                    Ok(takeover) => {
                        let pid = takeover.pid;
                        tracing::info!(pid, "a new server has taken over; this one ends when its requests have");
                        successor = None;
                        telling.spawn(handover::tell(takeover.line, takeover.held));
                        self.service.hand_over(pid);
                        self.leaving.send_replace(Leaving::Replaced);
                        continue;
                    }
                    // The signal that ended it asks this server to leave.
                    Err(UpgradeError::Left) => {}
                    Err(error) => {
                        tracing::error!("the upgrade failed and this server goes on: {error}");
                        self.upgrade_error.send_replace(Some(error.to_string()));
                        continue;
                    }
                }
            }
            self.service.stopping();
            if self.leaving.send(phase).is_err() {
                return;
            }
            tracing::info!(
                "a signal asked the server to leave {}",
                if phase == Leaving::Politely { "politely" } else { "at once" }
            );
            phase = Leaving::AtOnce;
        }
    }
}
