//! Watches what the workers take and remembers the most of it, so that the next plan for the same model knows.
//!
//! Kept is the larger of the worker's report and the system's count, at its peak, from the moment a worker is ready. The
//! file is written when there is news, one write after another; a write that fails is a warning and no more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ollmlx_proto::WorkerId;
use tokio::sync::watch;

use crate::catalog::{Learned, Loaded};
use crate::scheduler::{Snapshot, WorkerView};

/// Growth of a peak that is worth a write, in thousandths.
const NEWS_PERMILLE: u64 = 10;

/// A living process.
#[derive(Clone, Debug)]
struct Seen {
    loaded: Loaded,
    /// The most so far.
    peak: u64,
    /// The most that was told.
    told: u64,
}

/// Those that live, and what they took.
#[derive(Debug, Default)]
struct Watch(BTreeMap<WorkerId, Seen>);

impl Watch {
    /// Looks at a moment. Says whether there is news.
    fn look(&mut self, snapshot: &Snapshot, learned: &mut Learned) -> bool {
        let mut news = false;
        let mut gone = std::mem::take(&mut self.0);
        for view in snapshot.workers.iter().filter(|view| view.pid.is_some()) {
            let fresh = || loaded(view).map(|loaded| Seen { loaded, peak: 0, told: 0 });
            let Some(mut seen) = gone.remove(&view.worker).or_else(fresh) else { continue };
            seen.peak = seen.peak.max(view.account.measured());
            if seen.peak > seen.told.saturating_add(seen.told / 1000 * NEWS_PERMILLE) {
                seen.told = seen.peak;
                news |= learned.took(&seen.loaded, seen.peak);
            }
            self.0.insert(view.worker.clone(), seen);
        }
        for seen in gone.into_values() {
            news |= learned.ended(&seen.loaded, seen.peak);
        }
        news
    }
}

/// How it was loaded; nothing before it is ready.
fn loaded(view: &WorkerView) -> Option<Loaded> {
    let account = &view.account;
    let estimate = account.estimate.total();
    (account.reported > 0 && estimate > 0).then_some(Loaded {
        model: view.worker.model.clone(),
        slots: account.slots,
        context_tokens: account.context_tokens,
        batch_tokens: account.batch_tokens,
        kv_type: account.kv_type.clone(),
        estimate,
    })
}

/// Learns until the driver is gone.
pub async fn follow(mut snapshots: watch::Receiver<Snapshot>, learned: watch::Sender<Learned>, path: PathBuf) {
    let mut watch = Watch::default();
    let mut known = learned.borrow().clone();
    while snapshots.changed().await.is_ok() {
        let news = watch.look(&snapshots.borrow_and_update(), &mut known);
        if !news {
            continue;
        }
        learned.send_replace(known.clone());
        let (path, kept) = (path.clone(), known.clone());
        let written = tokio::task::spawn_blocking(move || kept.write(&path)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "what was learned of memory could not be kept");
        }
    }
}
