//! A gauge with marks: each step is entered at one and left at a lower one, so that a value that trembles around a mark changes
//! nothing.

use crate::limits::{MEMORY_MARKS_PERMILLE, PRESSURE_MARKS_PERMILLE};

use crate::types::Step;

/// One gauge: its marks to enter and to leave each step, lowest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gauge {
    marks: &'static [[u64; 2]],
    step: usize,
}

impl Default for Gauge {
    fn default() -> Self {
        Self { marks: &MEMORY_MARKS_PERMILLE, step: 0 }
    }
}

impl Gauge {
    /// Of the time that the machine loses to waiting for memory, in permille.
    pub(super) fn of_machine() -> Self {
        Self { marks: &PRESSURE_MARKS_PERMILLE, step: 0 }
    }

    pub(super) fn read(&mut self, value: u64) {
        while self.marks.get(self.step).is_some_and(|[enter, _]| value >= *enter) {
            self.step += 1;
        }
        while self.step > 0 && self.marks.get(self.step - 1).is_some_and(|[_, leave]| value < *leave) {
            self.step -= 1;
        }
    }

    pub(super) fn step(self) -> Step {
        self.step.checked_sub(1).and_then(|taken| Step::TAKEN.get(taken).copied()).unwrap_or(Step::Calm)
    }
}
