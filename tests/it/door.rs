//! A whole server in this process: the real door, catalogue and driver before toy workers, and a client that reads every
//! byte of an answer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use harness::toy::Weights;
use ollmlx_supervisor::catalog::{Catalog, CatalogConfig, Learned};
use ollmlx_supervisor::config::{Keys, Rules};
use ollmlx_supervisor::driver::{self, Driver, DriverConfig, Handle};
use ollmlx_supervisor::http::{self, AppState, Crowd, HttpConfig, Told, metrics};
use ollmlx_supervisor::os::sandbox::{Launcher, Policy};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::house::PATIENCE;

/// Folders that outlive a server: models, and what is known of them.
pub(crate) struct Ground {
    folder: tempfile::TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("od").tempdir_in("/tmp").unwrap();
        harness::link_workers(folder.path(), Path::new(env!("CARGO_BIN_EXE_toy-worker")));
        Self { folder }
    }

    /// Writes a model; returns the name by which it is asked for.
    pub(crate) fn model(&self, name: &str, weights: &Weights) -> String {
        let path = self.folder.path().join(format!("{name}.gguf"));
        weights.write(&path);
        path.to_str().unwrap().to_owned()
    }

    /// Opens a server whose workers commit this fault.
    pub(crate) async fn open(&self, fault: Option<String>) -> Door {
        self.open_for(fault, Crowd::default()).await
    }

    /// The same with a rule for the connections of one address.
    pub(crate) async fn open_for(&self, fault: Option<String>, crowd: Crowd) -> Door {
        self.open_with(fault, crowd, |_| {}).await
    }

    /// The same with other settings of the door.
    pub(crate) async fn open_with(
        &self,
        fault: Option<String>,
        crowd: Crowd,
        change: impl FnOnce(&mut HttpConfig),
    ) -> Door {
        let folder = self.folder.path().to_owned();
        let mut config = DriverConfig {
            worker_dir: Some(folder.clone()),
            // As users have it: what the toy workers do, they do behind walls.
            launcher: launcher(),
            runtime_dir: Some(folder.clone()),
            fault,
            ..DriverConfig::default()
        };
        config.scheduler.workers_max = 64;
        let (handle, driver) = driver::start(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, deaths) = watch::channel(metrics::DeathCounts::new());
        let (_, upgrade) = watch::channel(None);
        let (_, learned) = watch::channel(Learned::default());
        let (forget, _) = mpsc::channel(1);
        let metrics = Arc::new(metrics::Metrics::new(deaths));
        let told = Told { learned, forget, upgrade };
        let mut door = http_config(address);
        change(&mut door);
        let state = AppState::new(handle.clone(), catalog(folder), door, metrics, told);
        let (closing, closed) = watch::channel(http::Door::Open);
        tokio::spawn(http::serve_crowd(listener, Arc::new(state), closed, crowd));
        Door { address, handle, driver, _closing: closing }
    }
}

fn launcher() -> Launcher {
    Launcher::new(Policy::Auto, env!("CARGO_BIN_EXE_server").into())
}

fn catalog(folder: PathBuf) -> Catalog {
    Catalog::open(CatalogConfig {
        stores: vec![folder.join("models")],
        state_dir: folder.join("state"),
        worker_dir: folder.clone(),
        launcher: launcher(),
        hub_dir: folder.join("hub"),
        prune: false,
        flash_attention: Default::default(),
    })
    .unwrap()
}

fn http_config(address: SocketAddr) -> HttpConfig {
    HttpConfig {
        address,
        origins: Vec::new(),
        version: "test".to_owned(),
        allowed_hosts: Vec::new(),
        keys: Keys::default(),
        context_tokens: 4096,
        slots: 4,
        kv_type: "f16".to_owned(),
        flash_attention: Default::default(),
        threads: 1,
        gpu_layers: -1,
        wired_limit_bytes: 0,
        rules: Rules::default(),
    }
}

/// A server that runs.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    driver: Driver,
    _closing: watch::Sender<http::Door>,
}

impl Door {
    /// Asks, and reads to the end of the connection.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let asked = tokio::time::timeout(PATIENCE, self.exchange(path, body.to_string()));
        asked.await.unwrap_or_else(|_| panic!("no answer: {path} {body}"))
    }

    async fn exchange(&self, path: &str, body: String) -> Reply {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        self.say(&head, &body).await
    }

    /// Sends a head of these lines and a body as they are, and reads to the end of the connection.
    pub(crate) async fn say(&self, head: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Reply::parse(&bytes)
    }

    pub(crate) async fn close(self) {
        self.handle.shutdown(true).await;
        tokio::time::timeout(PATIENCE, self.driver.join()).await.expect("it ends").unwrap();
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = &bytes[end + 4..];
        let body = if head.contains("transfer-encoding: chunked") { whole(body) } else { body.to_vec() };
        Self { status, body: String::from_utf8(body).unwrap() }
    }

    /// The events of a stream, of either kind, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        let event = |line: &str| {
            let text = line.strip_prefix("data: ").unwrap_or(line);
            serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
        };
        self.body
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("event: ") && !line.starts_with(':'))
            .map(event)
            .collect()
    }
}

/// The chunks of a body, the last and empty one included: a stream that breaks off has none.
fn whole(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").expect("the stream ends with an empty chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let chunk = &rest[line + 2..];
        if size == 0 {
            assert_eq!(chunk, b"\r\n", "nothing follows the end");
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &chunk[size + 2..];
    }
}
