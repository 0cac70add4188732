//! A pretend world around the real scheduler: processes are records, time is a number, luck is a seed.
//!
//! The world keeps its own model of what must hold, from nothing but events and effects: one process per model, memory
//! from spawn to reap, at most `slots` grants, each request granted to one process at a time and ended once, only
//! living workers spoken to. It plays the links as well: each request has an answer of some tokens, which must arrive
//! once and in order whatever dies, and some requests are poison: they kill whoever computes a certain token of them.
//!
//! Nobody waits for nothing: while a request waits, something starts, works, leaves or rests. And once nobody misbehaves any
//! more, none waits for longer than [`CALM_WAIT_MS_MAX`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ollmlx_proto::{Failure, FailureKind, MemoryReport, ModelId, Ready, RequestId, WorkerId};
use ollmlx_supervisor::limits;
use ollmlx_supervisor::scheduler::{Effect, Event, Outbox, Push, Scheduler, SchedulerConfig};
use ollmlx_supervisor::types::{Caller, Cause, Job, KeepAlive, LoadPlan, Mono, Snapshot, Step, WorkerView};

use crate::together::Together;

/// Longest wait of a request after the last fault, in milliseconds: those that killed their workers take some rests each.
const CALM_WAIT_MS_MAX: u64 = 10 * 60_000;

/// SplitMix64, as everywhere.
pub(crate) struct Luck(pub(crate) u64);

impl Luck {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    pub(crate) fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

/// A pretend process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) plan: Box<LoadPlan>,
    started: Mono,
    pub(crate) said_hello: bool,
    pub(crate) told_to_load: bool,
    pub(crate) ready: bool,
    /// The link is closed, by a loss or because it is dying.
    pub(crate) link_closed: bool,
    /// Who runs, and the next token of each.
    pub(crate) running: BTreeMap<RequestId, u32>,
    pub(crate) cancelled: BTreeSet<RequestId>,
    /// Said and not yet heard: whose, the first token, how many.
    pub(crate) wire: VecDeque<(RequestId, u32, u32)>,
    /// Whose fault its death is.
    pub(crate) killer: Option<RequestId>,
    /// Its exit status is known; it will be reaped.
    pub(crate) dead: Option<Cause>,
    pub(crate) pushed: Option<Push>,
    /// Bytes that nobody else may have because of it.
    pub(crate) holds: u64,
    /// The part of that which no sample can lower: its plan and its own report.
    floor: u64,
    /// Bytes that were last measured of it, or else that it reported.
    pub(crate) measured: u64,
    sampled: bool,
    /// Does nothing of its own accord.
    pub(crate) stuck: bool,
    /// Does nothing until it is told to go on.
    pub(crate) stopped: bool,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    /// Tokens of the whole.
    tokens: u32,
    /// Computing this one is deadly.
    poison: Option<u32>,
    /// The client has heard so many.
    heard: u32,
    /// So many when its worker got it.
    began_with: u32,
    /// It came back when it had so many.
    resumed_at: Option<u32>,
    /// Deaths that it was present at and did not cause.
    accidents: u32,
}

impl Answer {
    pub(crate) fn of(tokens: u32, poison: Option<u32>) -> Self {
        Self { tokens, poison, ..Self::default() }
    }
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Waiting,
    Running,
    /// Its client left while it ran.
    Leaving,
    Ended,
}

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: Mono,
    pub(crate) processes: BTreeMap<WorkerId, Process>,
    pub(crate) requests: BTreeMap<RequestId, (Standing, bool)>,
    pub(crate) answers: BTreeMap<RequestId, Answer>,
    /// How each request wants its model.
    wishes: BTreeMap<RequestId, LoadPlan>,
    /// How models were loaded, in order.
    pub(crate) begun: Vec<LoadPlan>,
    /// Since when nobody misbehaves.
    calm_since: Option<Mono>,
    /// Whose fault the death is that is told of at the moment.
    dying_of: Option<RequestId>,
    /// Where the memory ladder has been.
    pub(crate) steps: Vec<Step>,
    /// Requests to drop caches.
    pub(crate) trims: u64,
    /// Who died together.
    pub(crate) together: Together,
    pub(crate) sentenced: u64,
    pub(crate) resumed: u64,
    pub(crate) failures: Vec<(RequestId, FailureKind)>,
    /// What the last of them was told.
    pub(crate) last_words: String,
    pub(crate) next_request: u64,
    pub(crate) finished: bool,
    /// Effects seen; the one that fails, where one is to fail.
    pub(crate) effects: u64,
    pub(crate) fails_at: Option<u64>,
    pub(crate) slots: u16,
    /// What workers that get ready report, if not their plan.
    pub(crate) reports: Option<u64>,
    /// What requests say; where it is empty, each says something else.
    pub(crate) text: String,
    /// Who they are from.
    pub(crate) client: Caller,
    /// What the next request to arrive is answered.
    pub(crate) next_answer: Answer,
    workers_max: usize,
    limit: Option<u64>,
    incarnations: BTreeMap<ModelId, u32>,
    next_pid: u32,
    pub(crate) log: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(config: SchedulerConfig, seed: u64) -> Self {
        Self {
            workers_max: config.workers_max,
            limit: config.memory_limit,
            scheduler: Scheduler::new(config, seed),
            now: Mono(1),
            processes: BTreeMap::new(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            wishes: BTreeMap::new(),
            begun: Vec::new(),
            calm_since: None,
            dying_of: None,
            steps: Vec::new(),
            trims: 0,
            together: Together::default(),
            sentenced: 0,
            resumed: 0,
            failures: Vec::new(),
            last_words: String::new(),
            next_request: 1,
            finished: false,
            effects: 0,
            fails_at: None,
            slots: 2,
            reports: None,
            text: String::new(),
            client: Caller::default(),
            next_answer: Answer::default(),
            incarnations: BTreeMap::new(),
            next_pid: 100,
            log: None,
        }
    }

    /// One event, its effects, and the answers that the driver owes at once.
    pub(crate) fn tell(&mut self, event: Event) {
        let mut owed = VecDeque::from([event]);
        while let Some(event) = owed.pop_front() {
            if let Some(log) = &mut self.log {
                log.push(format!("{:?} {event:?}", self.now));
            }
            self.together.is_leaving |= matches!(event, Event::ShutdownAsked | Event::ShutdownForced);
            let mut out = Outbox::default();
            self.scheduler.step(self.now, event, &mut out);
            let mut answers = VecDeque::new();
            for effect in out.0 {
                if let Some(log) = &mut self.log {
                    log.push(format!("    {effect:?}"));
                }
                self.effects += 1;
                let fails = self.fails_at == Some(self.effects);
                self.perform(effect, fails, &mut answers);
            }
            while let Some(answer) = answers.pop_back() {
                owed.push_front(answer);
            }
            if let Err(broken) = self.scheduler.check() {
                panic!("{broken}");
            }
        }
        let view = self.scheduler.snapshot();
        self.check_sums(&view);
        self.check_waits(&view);
    }

    fn perform(&mut self, effect: Effect, fails: bool, answers: &mut VecDeque<Event>) {
        match effect {
            Effect::Spawn { worker, plan, reserved_bytes, .. } => {
                assert!(reserved_bytes >= plan.need(), "I1: never less than the plan");
                self.spawn(worker, plan, reserved_bytes, fails, answers);
            }
            Effect::Load { worker, .. } => {
                let process = self.processes.get_mut(&worker).expect("loads are sent to processes");
                assert!(process.said_hello && !process.told_to_load, "{worker} loads once, after its hello");
                process.told_to_load = true;
                process.lose(fails);
            }
            Effect::Grant { worker, request } => {
                let process = self.processes.get_mut(&worker).expect("grants go to processes");
                assert!(process.ready && !process.link_closed, "{worker} can take {}", request.id);
                assert!(process.pushed.is_none(), "I5: {worker} was shown the door");
                let answer = self.answers.get_mut(&request.id).expect("known");
                answer.began_with = answer.heard;
                let heard = answer.heard;
                assert_eq!(process.running.insert(request.id, heard), None, "no request is granted twice");
                let slots = self.slots.min(process.plan.spec.slots);
                assert!(process.running.len() <= usize::from(slots), "no slot is granted twice");
                let wish = &self.wishes[&request.id];
                assert!(serves(&process.plan, wish), "{} can do with {worker}", request.id);
                let standing = self.requests.get_mut(&request.id).expect("grants are for requests");
                assert_eq!(standing.0, Standing::Waiting, "{} is granted while it waits", request.id);
                standing.0 = Standing::Running;
                process.lose(fails);
            }
            Effect::Requeue { worker, request } => {
                let process = self.processes.get_mut(&worker);
                assert!(process.is_none(), "only the reaped give back");
                let standing = self.requests.get_mut(&request).expect("requests come back");
                assert_eq!(standing.0, Standing::Running, "{request} comes back from a worker");
                standing.0 = Standing::Waiting;
                let answer = self.answers.get_mut(&request).expect("known");
                answer.resumed_at = Some(answer.heard);
                self.resumed += 1;
            }
            Effect::Loaded { request, worker } => {
                assert!(self.processes[&worker].ready, "loaded means ready");
                self.end(request, Standing::Waiting);
            }
            Effect::Fail { request, failure } => {
                let standing = self.requests[&request].0;
                assert_ne!(standing, Standing::Ended, "{request} ends once, not again with {failure}");
                self.end(request, standing);
                if failure.public.contains("died twice") {
                    self.sentenced += 1;
                    let outside = ["SIGKILL", "SIGTERM"].iter().any(|signal| failure.public.contains(signal));
                    assert!(!outside, "what somebody outside does is no evidence: {failure}");
                    let answer = &self.answers[&request];
                    match self.dying_of {
                        Some(killer) => assert_eq!(killer, request, "the innocent are not sentenced with the guilty"),
                        // Two deaths in a row look like guilt where it was alone at the second; one never does.
                        None => assert!(answer.accidents >= 2 || answer.poison.is_some(), "{request} is a suspect"),
                    }
                }
                let calm_ns = self.calm_since.map_or(0, |since| self.now.since(since));
                let in_vain = failure.kind == FailureKind::Busy && calm_ns > CALM_WAIT_MS_MAX * 1_000_000;
                assert!(!in_vain, "{request} is served or refused in time: {failure}");
                self.failures.push((request, failure.kind));
                self.last_words = failure.public;
                for process in self.processes.values_mut() {
                    process.running.remove(&request);
                }
            }
            Effect::Cancel { worker, request } => {
                let process = self.processes.get_mut(&worker).expect("cancels go to processes");
                assert!(process.cancelled.insert(request), "one cancel each");
                process.lose(fails);
            }
            Effect::Push { worker, push } => {
                let process = self.processes.get_mut(&worker).expect("pushes go to processes");
                process.pushed = Some(push);
                if push == Push::Kill {
                    process.dead.get_or_insert(Cause::Signalled { signal: 9 });
                }
            }
            Effect::Trim { worker } => {
                let process = &self.processes[&worker];
                assert!(process.ready && process.pushed.is_none(), "only those that answer are asked to trim");
                self.trims += 1;
            }
            Effect::Relief { from, to, .. } => {
                assert_eq!(from, self.steps.last().copied().unwrap_or_default(), "steps follow each other");
                assert_ne!(from, to);
                self.steps.push(to);
            }
            Effect::Continue { worker } => {
                self.processes.get_mut(&worker).expect("only processes are continued").stopped = false;
            }
            Effect::Incident { number, models, .. } => self.together.told(number, models),
            Effect::Transition { worker, from, to, cause, .. } => {
                assert_ne!(from, to);
                if let Some(cause) = cause.filter(|_| matches!(to, "absent" | "backoff" | "quarantined")) {
                    let ready = self.processes.iter().filter(|(_, process)| process.ready);
                    let ready = ready.map(|(worker, _)| worker.model.clone()).collect();
                    self.together.died(worker.model, &cause, self.now, &ready);
                }
            }
            Effect::Never { what } => panic!("I4: {what}"),
            Effect::Finished => {
                assert!(!self.finished && self.processes.is_empty(), "finished once, after the last is reaped");
                self.finished = true;
            }
        }
    }

    fn spawn(&mut self, worker: WorkerId, plan: Box<LoadPlan>, holds: u64, fails: bool, answers: &mut VecDeque<Event>) {
        let others = self.processes.keys().filter(|other| other.model == worker.model).count();
        assert_eq!(others, 0, "I2: one process per model");
        assert!(self.processes.len() < self.workers_max, "no more processes than allowed");
        let loading = self.processes.iter().filter(|(_, process)| process.loads());
        let loading = loading.map(|(worker, process)| (&worker.model, process.started)).collect();
        self.together.check_start(&worker.model, loading, self.now);
        let last = self.incarnations.insert(worker.model.clone(), worker.incarnation.0);
        assert_eq!(worker.incarnation.0, last.unwrap_or(0) + 1, "I2: one incarnation per process");
        assert!(plan.terms.limit.is_none_or(|own| plan.need() <= own), "{worker} is within its own limit");
        let waits = |request: &RequestId| self.requests[request].0 == Standing::Waiting;
        let mut wishes = self.wishes.iter().filter(|(request, wish)| wish.model.id == worker.model && waits(request));
        assert!(wishes.any(|(_, wish)| serves(&plan, wish)), "{worker} is started for somebody");
        self.begun.push((*plan).clone());
        if let Some(limit) = self.limit {
            let reserved: u64 = self.processes.values().map(|process| process.holds).sum();
            assert!(reserved + holds <= limit, "I1: nothing is started that does not fit beside the unreaped");
        }
        if fails {
            return answers.push_back(Event::SpawnFailed { worker, reason: "fake".to_owned() });
        }
        self.next_pid += 1;
        let process = Process {
            plan,
            started: self.now,
            said_hello: false,
            told_to_load: false,
            ready: false,
            link_closed: false,
            running: BTreeMap::new(),
            wire: VecDeque::new(),
            killer: None,
            cancelled: BTreeSet::new(),
            dead: None,
            pushed: None,
            holds,
            floor: holds,
            measured: 0,
            sampled: false,
            stuck: false,
            stopped: false,
        };
        self.processes.insert(worker.clone(), process);
        answers.push_back(Event::Spawned { worker, pid: self.next_pid });
    }

    fn end(&mut self, request: RequestId, expected: Standing) {
        let entry = self.requests.get_mut(&request).expect("ends are for requests");
        assert_eq!(entry.0, expected, "{request}");
        entry.0 = Standing::Ended;
    }

    fn check_sums(&self, view: &Snapshot) {
        assert_eq!(view.totals.incidents, self.together.count(), "incidents");
        let count = |standing| self.requests.values().filter(|entry| entry.0 == standing).count();
        assert_eq!(view.queue_len, count(Standing::Waiting), "waiting");
        assert_eq!(view.running, count(Standing::Running) + count(Standing::Leaving), "running");
        let sum = |of: fn(&Process) -> u64| self.processes.values().map(of).sum::<u64>();
        assert_eq!(view.reserved_bytes, sum(|process| process.holds), "I1: held until reaped, and no longer");
        assert_eq!(view.measured_bytes, sum(|process| process.measured), "measured");
        let shown: u64 = view.workers.iter().map(|worker| worker.memory_bytes).sum();
        assert_eq!(view.reserved_bytes, shown, "the ledger is the sum over its workers");
    }

    /// Nobody waits while nothing goes on that ends by itself.
    fn check_waits(&self, view: &Snapshot) {
        let rests = view.workers.iter().any(|worker| worker.state == "backoff" && worker.queued > 0);
        let goes_on = rests || !self.processes.values().all(Process::is_idle);
        let state = |worker: &WorkerView| format!("{} {}, {} wait", worker.model.name, worker.state, worker.queued);
        let states = || view.workers.iter().map(state).collect::<Vec<_>>();
        assert!(view.queue_len == 0 || goes_on, "they wait for nothing: {:?}", states());
    }

    // --- what may happen ---

    /// A person asks to forget what happened.
    pub(crate) fn pardon(&mut self, model: &ModelId) {
        self.tell(Event::Pardoned { model: model.clone() });
    }

    /// The system measures a process.
    pub(crate) fn sample(&mut self, worker: &WorkerId, bytes: u64) {
        let Some(process) = self.processes.get_mut(worker) else { return };
        process.holds = process.floor.max(bytes);
        process.measured = bytes;
        process.sampled = true;
        self.tell(Event::MemorySampled { worker: worker.clone(), bytes });
    }

    pub(crate) fn arrive(&mut self, plan: LoadPlan, load_only: bool, keep_alive: Option<KeepAlive>) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.insert(request, (Standing::Waiting, load_only));
        self.answers.insert(request, self.next_answer);
        self.wishes.insert(request, plan.clone());
        let text = if self.text.is_empty() { request.to_string() } else { self.text.clone() };
        let job = if load_only { Job::Load } else { Job::Run(harness::request(request.0, &text)) };
        self.tell(Event::Arrived { request, job, plan: Box::new(plan), keep_alive, client: self.client.clone() });
        request
    }

    pub(crate) fn leave(&mut self, request: RequestId) {
        let entry = self.requests.get_mut(&request).expect("clients have requests");
        entry.0 = match entry.0 {
            Standing::Waiting => Standing::Ended,
            Standing::Running => Standing::Leaving,
            other => other,
        };
        self.tell(Event::Left { request });
    }

    /// The process does the next thing a good worker would do. Says whether there was one.
    pub(crate) fn proceed(&mut self, worker: &WorkerId) -> bool {
        let Some(process) = self.processes.get_mut(worker) else { return false };
        let slots = self.slots.min(process.plan.spec.slots);
        let worker = worker.clone();
        if let Some(cause) = process.dead.clone() {
            if !process.link_closed && !process.wire.is_empty() {
                // What was written before the death is read.
                self.hear(&worker);
            } else if !std::mem::replace(&mut process.link_closed, true) && process.said_hello {
                self.tell(Event::LinkClosed { worker });
            } else {
                let process = self.processes.remove(&worker).expect("it was here");
                self.dying_of = process.killer;
                for request in process.running.keys().filter(|request| process.killer != Some(**request)) {
                    self.answers.get_mut(request).expect("known").accidents += 1;
                }
                self.tell(Event::Exited { worker, cause, log_tail: "last words\n".to_owned() });
                self.dying_of = None;
            }
            return true;
        }
        if process.stopped {
            self.tell(Event::Stopped { worker: worker.clone() });
        }
        let Some(process) = self.processes.get_mut(&worker) else { return true };
        if process.stuck || process.stopped {
            return false;
        }
        if !process.said_hello && process.pushed.is_none() {
            process.said_hello = true;
            self.tell(Event::Hello { worker });
        } else if process.link_closed || process.pushed.is_some() {
            process.dead = Some(Cause::Exited { code: 0 });
        } else if process.told_to_load && !process.ready {
            process.ready = true;
            let weights = self.reports.unwrap_or(process.plan.memory.total());
            let memory = MemoryReport { weights, kv: 0, compute: 0 };
            let context_tokens = process.plan.spec.context_tokens;
            let device = "fake".to_owned();
            let ready = Ready { slots, context_tokens, memory, device, accelerator_bytes: 0 };
            let need = process.measured.max(memory.total());
            self.together.is_ready(&worker.model);
            let own = process.plan.terms.limit;
            if [self.limit, own].into_iter().flatten().all(|limit| need <= limit) {
                process.floor = process.floor.max(memory.total());
                process.holds = process.holds.max(process.floor);
                if !process.sampled {
                    process.measured = memory.total();
                }
            }
            self.tell(Event::Ready { worker, ready });
        } else if process.wire.len() > 1 {
            self.hear(&worker);
        } else if let Some(request) = process.cancelled.pop_first() {
            self.finish(&worker, request);
        } else if let Some((&request, &token)) =
            process.running.iter().min_by_key(|(request, token)| (*token, *request))
        {
            self.compute(&worker, request, token);
        } else {
            return false;
        }
        true
    }

    /// Some tokens of one request, its end, or the end of the process.
    fn compute(&mut self, worker: &WorkerId, request: RequestId, token: u32) {
        let Answer { tokens, poison, .. } = self.answers[&request];
        let process = self.processes.get_mut(worker).expect("it lives");
        let until = tokens.min(token + 8).min(poison.filter(|&poison| poison >= token).unwrap_or(u32::MAX));
        if until > token {
            process.wire.push_back((request, token, until - token));
            process.running.insert(request, until);
        } else if poison.is_some_and(|poison| poison == token) {
            process.dead = Some(Cause::Signalled { signal: 6 });
            process.killer = Some(request);
        } else {
            while self.processes.get(worker).is_some_and(|process| !process.wire.is_empty()) {
                self.hear(worker);
            }
            self.finish(worker, request);
        }
    }

    /// The oldest words on the wire reach whom they are for, if they are for anybody.
    fn hear(&mut self, worker: &WorkerId) {
        let process = self.processes.get_mut(worker).expect("it was here");
        let Some((request, token, count)) = process.wire.pop_front() else { return };
        if self.requests[&request].0 == Standing::Ended {
            return;
        }
        assert!(process.running.contains_key(&request), "words of {worker} are for those it runs");
        let answer = self.answers.get_mut(&request).expect("known");
        assert_eq!(answer.heard, token, "{request} hears each token once and in order");
        let gained = answer.resumed_at.is_some() && answer.heard == answer.began_with;
        answer.heard += count;
        if gained {
            self.tell(Event::Gained { worker: worker.clone(), request });
        }
        let answer = self.answers.get_mut(&request).expect("known");
        let probation = u32::try_from(limits::PROBATION_TOKENS).expect("small");
        if answer.resumed_at.is_some_and(|from| answer.heard >= from + probation) {
            answer.resumed_at = None;
            // Whoever got that far was not killed by accident at that place.
            answer.accidents = 0;
            self.tell(Event::Cleared { worker: worker.clone(), request });
        }
    }

    /// The worker confirms the end of one that it runs.
    pub(crate) fn finish(&mut self, worker: &WorkerId, request: RequestId) {
        let process = self.processes.get_mut(worker).expect("it lives");
        if process.running.remove(&request).is_some() {
            let Answer { heard, tokens, .. } = self.answers[&request];
            let whole = process.cancelled.contains(&request) || heard == tokens;
            assert!(whole || self.requests[&request].0 == Standing::Leaving, "{request} heard {heard} of {tokens}");
            process.cancelled.remove(&request);
            self.requests.get_mut(&request).expect("known").0 = Standing::Ended;
            self.tell(Event::Ended { worker: worker.clone(), request });
        }
    }

    /// One cause ends these in the same instant.
    pub(crate) fn strike(&mut self, workers: &[WorkerId], cause: &Cause) {
        for worker in workers {
            self.processes.get_mut(worker).expect("it lives").dead.get_or_insert(cause.clone());
        }
        for worker in workers {
            while self.processes.contains_key(worker) {
                self.proceed(worker);
            }
        }
    }

    pub(crate) fn fail_load(&mut self, worker: &WorkerId, kind: FailureKind) {
        let process = self.processes.get_mut(worker).expect("it lives");
        if process.told_to_load && !process.ready && process.dead.is_none() && !process.link_closed {
            process.dead = Some(Cause::Exited { code: 1 });
            self.tell(Event::LoadFailed { worker: worker.clone(), failure: Failure::new(kind, "no") });
        }
    }

    /// Jumps to the next deadline, if there is one.
    pub(crate) fn jump(&mut self) -> bool {
        let Some(deadline) = self.scheduler.next_deadline() else { return false };
        let before = self.now;
        self.now = self.now.max(deadline);
        self.tell(Event::DeadlineElapsed);
        let again = self.scheduler.next_deadline();
        assert!(again.is_none_or(|again| again > before || again > deadline), "time goes on after {deadline:?}");
        true
    }

    /// Nobody misbehaves any more. Says what was not served or refused by time alone.
    pub(crate) fn calm_down(&mut self) -> Vec<RequestId> {
        self.calm_since = Some(self.now);
        for process in self.processes.values_mut() {
            process.stuck = false;
        }
        for _ in 0..20_000 {
            if self.requests.values().all(|entry| entry.0 == Standing::Ended) {
                break;
            }
            let workers: Vec<WorkerId> = self.processes.keys().cloned().collect();
            let moved = workers.iter().fold(false, |moved, worker| self.proceed(worker) | moved);
            if !moved && !self.jump() {
                break;
            }
        }
        let left = self.requests.iter().filter(|(_, entry)| entry.0 != Standing::Ended);
        left.map(|(request, _)| *request).collect()
    }

    /// Everybody behaves from here on, and the server leaves: all must end, and nothing may remain.
    pub(crate) fn wind_down(&mut self) {
        self.tell(Event::ShutdownAsked);
        for _ in 0..10_000 {
            let workers: Vec<WorkerId> = self.processes.keys().cloned().collect();
            let mut moved = false;
            for worker in workers {
                moved |= self.proceed(&worker);
            }
            if !moved && !self.jump() {
                break;
            }
        }
        assert!(self.finished, "the server ends: {:?}", self.processes);
        self.together.check_told();
        for (request, (standing, _)) in &self.requests {
            assert_eq!(*standing, Standing::Ended, "{request} ends exactly once");
        }
    }
}

/// Whether what is loaded like this can answer one that wants that.
fn serves(loaded: &LoadPlan, wish: &LoadPlan) -> bool {
    let needed = if loaded.terms.shrunk { wish.terms.context_least } else { wish.spec.context_tokens };
    loaded.spec.embedding == wish.spec.embedding && loaded.spec.context_tokens >= needed.min(wish.spec.context_tokens)
}

impl Process {
    /// Between its start and its being ready, and not on its way out.
    fn loads(&self) -> bool {
        !self.ready && !self.link_closed && self.pushed.is_none()
    }

    /// Ready, and without anything to do.
    fn is_idle(&self) -> bool {
        self.ready && self.running.is_empty() && self.pushed.is_none() && !self.link_closed && self.dead.is_none()
    }

    /// The link breaks under an effect.
    fn lose(&mut self, fails: bool) {
        if fails {
            self.dead.get_or_insert(Cause::Exited { code: 3 });
        }
    }
}
