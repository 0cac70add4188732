//! Two servers for a short time: one that was replaced and ends when its answers have, and its successor.
//!
//! Both have the same memory to divide. The one that was replaced keeps what its answers need and nothing for later: idle
//! models go at once, others when they become idle, whatever their keep-alive. The successor is told what the other one
//! holds ([`super::Event::ElsewhereHeld`]) and gives that to nobody until it is told otherwise: who needs it waits, as for
//! a busy model.
//!
//! Decision: what is held elsewhere is no reason for a step of the memory ladder. It is what was set aside there, nothing
//! here can free it, and the other server has a ladder of its own.

use super::{Outbox, Scheduler};

use crate::types::KeepAlive;

impl Scheduler {
    /// A successor serves.
    pub(super) fn replaced(&mut self, out: &mut Outbox) {
        self.is_replaced = true;
        for at in 0..self.models.len() {
            let model = &mut self.models[at];
            model.keep_alive = KeepAlive::Unload;
            let mut waiting = std::mem::take(&mut model.queue);
            let _none = waiting.take(|waiting| {
                waiting.keep_alive = Some(KeepAlive::Unload);
                false
            });
            model.queue = waiting;
            for running in model.running.values_mut() {
                running.waiting.keep_alive = Some(KeepAlive::Unload);
            }
            let id = model.id.clone();
            self.unload(&id, out);
        }
    }

    /// What a request may ask for.
    pub(super) fn keep_alive(&self, asked: Option<KeepAlive>) -> Option<KeepAlive> {
        if self.is_replaced { Some(KeepAlive::Unload) } else { asked }
    }
}
