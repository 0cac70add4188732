//! The way out of a loaded worker: between two steps the session's, within one the engine's, whose pulse says that it is
//! alive.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ollmlx_proto::FromWorker;

use super::link::Sender;
use crate::engine::Pulse;
use crate::limits::{PROGRESS_EVERY, PULSE_EVERY};

/// Shared with the engine, which runs on the same thread.
pub(super) struct Outlet<W>(Arc<Mutex<Voice<W>>>);

/// What goes out, and when life was last told of.
pub(super) struct Voice<W> {
    pub(super) sender: Sender<W>,
    /// Of the batcher.
    pub(super) steps: u64,
    /// Told of within steps. The supervisor takes the same number twice for no progress.
    pulses: u64,
    /// When life and memory were told of between two steps, and life within one.
    told: Instant,
    beaten: Instant,
}

impl<W: Write> Outlet<W> {
    pub(super) fn new(sender: Sender<W>) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Voice { sender, steps: 0, pulses: 0, told: now, beaten: now })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Voice<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write + Send + 'static> Outlet<W> {
    /// What an engine calls while it computes. Costs a look at the clock, and a frame once in [`PULSE_EVERY`].
    pub(super) fn pulse(&self) -> Pulse {
        let voice = Arc::clone(&self.0);
        Pulse::new(move || {
            // Whoever holds it says something now, which is a sign of life as well.
            let Ok(mut voice) = voice.try_lock() else { return };
            let now = Instant::now();
            if now.saturating_duration_since(voice.told.max(voice.beaten)) >= PULSE_EVERY {
                voice.beaten = now;
                voice.pulses += 1;
                voice.tell();
                // The step can't end for that. One that fails for good fails after it as well.
                let _gone = voice.sender.flush();
            }
        })
    }
}

impl<W: Write> Voice<W> {
    /// There was nothing to tell of until now.
    pub(super) fn rest(&mut self) {
        self.told = Instant::now();
    }

    /// Whether it is time to tell of life and memory between two steps; the next is due so much later.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now.saturating_duration_since(self.told) >= PROGRESS_EVERY;
        if due {
            self.told = now;
        }
        due
    }

    /// Puts a sign of life into the next write.
    pub(super) fn tell(&mut self) {
        self.sender.queue(&FromWorker::Progress { steps: self.steps + self.pulses });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_told_once_and_takes_nothing_from_what_is_told_between_steps() {
        let outlet = Outlet::new(Sender::new(std::io::sink()));
        let pulse = outlet.pulse();
        let long_ago = Instant::now().checked_sub(PULSE_EVERY).expect("the machine runs for longer");
        pulse.beat();
        assert_eq!(outlet.lock().pulses, 0, "nothing is due yet");
        outlet.lock().told = long_ago;
        outlet.lock().beaten = long_ago;
        pulse.beat();
        pulse.beat();
        assert_eq!(outlet.lock().pulses, 1);
        assert!(outlet.lock().is_due() && !outlet.lock().is_due(), "memory is told of as well");
    }
}
