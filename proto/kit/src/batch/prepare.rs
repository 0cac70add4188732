//! Requests are made ready off the engine's thread: chat template, tokens, output grammar.
//!
//! Each of these runs on what strangers wrote, and may be slow. So each request has a thread of its own for it, at a lower
//! priority than the engine's: the system shares time out between them, a quick one doesn't wait behind a slow one, and what
//! generates goes on meanwhile. At most [`PREPARATIONS_MAX`] run at once; more wait in the order they came.
//!
//! A thread can't be ended. So every [`Part`] is bounded by itself (fuel, sizes, slices), and has a time as well: who
//! exceeds it is answered at once, and the thread, which nobody waits for any more, ends at the next [`Watch::check`] or
//! with its fuel. Until then it takes one of the places.
//!
//! To add a kind of work: give it a [`Part`], call [`Watch::enter`] when it begins, and [`Watch::check`] between its slices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ollmlx_proto::{CacheSalt, Failure, FailureKind, Output, Request, TokenId, Work};

use super::embed::EmbedJob;
use super::job::{Ending, Job};
use super::prompt::{Prepared, Renderer};
use super::slices::Seams;
use crate::chat::{ChatFormat, as_deep_thread};
use crate::engine::{EngineFacts, Tokenizer};
use crate::grammar::GrammarFactory;
use crate::limits::{
    DEEP_STACK_BYTES, PREPARATION_NICE, PREPARATIONS_MAX, PREPARE_PART_TIME, REPLAY_TOKEN_TIME, TOKENIZE_BYTES_PER_S,
    TOKENIZE_TIME,
};

/// What of a preparation takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The chat template renders.
    Template,
    /// A text becomes tokens.
    Tokens,
    /// A format becomes a grammar.
    Grammar,
    /// What was produced before passes through it.
    Replay,
}

impl Part {
    /// All that a request may spend on it, however often it comes back to it.
    fn time(self) -> Duration {
        match self {
            Self::Template | Self::Grammar | Self::Replay => PREPARE_PART_TIME,
            Self::Tokens => TOKENIZE_TIME,
        }
    }

    fn too_slow(self, time: Duration) -> Failure {
        let seconds = time.as_secs();
        match self {
            Self::Template => Failure::new(
                FailureKind::TemplateFailed,
                format!("this model's chat template takes longer than {seconds} s for this conversation"),
            ),
            Self::Tokens => Failure::new(
                FailureKind::InvalidRequest,
                format!("the text takes longer than {seconds} s to become tokens; shorten it"),
            ),
            Self::Grammar => Failure::new(
                FailureKind::GrammarFailed,
                format!("the format takes longer than {seconds} s to compile; make the schema simpler"),
            ),
            Self::Replay => Failure::new(
                FailureKind::Internal,
                format!("an answer that another process began takes longer than {seconds} s to be taken up"),
            ),
        }
    }
}

/// A preparation as its thread and the batcher see it.
#[derive(Debug)]
pub(super) struct Watch {
    over: AtomicBool,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    part: Part,
    since: Instant,
    /// By part, before `since`.
    spent: [Duration; 4],
    /// More time, for the bytes that have become tokens, and the tokens that were produced before.
    earned: Duration,
}

impl Clock {
    fn spent(&self, now: Instant) -> Duration {
        self.spent[self.part as usize] + now.saturating_duration_since(self.since)
    }

    fn time(&self) -> Duration {
        match self.part {
            Part::Tokens | Part::Replay => self.part.time() + self.earned,
            Part::Template | Part::Grammar => self.part.time(),
        }
    }
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        let clock = Clock { part: Part::Template, since: now, spent: [Duration::ZERO; 4], earned: Duration::ZERO };
        Self { over: AtomicBool::new(false), clock: Mutex::new(clock) }
    }

    /// What comes now is another part.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn enter(&self, part: Part) -> Result<(), Failure> {
        let now = Instant::now();
        {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            let before = clock.part;
            clock.spent[before as usize] = clock.spent(now);
            (clock.part, clock.since) = (part, now);
        }
        self.check()
    }

    /// Whether to go on with the next slice.
    ///
    /// # Errors
    /// Nobody waits for it any more, or its time is over.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.over.load(Ordering::Relaxed) {
            return Err(Failure::new(FailureKind::Internal, "nobody waits for this request"));
        }
        self.too_slow(Instant::now()).map_or(Ok(()), Err)
    }

    /// Why it is not to be waited for, where that is so.
    pub(super) fn too_slow(&self, now: Instant) -> Option<Failure> {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        (clock.spent(now) > clock.time()).then(|| clock.part.too_slow(clock.time()))
    }

    /// So many bytes become tokens now.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn slice(&self, bytes: usize) -> Result<(), Failure> {
        self.earn(Duration::from_secs_f64(bytes as f64 / TOKENIZE_BYTES_PER_S))
    }

    /// A token that was produced before is taken up now.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn replayed(&self) -> Result<(), Failure> {
        self.earn(REPLAY_TOKEN_TIME)
    }

    fn earn(&self, time: Duration) -> Result<(), Failure> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).earned += time;
        self.check()
    }

    #[cfg(test)]
    pub(super) fn part(&self) -> Part {
        self.clock.lock().unwrap().part
    }

    /// Nobody waits any more.
    pub(super) fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A request that needs only the engine now.
pub(super) enum Ready {
    /// It needs not even that.
    Said(Output),
    Embed(EmbedJob),
    Job(Box<ReadyJob>),
}

/// A job, and what its slot must hold.
pub(super) struct ReadyJob {
    pub(super) job: Job,
    /// The prompt, and behind it what an earlier worker produced.
    pub(super) tokens: Vec<TokenId>,
    pub(super) prompt_tokens: usize,
    /// Whose caches it may share.
    pub(super) salt: CacheSalt,
    /// What the earlier worker had no time to tell.
    pub(super) missing: Vec<Output>,
    pub(super) ending: Option<Ending>,
    /// For the exact replay of what was produced; see [`ollmlx_proto::ResumePoint`].
    pub(super) produced: usize,
    pub(super) replay_exact: Duration,
}

/// What all preparations share.
pub(super) struct Bench {
    pub(super) facts: EngineFacts,
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) seams: Seams,
    pub(super) format: ChatFormat,
    pub(super) grammars: GrammarFactory,
}

impl Bench {
    fn prepare(&self, request: &Request, arrived: Instant, watch: &Watch) -> Result<Ready, Failure> {
        let renderer = Renderer { bench: self, watch, asked_at: request.asked_at };
        if let Work::Embed(embed) = &request.work {
            return EmbedJob::new(request, embed, &renderer, arrived).map(Ready::Embed);
        }
        let prompt = match renderer.prepare(request)? {
            Prepared::Rendered(text) => return Ok(Ready::Said(Output::Rendered(text))),
            Prepared::Prompt(prompt) => prompt,
        };
        watch.enter(Part::Grammar)?;
        let grammar = self.grammars.compile(&request.format)?;
        watch.check()?;
        let mut tokens = prompt.tokens.clone();
        let prompt_tokens = tokens.len();
        let mut job = Job::new(request, prompt, grammar, arrived);
        watch.enter(Part::Replay)?;
        let (ending, missing) = super::replay(&mut job, request, &mut tokens, &self.facts.vocab, watch)?;
        let (produced, salt) = (request.progress.produced.len(), request.cache_salt);
        let replay_exact = Duration::from_millis(u64::from(request.progress.replay_exact_ms));
        Ok(Ready::Job(Box::new(ReadyJob { job, tokens, prompt_tokens, salt, missing, ending, produced, replay_exact })))
    }
}

type Outcome = (Arc<Watch>, Result<Ready, Failure>);

/// The threads. Dropped, it leaves those that run to their end.
pub(super) struct Preparer {
    bench: Arc<Bench>,
    running: usize,
    outcomes: Receiver<Outcome>,
    /// Has room for all that can run.
    done: SyncSender<Outcome>,
}

impl Preparer {
    pub(super) fn new(bench: Bench) -> Self {
        let (done, outcomes) = sync_channel(PREPARATIONS_MAX);
        Self { bench: Arc::new(bench), running: 0, outcomes, done }
    }

    pub(super) fn has_room(&self) -> bool {
        self.running < PREPARATIONS_MAX
    }

    /// Starts a preparation; its outcome comes by [`Preparer::next`], whatever happens to it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn begin(&mut self, request: Arc<Request>, arrived: Instant) -> Result<Arc<Watch>, Failure> {
        let watch = Arc::new(Watch::new(Instant::now()));
        let (bench, done, seen) = (Arc::clone(&self.bench), self.done.clone(), Arc::clone(&watch));
        let work = move || {
            be_nice();
            let prepare = || as_deep_thread(|| bench.prepare(&request, arrived, &seen));
            let outcome = catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|_| {
                Err(Failure::new(FailureKind::Internal, "the worker could not run this")
                    .with_detail("a panic in a template, a tokenizer or a grammar"))
            });
            // The batcher may be gone.
            let _unheard = done.send((seen, outcome));
        };
        std::thread::Builder::new().name("prepare".to_owned()).stack_size(DEEP_STACK_BYTES).spawn(work).map_err(
            |error| Failure::new(FailureKind::Internal, "the worker could not run this").with_detail(error.to_string()),
        )?;
        self.running += 1;
        Ok(watch)
    }

    /// The next outcome, of those that nobody waits for as well; `None` where none comes within `patience`.
    pub(super) fn next(&mut self, patience: Duration) -> Option<Outcome> {
        if self.running == 0 {
            return None;
        }
        let outcome = match patience {
            Duration::ZERO => self.outcomes.try_recv().ok()?,
            patience => self.outcomes.recv_timeout(patience).ok()?,
        };
        self.running -= 1;
        Some(outcome)
    }
}

/// Takes less of a processor than the engine's threads wherever they want the same one.
fn be_nice() {
    // On Linux this is the thread's own; elsewhere it would be the whole process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(PREPARATION_NICE) {
        crate::tell::tell(format_args!("a preparation runs at the engine's priority: {error}"));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = PREPARATION_NICE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_its_time_however_often_it_comes_back() {
        let begun = Instant::now();
        let watch = Watch::new(begun);
        assert_eq!(watch.too_slow(begun + PREPARE_PART_TIME), None, "at the limit");
        let late = watch.too_slow(begun + PREPARE_PART_TIME + Duration::from_millis(1)).expect("past it");
        assert_eq!(late.kind, FailureKind::TemplateFailed);
        watch.clock.lock().unwrap().spent[Part::Grammar as usize] = PREPARE_PART_TIME - Duration::from_millis(1);
        watch.enter(Part::Grammar).expect("there is a little left");
        let late = watch.too_slow(Instant::now() + Duration::from_millis(2)).expect("and now there is none");
        assert_eq!(late.kind, FailureKind::GrammarFailed);
        watch.give_up();
        assert!(watch.check().is_err(), "it ends between two slices");
    }
}
