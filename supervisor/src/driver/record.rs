//! The last events of the driver, so that what happened in the field can be stepped through: the scheduler is a function of
//! its settings, its seed and these.
//!
//! A record is lines of JSON. The first one has the settings and the seed, each further one an event, its time and what
//! was decided, so that a replay can tell whether it decides the same. It holds [`RECORD_EVENTS_MAX`] events and
//! [`RECORD_BYTES_MAX`] bytes; where there were more, it begins late and says so, and a replay may decide otherwise.
//!
//! Decision: events and decisions are kept as the lines that they become. Rejected: as values, which hold prompts and models
//! and have no size that can be bounded.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits::{RECORD_BYTES_MAX, RECORD_EVENTS_MAX};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::identity::Identity;
use super::record_line::{EventLine, RecordLine, decision};
use crate::scheduler::life::Timeouts;
use crate::scheduler::{Effect, Event, Outbox, Scheduler, SchedulerConfig};
use crate::types::{KeepAlive, Mono, Shrink};

/// Of the lines.
const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    version: String,
    seed: u64,
    /// Events before the first one.
    forgotten: u64,
    settings: Settings,
}

/// [`SchedulerConfig`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    queue_max: usize,
    workers_max: usize,
    memory_limit: Option<u64>,
    heeds_pressure: bool,
    shrink: String,
    /// `u64::MAX` is for ever, 0 not at all.
    keep_alive_ms: u64,
    queue_wait_ms: u64,
    yield_after_ms: u64,
    /// In the order of [`Timeouts`].
    timeouts_ms: [u64; 9],
}

impl Settings {
    fn of(config: &SchedulerConfig) -> Self {
        let Timeouts { hello_ms, load_stall_ms, silence_ms, ask_ms, term_ms, kill_ms, drain_ms, relief_ms, linger_ms } =
            config.timeouts;
        Self {
            queue_max: config.queue_max,
            workers_max: config.workers_max,
            memory_limit: config.memory_limit,
            heeds_pressure: config.heeds_pressure,
            shrink: match config.shrink {
                Shrink::Nothing => "nothing",
                Shrink::Slots => "slots",
                Shrink::Context => "context",
            }
            .to_owned(),
            keep_alive_ms: match config.default_keep_alive {
                KeepAlive::ForMs(ms) => ms,
                KeepAlive::Forever => u64::MAX,
                KeepAlive::Unload => 0,
            },
            queue_wait_ms: config.queue_wait_ms,
            yield_after_ms: config.yield_after_ms,
            timeouts_ms: [
                hello_ms,
                load_stall_ms,
                silence_ms,
                ask_ms,
                term_ms,
                kill_ms,
                drain_ms,
                relief_ms,
                linger_ms,
            ],
        }
    }

    fn config(&self) -> SchedulerConfig {
        let [hello_ms, load_stall_ms, silence_ms, ask_ms, term_ms, kill_ms, drain_ms, relief_ms, linger_ms] =
            self.timeouts_ms;
        SchedulerConfig {
            queue_max: self.queue_max,
            workers_max: self.workers_max,
            memory_limit: self.memory_limit,
            heeds_pressure: self.heeds_pressure,
            shrink: match self.shrink.as_str() {
                "context" => Shrink::Context,
                "slots" => Shrink::Slots,
                _ => Shrink::Nothing,
            },
            default_keep_alive: match self.keep_alive_ms {
                0 => KeepAlive::Unload,
                u64::MAX => KeepAlive::Forever,
                ms => KeepAlive::ForMs(ms),
            },
            queue_wait_ms: self.queue_wait_ms,
            yield_after_ms: self.yield_after_ms,
            timeouts: Timeouts {
                hello_ms,
                load_stall_ms,
                silence_ms,
                ask_ms,
                term_ms,
                kill_ms,
                drain_ms,
                relief_ms,
                linger_ms,
            },
        }
    }
}

/// Keeps the last events.
pub(super) struct Recorder {
    seed: u64,
    config: SchedulerConfig,
    lines: VecDeque<Arc<str>>,
    bytes: usize,
    forgotten: u64,
}

impl Recorder {
    pub(super) fn new(config: SchedulerConfig, seed: u64) -> Self {
        Self { seed, config, lines: VecDeque::new(), bytes: 0, forgotten: 0 }
    }

    /// An event that is about to be decided. `identity` is that of the request that arrives.
    pub(super) fn begin(now: Mono, event: &Event, identity: Option<Identity>) -> RecordLine {
        RecordLine { at_ns: now.0, event: EventLine::of(event, identity), decisions: Vec::new() }
    }

    /// What was decided.
    pub(super) fn end(&mut self, mut line: RecordLine, effects: &[Effect]) {
        line.decisions = effects.iter().map(decision).collect();
        match serde_json::to_string(&line) {
            Ok(text) => self.keep(text.into()),
            // A gap is no record; whatever came before is worth nothing with it.
            Err(error) => {
                tracing::error!(%error, "an event could not be recorded");
                self.forgotten += 1 + self.lines.len() as u64;
                self.lines.clear();
                self.bytes = 0;
            }
        }
    }

    fn keep(&mut self, line: Arc<str>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > RECORD_EVENTS_MAX || self.bytes > RECORD_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
            self.forgotten += 1;
        }
    }

    /// All that is kept.
    pub(super) fn record(&self) -> Record {
        let header = Header {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: self.seed,
            forgotten: self.forgotten,
            settings: Settings::of(&self.config),
        };
        let header = serde_json::to_string(&header).unwrap_or_default();
        Record { header, lines: self.lines.iter().cloned().collect() }
    }
}

/// The last events of a driver, as text without prompts, outputs or secrets.
#[derive(Clone, Debug)]
pub struct Record {
    header: String,
    lines: Vec<Arc<str>>,
}

impl Record {
    /// Lines of JSON.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: usize = self.lines.iter().map(|line| line.len() + 1).sum();
        let mut text = String::with_capacity(self.header.len() + 1 + bytes);
        for line in std::iter::once(self.header.as_str()).chain(self.lines.iter().map(|line| &**line)) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Why a text can't be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It is empty.
    #[error("there is no first line")]
    Empty,
    /// A later or an earlier server wrote it.
    #[error("it has format {0}, and this is for format {FORMAT}")]
    Format(u32),
    /// A line is none of a record.
    #[error("line {number} is none of a record")]
    Line {
        /// Which, counted from 1.
        number: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// One event, stepped through again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedStep {
    /// When it came.
    pub at: Mono,
    /// As it is written down.
    pub event: String,
    /// What was decided then.
    pub recorded: Vec<String>,
    /// What is decided now.
    pub decided: Vec<String>,
}

/// A record, stepped through again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Who wrote it.
    pub version: String,
    /// Events before the first one that are not in it: where there are any, what is decided may differ.
    pub forgotten: u64,
    /// In order.
    pub steps: Vec<ReplayedStep>,
}

/// Steps a new scheduler through the record.
///
/// # Errors
/// The text is no record.
pub fn replay(text: &str) -> Result<Replay, ReplayError> {
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or(ReplayError::Empty)?;
    let header: Header = serde_json::from_str(first).map_err(|source| ReplayError::Line { number: 1, source })?;
    if header.format != FORMAT {
        return Err(ReplayError::Format(header.format));
    }
    let mut scheduler = Scheduler::new(header.settings.config(), header.seed);
    let mut steps = Vec::new();
    for (index, text) in lines {
        let at_line = |source| ReplayError::Line { number: index + 1, source };
        let RecordLine { at_ns, event, decisions: recorded } = serde_json::from_str(text).map_err(at_line)?;
        let told = serde_json::to_string(&event).map_err(at_line)?;
        let mut out = Outbox::default();
        scheduler.step(Mono(at_ns), event.event(), &mut out);
        let decided = out.0.iter().map(decision).collect();
        steps.push(ReplayedStep { at: Mono(at_ns), event: told, recorded, decided });
    }
    Ok(Replay { version: header.version, forgotten: header.forgotten, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(SchedulerConfig::default(), 7)
    }

    #[test]
    fn as_many_events_are_kept_as_there_may_be_and_the_oldest_goes_first() {
        let mut recorder = recorder();
        for at_ns in 0..=RECORD_EVENTS_MAX as u64 {
            let line = Recorder::begin(Mono(at_ns), &Event::DeadlineElapsed, None);
            recorder.end(line, &[]);
            assert_eq!(recorder.forgotten, u64::from(at_ns == RECORD_EVENTS_MAX as u64));
        }
        let replay = replay(&recorder.record().text()).unwrap();
        assert_eq!((replay.forgotten, replay.steps.len(), replay.steps[0].at), (1, RECORD_EVENTS_MAX, Mono(1)));
    }

    #[test]
    fn as_many_bytes_are_kept_as_there_may_be() {
        let mut recorder = recorder();
        let half = || Arc::from("x".repeat(RECORD_BYTES_MAX / 2));
        recorder.keep(half());
        recorder.keep(half());
        assert_eq!((recorder.lines.len(), recorder.forgotten), (2, 0));
        recorder.keep(Arc::from("y"));
        assert_eq!((recorder.lines.len(), recorder.forgotten), (2, 1));
    }

    #[test]
    fn settings_come_back_as_they_were() {
        for (shrink, default_keep_alive) in [
            (Shrink::Nothing, KeepAlive::Forever),
            (Shrink::Slots, KeepAlive::Unload),
            (Shrink::Context, KeepAlive::ForMs(5)),
        ] {
            let mut config = SchedulerConfig { shrink, default_keep_alive, queue_max: 3, ..SchedulerConfig::default() };
            config.timeouts.linger_ms = 77;
            let text = serde_json::to_string(&Settings::of(&config)).unwrap();
            let back = serde_json::from_str::<Settings>(&text).unwrap().config();
            assert_eq!(format!("{config:?}"), format!("{back:?}"));
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        assert!(matches!(replay(""), Err(ReplayError::Empty)));
        assert!(matches!(replay("{}"), Err(ReplayError::Line { number: 1, .. })));
        let text = recorder().record().text();
        assert!(matches!(replay(&(text.clone() + "{}\n")), Err(ReplayError::Line { number: 2, .. })));
        let other = text.replace("\"format\":1", "\"format\":2");
        assert!(matches!(replay(&other), Err(ReplayError::Format(2))));
        assert_eq!(replay(&text).unwrap().steps, []);
    }
}
