//! Figures, their targets, and how they are printed.

use serde_json::json;

use crate::stats::median;

/// A figure, its ratio and its target.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    ours: f64,
    theirs: Option<f64>,
    /// The ratio, or our figure where there is nothing to compare it with.
    value: f64,
    target: f64,
    /// Whether `value` must be at least the target; else at most.
    at_least: bool,
}

impl Row {
    /// Our median against another: the ratio must be at least `target`.
    pub(crate) fn more(name: &'static str, ours: &[f64], theirs: &[f64], target: f64) -> Self {
        Self { at_least: true, ..Self::less(name, ours, theirs, target) }
    }

    /// Our median against another: the ratio must be at most `target`.
    pub(crate) fn less(name: &'static str, ours: &[f64], theirs: &[f64], target: f64) -> Self {
        let (ours, theirs) = (median(ours), median(theirs));
        Self { name, ours, theirs: Some(theirs), value: ours / theirs, target, at_least: false }
    }

    /// A figure of ours that must be at most `target`.
    pub(crate) fn alone(name: &'static str, value: f64, target: f64) -> Self {
        Self { name, ours: value, theirs: None, value, target, at_least: false }
    }

    /// Whether the target is met.
    pub(crate) fn holds(&self) -> bool {
        if self.at_least { self.value >= self.target } else { self.value <= self.target }
    }
}

/// Prints `rows`, as JSON or as a table under a line that says what was done.
pub(crate) fn print(rows: &[Row], peer: &str, rounds: usize, heading: &str, as_json: bool) {
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({"name": row.name, "ollmlx": row.ours, "peer": row.theirs, "value": row.value,
                       "target": row.target, "at_least": row.at_least, "holds": row.holds()})
            })
            .collect();
        println!("{}", json!({"peer": peer, "rounds": rounds, "what": heading, "rows": rows}));
        return;
    }
    println!("medians of {rounds} rounds, {heading}");
    println!("{:<52} {:>10} {:>13} {:>8}  target", "", "ollmlx", peer, "ratio");
    for row in rows {
        let theirs = row.theirs.map_or_else(|| "-".to_owned(), |theirs| format!("{theirs:.1}"));
        let value = row.theirs.map_or_else(|| "-".to_owned(), |_| format!("{:.2}", row.value));
        let sign = if row.at_least { "≥" } else { "≤" };
        let verdict = if row.holds() { "" } else { "  MISSED" };
        println!("{:<52} {:>10.1} {theirs:>13} {value:>8}  {sign} {}{verdict}", row.name, row.ours, row.target);
    }
}
