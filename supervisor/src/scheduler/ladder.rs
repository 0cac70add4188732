//! How far the house is from its memory limit, as a step of a ladder: each is entered at one mark and left at a lower one,
//! so that a value that trembles around a mark changes nothing.
//!
//! ```text
//! calm → hold → trim → evict → drain → kill
//! ```
//!
//! | step | what is done while it lasts |
//! |---|---|
//! | hold | a load needs that another worker goes first |
//! | trim | workers are asked to drop what they only keep for reuse |
//! | evict | idle workers go |
//! | drain | the worker furthest above its plan takes no more and has a short time to finish |
//! | kill | it is killed |
//!
//! Two gauges turn the ladder, and the higher one counts: what was measured of the workers against the limit, and the time
//! that processes of the machine lose by waiting for memory. The second never kills: it does not say whose fault it is.
//!
//! Reservations are no reason for a step: they never exceed the limit. This file only reads gauges; what a step means is
//! done in `room` and `relief`.

use ollmlx_proto::limits::{MEMORY_MARKS_PERMILLE, PRESSURE_MARKS_PERMILLE};

use crate::types::Step;

fn step_at(index: usize) -> Step {
    index.checked_sub(1).and_then(|taken| Step::TAKEN.get(taken).copied()).unwrap_or(Step::Calm)
}

/// One gauge: its marks to enter and to leave each step, lowest first.
#[derive(Clone, Copy, Debug)]
struct Gauge {
    marks: &'static [[u64; 2]],
    step: usize,
}

impl Gauge {
    fn read(&mut self, value: u64) {
        while self.marks.get(self.step).is_some_and(|[enter, _]| value >= *enter) {
            self.step += 1;
        }
        while self.step > 0 && self.marks.get(self.step - 1).is_some_and(|[_, leave]| value < *leave) {
            self.step -= 1;
        }
    }
}

/// Both gauges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    used: Gauge,
    pressed: Gauge,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            used: Gauge { marks: &MEMORY_MARKS_PERMILLE, step: 0 },
            pressed: Gauge { marks: &PRESSURE_MARKS_PERMILLE, step: 0 },
        }
    }
}

impl Ladder {
    /// Reads what is used of the limit, in permille.
    pub(super) fn used(&mut self, permille: u64) {
        self.used.read(permille);
    }

    /// Reads the time lost to waiting for memory, in permille.
    pub(super) fn pressed(&mut self, permille: u64) {
        self.pressed.read(permille);
    }

    /// Where it stands.
    pub(super) fn step(&self) -> Step {
        self.by_use().max(step_at(self.pressed.step))
    }

    /// Where it would stand without pressure on the machine.
    pub(super) fn by_use(&self) -> Step {
        step_at(self.used.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_taken_up_and_down_and_none_twice() {
        let mut ladder = Ladder::default();
        let mut seen = vec![Step::Calm];
        for permille in (0..=1_200).chain((0..1_200).rev()) {
            ladder.used(permille);
            if seen.last() != Some(&ladder.step()) {
                seen.push(ladder.step());
            }
        }
        let up = [Step::Calm].into_iter().chain(Step::TAKEN);
        let down = Step::TAKEN.into_iter().rev().skip(1).chain([Step::Calm]);
        assert_eq!(seen, up.chain(down).collect::<Vec<_>>());
    }

    #[test]
    fn a_value_that_trembles_around_a_mark_changes_nothing() {
        for (index, [enter, leave]) in MEMORY_MARKS_PERMILLE.into_iter().enumerate() {
            let mut ladder = Ladder::default();
            ladder.used(enter);
            assert_eq!(ladder.step(), Step::TAKEN[index]);
            for permille in [enter - 1, enter, leave, enter - 1, leave] {
                ladder.used(permille);
                assert_eq!(ladder.step(), Step::TAKEN[index], "{permille}");
            }
            ladder.used(leave - 1);
            assert!(ladder.step() < Step::TAKEN[index]);
        }
    }

    #[test]
    fn a_leap_skips_steps_and_pressure_never_kills() {
        let mut ladder = Ladder::default();
        ladder.used(5_000);
        assert_eq!(ladder.step(), Step::Kill);
        ladder.used(0);
        assert_eq!(ladder.step(), Step::Calm);
        ladder.pressed(1_000);
        assert_eq!((ladder.step(), ladder.by_use()), (Step::Drain, Step::Calm));
        ladder.pressed(0);
        assert_eq!(ladder.step(), Step::Calm);
    }
}
