//! How fast tokens come.

use std::sync::Arc;

use ollmlx_proto::Output;

use super::Metrics;
use crate::types::{Mono, TicketItem};

/// How fast one request's tokens come.
#[derive(Debug)]
pub(in crate::http) struct Pace {
    metrics: Arc<Metrics>,
    started: Mono,
    last: Option<Mono>,
}

impl Pace {
    pub(in crate::http) fn new(metrics: Arc<Metrics>, started: Mono) -> Self {
        Self { metrics, started, last: None }
    }

    /// Looks at an item as it comes. Merged deltas share their time evenly.
    pub(in crate::http) fn heard(&mut self, item: &TicketItem, now: Mono) {
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
