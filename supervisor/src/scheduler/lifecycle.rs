//! The life of one worker as a value: one enum, one `next`, every pair of state and input legal or not.
//!
//! ```text
//! ABSENT ─Wanted─► SPAWNING ─Spawned─► HANDSHAKING ─Hello─► LOADING ─Ready─► IDLE ─Granted─► BUSY
//!   ▲                 │                     │                  │              │ ◄─last Ended─  │ Drain
//!   │                 │ failed              │ bad, late        │ stall, fail  │ Leave, expired ▼
//!   │                 │                     └────────┬─────────┴──────────────┘            DRAINING
//!   │                 │                              ▼                                         │
//!   │                 │            EXITING  (ask → TERM → KILL, a deadline on each) ◄─ last Ended, late
//!   │                 ▼                              │ Exited
//!   │              settle ◄──────────────────────────┘   (also on Exited from any state with a process)
//!   │                 │
//!   ├── asked for ────┤
//!   ├── BACKOFF ◄─────┤ failed
//!   └── QUARANTINED ◄─┘ failed too often            (each returns to ABSENT in time, or pardoned)
//! ```
//!
//! *Ready* is not a place but a message and a predicate: a worker [`State::accepts_work`] in `IDLE` and `BUSY`. What happens on
//! `settle` (release, tally, backoff) is the scheduler's business, since it needs the model's history.

use std::num::NonZeroUsize;

use super::SchedulerConfig;
use super::effect::Push;
use super::event::Mono;

/// Where a worker is in its life. Deadlines are part of the state, so no timer can be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process, none wanted.
    Absent,
    /// The driver is asked for a process and answers before anything else happens.
    Spawning,
    /// Started, has not said hello.
    Handshaking {
        /// Process.
        pid: u32,
        /// Late after this.
        deadline: Mono,
    },
    /// Loads.
    Loading {
        /// Process.
        pid: u32,
        /// Stalled after this; progress pushes it.
        deadline: Mono,
    },
    /// Ready, without work.
    Idle {
        /// Process.
        pid: u32,
        /// Leaves then; `None` is never.
        expires_at: Option<Mono>,
    },
    /// Works.
    Busy {
        /// Process.
        pid: u32,
        /// Requests it has.
        in_flight: NonZeroUsize,
        /// Taken for hung after this; every sign of life pushes it.
        deadline: Mono,
    },
    /// Ends what it has, gets nothing more.
    Draining {
        /// Process.
        pid: u32,
        /// Requests it has.
        in_flight: NonZeroUsize,
        /// Patience ends then.
        deadline: Mono,
    },
    /// Shown the door.
    Exiting {
        /// Process.
        pid: u32,
        /// How firmly so far.
        rung: Push,
        /// The next rung follows then.
        deadline: Mono,
    },
    /// Rests after a failure.
    Backoff {
        /// May be wanted again then.
        until: Mono,
    },
    /// Rests after many failures.
    Quarantined {
        /// One more attempt then.
        until: Mono,
    },
}

/// What a state hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Someone wants the model, and there is room.
    Wanted,
    /// It has a process.
    Spawned {
        /// Which.
        pid: u32,
    },
    /// It could not be started.
    SpawnFailed,
    /// It dialled in.
    Hello,
    /// Its load goes on.
    LoadProgress,
    /// Its load is done; it leaves then, if nothing comes.
    Ready {
        /// Keep-alive from now.
        expires_at: Option<Mono>,
    },
    /// Its load failed and it leaves by itself.
    LoadFailed,
    /// It gets a request.
    Granted,
    /// A sign of life.
    Heard,
    /// It ended a request; if that was the last it leaves then.
    Ended {
        /// Keep-alive from now.
        expires_at: Option<Mono>,
    },
    /// The keep-alive of an idle worker changes.
    Rearm {
        /// The new one.
        expires_at: Option<Mono>,
    },
    /// It shall end what it has and go.
    Drain {
        /// Patience.
        deadline: Mono,
    },
    /// It shall go, without work to end.
    Leave,
    /// It shall go at once.
    Kill,
    /// It broke the protocol or was a stranger.
    Misbehaved,
    /// Its socket closed.
    LinkClosed,
    /// It is reaped.
    Exited,
    /// The state's own deadline has come.
    Elapsed,
    /// Its past is forgiven.
    Pardoned,
}

/// Where an input leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To this state, showing the door as said.
    To(State, Option<Push>),
    /// The process is gone, or never came: the scheduler settles.
    Settle,
    /// It is legal and changes nothing.
    Stay,
    /// It can't happen (I4): nothing changes, and it is reported.
    Never,
}

impl State {
    /// For logs and listings.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Spawning => "spawning",
            Self::Handshaking { .. } => "handshaking",
            Self::Loading { .. } => "loading",
            Self::Idle { .. } => "idle",
            Self::Busy { .. } => "busy",
            Self::Draining { .. } => "draining",
            Self::Exiting { .. } => "exiting",
            Self::Backoff { .. } => "backoff",
            Self::Quarantined { .. } => "quarantined",
        }
    }

    /// Its process, if it has one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match *self {
            Self::Handshaking { pid, .. }
            | Self::Loading { pid, .. }
            | Self::Idle { pid, .. }
            | Self::Busy { pid, .. }
            | Self::Draining { pid, .. }
            | Self::Exiting { pid, .. } => Some(pid),
            Self::Absent | Self::Spawning | Self::Backoff { .. } | Self::Quarantined { .. } => None,
        }
    }

    /// Whether it has, or is about to have, a process: it counts and its memory is reserved.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Spawning) || self.pid().is_some()
    }

    /// Whether it may be granted a request.
    #[must_use]
    pub fn accepts_work(&self) -> bool {
        matches!(self, Self::Idle { .. } | Self::Busy { .. })
    }

    /// Requests it has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Busy { in_flight, .. } | Self::Draining { in_flight, .. } => in_flight.get(),
            _ => 0,
        }
    }

    /// When something must happen (I3: only `Absent`, `Spawning` and a pinned `Idle` have none).
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match *self {
            Self::Absent | Self::Spawning => None,
            Self::Idle { expires_at, .. } => expires_at,
            Self::Handshaking { deadline, .. }
            | Self::Loading { deadline, .. }
            | Self::Busy { deadline, .. }
            | Self::Draining { deadline, .. }
            | Self::Exiting { deadline, .. } => Some(deadline),
            Self::Backoff { until } | Self::Quarantined { until } => Some(until),
        }
    }

    /// Where `input` leads. Changes nothing itself.
    #[must_use]
    pub fn next(&self, input: Input, now: Mono, config: &SchedulerConfig) -> Step {
        let exiting = |pid, rung| {
            let patience = match rung {
                Push::Ask => config.ask_timeout_ms,
                Push::Term => config.term_timeout_ms,
                Push::Kill => config.kill_timeout_ms,
            };
            Step::To(Self::Exiting { pid, rung, deadline: now.plus_ms(patience) }, Some(rung))
        };
        let silent_at = now.plus_ms(config.silence_ms);
        match (*self, input) {
            // ABSENT: Wanted.
            (Self::Absent, Input::Wanted) => Step::To(Self::Spawning, None),
            (Self::Absent, Input::Pardoned | Input::Leave | Input::Kill) => Step::Stay,

            // SPAWNING: Spawned, SpawnFailed.
            (Self::Spawning, Input::Spawned { pid }) => {
                Step::To(Self::Handshaking { pid, deadline: now.plus_ms(config.hello_timeout_ms) }, None)
            }
            (Self::Spawning, Input::SpawnFailed) => Step::Settle,

            // HANDSHAKING: Hello; bad, late, lost, unwanted.
            (Self::Handshaking { pid, .. }, Input::Hello) => {
                Step::To(Self::Loading { pid, deadline: now.plus_ms(config.load_stall_ms) }, None)
            }
            // Nobody can be asked who has not dialled in.
            (Self::Handshaking { pid, .. }, Input::Leave) => exiting(pid, Push::Term),

            // LOADING: Ready, LoadFailed; progress pushes the deadline; stall, lost, unwanted.
            (Self::Loading { pid, .. }, Input::LoadProgress | Input::Heard) => {
                Step::To(Self::Loading { pid, deadline: now.plus_ms(config.load_stall_ms) }, None)
            }
            (Self::Loading { pid, .. }, Input::Ready { expires_at }) => Step::To(Self::Idle { pid, expires_at }, None),
            (Self::Loading { pid, .. }, Input::LoadFailed) => exiting(pid, Push::Ask),
            (Self::Loading { pid, .. }, Input::Leave | Input::Elapsed) => exiting(pid, Push::Term),

            // IDLE: Granted; expired, unwanted.
            (Self::Idle { pid, .. }, Input::Granted) => {
                Step::To(Self::Busy { pid, in_flight: NonZeroUsize::MIN, deadline: silent_at }, None)
            }
            (Self::Idle { pid, .. }, Input::Rearm { expires_at }) => Step::To(Self::Idle { pid, expires_at }, None),
            (Self::Idle { .. }, Input::Heard) => Step::Stay,
            (Self::Idle { pid, .. }, Input::Leave | Input::Drain { .. } | Input::Elapsed) => exiting(pid, Push::Ask),

            // BUSY: more, fewer, none; drain; silence.
            (Self::Busy { pid, in_flight, deadline }, Input::Granted) => {
                Step::To(Self::Busy { pid, in_flight: in_flight.saturating_add(1), deadline }, None)
            }
            (Self::Busy { pid, in_flight, .. }, Input::Heard) => {
                Step::To(Self::Busy { pid, in_flight, deadline: silent_at }, None)
            }
            (Self::Busy { pid, in_flight, .. }, Input::Ended { expires_at }) => {
                let left = NonZeroUsize::new(in_flight.get() - 1);
                let state = left.map_or(Self::Idle { pid, expires_at }, |in_flight| Self::Busy {
                    pid,
                    in_flight,
                    deadline: silent_at,
                });
                Step::To(state, None)
            }
            (Self::Busy { pid, in_flight, .. }, Input::Drain { deadline }) => {
                Step::To(Self::Draining { pid, in_flight, deadline }, None)
            }
            (Self::Busy { .. }, Input::Rearm { .. }) => Step::Stay,
            (Self::Busy { pid, .. }, Input::Elapsed) => exiting(pid, Push::Kill),

            // DRAINING: fewer, none; patience over. Grants are illegal here (I5).
            (Self::Draining { pid, in_flight, deadline }, Input::Ended { .. }) => {
                match NonZeroUsize::new(in_flight.get() - 1) {
                    Some(in_flight) => Step::To(Self::Draining { pid, in_flight, deadline }, None),
                    None => exiting(pid, Push::Ask),
                }
            }
            (Self::Draining { pid, in_flight, deadline: old }, Input::Drain { deadline }) => {
                Step::To(Self::Draining { pid, in_flight, deadline: old.min(deadline) }, None)
            }
            (Self::Draining { .. }, Input::Heard | Input::Rearm { .. }) => Step::Stay,
            (Self::Draining { pid, .. }, Input::Elapsed) => exiting(pid, Push::Term),

            // EXITING: the next rung; Exited settles. Late words change nothing.
            (Self::Exiting { pid, rung, .. }, Input::Elapsed) => exiting(
                pid,
                match rung {
                    Push::Ask => Push::Term,
                    Push::Term | Push::Kill => Push::Kill,
                },
            ),
            (Self::Exiting { rung: Push::Kill, .. }, Input::Kill | Input::Misbehaved) => Step::Stay,
            (
                Self::Exiting { .. },
                Input::Hello
                | Input::LoadProgress
                | Input::Ready { .. }
                | Input::LoadFailed
                | Input::Heard
                | Input::Ended { .. }
                | Input::Leave
                | Input::Drain { .. }
                | Input::LinkClosed,
            ) => Step::Stay,

            // BACKOFF, QUARANTINED: time, or a pardon.
            (Self::Backoff { .. } | Self::Quarantined { .. }, Input::Elapsed | Input::Pardoned) => {
                Step::To(Self::Absent, None)
            }
            (Self::Backoff { .. } | Self::Quarantined { .. }, Input::Leave | Input::Kill) => Step::Stay,

            // Whoever has a process can lose it, break the protocol, be late, or be killed.
            (state, Input::Exited) if state.pid().is_some() => Step::Settle,
            (_, Input::Pardoned) => Step::Stay,
            (state, Input::LinkClosed | Input::Misbehaved | Input::Kill | Input::Elapsed) => {
                state.pid().map_or(Step::Never, |pid| exiting(pid, Push::Kill))
            }
            (
                _,
                Input::Wanted
                | Input::Spawned { .. }
                | Input::SpawnFailed
                | Input::Hello
                | Input::LoadProgress
                | Input::Ready { .. }
                | Input::LoadFailed
                | Input::Granted
                | Input::Heard
                | Input::Ended { .. }
                | Input::Rearm { .. }
                | Input::Drain { .. }
                | Input::Leave
                | Input::Exited,
            ) => Step::Never,
        }
    }
}
