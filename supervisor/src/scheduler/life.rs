//! The life of one worker as a value: a state enum with the data of each state, and one total function.
//!
//! ```text
//! ABSENT ─Wanted─► SPAWNING ─Spawned─► HANDSHAKING ─Hello─► LOADING ─Ready─► IDLE ─Granted─► BUSY
//!   ▲                 │                     │                  │              │ ◄─last Ended─  │ drain
//!   │                 │ failed              │ bad, late        │ stall, fail  │ expired, drain ▼
//!   │                 │                     └────────┬─────────┴──────────────┘            DRAINING
//!   │                 │                              ▼                                         │
//!   │                 │            EXITING  (ask → TERM → KILL, a deadline on each) ◄─ last Ended, late
//!   │                 ▼                              │ Exited
//!   │              settle ◄──────────────────────────┘   (also on Exited from any live state)
//!   ├── asked for ────┤
//!   ├── BACKOFF ◄─────┤ failed
//!   └── QUARANTINED ◄─┘ failed too often, or cannot ever work        (each returns to ABSENT in time)
//! ```
//!
//! All data is `Copy`, so the next state is computed from the present one. This file knows no queue, no ledger and no
//! request; it says which *action* a transition asks for, and `Scheduler` performs it. An illegal pair is `None` and
//! changes nothing (I4); frames of an old incarnation are dropped before they come here.
//!
//! Decision: a lost link doesn't kill at once but lingers for [`Timeouts::linger_ms`]: the process is most likely dying,
//! and its own exit status is the better cause for the client. Rejected: KILL at once, after which SIGKILL by us and
//! SIGKILL by the kernel look the same.
//!
//! Decision: draining for room, reload or unload is patient as long as the worker is heard of; draining because the
//! server leaves, or because of memory, has a fixed end.

use std::num::NonZeroU32;

use super::effect::Push;

use crate::types::{Cause, Mono};

/// How long each state may last, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To the hello.
    pub hello_ms: u64,
    /// Without progress of a load.
    pub load_stall_ms: u64,
    /// Without a sign of life of a busy worker.
    pub silence_ms: u64,
    /// From the question to TERM.
    pub ask_ms: u64,
    /// From TERM to KILL.
    pub term_ms: u64,
    /// From KILL to the next KILL.
    pub kill_ms: u64,
    /// For running requests when the worker must go.
    pub drain_ms: u64,
    /// For running requests when the worker must go for its memory.
    pub relief_ms: u64,
    /// From the end of the link to KILL.
    pub linger_ms: u64,
}

/// Why a busy worker takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReason {
    /// Another model has waited too long for its place.
    Room,
    /// The next request needs it loaded in another way.
    Reload,
    /// It was asked for, or its time is over.
    Unload,
    /// Memory is short, and it has nothing to do.
    Relief,
    /// It holds more memory than there is.
    OverBudget,
    /// It holds more memory than its model's own limit allows.
    OverOwnLimit,
    /// The server leaves.
    Leaving,
}

impl DrainReason {
    /// Whether its requests may take as long as they live.
    #[must_use]
    pub fn is_patient(self) -> bool {
        matches!(self, Self::Room | Self::Reload | Self::Unload | Self::Relief)
    }

    /// Whether it must go for its memory, and soon.
    #[must_use]
    pub fn is_hurry(self) -> bool {
        matches!(self, Self::OverBudget | Self::OverOwnLimit)
    }

    /// For the log.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Room => "another model needs its place",
            Self::Reload => "it is to be loaded anew",
            Self::Unload => "it was asked to unload",
            Self::Relief => "memory is short and it has nothing to do",
            Self::OverBudget => "memory is short and it takes the most above its budget",
            Self::OverOwnLimit => "it is above its own limit",
            Self::Leaving => "the server leaves",
        }
    }
}

/// How far one is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The link is gone; it is probably dying by itself.
    Linger,
    /// It was pushed like this.
    Pushed(Push),
}

/// Where a model rests after its process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nowhere: it may be wanted at once.
    None,
    /// For a while.
    Backoff(Mono),
    /// For a longer while, in which requests are refused.
    Quarantine(Mono),
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process.
    Absent,
    /// The driver has been told to start one and answers before anything else happens.
    Spawning,
    /// Started, not heard of.
    Handshaking {
        /// Process.
        pid: u32,
        /// For the hello.
        deadline: Mono,
    },
    /// Loads.
    Loading {
        /// Process.
        pid: u32,
        /// For the next progress.
        deadline: Mono,
    },
    /// Ready, without work.
    Idle {
        /// Process.
        pid: u32,
        /// When it goes; `None` is pinned.
        expires_at: Option<Mono>,
    },
    /// Works.
    Busy {
        /// Process.
        pid: u32,
        /// Requests it holds.
        in_flight: NonZeroU32,
        /// For the next sign of life.
        deadline: Mono,
    },
    /// Works off what it has and takes no more.
    Draining {
        /// Process.
        pid: u32,
        /// Requests it holds.
        in_flight: NonZeroU32,
        /// Why.
        reason: DrainReason,
        /// For the next sign of life, or for good.
        deadline: Mono,
    },
    /// On its way out.
    Exiting {
        /// Process.
        pid: u32,
        /// How far.
        rung: Rung,
        /// For the next rung.
        deadline: Mono,
    },
    /// Failed; rests.
    Backoff {
        /// How long.
        until: Mono,
    },
    /// Failed too often; refused.
    Quarantined {
        /// How long.
        until: Mono,
    },
}

impl State {
    /// Lower-case name for logs and views.
    #[must_use]
    pub fn name(self) -> &'static str {
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

    /// Whether a process may exist: from `Wanted` until it is reaped (I1, I2).
    #[must_use]
    pub fn has_process(self) -> bool {
        !matches!(self, Self::Absent | Self::Backoff { .. } | Self::Quarantined { .. })
    }

    /// Whether requests may be granted: *ready* as a predicate.
    #[must_use]
    pub fn accepts_work(self) -> bool {
        matches!(self, Self::Idle { .. } | Self::Busy { .. })
    }

    /// Whether it is wanted and not yet ready.
    #[must_use]
    pub fn is_starting(self) -> bool {
        matches!(self, Self::Spawning | Self::Handshaking { .. } | Self::Loading { .. })
    }

    /// Whether its memory will be free without anyone doing more.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Exiting { .. })
    }

    /// Whether its memory is free soon: one that may finish what it runs, however long, is not counted on.
    #[must_use]
    pub fn frees_soon(self) -> bool {
        match self {
            Self::Draining { reason, .. } => !reason.is_patient(),
            state => matches!(state, Self::Exiting { .. }),
        }
    }

    /// Whether it computes, and can be told to stop that.
    #[must_use]
    pub fn works(self) -> bool {
        match self {
            Self::Loading { .. } | Self::Busy { .. } => true,
            Self::Draining { reason, .. } => reason.is_patient(),
            _ => false,
        }
    }

    /// Whether it has been killed and is not reaped yet.
    #[must_use]
    pub fn is_killed(self) -> bool {
        matches!(self, Self::Exiting { rung: Rung::Pushed(Push::Kill), .. })
    }

    /// Why it ends when its time is over. `None` keeps the cause that is known.
    #[must_use]
    pub fn cause_of_elapsed(self) -> Option<Cause> {
        match self {
            Self::Handshaking { .. } => Some(Cause::NoHello),
            Self::Loading { .. } => Some(Cause::LoadStalled),
            Self::Idle { .. } => Some(Cause::Asked),
            Self::Busy { .. } => Some(Cause::Silent),
            Self::Draining { reason, .. } if reason.is_hurry() => None,
            Self::Draining { reason: DrainReason::Leaving, .. } => Some(Cause::Asked),
            Self::Draining { .. } => Some(Cause::Silent),
            Self::Exiting { .. } | Self::Absent | Self::Spawning | Self::Backoff { .. } | Self::Quarantined { .. } => {
                None
            }
        }
    }

    /// Process id, where known.
    #[must_use]
    pub fn pid(self) -> Option<u32> {
        match self {
            Self::Handshaking { pid, .. }
            | Self::Loading { pid, .. }
            | Self::Idle { pid, .. }
            | Self::Busy { pid, .. }
            | Self::Draining { pid, .. }
            | Self::Exiting { pid, .. } => Some(pid),
            Self::Absent | Self::Spawning | Self::Backoff { .. } | Self::Quarantined { .. } => None,
        }
    }

    /// Requests it holds.
    #[must_use]
    pub fn in_flight(self) -> usize {
        match self {
            Self::Busy { in_flight, .. } | Self::Draining { in_flight, .. } => in_flight.get() as usize,
            _ => 0,
        }
    }

    /// When something must happen (I3: only `Absent`, `Spawning` and a pinned `Idle` have none).
    #[must_use]
    pub fn deadline(self) -> Option<Mono> {
        match self {
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
}

/// What a worker's life is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Someone needs it and there is room.
    Wanted,
    /// The process was started.
    Spawned {
        /// Process.
        pid: u32,
    },
    /// The process was not started.
    SpawnFailed {
        /// What follows.
        rest: Rest,
    },
    /// Good hello.
    Hello,
    /// The load goes on.
    Progress,
    /// The load is done.
    Ready {
        /// Keep-alive.
        expires_at: Option<Mono>,
    },
    /// The load failed.
    LoadFailed,
    /// It got a request.
    Granted,
    /// It confirmed the end of a request.
    Ended {
        /// Keep-alive, should it be the last.
        expires_at: Option<Mono>,
    },
    /// Sign of life.
    Heard,
    /// The keep-alive changed.
    Rearm {
        /// Keep-alive.
        expires_at: Option<Mono>,
    },
    /// No more work.
    Drain {
        /// Why.
        reason: DrainReason,
    },
    /// The link closed.
    LinkClosed,
    /// Bad hello or bad frame.
    Misbehaved,
    /// Reaped.
    Exited {
        /// What follows.
        rest: Rest,
    },
    /// A cancelled request was not let go in time.
    Hung,
    /// Now.
    Kill,
    /// Forget the past.
    Pardoned,
    /// The deadline has come.
    Elapsed,
}

impl Input {
    /// Why a worker in this state is asked to go, for the log.
    #[must_use]
    pub fn reason(self, from: State) -> Option<&'static str> {
        match self {
            Self::Drain { reason } => Some(reason.words()),
            Self::Elapsed if matches!(from, State::Idle { .. }) => Some("its keep-alive is over"),
            _ => None,
        }
    }
}

/// What a transition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Start the process.
    Spawn,
    /// Send the load.
    Load,
    /// Push it. What it still holds is let go when it is reaped.
    Push(Push),
    /// Nothing more: its death is being judged.
    Settle,
}

fn exiting(pid: u32, push: Push, now: Mono, timeouts: &Timeouts) -> (State, Action) {
    let patience_ms = match push {
        Push::Ask => timeouts.ask_ms,
        Push::Term => timeouts.term_ms,
        Push::Kill => timeouts.kill_ms,
    };
    (State::Exiting { pid, rung: Rung::Pushed(push), deadline: now.plus_ms(patience_ms) }, Action::Push(push))
}

fn lingering(pid: u32, now: Mono, timeouts: &Timeouts) -> (State, Action) {
    (State::Exiting { pid, rung: Rung::Linger, deadline: now.plus_ms(timeouts.linger_ms) }, Action::Nothing)
}

fn settled(rest: Rest) -> (State, Action) {
    let state = match rest {
        Rest::None => State::Absent,
        Rest::Backoff(until) => State::Backoff { until },
        Rest::Quarantine(until) => State::Quarantined { until },
    };
    (state, Action::Settle)
}

fn drain_deadline(reason: DrainReason, now: Mono, timeouts: &Timeouts) -> Mono {
    now.plus_ms(match reason {
        DrainReason::Room | DrainReason::Reload | DrainReason::Unload | DrainReason::Relief => timeouts.silence_ms,
        DrainReason::OverBudget | DrainReason::OverOwnLimit => timeouts.relief_ms,
        DrainReason::Leaving => timeouts.drain_ms,
    })
}

/// A next state and what it asks for; `None` where the pair can't happen.
type Next = Option<(State, Action)>;

/// The next state and what it asks for; `None` where the pair can't happen.
#[must_use]
pub fn next(state: State, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    match state {
        State::Absent | State::Spawning | State::Backoff { .. } | State::Quarantined { .. } => {
            without_pid(state, input, now, timeouts)
        }
        State::Handshaking { pid, .. } => handshaking(state, pid, input, now, timeouts),
        State::Loading { pid, .. } => loading(state, pid, input, now, timeouts),
        State::Idle { pid, .. } => idle(state, pid, input, now, timeouts),
        State::Busy { .. } => busy(state, input, now, timeouts),
        State::Draining { .. } => draining(state, input, now, timeouts),
        State::Exiting { pid, rung, .. } => leaving(state, (pid, rung), input, now, timeouts),
    }
}

/// No process, or none that is known yet. Exits: `Wanted`; `Spawned` and `SpawnFailed`, and no other event comes in between;
/// time, pardon.
fn without_pid(state: State, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    match (state, input) {
        (State::Absent, Input::Wanted) => Some((State::Spawning, Action::Spawn)),
        (State::Spawning, Input::Spawned { pid }) => {
            Some((State::Handshaking { pid, deadline: now.plus_ms(timeouts.hello_ms) }, Action::Nothing))
        }
        (State::Spawning, Input::SpawnFailed { rest }) => Some(settled(rest)),
        (State::Absent | State::Spawning, Input::Pardoned) => Some((state, Action::Nothing)),
        (State::Backoff { .. } | State::Quarantined { .. }, Input::Elapsed | Input::Pardoned) => {
            Some((State::Absent, Action::Nothing))
        }
        _ => None,
    }
}

/// Exits: `Hello`, bad or late hello, drain, death.
fn handshaking(state: State, pid: u32, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    match input {
        I::Hello => Some((State::Loading { pid, deadline: now.plus_ms(timeouts.load_stall_ms) }, Action::Load)),
        I::Misbehaved | I::Kill => Some(exiting(pid, Push::Kill, now, timeouts)),
        I::Drain { .. } | I::Elapsed => Some(exiting(pid, Push::Term, now, timeouts)),
        I::LinkClosed => Some(lingering(pid, now, timeouts)),
        I::Exited { rest } => Some(settled(rest)),
        I::Pardoned => Some((state, Action::Nothing)),
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Progress | I::Ready { .. } => None,
        I::LoadFailed | I::Granted | I::Ended { .. } | I::Heard | I::Rearm { .. } | I::Hung => None,
    }
}

/// Exits: `Ready`, failed or stalled load, drain, death. Progress alone pushes its deadline, no other sign of life does.
fn loading(state: State, pid: u32, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    match input {
        I::Progress => Some((State::Loading { pid, deadline: now.plus_ms(timeouts.load_stall_ms) }, Action::Nothing)),
        I::Ready { expires_at } => Some((State::Idle { pid, expires_at }, Action::Nothing)),
        I::LoadFailed | I::Drain { .. } => Some(exiting(pid, Push::Ask, now, timeouts)),
        I::Elapsed => Some(exiting(pid, Push::Term, now, timeouts)),
        I::Misbehaved | I::Kill => Some(exiting(pid, Push::Kill, now, timeouts)),
        I::LinkClosed => Some(lingering(pid, now, timeouts)),
        I::Exited { rest } => Some(settled(rest)),
        I::Pardoned | I::Heard => Some((state, Action::Nothing)),
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Hello | I::Granted | I::Ended { .. } => None,
        I::Rearm { .. } | I::Hung => None,
    }
}

/// Exits: `Granted`, expiry, drain, death.
fn idle(state: State, pid: u32, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    match input {
        I::Granted => {
            let deadline = now.plus_ms(timeouts.silence_ms);
            Some((State::Busy { pid, in_flight: NonZeroU32::MIN, deadline }, Action::Nothing))
        }
        I::Rearm { expires_at } => Some((State::Idle { pid, expires_at }, Action::Nothing)),
        I::Elapsed | I::Drain { .. } => Some(exiting(pid, Push::Ask, now, timeouts)),
        // A second `Ready` or a failed load after it: the worker is confused.
        I::Misbehaved | I::Kill | I::Ready { .. } | I::LoadFailed => Some(exiting(pid, Push::Kill, now, timeouts)),
        I::LinkClosed => Some(lingering(pid, now, timeouts)),
        I::Exited { rest } => Some(settled(rest)),
        I::Pardoned | I::Heard | I::Progress => Some((state, Action::Nothing)),
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Hello | I::Ended { .. } | I::Hung => None,
    }
}

/// Exits: last `Ended`, drain, silence, death.
fn busy(state: State, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    let State::Busy { pid, in_flight, deadline } = state else { return None };
    let heard = now.plus_ms(timeouts.silence_ms);
    match input {
        I::Granted => Some((State::Busy { pid, in_flight: in_flight.saturating_add(1), deadline }, Action::Nothing)),
        I::Ended { expires_at } => Some(match NonZeroU32::new(in_flight.get() - 1) {
            None => (State::Idle { pid, expires_at }, Action::Nothing),
            Some(in_flight) => (State::Busy { pid, in_flight, deadline: heard }, Action::Nothing),
        }),
        I::Heard => Some((State::Busy { pid, in_flight, deadline: heard }, Action::Nothing)),
        I::Drain { reason } => {
            let deadline = drain_deadline(reason, now, timeouts);
            Some((State::Draining { pid, in_flight, reason, deadline }, Action::Nothing))
        }
        I::Elapsed | I::Hung | I::Misbehaved | I::Kill | I::Ready { .. } | I::LoadFailed => {
            Some(exiting(pid, Push::Kill, now, timeouts))
        }
        I::LinkClosed => Some(lingering(pid, now, timeouts)),
        I::Exited { rest } => Some(settled(rest)),
        I::Pardoned | I::Rearm { .. } | I::Progress => Some((state, Action::Nothing)),
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Hello => None,
    }
}

/// Exits: last `Ended`, patience over, death. Never granted (I5).
fn draining(state: State, input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    let State::Draining { pid, in_flight, reason, deadline } = state else { return None };
    let deadline = if reason.is_patient() { drain_deadline(reason, now, timeouts) } else { deadline };
    match input {
        I::Ended { .. } => Some(match NonZeroU32::new(in_flight.get() - 1) {
            None => exiting(pid, Push::Ask, now, timeouts),
            Some(in_flight) => (State::Draining { pid, in_flight, reason, deadline }, Action::Nothing),
        }),
        I::Heard => Some((State::Draining { pid, in_flight, reason, deadline }, Action::Nothing)),
        I::Drain { reason: harder } if reason.is_patient() && !harder.is_patient() => {
            let deadline = drain_deadline(harder, now, timeouts);
            Some((State::Draining { pid, in_flight, reason: harder, deadline }, Action::Nothing))
        }
        I::Elapsed if reason.is_patient() => Some(exiting(pid, Push::Kill, now, timeouts)),
        I::Elapsed => Some(exiting(pid, Push::Term, now, timeouts)),
        I::Hung | I::Misbehaved | I::Kill | I::Ready { .. } | I::LoadFailed => {
            Some(exiting(pid, Push::Kill, now, timeouts))
        }
        I::LinkClosed => Some(lingering(pid, now, timeouts)),
        I::Exited { rest } => Some(settled(rest)),
        I::Pardoned | I::Rearm { .. } | I::Progress | I::Drain { .. } => Some((state, Action::Nothing)),
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Hello | I::Granted => None,
    }
}

/// Exits: `Exited`. Whatever it still says is of no interest.
fn leaving(state: State, (pid, rung): (u32, Rung), input: Input, now: Mono, timeouts: &Timeouts) -> Next {
    use Input as I;
    match input {
        I::Exited { rest } => Some(settled(rest)),
        I::Elapsed => Some(match rung {
            Rung::Pushed(Push::Ask) => exiting(pid, Push::Term, now, timeouts),
            Rung::Linger | Rung::Pushed(Push::Term | Push::Kill) => exiting(pid, Push::Kill, now, timeouts),
        }),
        I::Kill if rung != Rung::Pushed(Push::Kill) => Some(exiting(pid, Push::Kill, now, timeouts)),
        I::Hello | I::Progress | I::Ready { .. } | I::LoadFailed | I::Ended { .. } | I::Heard | I::Kill => {
            Some((state, Action::Nothing))
        }
        I::Rearm { .. } | I::Drain { .. } | I::LinkClosed | I::Misbehaved | I::Pardoned => {
            Some((state, Action::Nothing))
        }
        I::Wanted | I::Spawned { .. } | I::SpawnFailed { .. } | I::Granted | I::Hung => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        hello_ms: 1,
        load_stall_ms: 2,
        silence_ms: 3,
        ask_ms: 4,
        term_ms: 5,
        kill_ms: 6,
        drain_ms: 7,
        relief_ms: 9,
        linger_ms: 8,
    };

    fn states() -> Vec<State> {
        let (pid, deadline, in_flight) = (7, Mono(0), NonZeroU32::MIN);
        let two = NonZeroU32::new(2).unwrap();
        let draining = |reason, in_flight| State::Draining { pid, in_flight, reason, deadline };
        let exiting = |rung| State::Exiting { pid, rung, deadline };
        vec![
            State::Absent,
            State::Spawning,
            State::Handshaking { pid, deadline },
            State::Loading { pid, deadline },
            State::Idle { pid, expires_at: Some(deadline) },
            State::Busy { pid, in_flight, deadline },
            State::Busy { pid, in_flight: two, deadline },
            draining(DrainReason::Reload, in_flight),
            draining(DrainReason::Leaving, two),
            exiting(Rung::Linger),
            exiting(Rung::Pushed(Push::Ask)),
            exiting(Rung::Pushed(Push::Term)),
            exiting(Rung::Pushed(Push::Kill)),
            State::Backoff { until: deadline },
            State::Quarantined { until: deadline },
        ]
    }

    fn inputs() -> Vec<Input> {
        let (rest, expires_at) = (Rest::None, None);
        vec![
            Input::Wanted,
            Input::Spawned { pid: 7 },
            Input::SpawnFailed { rest },
            Input::Hello,
            Input::Progress,
            Input::Ready { expires_at },
            Input::LoadFailed,
            Input::Granted,
            Input::Ended { expires_at },
            Input::Heard,
            Input::Rearm { expires_at },
            Input::Drain { reason: DrainReason::Unload },
            Input::Drain { reason: DrainReason::Leaving },
            Input::LinkClosed,
            Input::Misbehaved,
            Input::Exited { rest },
            Input::Hung,
            Input::Kill,
            Input::Pardoned,
            Input::Elapsed,
        ]
    }

    /// One line per state, one mark per input in the order of [`inputs`]: `.` is illegal, `=` stays, else the first
    /// letter of the next state (`x` is exiting).
    const TABLE: &str = "\
absent      S.................=.
spawning    .HA...............=.
handshaking ...L.......xxxxA.x=x
loading     ....=Ix..=.xxxxA.x=x
idle        ....=xxB.==xxxxA.x=x
busy        ....=xx=I==DDxxAxx=x
busy        ....=xx====DDxxAxx=x
draining    ....=xx.x====xxAxx=x
draining    ....=xx.=====xxAxx=x
exiting     ...====.=======A.===
exiting     ...====.=======A.===
exiting     ...====.=======A.===
exiting     ...====.=======A.===
backoff     ..................AA
quarantined ..................AA
";

    #[test]
    fn every_pair_of_state_and_input_is_decided() {
        let mut table = String::new();
        let mut legal = 0;
        for state in states() {
            table.push_str(&format!("{:<12}", state.name()));
            for input in inputs() {
                let after = next(state, input, Mono(1), &TIMEOUTS).map(|(to, _)| to);
                legal += usize::from(after.is_some());
                table.push(match after {
                    None => '.',
                    Some(to) if to.name() == state.name() => '=',
                    Some(State::Exiting { .. }) => 'x',
                    Some(to) => to.name().chars().next().unwrap().to_ascii_uppercase(),
                });
                check(state, input, after);
            }
            table.push('\n');
        }
        assert_eq!(table, TABLE, "{legal} legal pairs");
    }

    /// What holds for every pair, whatever the table says.
    fn check(state: State, input: Input, after: Option<State>) {
        let Some(after) = after else { return };
        if input == Input::Granted {
            assert!(state.accepts_work(), "I5: {state:?}");
        }
        let ends = matches!(input, Input::Exited { .. } | Input::SpawnFailed { .. });
        if state.has_process() {
            assert_eq!(
                after.has_process(),
                !ends,
                "I1: only the end of a process frees its memory: {state:?} {input:?}"
            );
        } else {
            assert_eq!(after.has_process(), input == Input::Wanted, "I2: {state:?} {input:?}");
        }
        if state.pid().is_some() && after.has_process() {
            assert_eq!(state.pid(), after.pid(), "I2: the process stays the same");
        }
    }

    #[test]
    fn deadlines_alone_bring_every_state_to_kill() {
        for mut state in states().into_iter().filter(|state| state.pid().is_some()) {
            for _ in 0..4 {
                let now = state.deadline().expect("I3: every state with a process here has one");
                state = next(state, Input::Elapsed, now, &TIMEOUTS).expect("a deadline is legal").0;
            }
            assert!(matches!(state, State::Exiting { rung: Rung::Pushed(Push::Kill), .. }), "{state:?}");
        }
    }
}
