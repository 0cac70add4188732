//! What is wanted of a model, how it is to be loaded for that, and what that takes.

use std::sync::Arc;

use ollmlx_proto::{MemoryReport, Request};

use crate::catalog::{Correction, ModelRef};

/// What a client wants of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// That it is loaded.
    Load,
    /// That it answers.
    Run(Box<Request>),
}

impl Job {
    /// Bytes that are kept of it until its end.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Load => 0,
            Self::Run(run) => run.bytes(),
        }
    }
}

/// How long a model stays after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This many milliseconds.
    ForMs(u64),
    /// Until it must make room or the server ends.
    Forever,
    /// Not at all.
    Unload,
}

impl KeepAlive {
    /// So long, in milliseconds; for ever is the longest there is.
    #[must_use]
    pub fn ms(self) -> u64 {
        match self {
            Self::ForMs(ms) => ms,
            Self::Forever => u64::MAX,
            Self::Unload => 0,
        }
    }
}

/// How a model is to be loaded, and what that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadPlan {
    /// The model.
    pub model: Arc<ModelRef>,
    /// What the worker is told.
    pub spec: ollmlx_proto::LoadSpec,
    /// Estimated bytes.
    pub memory: MemoryReport,
    /// What else decides over its room.
    pub terms: Terms,
}

/// What decides, beside the estimate, over a model's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What earlier processes took above their estimate.
    pub learned: Correction,
    /// Bytes that this model may take, where it has a limit of its own; held while its process lives, see `own_limit`.
    pub limit: Option<u64>,
    /// Models of a lower one make room first.
    pub priority: i32,
    /// Window that the request can't do without, in tokens; at most the plan's.
    pub context_least: u32,
    /// Whether slots or window are smaller than was asked for.
    pub shrunk: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { learned: Correction::default(), limit: None, priority: 0, context_least: u32::MAX, shrunk: false }
    }
}

/// What may be given up for a model that doesn't fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shrink {
    /// Nothing: it is refused.
    #[default]
    Nothing,
    /// Slots: fewer requests at once.
    Slots,
    /// Slots, then the window, down to what the request needs.
    Context,
}

impl LoadPlan {
    /// Bytes that are set aside for it: the estimate, and what is known from earlier processes.
    #[must_use]
    pub fn need(&self) -> u64 {
        self.learned(self.memory.total())
    }

    /// An estimate with what earlier processes took above theirs.
    #[must_use]
    pub fn learned(&self, estimate: u64) -> u64 {
        estimate.saturating_add(self.terms.learned.on(estimate))
    }

    /// The same plan with no more of what was learned than there is room for, where the estimate fits.
    #[must_use]
    pub fn capped(&self, available: u64) -> Self {
        let mut plan = self.clone();
        if self.need() > available
            && let Some(left) = available.checked_sub(self.memory.total())
        {
            plan.terms.learned.bytes = left;
            plan.spec.memory_limit_bytes = plan.need();
        }
        plan
    }

    /// The same model with other slots and another window.
    fn resized(&self, slots: u16, context_tokens: u32) -> Self {
        let mut plan = self.clone();
        (plan.spec.slots, plan.spec.context_tokens) = (slots, context_tokens);
        plan.memory =
            self.model.card.memory.estimate(slots, context_tokens, self.spec.batch_tokens, &self.spec.kv_type);
        plan.spec.memory_limit_bytes = plan.need();
        plan.terms.shrunk = true;
        plan
    }

    /// The largest smaller plan that takes no more than this; where what was learned leaves none, by the estimate alone.
    #[must_use]
    pub fn shrunk(&self, shrink: Shrink, available: u64) -> Option<Self> {
        let by_estimate = || {
            let learned = self.terms.learned;
            let mut plan = self.clone();
            plan.terms.learned = Correction::default();
            let mut plan = plan.fewer(shrink, available)?;
            plan.terms.learned = learned;
            Some(plan.capped(available))
        };
        let fits_as_it_is = self.memory.total() <= available;
        self.fewer(shrink, available).or_else(|| if fits_as_it_is { None } else { by_estimate() })
    }

    fn fewer(&self, shrink: Shrink, available: u64) -> Option<Self> {
        let (spec, memory) = (&self.spec, &self.model.card.memory);
        let (batch, fits) = ((spec.batch_tokens, spec.kv_type.as_str()), |total| self.learned(total) <= available);
        if shrink == Shrink::Nothing {
            return None;
        }
        let fewer = spec.slots.saturating_sub(1);
        if let Some(slots) = memory.most_slots(fewer, spec.context_tokens, batch, fits) {
            return Some(self.resized(slots, spec.context_tokens));
        }
        let context = memory.longest_context(1, spec.context_tokens, batch, fits);
        let context = context.filter(|tokens| shrink == Shrink::Context && *tokens >= self.terms.context_least);
        context.map(|tokens| self.resized(1, tokens))
    }
}
