//! `/metrics`, `/healthz` and `/readyz`: what a monitoring system asks.
//!
//! The text is Prometheus' exposition format 0.0.4. Counters of the door are arrays of atomics, so that counting never
//! waits; gauges are read from the latest snapshot. Labels come from fixed sets, except model names, of which at most
//! [`MODEL_LABELS_MAX`] are told apart. Times are as the client's connection sees them: a resumed request shows its pause.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use ollmlx_proto::Output;
use ollmlx_proto::limits::MODEL_LABELS_MAX;
use tokio::sync::watch;

use super::AppState;
use super::respond::{HttpReply, reply, text, whole};
use crate::os::memory;
use crate::types::TicketItem;
use crate::types::{Mono, Snapshot, Step};

const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What routes are called in labels, and whose they are. The last is every other path.
pub(super) const ROUTES: [(&str, &str); 28] = [
    ("/", "ollama"),
    ("/api/version", "ollama"),
    ("/api/status", "ollama"),
    ("/api/tags", "ollama"),
    ("/api/ps", "ollama"),
    ("/api/show", "ollama"),
    ("/api/copy", "ollama"),
    ("/api/delete", "ollama"),
    ("/api/create", "ollama"),
    ("/api/pull", "ollama"),
    ("/api/push", "ollama"),
    ("/api/me", "ollama"),
    ("/api/blobs/{digest}", "ollama"),
    ("/api/generate", "ollama"),
    ("/api/chat", "ollama"),
    ("/api/embed", "ollama"),
    ("/api/embeddings", "ollama"),
    ("/v1/chat/completions", "openai"),
    ("/v1/completions", "openai"),
    ("/v1/embeddings", "openai"),
    ("/v1/models", "openai"),
    ("/v1/models/{model}", "openai"),
    ("/v1/messages", "anthropic"),
    ("/metrics", "ollmlx"),
    ("/healthz", "ollmlx"),
    ("/readyz", "ollmlx"),
    ("/api/ollmlx/", "ollmlx"),
    ("other", "none"),
];
/// Statuses that are told apart; the last is every other one.
const STATUSES: [u16; 16] = [200, 201, 204, 301, 307, 400, 401, 403, 404, 405, 413, 429, 500, 501, 503, 0];
/// Upper bounds of the time to the first token, in seconds: a load may be part of it.
const TTFT_S: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Upper bounds of the time between tokens, in seconds.
const ITL_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Deaths by model and class of cause.
pub type DeathCounts = BTreeMap<(String, &'static str), u64>;

/// What the door counts.
#[derive(Debug)]
pub struct Metrics {
    requests: [[AtomicU64; STATUSES.len()]; ROUTES.len()],
    ttft: Histogram,
    itl: Histogram,
    /// Connections that were closed because their address has too many.
    turned_away: AtomicU64,
    deaths: watch::Receiver<DeathCounts>,
}

#[derive(Debug)]
struct Histogram {
    bounds_s: &'static [f64; 12],
    buckets: [AtomicU64; 13],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn new(bounds_s: &'static [f64; 12]) -> Self {
        Self { bounds_s, buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }

    fn observe(&self, ns: u64, count: u64) {
        let seconds = ns as f64 / 1e9;
        let bucket = self.bounds_s.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds_s.len());
        self.buckets[bucket].fetch_add(count, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns.saturating_mul(count), Ordering::Relaxed);
    }

    fn write(&self, out: &mut Text, name: &str, help: &str) {
        out.family(name, "histogram", help);
        let mut total = 0;
        let bounds = self.bounds_s.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, bucket) in bounds.zip(&self.buckets) {
            total += bucket.load(Ordering::Relaxed);
            out.sample(&format!("{name}_bucket"), &[("le", &bound)], total as f64);
        }
        out.sample(&format!("{name}_sum"), &[], self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9);
        out.sample(&format!("{name}_count"), &[], total as f64);
    }
}

impl Metrics {
    /// With deaths as [`follow`] counts them.
    #[must_use]
    pub fn new(deaths: watch::Receiver<DeathCounts>) -> Self {
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            ttft: Histogram::new(&TTFT_S),
            itl: Histogram::new(&ITL_S),
            turned_away: AtomicU64::new(0),
            deaths,
        }
    }

    /// A request was answered with this status.
    pub(super) fn answered(&self, path: &str, known: bool, status: u16) {
        let other = ROUTES.len() - 1;
        let route = match path {
            _ if !known => other,
            _ if path.starts_with("/api/blobs/") => 12,
            _ if path.starts_with("/v1/models/") => 21,
            _ if path.starts_with("/api/ollmlx/") => 26,
            _ => ROUTES.iter().position(|(route, _)| *route == path).unwrap_or(other),
        };
        let status = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[route][status].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed because its address has too many.
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }
}

/// How fast one request's tokens come.
#[derive(Debug)]
pub(super) struct Pace {
    metrics: Arc<Metrics>,
    started: Mono,
    last: Option<Mono>,
}

impl Pace {
    pub(super) fn new(metrics: Arc<Metrics>, started: Mono) -> Self {
        Self { metrics, started, last: None }
    }

    /// Looks at an item as it comes. Merged deltas share their time evenly.
    pub(super) fn heard(&mut self, item: &TicketItem, now: Mono) {
        let TicketItem::Output(Output::Delta(delta)) = item else { return };
        let tokens = delta.tokens.len() as u64;
        if tokens == 0 {
            return;
        }
        match self.last.replace(now) {
            None => self.metrics.ttft.observe(now.since(self.started), 1),
            Some(last) => self.metrics.itl.observe(now.since(last) / tokens, tokens),
        }
    }
}

/// Counts deaths by cause until the driver is gone.
pub async fn follow(mut snapshots: watch::Receiver<Arc<Snapshot>>, counts: watch::Sender<DeathCounts>) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    while snapshots.changed().await.is_ok() {
        let fresh = {
            let snapshot = snapshots.borrow_and_update();
            if std::mem::replace(&mut total, snapshot.totals.deaths) == snapshot.totals.deaths {
                continue;
            }
            snapshot.deaths.clone()
        };
        for model in fresh {
            let before = seen.insert(model.model.id.0.clone(), model.count).filter(|before| *before <= model.count);
            let new = usize::try_from(model.count - before.unwrap_or(0)).unwrap_or(usize::MAX);
            let name = &model.model.name;
            for record in model.deaths.iter().rev().take(new) {
                counts.send_modify(|counts| {
                    let full = counts.len() >= MODEL_LABELS_MAX && !counts.keys().any(|(known, _)| known == name);
                    let label = if full { "other" } else { name.as_str() };
                    *counts.entry((label.to_owned(), record.cause.class())).or_default() += 1;
                });
            }
        }
        // Models that are forgotten begin anew.
        while seen.len() > ollmlx_proto::limits::MODELS_REMEMBERED_MAX {
            seen.pop_first();
        }
    }
}

/// `GET /healthz`: whoever can answer lives.
pub(super) fn healthz() -> HttpReply {
    text(200, "ok\n")
}

/// `GET /readyz`: whether new work is welcome.
pub(super) fn readyz(state: &AppState) -> HttpReply {
    if state.handle.snapshot().leaving { text(503, "leaving\n") } else { text(200, "ready\n") }
}

/// `GET /metrics`.
pub(super) fn metrics(state: &AppState) -> HttpReply {
    let started = state.handle.wall_clock_of(Mono(0));
    let started_s = started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let own_bytes = memory::resident_bytes(std::process::id());
    let mut out = Text::default();
    out.process(&state.config.version, started_s, own_bytes);
    state.metrics.write(&mut out);
    out.snapshot(&state.handle.snapshot());
    reply(200, EXPOSITION, whole(out.0))
}

impl Metrics {
    fn write(&self, out: &mut Text) {
        out.family("ollmlx_http_requests_total", "counter", "Requests answered, by route, dialect and status.");
        for ((route, dialect), by_status) in ROUTES.iter().zip(&self.requests) {
            for (status, count) in STATUSES.iter().zip(by_status) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                    let labels = [("route", *route), ("dialect", *dialect), ("status", status.as_str())];
                    out.sample("ollmlx_http_requests_total", &labels, count as f64);
                }
            }
        }
        let refused = "Connections that were closed because their address has too many.";
        let count = self.turned_away.load(Ordering::Relaxed);
        out.single("ollmlx_connections_refused_total", "counter", refused, count as f64);
        self.ttft.write(out, "ollmlx_time_to_first_token_seconds", "From a request's arrival to its first token.");
        self.itl.write(out, "ollmlx_inter_token_seconds", "Time between two tokens of one request.");
        out.family("ollmlx_worker_deaths_total", "counter", "Worker processes that ended unasked, by model and cause.");
        for ((model, cause), count) in &*self.deaths.borrow() {
            out.sample("ollmlx_worker_deaths_total", &[("model", model), ("cause", cause)], *count as f64);
        }
    }
}

/// The exposition in the making.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn process(&mut self, version: &str, started_s: f64, own_bytes: Option<u64>) {
        self.family("ollmlx_build_info", "gauge", "Always 1; the version is a label.");
        self.sample("ollmlx_build_info", &[("version", version)], 1.0);
        self.single("process_start_time_seconds", "gauge", "Start of the server, in seconds since 1970.", started_s);
        if let Some(bytes) = own_bytes {
            self.single("process_resident_memory_bytes", "gauge", "Memory of the server itself.", bytes as f64);
        }
    }

    fn snapshot(&mut self, snapshot: &Snapshot) {
        let totals = &snapshot.totals;
        let incidents = "Times that workers of several models died together, of one cause.";
        self.single("ollmlx_incidents_total", "counter", incidents, totals.incidents as f64);
        let resumed = "Requests that went on in another process after theirs had died.";
        self.single("ollmlx_requests_resumed_total", "counter", resumed, totals.resumed as f64);
        let paused = "Times that a worker was told to wait for a client that reads slowly.";
        self.single("ollmlx_requests_paused_total", "counter", paused, totals.pauses as f64);
        let poisoned = "Requests that failed because two processes died of them.";
        self.single("ollmlx_requests_poisoned_total", "counter", poisoned, totals.suspects as f64);
        self.single("ollmlx_queue_length", "gauge", "Requests that wait.", snapshot.queue_len as f64);
        self.single("ollmlx_requests_in_flight", "gauge", "Requests that a worker computes.", snapshot.running as f64);
        let living = || snapshot.workers.iter().filter(|view| view.pid.is_some());
        let loaded = living().filter(|view| matches!(view.state, "idle" | "busy" | "draining")).count();
        self.single("ollmlx_models_loaded", "gauge", "Models that can answer without a load.", loaded as f64);
        let reserved = "Memory set aside for workers.";
        self.single("ollmlx_memory_reserved_bytes", "gauge", reserved, snapshot.reserved_bytes as f64);
        if let Some(limit) = snapshot.limit_bytes {
            self.single("ollmlx_memory_limit_bytes", "gauge", "Memory that workers may take.", limit as f64);
        }
        let elsewhere = "Memory that the server holds which this one replaces.";
        self.single("ollmlx_memory_predecessor_bytes", "gauge", elsewhere, snapshot.elsewhere_bytes as f64);
        let measured = "Memory that workers were found to take.";
        self.single("ollmlx_memory_measured_bytes", "gauge", measured, snapshot.measured_bytes as f64);
        let step = Step::TAKEN.iter().filter(|step| **step <= snapshot.relief).count();
        let height = "Where the memory ladder stands: 0 calm, 1 hold, 2 trim, 3 evict, 4 drain, 5 kill.";
        self.single("ollmlx_memory_relief_step", "gauge", height, step as f64);
        self.family("ollmlx_memory_relief_total", "counter", "Times that a step of the memory ladder was entered.");
        for (step, count) in Step::TAKEN.iter().zip(totals.relief) {
            self.sample("ollmlx_memory_relief_total", &[("step", step.name())], count as f64);
        }
        self.by_model(snapshot, "ollmlx_worker_memory_bytes", "gauge", "Memory of a worker.", |view| view.memory_bytes);
        let estimated = "What a worker was expected to take.";
        self.by_model(snapshot, "ollmlx_worker_memory_estimated_bytes", "gauge", estimated, |view| {
            view.account.estimate.total()
        });
        let budget = "Set aside for a worker: the estimate and what earlier ones took above it.";
        self.by_model(snapshot, "ollmlx_worker_memory_budget_bytes", "gauge", budget, |view| view.account.planned);
        let measured = "What a worker takes, by the system's count; by its report where there is none.";
        self.by_model(snapshot, "ollmlx_worker_memory_measured_bytes", "gauge", measured, |view| view.account.measured);
        self.by_model(snapshot, "ollmlx_worker_in_flight", "gauge", "Requests a worker computes.", |view| {
            view.in_flight as u64
        });
        self.by_model(snapshot, "ollmlx_worker_queue_length", "gauge", "Requests waiting for a model.", |view| {
            view.queued as u64
        });
        let restarts = "Processes started in the place of one that died, by what it died of.";
        self.family("ollmlx_worker_restarts_total", "counter", restarts);
        for (cause, count) in &snapshot.restarts {
            self.sample("ollmlx_worker_restarts_total", &[("cause", cause)], *count as f64);
        }
        self.by_model(snapshot, "ollmlx_worker_up", "gauge", "Whether a model has a process.", |view| {
            u64::from(view.pid.is_some())
        });
    }

    fn by_model(
        &mut self,
        snapshot: &Snapshot,
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&crate::types::WorkerView) -> u64,
    ) {
        self.family(name, kind, help);
        // Two ids may have one name (a model that was created anew): one sample per name.
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for view in &snapshot.workers {
            let label = view.model.name.as_str();
            let label = if sums.len() < MODEL_LABELS_MAX || sums.contains_key(label) { label } else { "other" };
            *sums.entry(label).or_default() += value(view);
        }
        for (model, sum) in sums {
            self.sample(name, &[("model", model)], sum as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let mut out = Text::default();
        metrics.write(&mut out);
        out.0.lines().map(str::to_owned).collect()
    }

    #[test]
    fn requests_are_counted_by_route_and_status_with_bounded_labels() {
        let metrics = Metrics::new(watch::channel(DeathCounts::new()).1);
        metrics.answered("/api/chat", true, 200);
        metrics.answered("/api/chat", true, 200);
        metrics.answered("/v1/models/x", true, 404);
        metrics.answered("/api/blobs/sha256:00", true, 418);
        metrics.answered("/made/up", false, 404);
        let lines = lines(&metrics);
        for line in [
            "ollmlx_http_requests_total{route=\"/api/chat\",dialect=\"ollama\",status=\"200\"} 2",
            "ollmlx_http_requests_total{route=\"/v1/models/{model}\",dialect=\"openai\",status=\"404\"} 1",
            "ollmlx_http_requests_total{route=\"/api/blobs/{digest}\",dialect=\"ollama\",status=\"other\"} 1",
            "ollmlx_http_requests_total{route=\"other\",dialect=\"none\",status=\"404\"} 1",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} in {lines:#?}");
        }
    }

    #[test]
    fn histograms_are_cumulative() {
        let metrics = Metrics::new(watch::channel(DeathCounts::new()).1);
        metrics.ttft.observe(20_000_000, 1);
        metrics.ttft.observe(u64::MAX / 2, 1);
        let lines = lines(&metrics);
        let name = "ollmlx_time_to_first_token_seconds";
        for line in [
            format!("{name}_bucket{{le=\"0.01\"}} 0"),
            format!("{name}_bucket{{le=\"0.025\"}} 1"),
            format!("{name}_bucket{{le=\"120\"}} 1"),
            format!("{name}_bucket{{le=\"+Inf\"}} 2"),
            format!("{name}_count 2"),
        ] {
            assert!(lines.contains(&line), "{line} in {lines:#?}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut out = Text::default();
        out.sample("a", &[("b", "x\\y\"z\n")], 1.5);
        assert_eq!(out.0, "a{b=\"x\\\\y\\\"z\\n\"} 1.5\n");
    }
}
