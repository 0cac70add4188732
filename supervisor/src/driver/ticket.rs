//! A client's place in the house: what it hears, and how its leaving is noticed.

use std::task::{Context, Poll, ready};

use ollmlx_proto::limits::OUTPUT_QUEUE_LEN_MAX;
use ollmlx_proto::{Failure, FailureKind, Output, RequestId};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Message;
use crate::scheduler::Event;

/// What a ticket's holder hears, in order: `Granted`, any number of `Output`s, and exactly one terminal item: `Loaded`
/// for a load job, a terminal `Output`, or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum TicketItem {
    /// The model is loaded and a slot is ours. First item of every job that got that far.
    Granted {
        /// From arrival to this moment, in nanoseconds: queueing and loading.
        load_ns: u64,
    },
    /// Terminal for a load job.
    Loaded,
    /// What the worker says; deltas of a slow reader arrive merged.
    Output(Output),
    /// Terminal: refused, failed, or the worker died.
    Failed(Failure),
}

impl TicketItem {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Granted { .. } => false,
            Self::Loaded | Self::Failed(_) => true,
            Self::Output(output) => output.is_terminal(),
        }
    }
}

/// A request in the house. Dropping it before its terminal item cancels the request.
#[derive(Debug)]
pub struct Ticket {
    request: RequestId,
    items: mpsc::Receiver<TicketItem>,
    messages: mpsc::Sender<Message>,
    ended: bool,
}

impl Ticket {
    pub(super) fn new(request: RequestId, messages: mpsc::Sender<Message>) -> (Self, mpsc::Sender<TicketItem>) {
        let (sender, items) = mpsc::channel(OUTPUT_QUEUE_LEN_MAX);
        (Self { request, items, messages, ended: false }, sender)
    }

    /// Its number in logs.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The next item, or `None` after the terminal one. Cancel-safe.
    pub async fn next(&mut self) -> Option<TicketItem> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// [`Ticket::next`] for those who poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<TicketItem>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.items.poll_recv(context)).unwrap_or_else(|| {
            // Only a driver that is gone forgets a request.
            TicketItem::Failed(Failure::new(FailureKind::ShuttingDown, "the server is shutting down"))
        });
        self.ended = item.is_terminal();
        Poll::Ready(Some(item))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let left = Message::World(Event::Left { request: self.request });
        if let Err(TrySendError::Full(left)) = self.messages.try_send(left)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // The driver is behind; the word must not be lost.
            let messages = self.messages.clone();
            runtime.spawn(async move {
                let _ = messages.send(left).await;
            });
        }
    }
}
