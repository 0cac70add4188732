//! `/metrics`, `/healthz` and `/readyz`: what a monitoring system asks.

use std::time::UNIX_EPOCH;

use super::metrics::exposition::Exposition;
use super::metrics::gauges;
use super::respond::{HttpReply, reply, text, whole};
use super::state::AppState;
use crate::os::memory;
use crate::types::Mono;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /healthz`: whoever can answer lives.
pub(super) fn healthz() -> HttpReply {
    text(200, "ok\n")
}

/// `GET /readyz`: whether new work is welcome.
pub(super) fn readyz(state: &AppState) -> HttpReply {
    if state.handle.snapshot().leaving { text(503, "leaving\n") } else { text(200, "ready\n") }
}

/// `GET /metrics`; the labels are those of the table of routes, row by row.
pub(super) fn metrics(state: &AppState, labels: impl Iterator<Item = (&'static str, &'static str)>) -> HttpReply {
    let started = state.handle.wall_clock_of(Mono(0));
    let started_s = started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut out = Exposition::default();
    out.family("ollmlx_build_info", "gauge", "Always 1; the version is a label.");
    out.sample("ollmlx_build_info", &[("version", &state.config.version)], 1.0);
    out.single("process_start_time_seconds", "gauge", "Start of the server, in seconds since 1970.", started_s);
    if let Some(bytes) = memory::resident_bytes(std::process::id()) {
        out.single("process_resident_memory_bytes", "gauge", "Memory of the server itself.", bytes as f64);
    }
    state.metrics.write(&mut out, labels);
    gauges::write(&mut out, &state.handle.snapshot());
    reply(200, CONTENT_TYPE, whole(out.0))
}
