//! `/metrics`, `/healthz` and `/readyz`: what a monitoring system asks.
//!
//! Counters of the door are arrays of atomics, so that counting never waits; gauges are read from the latest snapshot. Labels
//! come from fixed sets, except model names, of which at most [`ollmlx_proto::limits::MODEL_LABELS_MAX`] are told apart. Times
//! are as the client's connection sees them: a resumed request shows its pause.

mod deaths;
mod exposition;
mod gauges;
mod pace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use tokio::sync::watch;

pub use self::deaths::{DeathCounts, follow};
use self::exposition::Exposition;
pub(super) use self::pace::Pace;
use self::pace::{Histogram, ITL_S, TTFT_S};
use super::AppState;
use super::respond::{HttpReply, reply, text, whole};
use super::route::{ROUTES, Route};
use crate::os::memory;
use crate::types::Mono;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Statuses that are told apart; the last is every other one.
const STATUSES: [u16; 16] = [200, 201, 204, 301, 307, 400, 401, 403, 404, 405, 413, 429, 500, 501, 503, 0];

/// What the door counts.
#[derive(Debug)]
pub struct Metrics {
    /// Answered requests by row of the table and status. The last row is every path that is in none; rows of one label are
    /// counted in the first of them.
    requests: Vec<[AtomicU64; STATUSES.len()]>,
    ttft: Histogram,
    itl: Histogram,
    /// Connections that were closed because their address has too many.
    turned_away: AtomicU64,
    deaths: watch::Receiver<DeathCounts>,
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
    let mut out = Exposition::default();
    out.family("ollmlx_build_info", "gauge", "Always 1; the version is a label.");
    out.sample("ollmlx_build_info", &[("version", &state.config.version)], 1.0);
    out.single("process_start_time_seconds", "gauge", "Start of the server, in seconds since 1970.", started_s);
    if let Some(bytes) = memory::resident_bytes(std::process::id()) {
        out.single("process_resident_memory_bytes", "gauge", "Memory of the server itself.", bytes as f64);
    }
    state.metrics.write(&mut out);
    out.snapshot(&state.handle.snapshot());
    reply(200, CONTENT_TYPE, whole(out.0))
}

impl Metrics {
    /// With deaths as [`follow`] counts them.
    #[must_use]
    pub fn new(deaths: watch::Receiver<DeathCounts>) -> Self {
        let no_requests = |_| std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            requests: (0..=ROUTES.len()).map(no_requests).collect(),
            ttft: Histogram::new(&TTFT_S),
            itl: Histogram::new(&ITL_S),
            turned_away: AtomicU64::new(0),
            deaths,
        }
    }

    /// A request to a path of this row was answered with this status.
    pub(super) fn answered(&self, route: Option<&Route>, status: u16) {
        let row = route.and_then(|route| ROUTES.iter().position(|first| first.label == route.label));
        let status = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[row.unwrap_or(ROUTES.len())][status].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed because its address has too many.
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut Exposition) {
        out.family("ollmlx_http_requests_total", "counter", "Requests answered, by route, dialect and status.");
        let rows = ROUTES.iter().map(|route| (route.label, route.dialect.name)).chain([("other", "none")]);
        for ((route, dialect), by_status) in rows.zip(&self.requests) {
            for (status, count) in STATUSES.iter().zip(by_status) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                    let labels = [("route", route), ("dialect", dialect), ("status", status.as_str())];
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

#[cfg(test)]
mod tests {
    use super::super::route::find;
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let mut out = Exposition::default();
        metrics.write(&mut out);
        out.0.lines().map(str::to_owned).collect()
    }

    #[test]
    fn requests_are_counted_by_route_and_status_with_bounded_labels() {
        let metrics = Metrics::new(watch::channel(DeathCounts::new()).1);
        for (path, status) in [
            ("/api/chat", 200),
            ("/api/chat", 200),
            ("/v1/models/x", 404),
            ("/api/blobs/sha256:00", 418),
            ("/made/up", 404),
            ("/api/ollmlx/why", 200),
            ("/api/ollmlx/server", 200),
        ] {
            metrics.answered(find(path).map(|(route, _)| route), status);
        }
        let lines = lines(&metrics);
        for line in [
            "ollmlx_http_requests_total{route=\"/api/chat\",dialect=\"ollama\",status=\"200\"} 2",
            "ollmlx_http_requests_total{route=\"/v1/models/{model}\",dialect=\"openai\",status=\"404\"} 1",
            "ollmlx_http_requests_total{route=\"/api/blobs/{digest}\",dialect=\"ollama\",status=\"other\"} 1",
            "ollmlx_http_requests_total{route=\"/api/ollmlx/\",dialect=\"ollmlx\",status=\"200\"} 2",
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
}
