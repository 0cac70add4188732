//! Effects to deeds.

use std::time::Duration;

use nix::sys::signal::Signal;
use ollmlx_proto::limits::CLIENT_WRITE_TIMEOUT_MS;
use ollmlx_proto::version::choose;
use ollmlx_proto::{Failure, Request, RequestId, ToWorker, WorkerId};

use super::{Driver, Message, Process, TicketItem};
use crate::os::process::signal_group;
use crate::os::rng;
use crate::scheduler::{Cause, Effect, Event, LoadPlan, Push};
use crate::worker::link::{Link, Route};
use crate::worker::socket::Dialled;
use crate::worker::spawn::{Summons, start};

/// How long the link of a reaped process may stay open.
const LINK_GRACE: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { worker, plan } => self.spawn(worker, &plan),
            Effect::Load { worker, plan } => {
                self.send(&worker, ToWorker::Load(plan.spec.clone()));
            }
            Effect::Grant { worker, request } => self.grant(&worker, request),
            Effect::Loaded { request, .. } => self.loaded(request),
            Effect::Fail { request, failure } => self.fail(request, failure),
            Effect::Cancel { worker, request } => {
                self.send(&worker, ToWorker::Cancel(request));
            }
            Effect::Push { worker, push } => self.push(&worker, push),
            Effect::Transition { worker, from, to, cause } => log_transition(&worker, from, to, cause.as_ref()),
            Effect::Never { what } => tracing::error!(what, "what can't happen happened"),
            Effect::Finished => self.finished = true,
        }
    }

    fn spawn(&mut self, worker: WorkerId, plan: &LoadPlan) {
        let started = rng::secret().and_then(|token| {
            let summons = Summons {
                worker: &worker,
                backend: plan.model.backend,
                worker_dir: &self.config.worker_dir,
                socket: &self.socket_path,
                token: &token,
            };
            start(&summons).map(|started| (started, token))
        });
        match started {
            Ok((started, token)) => {
                let pid = started.pid;
                self.processes.insert(worker.clone(), Process { pid, token, link: None, reaped: None });
                let (messages, id) = (self.sender.clone(), worker.clone());
                self.tasks.spawn(async move {
                    let (cause, log_tail) = started.reap(id.clone()).await;
                    let worker = id.clone();
                    let _ = messages.send(Message::Reaped { worker, cause, log_tail }).await;
                    tokio::time::sleep(LINK_GRACE).await;
                    let _ = messages.send(Message::ReapedOverdue(id)).await;
                });
                self.step(Event::Spawned { worker, pid });
            }
            Err(error) => self.step(Event::SpawnFailed { worker, reason: error.to_string() }),
        }
    }

    /// Someone says that it is one of ours: process id and token must agree.
    pub(super) fn dialled(&mut self, dialled: Dialled) {
        let Dialled { hello, peer_pid, stream, decoder } = dialled;
        let worker = hello.worker.clone();
        let Some(process) = self.processes.get_mut(&worker) else {
            tracing::warn!(%worker, "a stranger with an unknown worker id was dropped");
            return;
        };
        let same_process = peer_pid.is_none_or(|pid| pid == process.pid) && hello.pid == process.pid;
        if !same_process || !equal_in_constant_time(&hello.token, &process.token) || process.link.is_some() {
            tracing::warn!(%worker, "a stranger with a wrong token or process id was dropped");
            return;
        }
        let Some(version) = choose(&hello.versions) else {
            let reason = format!("it speaks protocol versions {:?}, this is another build", hello.versions);
            self.step(Event::Misbehaved { worker, cause: Cause::HelloRefused(reason) });
            return;
        };
        let link = Link::open(worker.clone(), stream, decoder, self.sender.clone(), &mut self.tasks);
        link.send(ToWorker::Hello { version, build: env!("CARGO_PKG_VERSION").to_owned() });
        process.link = Some(link);
        self.step(Event::Hello { worker });
    }

    /// Sends to a worker; one that takes nothing any more is found by its silence.
    fn send(&self, worker: &WorkerId, message: ToWorker) -> bool {
        let link = self.processes.get(worker).and_then(|process| process.link.as_ref());
        let sent = link.is_some_and(|link| link.send(message));
        if !sent {
            tracing::debug!(%worker, "a message could not be handed to a worker's link");
        }
        sent
    }

    fn grant(&mut self, worker: &WorkerId, request: Box<Request>) {
        let id = request.id;
        let now = self.clock.now();
        let Some(record) = self.records.get_mut(&id) else { return };
        record.granted = Some(now);
        // A fresh ticket has room; one whose client is gone is cancelled by the word it left.
        let _ = record.ticket.try_send(TicketItem::Granted { load_ns: now.since(record.arrived) });
        let ticket = record.ticket.clone();
        let link = self.processes.get(worker).and_then(|process| process.link.as_ref());
        if let Some(link) = link
            && link.route(Route { request: id, ticket })
        {
            link.send(ToWorker::Run(request));
        }
        // Where the link is down its end is on its way, and the scheduler fails the request then.
    }

    fn loaded(&mut self, request: RequestId) {
        let now = self.clock.now();
        let Some(record) = self.records.remove(&request) else { return };
        let _ = record.ticket.try_send(TicketItem::Granted { load_ns: now.since(record.arrived) });
        let _ = record.ticket.try_send(TicketItem::Loaded);
    }

    fn fail(&mut self, request: RequestId, failure: Failure) {
        let Some(record) = self.records.remove(&request) else { return };
        tracing::info!(
            request_id = request.0,
            model = record.model,
            error = failure.public,
            detail = failure.detail,
            "a request failed"
        );
        let backlog = record.orphan.map(|orphan| orphan.backlog).unwrap_or_default();
        let last = TicketItem::Failed(failure);
        if backlog.is_empty() && record.ticket.try_send(last.clone()).is_ok() {
            return;
        }
        // The client still has to take what came before; it gets its time and no more.
        self.tasks.spawn(async move {
            let words = async {
                for output in backlog {
                    if record.ticket.send(TicketItem::Output(output)).await.is_err() {
                        return;
                    }
                }
                let _ = record.ticket.send(last).await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(CLIENT_WRITE_TIMEOUT_MS), words).await;
        });
    }

    fn push(&mut self, worker: &WorkerId, push: Push) {
        let Some(process) = self.processes.get(worker).filter(|process| process.reaped.is_none()) else { return };
        match push {
            Push::Ask => {
                self.send(worker, ToWorker::Drain);
            }
            Push::Term => signal_group(process.pid, Signal::SIGTERM),
            Push::Kill => signal_group(process.pid, Signal::SIGKILL),
        }
    }

    /// The process is gone; its number may belong to another one from here on, so it gets no signal any more.
    pub(super) fn reaped(&mut self, worker: WorkerId, cause: Cause, log_tail: String) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        process.reaped = Some((cause, log_tail));
        if process.link.is_none() {
            self.link_closed(&worker);
        }
    }

    /// All that the worker ever said has been heard.
    pub(super) fn link_closed(&mut self, worker: &WorkerId) {
        let Some(process) = self.processes.get_mut(worker) else { return };
        process.link = None;
        if let Some((cause, log_tail)) = process.reaped.take() {
            self.processes.remove(worker);
            self.step(Event::Exited { worker: worker.clone(), cause, log_tail });
        }
    }
}

fn equal_in_constant_time(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn log_transition(worker: &WorkerId, from: &str, to: &str, cause: Option<&Cause>) {
    let (model, incarnation) = (&worker.model, worker.incarnation.0);
    match cause {
        Some(cause) if *cause != Cause::Asked => {
            tracing::warn!(%model, incarnation, state_from = from, state_to = to, ?cause, "a worker changed state");
        }
        _ => tracing::info!(%model, incarnation, state_from = from, state_to = to, "a worker changed state"),
    }
}
