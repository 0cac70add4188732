//! Frames in and out of one worker: a reader task that hands each output to the request it belongs to, and a writer
//! task. Both report; neither decides.
//!
//! The reader outlives the socket: it holds the ways to the clients until each has heard its terminal item or is gone.
//! It never waits for a client. Outputs of unknown or ended requests are dropped and counted. A frame that has begun
//! must end within [`LinkConfig::frame_timeout_ms`].
//!
//! What a worker says is no proof of health by itself: a sign of life counts where its steps have moved on, and one whose
//! engine fails request after request is reported as if it had died. One that waits for slow clients owes no sign of life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use crate::limits;
use interprocess::local_socket::tokio::Stream;
use ollmlx_proto::frame::{self, Decoder};
use ollmlx_proto::{Failure, FailureKind, FromWorker, Output, Request, RequestId, ResumePoint, ToWorker, WorkerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::sink::{ClientSink, Flow, TooSlow};
use super::{Report, Reported};
use crate::os::clock::Clock;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Commands and messages that wait for a link: a Run and a Cancel per slot and some more, twice over. A
/// request that ends has been through both queues, so they can't fill up.
pub const LINK_QUEUE_LEN_MAX: usize = 4 * limits::SLOTS_MAX as usize;

/// Whether the socket is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody dialled in yet.
    Waiting,
    /// It is.
    Open,
    /// Not any more, and that has been reported.
    Closed,
}

/// Patience of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// From the first byte of a frame to its last.
    pub frame_timeout_ms: u64,
    /// Signs of life are reported at most this often.
    pub heard_interval_ms: u64,
}

/// What the driver tells the reader.
pub enum LinkCommand {
    /// Outputs of this request go there. Sent before the request itself.
    Attach(RequestId, Box<ClientSink>),
    /// End it with this, unless it has ended.
    Fail(RequestId, Failure),
    /// Its worker is gone: give its sink back as [`Report::Parked`].
    Park(RequestId),
}

/// What the driver tells the writer.
pub enum LinkMessage {
    /// As it is.
    Plain(ToWorker),
    /// A request that is kept, and how far its answer has come.
    Run {
        /// The request.
        request: Arc<Request>,
        /// In place of its own.
        progress: ResumePoint,
    },
}

/// The reader of one link.
pub struct LinkReader {
    /// Whose.
    pub worker: WorkerId,
    /// The socket, shared with the writer.
    pub stream: Arc<Stream>,
    /// Bytes after the hello may be in it.
    pub decoder: Decoder,
    /// From the driver; its end is the link's end.
    pub commands: mpsc::Receiver<LinkCommand>,
    /// To the writer, which ends with the driver's own way there.
    pub messages: mpsc::WeakSender<LinkMessage>,
    /// To the driver.
    pub reports: mpsc::Sender<Reported>,
    /// For the reaper.
    pub phase: watch::Sender<Phase>,
    /// Time.
    pub clock: Clock,
    /// Patience.
    pub config: LinkConfig,
}

/// Why the socket is not read any more.
enum Closed {
    Ended,
    Misbehaved(String),
    /// Its engine fails again and again.
    Unhealthy,
}

struct Demux {
    sinks: BTreeMap<RequestId, Box<ClientSink>>,
    heard_ns: Option<u64>,
    /// Of its engine, when it last told.
    steps: Option<u64>,
    strays: u64,
    /// Requests in a row that its engine failed.
    failures: u32,
}

impl LinkReader {
    /// Runs until the driver lets go and every client has heard its end.
    pub async fn run(mut self) {
        let mut demux = Demux { sinks: BTreeMap::new(), heard_ns: None, steps: None, strays: 0, failures: 0 };
        let mut buffer = vec![0; READ_BYTES];
        let (mut open, mut held) = (true, true);
        let mut frame_deadline = None;
        // Bytes may have come together with the hello.
        let mut closed = self.drain(&mut demux).await.err();
        loop {
            if let Some(why) = closed.take() {
                open = false;
                self.report_closed(why).await;
            }
            frame_deadline = if open { self.frame_deadline(frame_deadline) } else { None };
            demux.sinks.retain(|_, sink| !(sink.is_done() && (sink.ended || !open)));
            if !held && demux.sinks.is_empty() {
                break;
            }
            if open {
                self.pace(&mut demux).await;
            }
            let attention = if open { demux.attention(self.config.heard_interval_ms) } else { None };
            let stream = &mut &*self.stream;
            tokio::select! {
                // All four are cancel-safe. Commands first: a request is attached before its outputs come.
                biased;
                command = self.commands.recv(), if held => match command {
                    Some(LinkCommand::Park(request)) => {
                        let sink = demux.park(request);
                        self.report(Report::Parked { request, sink }).await;
                    }
                    Some(command) => demux.command(command),
                    None => {
                        held = false;
                        if open {
                            closed = Some(Closed::Ended);
                        }
                        demux.abandon();
                    }
                },
                () = flushed(&mut demux.sinks) => {}
                read = stream.read(&mut buffer), if open => match read {
                    Ok(0) | Err(_) => closed = Some(Closed::Ended),
                    Ok(count) => {
                        self.decoder.push(&buffer[..count]);
                        match self.drain(&mut demux).await {
                            // A whole frame came: the next one has its own deadline.
                            Ok(frames) if frames > 0 => frame_deadline = None,
                            Ok(_) => {}
                            Err(why) => closed = Some(why),
                        }
                    }
                },
                () = until(self.clock, attention) => {}
                () = until(self.clock, frame_deadline) => {
                    closed = Some(Closed::Misbehaved("a frame began and did not end".to_owned()));
                }
            }
        }
        demux.tell_strays(&self.worker);
    }

    /// When the frame that has begun must have ended.
    fn frame_deadline(&self, known: Option<u64>) -> Option<u64> {
        let within_ns = self.config.frame_timeout_ms.saturating_mul(1_000_000);
        let fresh = || self.clock.now_ns().saturating_add(within_ns);
        self.decoder.is_mid_frame().then(|| known.unwrap_or_else(fresh))
    }

    /// Takes every whole frame that has arrived.
    async fn drain(&mut self, demux: &mut Demux) -> Result<usize, Closed> {
        let mut frames = 0;
        loop {
            match self.decoder.next_message::<FromWorker>() {
                Ok(None) => return Ok(frames),
                Ok(Some(message)) => {
                    frames += 1;
                    self.take(message, demux).await?;
                }
                Err(error) => return Err(Closed::Misbehaved(error.to_string())),
            }
        }
    }

    async fn take(&mut self, message: FromWorker, demux: &mut Demux) -> Result<(), Closed> {
        match message {
            FromWorker::Hello(_) => return Err(Closed::Misbehaved("a second hello".to_owned())),
            FromWorker::LoadProgress { done, total } => self.report(Report::LoadProgress { done, total }).await,
            FromWorker::Ready(ready) => self.report(Report::Ready(ready)).await,
            FromWorker::LoadFailed(failure) => self.report(Report::LoadFailed(failure.without_folders())).await,
            FromWorker::Memory(report) => self.report(Report::Memory(report)).await,
            // A thread that only says so is no engine that lives.
            FromWorker::Progress { steps } if demux.steps.replace(steps) == Some(steps) => {}
            FromWorker::Progress { .. } => self.heard(demux).await,
            FromWorker::Bye => debug!(model = %self.worker.model, "worker said bye"),
            FromWorker::Output(request, output) => {
                self.heard(demux).await;
                let output = match output {
                    Output::Failed(failure) => Output::Failed(failure.without_folders()),
                    output => output,
                };
                self.output(request, output, demux).await?;
            }
        }
        Ok(())
    }

    async fn output(&mut self, request: RequestId, output: Output, demux: &mut Demux) -> Result<(), Closed> {
        if !demux.sinks.contains_key(&request) {
            // Its attachment may have come since the last look.
            while let Ok(command) = self.commands.try_recv() {
                if let LinkCommand::Park(request) = command {
                    let sink = demux.park(request);
                    self.report(Report::Parked { request, sink }).await;
                } else {
                    demux.command(command);
                }
            }
        }
        if demux.sinks.get(&request).is_none_or(|sink| sink.ended) {
            demux.strays += 1;
            if demux.strays > limits::STRAY_OUTPUTS_MAX {
                return Err(Closed::Misbehaved("it answers requests that nobody made".to_owned()));
            }
            return Ok(());
        }
        let ended = output.is_terminal();
        let healthy = demux.failures_after(&output) < limits::ENGINE_FAILURES_MAX;
        let Some(sink) = demux.sinks.get_mut(&request) else { return Ok(()) };
        let heard = sink.output(output, self.clock.now_ns());
        let summary = sink.summary;
        let gained = sink.take_gained();
        let cleared = sink.take_cleared();
        if gained && !ended {
            self.report(Report::Gained(request)).await;
        }
        if cleared && !ended {
            self.report(Report::Cleared(request)).await;
        }
        if heard == Err(TooSlow) && !ended {
            self.report(Report::TooSlow(request)).await;
        }
        if ended {
            self.report(Report::Ended { request, summary }).await;
        }
        if healthy { Ok(()) } else { Err(Closed::Unhealthy) }
    }

    /// Tells the worker which requests wait for their clients, and ends those that wait for too long.
    async fn pace(&mut self, demux: &mut Demux) {
        let now_ns = self.clock.now_ns();
        let mut slow = Vec::new();
        for (&request, sink) in demux.sinks.iter_mut().filter(|(_, sink)| !sink.ended) {
            let mut pace = sink.pace(now_ns);
            if sink.pause_ends_ns().is_some_and(|end_ns| end_ns <= now_ns) {
                sink.give_up();
                slow.push(Report::TooSlow(request));
                pace = sink.pace(now_ns);
            }
            let Some(pace) = pace else { continue };
            let message = match pace {
                Flow::Pause => ToWorker::Pause(request),
                Flow::Continue => ToWorker::Continue(request),
            };
            // Where there is no room now, the next round is soon enough.
            let told =
                self.messages.upgrade().is_some_and(|messages| messages.try_send(LinkMessage::Plain(message)).is_ok());
            if told {
                sink.paced(pace, now_ns);
                slow.extend((pace == Flow::Pause).then_some(Report::Paused(request)));
            }
        }
        let has_paused = !slow.is_empty();
        for report in slow {
            self.report(report).await;
        }
        if has_paused {
            // A worker that is quick keeps this task busy; the writer, and perhaps the client, must get their turn now.
            tokio::task::yield_now().await;
        }
        if demux.is_waiting() {
            self.heard(demux).await;
        }
    }

    /// Signs of life are rationed.
    async fn heard(&mut self, demux: &mut Demux) {
        let now_ns = self.clock.now_ns();
        let interval_ns = self.config.heard_interval_ms * 1_000_000;
        if demux.heard_ns.is_none_or(|heard_ns| now_ns.saturating_sub(heard_ns) >= interval_ns) {
            demux.heard_ns = Some(now_ns);
            self.report(Report::Heard).await;
        }
    }

    async fn report_closed(&mut self, why: Closed) {
        match why {
            Closed::Ended => {}
            Closed::Misbehaved(why) => self.report(Report::Misbehaved(why)).await,
            Closed::Unhealthy => self.report(Report::Unhealthy).await,
        }
        self.report(Report::LinkClosed).await;
        self.phase.send_replace(Phase::Closed);
    }

    async fn report(&self, report: Report) {
        // Without a driver there is nobody to tell; the end of the commands ends this task.
        let _driver_gone = self.reports.send((self.worker.clone(), report)).await;
    }
}

impl Demux {
    fn tell_strays(&self, worker: &WorkerId) {
        if self.strays > 0 {
            warn!(model = %worker.model, incarnation = worker.incarnation.0, strays = self.strays,
                "outputs of unknown requests dropped");
        }
    }

    /// Counts failures of the engine in a row; whatever shows that it computes begins anew.
    fn failures_after(&mut self, output: &Output) -> u32 {
        match output {
            Output::Failed(failure) if failure.kind == FailureKind::EngineFailed => self.failures += 1,
            Output::Delta(_) | Output::Embedded(_) | Output::Finished(_) => self.failures = 0,
            _ => {}
        }
        self.failures
    }

    /// Whether the worker owes nothing, since all that it runs is paused.
    fn is_waiting(&self) -> bool {
        let mut owed = self.sinks.values().filter(|sink| !sink.ended).peekable();
        owed.peek().is_some() && owed.all(|sink| sink.is_paused())
    }

    /// When a pause has to be looked at, in nanoseconds since the start of the clock.
    fn attention(&self, heard_interval_ms: u64) -> Option<u64> {
        let ends = self.sinks.values().filter(|sink| !sink.ended).filter_map(|sink| sink.pause_ends_ns()).min();
        let heard_ns = self.heard_ns.filter(|_| self.is_waiting());
        ends.into_iter().chain(heard_ns.map(|ns| ns.saturating_add(heard_interval_ms * 1_000_000))).min()
    }

    fn command(&mut self, command: LinkCommand) {
        match command {
            LinkCommand::Attach(request, sink) => {
                self.sinks.insert(request, sink);
            }
            LinkCommand::Fail(request, failure) => {
                if let Some(sink) = self.sinks.get_mut(&request) {
                    sink.fail(failure);
                    sink.ended = true;
                }
            }
            // The reader answers this one itself.
            LinkCommand::Park(_) => {}
        }
    }

    /// Takes out one that has not ended and whose client is there.
    fn park(&mut self, request: RequestId) -> Option<Box<ClientSink>> {
        if self.sinks.get(&request)?.ended {
            return None;
        }
        self.sinks.remove(&request).filter(|sink| !sink.is_done())
    }

    /// The driver let go. Whoever has not heard its end hears it now.
    fn abandon(&mut self) {
        for sink in self.sinks.values_mut().filter(|sink| !sink.ended) {
            sink.fail(Failure::new(FailureKind::ShuttingDown, "server is shutting down"));
            sink.ended = true;
        }
    }
}

/// Resolves when some client's backlog has become empty, or the client is gone.
async fn flushed(sinks: &mut BTreeMap<RequestId, Box<ClientSink>>) {
    std::future::poll_fn(|cx| {
        let mut progress = Poll::Pending;
        for sink in sinks.values_mut().filter(|sink| !sink.is_flushed()) {
            if sink.poll_flush(cx).is_ready() {
                progress = Poll::Ready(());
            }
        }
        progress
    })
    .await;
}

async fn until(clock: Clock, deadline_ns: Option<u64>) {
    match deadline_ns {
        Some(ns) => sleep_until(Instant::from_std(clock.instant_of(ns))).await,
        None => std::future::pending().await,
    }
}

/// Writes messages until the driver lets go or the socket breaks, which the reader notices.
pub async fn write(
    worker: WorkerId,
    stream: Arc<Stream>,
    mut messages: mpsc::Receiver<LinkMessage>,
    reports: mpsc::Sender<Reported>,
) {
    let mut bytes = Vec::new();
    while let Some(message) = messages.recv().await {
        bytes.clear();
        let mut next = Some(message);
        // What waits travels together.
        while let Some(message) = next {
            let encoded = match &message {
                LinkMessage::Plain(message) => frame::encode(message, &mut bytes),
                LinkMessage::Run { request, progress } => frame::encode_run(request, progress, &mut bytes),
            };
            if let Err(error) = encoded {
                warn!(model = %worker.model, %error, "message was not sent");
                if let LinkMessage::Run { request, .. } = message {
                    let _driver_gone = reports.send((worker.clone(), Report::Unsendable(request.id))).await;
                }
            }
            next = if bytes.len() < READ_BYTES { messages.try_recv().ok() } else { None };
        }
        if (&*stream).write_all(&bytes).await.is_err() {
            return;
        }
        if bytes.capacity() > 4 * READ_BYTES {
            bytes = Vec::new();
        }
    }
}
