//! What fits, who makes room, who is started; told in the same way to whoever asks beforehand.
//!
//! | file | |
//! |---|---|
//! | `fit` | whether a plan can ever have its room, and how it is made smaller |
//! | `evict` | who makes room: a choice among candidates |
//! | `room` | who gets room now, and who waits |
//! | `outlook` | the same, asked before there is a request |

pub(super) mod evict;
mod fit;
mod outlook;
mod room;

pub(super) use fit::{need_of, next_plan, smaller};
pub(super) use outlook::outlook;
pub(super) use room::{Ahead, Room, hopeless, order, place, waited_in_vain};
