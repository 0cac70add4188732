//! A worker process: its arguments, its two threads, its end.
//!
//! ```text
//! worker                    serves one model over its standard input, a socket
//! worker inspect PATH…      prints the model's facts, see [`crate::inspect`]
//! worker --version
//! ```
//!
//! One thread reads the socket into a bounded channel; the other, the main one (accelerators like that), owns the
//! engine and drains the channel between two steps, so that a cancel takes effect before the next one. The end of the
//! socket is the end of the supervisor: the reader ends the process at once, even in the middle of a computation, so
//! that no orphan holds gigabytes. All frames of a step travel in one write; a write that fails, or that nobody takes
//! for [`WRITE_TIMEOUT`](crate::limits::WRITE_TIMEOUT), means the same.
//!
//! Knows nothing of scheduling: how many requests come, and when to leave, is the supervisor's decision.

mod link;
mod outlet;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toy_backend;

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use ollmlx_proto::limits::{HELLO_TIMEOUT_MS, LOAD_STALL_MS};
use ollmlx_proto::version::PROTOCOL_VERSIONS;
use ollmlx_proto::{
    Failure, FailureKind, FromWorker, Incarnation, LoadSpec, MemoryReport, ModelId, Output, Ready, RequestId, ToWorker,
    WorkerHello, WorkerId,
};

use self::link::{Gone, Sender, inherited, read_in_background};
use self::outlet::Outlet;
use crate::batch::{Batcher, StepOutcome};
use crate::contract::in_range;
use crate::engine::{Backend, Engine};
use crate::fault::{self, Faults, Spoil};
use crate::inspect;
use crate::limits::{GONE_GRACE_MS, LOAD_PROGRESS_EVERY};
use crate::sandbox;
use crate::tell::tell;

/// How a worker ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Drained, as asked.
    Drained,
    /// The supervisor is gone.
    Gone,
    /// The model could not be loaded; the supervisor knows why.
    LoadFailed,
    /// The engine is of no use any more.
    Broken(String),
    /// A defect of ours; the panic's own words are on standard error already.
    Panicked,
    /// The supervisor said something unexpected, or nothing in time.
    Protocol(String),
    /// The environment does not say whom to serve.
    Environment(String),
}

impl Exit {
    /// The process's exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Drained | Self::Gone => 0,
            Self::Environment(_) => 2,
            Self::LoadFailed => 3,
            Self::Broken(_) => 4,
            Self::Protocol(_) => 5,
            Self::Panicked => 101,
        }
    }
}

impl From<Gone> for Exit {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Who this process is, from its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which model, and which of its processes.
    pub worker: WorkerId,
    /// Proves that the supervisor started us.
    pub token: [u8; 32],
}

/// The whole of a worker's `main`.
#[must_use]
pub fn main<B: Backend>() -> ExitCode {
    if let Err(reason) = sandbox::close() {
        tell(format_args!("worker ends: {reason}"));
        return ExitCode::from(Exit::Environment(reason).status());
    }
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    let status = match first.as_ref().and_then(|first| first.to_str()) {
        Some("inspect") => {
            let paths: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
            inspect::run::<B>(&paths, &mut io::stdout().lock()).unwrap_or(inspect::EXIT_FAILED)
        }
        Some("--version" | "-V") => {
            let written = writeln!(io::stdout(), "{} (protocol {PROTOCOL_VERSIONS:?})", build());
            u8::from(written.is_err())
        }
        None if first.is_none() => worker::<B>(),
        _ => {
            tell(format_args!(
                "usage: (inspect PATH... | --version); without arguments the supervisor must have started this"
            ));
            2
        }
    };
    ExitCode::from(status)
}

fn worker<B: Backend>() -> u8 {
    let exit = match environment() {
        Err(reason) => Exit::Environment(reason),
        Ok((identity, faults)) => match inherited(io::stdin()) {
            Err(error) => Exit::Environment(format!("standard input is no socket to a supervisor: {error}")),
            Ok((reader, writer)) => run::<B>(reader, writer, &identity, faults, end_without_supervisor),
        },
    };
    match &exit {
        Exit::Broken(reason) | Exit::Protocol(reason) | Exit::Environment(reason) => {
            tell(format_args!("worker ends: {reason}"))
        }
        Exit::Drained | Exit::Gone | Exit::LoadFailed | Exit::Panicked => {}
    }
    exit.status()
}

/// The supervisor is gone, or wants nothing more of this process: it ends, whatever its engine does at the moment.
///
/// Not by `exit`, which runs the destructors of the engine's static objects while its threads compute: MLX's have been seen
/// to wait for each other for ever then, and nobody is left who would end the process.
fn end_without_supervisor() {
    // Whoever is idle, or has just said goodbye, leaves in the ordinary way and with its own status.
    std::thread::park_timeout(Duration::from_millis(GONE_GRACE_MS));
    let _failed = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    std::process::abort();
}

fn environment() -> Result<(Identity, Faults), String> {
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let identity = Identity {
        worker: WorkerId {
            model: ModelId(variable("OLLMLX_MODEL")?),
            incarnation: Incarnation(
                variable("OLLMLX_INCARNATION")?.parse().map_err(|error| format!("OLLMLX_INCARNATION: {error}"))?,
            ),
        },
        token: parse_token(&variable("OLLMLX_TOKEN")?).ok_or("OLLMLX_TOKEN is not 64 hexadecimal digits")?,
    };
    let faults = match std::env::var(fault::VARIABLE) {
        Ok(text) => Some(text),
        Err(std::env::VarError::NotPresent) => None,
        Err(error) => return Err(format!("{}: {error}", fault::VARIABLE)),
    };
    let faults = Faults::from_text(faults.as_deref(), identity.worker.incarnation.0)?;
    Ok((identity, faults))
}

fn parse_token(digits: &str) -> Option<[u8; 32]> {
    let mut token = [0; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != token.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in token.iter_mut().zip(pairs) {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(token)
}

fn build() -> String {
    format!("ollmlx worker {}", env!("CARGO_PKG_VERSION"))
}

/// Serves one model over a stream until something ends it. `gone` is called on the reading thread when the
/// stream ends; the real one ends the process there.
pub fn run<B: Backend>(
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    identity: &Identity,
    faults: Faults,
    gone: impl FnOnce() + Send + 'static,
) -> Exit {
    let sender = Sender::new(writer);
    let inbox = match read_in_background(reader, gone) {
        Ok(inbox) => inbox,
        Err(error) => return Exit::Protocol(format!("no thread could be started: {error}")),
    };
    // Unwinding ends here; nothing that was touched is used afterwards.
    match catch_unwind(AssertUnwindSafe(|| serve::<B>(sender, &inbox, identity, faults))) {
        Ok(Ok(exit) | Err(exit)) => exit,
        Err(_) => Exit::Panicked,
    }
}

fn serve<B: Backend>(
    mut sender: Sender<impl Write + Send + 'static>,
    inbox: &Receiver<ToWorker>,
    identity: &Identity,
    mut faults: Faults,
) -> Result<Exit, Exit> {
    sender.send(&FromWorker::Hello(WorkerHello {
        versions: PROTOCOL_VERSIONS.to_vec(),
        build: build(),
        worker: identity.worker.clone(),
        pid: std::process::id(),
        token: identity.token,
    }))?;
    match expect(inbox, HELLO_TIMEOUT_MS)? {
        ToWorker::Hello { version, .. } if PROTOCOL_VERSIONS.contains(&version) => {}
        ToWorker::Hello { version, .. } => {
            return Err(Exit::Protocol(format!("protocol {version} is not spoken here")));
        }
        other => return Err(unexpected(&other)),
    }
    // The system may take its time to give this process its place.
    let spec = match expect(inbox, LOAD_STALL_MS)? {
        ToWorker::Load(spec) => spec,
        ToWorker::Drain => return leave(&mut sender),
        other => return Err(unexpected(&other)),
    };
    faults.load();
    let mut engine = match load::<B>(&mut sender, &spec) {
        Ok(engine) => engine,
        Err(failure) => {
            tell(format_args!("load failed: {failure} {}", failure.detail));
            sender.send(&FromWorker::LoadFailed(failure))?;
            return Ok(Exit::LoadFailed);
        }
    };
    faults.loaded();
    let outlet = Outlet::new(sender);
    engine.on_progress(outlet.pulse());
    let mut session = Session::new(Batcher::new(engine), faults);
    outlet.lock().sender.send(&FromWorker::Ready(session.ready()))?;
    session.serve(&outlet, inbox)
}

/// What must come, and soon.
fn expect(inbox: &Receiver<ToWorker>, patience_ms: u64) -> Result<ToWorker, Exit> {
    inbox.recv_timeout(Duration::from_millis(patience_ms)).map_err(|error| match error {
        RecvTimeoutError::Disconnected => Exit::Gone,
        RecvTimeoutError::Timeout => Exit::Protocol("the supervisor fell silent before the load".to_owned()),
    })
}

fn unexpected(message: &ToWorker) -> Exit {
    let name = match message {
        ToWorker::Hello { .. } => "hello",
        ToWorker::Load(_) => "load",
        ToWorker::Run(_) => "run",
        ToWorker::Cancel(_) => "cancel",
        ToWorker::Drain => "drain",
        ToWorker::Trim => "trim",
        ToWorker::Pause(_) => "pause",
        ToWorker::Continue(_) => "continue",
    };
    Exit::Protocol(format!("{name} is not expected here"))
}

fn leave(sender: &mut Sender<impl Write>) -> Result<Exit, Exit> {
    sender.send(&FromWorker::Bye)?;
    Ok(Exit::Drained)
}

fn load<B: Backend>(sender: &mut Sender<impl Write>, spec: &LoadSpec) -> Result<B::Engine, Failure> {
    let mut last: Option<Instant> = None;
    let mut progress = |done: u64, total: u64| {
        let now = Instant::now();
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOAD_PROGRESS_EVERY) {
            return true;
        }
        last = Some(now);
        sender.send(&FromWorker::LoadProgress { done, total }).is_ok()
    };
    let spec = in_range(spec.clone());
    catch_unwind(AssertUnwindSafe(|| B::load(&spec, &mut progress))).unwrap_or_else(|_| {
        Err(Failure::new(FailureKind::LoadFailed, "the model could not be loaded")
            .with_detail("the engine panicked; see standard error"))
    })
}

/// A loaded worker.
struct Session<E> {
    batcher: Batcher<E>,
    faults: Faults,
    draining: bool,
    outputs: Vec<(RequestId, Output)>,
    memory: MemoryReport,
    /// Of the last step; a message may change what is to be done.
    outcome: StepOutcome,
}

impl<E: Engine> Session<E> {
    fn new(batcher: Batcher<E>, faults: Faults) -> Self {
        let memory = batcher.engine().memory();
        Self { batcher, faults, draining: false, outputs: Vec::new(), memory, outcome: StepOutcome::Idle }
    }

    fn ready(&self) -> Ready {
        let facts = self.batcher.engine().facts();
        Ready {
            slots: facts.slots,
            context_tokens: facts.context_tokens,
            memory: self.memory,
            device: facts.device.clone(),
            accelerator_bytes: facts.accelerator_bytes,
        }
    }

    fn serve(&mut self, outlet: &Outlet<impl Write>, inbox: &Receiver<ToWorker>) -> Result<Exit, Exit> {
        loop {
            if self.outcome != StepOutcome::Busy {
                if self.draining && self.batcher.is_idle() {
                    return leave(&mut outlet.lock().sender);
                }
                // Without a deadline on purpose: an idle worker may idle, and the reader sees the supervisor go.
                let message = inbox.recv().map_err(|_| Exit::Gone)?;
                // Life is told of from now on, not for the time that nothing was to do.
                outlet.lock().rest();
                self.take(message, outlet)?;
            }
            loop {
                match inbox.try_recv() {
                    Ok(message) => self.take(message, outlet)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(Exit::Gone),
                }
            }
            self.outcome = if self.batcher.is_idle() { StepOutcome::Idle } else { self.step(outlet)? };
        }
    }

    fn take(&mut self, message: ToWorker, outlet: &Outlet<impl Write>) -> Result<(), Exit> {
        match message {
            ToWorker::Run(request) if self.draining => Err(unexpected(&ToWorker::Run(request))),
            ToWorker::Run(request) => {
                self.faults.request(&request);
                self.batcher.run(*request);
                Ok(())
            }
            ToWorker::Cancel(id) => {
                self.batcher.cancel(id);
                Ok(())
            }
            ToWorker::Pause(id) => {
                self.batcher.pause(id, true);
                Ok(())
            }
            ToWorker::Continue(id) => {
                self.batcher.pause(id, false);
                Ok(())
            }
            ToWorker::Drain => {
                self.draining = true;
                Ok(())
            }
            ToWorker::Trim => {
                self.batcher.trim();
                self.memory = self.batcher.engine().memory();
                Ok(outlet.lock().sender.send(&FromWorker::Memory(self.memory))?)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn step(&mut self, outlet: &Outlet<impl Write>) -> Result<StepOutcome, Exit> {
        self.faults.before_step();
        let stepped = self.batcher.step(&mut self.outputs);
        let mut voice = outlet.lock();
        let spoil = self.faults.after_step(&self.outputs);
        for (id, output) in self.outputs.drain(..) {
            voice.sender.queue_output(id, output);
        }
        if let Some(spoil) = spoil {
            voice.sender.spoil(spoil)?;
            if spoil == Spoil::Half {
                return Err(Exit::Broken("half a frame was sent, as asked".to_owned()));
            }
        }
        let outcome = match stepped {
            Ok(outcome) => outcome,
            Err(failure) => {
                voice.sender.flush()?;
                return Err(Exit::Broken(format!("{failure}: {}", failure.detail)));
            }
        };
        voice.steps = self.batcher.steps();
        if voice.is_due() {
            if outcome == StepOutcome::Busy {
                voice.tell();
            }
            let memory = self.batcher.engine().memory();
            if memory != self.memory {
                self.memory = memory;
                voice.sender.queue(&FromWorker::Memory(memory));
            }
        }
        voice.sender.flush()?;
        Ok(outcome)
    }
}
