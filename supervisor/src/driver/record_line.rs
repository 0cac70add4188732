//! An event as a line of JSON, and back. The one place that knows how what the scheduler is told and what it decides are
//! written down: neither `types` nor `scheduler` needs to, so it is here that `serde` is used, on copies of their values.
//!
//! What is left out is what nothing is decided by: prompts, what workers printed, details of failures, templates, files. A
//! request stands there with a word that is the same for the same work (see [`super::identity`]).

use std::sync::Arc;
use std::time::SystemTime;

use ollmlx_proto::{
    CacheSalt, Complete, Failure, Format, Limits, LoadSpec, MemoryModel, MemoryReport, ModelCard, ModelId, Ready,
    Request, RequestId, ResumePoint, Sampling, UnixSeconds, Work, WorkerId,
};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::catalog::{Backend, Correction, Details, ModelRef};
use crate::scheduler::{Effect, Event};
use crate::types::{Caller, Cause, Job, KeepAlive, KeyName, LoadPlan, Terms};

/// One event, when it came, and what followed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordLine {
    pub(super) at_ns: u64,
    pub(super) event: EventLine,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) decisions: Vec<String>,
}

/// [`Event`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum EventLine {
    Arrived(ArrivalLine),
    Left { request: RequestId },
    Unload { model: ModelId },
    Pardoned { model: ModelId },
    Restart { model: ModelId },
    Spawned { worker: WorkerId, pid: u32 },
    SpawnFailed { worker: WorkerId, reason: String },
    Hello { worker: WorkerId },
    Misbehaved { worker: WorkerId, cause: CauseLine },
    LoadProgress { worker: WorkerId, done: u64, total: u64 },
    Ready { worker: WorkerId, ready: Ready },
    LoadFailed { worker: WorkerId, failure: Failure },
    Heard { worker: WorkerId },
    Ended { worker: WorkerId, request: RequestId },
    Cleared { worker: WorkerId, request: RequestId },
    Gained { worker: WorkerId, request: RequestId },
    LinkClosed { worker: WorkerId },
    Exited { worker: WorkerId, cause: CauseLine },
    MemoryReported { worker: WorkerId, memory: MemoryReport },
    MemorySampled { worker: WorkerId, bytes: u64 },
    PressureSampled { permille: u16 },
    Stopped { worker: WorkerId },
    DeadlineElapsed,
    Replaced,
    ElsewhereHeld { bytes: u64 },
    ShutdownAsked,
    ShutdownForced,
}

/// [`Event::Arrived`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArrivalLine {
    request: RequestId,
    job: JobLine,
    plan: Box<PlanLine>,
    keep_alive: Option<KeepAliveLine>,
    #[serde(default)]
    client: ClientLine,
}

/// [`Caller`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientLine {
    key: Option<String>,
    address: u64,
}

/// [`Job`]; of a request, which work it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobLine {
    Load,
    Run(String),
}

/// [`KeepAlive`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeepAliveLine {
    ForMs(u64),
    Forever,
    Unload,
}

/// [`LoadPlan`], its model and its terms.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanLine {
    id: ModelId,
    name: String,
    full_name: String,
    is_mlx: bool,
    memory_model: MemoryModel,
    spec: LoadSpec,
    memory: MemoryReport,
    learned_permille: u32,
    learned_bytes: u64,
    limit: Option<u64>,
    priority: i32,
    context_least: u32,
    shrunk: bool,
}

/// [`Cause`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum CauseLine {
    Asked,
    Exited { code: i32 },
    Signalled { signal: i32 },
    NoHello,
    HelloRefused { why: String },
    LoadStalled,
    LoadFailed { failure: Failure },
    Silent,
    Protocol { why: String },
    Unhealthy,
    LinkLost,
    SpawnFailed { why: String },
    OverBudget,
    OverOwnLimit { took: u64, limit: u64 },
    Leaked,
    OutOfMemory,
    TooLarge { need: u64, limit: u64, own: u64 },
}

/// Without its text for the log.
fn without_detail(failure: &Failure) -> Failure {
    Failure { detail: String::new(), ..failure.clone() }
}

impl JobLine {
    fn of(job: &Job, request: RequestId, identity: Option<Identity>) -> Self {
        match job {
            Job::Load => Self::Load,
            Job::Run(_) => Self::Run(identity.map_or_else(|| request.to_string(), |known| known.to_string())),
        }
    }

    fn job(self, request: RequestId) -> Job {
        match self {
            Self::Load => Job::Load,
            Self::Run(identity) => Job::Run(Box::new(stand_in(request, identity))),
        }
    }
}

impl KeepAliveLine {
    fn of(keep_alive: KeepAlive) -> Self {
        match keep_alive {
            KeepAlive::ForMs(ms) => Self::ForMs(ms),
            KeepAlive::Forever => Self::Forever,
            KeepAlive::Unload => Self::Unload,
        }
    }

    fn keep_alive(self) -> KeepAlive {
        match self {
            Self::ForMs(ms) => KeepAlive::ForMs(ms),
            Self::Forever => KeepAlive::Forever,
            Self::Unload => KeepAlive::Unload,
        }
    }
}

impl ClientLine {
    fn of(client: &Caller) -> Self {
        Self { key: client.key.as_ref().map(KeyName::to_string), address: client.address }
    }

    fn client(self) -> Caller {
        Caller { key: self.key.as_deref().map(KeyName::new), address: self.address }
    }
}

impl EventLine {
    /// `identity` is that of the request that arrives.
    pub(super) fn of(event: &Event, identity: Option<Identity>) -> Self {
        let name = WorkerId::clone;
        match event {
            Event::Arrived { request, job, plan, keep_alive, client } => Self::Arrived(ArrivalLine {
                request: *request,
                job: JobLine::of(job, *request, identity),
                plan: Box::new(PlanLine::of(plan)),
                keep_alive: keep_alive.map(KeepAliveLine::of),
                client: ClientLine::of(client),
            }),
            Event::Left { request } => Self::Left { request: *request },
            Event::Unload { model } => Self::Unload { model: model.clone() },
            Event::Pardoned { model } => Self::Pardoned { model: model.clone() },
            Event::Restart { model } => Self::Restart { model: model.clone() },
            Event::Spawned { worker, pid } => Self::Spawned { worker: name(worker), pid: *pid },
            Event::SpawnFailed { worker, reason } => Self::SpawnFailed { worker: name(worker), reason: reason.clone() },
            Event::Hello { worker } => Self::Hello { worker: name(worker) },
            Event::Misbehaved { worker, cause } => {
                Self::Misbehaved { worker: name(worker), cause: CauseLine::of(cause) }
            }
            Event::LoadProgress { worker, done, total } => {
                Self::LoadProgress { worker: name(worker), done: *done, total: *total }
            }
            Event::Ready { worker, ready } => Self::Ready { worker: name(worker), ready: ready.clone() },
            Event::LoadFailed { worker, failure } => {
                Self::LoadFailed { worker: name(worker), failure: without_detail(failure) }
            }
            Event::Heard { worker } => Self::Heard { worker: name(worker) },
            Event::Ended { worker, request } => Self::Ended { worker: name(worker), request: *request },
            Event::Cleared { worker, request } => Self::Cleared { worker: name(worker), request: *request },
            Event::Gained { worker, request } => Self::Gained { worker: name(worker), request: *request },
            Event::LinkClosed { worker } => Self::LinkClosed { worker: name(worker) },
            Event::Exited { worker, cause, log_tail: _ } => {
                Self::Exited { worker: name(worker), cause: CauseLine::of(cause) }
            }
            Event::MemoryReported { worker, memory } => Self::MemoryReported { worker: name(worker), memory: *memory },
            Event::MemorySampled { worker, bytes } => Self::MemorySampled { worker: name(worker), bytes: *bytes },
            Event::PressureSampled { permille } => Self::PressureSampled { permille: *permille },
            Event::Stopped { worker } => Self::Stopped { worker: name(worker) },
            Event::DeadlineElapsed => Self::DeadlineElapsed,
            Event::Replaced => Self::Replaced,
            Event::ElsewhereHeld { bytes } => Self::ElsewhereHeld { bytes: *bytes },
            Event::ShutdownAsked => Self::ShutdownAsked,
            Event::ShutdownForced => Self::ShutdownForced,
        }
    }

    /// An event that the same follows from.
    pub(super) fn event(self) -> Event {
        match self {
            Self::Arrived(ArrivalLine { request, job, plan, keep_alive, client }) => Event::Arrived {
                request,
                job: job.job(request),
                plan: Box::new(plan.plan()),
                keep_alive: keep_alive.map(KeepAliveLine::keep_alive),
                client: client.client(),
            },
            Self::Left { request } => Event::Left { request },
            Self::Unload { model } => Event::Unload { model },
            Self::Pardoned { model } => Event::Pardoned { model },
            Self::Restart { model } => Event::Restart { model },
            Self::Spawned { worker, pid } => Event::Spawned { worker, pid },
            Self::SpawnFailed { worker, reason } => Event::SpawnFailed { worker, reason },
            Self::Hello { worker } => Event::Hello { worker },
            Self::Misbehaved { worker, cause } => Event::Misbehaved { worker, cause: cause.cause() },
            Self::LoadProgress { worker, done, total } => Event::LoadProgress { worker, done, total },
            Self::Ready { worker, ready } => Event::Ready { worker, ready },
            Self::LoadFailed { worker, failure } => Event::LoadFailed { worker, failure },
            Self::Heard { worker } => Event::Heard { worker },
            Self::Ended { worker, request } => Event::Ended { worker, request },
            Self::Cleared { worker, request } => Event::Cleared { worker, request },
            Self::Gained { worker, request } => Event::Gained { worker, request },
            Self::LinkClosed { worker } => Event::LinkClosed { worker },
            Self::Exited { worker, cause } => Event::Exited { worker, cause: cause.cause(), log_tail: String::new() },
            Self::MemoryReported { worker, memory } => Event::MemoryReported { worker, memory },
            Self::MemorySampled { worker, bytes } => Event::MemorySampled { worker, bytes },
            Self::PressureSampled { permille } => Event::PressureSampled { permille },
            Self::Stopped { worker } => Event::Stopped { worker },
            Self::DeadlineElapsed => Event::DeadlineElapsed,
            Self::Replaced => Event::Replaced,
            Self::ElsewhereHeld { bytes } => Event::ElsewhereHeld { bytes },
            Self::ShutdownAsked => Event::ShutdownAsked,
            Self::ShutdownForced => Event::ShutdownForced,
        }
    }
}

/// A request that is the same as another one where their identities are.
fn stand_in(id: RequestId, identity: String) -> Request {
    Request {
        id,
        work: Work::Complete(Complete { prompt: identity, suffix: None }),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        format: Format::Text,
        limits: Limits { max_tokens: None, context_tokens: 0, truncate: true, shift: false, keep_tokens: 0 },
        logprobs: None,
        asked_at: UnixSeconds::default(),
        cache_salt: CacheSalt::default(),
        progress: ResumePoint::default(),
    }
}

impl PlanLine {
    fn of(plan: &LoadPlan) -> Self {
        let LoadPlan { model, spec, memory, terms } = plan;
        Self {
            id: model.id.clone(),
            name: model.name.clone(),
            full_name: model.full_name.clone(),
            is_mlx: model.backend == Backend::Mlx,
            memory_model: model.card.memory.clone(),
            spec: LoadSpec { weights: Vec::new(), go_template: None, ..spec.clone() },
            memory: *memory,
            learned_permille: terms.learned.permille,
            learned_bytes: terms.learned.bytes,
            limit: terms.limit,
            priority: terms.priority,
            context_least: terms.context_least,
            shrunk: terms.shrunk,
        }
    }

    fn plan(self) -> LoadPlan {
        let card = ModelCard {
            format: String::new(),
            architecture: String::new(),
            parameter_count: 0,
            quantization: String::new(),
            context_length: 0,
            embedding_length: 0,
            block_count: 0,
            vocab_size: 0,
            weight_bytes: 0,
            memory: self.memory_model,
            chat_template: None,
            chat_template_fault: None,
            builtin_template: None,
            capabilities: Vec::new(),
            metadata: String::new(),
            tensors: Vec::new(),
        };
        let model = ModelRef {
            id: self.id,
            name: self.name,
            full_name: self.full_name,
            backend: if self.is_mlx { Backend::Mlx } else { Backend::Gguf },
            weights: Vec::new(),
            adapters: Vec::new(),
            card: Arc::new(card),
            capabilities: Vec::new(),
            template: None,
            system: None,
            params: serde_json::Map::new(),
            messages: Vec::new(),
            licenses: Vec::new(),
            digest: String::new(),
            size_bytes: 0,
            modified_at: SystemTime::UNIX_EPOCH,
            details: Details::default(),
            parent: String::new(),
        };
        let terms = Terms {
            learned: Correction { permille: self.learned_permille, bytes: self.learned_bytes },
            limit: self.limit,
            priority: self.priority,
            context_least: self.context_least,
            shrunk: self.shrunk,
        };
        LoadPlan { model: Arc::new(model), spec: self.spec, memory: self.memory, terms }
    }
}

impl CauseLine {
    fn of(cause: &Cause) -> Self {
        match cause.clone() {
            Cause::Asked => Self::Asked,
            Cause::Exited { code } => Self::Exited { code },
            Cause::Signalled { signal } => Self::Signalled { signal },
            Cause::NoHello => Self::NoHello,
            Cause::HelloRefused(why) => Self::HelloRefused { why },
            Cause::LoadStalled => Self::LoadStalled,
            Cause::LoadFailed(failure) => Self::LoadFailed { failure: without_detail(&failure) },
            Cause::Silent => Self::Silent,
            Cause::Protocol(why) => Self::Protocol { why },
            Cause::Unhealthy => Self::Unhealthy,
            Cause::LinkLost => Self::LinkLost,
            Cause::SpawnFailed(why) => Self::SpawnFailed { why },
            Cause::OverBudget => Self::OverBudget,
            Cause::OverOwnLimit { took, limit } => Self::OverOwnLimit { took, limit },
            Cause::Leaked => Self::Leaked,
            Cause::OutOfMemory => Self::OutOfMemory,
            Cause::TooLarge { need, limit, own } => Self::TooLarge { need, limit, own },
        }
    }

    fn cause(self) -> Cause {
        match self {
            Self::Asked => Cause::Asked,
            Self::Exited { code } => Cause::Exited { code },
            Self::Signalled { signal } => Cause::Signalled { signal },
            Self::NoHello => Cause::NoHello,
            Self::HelloRefused { why } => Cause::HelloRefused(why),
            Self::LoadStalled => Cause::LoadStalled,
            Self::LoadFailed { failure } => Cause::LoadFailed(failure),
            Self::Silent => Cause::Silent,
            Self::Protocol { why } => Cause::Protocol(why),
            Self::Unhealthy => Cause::Unhealthy,
            Self::LinkLost => Cause::LinkLost,
            Self::SpawnFailed { why } => Cause::SpawnFailed(why),
            Self::OverBudget => Cause::OverBudget,
            Self::OverOwnLimit { took, limit } => Cause::OverOwnLimit { took, limit },
            Self::Leaked => Cause::Leaked,
            Self::OutOfMemory => Cause::OutOfMemory,
            Self::TooLarge { need, limit, own } => Cause::TooLarge { need, limit, own },
        }
    }
}

/// What was decided, for people, with all by which two decisions may differ.
pub(super) fn decision(effect: &Effect) -> String {
    let size = |plan: &LoadPlan| {
        let LoadSpec { slots, context_tokens, cpu_level, .. } = &plan.spec;
        format!(
            "{slots} slots of {context_tokens} tokens{}{cpu_level}",
            if cpu_level.is_empty() { "" } else { " with " }
        )
    };
    match effect {
        Effect::Spawn { worker, plan, reserved_bytes, ceiling_bytes } => {
            format!("spawn {worker}: {}, {reserved_bytes} bytes, at most {ceiling_bytes}", size(plan))
        }
        Effect::Load { worker, plan } => format!("load {worker}: {}", size(plan)),
        Effect::Grant { worker, request } => format!("grant {} to {worker}", request.id),
        Effect::Requeue { worker, request } => format!("requeue {request} from {worker}"),
        Effect::Loaded { request, worker } => format!("tell {request} that {worker} is loaded"),
        Effect::Fail { request, failure } => format!("fail {request}: {:?}", failure.kind),
        Effect::Cancel { worker, request } => format!("cancel {request} at {worker}"),
        Effect::Push { worker, push } => format!("end {worker}: {push:?}"),
        Effect::Trim { worker } => format!("trim {worker}"),
        Effect::Relief { from, to, measured_bytes, limit_bytes } => {
            let (from, to) = (from.name(), to.name());
            format!("memory {from} -> {to}: {measured_bytes} bytes of {}", limit_bytes.unwrap_or(u64::MAX))
        }
        Effect::Incident { number, cause, models } => format!("incident {number}: {cause}: {}", models.join(", ")),
        Effect::Continue { worker } => format!("continue {worker}"),
        Effect::Transition { worker, from, to, cause, reason } => {
            let cause = cause.as_ref().map(|cause| format!(", {}", cause.class())).unwrap_or_default();
            let reason = reason.map(|reason| format!(", {reason}")).unwrap_or_default();
            format!("{worker} {from} -> {to}{cause}{reason}")
        }
        Effect::Never { what } => format!("impossible: {what}"),
        Effect::Finished => "finished".to_owned(),
    }
}
