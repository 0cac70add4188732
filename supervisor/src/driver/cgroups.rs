//! Control groups of workers: made, widened and removed in threads that may wait, since the kernel takes its time when a
//! process moves or a group must give something back. A worker is told to load once it is in its group; until then it has
//! done nothing.
//!
//! Reading what a group holds is as quick as reading what a process holds, and done where that is.

use std::io;
use std::sync::Arc;

use crate::limits;
use ollmlx_proto::{Failure, FailureKind, ToWorker, WorkerId};
use tokio::sync::oneshot;
use tracing::warn;

use super::task::{Task, WorkerProcess};
use crate::catalog;
use crate::os::worker_cgroup::WorkerCgroup;
use crate::types::LoadPlan;
use crate::worker::Report;

/// A worker's control group.
#[derive(Debug, Default)]
pub(super) enum ProcessCgroup {
    /// It has none.
    #[default]
    Absent,
    /// It is being made; what the worker is told then.
    Making(Option<ToWorker>),
    /// It lives there.
    Made(Arc<WorkerCgroup>),
}

impl ProcessCgroup {
    /// The group, once it is made.
    pub(super) fn made(&self) -> Option<&Arc<WorkerCgroup>> {
        match self {
            Self::Made(cgroup) => Some(cgroup),
            Self::Absent | Self::Making(_) => None,
        }
    }
}

/// What a control group may take for a budget: with headroom, since a plan is an estimate, but not more than the mark of
/// this limit, everybody's or the model's own, at which its worker is killed.
fn cgroup_bytes_max(budget_bytes: u64, limit: u64) -> u64 {
    let headroom = (budget_bytes / 100).saturating_mul(limits::CGROUP_HEADROOM_PERCENT);
    budget_bytes.saturating_add(headroom.max(limits::CGROUP_HEADROOM_BYTES_MIN)).min(kill_bytes(limit))
}

/// Where a worker is killed that takes more than a limit.
fn kill_bytes(limit: u64) -> u64 {
    let [_, _, _, _, [kill_permille, _]] = limits::MEMORY_MARKS_PERMILLE;
    limit.saturating_add((limit / 1_000).saturating_mul(kill_permille.saturating_sub(1_000)))
}

impl Task {
    /// Memory that a worker may set aside by itself, where no control group keeps it to its limit.
    pub(super) fn data_bytes_max(&self, limit: Option<u64>) -> Option<u64> {
        let limit = limit.filter(|_| self.config.cgroup_parent.is_none())?;
        Some(kill_bytes(limit).saturating_add(limits::WORKER_DATA_BYTES_SPARE))
    }

    /// Begins to make a group for a process that was just started. Answered with [`Report::CgroupMade`]. The process id is used
    /// until the receiver hears an end.
    pub(super) fn make_cgroup(
        &mut self,
        worker: &WorkerId,
        pid: u32,
        bytes: u64,
        limit: Option<u64>,
    ) -> (ProcessCgroup, oneshot::Receiver<()>) {
        let (using, unused) = oneshot::channel();
        let (Some(limit), Some(parent)) = (limit, self.config.cgroup_parent.clone()) else {
            return (ProcessCgroup::Absent, unused);
        };
        self.cgroups += 1;
        let (number, bytes_max) = (self.cgroups, cgroup_bytes_max(bytes, limit));
        let (worker, reports) = (worker.clone(), self.reports_in.clone());
        self.tasks.spawn_blocking(move || {
            let made = parent.cgroup(number, pid, bytes_max);
            drop(using);
            // Without a driver nobody needs it, and it goes with the report.
            let _driver_gone = reports.blocking_send((worker, Report::CgroupMade(made)));
        });
        (ProcessCgroup::Making(None), unused)
    }

    /// Tells the worker to load what was planned. A model that is known by a path may have become another one since, which must
    /// not go on with the first one's answers: it is looked at first, in a thread that may wait. Answered with
    /// [`Report::Unchanged`] or [`Report::LoadFailed`].
    pub(super) fn load_planned(&mut self, worker: &WorkerId, plan: LoadPlan) {
        let load = ToWorker::Load(plan.spec);
        if !catalog::is_path(&plan.model.full_name) {
            return self.load(worker, load);
        }
        let (worker, reports, model) = (worker.clone(), self.reports_in.clone(), plan.model);
        self.tasks.spawn_blocking(move || {
            let report = match catalog::is_unchanged(&model) {
                true => Report::Unchanged(load),
                false => {
                    let text =
                        "the model's files have changed since it was asked for; ask again to use them as they are now";
                    Report::LoadFailed(Failure::new(FailureKind::ModelInvalid, text))
                }
            };
            let _driver_gone = reports.blocking_send((worker, report));
        });
    }

    /// Tells the worker to load, at once or when it is in its group.
    pub(super) fn load(&mut self, worker: &WorkerId, load: ToWorker) {
        if let Some(WorkerProcess { cgroup: ProcessCgroup::Making(first), .. }) = self.processes.get_mut(worker) {
            *first = Some(load);
        } else {
            self.send(worker, load);
        }
    }

    /// The group is there, or could not be made.
    pub(super) fn cgroup_made(&mut self, worker: &WorkerId, made: io::Result<WorkerCgroup>) {
        let made = made.inspect_err(|error| warn!(%worker, %error, "a worker got no control group")).ok();
        let Some(process) = self.processes.get_mut(worker) else {
            return self
                .remove_cgroup(made.map_or(ProcessCgroup::Absent, |cgroup| ProcessCgroup::Made(Arc::new(cgroup))));
        };
        let cgroup = made.map_or(ProcessCgroup::Absent, |cgroup| ProcessCgroup::Made(Arc::new(cgroup)));
        if let ProcessCgroup::Making(Some(load)) = std::mem::replace(&mut process.cgroup, cgroup) {
            self.send(worker, load);
        }
    }

    /// A worker that is ready may take what it was found to need, and no longer whatever others leave free.
    pub(super) fn widen_cgroup(&mut self, worker: &WorkerId, bytes: u64) {
        let Some(process) = self.processes.get(worker) else { return };
        let (Some(limit), Some(cgroup)) = (process.limit, process.cgroup.made().cloned()) else { return };
        let worker = worker.clone();
        self.tasks.spawn_blocking(move || {
            if let Err(error) = cgroup.limit(cgroup_bytes_max(bytes, limit)) {
                warn!(%worker, %error, "a worker's control group kept its limit");
            }
        });
    }

    /// Removes the group of a process that was reaped.
    pub(super) fn remove_cgroup(&mut self, cgroup: ProcessCgroup) {
        if let ProcessCgroup::Made(cgroup) = cgroup {
            self.tasks.spawn_blocking(move || drop(cgroup));
        }
    }
}
