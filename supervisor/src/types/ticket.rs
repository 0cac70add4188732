//! What is heard of a request.

use ollmlx_proto::{Failure, Output};

/// What a ticket's holder hears, in order: any number of `Output`s, and exactly one terminal item: `Loaded` for a load
/// job, a terminal `Output`, or `Failed`. After the terminal item the channel closes.
#[derive(Clone, Debug, PartialEq)]
pub enum TicketItem {
    /// The model is loaded and a slot is ours. First item of every job that got that far.
    Granted {
        /// From arrival to this moment, in nanoseconds: queueing and loading.
        load_ns: u64,
    },
    /// Terminal for `Job::Load`.
    Loaded,
    /// Terminal for a request that only unloads: there is no job for that, so the door says it itself.
    Unloaded,
    /// What the worker says; deltas of a slow reader arrive merged.
    Output(Output),
    /// Terminal: refused, failed, or the worker died.
    Failed(Failure),
}

impl TicketItem {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Granted { .. } => false,
            Self::Loaded | Self::Unloaded | Self::Failed(_) => true,
            Self::Output(output) => output.is_terminal(),
        }
    }
}
