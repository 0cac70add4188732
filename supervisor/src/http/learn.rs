//! Watches what the workers take and remembers the most of it, so that the next plan for the same model knows.
//!
//! Kept is what was measured at its peak, once a process has ended as it was asked to. One that died unasked, above all for
//! its memory, says nothing of what its model needs; nor does one whose model a person had restarted. The file is written
//! when there is news, one write after another; a write that fails is a warning and no more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ollmlx_proto::{ModelId, WorkerId};
use tokio::sync::{mpsc, watch};

use crate::catalog::{Learned, Loaded};
use crate::types::{Snapshot, WorkerView};

/// Models to be forgotten that wait for a write to end.
pub const FORGET_LEN_MAX: usize = 16;

/// A living process.
#[derive(Clone, Debug)]
struct Seen {
    loaded: Loaded,
    /// The most so far.
    peak: u64,
    /// Whether it is to teach nothing.
    is_void: bool,
}

/// Those that live, and what they took.
#[derive(Debug, Default)]
struct Watch(BTreeMap<WorkerId, Seen>);

impl Watch {
    /// Looks at a moment. Says whether there is news.
    fn look(&mut self, snapshot: &Snapshot, learned: &mut Learned) -> bool {
        let mut gone = std::mem::take(&mut self.0);
        for view in snapshot.workers.iter().filter(|view| view.pid.is_some()) {
            let fresh = || loaded(view).map(|loaded| Seen { loaded, peak: 0, is_void: false });
            let Some(mut seen) = gone.remove(&view.worker).or_else(fresh) else { continue };
            seen.peak = seen.peak.max(view.account.measured);
            self.0.insert(view.worker.clone(), seen);
        }
        let mut news = false;
        for (worker, seen) in gone {
            if !seen.is_void && !died(&worker, snapshot) {
                news |= learned.ended(&seen.loaded, seen.peak);
            }
        }
        news
    }

    fn forget(&mut self, model: &ModelId) {
        self.0.iter_mut().filter(|(worker, _)| worker.model == *model).for_each(|(_, seen)| seen.is_void = true);
    }
}

/// Whether a process that is gone ended unasked.
fn died(worker: &WorkerId, snapshot: &Snapshot) -> bool {
    let deaths = snapshot.deaths_of(&worker.model);
    deaths.is_some_and(|deaths| deaths.deaths.iter().any(|record| record.worker == *worker))
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

/// Learns until the driver is gone. `forget` names models whose past a person wants forgotten. When a server that this one
/// replaces is gone, what that has learned to its end is read again.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    learned: watch::Sender<Learned>,
    path: PathBuf,
    mut forget: mpsc::Receiver<ModelId>,
) {
    let mut watch = Watch::default();
    let mut known = learned.borrow().clone();
    let (mut elsewhere, mut forgotten) = (0, Vec::new());
    loop {
        let news = tokio::select! {
            // Both are cancel-safe.
            changed = snapshots.changed() => match changed {
                Ok(()) => {
                    let (news, held) = {
                        let snapshot = snapshots.borrow_and_update();
                        (watch.look(&snapshot, &mut known), snapshot.elsewhere_bytes)
                    };
                    let has_ended = std::mem::replace(&mut elsewhere, held) > 0 && held == 0;
                    if has_ended { adopt(&path, &mut known, std::mem::take(&mut forgotten)).await || news } else { news }
                }
                Err(_driver_gone) => return,
            },
            Some(model) = forget.recv() => {
                watch.forget(&model);
                let news = known.forget(&model);
                if elsewhere > 0 && !forgotten.contains(&model) {
                    forgotten.push(model);
                }
                news
            }
        };
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

async fn adopt(path: &Path, known: &mut Learned, forgotten: Vec<ModelId>) -> bool {
    let path = path.to_owned();
    let theirs = tokio::task::spawn_blocking(move || Learned::read(&path)).await;
    theirs.is_ok_and(|theirs| known.adopt(theirs, &forgotten))
}
