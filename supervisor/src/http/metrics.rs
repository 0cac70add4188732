//! What is counted for `/metrics`.
//!
//! Counters of the door are arrays of atomics, so that counting never waits; gauges are read from the latest snapshot. Labels
//! come from fixed sets, except model names, of which at most [`crate::limits::MODEL_LABELS_MAX`] are told apart. Times
//! are as the client's connection sees them: a resumed request shows its pause.

mod deaths;
pub(super) mod exposition;
pub(super) mod gauges;
mod histogram;
pub(super) mod pace;

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

pub use self::deaths::{DeathCounts, follow};
use self::exposition::Exposition;
use self::histogram::{Histogram, ITL_S, TTFT_S};

/// Rows of the table of routes that can be told apart.
pub(super) const ROWS_MAX: usize = 64;
/// Statuses that are told apart; the last is every other one.
const STATUSES: [u16; 16] = [200, 201, 204, 301, 307, 400, 401, 403, 404, 405, 413, 429, 500, 501, 503, 0];

/// Answered requests by status.
type ByStatus = [AtomicU64; STATUSES.len()];

/// What the door counts.
#[derive(Debug)]
pub struct Metrics {
    /// Answered requests by row of the table of routes and status.
    requests: [ByStatus; ROWS_MAX],
    /// Those to paths of no row.
    others: ByStatus,
    ttft: Histogram,
    itl: Histogram,
    /// Connections that were closed because their address has too many.
    turned_away: AtomicU64,
    deaths: watch::Receiver<DeathCounts>,
}

impl Metrics {
    /// With deaths as [`follow`] counts them.
    #[must_use]
    pub fn new(deaths: watch::Receiver<DeathCounts>) -> Self {
        Self {
            requests: std::array::from_fn(|_| ByStatus::default()),
            others: ByStatus::default(),
            ttft: Histogram::new(&TTFT_S),
            itl: Histogram::new(&ITL_S),
            turned_away: AtomicU64::new(0),
            deaths,
        }
    }

    /// A request to a path of this row was answered with this status.
    pub(super) fn answered(&self, row: Option<usize>, status: u16) {
        let by_status = row.and_then(|row| self.requests.get(row)).unwrap_or(&self.others);
        let status = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        by_status[status].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed because its address has too many.
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes everything; the labels are those of the rows.
    pub(super) fn write(&self, out: &mut Exposition, labels: impl Iterator<Item = (&'static str, &'static str)>) {
        out.family("ollmlx_http_requests_total", "counter", "Requests answered, by route, dialect and status.");
        let rows = labels.zip(&self.requests).chain([(("other", "none"), &self.others)]);
        for ((route, dialect), by_status) in rows {
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
    use super::super::route::{find, labels};
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let mut out = Exposition::default();
        metrics.write(&mut out, labels());
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
            metrics.answered(find(path).and_then(|(route, _)| route.counter()), status);
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
