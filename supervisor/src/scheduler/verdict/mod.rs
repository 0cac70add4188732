//! A death judged: what ended the process, whose fault it is, how long the model rests, and what becomes of each request.
//!
//! [`judge`] is a pure function of the death and of what is known of the model; [`row`] is the table behind it: one row for
//! each cause.
//!
//! Those that a worker ran are let go when the process is reaped, not before: until then an end that raced the death still
//! counts, and no second process could hold the memory. They come back to the front of the line as suspects; only one that
//! was alone when its worker died again is sentenced.
//!
//! Decision: the death that sentences a request isn't counted against the model, and one that moves on has shown that its
//! model works. A model whose workers die of everything is still quarantined, because each request's first death counts.
//!
//! Decision: SIGKILL, SIGTERM and the like from outside are no evidence against a request, since nothing that it makes the
//! engine compute can send them; nor against the model, which rests for a moment and is never quarantined for
//! them. Rejected: counting every death alike, with which somebody's `kill` in a loop sentences innocent requests. What the
//! system kills for want of memory is no evidence against its requests either, until one dies of it alone for the second
//! time; where the system doesn't say so, the time that a request may lose to kills bounds the loop.

pub(super) mod incident;
pub(super) mod poison;
#[cfg(test)]
pub(super) mod tests;

use crate::limits::{PERMANENT_REST_MS, POISON_DEATHS_MAX, QUARANTINE_S};
use nix::sys::signal::Signal;
use ollmlx_proto::{Failure, RequestId, Retry, WorkerId};

use super::history::{History, Rng, last_lines};
use super::ledger::Holding;
use super::life::{Rest, Rung, State};
use super::line::{Line, Running, Waiting};
use super::model::Model;
use super::suspicion::Suspicion;
use super::view::View;
use super::{failures, pressure};
use crate::catalog::Backend;
use crate::types::{After, Cause, DeathRecord, Fate, HeldRequest, Mono};
use incident::Incidents;

/// Whom a death speaks against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Nobody.
    Nobody,
    /// Somebody outside, who ended it: what a process computes can bring SIGSEGV or SIGABRT upon it, never these.
    Outside,
    /// Its memory, which says nothing of what its requests are like.
    Memory,
    /// Those that it ran: one of them may have caused it.
    Requests,
}

/// How long the model rests after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resting {
    /// Not at all.
    Not,
    /// For a moment, however often.
    Moment,
    /// Longer each time, in quarantine at last.
    Growing,
    /// Briefly, and whoever waits is refused: by the worker's own word, trying again is pointless. Its files may be repaired
    /// any moment, but a client in a loop must not start processes in one.
    Pointless,
    /// In quarantine.
    Quarantine,
    /// In quarantine, twice as long each time.
    Doubling,
}

/// What a cause means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) blame: Blame,
    pub(super) resting: Resting,
    /// What ended it may have ended workers of other models as well, see [`incident`].
    pub(super) shared: bool,
}

/// The table. Ends that a model has to itself are not shared: for its memory, for files that can't be loaded, for a program
/// that can't be started or is of another version.
pub(super) fn row(cause: &Cause) -> Row {
    use Blame::{Memory, Nobody, Outside, Requests};
    use Resting::{Doubling, Growing, Moment, Not, Pointless, Quarantine};
    let (blame, resting, shared) = match cause {
        Cause::Asked | Cause::Leaked => (Nobody, Not, false),
        Cause::Signalled { signal } if is_from_outside(*signal) => (Outside, Moment, true),
        Cause::Signalled { .. } | Cause::Exited { .. } => (Requests, Growing, true),
        Cause::Silent | Cause::Protocol(_) | Cause::Unhealthy | Cause::LinkLost => (Requests, Growing, true),
        Cause::NoHello | Cause::LoadStalled => (Requests, Growing, true),
        Cause::LoadFailed(failure) if failure.retry == Retry::Never => (Requests, Pointless, false),
        Cause::LoadFailed(_) => (Requests, Growing, true),
        Cause::HelloRefused(_) => (Requests, Quarantine, false),
        Cause::SpawnFailed(_) => (Requests, Growing, false),
        Cause::OverBudget | Cause::OverOwnLimit { .. } | Cause::OutOfMemory => (Memory, Growing, false),
        Cause::TooLarge { need, limit, .. } if need > limit => (Memory, Doubling, false),
        // Its own limit may be that of one request, and is no reason to refuse all others.
        Cause::TooLarge { .. } => (Memory, Moment, false),
    };
    Row { blame, resting, shared }
}

/// Our own signals have other causes, and so has the system's SIGKILL when memory runs out, where the system tells.
fn is_from_outside(signal: i32) -> bool {
    matches!(
        Signal::try_from(signal),
        Ok(Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)
    )
}

/// What there is to know of a death.
#[derive(Clone, Debug)]
pub(super) struct Death<'a> {
    pub(super) worker: WorkerId,
    /// What its model is called.
    pub(super) model: String,
    pub(super) cause: Cause,
    pub(super) log_tail: &'a str,
    /// The state that it died in, or that it was shown the door from.
    pub(super) state: &'static str,
    /// How many it ran then.
    pub(super) aboard: usize,
    /// Whether it was not ready yet.
    pub(super) was_loading: bool,
    /// Whether its CPU level can be lowered.
    pub(super) has_cpu_levels: bool,
    /// When it was wanted.
    pub(super) started: Mono,
    /// Another model's worker has died of the same just now.
    pub(super) is_shared: bool,
    /// The server leaves.
    pub(super) is_leaving: bool,
    pub(super) holding: Holding,
    /// Bytes that its model may have at most.
    pub(super) limit: u64,
    pub(super) now: Mono,
}

impl<'a> Death<'a> {
    /// Of a process that has been reaped, or could not be started. What is known of its way out says more than how it ended.
    pub(super) fn of(
        view: View<'_>,
        model: &Model,
        exit: Cause,
        log_tail: &'a str,
        incidents: &Incidents,
        is_leaving: bool,
    ) -> Self {
        let process = &model.process;
        let lingers = matches!(model.state, State::Exiting { rung: Rung::Linger, .. });
        let cause = match (process.cause.clone(), pressure::drained_for(view, model)) {
            (Some(known), _) if !(lingers && known == Cause::LinkLost) => known,
            // The system's way to say the same.
            (_, Some(over)) if matches!(exit, Cause::Signalled { .. } | Cause::OutOfMemory) => over,
            // Its own end says more than the end of its link.
            _ => exit,
        };
        let (state, aboard) = process.left_from.unwrap_or((model.state.name(), model.line.running().len()));
        let limit = view.ledger.limit().unwrap_or(u64::MAX).min(model.own_limit().unwrap_or(u64::MAX));
        Self {
            worker: model.worker(),
            model: model.model.name.clone(),
            is_shared: incidents.has_other(&model.id, cause.class(), view.now),
            cause,
            log_tail,
            state,
            aboard,
            was_loading: process.ready.is_none(),
            has_cpu_levels: model.model.backend == Backend::Gguf,
            started: process.started,
            is_leaving,
            holding: view.holding(model),
            limit,
            now: view.now,
        }
    }
}

/// What becomes of one request.
#[derive(Clone, Debug)]
pub(super) struct Sentence {
    pub(super) request: RequestId,
    /// What is thought of it from now on.
    pub(super) suspicion: Suspicion,
    pub(super) fate: Fate,
    /// What it hears, where it ends.
    pub(super) failure: Option<Failure>,
}

/// What follows from a death.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) rest: Rest,
    /// What is known of the model from now on.
    pub(super) history: History,
    /// For each that it ran.
    pub(super) held: Vec<Sentence>,
    /// For each that waits for the model: it goes on waiting, or ends.
    pub(super) waiting: Vec<Sentence>,
}

/// Judges a death.
pub(super) fn judge(death: &Death<'_>, history: &History, line: &Line, rng: &mut Rng) -> Verdict {
    let row = row(&death.cause);
    let mut history = history.clone();
    let guilty = guilty(death, row, line);
    let is_answered = death.aboard == 0 && matches!(death.cause, Cause::OverOwnLimit { .. });
    let rests = guilty.is_none() && !is_answered && !death.is_leaving;
    let rest = if rests { rest(row, death, &mut history, rng) } else { Rest::None };
    let gives_more = match death.cause {
        Cause::OverBudget | Cause::OverOwnLimit { .. } | Cause::OutOfMemory => {
            history.remember_appetite(death.holding, death.limit)
        }
        _ => false,
    };
    let trial = Hearing { death, row, rest, guilty, is_alone: death.aboard.max(line.running().len()) == 1, gives_more };
    let held: Vec<Sentence> = line.running().values().map(|running| trial.of_held(running)).collect();
    if death.cause == Cause::Asked {
        history.left_in_peace();
        return Verdict { rest, history, held, waiting: Vec::new() };
    }
    let waiting = line.waiting().map(|waiting| trial.of_waiting(waiting)).collect();
    if death.was_loading && death.has_cpu_levels {
        history.lower_cpu_level(&death.cause);
    }
    history.died = Some(death.cause.class());
    history.last_death = Some(death.cause.words());
    history.deaths.push(record(death, rest, &held, history.cpu_level));
    Verdict { rest, history, held, waiting }
}

/// Who is to blame: the one that was alone, at the second death at least.
fn guilty(death: &Death<'_>, row: Row, line: &Line) -> Option<RequestId> {
    let (request, held) = line.running().first_key_value()?;
    let is_alone = death.aboard.max(line.running().len()) == 1;
    let is_known = held.waiting.suspicion.deaths + 1 >= POISON_DEATHS_MAX;
    let is_evidence = row.blame == Blame::Requests && !(row.shared && death.is_shared);
    let is_wanted = held.cancel_deadline.is_none() && !death.is_leaving;
    (is_alone && is_known && is_evidence && is_wanted).then_some(*request)
}

fn rest(row: Row, death: &Death<'_>, history: &mut History, rng: &mut Rng) -> Rest {
    let now = death.now;
    match row.resting {
        Resting::Growing if death.was_loading && row.blame == Blame::Requests => history.tally.record_load(now, rng),
        Resting::Not => Rest::None,
        Resting::Moment => history.tally.record_kill(now, rng),
        Resting::Growing => history.tally.record(now, rng),
        Resting::Pointless => Rest::Backoff(now.plus_ms(PERMANENT_REST_MS)),
        Resting::Quarantine => Rest::Quarantine(now.plus_ms(QUARANTINE_S * 1000)),
        Resting::Doubling => history.rest_since_too_large(now),
    }
}

fn record(death: &Death<'_>, rest: Rest, held: &[Sentence], cpu_level: Option<&'static str>) -> DeathRecord {
    let told = |sentence: &Sentence| HeldRequest {
        request: sentence.request,
        deaths: sentence.suspicion.deaths + sentence.suspicion.memory_deaths,
        fate: sentence.fate,
    };
    DeathRecord {
        worker: death.worker.clone(),
        at: death.now,
        state: death.state,
        cause: death.cause.clone(),
        log_tail: last_lines(death.log_tail),
        requests: held.iter().map(told).collect(),
        after: match rest {
            Rest::None => After::Ready,
            Rest::Backoff(until) => After::Backoff(until),
            Rest::Quarantine(until) => After::Quarantine(until),
        },
        cpu_level,
        incident: None,
    }
}

/// What the requests are judged by.
struct Hearing<'a> {
    death: &'a Death<'a>,
    row: Row,
    rest: Rest,
    guilty: Option<RequestId>,
    /// Whether it held one request only.
    is_alone: bool,
    /// Whether the next process gets more memory than this one.
    gives_more: bool,
}

impl Hearing<'_> {
    /// One that the worker ran.
    fn of_held(&self, running: &Running) -> Sentence {
        let (request, mut suspicion) = (running.waiting.request, running.waiting.suspicion);
        match self.row.blame {
            Blame::Nobody => {}
            Blame::Outside => suspicion.lost(self.death.now.since(running.granted).saturating_add(self.rest_ns())),
            Blame::Memory => suspicion.saw_memory_death(),
            Blame::Requests => suspicion.saw_death(),
        }
        let (fate, failure) = self.sentence(running, suspicion);
        if failure.is_none() {
            suspicion.loads_failed = 0;
        }
        Sentence { request, suspicion, fate, failure }
    }

    fn sentence(&self, running: &Running, suspicion: Suspicion) -> (Fate, Option<Failure>) {
        let (death, cause) = (self.death, &self.death.cause);
        let fails = || (Fate::Failed, Some(failure_of_held(cause, death.is_leaving, death.log_tail)));
        // A leak is gone with its process; what a new one needs for this alone is not there.
        let needs_too_much = self.row.blame == Blame::Memory && self.is_alone && !self.gives_more;
        if self.guilty == Some(running.waiting.request) {
            (Fate::Suspect, Some(failures::poison(cause, death.log_tail)))
        } else if death.is_leaving || self.row.resting == Resting::Pointless {
            fails()
        } else if running.cancel_deadline.is_some() {
            (Fate::ClientGone, Some(failures::client_gone()))
        } else if needs_too_much && suspicion.memory_deaths >= POISON_DEATHS_MAX || suspicion.has_lost_too_much() {
            fails()
        } else if let Rest::Quarantine(until) = self.rest {
            (Fate::Failed, Some(failures::quarantined(Some(&cause.words()), until, death.now)))
        } else {
            (Fate::Resumed, None)
        }
    }

    /// One that waits stays, unless waiting is pointless.
    fn of_waiting(&self, waiting: &Waiting) -> Sentence {
        let (death, mut suspicion) = (self.death, waiting.suspicion);
        match self.row.blame {
            _ if !death.was_loading => {}
            Blame::Outside => {
                let since = death.started.max(waiting.arrived);
                suspicion.lost(death.now.since(since).saturating_add(self.rest_ns()));
            }
            _ => suspicion.saw_failed_load(),
        }
        // Others may do with a higher limit, or none.
        let is_too_large = match death.cause {
            Cause::TooLarge { need, .. } => waiting.plan.terms.limit.is_some_and(|own| own < need),
            _ => false,
        };
        let is_refused = matches!(self.rest, Rest::Quarantine(_)) || self.row.resting == Resting::Pointless;
        let is_over = suspicion.has_seen_enough_loads() || suspicion.has_lost_too_much();
        let failure = (is_refused || is_too_large || is_over).then(|| match self.rest {
            Rest::Quarantine(until) if !death.was_loading => {
                failures::quarantined(Some(&death.cause.words()), until, death.now)
            }
            _ => failures::load_failed(&death.model, &death.cause, death.log_tail),
        });
        let fate = if failure.is_some() { Fate::Failed } else { Fate::Resumed };
        Sentence { request: waiting.request, suspicion, fate, failure }
    }

    /// How long the model rests, in nanoseconds.
    fn rest_ns(&self) -> u64 {
        match self.rest {
            Rest::None => 0,
            Rest::Backoff(until) | Rest::Quarantine(until) => until.since(self.death.now),
        }
    }
}

/// What those hear that ran and can't be resumed.
pub(super) fn failure_of_held(cause: &Cause, is_leaving: bool, log_tail: &str) -> Failure {
    match cause {
        Cause::Asked if is_leaving => failures::shutting_down(),
        _ => failures::died_running(cause, log_tail),
    }
}
