//! Which work two requests ask for, without the work: a word that is the same for the same work and format within one run of
//! the server, and says nothing to whoever does not know its salt.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use ollmlx_proto::{Chat, ContentPart, Message, Request, Work};
use serde::Serialize;

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Keeps a short prompt from being guessed by its word. Never written down.
#[derive(Clone, Copy)]
pub(super) struct Salt(pub(super) u64);

impl Salt {
    /// The same for the same value within one run of the server.
    pub(super) fn word(self, value: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        value.hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

/// Takes what is written as what is hashed.
struct HashWriter(DefaultHasher);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HashWriter {
    fn add(&mut self, value: &impl Serialize) {
        // Plain data into memory: it can't fail, and if it did, equal requests would still be equal.
        let _infallible = serde_json::to_writer(&mut *self, value);
    }

    /// Images as they are: as numbers in JSON they would take many times as long.
    fn add_chat(&mut self, chat: &Chat) {
        let Chat { messages, tools, think, template, single_turn, context, suffix, render_only } = chat;
        self.add(&(tools, think, template, single_turn, context, suffix, render_only));
        for message in messages {
            let Message { role, content, thinking, tool_calls, tool_name, tool_call_id } = message;
            self.add(&(role, thinking, tool_calls, tool_name, tool_call_id, content.len()));
            for part in content {
                match part {
                    ContentPart::Text(text) => self.add(text),
                    ContentPart::Image(bytes) => {
                        self.0.write_usize(bytes.len());
                        self.0.write(bytes);
                    }
                }
            }
        }
    }
}

impl Identity {
    /// Of what a request asks for.
    pub(super) fn of(request: &Request, salt: Salt) -> Self {
        let mut feed = HashWriter(DefaultHasher::new());
        feed.0.write_u64(salt.0);
        feed.add(&request.format);
        match &request.work {
            Work::Chat(chat) => feed.add_chat(chat),
            work @ (Work::Complete(_) | Work::Embed(_)) => feed.add(work),
        }
        Self(feed.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::{CacheSalt, Complete, Format, Limits, RequestId, ResumePoint, Sampling, UnixSeconds};

    use super::*;

    fn request(id: u64, prompt: &str) -> Request {
        Request {
            id: RequestId(id),
            work: Work::Complete(Complete { prompt: prompt.to_owned(), suffix: None }),
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            format: Format::Text,
            limits: Limits { max_tokens: None, context_tokens: 9, truncate: true, shift: false, keep_tokens: 0 },
            logprobs: None,
            asked_at: UnixSeconds::default(),
            cache_salt: CacheSalt::default(),
            progress: ResumePoint::default(),
        }
    }

    #[test]
    fn the_same_work_is_the_same_whoever_asks_and_another_salt_makes_another_word() {
        let of = |request: &Request| Identity::of(request, Salt(7));
        let seeded = Request { sampling: Sampling { seed: 9, ..Sampling::greedy() }, ..request(2, "a") };
        assert_eq!(of(&request(1, "a")), of(&seeded));
        assert_ne!(of(&request(1, "a")), of(&request(1, "b")));
        assert_ne!(of(&request(1, "a")), of(&Request { format: Format::Json, ..request(1, "a") }));
        assert_ne!(of(&request(1, "a")), Identity::of(&request(1, "a"), Salt(8)));
    }
}
