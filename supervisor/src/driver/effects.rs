//! Effects performed: each is a message, a signal or a process, and none waits.

use ollmlx_proto::{Failure, FailureKind, RequestId, ToWorker, WorkerId};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::task::{Process, Task};
use crate::os::rng;
use crate::scheduler::{Cause, Effect, Event, LoadPlan, Mono, Push};
use crate::worker::link::{LinkCommand, Phase};
use crate::worker::reap::{self, SHOVES_LEN_MAX, Shove};
use crate::worker::sink::{Sink, Summary, TicketItem};
use crate::worker::spawn;

/// For a request that is larger than a frame may be.
pub(super) fn unsendable() -> Failure {
    Failure::new(FailureKind::InvalidRequest, "the request is too large")
}

impl Task {
    pub(super) fn perform(&mut self, effect: Effect, now: Mono) {
        match effect {
            Effect::Spawn { worker, plan } => {
                let event = match self.spawn(&worker, &plan) {
                    Ok(pid) => Event::Spawned { worker, pid },
                    Err(error) => Event::SpawnFailed { worker, reason: error.to_string() },
                };
                self.owed.push_back(event);
            }
            Effect::Load { worker, plan } => self.send(&worker, ToWorker::Load(plan.spec)),
            Effect::Grant { worker, request } => self.grant(worker, request, now),
            Effect::Loaded { request, worker } => {
                if let Some(record) = self.requests.get_mut(&request) {
                    let load_ns = now.since(record.arrived);
                    record.granted = Some((now, worker));
                    if let Some(client) = record.client.take() {
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
            Effect::Transition { worker, from, to, cause } => self.transition(&worker, from, to, cause),
            Effect::Never { what } => error!(event = what, "the impossible happened"),
            Effect::Finished => self.finished = true,
        }
    }

    fn spawn(&mut self, worker: &WorkerId, plan: &LoadPlan) -> std::io::Result<u32> {
        let program = spawn::program(self.config.worker_dir.as_deref(), plan.model.backend.as_str())?;
        let token = rng::bytes()?;
        let started = spawn::start(&program, &self.socket, worker, &token)?;
        let pid = started.pid;
        let (shoves, shoves_out) = mpsc::channel(SHOVES_LEN_MAX);
        let (phase, phase_out) = watch::channel(Phase::Waiting);
        let process = Process { pid, token, shoves, phase, link: None, reported: 0 };
        self.processes.insert(worker.clone(), process);
        let reports = self.reports_in.clone();
        self.tasks.spawn(reap::run(worker.clone(), started, shoves_out, phase_out, reports, self.clock));
        Ok(pid)
    }

    /// Connects the client with the link, then sends the request. A client that is gone by now takes no slot.
    fn grant(&mut self, worker: WorkerId, request: Box<ollmlx_proto::Request>, now: Mono) {
        let id = request.id;
        let client = self.requests.get_mut(&id).and_then(|record| {
            record.granted = Some((now, worker.clone()));
            let client = record.client.take()?;
            let load_ns = now.since(record.arrived);
            client.try_send(TicketItem::Granted { load_ns }).is_ok().then_some(client)
        });
        let Some(client) = client else {
            self.summarise(id, &Summary { finish_reason: "cancelled", ..Summary::default() });
            self.owed.push_back(Event::Left { request: id });
            self.owed.push_back(Event::Ended { worker, request: id });
            return;
        };
        if let Some(link) = self.processes.get(&worker).and_then(|process| process.link.as_ref()) {
            let attach = LinkCommand::Attach(id, Box::new(Sink::new(client)));
            if link.commands.try_send(attach).is_err() {
                error!(%worker, request_id = %id, "no room at the link");
            }
        }
        self.send(&worker, ToWorker::Run(request));
    }

    /// Ends a waiting client here, or a running one through its link, behind what it has yet to hear.
    fn fail(&mut self, request: RequestId, failure: Failure) {
        let Some(record) = self.requests.get_mut(&request) else { return };
        warn!(request_id = %request, kind = ?failure.kind, error = failure.public, "request failed");
        match (record.client.take(), record.granted.clone()) {
            (Some(client), _) => {
                // The queue of one that waits is empty; one that is gone needs no answer.
                let _gone = client.try_send(TicketItem::Failed(failure));
            }
            (None, Some((_, worker))) => self.fail_at_link(&worker, request, failure),
            (None, None) => {}
        }
        self.summarise(request, &Summary { finish_reason: "failed", ..Summary::default() });
    }

    pub(super) fn fail_at_link(&mut self, worker: &WorkerId, request: RequestId, failure: Failure) {
        if let Some(link) = self.processes.get(worker).and_then(|process| process.link.as_ref())
            && link.commands.try_send(LinkCommand::Fail(request, failure)).is_err()
        {
            error!(%worker, request_id = %request, "no room at the link");
        }
    }

    fn send(&mut self, worker: &WorkerId, message: ToWorker) {
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
                let shove = if push == Push::Term { Shove::Terminate } else { Shove::Kill };
                if let Some(process) = self.processes.get(worker) {
                    // Full means that it has been told often enough.
                    let _told = process.shoves.try_send(shove);
                }
            }
        }
    }

    fn transition(&mut self, worker: &WorkerId, from: &'static str, to: &'static str, cause: Option<Cause>) {
        let pid = self.processes.get(worker).map(|process| process.pid);
        let (model, incarnation) = (&worker.model, worker.incarnation.0);
        match cause.filter(|cause| *cause != Cause::Asked) {
            None => info!(%model, incarnation, pid, state_from = from, state_to = to, "worker changed"),
            Some(cause) => {
                let cause = cause.words();
                warn!(%model, incarnation, pid, state_from = from, state_to = to, cause, "worker changed");
            }
        }
    }
}
