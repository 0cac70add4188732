//! What would become of a request that came now.

use super::LoadPlan;

/// How a model would be loaded; what is left out is as for any request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadWish {
    /// Window of a slot, in tokens.
    pub context_tokens: Option<u32>,
    /// Slots, and no fewer.
    pub slots: Option<u16>,
    /// Type of the caches, and no other.
    pub kv_type: Option<String>,
}

/// What the scheduler is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct WishedLoad {
    /// The plan that comes of it.
    pub plan: LoadPlan,
    /// What was wished.
    pub wish: LoadWish,
}

/// Whether and when a model would be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// It is loaded, and can serve that.
    Loaded,
    /// There is room.
    Now,
    /// Idle models make room at once.
    AfterEviction,
    /// Busy models make room when what they run has ended.
    AfterOthers,
    /// Its processes failed too often, and it is refused until it has rested.
    Rests,
    /// Models that are kept for ever are in the way.
    Pinned,
    /// It takes more than the limit.
    Never,
}

impl Prospect {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Now => "now",
            Self::AfterEviction => "after_eviction",
            Self::AfterOthers => "after_others",
            Self::Rests => "rests",
            Self::Pinned => "pinned",
            Self::Never => "never",
        }
    }
}

/// The scheduler's own answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Whether and when.
    pub prospect: Prospect,
    /// Bytes that the model may have once everything that may go has gone.
    pub at_most: u64,
    /// How it would be loaded, where that is not as it was wished.
    pub smaller: Option<LoadPlan>,
}
