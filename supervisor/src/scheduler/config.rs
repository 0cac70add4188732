//! What an administrator may set of the scheduler, with defaults from `limits`.

use crate::limits;

use super::life::Timeouts;
use crate::types::{KeepAlive, Shrink};

/// What an administrator may set, with defaults from `limits`.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Requests waiting over all models.
    pub queue_max: usize,
    /// Processes at once, leaving ones included; at least 1.
    pub workers_max: usize,
    /// Bytes that all workers may hold together; `None` is no limit.
    pub memory_limit: Option<u64>,
    /// Whether the machine's own complaints about memory count.
    pub heeds_pressure: bool,
    /// What may be given up for a model that doesn't fit.
    pub shrink: Shrink,
    /// For models whose requests say nothing.
    pub default_keep_alive: KeepAlive,
    /// Longest wait for a grant.
    pub queue_wait_ms: u64,
    /// A model that waits for room this long makes busy ones give way.
    pub yield_after_ms: u64,
    /// Of a worker's life.
    pub timeouts: Timeouts,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            queue_max: limits::QUEUE_LEN_MAX,
            workers_max: limits::WORKERS_MAX,
            memory_limit: None,
            heeds_pressure: true,
            shrink: Shrink::Nothing,
            default_keep_alive: KeepAlive::ForMs(limits::KEEP_ALIVE_MS),
            queue_wait_ms: limits::QUEUE_WAIT_MS_MAX,
            yield_after_ms: limits::YIELD_AFTER_MS,
            timeouts: Timeouts {
                hello_ms: limits::HELLO_TIMEOUT_MS,
                load_stall_ms: limits::LOAD_STALL_MS,
                silence_ms: limits::SILENCE_MS,
                ask_ms: limits::ASK_TIMEOUT_MS,
                term_ms: limits::TERM_TIMEOUT_MS,
                kill_ms: limits::KILL_TIMEOUT_MS,
                drain_ms: limits::DRAIN_TIMEOUT_MS,
                relief_ms: limits::RELIEF_DRAIN_MS,
                linger_ms: limits::LINK_LINGER_MS,
            },
        }
    }
}
