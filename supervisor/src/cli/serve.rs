//! `ollmlx serve`: everything around the server's own work: settings, log, files limit, the socket, signals, the end.
//!
//! The server's parts are put together in [`super::house`].

use std::io::ErrorKind;
use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, lookup_host};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

use super::claim::Claim;
use super::error::CliError;
use super::estate;
use super::house;
use super::service::Service;
use super::upgrade;
use super::version::OWN;
use crate::config::{Config, HostUrl, LogLevel};
use crate::os::signal::ignores_hang_up;
use crate::telemetry;

/// Threads that move bytes and decide; the computing is done by other processes.
const RUNTIME_THREADS: usize = 2;
/// Open files wished for: connections, and what the workers' pipes and the store take.
const OPEN_FILES_WISHED: u64 = 2 * ollmlx_proto::limits::CONNECTIONS_MAX as u64;

/// How the server is being asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaving {
    /// Not at all.
    No,
    /// A successor has the socket: no new connections, everything else to its end.
    Replaced,
    /// First signal: no new work, running requests may end.
    Politely,
    /// Second signal: at once.
    AtOnce,
}

/// Serves until a signal comes.
///
/// # Errors
/// The address can't be used, or the system refuses something.
pub fn run(config: Config) -> Result<(), CliError> {
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
        .map_err(|source| CliError::System { step: "start the runtime", source })?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), CliError> {
    // Before the socket opens, so that no signal is missed once anybody can know that we run.
    let (leaving, phase) = watch::channel(Leaving::No);
    let (signals, upgrades) = (Signals::new()?, Signals::upgrades()?);
    let listener = if config.inherits_socket { upgrade::inherit()? } else { bind(&config.host).await? };
    let address = listener.local_addr().map_err(|source| CliError::System { step: "read the address", source })?;
    // After the socket, so that whoever wants a port that is taken hears of the port; before anything else is touched.
    let claim = Claim::stake(&config, address)?;
    let service = Service::of(&config.manager);
    let pulse = service.pulse();
    let told = service.clone();
    let ready: Box<dyn FnOnce() + Send> = if config.inherits_socket {
        // Nobody keeps the claim beyond its successor.
        let signed = claim.clone();
        Box::new(move || {
            signed.sign();
            told.ready(address);
            upgrade::say_ready();
        })
    } else {
        Box::new(move || told.ready(address))
    };
    // Whatever a predecessor holds is told over the line that the lock came through.
    let predecessor = if config.inherits_socket { estate::line() } else { None };
    let (held, held_out) = watch::channel(estate::EVERYTHING);
    let successor = upgrade::Successor::new(&listener, claim, held_out)?;
    let (upgrade_error, upgrade) = watch::channel(None);
    tracing::info!("Listening on {address} (version {OWN})");
    let announcing = tokio::spawn(signals.announce(upgrades, leaving, successor, service, upgrade_error));
    let end =
        house::run(config, listener, house::World { leaving: phase, upgrade, pulse, held, predecessor, ready }).await;
    announcing.abort();
    tracing::info!("server stopped");
    end
}

/// Opens the socket.
///
/// # Errors
/// In Go's words, as scripts know them.
async fn bind(host: &HostUrl) -> Result<TcpListener, CliError> {
    let authority = host.authority();
    let error = |address: &str, error: &std::io::Error| CliError::Bind {
        address: address.to_owned(),
        reason: bind_reason(error),
        hint: bind_hint(error),
        kind: error.kind(),
    };
    let addresses = lookup_host((host.host.as_str(), host.port)).await.map_err(|reason| error(&authority, &reason))?;
    let mut last = CliError::Bind {
        address: authority,
        reason: "no such host".to_owned(),
        hint: String::new(),
        kind: ErrorKind::NotFound,
    };
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(reason) => last = error(&text_of(address), &reason),
        }
    }
    Err(last)
}

fn text_of(address: SocketAddr) -> String {
    address.to_string()
}

fn bind_reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "address already in use".to_owned(),
        ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string().to_lowercase(),
    }
}

fn bind_hint(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "\n(Another server, perhaps Ollama itself, listens there. Stop it, or choose another \
                                 address: OLLMLX_HOST=127.0.0.1:11435 ollmlx serve)"
            .to_owned(),
        _ => String::new(),
    }
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

/// What a signal to leave comes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A person or a service manager.
    BySomebody,
    /// The end of the terminal.
    ByHangUp,
}

/// The signals that ask a program to leave.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone. `None` where that is to be ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Subscribes; from then on they don't end the process by themselves.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn new() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(|source| CliError::System { step: "listen to signals", source });
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: (!ignores_hang_up()).then(|| on(SignalKind::hangup())).transpose()?,
        })
    }

    /// Those that ask for a successor.
    fn upgrades() -> Result<Signal, CliError> {
        signal(SignalKind::user_defined2()).map_err(|source| CliError::System { step: "listen to signals", source })
    }

    /// The next one that asks the server to leave; `None` when there can be no more. Cancel-safe.
    pub(super) async fn asked(&mut self) -> Option<Asked> {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = self.interrupt.recv() => heard.map(|()| Asked::BySomebody),
            heard = self.terminate.recv() => heard.map(|()| Asked::BySomebody),
            heard = hang_up => heard.map(|()| Asked::ByHangUp),
        }
    }

    /// First signal: politely. Every further one: at once. What a successor needs is kept until there is one: from then on
    /// the claim to the state folder and the socket are its own.
    async fn announce(
        mut self,
        mut upgrades: Signal,
        leaving: watch::Sender<Leaving>,
        successor: upgrade::Successor,
        service: Service,
        upgrade_error: watch::Sender<Option<String>>,
    ) {
        let mut successor = Some(successor);
        let mut phase = Leaving::Politely;
        loop {
            let upgrade = tokio::select! {
                // All are cancel-safe.
                _ = upgrades.recv(), if successor.is_some() => true,
                heard = self.asked() => match heard {
                    // A shell and the system may both send it when a terminal closes; it never hurries anybody.
                    Some(Asked::ByHangUp) if phase == Leaving::AtOnce => continue,
                    Some(_) => false,
                    None => return,
                },
            };
            if upgrade && let Some(next) = &successor {
                upgrade_error.send_replace(None);
                match next.start(self.asked()).await {
                    Ok(pid) => {
                        tracing::info!(pid, "a new server has taken over; this one ends when its requests have");
                        successor = None;
                        service.hand_over(pid);
                        leaving.send_replace(Leaving::Replaced);
                        continue;
                    }
                    // The signal that ended it asks this server to leave.
                    Err(upgrade::UpgradeError::Left) => {}
                    Err(error) => {
                        tracing::error!("the upgrade failed and this server goes on: {error}");
                        upgrade_error.send_replace(Some(error.to_string()));
                        continue;
                    }
                }
            }
            service.stopping();
            if leaving.send(phase).is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn row_37_a_taken_port_is_named_in_go_s_words() {
        let first = bind(&HostUrl::parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(&HostUrl::parse(&address.to_string()).unwrap()).await.unwrap_err().to_string();
        let first_line = error.lines().next().unwrap();
        assert_eq!(first_line, format!("listen tcp {address}: bind: address already in use"));
        assert!(error.contains("OLLMLX_HOST="));
    }
}
