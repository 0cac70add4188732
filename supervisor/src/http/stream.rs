//! A running request as a body: polls the ticket, encodes, and is done after the terminal item.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::metrics::pace::Pace;
use crate::dialect::{Encoder, Framing};
use crate::driver::{Handle, Ticket};
use crate::os::wall::{rfc3339_utc, wall_now};
use crate::types::{Mono, TicketItem};

/// Keeps an encoder's idea of time fresh.
#[derive(Clone, Debug)]
pub(super) struct Stopwatch {
    handle: Handle,
    started: Mono,
    framing: Framing,
}

impl Stopwatch {
    pub(super) fn new(handle: Handle, started: Mono, framing: Framing) -> Self {
        Self { handle, started, framing }
    }

    pub(super) fn set(&self, encoder: &mut dyn Encoder) {
        let meta = encoder.meta();
        meta.elapsed_ns = self.handle.now().since(self.started);
        // Every line has its own date; the events of a stream share one.
        if self.framing == Framing::Lines {
            meta.created = rfc3339_utc(wall_now());
        }
    }
}

/// The body. Dropping it drops the ticket, which cancels what still runs.
pub(super) struct TicketBody {
    ticket: Ticket,
    encoder: Box<dyn Encoder>,
    watch: Stopwatch,
    /// Items that were heard before the head was written.
    heard: VecDeque<TicketItem>,
    pace: Pace,
}

impl std::fmt::Debug for TicketBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketBody").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl TicketBody {
    pub(super) fn new(
        ticket: Ticket,
        encoder: Box<dyn Encoder>,
        watch: Stopwatch,
        heard: VecDeque<TicketItem>,
        pace: Pace,
    ) -> Self {
        Self { ticket, encoder, watch, heard, pace }
    }

    /// The next bytes; `None` at the end. Every line or event is its own chunk, flushed as it comes.
    pub(super) fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let item = match self.heard.pop_front() {
                Some(item) => Some(item),
                None => {
                    let item = ready!(self.ticket.poll_next(context));
                    if let Some(item) = &item {
                        self.pace.heard(item, self.watch.handle.now());
                    }
                    item
                }
            };
            let Some(item) = item else { return Poll::Ready(None) };
            self.watch.set(self.encoder.as_mut());
            let frames = self.encoder.frames(&item);
            if !frames.is_empty() {
                return Poll::Ready(Some(Bytes::from(frames)));
            }
        }
    }
}
