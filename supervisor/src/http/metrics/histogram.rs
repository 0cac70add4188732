//! Times, counted by how long they are.

use std::sync::atomic::{AtomicU64, Ordering};

use super::exposition::Exposition;

/// Upper bounds of the time to the first token, in seconds: a load may be part of it.
pub(super) const TTFT_S: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Upper bounds of the time between tokens, in seconds.
pub(super) const ITL_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Times, counted by how long they are.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds_s: &'static [f64; 12],
    buckets: [AtomicU64; 13],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds_s: &'static [f64; 12]) -> Self {
        Self { bounds_s, buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, ns: u64, count: u64) {
        let seconds = ns as f64 / 1e9;
        let bucket = self.bounds_s.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds_s.len());
        self.buckets[bucket].fetch_add(count, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns.saturating_mul(count), Ordering::Relaxed);
    }

    pub(super) fn write(&self, out: &mut Exposition, name: &str, help: &str) {
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
