//! One greedy answer after the other from the model that hostile requests are made to, and how long it was silent.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::time::Duration;

use serde_json::json;

use super::super::client::Client;
use super::catalogue::QUESTION;
use crate::limits;
use crate::os::clock::Clock;

/// Tokens of one answer.
const TOKENS: u32 = 512;

/// A stream that never ends, and what it saw.
#[derive(Debug)]
pub(super) struct Companion<'a> {
    client: &'a Client,
    model: &'a str,
    clock: Clock,
    /// When its last token came; `None` between two answers, since the first token of one waits for its prompt's turn.
    last_ns: Cell<Option<u64>>,
    longest_ns: Cell<u64>,
    broken: RefCell<Option<String>>,
}

impl<'a> Companion<'a> {
    pub(super) fn new(client: &'a Client, model: &'a str, clock: Clock) -> Self {
        Self { client, model, clock, last_ns: Cell::new(None), longest_ns: Cell::new(0), broken: RefCell::new(None) }
    }

    /// Goes on until it is dropped.
    pub(super) async fn run(&self) -> Infallible {
        let options = json!({"temperature": 0, "num_predict": TOKENS});
        let body = json!({"model": self.model, "prompt": QUESTION, "options": options});
        loop {
            if let Err(error) = self.listen(&body).await {
                *self.broken.borrow_mut() = Some(error.to_string());
                tokio::time::sleep(Duration::from_millis(limits::CHAOS_POLL_MS)).await;
            }
        }
    }

    async fn listen(&self, body: &serde_json::Value) -> Result<(), super::super::error::CliError> {
        let mut lines = self.client.stream("/api/generate", body).await?;
        while lines.next().await?.is_some() {
            let now_ns = self.clock.now_ns();
            let gap_ns = now_ns - self.last_ns.replace(Some(now_ns)).unwrap_or(now_ns);
            self.longest_ns.set(self.longest_ns.get().max(gap_ns));
        }
        self.last_ns.set(None);
        Ok(())
    }

    /// Begins to watch anew. What came before and was not read yet is no silence.
    pub(super) fn watch(&self) {
        self.last_ns.set(self.last_ns.get().map(|_| self.clock.now_ns()));
        self.longest_ns.set(0);
        *self.broken.borrow_mut() = None;
    }

    /// The longest silence since then, the present one included, in milliseconds.
    pub(super) fn gap_ms(&self) -> u64 {
        let silent_ns = self.last_ns.get().map_or(0, |last_ns| self.clock.now_ns() - last_ns);
        self.longest_ns.get().max(silent_ns) / 1_000_000
    }

    /// What went wrong with it since then.
    pub(super) fn fault(&self) -> Option<String> {
        self.broken.borrow().clone()
    }
}
