//! Facts of model files, read by a worker's inspect mode in a process of its own.
//!
//! The supervisor never parses a model file: a file that kills its reader kills an inspector, and the client learns
//! which file and how. At most [`INSPECTIONS_MAX`] inspectors run at once, one per file; an answer is kept on disk by
//! the files' digest, a refusal for a few seconds in memory. A file that has killed its inspector by a fault of computing
//! three times is refused without a fourth, until it changes or the server is started anew. A caller that goes away kills its inspector; the
//! next one in line starts another.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{
    CARDS_BYTES_MAX, CARDS_MAX, INSPECT_BYTES_MAX, INSPECT_DATA_BYTES_MAX, INSPECT_REFUSAL_MS, INSPECT_TIMEOUT_MS,
    INSPECT_WAIT_MS_MAX, INSPECTIONS_MAX, LOADS_FAILED_MAX, LOG_TAIL_BYTES_MAX,
};
use ollmlx_proto::{Failure, FailureKind, FlashAttention, ModelCard};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::timeout;

use super::model::Backend;
use crate::os::folder::{Folder, read_bounded};
use crate::os::sandbox::{Grants, Launcher};
use crate::os::trusted_program;

/// What is to be inspected.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// What the files are called in errors: a model's name, a path, or the client's name of a file.
    pub(crate) label: String,
    /// 64 hexadecimal digits that change whenever the content does.
    pub(crate) key: String,
    /// Bytes of all files, so that a blob cut short is not taken for the one that was inspected.
    pub(crate) size_bytes: u64,
    /// Who reads them.
    pub(crate) backend: Backend,
    /// The files, first shard first, or the folder.
    pub(crate) paths: Vec<PathBuf>,
}

/// Runs inspectors and remembers what they said.
#[derive(Debug)]
pub(crate) struct Inspector {
    worker_dir: PathBuf,
    launcher: Launcher,
    state_dir: PathBuf,
    flash_attention: FlashAttention,
    turns: Semaphore,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// One lock per subject that is being inspected right now.
    flights: HashMap<String, Arc<AsyncMutex<()>>>,
    /// Whole cards, oldest first in `order`.
    cards: HashMap<String, KnownCard>,
    order: VecDeque<String>,
    /// Bytes of all of them as JSON.
    bytes: usize,
    /// Refusals, with when.
    refusals: HashMap<String, (Instant, Failure)>,
    /// How many inspectors a subject has killed, and the last one's words.
    kills: HashMap<String, (u32, Failure)>,
}

#[derive(Debug)]
struct KnownCard {
    size_bytes: u64,
    card: Arc<ModelCard>,
    json_bytes: usize,
}

/// Format of a stored card; another number is not read.
const CARD_VERSION: u64 = 1;
/// Their folder in the state folder.
const CARDS: &str = "cards";

fn card_file(subject: &Subject) -> String {
    format!("{}.json", subject.key)
}

impl Inspector {
    pub(crate) fn new(
        worker_dir: PathBuf,
        launcher: Launcher,
        state_dir: &Path,
        flash_attention: FlashAttention,
    ) -> Self {
        Self {
            worker_dir,
            launcher,
            state_dir: state_dir.to_owned(),
            flash_attention,
            turns: Semaphore::new(INSPECTIONS_MAX),
            memory: Mutex::default(),
        }
    }

    /// The card, from memory, from disk, or from an inspector. Cancelling it kills the inspector.
    pub(crate) async fn card(self: &Arc<Self>, subject: &Subject) -> Result<Arc<ModelCard>, Failure> {
        if let Some(answer) = self.remembered(subject) {
            return answer;
        }
        let flight = Arc::clone(self.memory().flights.entry(subject.key.clone()).or_default());
        let answer = {
            let _alone = timeout(Duration::from_millis(INSPECT_WAIT_MS_MAX), flight.lock())
                .await
                .map_err(|_| Failure::new(FailureKind::Busy, "too many models are being inspected, try again later"))?;
            match self.remembered(subject) {
                Some(answer) => answer,
                None => self.inspect_and_remember(subject).await,
            }
        };
        let mut memory = self.memory();
        drop(flight);
        memory.flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        answer
    }

    /// The card if it is known already. Blocking, one small file at most.
    pub(crate) fn known(&self, subject: &Subject) -> Option<Arc<ModelCard>> {
        if let Some(known) = self.memory().cards.get(&subject.key)
            && known.size_bytes == subject.size_bytes
        {
            return Some(Arc::clone(&known.card));
        }
        let (card, json_bytes) = self.load(subject)?;
        Some(self.remember_card(subject, card, json_bytes))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every change of the maps is complete in itself, so a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, subject: &Subject) -> Option<Result<Arc<ModelCard>, Failure>> {
        let memory = self.memory();
        if let Some(known) = memory.cards.get(&subject.key)
            && known.size_bytes == subject.size_bytes
        {
            return Some(Ok(Arc::clone(&known.card)));
        }
        if let Some((kills, failure)) = memory.kills.get(&subject.key)
            && *kills >= LOADS_FAILED_MAX
        {
            let public = format!("{}; it is not tried again until the file changes", failure.public);
            return Some(Err(Failure { public, ..failure.clone() }));
        }
        let (when, failure) = memory.refusals.get(&subject.key)?;
        (when.elapsed() < Duration::from_millis(INSPECT_REFUSAL_MS)).then(|| Err(failure.clone()))
    }

    /// What is on disk holds for any setting, what is in memory for ours.
    fn remember_card(&self, subject: &Subject, mut card: ModelCard, json_bytes: usize) -> Arc<ModelCard> {
        card.memory = card.memory.with_attention(self.flash_attention);
        let card = Arc::new(card);
        let known = KnownCard { size_bytes: subject.size_bytes, card: Arc::clone(&card), json_bytes };
        let mut memory = self.memory();
        memory.bytes += json_bytes;
        match memory.cards.insert(subject.key.clone(), known) {
            Some(former) => memory.bytes -= former.json_bytes,
            None => memory.order.push_back(subject.key.clone()),
        }
        while memory.order.len() > CARDS_MAX || memory.bytes > CARDS_BYTES_MAX {
            let Some(oldest) = memory.order.pop_front() else { break };
            if let Some(former) = memory.cards.remove(&oldest) {
                memory.bytes -= former.json_bytes;
            }
        }
        card
    }

    async fn inspect_and_remember(self: &Arc<Self>, subject: &Subject) -> Result<Arc<ModelCard>, Failure> {
        if let Some(card) = self.off_thread(subject, Self::known).await? {
            return Ok(card);
        }
        let _turn = timeout(Duration::from_millis(INSPECT_WAIT_MS_MAX), self.turns.acquire())
            .await
            .map_err(|_| Failure::new(FailureKind::Busy, "too many models are being inspected, try again later"))?
            .map_err(|error| internal(subject, &error))?;
        let answer = self.run(subject).await;
        if let Err(Inspected::Killed(failure)) = &answer {
            let mut memory = self.memory();
            if memory.kills.len() >= CARDS_MAX {
                memory.kills.clear();
            }
            let known = memory.kills.entry(subject.key.clone()).or_insert_with(|| (0, failure.clone()));
            *known = (known.0 + 1, failure.clone());
        }
        match answer.map_err(Inspected::into_failure) {
            Ok((card, json_bytes)) => {
                let kept = card.clone();
                let card = self.remember_card(subject, card, json_bytes);
                let saved = self.off_thread(subject, move |inspector, subject| inspector.save(subject, &kept)).await?;
                if let Err(error) = saved {
                    tracing::debug!(%error, "a model card could not be kept on disk");
                }
                Ok(card)
            }
            Err(failure) => {
                if failure.kind == FailureKind::ModelInvalid {
                    let mut memory = self.memory();
                    if memory.refusals.len() >= CARDS_MAX {
                        memory.refusals.clear();
                    }
                    memory.refusals.insert(subject.key.clone(), (crate::os::clock::instant_now(), failure.clone()));
                }
                Err(failure)
            }
        }
    }

    /// Runs file work off the async threads.
    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        subject: &Subject,
        work: impl FnOnce(&Self, &Subject) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (inspector, owned) = (Arc::clone(self), subject.clone());
        tokio::task::spawn_blocking(move || work(&inspector, &owned)).await.map_err(|error| internal(subject, &error))
    }

    fn program(&self, backend: Backend) -> PathBuf {
        self.worker_dir.join(match backend {
            Backend::Gguf => "ollmlx-worker-gguf",
            Backend::Mlx => "ollmlx-worker-mlx",
        })
    }

    async fn run(&self, subject: &Subject) -> Result<(ModelCard, usize), Inspected> {
        let program = self.program(subject.backend);
        trusted_program::check_worker(&program)
            .map_err(|error| Inspected::Refused(not_started(subject, &program, &error)))?;
        let grants = Grants { read: subject.paths.clone(), socket: None, data_bytes_max: Some(INSPECT_DATA_BYTES_MAX) };
        let mut command = self
            .launcher
            .command(&program, grants)
            .map_err(|error| Inspected::Refused(Failure::new(FailureKind::LoadFailed, error.to_string())))?;
        let mut child = command
            .arg("inspect")
            .args(&subject.paths)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Inspected::Refused(not_started(subject, &program, &error)))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let answer = async {
            let answer = read_capped(stdout, INSPECT_BYTES_MAX).await;
            if answer.len() > INSPECT_BYTES_MAX {
                let _ = child.start_kill();
            }
            (answer, child.wait().await)
        };
        let talk = async { tokio::join!(answer, read_and_drain(stderr, LOG_TAIL_BYTES_MAX)) };
        let Ok(((answer, status), complaint)) = timeout(Duration::from_millis(INSPECT_TIMEOUT_MS), talk).await else {
            // The child is dropped here, which kills it.
            let seconds = INSPECT_TIMEOUT_MS / 1000;
            return Err(Inspected::Refused(invalid(subject, &format!("inspecting it took longer than {seconds} s"))));
        };
        let status = status.map_err(|error| Inspected::Refused(internal(subject, &error)))?;
        if answer.len() > INSPECT_BYTES_MAX {
            let public = "inspecting it brought more facts than any model has";
            return Err(Inspected::Refused(invalid(subject, public)));
        }
        verdict(subject, status, &answer).map(|card| (card, answer.len())).map_err(|failure| {
            let complaint = String::from_utf8_lossy(&complaint);
            let failure = if failure.detail.is_empty() { failure.with_detail(complaint.trim()) } else { failure };
            if is_of_its_own(status) { Inspected::Killed(failure) } else { Inspected::Refused(failure) }
        })
    }

    /// Identifies the program that would answer, so that a new one is asked again.
    fn build(&self, backend: Backend) -> String {
        let stamp = fs::metadata(self.program(backend)).ok().map(|meta| {
            let modified = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            format!("{}-{}", meta.len(), modified.unwrap_or_default().as_nanos())
        });
        format!("{}+{}", env!("CARGO_PKG_VERSION"), stamp.unwrap_or_default())
    }

    /// The card on disk and its length as JSON.
    fn load(&self, subject: &Subject) -> Option<(ModelCard, usize)> {
        let cards = Folder::open(&self.state_dir).and_then(|state| state.child(CARDS)).ok()?;
        let file = cards.find_file(Path::new(&card_file(subject))).and_then(|card| card.open()).ok()?.0;
        let bytes = read_bounded(file, INSPECT_BYTES_MAX as u64).ok()?;
        let mut stored: Value = serde_json::from_slice(&bytes).ok()?;
        let valid = stored["version"] == json!(CARD_VERSION)
            && stored["build"] == json!(self.build(subject.backend))
            && stored["size_bytes"] == json!(subject.size_bytes);
        if !valid {
            return None;
        }
        Some((serde_json::from_value(stored["card"].take()).ok()?, bytes.len()))
    }

    fn save(&self, subject: &Subject, card: &ModelCard) -> io::Result<()> {
        let cards = Folder::make(&self.state_dir)?.make_child(CARDS)?;
        let stored = json!({
            "version": CARD_VERSION,
            "build": self.build(subject.backend),
            "size_bytes": subject.size_bytes,
            "card": card,
        });
        let mut file = cards.draft(".card-", "")?;
        file.write_all(stored.to_string().as_bytes())?;
        file.publish(&card_file(subject))
    }
}

/// Reads to the end or to one byte more than the cap.
async fn read_capped(pipe: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return bytes };
    let mut pipe = pipe.take(bytes_max as u64 + 1);
    // A read error ends the text as an end of file does; the exit status decides what it was worth.
    let _ = pipe.read_to_end(&mut bytes).await;
    bytes
}

/// The first part of a text whose writer must not be stopped by a full pipe.
async fn read_and_drain(pipe: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let bytes = read_capped(Some(&mut pipe), bytes_max).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    bytes
}

/// Why there is no card.
enum Inspected {
    /// The inspector says so, or there is none.
    Refused(Failure),
    /// It crashed.
    Killed(Failure),
}

impl Inspected {
    fn into_failure(self) -> Failure {
        match self {
            Self::Refused(failure) | Self::Killed(failure) => failure,
        }
    }
}

/// Whether a signal ended it that a computation can bring upon itself; what somebody sends says nothing of the file.
fn is_of_its_own(status: ExitStatus) -> bool {
    use nix::sys::signal::Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS};
    let signal = status.signal().and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
    matches!(signal, Some(SIGABRT | SIGBUS | SIGFPE | SIGILL | SIGSEGV | SIGSYS))
}

fn verdict(subject: &Subject, status: ExitStatus, answer: &[u8]) -> Result<ModelCard, Failure> {
    match status.code() {
        Some(0) => serde_json::from_slice(answer).map_err(|error| internal(subject, &error)),
        Some(2) => {
            let failure: Failure = serde_json::from_slice(answer).map_err(|error| internal(subject, &error))?;
            let failure = failure.without_folders();
            Err(if failure.public.contains(&subject.label) {
                failure
            } else {
                Failure { public: format!("{}: {}", subject.label, failure.public), ..failure }
            })
        }
        Some(code) => Err(invalid(subject, &format!("inspecting it ended the inspector with status {code}"))),
        None => {
            let number = status.signal().unwrap_or_default();
            let signal = nix::sys::signal::Signal::try_from(number).map_or("a signal", |signal| signal.as_str());
            Err(invalid(subject, &format!("inspecting it killed the inspector ({signal})")))
        }
    }
}

fn not_started(subject: &Subject, program: &Path, error: &io::Error) -> Failure {
    let backend = subject.backend.as_str();
    let public = if error.kind() == io::ErrorKind::PermissionDenied {
        tracing::error!(%error, "an inspector was not started");
        format!("the worker for {backend} models may not be executed: the server's log says why")
    } else {
        format!("no worker for {backend} models is installed")
    };
    Failure::new(FailureKind::LoadFailed, public).with_detail(format!("{}: {error}", program.display()))
}

fn invalid(subject: &Subject, what: &str) -> Failure {
    Failure::new(FailureKind::ModelInvalid, format!("{}: {what}", subject.label))
}

fn internal(subject: &Subject, error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("{}: the inspector's answer can't be used", subject.label))
        .with_detail(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::worker_dir;
    use super::*;

    #[tokio::test]
    async fn a_file_that_kills_three_inspectors_is_refused_without_a_fourth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, "GGUFKILLS").unwrap();
        let (launcher, attention) = (Launcher::default(), FlashAttention::default());
        let inspector = Arc::new(Inspector::new(worker_dir().into(), launcher, folder.path(), attention));
        let subject = |key: &str| Subject {
            label: "m.gguf".to_owned(),
            key: key.to_owned(),
            size_bytes: 9,
            backend: Backend::Gguf,
            paths: vec![path.clone()],
        };
        let mut refusal = String::new();
        for _ in 0..10 {
            // As after some seconds.
            inspector.memory().refusals.clear();
            refusal = inspector.card(&subject("a")).await.unwrap_err().public;
        }
        let starts = || fs::read_to_string(folder.path().join("m.gguf.log")).unwrap().lines().count();
        assert_eq!(starts(), LOADS_FAILED_MAX as usize);
        let expected =
            "m.gguf: inspecting it killed the inspector (SIGSEGV); it is not tried again until the file changes";
        assert_eq!(refusal, expected);
        assert!(inspector.card(&subject("b")).await.is_err());
        assert_eq!(starts(), LOADS_FAILED_MAX as usize + 1, "another content is another file");
    }
}
