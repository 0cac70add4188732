//! Slots: what each one's cache holds, and which one a new prompt takes.
//!
//! A slot outlives its requests: the tokens of the last one stay in the engine's cache, so that the next prompt with
//! the same beginning (the next turn of a conversation) computes only what is new. Only a prompt of the same salt does:
//! whoever may ask could else find out by time, word for word, what others have asked.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use ollmlx_proto::{CacheSalt, TokenId};

use super::job::Job;
use crate::limits::COPY_TOKENS_MIN;

/// One sequence of the engine.
pub(super) struct Slot {
    /// Of these, the first `computed` are in the engine's cache; the others are to be appended.
    pub(super) tokens: Vec<TokenId>,
    pub(super) computed: usize,
    /// After a slide, the cache from here on still remembers what was dropped: not to be reused.
    pub(super) exact: usize,
    /// Of the request that brought the tokens: no other prompt may use them.
    pub(super) salt: CacheSalt,
    /// Rises with each use; the least is replaced first.
    pub(super) used: u64,
    pub(super) job: Option<Job>,
    /// Whose tokens of an earlier worker are computed one by one.
    pub(super) replay: Option<Replay>,
}

/// See `replay_exact_ms` of [`ollmlx_proto::ResumePoint`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Replay {
    /// Index of the first of them.
    from: usize,
    patience: Duration,
    /// Known once it has begun.
    until: Option<Instant>,
}

impl Replay {
    pub(super) fn new(from: usize, patience: Duration) -> Self {
        Self { from, patience, until: None }
    }
}

impl Slot {
    /// When its request came; the far past where it has none.
    pub(super) fn arrived(&self) -> Option<Instant> {
        self.job.as_ref().map(|job| job.clock.arrived)
    }

    pub(super) fn empty() -> Self {
        Self {
            tokens: Vec::new(),
            computed: 0,
            exact: usize::MAX,
            salt: CacheSalt::default(),
            used: 0,
            job: None,
            replay: None,
        }
    }

    /// The engine's cache of this slot is empty now.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
        self.computed = 0;
        self.exact = usize::MAX;
    }

    /// Whether nothing is to be computed for it: its request is paused, or there is none.
    pub(super) fn is_held(&self) -> bool {
        self.job.as_ref().is_none_or(|job| job.paused)
    }

    pub(super) fn waiting(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that the next step may compute at most.
    pub(super) fn step_tokens(&mut self, now: Instant) -> usize {
        let waiting = self.waiting();
        match &mut self.replay {
            Some(replay) if self.computed < replay.from => waiting.min(replay.from - self.computed),
            Some(replay) => {
                let until = *replay.until.get_or_insert(now + replay.patience);
                if now < until { waiting.min(1) } else { waiting }
            }
            None => waiting,
        }
    }

    /// Tokens of `wanted` that this cache could save; at least one is always computed, for its logits.
    fn shared(&self, wanted: &[TokenId], salt: CacheSalt) -> usize {
        if self.salt != salt {
            return 0;
        }
        let cached = &self.tokens[..self.computed.min(self.exact)];
        let equal = cached.iter().zip(wanted).take_while(|(one, other)| one == other).count();
        equal.min(wanted.len().saturating_sub(1))
    }
}

/// Where a prompt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) slot: usize,
    /// Tokens that can be kept there, or copied there.
    pub(super) keep: usize,
    /// The slot whose beginning is copied.
    pub(super) copy_from: Option<usize>,
}

/// Chooses an idle slot: the one that shares most with `wanted`, else an empty one, else the least recently used.
///
/// Two exceptions. Where reuse would throw away more than it saves (all prompts share a first token) and there is
/// an empty slot, that one is taken. And where another slot, be it busy, shares much more, its beginning is copied.
pub(super) fn place(slots: &[Slot], wanted: &[TokenId], salt: CacheSalt) -> Option<Placement> {
    let shared: Vec<usize> = slots.iter().map(|slot| slot.shared(wanted, salt)).collect();
    let idle = || (0..slots.len()).filter(|&index| slots[index].job.is_none());
    let loss = |index: usize| slots[index].computed - shared[index];
    let nearest = idle().max_by_key(|&index| (shared[index], Reverse(loss(index)), Reverse(slots[index].used)))?;
    let empty = idle().find(|&index| slots[index].computed == 0);
    let replaceable = match empty {
        Some(empty) => empty,
        None => idle().min_by_key(|&index| slots[index].used)?,
    };
    let donor = (0..slots.len()).max_by_key(|&index| shared[index])?;
    let stay = Placement { slot: nearest, keep: shared[nearest], copy_from: None };
    let copy = Placement { slot: replaceable, keep: shared[donor], copy_from: Some(donor) };
    let fresh = Placement { slot: replaceable, keep: 0, copy_from: None };
    let wasteful = empty.is_some() && loss(nearest) > shared[nearest];
    Some(if shared[nearest] > 0 && !wasteful && shared[donor] < shared[nearest] + COPY_TOKENS_MIN {
        stay
    } else if shared[donor] >= COPY_TOKENS_MIN && donor != replaceable {
        copy
    } else if shared[nearest] > 0 && !wasteful {
        stay
    } else {
        fresh
    })
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::some_job;
    use super::*;

    fn place(slots: &[Slot], wanted: &[TokenId]) -> Option<Placement> {
        super::place(slots, wanted, CacheSalt::default())
    }

    fn slot(tokens: &[TokenId], used: u64) -> Slot {
        Slot { tokens: tokens.to_vec(), computed: tokens.len(), used, ..Slot::empty() }
    }

    fn busy(tokens: &[TokenId]) -> Slot {
        Slot { job: Some(some_job()), ..slot(tokens, 9) }
    }

    fn count(from: TokenId, to: TokenId) -> Vec<TokenId> {
        (from..to).collect()
    }

    fn placed(slot: usize, keep: usize, copy_from: Option<usize>) -> Option<Placement> {
        Some(Placement { slot, keep, copy_from })
    }

    #[test]
    fn the_longest_common_prefix_wins_and_one_token_is_left_to_compute() {
        let slots = [slot(&[1, 2], 1), slot(&[1, 2, 3], 2), slot(&[9], 3)];
        assert_eq!(place(&slots, &[1, 2, 3, 4]), placed(1, 3, None));
        assert_eq!(place(&slots, &[1, 2, 3]), placed(0, 2, None), "nothing is lost there");
        assert_eq!(place(&slots, &[9]), placed(0, 0, None), "one token can't be saved, the oldest goes");
    }

    #[test]
    fn without_a_common_prefix_an_empty_slot_or_the_oldest_is_taken() {
        assert_eq!(place(&[slot(&[1], 1), slot(&[], 0)], &[5, 6]), placed(1, 0, None));
        assert_eq!(place(&[slot(&[1], 2), slot(&[2], 1)], &[5, 6]), placed(1, 0, None));
        assert_eq!(place(&[busy(&[1]), busy(&[2])], &[5, 6]), None);
    }

    #[test]
    fn a_long_conversation_is_not_thrown_away_for_a_short_prefix_while_slots_are_empty() {
        let conversation = count(0, 100);
        let slots = [slot(&conversation, 1), slot(&[], 0)];
        assert_eq!(place(&slots, &[0, 1, 777]), placed(1, 0, None));
        let other = [count(0, 40), count(500, 510)].concat();
        assert_eq!(place(&slots, &other), placed(1, 40, Some(0)), "worth a copy");
        assert_eq!(place(&[slot(&conversation, 1)], &[0, 1, 777]), placed(0, 2, None), "no other choice");
    }

    #[test]
    fn a_busy_slot_gives_a_copy_of_a_much_longer_prefix() {
        let slots = [busy(&count(0, 100)), slot(&[0, 1, 9], 1)];
        assert_eq!(place(&slots, &count(0, 60)), placed(1, 59, Some(0)));
        assert_eq!(place(&slots, &count(0, 20)), placed(1, 2, None), "not much longer");
    }

    #[test]
    fn a_prompt_of_another_salt_shares_nothing_and_takes_an_empty_slot_or_the_oldest() {
        let (own, other) = (CacheSalt(1), CacheSalt(2));
        let of = |salt, slot: Slot| Slot { salt, ..slot };
        let tokens = count(0, 100);
        let slots = [of(other, slot(&tokens, 2)), of(own, slot(&[7], 1))];
        assert_eq!(super::place(&slots, &tokens, other), placed(0, 99, None));
        assert_eq!(super::place(&slots, &tokens, own), placed(1, 0, None), "the oldest is replaced");
        let slots = [of(other, busy(&tokens)), of(own, slot(&[], 0))];
        assert_eq!(super::place(&slots, &tokens, other), placed(1, 99, Some(0)));
        assert_eq!(super::place(&slots, &tokens, own), placed(1, 0, None), "nothing is copied");
        let slots = [of(other, slot(&tokens, 1))];
        assert_eq!(super::place(&slots, &tokens, own), placed(0, 0, None), "nothing is kept");
        let mixed = [of(other, slot(&tokens, 1)), of(own, slot(&count(0, 40), 2))];
        assert_eq!(super::place(&mixed, &tokens, own), placed(1, 40, None), "the longer one is another's");
    }

    #[test]
    fn only_what_is_computed_and_exact_counts() {
        let mut prefilling = busy(&count(0, 100));
        prefilling.computed = 50;
        assert_eq!(place(&[prefilling, slot(&[], 0)], &count(0, 80)), placed(1, 50, Some(0)));
        let mut slid = slot(&count(0, 100), 1);
        slid.exact = 4;
        assert_eq!(place(&[slid], &count(0, 80)), placed(0, 4, None));
    }
}
