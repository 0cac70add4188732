//! The way of a request between its client, the driver and the links: granted, called back from the link of a dead
//! worker, granted again, failed.

use std::sync::Arc;

use ollmlx_proto::{Failure, FailureKind, Request, RequestId, WorkerId};
use tracing::{error, info, warn};

use super::task::{ClientPlace, OnReturn, Task};
use crate::scheduler::Event;
use crate::types::Mono;
use crate::types::TicketItem;
use crate::worker::link::{LinkCommand, LinkMessage};
use crate::worker::sink::{ClientSink, Summary};

impl Task {
    /// Connects the client with the link, then sends the request. A client that is gone by now takes no slot.
    pub(super) fn grant(&mut self, worker: WorkerId, request: Arc<Request>, now: Mono) {
        let id = request.id;
        let Some(record) = self.requests.get_mut(&id) else { return self.ungranted(worker, id) };
        record.worker = Some(worker.clone());
        let load_ns = now.since(record.arrived);
        record.granted.get_or_insert(now);
        let sink = match std::mem::replace(&mut record.place, ClientPlace::AtLink) {
            ClientPlace::Here(client) => {
                let told = client.try_send(TicketItem::Granted { load_ns });
                told.is_ok().then(|| Box::new(ClientSink::new(client)))
            }
            ClientPlace::Parked(sink) => Some(sink),
            ClientPlace::Returning(_) => {
                record.place = ClientPlace::Returning(OnReturn::Grant(worker, request));
                return;
            }
            ClientPlace::AtLink => None,
        };
        match sink {
            Some(sink) => self.attach(&worker, &request, sink),
            None => self.ungranted(worker, id),
        }
    }

    /// Nobody is there to hear it: the slot is free again.
    fn ungranted(&mut self, worker: WorkerId, request: RequestId) {
        self.cancelled(request);
        self.owed.push_back(Event::Left { request });
        self.owed.push_back(Event::Ended { worker, request });
    }

    fn attach(&mut self, worker: &WorkerId, request: &Arc<Request>, mut sink: Box<ClientSink>) {
        sink.begin(self.now().0);
        let progress = sink.progress(request.sampling.is_repeatable());
        if !progress.produced.is_empty() {
            let (model, incarnation, completion_tokens) =
                (&worker.model, worker.incarnation.0, progress.produced.len());
            info!(request_id = %request.id, %model, incarnation, completion_tokens, "request resumed");
        }
        if let Some(link) = self.processes.get(worker).and_then(|process| process.link.as_ref())
            && link.commands.try_send(LinkCommand::Attach(request.id, sink)).is_err()
        {
            error!(%worker, request_id = %request.id, "no room at the link");
        }
        self.send_message(worker, LinkMessage::Run { request: request.clone(), progress });
    }

    /// Its worker is gone: its client comes back.
    pub(super) fn requeue(&mut self, worker: &WorkerId, request: RequestId) {
        let Some(record) = self.requests.get_mut(&request) else {
            return self.owed.push_back(Event::Left { request });
        };
        let was_at_link = matches!(record.place, ClientPlace::AtLink);
        record.place = ClientPlace::Returning(OnReturn::Park);
        if !was_at_link {
            // It has not even come back from the one before.
            return;
        }
        let link = self.processes.get(worker).and_then(|process| process.link.as_ref());
        if link.is_none_or(|link| link.commands.try_send(LinkCommand::Park(request)).is_err()) {
            error!(%worker, request_id = %request, "client can't be called back");
            self.cancelled(request);
            self.owed.push_back(Event::Left { request });
        }
    }

    /// It came back.
    pub(super) fn parked(&mut self, request: RequestId, sink: Option<Box<ClientSink>>) {
        // One that is not known any more has ended, or its client has.
        let Some(record) = self.requests.get_mut(&request) else { return };
        let ClientPlace::Returning(next) = std::mem::replace(&mut record.place, ClientPlace::AtLink) else {
            return error!(request_id = %request, "a client came back that nobody called");
        };
        match (next, sink) {
            (OnReturn::Park, Some(sink)) => record.place = ClientPlace::Parked(sink),
            (OnReturn::Grant(worker, kept), Some(sink)) => self.attach(&worker, &kept, sink),
            (OnReturn::Fail(failure), Some(sink)) => self.fail_parked(request, sink, failure),
            (next, None) => {
                record.place = ClientPlace::Returning(next);
                self.forget(request, &Summary { finish_reason: "cancelled", ..Summary::default() });
            }
        }
    }

    /// Ends one that no worker works on.
    pub(super) fn forget(&mut self, request: RequestId, summary: &Summary) {
        let granted = match self.requests.get(&request).map(|record| &record.place) {
            Some(ClientPlace::Returning(OnReturn::Grant(worker, _))) => Some(worker.clone()),
            _ => None,
        };
        self.summarise(request, summary);
        self.step(Event::Left { request });
        if let Some(worker) = granted {
            // The worker has never heard of it, so it can't confirm the end.
            self.step(Event::Ended { worker, request });
        }
    }

    /// Ends a waiting client here, or a running one through its link, behind what it has yet to hear.
    pub(super) fn fail(&mut self, request: RequestId, failure: Failure) {
        let Some(record) = self.requests.get_mut(&request) else { return };
        warn!(request_id = %request, kind = ?failure.kind, error = failure.public, "request failed");
        match std::mem::replace(&mut record.place, ClientPlace::AtLink) {
            ClientPlace::Here(client) => {
                // The queue of one that waits is empty; one that is gone needs no answer.
                let _gone = client.try_send(TicketItem::Failed(failure));
            }
            ClientPlace::AtLink if failure.kind == FailureKind::Cancelled => return self.cancelled(request),
            ClientPlace::AtLink => {
                if let Some(worker) = record.worker.clone() {
                    self.fail_at_link(&worker, request, failure);
                }
            }
            ClientPlace::Returning(_) => {
                record.place = ClientPlace::Returning(OnReturn::Fail(failure));
                return;
            }
            ClientPlace::Parked(sink) => return self.fail_parked(request, sink, failure),
        }
        self.summarise(request, &Summary { finish_reason: "failed", ..Summary::default() });
    }

    fn fail_parked(&mut self, request: RequestId, mut sink: Box<ClientSink>, failure: Failure) {
        sink.fail(failure);
        self.summarise(request, &sink.summary);
        if !sink.is_done() {
            self.tasks.spawn(sink.flush());
        }
    }

    pub(super) fn cancelled(&mut self, request: RequestId) {
        self.summarise(request, &Summary { finish_reason: "cancelled", ..Summary::default() });
    }
}
