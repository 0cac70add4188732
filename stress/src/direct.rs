//! A worker driven without the supervisor: a socket, one load, greedy completions one after another.
//!
//! This is the only place that knows the product's protocol. It blocks: nothing else happens meanwhile.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ollmlx_proto::frame::{Decoder, encode};
use ollmlx_proto::version::choose;
use ollmlx_proto::{
    CacheSalt, Complete, Format, FromWorker, Incarnation, Limits, LoadSpec, ModelId, Output, Request, RequestId,
    ResumePoint, Sampling, ToWorker, UnixSeconds, Work, WorkerId,
};

const TIMEOUT: Duration = Duration::from_secs(120);
const TOKEN: [u8; 32] = [7; 32];

/// A worker process of ours.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    stream: UnixStream,
    decoder: Decoder,
    requests: u64,
}

impl Worker {
    /// Starts the program and loads the model for one slot.
    pub(crate) fn start(program: &Path, model: &Path, context_tokens: u32, threads: u16) -> Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .env("OLLMLX_TOKEN", TOKEN.map(|byte| format!("{byte:02x}")).concat())
            .env("OLLMLX_MODEL", "0".repeat(64))
            .env("OLLMLX_INCARNATION", "1")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut worker = Self { child, stream, decoder: Decoder::new(), requests: 0 };
        let FromWorker::Hello(hello) = worker.next()? else { bail!("the worker's first frame is no hello") };
        let expected = WorkerId { model: ModelId("0".repeat(64)), incarnation: Incarnation(1) };
        ensure!(hello.worker == expected && hello.token == TOKEN, "the worker took another name");
        let version = choose(&hello.versions).context("the worker speaks another protocol")?;
        worker.send(&ToWorker::Hello { version, build: "stress".to_owned() })?;
        worker.send(&ToWorker::Load(LoadSpec {
            weights: vec![PathBuf::from(model)],
            slots: 1,
            context_tokens,
            batch_tokens: 512,
            threads,
            gpu_layers: -1,
            kv_type: "f16".to_owned(),
            ..LoadSpec::default()
        }))?;
        loop {
            match worker.next()? {
                FromWorker::Ready(_) => return Ok(worker),
                FromWorker::LoadFailed(failure) => bail!("the worker cannot load: {failure:?}"),
                _ => {}
            }
        }
    }

    /// Tokens per second after the first, of one greedy answer.
    pub(crate) fn decode(&mut self, prompt: &str, tokens: u32) -> Result<f64> {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.send(&ToWorker::Run(Box::new(Request {
            id,
            work: Work::Complete(Complete { prompt: prompt.to_owned(), suffix: None }),
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            format: Format::Text,
            limits: Limits {
                max_tokens: Some(tokens),
                context_tokens: u32::MAX,
                truncate: false,
                shift: false,
                keep_tokens: 0,
            },
            logprobs: None,
            asked_at: UnixSeconds::default(),
            cache_salt: CacheSalt::default(),
            progress: ResumePoint::default(),
        })))?;
        let (mut first, mut last, mut count) = (None, None, 0);
        loop {
            let FromWorker::Output(of, output) = self.next()? else { continue };
            ensure!(of == id, "an output of another request");
            match output {
                Output::Delta(delta) => {
                    let now = Instant::now();
                    count += delta.tokens.len();
                    first.get_or_insert(now);
                    last = Some(now);
                }
                Output::Failed(failure) => bail!("the worker failed: {failure:?}"),
                output if output.is_terminal() => break,
                _ => {}
            }
        }
        let took = last.zip(first).map(|(last, first)| last - first).context("no token came")?;
        ensure!(count > 1, "too few tokens came");
        Ok((count - 1) as f64 / took.as_secs_f64())
    }

    fn send(&mut self, message: &ToWorker) -> Result<()> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    fn next(&mut self) -> Result<FromWorker> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(message) = self.decoder.next_message::<FromWorker>()? {
                return Ok(message);
            }
            let count = self.stream.read(&mut buffer).context("the worker is silent")?;
            ensure!(count > 0, "the worker closed its socket");
            self.decoder.push(&buffer[..count]);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
