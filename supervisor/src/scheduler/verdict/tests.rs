//! The table, row by row, and what follows from it for those that a worker ran and for those that wait.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::limits::{DEATHS_MAX, LOADS_FAILED_MAX, LOST_TO_KILLS_MS_MAX, QUARANTINE_S};
use ollmlx_proto::{Failure, FailureKind, Incarnation, LoadSpec, MemoryModel, MemoryReport, ModelCard, ModelId};

use super::*;
use crate::catalog::{Details, ModelRef};
use crate::scheduler::line::Kept;
use crate::types::{Caller, LoadPlan, Terms};

fn load_failed(retry: Retry) -> Cause {
    let mut failure = Failure::new(FailureKind::LoadFailed, "bad file");
    failure.retry = retry;
    Cause::LoadFailed(failure)
}

/// Every cause, in the order of the enum, with its row; signals, failed loads and sizes have two.
fn table() -> Vec<(Cause, Row)> {
    use Blame::{Memory, Nobody, Outside, Requests};
    use Resting::{Doubling, Growing, Moment, Not, Pointless, Quarantine};
    let rows = [
        (Cause::Asked, (Nobody, Not, false)),
        (Cause::Exited { code: 1 }, (Requests, Growing, true)),
        (Cause::Signalled { signal: 11 }, (Requests, Growing, true)),
        (Cause::Signalled { signal: 6 }, (Requests, Growing, true)),
        (Cause::Signalled { signal: 9 }, (Outside, Moment, true)),
        (Cause::Signalled { signal: 15 }, (Outside, Moment, true)),
        (Cause::NoHello, (Requests, Growing, true)),
        (Cause::HelloRefused("old".to_owned()), (Requests, Quarantine, false)),
        (Cause::LoadStalled, (Requests, Growing, true)),
        (load_failed(Retry::FreshWorker), (Requests, Growing, true)),
        (load_failed(Retry::Never), (Requests, Pointless, false)),
        (Cause::Silent, (Requests, Growing, true)),
        (Cause::Protocol("rubbish".to_owned()), (Requests, Growing, true)),
        (Cause::Unhealthy, (Requests, Growing, true)),
        (Cause::LinkLost, (Requests, Growing, true)),
        (Cause::SpawnFailed("no file".to_owned()), (Requests, Growing, false)),
        (Cause::OverBudget, (Memory, Growing, false)),
        (Cause::OverOwnLimit { took: 2, limit: 1 }, (Memory, Growing, false)),
        (Cause::Leaked, (Nobody, Not, false)),
        (Cause::OutOfMemory, (Memory, Growing, false)),
        (Cause::TooLarge { need: 9, limit: 8, own: u64::MAX }, (Memory, Doubling, false)),
        (Cause::TooLarge { need: 9, limit: 10, own: 8 }, (Memory, Moment, false)),
    ];
    rows.map(|(cause, (blame, resting, shared))| (cause, Row { blame, resting, shared })).into()
}

#[test]
fn every_cause_has_the_row_that_the_table_says() {
    let table = table();
    let mut classes: Vec<&str> = table.iter().map(|(cause, _)| cause.class()).collect();
    for (cause, expected) in &table {
        assert_eq!(row(cause), *expected, "{cause:?}");
    }
    classes.retain(|class| !class.starts_with("SIG"));
    classes.dedup();
    assert_eq!(classes.len(), 16, "with signals, of which each has a class of its own, these are all 17: {classes:?}");
}

fn plan() -> Box<LoadPlan> {
    let card = ModelCard {
        format: "gguf".to_owned(),
        architecture: String::new(),
        parameter_count: 0,
        quantization: String::new(),
        context_length: 0,
        embedding_length: 0,
        block_count: 0,
        vocab_size: 0,
        weight_bytes: 0,
        memory: MemoryModel::default(),
        chat_template: None,
        chat_template_fault: None,
        builtin_template: None,
        capabilities: Vec::new(),
        metadata: String::new(),
        tensors: Vec::new(),
    };
    let model = Arc::new(ModelRef {
        id: ModelId("m".to_owned()),
        name: "m".to_owned(),
        full_name: "m".to_owned(),
        backend: Backend::Gguf,
        weights: Vec::new(),
        adapters: Vec::new(),
        card: Arc::new(card),
        capabilities: Vec::new(),
        template: None,
        system: None,
        params: serde_json::Map::new(),
        messages: Vec::new(),
        licenses: Vec::new(),
        digest: String::new(),
        size_bytes: 0,
        modified_at: UNIX_EPOCH,
        details: Details::default(),
        parent: String::new(),
    });
    let (spec, memory, terms) = (LoadSpec::default(), MemoryReport::default(), Terms::default());
    Box::new(LoadPlan { model, spec, memory, terms })
}

/// One that waits, of nobody in particular.
pub(in crate::scheduler) fn waiting(id: u64, suspicion: Suspicion) -> Waiting {
    Waiting {
        request: RequestId(id),
        job: Kept::Load,
        plan: plan(),
        keep_alive: None,
        client: Caller::default(),
        arrived: Mono(0),
        deadline: Mono(u64::MAX),
        came_back: false,
        suspicion,
    }
}

/// A line with so many that run and so many that wait.
fn line(running: u64, waits: u64, suspicion: Suspicion) -> Line {
    let mut line = Line::default();
    for id in 0..running {
        line.push(waiting(id, suspicion));
        line.grant(Mono(0));
    }
    (0..waits).for_each(|id| line.push(waiting(100 + id, suspicion)));
    line
}

fn death(cause: Cause, aboard: u64, was_loading: bool) -> Death<'static> {
    Death {
        worker: WorkerId { model: ModelId("m".to_owned()), incarnation: Incarnation(1) },
        model: "m:latest".to_owned(),
        cause,
        log_tail: "last words",
        state: if was_loading { "loading" } else { "busy" },
        aboard: aboard as usize,
        was_loading,
        has_cpu_levels: true,
        started: Mono(0),
        is_shared: false,
        is_leaving: false,
        holding: Holding::default(),
        limit: u64::MAX,
        now: Mono(1_000_000_000),
    }
}

fn judged(death: &Death<'_>, line: &Line) -> Verdict {
    judge(death, &History::default(), line, &mut Rng::new(1))
}

fn fates(sentences: &[Sentence]) -> Vec<Fate> {
    sentences.iter().map(|sentence| sentence.fate).collect()
}

#[test]
fn whom_a_death_speaks_against_is_what_its_requests_are_remembered_for() {
    for (cause, row) in table() {
        let line = line(3, 1, Suspicion::default());
        let verdict = judged(&death(cause.clone(), 3, false), &line);
        let Some(held) = verdict.held.iter().find(|sentence| sentence.fate == Fate::Resumed) else {
            let ends = matches!(row.resting, Resting::Pointless | Resting::Quarantine | Resting::Doubling);
            assert!(ends, "{cause:?} lets three requests go on");
            continue;
        };
        let seen = (held.suspicion.deaths, held.suspicion.memory_deaths);
        let expected = match row.blame {
            Blame::Nobody | Blame::Outside => (0, 0),
            Blame::Memory => (0, 1),
            Blame::Requests => (1, 0),
        };
        assert_eq!(seen, expected, "{cause:?}");
        assert_eq!(verdict.history.deaths.count, u64::from(cause != Cause::Asked), "{cause:?}");
    }
}

#[test]
fn how_long_a_model_rests_follows_from_the_row() {
    for (cause, row) in table() {
        let idle = line(0, 0, Suspicion::default());
        let death = death(cause.clone(), 1, true);
        let first = judged(&death, &idle);
        let mut history = first.history.clone();
        let mut rests = vec![first.rest];
        for _ in 0..DEATHS_MAX {
            let next = judge(&death, &history, &idle, &mut Rng::new(1));
            (history, _) = (next.history, rests.push(next.rest));
        }
        let quarantine = Rest::Quarantine(death.now.plus_ms(QUARANTINE_S * 1000));
        let last = rests[DEATHS_MAX];
        match row.resting {
            Resting::Not => assert!(rests.iter().all(|rest| *rest == Rest::None), "{cause:?}: {rests:?}"),
            Resting::Moment => {
                assert!(matches!((rests[0], last), (Rest::None, Rest::Backoff(_))), "{cause:?}: {rests:?}")
            }
            Resting::Growing => assert_eq!((rests[0], last), (Rest::None, quarantine), "{cause:?}"),
            Resting::Pointless => assert!(matches!(last, Rest::Backoff(_)), "{cause:?}: {rests:?}"),
            Resting::Quarantine => assert_eq!((rests[0], last), (quarantine, quarantine), "{cause:?}"),
            Resting::Doubling => {
                assert_eq!(rests[0], quarantine);
                assert!(matches!(last, Rest::Quarantine(until) if until > death.now.plus_ms(QUARANTINE_S * 16_000)));
            }
        }
    }
}

#[test]
fn one_alone_at_its_second_death_is_sentenced_if_the_cause_speaks_against_it() {
    let mut known = Suspicion::default();
    known.saw_death();
    for (cause, row) in table() {
        let verdict = judged(&death(cause.clone(), 1, false), &line(1, 1, known));
        let is_sentenced = fates(&verdict.held) == [Fate::Suspect];
        assert_eq!(is_sentenced, row.blame == Blame::Requests, "{cause:?}");
        assert!(!is_sentenced || verdict.rest == Rest::None, "its model is not to blame: {cause:?}");
        // Others that were aboard, or another model's worker that died of the same, leave room for doubt.
        let two = judged(&death(cause.clone(), 2, false), &line(2, 0, known));
        assert!(!fates(&two.held).contains(&Fate::Suspect), "{cause:?}");
        let shared = Death { is_shared: true, ..death(cause.clone(), 1, false) };
        let is_sentenced = fates(&judged(&shared, &line(1, 0, known)).held) == [Fate::Suspect];
        assert_eq!(is_sentenced, row.blame == Blame::Requests && !row.shared, "{cause:?}");
    }
}

#[test]
fn a_server_that_leaves_resumes_nobody_and_rests_nowhere() {
    for (cause, _) in table() {
        let leaving = Death { is_leaving: true, ..death(cause.clone(), 2, false) };
        let verdict = judged(&leaving, &line(2, 0, Suspicion::default()));
        assert_eq!(fates(&verdict.held), [Fate::Failed, Fate::Failed], "{cause:?}");
        assert_eq!(verdict.rest, Rest::None, "{cause:?}");
    }
}

#[test]
fn kills_cost_a_request_time_and_end_it_when_they_have_cost_too_much() {
    let killed = |cost_ms: u64, lost: u64| {
        let mut before = Suspicion::default();
        before.lost(lost);
        let death = Death { now: Mono(cost_ms * 1_000_000), ..death(Cause::Signalled { signal: 9 }, 1, false) };
        judged(&death, &line(1, 0, before)).held.remove(0)
    };
    let most_ms = LOST_TO_KILLS_MS_MAX;
    assert_eq!(killed(most_ms - 1, 0).fate, Fate::Resumed);
    assert_eq!(killed(most_ms, 0).fate, Fate::Failed);
    assert_eq!(killed(1, (most_ms - 1) * 1_000_000).fate, Fate::Failed);
    let mut ahead = killed(most_ms - 1, 0).suspicion;
    ahead.gained();
    assert!(!ahead.has_lost_too_much() && ahead == Suspicion::default(), "a token makes up for all of it");
}

#[test]
fn those_that_wait_bear_some_failed_loads_and_no_pointless_one() {
    let crash = || death(Cause::Signalled { signal: 11 }, 0, true);
    let mut suspicion = Suspicion::default();
    for failed in 1..=LOADS_FAILED_MAX {
        let waits = judged(&crash(), &line(0, 1, suspicion)).waiting.remove(0);
        assert_eq!(waits.failure.is_some(), failed == LOADS_FAILED_MAX);
        suspicion = waits.suspicion;
    }
    let pointless = judged(&death(load_failed(Retry::Never), 0, true), &line(0, 2, Suspicion::default()));
    assert_eq!(fates(&pointless.waiting), [Fate::Failed, Fate::Failed]);
    // A death after the load is no fault of a load.
    let later = judged(&death(Cause::Silent, 0, false), &line(0, 1, suspicion)).waiting.remove(0);
    assert_eq!(later.suspicion, suspicion);
}
