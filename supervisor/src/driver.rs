//! The one task that owns the scheduler: next event → step → perform the effects.
//!
//! [`Handle`] is the only way in. What a client asked for becomes an event here; what the scheduler wants becomes a process,
//! a frame or a word to a ticket here. No decision is taken in this file. Tokens pass by: a granted request's outputs go
//! from its link to its ticket.

mod perform;
mod ticket;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ollmlx_proto::limits::DRIVER_QUEUE_LEN_MAX;
use ollmlx_proto::{FinishReason, ModelId, RequestId, Usage, WorkerId};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use self::ticket::{Ticket, TicketItem};
use crate::os::clock::Clock;
use crate::os::{memory, rng};
use crate::scheduler::{Cause, Event, Job, KeepAlive, LoadPlan, Mono, Outbox, Scheduler, SchedulerConfig, Snapshot};
use crate::worker::link::{Link, Orphan};
use crate::worker::socket::{Dialled, WorkerSocket};

/// Connections that have said hello and wait for the driver.
const DIALLED_LEN_MAX: usize = 16;
/// How often workers' memory is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// What a driver needs to know.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// Folder of the worker binaries.
    pub worker_dir: PathBuf,
    /// Folder in which the private socket folder is made; `None` is the temporary folder.
    pub runtime_dir: Option<PathBuf>,
    /// What is decided by.
    pub scheduler: SchedulerConfig,
}

/// What the driver hears.
#[derive(Debug)]
pub enum Message {
    /// A client hands in a job.
    Submit {
        /// Its id.
        request: RequestId,
        /// What it wants.
        job: Job,
        /// How to load the model.
        plan: Box<LoadPlan>,
        /// How long it shall stay.
        keep_alive: Option<KeepAlive>,
        /// Where its items go.
        ticket: mpsc::Sender<TicketItem>,
    },
    /// Something happened.
    World(Event),
    /// Someone dialled in.
    Dialled(Box<Dialled>),
    /// A worker ended a request.
    Ended {
        /// Which worker.
        worker: WorkerId,
        /// Which request.
        request: RequestId,
        /// What it cost, where it generated.
        usage: Option<(Usage, FinishReason)>,
    },
    /// A link closed; these had not ended.
    Orphans(Vec<Orphan>),
    /// A process is reaped. Told to the scheduler once its link has been read to the end, so that no word of it comes
    /// after its death.
    Reaped {
        /// Which.
        worker: WorkerId,
        /// How it ended.
        cause: Cause,
        /// Its last lines.
        log_tail: String,
    },
    /// Its link is still open a while later: something else holds the other end.
    ReapedOverdue(WorkerId),
}

/// The only way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
    snapshots: watch::Receiver<Snapshot>,
    ids: Arc<AtomicU64>,
    clock: Clock,
}

impl Handle {
    /// Hands in a job. The request's id inside [`Job::Run`] is replaced by the driver's own. Never waits for more
    /// than room in the driver's queue; refusals arrive as [`TicketItem::Failed`].
    pub async fn submit(&self, mut job: Job, plan: LoadPlan, keep_alive: Option<KeepAlive>) -> Ticket {
        let request = RequestId(self.ids.fetch_add(1, Ordering::Relaxed));
        if let Job::Run(run) = &mut job {
            run.id = request;
        }
        let (ticket, sender) = Ticket::new(request, self.messages.clone());
        let message = Message::Submit { request, job, plan: Box::new(plan), keep_alive, ticket: sender };
        // A driver that is gone drops the sender, which the ticket reports as a shutdown.
        let _ = self.messages.send(message).await;
        ticket
    }

    /// Unload as soon as nothing runs. Returns at once; unknown models are fine.
    pub async fn unload(&self, model: ModelId) {
        self.tell(Event::Unload { model }).await;
    }

    /// Forget a model's deaths (it was made anew, or a person asked).
    pub async fn pardon(&self, model: ModelId) {
        self.tell(Event::Pardoned { model }).await;
    }

    /// The server leaves: gracefully, or at once.
    pub async fn shut_down(&self, how: Shutdown) {
        self.tell(match how {
            Shutdown::Graceful => Event::ShutdownAsked,
            Shutdown::Forced => Event::ShutdownForced,
        })
        .await;
    }

    /// The latest view.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshots.borrow().clone()
    }

    /// Waits for a view that satisfies `condition` and returns it; `None` when the driver is gone.
    pub async fn wait_for(&self, condition: impl FnMut(&Snapshot) -> bool) -> Option<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        snapshots.wait_for(condition).await.ok().map(|snapshot| snapshot.clone())
    }

    /// When `at` is on the wall clock.
    #[must_use]
    pub fn wall_of(&self, at: Mono) -> SystemTime {
        self.clock.wall_of(at)
    }

    async fn tell(&self, event: Event) {
        let _ = self.messages.send(Message::World(event)).await;
    }
}

/// How the server leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Running requests may end.
    Graceful,
    /// No patience.
    Forced,
}

/// One request in the house.
#[derive(Debug)]
struct Record {
    ticket: mpsc::Sender<TicketItem>,
    model: String,
    arrived: Mono,
    granted: Option<Mono>,
    /// What its client had not taken when its worker's link closed.
    orphan: Option<Orphan>,
}

/// One process in the house.
#[derive(Debug)]
struct Process {
    pid: u32,
    token: [u8; 32],
    link: Option<Link>,
    reaped: Option<(Cause, String)>,
}

/// The task.
struct Driver {
    config: DriverConfig,
    clock: Clock,
    scheduler: Scheduler,
    socket_path: PathBuf,
    messages: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    snapshots: watch::Sender<Snapshot>,
    records: HashMap<RequestId, Record>,
    processes: HashMap<WorkerId, Process>,
    /// Links, reapers and last words to slow clients.
    tasks: JoinSet<()>,
    finished: bool,
}

/// Starts the driver and the socket's acceptor.
///
/// # Errors
/// The socket can't be made.
pub fn start(config: DriverConfig) -> io::Result<(Handle, JoinHandle<()>)> {
    let socket = WorkerSocket::bind(config.runtime_dir.as_deref())?;
    let (sender, messages) = mpsc::channel(DRIVER_QUEUE_LEN_MAX);
    let (dialled, hellos) = mpsc::channel(DIALLED_LEN_MAX);
    let seed = rng::seed();
    tracing::info!(seed, "the scheduler started");
    let scheduler = Scheduler::new(config.scheduler.clone(), seed);
    let clock = Clock::start();
    let (snapshots, views) = watch::channel(scheduler.snapshot());
    let handle = Handle { messages: sender.clone(), snapshots: views, ids: Arc::new(AtomicU64::new(1)), clock };
    let driver = Driver {
        config,
        clock,
        scheduler,
        socket_path: socket.path(),
        messages,
        sender,
        snapshots,
        records: HashMap::new(),
        processes: HashMap::new(),
        tasks: JoinSet::new(),
        finished: false,
    };
    let acceptor = tokio::spawn(socket.accept(dialled));
    let task = tokio::spawn(async move {
        driver.run(hellos).await;
        acceptor.abort();
        // The socket's folder goes with the acceptor.
        let _ = acceptor.await;
    });
    Ok((handle, task))
}

impl Driver {
    async fn run(mut self, mut hellos: mpsc::Receiver<Dialled>) {
        let mut samples = tokio::time::interval(SAMPLE_INTERVAL);
        samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.finished {
            let deadline = self.scheduler.next_deadline().map(|at| self.clock.instant_of(at));
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => self.take(message),
                Some(dialled) = hellos.recv() => self.take(Message::Dialled(Box::new(dialled))),
                () = due => self.step(Event::DeadlineElapsed),
                _ = samples.tick(), if !self.processes.is_empty() => self.sample(),
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => continue,
            }
            self.snapshots.send_replace(self.scheduler.snapshot());
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit { request, job, plan, keep_alive, ticket } => {
                let record = Record {
                    ticket,
                    model: plan.model.name.clone(),
                    arrived: self.clock.now(),
                    granted: None,
                    orphan: None,
                };
                self.records.insert(request, record);
                self.step(Event::Arrived { request, job, plan, keep_alive });
            }
            Message::World(Event::Left { request }) => {
                self.step(Event::Left { request });
                // A waiting request is forgotten at once; a running one is remembered until its worker confirms.
                if self.records.get(&request).is_some_and(|record| record.granted.is_none()) {
                    self.records.remove(&request);
                }
            }
            Message::World(event) => {
                let closed = match &event {
                    Event::LinkClosed { worker } => Some(worker.clone()),
                    _ => None,
                };
                self.step(event);
                if let Some(worker) = closed {
                    self.link_closed(&worker);
                }
            }
            Message::Reaped { worker, cause, log_tail } => self.reaped(worker, cause, log_tail),
            Message::ReapedOverdue(worker) => self.link_closed(&worker),
            Message::Dialled(dialled) => self.dialled(*dialled),
            Message::Ended { worker, request, usage } => {
                self.summarize(request, usage);
                self.records.remove(&request);
                self.step(Event::Ended { worker, request });
            }
            Message::Orphans(orphans) => {
                for orphan in orphans {
                    if let Some(record) = self.records.get_mut(&orphan.request) {
                        record.orphan = Some(orphan);
                    }
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let mut effects = Outbox::default();
        self.scheduler.step(self.clock.now(), event, &mut effects);
        for effect in effects.0 {
            self.perform(effect);
        }
    }

    /// The worker's own word is an event already; this is the system's.
    fn sample(&mut self) {
        let samples: Vec<_> = self
            .processes
            .iter()
            .filter_map(|(worker, process)| Some((worker.clone(), memory::resident_bytes(process.pid)?)))
            .collect();
        for (worker, bytes) in samples {
            self.step(Event::MemorySampled { worker, bytes });
        }
    }

    /// The one log line of a request that generated.
    fn summarize(&self, request: RequestId, usage: Option<(Usage, FinishReason)>) {
        let Some(record) = self.records.get(&request) else { return };
        let now = self.clock.now();
        let queue_ms = record.granted.map_or(0, |granted| granted.since(record.arrived)) / 1_000_000;
        let total_ms = now.since(record.arrived) / 1_000_000;
        let (usage, reason) = usage.map_or((Usage::default(), None), |(usage, reason)| (usage, Some(reason)));
        tracing::info!(
            request_id = request.0,
            model = record.model,
            queue_ms,
            total_ms,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            finish_reason = ?reason,
            "a request ended"
        );
    }
}
