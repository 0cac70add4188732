//! What is kept of each death that nobody asked for: when, why, its last words, and what became of those it ran.
//!
//! Bounded: [`DEATH_RECORDS_MAX`] per model, [`DEATH_LOG_BYTES_MAX`] of log each. No prompt and no output is in it.

use std::collections::VecDeque;
use std::sync::Arc;

use ollmlx_proto::RequestId;
use ollmlx_proto::limits::{DEATH_LOG_BYTES_MAX, DEATH_RECORDS_MAX};

use crate::types::{DeathRecord, Fate, Mono};

/// The ring of one model. Shared with snapshots, which cost a count each.
#[derive(Clone, Debug, Default)]
pub(super) struct Deaths {
    pub(super) records: Arc<VecDeque<DeathRecord>>,
    pub(super) count: u64,
}

impl Deaths {
    pub(super) fn push(&mut self, record: DeathRecord) {
        let records = Arc::make_mut(&mut self.records);
        while records.len() >= DEATH_RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(record);
        self.count += 1;
    }

    /// Those of this class, from then on, are a part of this incident. Returns the requests that were present at one that
    /// was not known to be, and go on.
    pub(super) fn share(&mut self, incident: u64, class: &str, since: Mono) -> Vec<RequestId> {
        let mut present = Vec::new();
        for record in Arc::make_mut(&mut self.records).iter_mut().rev().take_while(|record| record.at >= since) {
            if record.cause.class() == class && record.incident.replace(incident).is_none() {
                let resumed = record.requests.iter().filter(|held| held.fate == Fate::Resumed);
                present.extend(resumed.map(|held| held.request));
            }
        }
        present
    }
}

/// The last whole lines of a log, as far as they fit.
pub(super) fn last_lines(log_tail: &str) -> String {
    let text = log_tail.trim_end();
    if text.len() <= DEATH_LOG_BYTES_MAX {
        return text.to_owned();
    }
    let from = text.ceil_char_boundary(text.len() - DEATH_LOG_BYTES_MAX);
    let kept = &text[from..];
    kept.split_once('\n').map_or(kept, |(_, whole)| whole).to_owned()
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::{Incarnation, ModelId, WorkerId};

    use super::*;
    use crate::types::{After, Cause};

    fn record(incarnation: u32) -> DeathRecord {
        DeathRecord {
            worker: WorkerId { model: ModelId("m".to_owned()), incarnation: Incarnation(incarnation) },
            at: Mono(1),
            state: "busy",
            cause: Cause::Silent,
            log_tail: String::new(),
            requests: Vec::new(),
            after: After::Ready,
            cpu_level: None,
            incident: None,
        }
    }

    #[test]
    fn the_ring_is_bounded_and_counts_what_it_forgets() {
        let mut deaths = Deaths::default();
        for incarnation in 0..=DEATH_RECORDS_MAX as u32 {
            deaths.push(record(incarnation));
        }
        assert_eq!((deaths.records.len(), deaths.count), (DEATH_RECORDS_MAX, DEATH_RECORDS_MAX as u64 + 1));
        assert_eq!(deaths.records[0].worker.incarnation.0, 1);
    }

    #[test]
    fn a_long_log_is_cut_at_a_line() {
        let line = "é".repeat(40) + "\n";
        let log = line.repeat(DEATH_LOG_BYTES_MAX / line.len() + 9);
        let kept = last_lines(&log);
        assert!(kept.len() <= DEATH_LOG_BYTES_MAX && kept.lines().all(|kept| kept.len() == line.len() - 1));
        assert_eq!(last_lines("one\ntwo\n\n"), "one\ntwo");
    }
}
