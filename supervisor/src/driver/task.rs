//! The loop: whatever the world does becomes an event, the scheduler decides, the effects are performed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::limits;
use ollmlx_proto::{Failure, MemoryReport, Ready, Request, RequestId, ToWorker, WorkerId, version};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::DriverConfig;
use super::cgroups::ProcessCgroup;
use super::handle::{DriverCommand, Inbox};
use super::identity::Identity;
use super::oom::OomKills;
use super::record::Recorder;
use crate::os::clock::Clock;
use crate::os::process::Exit;
use crate::os::{memory, process};
use crate::scheduler::{Effect, Event, Outbox, Scheduler};
use crate::types::{Cause, KeyName, Mono, TicketItem};
use crate::worker::link::{self, LINK_QUEUE_LEN_MAX, LinkCommand, LinkMessage, LinkReader, Phase};
use crate::worker::reap::GroupSignal;
use crate::worker::sink::{ClientSink, Summary};
use crate::worker::socket::{IncomingHello, WorkerListener, same_token};
use crate::worker::{Report, Reported};

/// Reports taken before a deadline that has come is looked at: neither starves the other.
const REPORTS_IN_A_ROW_MAX: u32 = 256;
/// Events that one snapshot may stand for, where they come faster than it is made.
const SNAPSHOT_EVENTS_MAX: u32 = 64;
/// What the kernel ends a process with that takes too much memory.
const KILL: i32 = 9;
/// Hellos waiting for the driver.
const HELLOS_LEN_MAX: usize = 64;

/// One process as the shell knows it.
pub(super) struct WorkerProcess {
    pub(super) pid: u32,
    pub(super) token: [u8; 32],
    pub(super) signals: mpsc::Sender<GroupSignal>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) link: Option<Link>,
    /// Its own count, in bytes.
    pub(super) reported: u64,
    /// What was last measured of it, in bytes.
    pub(super) sampled: u64,
    /// The same when it was asked to drop its caches, until it says that it has.
    pub(super) trimming: Option<u64>,
    /// Bytes that it may take: the limit of all, or its model's own; `None` is no limit.
    pub(super) limit: Option<u64>,
    /// Whether a part of what it takes is on an accelerator.
    pub(super) is_accelerated: bool,
    /// The files it maps, told by the first of them.
    pub(super) weights: Option<PathBuf>,
    /// Its control group, where it has one.
    pub(super) cgroup: ProcessCgroup,
}

pub(super) struct Link {
    pub(super) commands: mpsc::Sender<LinkCommand>,
    pub(super) messages: mpsc::Sender<LinkMessage>,
}

/// One request as the shell knows it, until its end.
pub(super) struct KnownRequest {
    pub(super) place: ClientPlace,
    /// On whose key, for the log.
    pub(super) key: Option<KeyName>,
    pub(super) arrived: Mono,
    /// The first time.
    pub(super) granted: Option<Mono>,
    /// For the record.
    identity: Option<Identity>,
    /// The last one.
    pub(super) worker: Option<WorkerId>,
}

/// Where the way to a client is.
pub(super) enum ClientPlace {
    /// Here; given to the link with the grant.
    Here(mpsc::Sender<TicketItem>),
    /// At the link of the worker.
    AtLink,
    /// Called back from the link of a worker that is gone; this is done when it comes.
    Returning(OnReturn),
    /// Here again, with what it has heard.
    Parked(Box<ClientSink>),
}

/// What is done with one that returns.
pub(super) enum OnReturn {
    Park,
    Grant(WorkerId, Arc<Request>),
    Fail(Failure),
}

pub(super) struct Task {
    pub(super) config: DriverConfig,
    pub(super) clock: Clock,
    pub(super) scheduler: Scheduler,
    recorder: Recorder,
    pub(super) socket: PathBuf,
    pub(super) inbox: Inbox,
    pub(super) reports_in: mpsc::Sender<Reported>,
    reports: mpsc::Receiver<Reported>,
    pub(super) processes: BTreeMap<WorkerId, WorkerProcess>,
    pub(super) requests: BTreeMap<RequestId, KnownRequest>,
    pub(super) tasks: JoinSet<()>,
    /// Events that must come before any other.
    pub(super) owed: VecDeque<Event>,
    pub(super) finished: bool,
    /// Control groups made so far.
    pub(super) cgroups: u64,
    /// Requests that their workers were told to pause.
    pauses: u64,
    /// How long a request holds its slot, on the average of the last ones; 0 before the first.
    service_ns: u64,
    /// Events since the last snapshot that may have changed what it shows.
    unpublished: u32,
    /// When the memory of the workers was last looked at.
    sampled: Option<Mono>,
    pub(super) oom_kills: OomKills,
}

impl Task {
    pub(super) fn new(
        config: DriverConfig,
        clock: Clock,
        (scheduler, recorder): (Scheduler, Recorder),
        socket: PathBuf,
        inbox: Inbox,
    ) -> Self {
        let (reports_in, reports) = mpsc::channel(limits::DRIVER_QUEUE_LEN_MAX);
        Self {
            scheduler,
            recorder,
            config,
            clock,
            socket,
            inbox,
            reports_in,
            reports,
            processes: BTreeMap::new(),
            requests: BTreeMap::new(),
            tasks: JoinSet::new(),
            owed: VecDeque::new(),
            finished: false,
            cgroups: 0,
            pauses: 0,
            service_ns: 0,
            unpublished: 0,
            sampled: None,
            oom_kills: OomKills::default(),
        }
    }

    pub(super) async fn run(mut self, listener: WorkerListener) {
        let (hellos_in, mut hellos) = mpsc::channel(HELLOS_LEN_MAX);
        let mut listening = JoinSet::new();
        listening.spawn(listener.serve(hellos_in, self.config.scheduler.timeouts.hello_ms));
        let mut reports_in_a_row = 0;
        while !self.finished {
            let deadline = self.scheduler.next_deadline();
            let next_sample = self.next_sample();
            if deadline.is_some_and(|deadline| deadline <= self.now()) && reports_in_a_row >= REPORTS_IN_A_ROW_MAX {
                reports_in_a_row = 0;
                self.step(Event::DeadlineElapsed);
                continue;
            }
            tokio::select! {
                // All are cancel-safe. Reports first: after a long sleep of the machine, a worker's sign of life
                // that is already here must be seen before its deadline.
                biased;
                Some((worker, report)) = self.reports.recv() => {
                    reports_in_a_row += 1;
                    self.reported(worker, report);
                    continue;
                }
                Some(incoming) = hellos.recv() => self.greeted(incoming),
                Some(request) = self.inbox.dropped.recv() => self.left(request),
                () = at(deadline, self.clock) => self.step(Event::DeadlineElapsed),
                () = at(next_sample, self.clock) => self.sample(),
                command = self.inbox.commands.recv() => match command {
                    Some(command) => self.commanded(command),
                    // Nobody can ask for anything any more.
                    None => self.step(Event::ShutdownForced),
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a worker's task failed");
                    }
                }
                // Last: once per burst of events, and before the task sleeps.
                () = std::future::ready(()), if self.unpublished > 0 => self.publish(),
            }
            reports_in_a_row = 0;
        }
        self.publish();
        self.end(listening).await;
    }

    /// Lets go of everything, and gives clients a moment to hear how it ended.
    async fn end(mut self, mut listening: JoinSet<()>) {
        listening.shutdown().await;
        for process in std::mem::take(&mut self.processes).into_values() {
            self.remove_cgroup(process.cgroup);
        }
        self.requests.clear();
        drop(self.reports);
        let flushed = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(limits::FLUSH_MS), flushed).await.is_err() {
            warn!("clients were left that did not hear their end");
        }
        self.inbox.finished.send_replace(true);
        info!("driver finished");
    }

    pub(super) fn now(&self) -> Mono {
        Mono(self.clock.now_ns())
    }

    /// One event and all that follows from it at once.
    pub(super) fn step(&mut self, event: Event) {
        self.owed.push_back(event);
        while let Some(event) = self.owed.pop_front() {
            let mut out = Outbox::default();
            let now = self.now();
            let is_sign_of_life = matches!(event, Event::Heard { .. } | Event::LoadProgress { .. });
            let identity = match &event {
                Event::Arrived { request, .. } => self.requests.get(request).and_then(|known| known.identity),
                _ => None,
            };
            let line = Recorder::begin(now, &event, identity);
            self.scheduler.step(now, event, &mut out);
            self.recorder.end(line, &out.0);
            if !(is_sign_of_life && out.0.is_empty()) {
                self.unpublished += 1;
            }
            if out.0.iter().any(|effect| matches!(effect, Effect::Fail { .. } | Effect::Loaded { .. })) {
                // Whoever hears of it looks here for how long its model rests.
                self.publish();
            }
            for effect in out.0 {
                self.perform(effect, now);
            }
        }
        if self.unpublished >= SNAPSHOT_EVENTS_MAX {
            self.publish();
        }
    }

    /// Shows the state that the events so far have led to, if it is another one than is shown.
    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) == 0 {
            return;
        }
        let mut snapshot = self.scheduler.snapshot();
        snapshot.totals.pauses = self.pauses;
        snapshot.service_ns = self.service_ns;
        self.inbox.snapshots.send_replace(Arc::new(snapshot));
    }

    /// A request held its slot for so long.
    fn served(&mut self, ns: u64) {
        let (before, share) = (self.service_ns, limits::SERVICE_SHARE);
        self.unpublished += 1;
        self.service_ns = if before == 0 { ns.max(1) } else { (before - before / share + ns / share).max(1) };
    }

    fn commanded(&mut self, command: DriverCommand) {
        match command {
            // Its client left before this was read, and was not known then.
            DriverCommand::Submit { answer, .. } if answer.is_closed() => {}
            DriverCommand::Submit { request, job, plan, keep_alive, client, answer, identity } => {
                let (place, key) = (ClientPlace::Here(answer), client.key.clone());
                let record = KnownRequest { place, key, arrived: self.now(), granted: None, identity, worker: None };
                self.requests.insert(request, record);
                self.step(Event::Arrived { request, job, plan, keep_alive, client });
            }
            DriverCommand::Unload(model) => self.step(Event::Unload { model }),
            DriverCommand::Pardon(model) => self.step(Event::Pardoned { model }),
            DriverCommand::Restart(model) => self.step(Event::Restart { model }),
            DriverCommand::Replaced => self.step(Event::Replaced),
            DriverCommand::ElsewhereHeld(bytes) => self.step(Event::ElsewhereHeld { bytes }),
            DriverCommand::Shutdown { forced: false } => self.step(Event::ShutdownAsked),
            DriverCommand::Shutdown { forced: true } => self.step(Event::ShutdownForced),
            DriverCommand::Outlook(wished, answer) => {
                self.publish();
                // Whoever asked may have left.
                let _gone = answer.send(self.scheduler.outlook(&wished));
            }
            DriverCommand::Ping(answer) => {
                // Whoever is answered sees what it had asked for before.
                self.publish();
                // Whoever asked may have left.
                let _gone = answer.send(());
            }
            DriverCommand::Record(answer) => {
                let _gone = answer.send(self.recorder.record());
            }
        }
    }

    /// A ticket was dropped. One that runs is summed up when its worker confirms the end.
    fn left(&mut self, request: RequestId) {
        match self.requests.get(&request).map(|record| &record.place) {
            None | Some(ClientPlace::AtLink) => self.step(Event::Left { request }),
            Some(_) => self.forget(request, &Summary { finish_reason: "cancelled", ..Summary::default() }),
        }
    }

    fn reported(&mut self, worker: WorkerId, report: Report) {
        let event = match report {
            Report::LoadProgress { done, total } => Event::LoadProgress { worker, done, total },
            Report::Ready(ready) => {
                self.became_ready(&worker, &ready);
                Event::Ready { worker, ready }
            }
            Report::LoadFailed(failure) => Event::LoadFailed { worker, failure },
            Report::Heard => Event::Heard { worker },
            Report::CgroupMade(made) => return self.cgroup_made(&worker, made),
            Report::Unchanged(load) => return self.load(&worker, load),
            Report::Misbehaved(why) => {
                warn!(model = %worker.model, incarnation = worker.incarnation.0, error = why, "worker misbehaved");
                Event::Misbehaved { worker, cause: Cause::Protocol(why) }
            }
            Report::Unhealthy => Event::Misbehaved { worker, cause: Cause::Unhealthy },
            Report::LinkClosed => Event::LinkClosed { worker },
            Report::Memory(memory) => {
                self.remembered(&worker, memory);
                Event::MemoryReported { worker, memory }
            }
            Report::Ended { request, summary } => {
                if self.requests.get(&request).is_some_and(|record| !matches!(record.place, ClientPlace::AtLink)) {
                    // The last word of a worker that was given up before it was heard: nothing is left to resume.
                    return self.forget(request, &summary);
                }
                self.summarise(request, &summary);
                Event::Ended { worker, request }
            }
            Report::Gained(request) => Event::Gained { worker, request },
            Report::Cleared(request) => Event::Cleared { worker, request },
            Report::Parked { request, sink } => return self.parked(request, sink),
            Report::Paused(request) => {
                debug!(%worker, request_id = %request, "request waits for its client");
                self.pauses += 1;
                self.unpublished += 1;
                return;
            }
            // The worker is told to cancel, and its end is waited for, as if the client had left.
            Report::TooSlow(request) => Event::Left { request },
            Report::Unsendable(request) => {
                let failure = super::effects::unsendable();
                self.fail_at_link(&worker, request, failure);
                self.summarise(request, &Summary { finish_reason: "failed", ..Summary::default() });
                Event::Ended { worker, request }
            }
            Report::Exited { exit, log_tail } => return self.exited(worker, exit, log_tail),
        };
        self.step(event);
    }

    fn became_ready(&mut self, worker: &WorkerId, ready: &Ready) {
        if let Some(process) = self.processes.get_mut(worker) {
            process.reported = ready.memory.total();
            process.is_accelerated = ready.accelerator_bytes > 0;
        }
        // What it really takes decides whether it may stay.
        self.sample_one(worker);
        let reserved_bytes = self.scheduler.reserved_bytes(&worker.model);
        self.widen_cgroup(worker, reserved_bytes.max(ready.memory.total()));
    }

    fn exited(&mut self, worker: WorkerId, exit: Exit, log_tail: String) {
        let process = self.processes.get_mut(&worker);
        let in_cgroup = process.is_some_and(|process| {
            process.pid = 0;
            process.cgroup.made().is_some_and(|cgroup| cgroup.was_killed())
        });
        let cause = match exit {
            Exit::Signal(KILL) if in_cgroup => Cause::OutOfMemory,
            exit => self.oom_kills.cause_of(exit, memory::oom_kill_count()),
        };
        self.step(Event::Exited { worker: worker.clone(), cause, log_tail });
        // Only now: those that ran have been told through its link.
        if let Some(process) = self.processes.remove(&worker) {
            self.remove_cgroup(process.cgroup);
        }
    }

    /// Its own count came: of its own accord, or since it has dropped its caches.
    fn remembered(&mut self, worker: &WorkerId, memory: MemoryReport) {
        let Some(process) = self.processes.get_mut(worker) else { return };
        process.reported = memory.total();
        let trimming = process.trimming.take();
        self.sample_one(worker);
        if let (Some(before), Some(process)) = (trimming, self.processes.get(worker)) {
            let (observed_bytes, freed_bytes) = (process.sampled, before.saturating_sub(process.sampled));
            let (model, incarnation) = (&worker.model, worker.incarnation.0);
            info!(%model, incarnation, observed_bytes, freed_bytes, "worker dropped its caches");
        }
    }

    /// Someone said hello: is it the one we started?
    fn greeted(&mut self, incoming: IncomingHello) {
        let IncomingHello { stream, decoder, hello, peer_pid } = incoming;
        let worker = hello.worker.clone();
        let expected = self.processes.get_mut(&worker);
        let known = expected.filter(|process| {
            let token = same_token(&process.token, &hello.token);
            token && process.link.is_none() && peer_pid.is_none_or(|pid| pid == process.pid)
        });
        let Some(process) = known else {
            warn!(model = %worker.model, incarnation = worker.incarnation.0, peer_pid, "impostor dropped");
            return;
        };
        let Some(version) = version::choose(&hello.versions) else {
            let why = format!("it speaks protocol versions {:?}, not {}", hello.versions, version::PROTOCOL_VERSION);
            return self.step(Event::Misbehaved { worker, cause: Cause::HelloRefused(why) });
        };
        info!(model = %worker.model, incarnation = worker.incarnation.0, pid = process.pid, build = hello.build,
            "worker said hello");
        let (commands_in, commands) = mpsc::channel(LINK_QUEUE_LEN_MAX);
        let (messages, messages_out) = mpsc::channel(LINK_QUEUE_LEN_MAX);
        let answer = ToWorker::Hello { version, build: env!("CARGO_PKG_VERSION").to_owned() };
        // A new queue has room.
        let _fits = messages.try_send(LinkMessage::Plain(answer));
        process.phase.send_replace(Phase::Open);
        let reader = LinkReader {
            worker: worker.clone(),
            stream: Arc::clone(&stream),
            decoder,
            commands,
            messages: messages.downgrade(),
            reports: self.reports_in.clone(),
            phase: process.phase.clone(),
            clock: self.clock,
            config: self.config.link(),
        };
        process.link = Some(Link { commands: commands_in, messages });
        self.tasks.spawn(reader.run());
        self.tasks.spawn(link::write(worker.clone(), stream, messages_out, self.reports_in.clone()));
        self.step(Event::Hello { worker });
    }

    /// When to look at the memory of the workers again.
    fn next_sample(&self) -> Option<Mono> {
        if self.processes.is_empty() {
            return None;
        }
        let interval_ms =
            if self.scheduler.is_working() { limits::MEMORY_SAMPLE_MS } else { limits::MEMORY_SAMPLE_IDLE_MS };
        Some(self.sampled.map_or(Mono(0), |last| last.plus_ms(interval_ms)))
    }

    fn sample(&mut self) {
        let now = self.now();
        self.sampled = Some(now);
        self.oom_kills.look(now, memory::oom_kill_count());
        let workers: Vec<WorkerId> = self.processes.keys().cloned().collect();
        for worker in workers {
            self.sample_one(&worker);
        }
        let living = self.processes.iter().filter(|(_, process)| process.pid != 0);
        let stopped = living.filter(|(_, process)| process::is_stopped(process.pid)).map(|(worker, _)| worker.clone());
        for worker in stopped.collect::<Vec<_>>() {
            self.step(Event::Stopped { worker });
        }
        if let Some(permille) = memory::pressure() {
            self.step(Event::PressureSampled { permille });
        }
    }

    fn sample_one(&mut self, worker: &WorkerId) {
        let Some(process) = self.processes.get(worker).filter(|process| process.pid != 0) else { return };
        let weights = process.weights.as_ref();
        let others = self.processes.values().filter(|other| other.pid != 0 && weights.is_some());
        let mapped_by = others.filter(|other| other.weights.as_ref() == weights).count();
        let of_process = memory::footprint(process.pid).map(|footprint| footprint.share(mapped_by));
        // A group is charged for a page of a file only where nobody had read it before.
        let of_group = process.cgroup.made().and_then(|cgroup| cgroup.measured());
        let Some(measured) = of_group.max(of_process) else { return };
        // Its own word, which is about what it set aside and not about what it touched, counts where the system sees less.
        let blind = process.is_accelerated || !memory::SEES_ALL;
        let bytes = if blind { measured.max(process.reported) } else { measured };
        if let Some(process) = self.processes.get_mut(worker) {
            process.sampled = bytes;
        }
        self.step(Event::MemorySampled { worker: worker.clone(), bytes });
    }

    /// The one line per request.
    pub(super) fn summarise(&mut self, request: RequestId, summary: &Summary) {
        let Some(record) = self.requests.remove(&request) else { return };
        let now = self.now();
        let (granted, worker) = (record.granted, record.worker.as_ref());
        if let Some(granted) = granted {
            self.served(now.since(granted));
        }
        info!(
            request_id = %request,
            model = worker.map(|worker| tracing::field::display(worker.model.clone())),
            incarnation = worker.map(|worker| worker.incarnation.0),
            key = record.key.as_ref().map(tracing::field::display),
            queue_ms = granted.unwrap_or(now).since(record.arrived) / 1_000_000,
            ttft_ms = summary.first_token_ns.map(|first_ns| Mono(first_ns).since(record.arrived) / 1_000_000),
            total_ms = now.since(record.arrived) / 1_000_000,
            prompt_tokens = summary.prompt_tokens,
            completion_tokens = summary.completion_tokens,
            finish_reason = summary.finish_reason,
            "request ended"
        );
    }
}

async fn at(deadline: Option<Mono>, clock: Clock) {
    match deadline {
        Some(Mono(ns)) => sleep_until(Instant::from_std(clock.instant_of(ns))).await,
        None => std::future::pending().await,
    }
}
