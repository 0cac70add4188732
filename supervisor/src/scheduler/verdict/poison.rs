//! Requests that killed their worker twice, remembered for a while: a client that sends the same again would kill it
//! again, and press everybody else's answers through a resume each time.
//!
//! The same is what the model computes from: the work and its format, not who asks or with which seed. Decision: such a
//! request is refused for [`limits::POISON_TTL_MS`] and then has another chance, since what killed the worker may be gone
//! by then. `ollmlx restart` ends that at once, and so does re-creating the model.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io;

use crate::limits;
use ollmlx_proto::{ModelId, Request};

use crate::types::Mono;

#[derive(Debug)]
struct Poison {
    model: ModelId,
    digest: u64,
    until: Mono,
}

/// Those that are known, the oldest first.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct Poisons(VecDeque<Poison>);

impl Poisons {
    /// Remembers one; where there are too many, the oldest is forgotten.
    pub(in crate::scheduler) fn add(&mut self, model: &ModelId, request: &Request, now: Mono) {
        self.0.retain(|known| known.until > now);
        if self.0.len() >= limits::POISONS_MAX {
            self.0.pop_front();
        }
        let until = now.plus_ms(limits::POISON_TTL_MS);
        self.0.push_back(Poison { model: model.clone(), digest: digest(request), until });
    }

    /// Until when it is refused, if it is known.
    pub(in crate::scheduler) fn until(&self, model: &ModelId, request: &Request, now: Mono) -> Option<Mono> {
        let mut suspects = self.0.iter().filter(|known| known.until > now && known.model == *model).peekable();
        suspects.peek()?;
        let digest = digest(request);
        suspects.find(|known| known.digest == digest).map(|known| known.until)
    }

    /// Forgets those of one model.
    pub(in crate::scheduler) fn pardon(&mut self, model: &ModelId) {
        self.0.retain(|known| known.model != *model);
    }
}

/// Takes what is written as what is hashed.
struct Feed(DefaultHasher);

impl io::Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same in every run, so that a log of events replays.
fn digest(request: &Request) -> u64 {
    let mut feed = Feed(DefaultHasher::new());
    // Plain data into memory: neither step can fail, and if one did, equal requests would still be equal.
    let _infallible = serde_json::to_writer(&mut feed, &(&request.work, &request.format));
    feed.0.finish()
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::{CacheSalt, Complete, Format, Limits, RequestId, ResumePoint, Sampling, UnixSeconds, Work};

    use super::*;

    fn request(id: u64, prompt: &str) -> Request {
        Request {
            id: RequestId(id),
            work: Work::Complete(Complete { prompt: prompt.to_owned(), suffix: None }),
            sampling: Sampling { seed: id, ..Sampling::greedy() },
            stop: Vec::new(),
            format: Format::Text,
            limits: Limits { max_tokens: None, context_tokens: 64, truncate: true, shift: true, keep_tokens: 0 },
            logprobs: None,
            asked_at: UnixSeconds::default(),
            cache_salt: CacheSalt::default(),
            progress: ResumePoint::default(),
        }
    }

    #[test]
    fn the_same_work_is_known_for_its_time_on_its_model() {
        let (one, two) = (ModelId("1".to_owned()), ModelId("2".to_owned()));
        let mut poisons = Poisons::default();
        poisons.add(&one, &request(1, "doom"), Mono(0));
        let end = Mono(0).plus_ms(limits::POISON_TTL_MS);
        assert_eq!(poisons.until(&one, &request(2, "doom"), Mono(5)), Some(end));
        assert_eq!(poisons.until(&one, &request(2, "gloom"), Mono(5)), None);
        assert_eq!(poisons.until(&two, &request(2, "doom"), Mono(5)), None);
        assert_eq!(poisons.until(&one, &request(2, "doom"), end), None);
        poisons.pardon(&two);
        assert!(poisons.until(&one, &request(2, "doom"), Mono(5)).is_some());
        poisons.pardon(&one);
        assert_eq!(poisons.until(&one, &request(2, "doom"), Mono(5)), None);
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let model = ModelId("1".to_owned());
        let mut poisons = Poisons::default();
        for id in 0..=limits::POISONS_MAX as u64 {
            poisons.add(&model, &request(id, &id.to_string()), Mono(id));
        }
        assert_eq!(poisons.0.len(), limits::POISONS_MAX);
        assert_eq!(poisons.until(&model, &request(0, "0"), Mono(1)), None, "the oldest went");
        assert!(poisons.until(&model, &request(0, "1"), Mono(1)).is_some());
        poisons.add(&model, &request(0, "late"), Mono(1).plus_ms(2 * limits::POISON_TTL_MS));
        assert_eq!(poisons.0.len(), 1, "what is over is forgotten");
    }
}
