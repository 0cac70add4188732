//! A private server: this very program on a free loopback port, with folders of its own, and the user's models to read.

use std::ffi::OsString;
use std::time::Duration;

use crate::limits;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::client::Client;
use super::super::error::CliError;
use crate::config::raw::Origin;
use crate::config::{Config, HostUrl, Scheme, table};
use crate::os::process::{self, Started};

/// It answers within this.
const START_TIMEOUT: Duration = Duration::from_millis(limits::CHAOS_START_MS);
/// Between two looks whether it answers.
const POLL: Duration = Duration::from_millis(limits::CHAOS_POLL_MS);
/// It leaves within this, or is killed.
const STOP_TIMEOUT: Duration = Duration::from_millis(limits::CHAOS_STOP_MS);
/// What it inherits where the user has set it: how models are computed.
const INHERITED: [&str; 10] = [
    table::WORKER_DIR.name,
    table::WORKER_SANDBOX.name,
    table::HUB_CACHE.name,
    table::CONTEXT_LENGTH.name,
    table::KV_CACHE_TYPE.name,
    table::FLASH_ATTENTION.name,
    table::THREADS.name,
    table::GPU_LAYERS.name,
    table::MLX_WIRED_LIMIT.name,
    table::NUM_PARALLEL.name,
];

/// A running private server. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct PrivateServer {
    child: tokio::process::Child,
    pid: u32,
    /// What it prints is read and forgotten, since a full pipe would stop it.
    printing: JoinHandle<()>,
    /// How to speak to it.
    pub(super) client: Client,
    _folder: TempDir,
}

impl PrivateServer {
    /// Starts one that commits this fault, and waits until it answers.
    ///
    /// # Errors
    /// The system's, or it does not answer.
    pub(super) async fn start(
        config: &Config,
        fault: &str,
        settings: &[(&'static str, String)],
    ) -> Result<Self, CliError> {
        let system = |step| move |source| CliError::System { step, source };
        let folder = tempfile::Builder::new().prefix("ollmlx-chaos-").tempdir();
        let folder = folder.map_err(system("make a private folder"))?;
        let port = free_port().map_err(system("find a free port"))?;
        let host = HostUrl { scheme: Scheme::Http, host: "127.0.0.1".to_owned(), port, path: String::new() };
        let stores: Vec<String> = config.stores().iter().map(|store| store.display().to_string()).collect();
        let own = |name: &str| OsString::from(folder.path().join(name));
        let mut variables = vec![
            (table::HOST.env, host.authority().into()),
            (table::MODELS.env, own("models")),
            (table::STATE_DIR.env, own("state")),
            (table::READ_MODELS.env, stores.join(",").into()),
            (table::FAULT.env, fault.into()),
            // It must be there to be looked at when it has answered.
            (table::KEEP_ALIVE.env, table::KEEP_ALIVE.default.into()),
        ];
        let inherited = config.entries.iter().filter(|entry| INHERITED.contains(&entry.knob.name));
        let inherited = inherited.filter(|entry| entry.origin != Origin::Default);
        variables.extend(inherited.map(|entry| (entry.knob.env, OsString::from(&entry.value))));
        variables.extend(settings.iter().map(|(name, value)| (*name, value.into())));
        let program = std::env::current_exe().map_err(system("find the own program"))?;
        let started = process::start_serving(&program, PRIVATE_PREFIX, &variables);
        let Started { child, pid, mut printed } = started.map_err(system("start a private server"))?;
        let printing = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while printed.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        });
        let client = Client::new(&Config { host, api_key: None, ..config.clone() })?;
        let server = Self { child, pid, printing, client, _folder: folder };
        let answers = async {
            while server.client.heartbeat().await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(START_TIMEOUT, answers).await.map_err(|_| CliError::ServerDown)?;
        Ok(server)
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        process::terminate_group(self.pid);
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            // It is killed when it is dropped; its workers end with it.
            tracing::warn!("the private server did not leave in time");
        }
        self.printing.abort();
    }
}

/// Of variables that the private server doesn't inherit as they are.
const PRIVATE_PREFIX: &str = "OLLMLX_";

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
