//! One request's way to its client, which may be slow.
//!
//! Items go into a bounded channel. When it is full they wait here: text deltas are merged in place, up to
//! [`CLIENT_BACKLOG_BYTES_MAX`]; beyond that the client is told that it is too slow and hears nothing more. A slow
//! client never makes the link wait. Long before that, its worker is to pause the request until nothing waits any more; a
//! pause has an end as well.
//!
//! A sink outlives its worker: it goes from the link of a dead one through the driver to the link of the next, with every
//! token that was produced, and makes the two runs one answer. What the second one says again is not passed on, counts are
//! those of the whole, and durations leave out what was computed twice and the pause.
//!
//! A death may tear what one token leads to (its delta, a tool call, text that was held back): what came behind the last
//! token is counted, and the next worker says the rest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::limits::{
    CLIENT_BACKLOG_BYTES_MAX, CLIENT_BACKLOG_PAUSE_BYTES, CLIENT_PAUSE_MS_MAX, CLIENT_WRITE_TIMEOUT_MS,
    PROBATION_TOKENS, REPLAY_EXACT_MS,
};
use ollmlx_proto::{Delta, Failure, FailureKind, FinishReason, Finished, Output, ResumePoint, Started, TokenId};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{SendError, TrySendError};

use crate::types::TicketItem;

/// What is left to say of a request when it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Generated.
    pub completion_tokens: u32,
    /// `stop`, `length`, `failed` …
    pub finish_reason: &'static str,
    /// When the first token came, since the start of the clock.
    pub first_token_ns: Option<u64>,
}

/// What the worker is to be told because of the client's pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Nothing more, for now.
    Pause,
    /// It may go on.
    Continue,
}

/// The client reads too slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow;

type Permit = mpsc::OwnedPermit<TicketItem>;
type Reserving = Pin<Box<dyn Future<Output = Result<Permit, SendError<()>>> + Send>>;

/// See the module's documentation.
pub struct ClientSink {
    /// `None` once nothing more can or need be said.
    client: Option<mpsc::Sender<TicketItem>>,
    backlog: VecDeque<TicketItem>,
    backlog_bytes: usize,
    reserving: Option<Reserving>,
    /// The terminal item was taken, from the worker or from ourselves.
    closed: bool,
    /// The worker's own terminal output was seen.
    pub ended: bool,
    /// Every token so far: what a later incarnation needs to resume.
    produced: Vec<TokenId>,
    /// Outputs without a token behind the last one.
    said_after: u32,
    /// Tokens when the present worker got it.
    began_with: usize,
    /// Whether it was told that the present worker has produced one.
    gain_told: bool,
    /// Workers in a row that died before they produced a token of it.
    fruitless: u32,
    /// For the log.
    pub summary: Summary,
    /// What the first worker said of the prompt.
    started: Option<Started>,
    times: AnswerTimes,
    /// Tokens at which a resumed request is above suspicion again.
    probation: Option<usize>,
    /// Whether the present worker has said something, so that it knows the request.
    known: bool,
    /// Since when the worker pauses it.
    paused_ns: Option<u64>,
    /// All earlier pauses, in nanoseconds.
    paused_before_ns: u64,
    /// When the client took something, as far as it was looked at, and whether it has since.
    took_ns: u64,
    has_taken: bool,
}

/// When what happened, in nanoseconds since the start of the clock, and what earlier workers took.
#[derive(Clone, Copy, Debug, Default)]
struct AnswerTimes {
    began_ns: Option<u64>,
    /// First and last token of the present worker.
    tokens_ns: Option<(u64, u64)>,
    /// Of the prompt, where an earlier worker got as far as a token.
    prefill_ns: Option<u64>,
    decode_ns: u64,
    resumed: bool,
}

impl std::fmt::Debug for ClientSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is said to clients is not for the log.
        write!(f, "ClientSink({} tokens)", self.produced.len())
    }
}

impl ClientSink {
    /// Leads to this client.
    #[must_use]
    pub fn new(client: mpsc::Sender<TicketItem>) -> Self {
        Self {
            client: Some(client),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            reserving: None,
            closed: false,
            ended: false,
            produced: Vec::new(),
            said_after: 0,
            began_with: 0,
            fruitless: 0,
            gain_told: false,
            summary: Summary::default(),
            started: None,
            times: AnswerTimes::default(),
            probation: None,
            known: false,
            paused_ns: None,
            paused_before_ns: 0,
            took_ns: 0,
            has_taken: false,
        }
    }

    /// A worker is given the request now: the first one, or the next one after a death, which goes on from here.
    pub fn begin(&mut self, now_ns: u64) {
        self.known = false;
        self.paced(Flow::Continue, now_ns);
        let Some(began_ns) = self.times.began_ns.replace(now_ns) else { return };
        self.fruitless = if self.has_gained() { 0 } else { self.fruitless.saturating_add(1) };
        self.began_with = self.produced.len();
        self.gain_told = false;
        let times = &mut self.times;
        times.resumed = true;
        if let Some((first_ns, last_ns)) = times.tokens_ns.take() {
            times.decode_ns += last_ns.saturating_sub(first_ns);
            times.prefill_ns.get_or_insert(first_ns.saturating_sub(began_ns));
        }
        self.probation = Some(self.produced.len() + PROBATION_TOKENS);
    }

    /// Whether the present worker has produced a token.
    #[must_use]
    pub fn has_gained(&self) -> bool {
        self.produced.len() > self.began_with
    }

    /// What the next worker needs to know. Who may expect the same answer another time is computed as before for as long
    /// as can be hoped to lead anywhere: much shorter after each worker that died before that.
    #[must_use]
    pub fn progress(&self, repeatable: bool) -> ResumePoint {
        let patience = REPLAY_EXACT_MS.checked_shr(2 * self.fruitless).unwrap_or(0);
        ResumePoint {
            produced: self.produced.clone(),
            said_after: self.said_after,
            replay_exact_ms: if repeatable { patience } else { 0 },
        }
    }

    /// Whether a worker after the first one has produced a token; says so once.
    pub fn take_gained(&mut self) -> bool {
        let first = self.times.resumed && self.has_gained() && !self.gain_told;
        self.gain_told |= first;
        first
    }

    /// Whether it has got past the place where its last worker died; says so once.
    pub fn take_cleared(&mut self) -> bool {
        self.probation.take_if(|end| self.produced.len() >= *end).is_some()
    }

    /// Whether nothing waits here any more.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.backlog.is_empty() || self.client.is_none()
    }

    /// Whether the terminal item is through, or nobody is there to hear it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.client.is_none() || (self.closed && self.backlog.is_empty())
    }

    /// What the worker should hear now, if anything. [`Self::paced`] says that it has. One that is on probation is never
    /// paused, since others wait for the end of that.
    pub fn pace(&mut self, now_ns: u64) -> Option<Flow> {
        if std::mem::take(&mut self.has_taken) {
            self.took_ns = now_ns;
        }
        let waits = self.client.is_some() && !self.closed && !self.backlog.is_empty();
        let may_pause = self.known && self.probation.is_none() && self.backlog_bytes > CLIENT_BACKLOG_PAUSE_BYTES;
        match self.paused_ns {
            None => (waits && may_pause).then_some(Flow::Pause),
            Some(_) => (!waits).then_some(Flow::Continue),
        }
    }

    /// The worker was told.
    pub fn paced(&mut self, pace: Flow, now_ns: u64) {
        let since_ns = match pace {
            Flow::Pause => self.paused_ns.replace(now_ns),
            Flow::Continue => self.paused_ns.take(),
        };
        self.paused_before_ns += since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
    }

    /// Whether the worker owes nothing for it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused_ns.is_some()
    }

    /// When its pauses have lasted too long, or the client has taken nothing for too long, in nanoseconds since the start of
    /// the clock.
    #[must_use]
    pub fn pause_ends_ns(&self) -> Option<u64> {
        let since_ns = self.paused_ns.filter(|_| !self.closed)?;
        let left_ns = (CLIENT_PAUSE_MS_MAX * 1_000_000).saturating_sub(self.paused_before_ns);
        let idle_ns = since_ns.max(self.took_ns).saturating_add(CLIENT_WRITE_TIMEOUT_MS * 1_000_000);
        Some(idle_ns.min(since_ns.saturating_add(left_ns)))
    }

    /// The client's last word: it reads too slowly.
    pub fn give_up(&mut self) -> TooSlow {
        let failure = Failure::new(FailureKind::ClientTooSlow, "the client reads too slowly");
        self.backlog = VecDeque::from([TicketItem::Failed(failure)]);
        (self.backlog_bytes, self.closed) = (0, true);
        TooSlow
    }

    /// Takes an output of the worker. Tokens are kept whether or not the client still listens.
    ///
    /// # Errors
    /// The client is too slow; it has been told, and hears nothing more.
    pub fn output(&mut self, mut output: Output, now_ns: u64) -> Result<(), TooSlow> {
        self.known = true;
        match &output {
            Output::Started(_) if self.started.is_some() => return Ok(()),
            Output::Started(started) => {
                self.started = Some(started.clone());
                self.summary.prompt_tokens = started.prompt_tokens;
            }
            Output::Delta(delta) => {
                self.times.tokens_ns = Some((self.times.tokens_ns.map_or(now_ns, |(first_ns, _)| first_ns), now_ns));
                self.produced.extend_from_slice(&delta.tokens);
                self.said_after = if delta.tokens.is_empty() { self.said_after.saturating_add(1) } else { 0 };
                self.summary.first_token_ns.get_or_insert(now_ns);
                self.summary.completion_tokens = u32::try_from(self.produced.len()).unwrap_or(u32::MAX);
            }
            Output::ToolCall(_) => self.said_after = self.said_after.saturating_add(1),
            _ => {}
        }
        if output.is_terminal() {
            self.ended = true;
            self.summary.finish_reason = word(&output);
            if let Output::Finished(finished) = &mut output {
                self.make_whole(finished);
                self.summary.prompt_tokens = finished.usage.prompt_tokens;
                self.summary.completion_tokens = finished.usage.completion_tokens;
            }
        }
        self.push(TicketItem::Output(output))
    }

    /// Puts the counts of all workers into the word of the last.
    fn make_whole(&self, finished: &mut Finished) {
        if !self.times.resumed {
            return;
        }
        if let Some(started) = &self.started {
            finished.usage.prompt_tokens = started.prompt_tokens;
            finished.usage.cached_tokens = started.cached_tokens;
        }
        let timings = &mut finished.timings;
        timings.prefill_ns = self.times.prefill_ns.unwrap_or(timings.prefill_ns);
        timings.decode_ns = timings.decode_ns.saturating_add(self.times.decode_ns);
    }

    /// Ends the client's stream, unless it has ended.
    pub fn fail(&mut self, failure: Failure) {
        // A failure is small: it never makes a client too slow.
        self.summary.finish_reason = "failed";
        let _always_fits = self.push(TicketItem::Failed(failure));
    }

    /// Waits until the client has heard all of it, is gone, or takes nothing for too long.
    pub async fn flush(mut self: Box<Self>) {
        let flushed = std::future::poll_fn(|context| self.poll_flush(context));
        let _too_late = tokio::time::timeout(Duration::from_millis(CLIENT_WRITE_TIMEOUT_MS), flushed).await;
    }

    fn push(&mut self, item: TicketItem) -> Result<(), TooSlow> {
        if self.closed {
            return Ok(());
        }
        self.closed = item.is_terminal();
        let Some(client) = &self.client else { return Ok(()) };
        let item = if self.backlog.is_empty() && self.reserving.is_none() {
            match client.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => {
                    self.client = None;
                    return Ok(());
                }
                Err(TrySendError::Full(item)) => item,
            }
        } else {
            item
        };
        self.backlog_bytes += size(&item);
        if self.backlog_bytes > CLIENT_BACKLOG_BYTES_MAX && !matches!(item, TicketItem::Failed(_)) {
            return Err(self.give_up());
        }
        if let Some(item) = merge(self.backlog.back_mut(), item) {
            self.backlog.push_back(item);
        }
        Ok(())
    }

    /// Moves what waits into the channel as far as there is room. Ready when nothing waits any more.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(client) = &self.client else { return Poll::Ready(()) };
            if self.backlog.is_empty() {
                return Poll::Ready(());
            }
            let reserving = self.reserving.get_or_insert_with(|| Box::pin(client.clone().reserve_owned()));
            let Poll::Ready(reserved) = reserving.as_mut().poll(cx) else { return Poll::Pending };
            self.reserving = None;
            match reserved {
                Ok(permit) => {
                    if let Some(item) = self.backlog.pop_front() {
                        self.backlog_bytes = self.backlog_bytes.saturating_sub(size(&item));
                        permit.send(item);
                        self.has_taken = true;
                    }
                }
                Err(_gone) => self.client = None,
            }
        }
    }
}

/// Puts an item into the one before it where that loses nothing; else gives it back.
fn merge(last: Option<&mut TicketItem>, item: TicketItem) -> Option<TicketItem> {
    match (last, item) {
        (
            Some(TicketItem::Output(Output::Delta(last))),
            TicketItem::Output(Output::Delta(Delta { tokens, text, part, logprobs })),
        ) if last.part == part => {
            last.tokens.extend(tokens);
            last.text.push_str(&text);
            last.logprobs.extend(logprobs);
            None
        }
        (
            Some(TicketItem::Output(last @ Output::Prefill { .. })),
            TicketItem::Output(next @ Output::Prefill { .. }),
        ) => {
            *last = next;
            None
        }
        (_, item) => Some(item),
    }
}

/// About how many bytes an item holds. Additive over merged deltas.
fn size(item: &TicketItem) -> usize {
    match item {
        TicketItem::Output(Output::Delta(delta)) => {
            let alternatives = |logprob: &ollmlx_proto::TokenLogprob| 64 + logprob.top.len() * 48;
            delta.text.len() + delta.tokens.len() * 4 + delta.logprobs.iter().map(alternatives).sum::<usize>()
        }
        TicketItem::Output(Output::ToolCall(call)) => call.name.len() + call.arguments.0.len() + 64,
        // The last of them takes the place of the one before.
        TicketItem::Output(Output::Prefill { .. }) => 0,
        _ => 64,
    }
}

fn word(output: &Output) -> &'static str {
    match output {
        Output::Finished(finished) => match finished.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Cancelled => "cancelled",
        },
        Output::Failed(_) => "failed",
        _ => "done",
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
