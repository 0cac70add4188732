//! One worker's connection: frames out, frames in, each output to the request it belongs to.
//!
//! Two tasks. The writer sends what it is handed. The reader decodes, gives every request its outputs and tells the driver
//! what concerns the worker's life. A client that reads slowly holds up nobody: when its queue is full its deltas are merged
//! in place, and past `CLIENT_BACKLOG_BYTES_MAX` its request is cancelled.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use interprocess::local_socket::tokio::prelude::*;
use interprocess::local_socket::tokio::{RecvHalf, SendHalf, Stream};
use ollmlx_proto::frame::{Decoder, encode};
use ollmlx_proto::limits::{CLIENT_BACKLOG_BYTES_MAX, PROGRESS_INTERVAL_MS};
use ollmlx_proto::{Delta, Failure, FailureKind, FromWorker, Output, RequestId, ToWorker, TokenId, WorkerId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::driver::{Message, TicketItem};
use crate::scheduler::{Cause, Event};

/// Messages on their way to a worker.
const OUTBOX_LEN_MAX: usize = 256;
/// Outputs for requests that do not run; more than this is a broken worker.
const STRAYS_MAX: u32 = 64;
const READ_BYTES: usize = 64 * 1024;
/// The rest of a frame that has begun is owed within this.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// The driver's end of a link.
#[derive(Debug)]
pub struct Link {
    outbox: mpsc::Sender<ToWorker>,
    routes: mpsc::Sender<Route>,
}

/// Where the outputs of a request go.
#[derive(Debug)]
pub struct Route {
    /// The request.
    pub request: RequestId,
    /// Its ticket.
    pub ticket: mpsc::Sender<TicketItem>,
}

/// A request whose worker is gone before it ended.
#[derive(Debug)]
pub struct Orphan {
    /// The request.
    pub request: RequestId,
    /// Tokens that it produced, for resuming.
    pub produced: Vec<TokenId>,
    /// What its client has not taken yet.
    pub backlog: VecDeque<Output>,
}

impl Link {
    /// Starts the two tasks over a connection whose hello was accepted.
    pub fn open(
        worker: WorkerId,
        stream: Stream,
        decoder: Decoder,
        driver: mpsc::Sender<Message>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (receive, send) = stream.split();
        let (outbox, outgoing) = mpsc::channel(OUTBOX_LEN_MAX);
        let (routes, new_routes) = mpsc::channel(OUTBOX_LEN_MAX);
        tasks.spawn(write(send, outgoing));
        let reader = Reader {
            worker,
            driver,
            outbox: outbox.clone(),
            new_routes,
            routes: HashMap::new(),
            waiting: JoinSet::new(),
            strays: 0,
            heard: None,
        };
        tasks.spawn(reader.run(receive, decoder));
        Self { outbox, routes }
    }

    /// Announces a request before its `Run` is sent. Returns whether the link is open and has room.
    pub fn route(&self, route: Route) -> bool {
        self.routes.try_send(route).is_ok()
    }

    /// Sends a message. Returns whether the link is open and has room; a worker that takes nothing for so long is hung.
    pub fn send(&self, message: ToWorker) -> bool {
        self.outbox.try_send(message).is_ok()
    }
}

async fn write(mut send: SendHalf, mut outgoing: mpsc::Receiver<ToWorker>) {
    let mut bytes = Vec::new();
    while let Some(message) = outgoing.recv().await {
        bytes.clear();
        if let Err(error) = encode(&message, &mut bytes) {
            tracing::error!(%error, "a message to a worker could not be encoded");
            continue;
        }
        while let Ok(message) = outgoing.try_recv() {
            if let Err(error) = encode(&message, &mut bytes) {
                tracing::error!(%error, "a message to a worker could not be encoded");
            }
        }
        if send.write_all(&bytes).await.is_err() {
            // The reader sees the end of the connection and tells.
            return;
        }
    }
}

/// One running request as the reader sees it.
struct Running {
    ticket: mpsc::Sender<TicketItem>,
    produced: Vec<TokenId>,
    backlog: VecDeque<Output>,
    backlog_bytes: usize,
    /// A task waits for room.
    waits: bool,
    /// The client was too slow and the request is being cancelled.
    overrun: bool,
    /// The terminal output has arrived.
    ended: bool,
}

struct Reader {
    worker: WorkerId,
    driver: mpsc::Sender<Message>,
    outbox: mpsc::Sender<ToWorker>,
    new_routes: mpsc::Receiver<Route>,
    routes: HashMap<RequestId, Running>,
    waiting: JoinSet<(RequestId, Option<mpsc::OwnedPermit<TicketItem>>)>,
    strays: u32,
    heard: Option<Instant>,
}

impl Reader {
    async fn run(mut self, mut receive: RecvHalf, mut decoder: Decoder) {
        let mut bytes = vec![0; READ_BYTES];
        let broken = loop {
            match self.drain(&mut decoder).await {
                Ok(()) => {}
                Err(reason) => break Some(reason),
            }
            tokio::select! {
                read = read_some(&mut receive, &mut bytes, decoder.is_mid_frame()) => match read {
                    Ok(0) => break None,
                    Ok(count) => decoder.push(&bytes[..count]),
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => break Some(error.to_string()),
                    Err(_) => break None,
                },
                Some(room) = self.waiting.join_next(), if !self.waiting.is_empty() => {
                    if let Ok((request, permit)) = room {
                        self.room(request, permit);
                    }
                }
            }
        };
        self.close(broken).await;
    }

    /// Handles every whole frame.
    async fn drain(&mut self, decoder: &mut Decoder) -> Result<(), String> {
        while let Some(message) = decoder.next_message::<FromWorker>().map_err(|error| error.to_string())? {
            self.take(message).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: Event) {
        // The driver outlives its links; if it does not, nobody listens any more.
        let _ = self.driver.send(Message::World(event)).await;
    }

    async fn take(&mut self, message: FromWorker) -> Result<(), String> {
        let worker = self.worker.clone();
        match message {
            FromWorker::Hello(_) => return Err("a second hello".to_owned()),
            FromWorker::LoadProgress { done, total } => {
                self.tell(Event::LoadProgress { worker, done, total }).await;
            }
            FromWorker::Ready(ready) => self.tell(Event::Ready { worker, ready }).await,
            FromWorker::LoadFailed(failure) => self.tell(Event::LoadFailed { worker, failure }).await,
            FromWorker::Memory(report) => {
                self.tell(Event::MemorySampled { worker, bytes: report.total() }).await;
            }
            FromWorker::Progress { .. } => self.hear().await,
            FromWorker::Bye => {}
            FromWorker::Output(request, output) => {
                self.hear().await;
                self.output(request, output).await?;
            }
        }
        Ok(())
    }

    /// A sign of life, told at most once a second.
    async fn hear(&mut self) {
        let now = Instant::now();
        let interval = Duration::from_millis(PROGRESS_INTERVAL_MS);
        if self.heard.is_none_or(|heard| now.duration_since(heard) >= interval) {
            self.heard = Some(now);
            self.tell(Event::Heard { worker: self.worker.clone() }).await;
        }
    }

    async fn output(&mut self, request: RequestId, output: Output) -> Result<(), String> {
        // A route is announced before its Run is written, so it is here before the first output is.
        while let Ok(route) = self.new_routes.try_recv() {
            self.routes.insert(route.request, Running::new(route.ticket));
        }
        let Some(running) = self.routes.get_mut(&request).filter(|running| !running.ended) else {
            self.strays += 1;
            if self.strays > STRAYS_MAX {
                return Err(format!("{} outputs of requests that do not run", self.strays));
            }
            return Ok(());
        };
        let ended = output.is_terminal();
        let usage = match &output {
            Output::Finished(finished) => Some((finished.usage, finished.reason)),
            _ => None,
        };
        running.push(output);
        if running.backlog_bytes > CLIENT_BACKLOG_BYTES_MAX && !running.overrun && !ended {
            running.overrun = true;
            let _ = self.outbox.try_send(ToWorker::Cancel(request));
        }
        if ended {
            running.ended = true;
            let worker = self.worker.clone();
            let _ = self.driver.send(Message::Ended { worker, request, usage }).await;
        }
        self.flush(request);
        Ok(())
    }

    /// Hands over what the ticket has room for; for the rest a task waits.
    fn flush(&mut self, request: RequestId) {
        let Some(running) = self.routes.get_mut(&request) else { return };
        while !running.waits
            && let Some(output) = running.backlog.pop_front()
        {
            match running.ticket.try_send(running.item(output)) {
                Ok(()) => {}
                Err(TrySendError::Full(item)) => {
                    if let TicketItem::Output(output) = item {
                        running.backlog.push_front(output);
                    }
                    running.waits = true;
                    let ticket = running.ticket.clone();
                    self.waiting.spawn(async move { (request, ticket.reserve_owned().await.ok()) });
                }
                // The client is gone; its ticket has said so to the driver.
                Err(TrySendError::Closed(_)) => running.backlog.clear(),
            }
        }
        if running.backlog.is_empty() {
            running.backlog_bytes = 0;
            if running.ended {
                self.routes.remove(&request);
            }
        }
    }

    fn room(&mut self, request: RequestId, permit: Option<mpsc::OwnedPermit<TicketItem>>) {
        let Some(running) = self.routes.get_mut(&request) else { return };
        running.waits = false;
        if let (Some(permit), Some(output)) = (permit, running.backlog.pop_front()) {
            permit.send(running.item(output));
        }
        self.flush(request);
    }

    /// The connection is over: the driver gets what is unfinished.
    async fn close(mut self, broken: Option<String>) {
        while let Ok(route) = self.new_routes.try_recv() {
            self.routes.insert(route.request, Running::new(route.ticket));
        }
        self.waiting.abort_all();
        let orphans = self
            .routes
            .drain()
            .map(|(request, running)| Orphan { request, produced: running.produced, backlog: running.backlog })
            .collect();
        let _ = self.driver.send(Message::Orphans(orphans)).await;
        let worker = self.worker.clone();
        if let Some(reason) = broken {
            self.tell(Event::Misbehaved { worker: worker.clone(), cause: Cause::Protocol(reason) }).await;
        }
        self.tell(Event::LinkClosed { worker }).await;
    }
}

impl Running {
    fn new(ticket: mpsc::Sender<TicketItem>) -> Self {
        Self {
            ticket,
            produced: Vec::new(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            waits: false,
            overrun: false,
            ended: false,
        }
    }

    /// Queues an output, merged with the one before where both are deltas of one part.
    fn push(&mut self, output: Output) {
        if let Output::Delta(delta) = &output {
            self.produced.extend_from_slice(&delta.tokens);
        }
        if self.overrun && !output.is_terminal() {
            return;
        }
        match (self.backlog.back_mut(), output) {
            (Some(Output::Delta(last)), Output::Delta(delta)) if last.part == delta.part => {
                self.backlog_bytes += weight(&delta);
                last.tokens.extend(delta.tokens);
                last.text.push_str(&delta.text);
                last.logprobs.extend(delta.logprobs);
            }
            (Some(last @ Output::Prefill { .. }), newer @ Output::Prefill { .. }) => *last = newer,
            (_, output) => {
                if let Output::Delta(delta) = &output {
                    self.backlog_bytes += weight(delta);
                }
                self.backlog.push_back(output);
            }
        }
    }

    /// What the client is told; one that was too slow is told that at the end.
    fn item(&self, output: Output) -> TicketItem {
        if self.overrun && output.is_terminal() {
            let text = "the client read too slowly and its request was cancelled";
            return TicketItem::Failed(Failure::new(FailureKind::ClientTooSlow, text));
        }
        TicketItem::Output(output)
    }
}

/// Roughly the bytes that a delta holds.
fn weight(delta: &Delta) -> usize {
    let entries = delta.logprobs.iter().map(|entry| 64 + entry.bytes.len() + 48 * entry.top.len());
    delta.text.len() + 4 * delta.tokens.len() + entries.sum::<usize>()
}

/// Reads some bytes; the rest of a frame that has begun must come in time.
async fn read_some(receive: &mut RecvHalf, bytes: &mut [u8], mid_frame: bool) -> io::Result<usize> {
    if !mid_frame {
        return receive.read(bytes).await;
    }
    tokio::time::timeout(FRAME_TIMEOUT, receive.read(bytes))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "half a frame and then nothing")))
}
