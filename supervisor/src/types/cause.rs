//! Why a process ended.

use nix::sys::signal::Signal;
use ollmlx_proto::Failure;
use ollmlx_proto::memory::{bytes_allowed, bytes_needed};

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We asked for it, and it went.
    Asked,
    /// It left with this status without being asked.
    Exited {
        /// Exit status.
        code: i32,
    },
    /// A signal killed it, not ours.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// It never said hello.
    NoHello,
    /// Its hello was refused.
    HelloRefused(String),
    /// Its load made no progress.
    LoadStalled,
    /// Its load failed, in its own words.
    LoadFailed(Failure),
    /// It was silent while it had work.
    Silent,
    /// It broke the protocol.
    Protocol(String),
    /// Its engine failed one request after the other.
    Unhealthy,
    /// It closed the link without being asked.
    LinkLost,
    /// The process could not be started.
    SpawnFailed(String),
    /// It took more memory than there is.
    OverBudget,
    /// It took more memory than its model's own limit allows.
    OverOwnLimit {
        /// Bytes it took.
        took: u64,
        /// Bytes it may take.
        limit: u64,
    },
    /// It kept much more than it may while it had nothing to do.
    Leaked,
    /// The system killed it, since memory ran out: the machine's, or what its control group may take.
    OutOfMemory,
    /// It took more than the whole limit, or its model's own, before it could answer anything.
    TooLarge {
        /// Bytes it took.
        need: u64,
        /// Bytes there are; `u64::MAX` is no limit.
        limit: u64,
        /// Bytes that its model may take, likewise.
        own: u64,
    },
}

impl Cause {
    /// What happened, for people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Asked => "asked to leave".to_owned(),
            Self::Exited { code } => format!("exited with status {code}"),
            Self::Signalled { signal } => match Signal::try_from(*signal) {
                Ok(name) => format!("killed by {name}"),
                Err(_) => format!("killed by signal {signal}"),
            },
            Self::NoHello => "did not say hello in time".to_owned(),
            Self::HelloRefused(why) => format!("hello refused: {why}"),
            Self::LoadStalled => "loading made no progress".to_owned(),
            Self::LoadFailed(failure) => failure.public.clone(),
            Self::Silent => "was silent for too long".to_owned(),
            Self::Protocol(why) => format!("broke the protocol: {why}"),
            Self::Unhealthy => "failed one request after the other".to_owned(),
            Self::LinkLost => "closed its connection".to_owned(),
            Self::SpawnFailed(why) => format!("could not be started: {why}"),
            Self::OverBudget => "took more memory than there is".to_owned(),
            Self::OverOwnLimit { took, limit } => {
                format!(
                    "took more memory ({}) than its own limit allows ({})",
                    bytes_needed(*took),
                    bytes_allowed(*limit)
                )
            }
            Self::Leaked => {
                "kept much more memory than planned, and was replaced while it had nothing to do".to_owned()
            }
            Self::OutOfMemory => "killed by the system for want of memory".to_owned(),
            Self::TooLarge { need, limit, own } => too_large(*need, *limit, *own),
        }
    }

    /// One of a fixed set of words, for counting.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Exited { .. } => "exited",
            Self::Signalled { signal } => Signal::try_from(*signal).map_or("signal", Signal::as_str),
            Self::NoHello => "no-hello",
            Self::HelloRefused(_) => "hello-refused",
            Self::LoadStalled => "load-stalled",
            Self::LoadFailed(_) => "load-failed",
            Self::Silent => "silent",
            Self::Protocol(_) => "protocol",
            Self::Unhealthy => "unhealthy",
            Self::LinkLost => "link-lost",
            Self::SpawnFailed(_) => "spawn-failed",
            Self::OverBudget => "over-budget",
            Self::OverOwnLimit { .. } => "over-own-limit",
            Self::Leaked => "leak-recycle",
            Self::OutOfMemory => "out-of-memory",
            Self::TooLarge { .. } => "too-large",
        }
    }
}

/// That so much can't be had, whosever limit is in the way.
#[must_use]
pub fn too_large(need: u64, limit: u64, own: u64) -> String {
    let (whose, allowed) = if own < limit { ("its own limit", own) } else { ("the limit", limit) };
    format!("model requires more memory ({}) than {whose} allows ({})", bytes_needed(need), bytes_allowed(allowed))
}
