//! A worker's `main`: dial the supervisor, say hello, load, run requests until told to leave.
//!
//! Two threads. The reader owns the receiving half of the socket, so that a cancel is seen during a long prefill; when
//! the socket closes the supervisor is gone and the reader ends the process at once, even in the middle of a step: no
//! orphan holds gigabytes. The engine thread (the one that called [`main`]) owns the engine, since GPU interfaces
//! like thread affinity, and the sending half. All frames of a step travel in one write.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use interprocess::TryClone as _;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{GenericFilePath, Stream};
use ollmlx_proto::frame::{Decoder, encode};
use ollmlx_proto::limits::{HELLO_TIMEOUT_MS, PROGRESS_INTERVAL_MS};
use ollmlx_proto::version::PROTOCOL_VERSIONS;
use ollmlx_proto::{FromWorker, Incarnation, LoadSpec, ModelId, Ready, ToWorker, WorkerHello, WorkerId};
use thiserror::Error;

use crate::batch::{Batcher, StepOutcome};
use crate::engine::{Backend, Engine};
use crate::inspect;

/// Path of the supervisor's socket.
pub const SOCKET_VARIABLE: &str = "OLLMLX_SOCKET";
/// One-time token, 64 hexadecimal digits.
pub const TOKEN_VARIABLE: &str = "OLLMLX_TOKEN";
/// Model id.
pub const MODEL_VARIABLE: &str = "OLLMLX_MODEL";
/// Incarnation, a number.
pub const INCARNATION_VARIABLE: &str = "OLLMLX_INCARNATION";

/// Exit status after a failed load.
const LOAD_FAILED_STATUS: u8 = 3;
/// Exit status after the engine broke.
const ENGINE_BROKEN_STATUS: u8 = 4;
/// Messages read ahead of the engine thread.
const INBOX_LEN_MAX: usize = 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Load progress is told at most this often.
const LOAD_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Why a worker leaves early.
#[derive(Debug, Error)]
enum ServeError {
    #[error("{0} is not set or not legal: a worker is started by the supervisor, not by hand")]
    Environment(&'static str),
    #[error("the supervisor can't be reached")]
    Dial(#[source] std::io::Error),
    #[error("the supervisor did not answer the hello")]
    NoHello,
    #[error("the supervisor sent {0} out of turn")]
    OutOfTurn(&'static str),
    #[error("a frame could not be sent")]
    Send(#[source] std::io::Error),
    #[error("a frame could not be encoded")]
    Encode(#[source] ollmlx_proto::frame::FrameError),
    #[error("the engine broke: {0}")]
    Broken(String),
}

/// The whole life of a worker binary. Arguments: none (serve), `inspect PATH…`, or `--version`.
pub fn main<B: Backend>() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        None => serve::<B>(),
        Some(word) if word == "inspect" => {
            let paths: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
            if paths.is_empty() {
                eprintln!("Error: inspect needs the path of a model");
                return ExitCode::FAILURE;
            }
            inspect::run::<B>(&paths)
        }
        Some(word) if word == "--version" => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(word) => {
            eprintln!("Error: unknown argument {word:?}; a worker is started by the supervisor, not by hand");
            ExitCode::FAILURE
        }
    }
}

fn serve<B: Backend>() -> ExitCode {
    let outcome = std::panic::catch_unwind(|| {
        let (path, hello) = environment()?;
        let name = path.as_str().to_fs_name::<GenericFilePath>().map_err(ServeError::Dial)?;
        let stream = Stream::connect(name).map_err(ServeError::Dial)?;
        let reader = stream.try_clone().map_err(ServeError::Dial)?;
        let gone = || {
            // The supervisor is gone: nothing that is still computed has a reader.
            std::process::exit(0);
        };
        run::<B, _, _>(reader, stream, hello, gone)
    });
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("Error: {}", chain(&error));
            match error {
                ServeError::Broken(_) => ExitCode::from(ENGINE_BROKEN_STATUS),
                _ => ExitCode::FAILURE,
            }
        }
        Err(_) => ExitCode::from(101),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn environment() -> Result<(String, WorkerHello), ServeError> {
    let get = |name: &'static str| std::env::var(name).map_err(|_| ServeError::Environment(name));
    let token = parse_token(&get(TOKEN_VARIABLE)?).ok_or(ServeError::Environment(TOKEN_VARIABLE))?;
    let incarnation = get(INCARNATION_VARIABLE)?.parse().map_err(|_| ServeError::Environment(INCARNATION_VARIABLE))?;
    let hello = WorkerHello {
        versions: PROTOCOL_VERSIONS.to_vec(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        worker: WorkerId { model: ModelId(get(MODEL_VARIABLE)?), incarnation: Incarnation(incarnation) },
        pid: std::process::id(),
        token,
    };
    Ok((get(SOCKET_VARIABLE)?, hello))
}

fn parse_token(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut token = [0; 32];
    for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(token)
}

/// Sends frames; several in one write.
struct Outbox<W> {
    stream: W,
    bytes: Vec<u8>,
    said: Instant,
}

impl<W: Write> Outbox<W> {
    fn add(&mut self, message: &FromWorker) -> Result<(), ServeError> {
        encode(message, &mut self.bytes).map_err(ServeError::Encode)
    }

    fn flush(&mut self) -> Result<(), ServeError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.bytes).map_err(ServeError::Send)?;
        self.bytes.clear();
        self.said = Instant::now();
        Ok(())
    }

    fn send(&mut self, message: &FromWorker) -> Result<(), ServeError> {
        self.add(message)?;
        self.flush()
    }
}

/// Serves over any pair of streams; `gone` is called by the reader thread when the supervisor's end closes.
fn run<B, R, W>(
    reader: R,
    writer: W,
    hello: WorkerHello,
    gone: impl Fn() + Send + 'static,
) -> Result<ExitCode, ServeError>
where
    B: Backend,
    R: Read + Send + 'static,
    W: Write,
{
    let (sender, inbox) = sync_channel(INBOX_LEN_MAX);
    std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || {
            read(reader, &sender);
            gone();
        })
        .map_err(ServeError::Dial)?;
    let mut outbox = Outbox { stream: writer, bytes: Vec::new(), said: Instant::now() };
    outbox.send(&FromWorker::Hello(hello))?;
    let timeout = Duration::from_millis(HELLO_TIMEOUT_MS);
    match inbox.recv_timeout(timeout) {
        Ok(ToWorker::Hello { .. }) => {}
        Ok(other) => return Err(ServeError::OutOfTurn(name(&other))),
        Err(_) => return Err(ServeError::NoHello),
    }
    let spec = match inbox.recv_timeout(timeout) {
        Ok(ToWorker::Load(spec)) => spec,
        Ok(ToWorker::Drain) => return leave(&mut outbox),
        Ok(other) => return Err(ServeError::OutOfTurn(name(&other))),
        Err(_) => return Err(ServeError::NoHello),
    };
    match load::<B, W>(&spec, &mut outbox)? {
        Some(engine) => work(Batcher::new(engine), &inbox, &mut outbox),
        None => Ok(ExitCode::from(LOAD_FAILED_STATUS)),
    }
}

fn name(message: &ToWorker) -> &'static str {
    match message {
        ToWorker::Hello { .. } => "Hello",
        ToWorker::Load(_) => "Load",
        ToWorker::Run(_) => "Run",
        ToWorker::Cancel(_) => "Cancel",
        ToWorker::Drain => "Drain",
    }
}

/// Reads until the stream ends or breaks the protocol.
fn read(mut reader: impl Read, inbox: &SyncSender<ToWorker>) {
    let mut decoder = Decoder::new();
    let mut bytes = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => decoder.push(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        loop {
            match decoder.next_message::<ToWorker>() {
                Ok(Some(message)) => {
                    if inbox.send(message).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    eprintln!("Error: the supervisor broke the protocol: {error}");
                    return;
                }
            }
        }
    }
}

fn load<B: Backend, W: Write>(spec: &LoadSpec, outbox: &mut Outbox<W>) -> Result<Option<B::Engine>, ServeError> {
    let mut sent: Result<(), ServeError> = Ok(());
    let mut told: Option<Instant> = None;
    let loaded = B::load(spec, &mut |done, total| {
        if told.is_none_or(|told| told.elapsed() >= LOAD_PROGRESS_INTERVAL) {
            told = Some(Instant::now());
            sent = outbox.send(&FromWorker::LoadProgress { done, total });
        }
        sent.is_ok()
    });
    sent?;
    match loaded {
        Ok(engine) => {
            let facts = engine.facts();
            let memory = engine.memory();
            let ready = Ready {
                slots: facts.slots,
                context_tokens: facts.context_tokens,
                memory,
                device: facts.device.clone(),
                accelerator_bytes: facts.accelerator_bytes,
            };
            outbox.send(&FromWorker::Ready(ready))?;
            Ok(Some(engine))
        }
        Err(failure) => {
            eprintln!("Error: the model could not be loaded: {} {}", failure.public, failure.detail);
            outbox.send(&FromWorker::LoadFailed(failure))?;
            Ok(None)
        }
    }
}

/// Steps while there is work, waits while there is none.
fn work<E: Engine, W: Write>(
    mut batcher: Batcher<E>,
    inbox: &Receiver<ToWorker>,
    outbox: &mut Outbox<W>,
) -> Result<ExitCode, ServeError> {
    let interval = Duration::from_millis(PROGRESS_INTERVAL_MS);
    let mut outputs = Vec::new();
    let mut steps: u64 = 0;
    let mut reported = batcher.engine().memory();
    let mut reported_at = Instant::now();
    let mut draining = false;
    loop {
        loop {
            match inbox.try_recv() {
                Ok(message) => draining |= take(message, &mut batcher)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(ExitCode::SUCCESS),
            }
        }
        if draining && !batcher.is_busy() {
            return leave(outbox);
        }
        let stepped = batcher.step(&mut outputs);
        for (id, output) in outputs.drain(..) {
            outbox.add(&FromWorker::Output(id, output))?;
        }
        match stepped {
            Ok(StepOutcome::Worked) => {
                steps += 1;
                if outbox.bytes.is_empty() && outbox.said.elapsed() >= interval {
                    outbox.add(&FromWorker::Progress { steps })?;
                }
                outbox.flush()?;
            }
            Ok(StepOutcome::Idle) => {
                outbox.flush()?;
                match inbox.recv_timeout(interval) {
                    Ok(message) => draining |= take(message, &mut batcher)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
                }
            }
            Err(failure) => {
                outbox.flush()?;
                return Err(ServeError::Broken(failure.public));
            }
        }
        if reported_at.elapsed() >= interval {
            reported_at = Instant::now();
            let memory = batcher.engine().memory();
            if memory != reported {
                reported = memory;
                outbox.send(&FromWorker::Memory(memory))?;
            }
        }
    }
}

/// Takes one message; returns whether it asks to leave.
fn take<E: Engine>(message: ToWorker, batcher: &mut Batcher<E>) -> Result<bool, ServeError> {
    match message {
        ToWorker::Run(request) => batcher.run(*request),
        ToWorker::Cancel(id) => batcher.cancel(id),
        ToWorker::Drain => return Ok(true),
        other @ (ToWorker::Hello { .. } | ToWorker::Load(_)) => return Err(ServeError::OutOfTurn(name(&other))),
    }
    Ok(false)
}

fn leave<W: Write>(outbox: &mut Outbox<W>) -> Result<ExitCode, ServeError> {
    outbox.send(&FromWorker::Bye)?;
    Ok(ExitCode::SUCCESS)
}
