//! Counts deaths by model and cause, from one snapshot to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limits::{MODEL_LABELS_MAX, MODELS_REMEMBERED_MAX};
use tokio::sync::watch;

use crate::types::Snapshot;

/// Deaths by model and class of cause.
pub type DeathCounts = BTreeMap<(String, &'static str), u64>;

/// Counts deaths by cause until the driver is gone.
pub async fn follow(mut snapshots: watch::Receiver<Arc<Snapshot>>, counts: watch::Sender<DeathCounts>) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    while snapshots.changed().await.is_ok() {
        let fresh = {
            let snapshot = snapshots.borrow_and_update();
            if std::mem::replace(&mut total, snapshot.totals.deaths) == snapshot.totals.deaths {
                continue;
            }
            snapshot.deaths.clone()
        };
        for model in fresh {
            let before = seen.insert(model.model.id.0.clone(), model.count).filter(|before| *before <= model.count);
            let new = usize::try_from(model.count - before.unwrap_or(0)).unwrap_or(usize::MAX);
            let name = &model.model.name;
            for record in model.deaths.iter().rev().take(new) {
                counts.send_modify(|counts| {
                    let full = counts.len() >= MODEL_LABELS_MAX && !counts.keys().any(|(known, _)| known == name);
                    let label = if full { "other" } else { name.as_str() };
                    *counts.entry((label.to_owned(), record.cause.class())).or_default() += 1;
                });
            }
        }
        // Models that are forgotten begin anew.
        while seen.len() > MODELS_REMEMBERED_MAX {
            seen.pop_first();
        }
    }
}
