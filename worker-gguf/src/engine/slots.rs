//! How much each slot holds, and what can be cut, moved and copied.
//!
//! Three things limit that: a sliding window forgets, a recurrent state can't go back, and a cell that two slots
//! share has one position for both.

use crate::ffi::context::Context;
use crate::memory::Layout;

/// What the cache of a model allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// Keys can be moved to other positions.
    pub(super) shift: bool,
    /// A slot can be cut anywhere; otherwise only emptied.
    pub(super) cut: bool,
    /// Tokens of the sliding window; 0 where there is none.
    pub(super) window_tokens: u32,
    /// How slots lie in the cache.
    pub(super) layout: Layout,
}

#[derive(Debug)]
pub(super) struct Slots {
    abilities: Abilities,
    /// Tokens that each slot holds.
    used: Vec<u32>,
    /// For each pair of slots, the leading tokens whose cells both may use. Symmetric.
    shared: Vec<Vec<u32>>,
}

impl Slots {
    pub(super) fn new(count: u16, abilities: Abilities) -> Self {
        let count = usize::from(count);
        Self { abilities, used: vec![0; count], shared: vec![vec![0; count]; count] }
    }

    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    pub(super) fn used(&self, slot: usize) -> u32 {
        self.used[slot]
    }

    pub(super) fn grow(&mut self, slot: usize, tokens: usize) {
        let tokens = u32::try_from(tokens).expect("a batch has some thousand tokens");
        self.used[slot] += tokens;
    }

    /// Empties all slots.
    pub(super) fn clear(&mut self, context: &mut Context<'_>) {
        context.clear();
        self.used.fill(0);
        self.shared.iter_mut().for_each(|shared| shared.fill(0));
    }

    /// Removes what a failed batch left behind. A state that can't be cut is emptied.
    pub(super) fn restore(&mut self, context: &mut Context<'_>, slot: usize) {
        let used = self.used[slot];
        if !self.abilities.cut || !context.remove(slot, used, None) {
            self.truncate(context, slot, 0);
        }
    }

    pub(super) fn truncate(&mut self, context: &mut Context<'_>, slot: usize, keep: u32) -> u32 {
        let Some(used) = self.used.get(slot).copied() else { return 0 };
        if keep >= used {
            return used;
        }
        let kept = if keep > 0 && self.can_end_at(context, slot, keep) && context.remove(slot, keep, None) {
            keep
        } else {
            // Removing a whole sequence always works.
            context.remove(slot, 0, None);
            0
        };
        self.used[slot] = kept;
        self.limit_shared(slot, kept);
        kept
    }

    /// Whether the tokens before `keep` are all that is needed to go on from there.
    fn can_end_at(&self, context: &Context<'_>, slot: usize, keep: u32) -> bool {
        if !self.abilities.cut {
            return false;
        }
        let window = self.abilities.window_tokens;
        if window == 0 {
            return true;
        }
        context.oldest_position(slot).is_some_and(|oldest| oldest == 0 || oldest.saturating_add(window) <= keep)
    }

    pub(super) fn shift(&mut self, context: &mut Context<'_>, slot: usize, keep: u32, discard: u32) -> bool {
        let Some(used) = self.used.get(slot).copied() else { return false };
        let Some(from) = keep.checked_add(discard).filter(|from| *from <= used) else { return false };
        let shared = self.shared[slot].iter().copied().max().unwrap_or(0);
        if !self.abilities.shift || shared > from {
            return false;
        }
        if discard == 0 {
            return true;
        }
        if !context.remove(slot, keep, Some(from)) {
            return false;
        }
        context.move_up(slot, from, discard);
        self.used[slot] = used - discard;
        self.limit_shared(slot, keep);
        true
    }

    pub(super) fn copy_prefix(&mut self, context: &mut Context<'_>, from: usize, to: usize, tokens: u32) -> bool {
        if from == to {
            return self.truncate(context, to, tokens) == tokens;
        }
        if to >= self.len() {
            return false;
        }
        self.truncate(context, to, 0);
        let there = self.used.get(from).copied().unwrap_or_default();
        if tokens == 0 {
            return true;
        }
        if tokens > there || !self.can_end_at(context, from, tokens) {
            return false;
        }
        // Between streams llama.cpp copies the whole, and aborts if it is asked for a part.
        let end = (self.abilities.layout == Layout::Shared).then_some(tokens);
        context.copy(from, to, end);
        self.used[to] = there.min(end.unwrap_or(there));
        if self.abilities.layout == Layout::Streams {
            return self.truncate(context, to, tokens) == tokens;
        }
        for other in 0..self.len() {
            let shared = if other == from { tokens } else { self.shared[from][other].min(tokens) };
            if other != to {
                self.shared[to][other] = shared;
                self.shared[other][to] = shared;
            }
        }
        true
    }

    fn limit_shared(&mut self, slot: usize, tokens: u32) {
        for other in 0..self.len() {
            let shared = self.shared[slot][other].min(tokens);
            self.shared[slot][other] = shared;
            self.shared[other][slot] = shared;
        }
    }
}
