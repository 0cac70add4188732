//! What the rest of the supervisor holds of the driver.

use std::future::Future as _;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use crate::limits;
use ollmlx_proto::{CacheSalt, Failure, FailureKind, ModelId, RequestId, UnixSeconds};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};

use super::identity::{Identity, Salt};
use super::record::Record;
use crate::os::clock::Clock;
use crate::os::sandbox::Launcher;
use crate::types::{Caller, Job, KeepAlive, KeyName, LoadPlan, Mono, Outlook, Snapshot, TicketItem, WishedLoad};
use crate::worker::log_book::LogBook;

/// What handles tell the driver.
pub(super) enum DriverCommand {
    Submit {
        request: RequestId,
        job: Job,
        plan: Box<LoadPlan>,
        keep_alive: Option<KeepAlive>,
        /// Who asks.
        client: Caller,
        /// Where the answer goes.
        answer: mpsc::Sender<TicketItem>,
        /// For the record; `None` for what is no request.
        identity: Option<Identity>,
    },
    Unload(ModelId),
    Pardon(ModelId),
    Restart(ModelId),
    Replaced,
    ElsewhereHeld(u64),
    Shutdown {
        forced: bool,
    },
    /// Answered at once, as the next.
    Ping(oneshot::Sender<()>),
    /// Answered at once, with a view published before it that is of the same moment.
    Outlook(Box<WishedLoad>, oneshot::Sender<Outlook>),
    Record(oneshot::Sender<Record>),
}

/// The driver's end.
pub(super) struct Inbox {
    pub(super) commands: mpsc::Receiver<DriverCommand>,
    pub(super) dropped: mpsc::Receiver<RequestId>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) finished: watch::Sender<bool>,
    pub(super) logs: watch::Sender<LogBook>,
}

/// The only way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<DriverCommand>,
    /// Each ticket reserves its place in this queue, so that its end is never lost and its `drop` never waits.
    dropped: mpsc::Sender<RequestId>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    finished: watch::Receiver<bool>,
    logs: watch::Receiver<LogBook>,
    clock: Clock,
    launcher: Launcher,
    /// Of the identities of requests.
    salt: Salt,
    next_request: Arc<AtomicU64>,
}

impl std::fmt::Debug for DriverCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Prompts are not for the log.
        f.write_str("DriverCommand")
    }
}

pub(super) fn pair(clock: Clock, launcher: Launcher, first: Snapshot, salt: Salt) -> (Handle, Inbox) {
    let (commands_in, commands) = mpsc::channel(limits::DRIVER_QUEUE_LEN_MAX);
    let (dropped_in, dropped) = mpsc::channel(limits::TICKETS_MAX);
    let (snapshots, snapshots_out) = watch::channel(Arc::new(first));
    let (finished, finished_out) = watch::channel(false);
    let (logs, logs_out) = watch::channel(LogBook::new());
    let handle = Handle {
        commands: commands_in,
        dropped: dropped_in,
        snapshots: snapshots_out,
        finished: finished_out,
        logs: logs_out,
        clock,
        launcher,
        salt,
        next_request: Arc::new(AtomicU64::new(1)),
    };
    (handle, Inbox { commands, dropped, snapshots, finished, logs })
}

/// A job with the word of its work. Of a long one the word is made aside, where nobody waits for it.
async fn identified(job: Job, salt: Salt) -> Result<(Job, Option<Identity>), JoinError> {
    let is_long = matches!(&job, Job::Run(run) if run.bytes() > limits::BODY_INLINE_BYTES_MAX);
    let identify = move || {
        let identity = match &job {
            Job::Run(run) => Some(Identity::of(run, salt)),
            Job::Load => None,
        };
        (job, identity)
    };
    if is_long { tokio::task::spawn_blocking(identify).await } else { Ok(identify()) }
}

impl Handle {
    /// Hands in a job. The request's id inside `Job::Run` is replaced by the driver's own. Never waits for more
    /// than room in the driver's queue; refusals arrive as `TicketItem::Failed`.
    pub async fn submit(&self, job: Job, plan: LoadPlan, keep_alive: Option<KeepAlive>) -> Ticket {
        self.submit_for(Caller::default(), job, plan, keep_alive).await
    }

    /// The same for one client among others.
    pub async fn submit_for(
        &self,
        client: Caller,
        mut job: Job,
        plan: LoadPlan,
        keep_alive: Option<KeepAlive>,
    ) -> Ticket {
        let request = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        if let Job::Run(run) = &mut job {
            run.id = request;
            run.asked_at = UnixSeconds(self.clock.unix_seconds());
            run.cache_salt = CacheSalt(client.key.as_ref().map_or(0, |key| self.salt.word(key)));
        }
        let (answer, items) = mpsc::channel(limits::OUTPUT_QUEUE_LEN_MAX);
        let refused = |failure| {
            // The only item of a new channel.
            let _fits = answer.try_send(TicketItem::Failed(failure));
        };
        let Ok((job, identity)) = identified(job, self.salt).await else {
            refused(Failure::new(FailureKind::Internal, "the request could not be read"));
            return Ticket { request, items, dropped: None, ended: false, deadline: None };
        };
        let dropped = match self.dropped.clone().try_reserve_owned() {
            Ok(place) => Some(Dropped::ClientPlace(place)),
            Err(TrySendError::Full(_)) => {
                let text = "server busy, please try again.  too many requests are not done yet";
                refused(Failure::new(FailureKind::Busy, text));
                return Ticket { request, items, dropped: None, ended: false, deadline: None };
            }
            // The driver is gone; the ticket says so itself, here and below.
            Err(TrySendError::Closed(_)) => None,
        };
        let ticket = Ticket { request, items, dropped, ended: false, deadline: None };
        let plan = Box::new(plan);
        let submit = DriverCommand::Submit { request, job, plan, keep_alive, client, answer, identity };
        let _driver_gone = self.commands.send(submit).await;
        ticket
    }

    /// Somebody who asks from this address, which is told to nobody.
    #[must_use]
    pub fn caller(&self, key: Option<KeyName>, address: &impl Hash) -> Caller {
        Caller { key, address: self.salt.word(address) }
    }

    /// Unload as soon as nothing runs. Returns at once; unknown models are fine.
    pub async fn unload(&self, model: ModelId) {
        let _driver_gone = self.commands.send(DriverCommand::Unload(model)).await;
    }

    /// Forget a model's deaths (it was re-created, or a person asked).
    pub async fn pardon(&self, model: ModelId) {
        let _driver_gone = self.commands.send(DriverCommand::Pardon(model)).await;
    }

    /// Ends a model's backoff or quarantine, forgets its deaths, and replaces its process once what it runs has ended.
    /// Returns at once; unknown models are fine.
    pub async fn restart(&self, model: ModelId) {
        let _driver_gone = self.commands.send(DriverCommand::Restart(model)).await;
    }

    /// A successor serves: what is idle goes, and so does whoever becomes idle. Returns at once.
    pub async fn replaced(&self) {
        let _driver_gone = self.commands.send(DriverCommand::Replaced).await;
    }

    /// So many bytes of the limit are somebody else's: those of the server that this one replaces. Returns at once.
    pub async fn elsewhere_held(&self, bytes: u64) {
        let _driver_gone = self.commands.send(DriverCommand::ElsewhereHeld(bytes)).await;
    }

    /// Returns when the driver has come round to answer, or is gone.
    pub async fn ping(&self) {
        let (answer, answered) = oneshot::channel();
        let _driver_gone = self.commands.send(DriverCommand::Ping(answer)).await;
        let _driver_gone = answered.await;
    }

    /// The last events and what was decided; `None` where the driver is gone.
    pub async fn record(&self) -> Option<Record> {
        let (answer, answered) = oneshot::channel();
        let _driver_gone = self.commands.send(DriverCommand::Record(answer)).await;
        answered.await.ok()
    }

    /// What would become of a request that wanted this load now; nothing where the driver is gone. The latest view is of the
    /// same moment, or a later one.
    pub async fn outlook(&self, wished: WishedLoad) -> Option<Outlook> {
        let (answer, answered) = oneshot::channel();
        let _driver_gone = self.commands.send(DriverCommand::Outlook(Box::new(wished), answer)).await;
        answered.await.ok()
    }

    /// The latest view, shared with all who look. Whoever hears of a failure finds the state here that it came from.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// The views as they change.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// What starts the workers.
    #[must_use]
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// What the workers printed.
    #[must_use]
    pub fn logs(&self) -> watch::Receiver<LogBook> {
        self.logs.clone()
    }

    /// Leave: refuse what waits and what comes, let running requests end within their time. `forced` ends them too.
    pub async fn shutdown(&self, forced: bool) {
        let _driver_gone = self.commands.send(DriverCommand::Shutdown { forced }).await;
    }

    /// Resolves when every worker is reaped after a shutdown. Cancel-safe.
    pub async fn finished(&self) {
        // An error means that the driver is gone, which is as finished as can be.
        let mut finished = self.finished.clone();
        let _driver_gone = finished.wait_for(|finished| *finished).await;
    }

    /// The wall clock of a monotonic time, past or to come.
    #[must_use]
    pub fn wall_clock_of(&self, mono: Mono) -> SystemTime {
        self.clock.wall_of(mono.0)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(self.clock.now_ns())
    }
}

/// What a request is told whose own time is over, wherever it is.
#[must_use]
pub fn deadline_passed() -> Failure {
    Failure::new(FailureKind::DeadlineExceeded, "the request's own deadline has passed")
}

/// How the driver hears that nobody wants a request any more.
#[derive(Debug)]
enum Dropped {
    /// By being told.
    ClientPlace(mpsc::OwnedPermit<RequestId>),
    /// By a task that waits for the end of this, or for the request's own deadline.
    #[expect(dead_code, reason = "they are only held: the end of the first is the end of the second")]
    Timed(oneshot::Sender<()>, JoinHandle<()>),
}

/// A request that the driver has. Dropping it cancels the request.
#[derive(Debug)]
pub struct Ticket {
    request: RequestId,
    items: mpsc::Receiver<TicketItem>,
    dropped: Option<Dropped>,
    ended: bool,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Ticket {
    /// Ends the request then, wherever it is: it hears of it with [`FailureKind::DeadlineExceeded`], and frees its place, the
    /// latter even if nobody asks for its items because its client takes none.
    pub fn end_by(&mut self, deadline: tokio::time::Instant) {
        self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline)));
        if let Some(Dropped::ClientPlace(place)) =
            self.dropped.take_if(|dropped| matches!(dropped, Dropped::ClientPlace(_)))
        {
            let (ticket, gone) = oneshot::channel::<()>();
            let request = self.request;
            let waiting = tokio::spawn(async move {
                let _either = tokio::time::timeout_at(deadline, gone).await;
                place.send(request);
            });
            self.dropped = Some(Dropped::Timed(ticket, waiting));
        }
    }

    /// The driver's id of the request, for the log.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The next item, or `None` after the terminal one. Cancel-safe.
    pub async fn next(&mut self) -> Option<TicketItem> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// [`Ticket::next`] for bodies, which are polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<TicketItem>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.ended = true;
            self.cancel();
            return Poll::Ready(Some(TicketItem::Failed(deadline_passed())));
        }
        // A driver that ends without a word has told everyone else that the server leaves.
        let gone = || TicketItem::Failed(Failure::new(FailureKind::ShuttingDown, "server is shutting down"));
        let item = ready!(self.items.poll_recv(context)).unwrap_or_else(gone);
        self.ended = item.is_terminal();
        Poll::Ready(Some(item))
    }

    /// Nobody wants it any more.
    fn cancel(&mut self) {
        if let Some(Dropped::ClientPlace(place)) = self.dropped.take() {
            place.send(self.request);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // First, so that the driver sees it where this overtakes the request itself.
        self.items.close();
        // One that has ended is only told to the driver in vain: it knows the request no more.
        self.cancel();
    }
}
