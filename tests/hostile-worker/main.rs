//! A worker that does what an engine would that somebody had taken over with a model file or a request: it looks for a way out.
//! It uses nothing of the kit, so only walls that others have put up around it are tried. It says what held and what let it
//! through, and ends.
//!
//! Were there no walls, nothing of it would do harm: signals are SIGCONT, files are small, and mounts have no place to go.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what a worker says is kept")]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::hostile::Targets;
use harness::link::{Link, identity};
use ollmlx_proto::{Failure, FailureKind, FromWorker, MemoryReport, Ready, ToWorker, version};

/// What it leaves with when all was tried.
const TRIED: i32 = 9;
/// Children that it would be content with.
const CHILDREN: usize = 8;
/// Variables that every worker gets, or may get.
const KNOWN_VARIABLES: [&str; 7] = ["OLLMLX_", "GGML_NO_BACKTRACE", "LANG", "LC_", "TZ", "RUST_", "LD_LIBRARY_PATH"];

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => work(),
        Some("inspect") => inspect(Path::new(&arguments.next().expect("a path"))),
        Some(_child) => {}
    }
}

/// As an inspector: the card of a model if it was kept in, else why not.
fn inspect(path: &Path) {
    let broken = attacks(&Targets::read(path)).broken;
    if broken.is_empty() {
        let card = harness::model("hostile", path.to_owned()).card.clone();
        println!("{}", serde_json::to_string(&*card).expect("plain data"));
        return;
    }
    let failure = Failure::new(FailureKind::ModelInvalid, format!("let through: {}", broken.join(", ")));
    println!("{}", serde_json::to_string(&failure).expect("plain data"));
    std::process::exit(2);
}

fn work() {
    let link = Link::inherited();
    let (worker, token) = identity();
    link.hello(version::PROTOCOL_VERSIONS.to_vec(), worker, token);
    let messages = link.listen();
    let spec = loop {
        match messages.recv() {
            Ok(ToWorker::Load(spec)) => break spec,
            Ok(_) => {}
            Err(_) => return,
        }
    };
    let targets = Targets::read(&spec.weights[0]);
    if targets.waits {
        let memory = MemoryReport { weights: 1, kv: 0, compute: 0 };
        let (slots, context_tokens, device) = (spec.slots, spec.context_tokens, "hostile".to_owned());
        link.send(&FromWorker::Ready(Ready { slots, context_tokens, memory, device, accelerator_bytes: 0 }));
        while messages.recv().is_ok() {}
        return;
    }
    let Attacks { held, broken } = attacks(&targets);
    println!("held: {}", held.join(", "));
    if !broken.is_empty() {
        println!("let through: {}", broken.join(", "));
    }
    io::stdout().flush().expect("somebody listens");
    std::process::exit(TRIED);
}

#[derive(Default)]
struct Attacks {
    held: Vec<String>,
    broken: Vec<String>,
}

impl Attacks {
    /// Refused is what counts: whatever else goes wrong may have gone well.
    fn tried<T>(&mut self, what: &str, result: io::Result<T>) {
        match result {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => self.held.push(what.to_owned()),
            Err(error) => self.broken.push(format!("{what} ({error})")),
            Ok(_) => self.broken.push(what.to_owned()),
        }
    }

    fn known(&mut self, what: &str, result: Result<(), String>) {
        match result {
            Ok(()) => self.held.push(what.to_owned()),
            Err(found) => self.broken.push(format!("{what} ({found})")),
        }
    }
}

fn attacks(targets: &Targets) -> Attacks {
    let mut attacks = Attacks::default();
    files(&mut attacks, targets);
    network(&mut attacks, targets);
    processes(&mut attacks, targets);
    programs(&mut attacks);
    kernel(&mut attacks);
    inherited(&mut attacks);
    attacks
}

fn files(attacks: &mut Attacks, targets: &Targets) {
    for path in &targets.secrets {
        attacks.tried("read a file", File::open(path));
    }
    for path in ["/etc/passwd", "/etc/shadow", "/bin/sh", "/proc/1/environ", "/proc/net/tcp", "/dev/mem"] {
        // Not all of them are on every machine.
        if Path::new(path).exists() {
            attacks.tried(path, File::open(path));
        }
    }
    attacks.tried("list /", std::fs::read_dir("/"));
    attacks.tried("list /proc", std::fs::read_dir("/proc"));
    attacks.tried("list /dev", std::fs::read_dir("/dev"));
    for folder in &targets.folders {
        let new = folder.join("hostile");
        attacks.tried("make a file", File::create(&new));
        attacks.tried("make a folder", std::fs::create_dir(&new));
        attacks.tried("make a link", std::os::unix::fs::symlink("/", &new));
        attacks.tried("make a socket", UnixListener::bind(&new));
    }
    attacks.tried("append", OpenOptions::new().append(true).open(&targets.spoils));
    attacks.tried("truncate", OpenOptions::new().write(true).truncate(true).open(&targets.spoils));
    attacks.tried("truncate by name", nix::unistd::truncate(&targets.spoils, 0).map_err(io::Error::from));
    attacks.tried("remove", std::fs::remove_file(&targets.spoils));
    attacks.tried("rename", std::fs::rename(&targets.spoils, targets.spoils.with_extension("new")));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    attacks.tried("change a mode", std::fs::set_permissions(&targets.spoils, mode));
}

fn network(attacks: &mut Attacks, targets: &Targets) {
    attacks.tried("connect by TCP", TcpStream::connect(targets.tcp));
    attacks.tried("listen on TCP", TcpListener::bind("127.0.0.1:0"));
    attacks.tried("send by UDP", UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"x", targets.udp)));
    for socket in &targets.sockets {
        attacks.tried("connect to a socket", UnixStream::connect(socket));
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&targets.abstract_name).expect("a short name");
        attacks.tried("connect to an abstract socket", UnixStream::connect_addr(&address));
    }
    attacks.tried("make a pair of sockets", UnixStream::pair());
}

#[cfg(target_os = "linux")]
fn processes(attacks: &mut Attacks, targets: &Targets) {
    use std::io::IoSliceMut;

    use nix::sys::ptrace;
    use nix::sys::signal::{Signal, kill, killpg};
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    use nix::unistd::Pid;
    for id in &targets.processes {
        let pid = Pid::from_raw(*id);
        for file in ["mem", "environ", "maps", "cmdline"] {
            attacks.tried(&format!("read a process's {file}"), File::open(format!("/proc/{id}/{file}")));
        }
        let mut bytes = [0; 8];
        let remote = [RemoteIoVec { base: 0x1000, len: bytes.len() }];
        let mut local = [IoSliceMut::new(&mut bytes)];
        attacks.tried("read a process's memory", process_vm_readv(pid, &mut local, &remote).map_err(io::Error::from));
        attacks.tried("trace a process", ptrace::seize(pid, ptrace::Options::empty()).map_err(io::Error::from));
        attacks.tried("signal a process", kill(pid, Signal::SIGCONT).map_err(io::Error::from));
        attacks.tried("signal a group", killpg(pid, Signal::SIGCONT).map_err(io::Error::from));
        let opened = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(*id).expect("a process"),
            rustix::process::PidfdFlags::empty(),
        );
        attacks.tried("hold a process", opened.map_err(io::Error::from));
        let here = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("its own");
        attacks.tried("bind a process", nix::sched::sched_setaffinity(pid, &here).map_err(io::Error::from));
    }
}

#[cfg(not(target_os = "linux"))]
fn processes(attacks: &mut Attacks, targets: &Targets) {
    use nix::sys::signal::{Signal, kill};
    for id in &targets.processes {
        let pid = nix::unistd::Pid::from_raw(*id);
        attacks.tried("signal a process", kill(pid, Signal::SIGCONT).map_err(io::Error::from));
    }
}

fn programs(attacks: &mut Attacks) {
    attacks.tried("become a shell", Err::<(), _>(Command::new("/bin/sh").arg("-c").arg("exit").exec()));
    let own = std::env::current_exe().expect("a program has a path");
    let children = (0..CHILDREN).map(|_| Command::new(&own).arg("child").stdin(Stdio::null()).spawn());
    let born = children.filter_map(Result::ok).map(|mut child| child.wait()).count();
    attacks.known("make children", if born == 0 { Ok(()) } else { Err(format!("{born} of {CHILDREN}")) });
    let shell = Command::new("/bin/sh").arg("-c").arg("exit").stdin(Stdio::null()).status();
    attacks.tried("run a shell", shell);
}

#[cfg(target_os = "linux")]
fn kernel(attacks: &mut Attacks) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let nothing = None::<&Path>;
    for (what, flag) in [
        ("leave for a user namespace", CloneFlags::CLONE_NEWUSER),
        ("leave for a network", CloneFlags::CLONE_NEWNET),
        ("leave for a mount namespace", CloneFlags::CLONE_NEWNS),
    ] {
        attacks.tried(what, unshare(flag).map_err(io::Error::from));
    }
    let mounted = mount(Some("none"), "/nonexistent", Some("tmpfs"), MsFlags::empty(), nothing);
    attacks.tried("mount", mounted.map_err(io::Error::from));
    attacks.tried("change the root", nix::unistd::chroot("/nonexistent").map_err(io::Error::from));
    let memory = nix::sys::memfd::memfd_create("hostile", nix::sys::memfd::MFdFlags::empty());
    attacks.tried("make a file in memory", memory.map_err(io::Error::from));
    let whole = rustix::process::Rlimit { current: None, maximum: None };
    for (what, resource) in [
        ("raise the limit of dumps", rustix::process::Resource::Core),
        ("raise the limit of files", rustix::process::Resource::Fsize),
    ] {
        attacks.tried(what, rustix::process::setrlimit(resource, whole).map_err(io::Error::from));
    }
    attacks.tried("become root", nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).map_err(io::Error::from));
    attacks.tried("be dumped", nix::sys::prctl::set_dumpable(true).map_err(io::Error::from));
}

#[cfg(not(target_os = "linux"))]
fn kernel(_: &mut Attacks) {}

/// What it has without having asked.
fn inherited(attacks: &mut Attacks) {
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let strange: Vec<String> =
        names.filter(|name| !KNOWN_VARIABLES.iter().any(|known| name.starts_with(known))).collect();
    attacks.known("clean variables", if strange.is_empty() { Ok(()) } else { Err(strange.join(" ")) });
    if !cfg!(target_os = "linux") {
        return;
    }
    attacks.known("clean descriptors", descriptors());
    let status = std::fs::read_to_string("/proc/self/status").expect("it may look at itself");
    let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    for (name, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let found = of(name).unwrap_or_default();
        attacks.known(name, if found == wanted { Ok(()) } else { Err(found.to_owned()) });
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let found = of(name).unwrap_or("missing");
        let is_none = found.bytes().all(|byte| byte == b'0');
        attacks.known(name, if is_none { Ok(()) } else { Err(found.to_owned()) });
    }
}

/// Its input, its output, and what this looks through.
fn descriptors() -> Result<(), String> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?;
    let paths: Vec<PathBuf> = entries.flatten().filter_map(|entry| entry.path().read_link().ok()).collect();
    let is_known = |path: &Path| {
        let text = path.to_string_lossy();
        text.starts_with("socket:") || text.starts_with("pipe:") || text.starts_with("/proc/") || text == "/dev/null"
    };
    let strange: Vec<String> =
        paths.iter().filter(|path| !is_known(path)).map(|path| path.display().to_string()).collect();
    if strange.is_empty() { Ok(()) } else { Err(strange.join(" ")) }
}
