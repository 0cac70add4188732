//! What would become of a request that came now.

use super::LoadPlan;

/// How somebody would have a model loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct WishedLoad {
    /// As any request would; made larger or smaller by what follows.
    pub plan: LoadPlan,
    /// So many slots and no fewer.
    pub slots: Option<u16>,
    /// Caches of this type and no other.
    pub kv_type: Option<String>,
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
