//! The walls around workers, tried by a worker that looks for a way out (`tests/hostile-worker/`), under the real server and its
//! real launcher. Nothing here is skipped: a machine without walls fails.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::hostile::Targets;
use harness::toy::Weights;
use serde_json::Value;

use crate::house::PATIENCE;

const SERVER: &str = env!("CARGO_BIN_EXE_server");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");
const TOY: &str = env!("CARGO_BIN_EXE_toy-worker");
/// Names of things in the environment that no worker needs.
const SECRETS: [&str; 3] = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OLLMLX_API_KEY_OF_SOMEBODY"];

/// A server in a home of its own.
struct Home {
    folder: tempfile::TempDir,
    server: Child,
    host: String,
}

impl Home {
    /// Its workers are this program.
    fn open(worker: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("os").tempdir_in("/tmp").unwrap();
        let path = folder.path();
        for name in ["workers", "tmp", ".ssh", "models"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        std::fs::write(path.join(".ssh/id_rsa"), "a key").unwrap();
        std::fs::write(path.join("models/other.gguf"), "another model").unwrap();
        std::fs::write(path.join("spoils"), "whole").unwrap();
        harness::link_workers(&path.join("workers"), Path::new(worker));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        // Whoever starts a server may have left something open.
        let server = Command::new("/bin/sh")
            .args(["-c", "exec 9<\"$HOME/.ssh/id_rsa\" && exec \"$0\" \"$@\"", SERVER, "serve"])
            .arg("--worker-dir")
            .arg(path.join("workers"))
            .env_clear()
            .envs(SECRETS.map(|name| (name, "hush")))
            .envs([("PATH", "/usr/bin:/bin"), ("OLLMLX_HOST", &host), ("LANG", "C")])
            .envs([("HOME", path), ("TMPDIR", &path.join("tmp"))])
            .envs(variables.iter().copied())
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path.join("log")).unwrap())
            .spawn()
            .unwrap();
        let home = Self { folder, server, host };
        let end = Instant::now() + PATIENCE;
        while !home.command(&["list"]).status.success() {
            assert!(Instant::now() < end, "it does not answer: {}", home.log());
            std::thread::park_timeout(Duration::from_millis(10));
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// A command of ours against this server.
    fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(SERVER);
        command.args(words).env_clear().env("OLLMLX_HOST", &self.host).env("HOME", self.folder.path());
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.command(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn pid(&self) -> i32 {
        self.server.id().cast_signed()
    }

    /// Process ids of workers.
    fn workers(&self) -> Vec<i32> {
        let workers = self.json(&["ps", "--json"])["workers"].as_array().cloned().unwrap_or_default();
        workers.iter().filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect()
    }

    /// The socket that workers' launchers dial.
    fn socket(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.path("tmp")).unwrap().flatten();
        entries.map(|entry| entry.path().join("w.sock")).find(|path| path.exists()).expect("a socket")
    }

    /// The last words of a model's last death, and its cause.
    fn why(&self, model: &str) -> (String, String) {
        let told = self.json(&["why", "--json", model]);
        let last = told["deaths"].as_array().unwrap().last().cloned().unwrap_or_default();
        let lines = last["log"].as_array().cloned().unwrap_or_default();
        let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
        (lines.join("\n"), last["cause"].as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Its workers end with it.
        let _gone = self.server.kill();
        let _gone = self.server.wait();
    }
}

/// Attacks everything that a worker could want, and returns what `why` tells of it.
fn attacked(variables: &[(&str, &str)]) -> (Home, String, String) {
    let home = Home::open(HOSTILE, variables);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _listens = UnixListener::bind(home.path("listens")).unwrap();
    let name = format!("ollmlx-test-{}", home.pid());
    let _abstract = {
        use std::os::linux::net::SocketAddrExt as _;
        UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap()
    };
    let mut targets = Targets {
        waits: true,
        processes: Vec::new(),
        secrets: vec![home.path(".ssh/id_rsa"), home.path("models/other.gguf"), home.path("log")],
        folders: vec![home.path("models"), home.path("tmp"), home.folder.path().to_owned(), PathBuf::from("/dev/shm")],
        spoils: home.path("spoils"),
        tcp: tcp.local_addr().unwrap(),
        udp: udp.local_addr().unwrap(),
        sockets: vec![home.path("listens"), home.socket()],
        abstract_name: name,
    };
    targets.folders.retain(|folder| folder.is_dir());
    let (neighbour, attacker) = (home.path("models/neighbour.gguf"), home.path("models/attacker.gguf"));
    targets.write(&neighbour);
    targets.write(&attacker);
    let loaded = home.command(&["run", neighbour.to_str().unwrap(), "--keepalive=1h", ""]);
    let processes = home.workers();
    assert_eq!(processes.len(), 1, "{}\n{}", String::from_utf8_lossy(&loaded.stderr), home.log());
    let processes = [&processes[..], &[home.pid()]].concat();
    Targets { waits: false, processes: processes.clone(), ..targets }.write(&attacker);
    let attacker = attacker.to_str().unwrap();
    let asked = home.command(&["run", attacker, ""]);
    assert!(!asked.status.success(), "{}", home.log());
    let asked = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.contains("let through"), "its inspector has the same walls: {asked}");
    let (words, cause) = home.why(attacker);
    assert!(home.workers().contains(&processes[0]), "the neighbour lives");
    assert_eq!(std::fs::read(home.path("spoils")).unwrap(), b"whole");
    assert!(!home.path("hostile").exists() && !home.path("models/hostile").exists());
    (home, words, cause)
}

/// All of it was tried, and all of it failed.
fn assert_held(words: &str, cause: &str) {
    assert!(!words.contains("let through"), "{words}");
    for tried in [
        "read a file",
        "/etc/passwd",
        "list /proc",
        "make a file",
        "truncate",
        "remove",
        "connect by TCP",
        "send by UDP",
        "connect to a socket",
        "read a process's mem",
        "read a process's environ",
        "read a process's memory",
        "trace a process",
        "signal a process",
        "become a shell",
        "make children",
        "run a shell",
        "mount",
        "leave for a user namespace",
        "raise the limit of dumps",
        "clean variables",
        "clean descriptors",
        "NoNewPrivs",
        "Seccomp",
        "CapEff",
    ] {
        assert!(words.contains(tried), "{tried} was not tried: {words}");
    }
    assert!(cause.contains('9'), "it left when it had tried: {cause}");
}

#[test]
fn a_hostile_worker_gets_nowhere_and_why_tells_what_it_tried() {
    let (home, words, cause) = attacked(&[("OLLMLX_WORKER_SANDBOX", "require")]);
    assert_held(&words, &cause);
    let told = String::from_utf8(home.command(&["ps", "-v"]).stdout).unwrap();
    assert!(told.contains("worker sandbox: no new privileges, no capabilities, Landlock "), "{told}");
    assert!(!told.contains("this system lacks"), "{told}");
}

#[test]
fn a_hostile_worker_gets_nowhere_with_what_the_kernel_of_debian_12_has() {
    let (home, words, cause) = attacked(&[("OLLMLX_LANDLOCK_ABI_MAX", "2")]);
    assert_held(&words, &cause);
    let told = String::from_utf8(home.command(&["ps", "-v"]).stdout).unwrap();
    assert!(
        told.contains("Landlock 2, system calls; this system lacks Landlock 6's walls for cutting files"),
        "{told}"
    );
    assert!(home.log().contains("this system lacks walls for workers"), "{}", home.log());
}

#[test]
fn where_a_wall_is_required_and_missing_no_worker_starts_and_the_error_says_so() {
    let home = Home::open(TOY, &[("OLLMLX_LANDLOCK_ABI_MAX", "0"), ("OLLMLX_WORKER_SANDBOX", "require")]);
    let model = home.path("models/toy.gguf");
    Weights { template: "~".to_owned(), answer: Some("yes".to_owned()) }.write(&model);
    let asked = home.command(&["run", model.to_str().unwrap(), "x"]);
    let text = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && text.contains("worker_sandbox is \"require\""), "{text}");
    assert!(text.contains("this system lacks Landlock"), "{text}");
    assert!(home.workers().is_empty());
}

/// Whether it answers as it should, and the process that did.
fn answers(home: &Home, model: &Path) -> i32 {
    let asked = home.command(&["run", model.to_str().unwrap(), "x"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert_eq!(said.trim(), "yes", "{}\n{}", String::from_utf8_lossy(&asked.stderr), home.log());
    home.workers()[0]
}

fn toy(home: &Home) -> PathBuf {
    let model = home.path("models/toy.gguf");
    Weights { template: "~".to_owned(), answer: Some("yes".to_owned()) }.write(&model);
    model
}

#[test]
fn a_worker_answers_behind_all_walls_and_has_put_up_the_last_itself() {
    let home = Home::open(TOY, &[("OLLMLX_WORKER_SANDBOX", "require")]);
    let pid = answers(&home, &toy(&home));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("\nSeccomp_filters:\t3\n"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(limit("Max core file size").split_whitespace().nth(4) == Some("0"), "{limits}");
    assert!(!limit("Max data size").contains("unlimited"), "{limits}");
}

/// Root without its capabilities could not read it. Where the test is not root, the model is its own.
#[test]
fn a_model_that_is_another_user_s_alone_is_served_by_root() {
    const NOBODY: u32 = 65_534;
    let home = Home::open(TOY, &[]);
    let model = toy(&home);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&model, mode).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&model, Some(NOBODY), Some(NOBODY)).unwrap();
        assert!(home.log().contains("the server runs as root"), "{}", home.log());
    }
    let pid = answers(&home, &model);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // CAP_DAC_READ_SEARCH is bit 2.
    let capabilities = if is_root { "4" } else { "0" };
    assert!(status.contains(&format!("\nCapEff:\t{capabilities:0>16}\n")), "{status}");
}

#[test]
fn without_walls_a_worker_answers_and_gets_no_secret_all_the_same() {
    let home = Home::open(TOY, &[("OLLMLX_WORKER_SANDBOX", "off")]);
    let pid = answers(&home, &toy(&home));
    let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(variables.contains("OLLMLX_MODEL=") && !variables.contains("hush"), "{variables}");
    let told = String::from_utf8(home.command(&["ps", "-v"]).stdout).unwrap();
    assert!(told.contains("worker sandbox: off\n"), "{told}");
}
