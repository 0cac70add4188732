//! Effects performed: each is a message, a signal or a process, and none waits.

use ollmlx_proto::{Failure, FailureKind, RequestId, ToWorker, WorkerId};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::oom::OomKills;
use super::task::{ClientPlace, Task, WorkerProcess};
use crate::os::sandbox::Grants;
use crate::os::{memory, rng};
use crate::scheduler::{Effect, Event, Push};
use crate::types::TicketItem;
use crate::types::{Cause, LoadPlan, Mono, Step};
use crate::worker::link::{LinkCommand, LinkMessage, Phase};
use crate::worker::reap::{self, GroupSignal, SIGNALS_LEN_MAX};
use crate::worker::sink::Summary;
use crate::worker::spawn;

/// For a request that is larger than a frame may be.
pub(super) fn unsendable() -> Failure {
    Failure::new(FailureKind::InvalidRequest, "the request is too large")
}

/// One line per step of memory pressure.
fn relief(from: Step, to: Step, measured_bytes: u64, limit_bytes: Option<u64>) {
    let (state_from, state_to) = (from.name(), to.name());
    if to > from {
        warn!(state_from, state_to, measured_bytes, limit_bytes, "memory became short");
    } else {
        info!(state_from, state_to, measured_bytes, limit_bytes, "memory was relieved");
    }
}

impl Task {
    pub(super) fn perform(&mut self, effect: Effect, now: Mono) {
        match effect {
            Effect::Spawn { worker, plan, reserved_bytes, ceiling_bytes } => {
                // Until it is ready, an estimate that is too low does no harm where there is room.
                let event = match self.spawn(&worker, &plan, reserved_bytes.max(ceiling_bytes)) {
                    Ok(pid) => Event::Spawned { worker, pid },
                    Err(error) => Event::SpawnFailed { worker, reason: error.to_string() },
                };
                self.owed.push_back(event);
            }
            Effect::Load { worker, plan } => self.load_planned(&worker, *plan),
            Effect::Grant { worker, request } => self.grant(worker, request, now),
            Effect::Requeue { worker, request } => self.requeue(&worker, request),
            Effect::Loaded { request, worker } => {
                if let Some(record) = self.requests.get_mut(&request) {
                    let load_ns = now.since(record.arrived);
                    (record.granted, record.worker) = (Some(now), Some(worker));
                    if let ClientPlace::Here(client) = std::mem::replace(&mut record.place, ClientPlace::AtLink) {
                        // A client that is gone needs no answer, and a new queue has room for two.
                        let _gone = client.try_send(TicketItem::Granted { load_ns });
                        let _gone = client.try_send(TicketItem::Loaded);
                    }
                }
                self.summarise(request, &Summary { finish_reason: "loaded", ..Summary::default() });
            }
            Effect::Fail { request, failure } => self.fail(request, failure),
            Effect::Cancel { worker, request } => self.send(&worker, ToWorker::Cancel(request)),
            Effect::Push { worker, push } => self.push(&worker, push),
            Effect::Trim { worker } => self.trim(&worker),
            Effect::Relief { from, to, measured_bytes, limit_bytes } => {
                relief(from, to, measured_bytes, limit_bytes);
            }
            Effect::Incident { number, cause, models } => {
                warn!(incident = number, cause, models = models.join(", "), "workers of several models died together");
            }
            Effect::Continue { worker } => {
                warn!(model = %worker.model, incarnation = worker.incarnation.0, "worker was stopped and is told to go on");
                self.signal(&worker, GroupSignal::Continue);
            }
            Effect::Transition { worker, from, to, cause, reason } => {
                self.transition(&worker, (from, to), cause, reason);
            }
            Effect::Never { what } => error!(event = what, "the impossible happened"),
            Effect::Finished => self.finished = true,
        }
    }

    fn spawn(&mut self, worker: &WorkerId, plan: &LoadPlan, cgroup_bytes: u64) -> std::io::Result<u32> {
        let program = spawn::program(self.config.worker_dir.as_deref(), plan.model.backend.as_str())?;
        let token = rng::bytes()?;
        let limit = [self.config.scheduler.memory_limit, plan.terms.limit].into_iter().flatten().min();
        let grants = Grants {
            read: plan.spec.weights.iter().chain(&plan.spec.adapters).cloned().collect(),
            socket: Some(self.socket.clone()),
            data_bytes_max: self.data_bytes_max(limit),
        };
        let introduction = spawn::Introduction { worker, token: &token, fault: self.config.fault.as_deref() };
        let started = spawn::start(&self.config.launcher, &program, grants, introduction)?;
        let pid = started.pid;
        let (signals, signals_out) = mpsc::channel(SIGNALS_LEN_MAX);
        let (phase, phase_out) = watch::channel(Phase::Waiting);
        let (cgroup, cgroup_made) = self.make_cgroup(worker, pid, cgroup_bytes, limit);
        let weights = plan.spec.weights.first().cloned();
        if self.processes.is_empty() {
            self.oom_kills = OomKills::begin(self.now(), memory::oom_kill_count());
        }
        let process = WorkerProcess {
            pid,
            token,
            signals,
            phase,
            link: None,
            reported: 0,
            sampled: 0,
            trimming: None,
            limit,
            is_accelerated: false,
            weights,
            cgroup,
        };
        self.processes.insert(worker.clone(), process);
        let reports = self.reports_in.clone();
        self.tasks.spawn(reap::run(
            worker.clone(),
            started,
            (signals_out, cgroup_made),
            phase_out,
            reports,
            self.clock,
            self.inbox.logs.clone(),
        ));
        Ok(pid)
    }

    pub(super) fn fail_at_link(&mut self, worker: &WorkerId, request: RequestId, failure: Failure) {
        if let Some(link) = self.processes.get(worker).and_then(|process| process.link.as_ref())
            && link.commands.try_send(LinkCommand::Fail(request, failure)).is_err()
        {
            error!(%worker, request_id = %request, "no room at the link");
        }
    }

    pub(super) fn send(&mut self, worker: &WorkerId, message: ToWorker) {
        self.send_message(worker, LinkMessage::Plain(message));
    }

    pub(super) fn send_message(&mut self, worker: &WorkerId, message: LinkMessage) {
        let Some(process) = self.processes.get(worker) else { return };
        let sent = process.link.as_ref().map(|link| link.messages.try_send(message).map_err(|_| ()));
        if let Some(Err(_full_or_closed)) = sent {
            // A writer that has ended found the socket broken, which the reader reports as well.
            warn!(%worker, "message was not sent");
        }
    }

    fn push(&mut self, worker: &WorkerId, push: Push) {
        match push {
            Push::Ask => self.send(worker, ToWorker::Drain),
            Push::Term | Push::Kill => {
                self.signal(worker, if push == Push::Term { GroupSignal::Terminate } else { GroupSignal::Kill });
            }
        }
    }

    fn signal(&self, worker: &WorkerId, signal: GroupSignal) {
        if let Some(process) = self.processes.get(worker) {
            // Full means that it has been told often enough.
            let _told = process.signals.try_send(signal);
        }
    }

    fn trim(&mut self, worker: &WorkerId) {
        if let Some(process) = self.processes.get_mut(worker) {
            let observed_bytes = process.sampled;
            process.trimming = Some(observed_bytes);
            let (model, incarnation) = (&worker.model, worker.incarnation.0);
            info!(%model, incarnation, observed_bytes, "worker was asked to drop its caches");
        }
        self.send(worker, ToWorker::Trim);
    }

    fn transition(
        &mut self,
        worker: &WorkerId,
        (from, to): (&'static str, &'static str),
        cause: Option<Cause>,
        reason: Option<&'static str>,
    ) {
        let pid = self.processes.get(worker).map(|process| process.pid);
        let (model, incarnation) = (&worker.model, worker.incarnation.0);
        match cause.filter(|cause| *cause != Cause::Asked) {
            None => info!(%model, incarnation, pid, state_from = from, state_to = to, reason, "worker changed"),
            Some(cause) => {
                let cause = cause.words();
                warn!(%model, incarnation, pid, state_from = from, state_to = to, cause, "worker changed");
            }
        }
    }
}
