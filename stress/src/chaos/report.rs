//! The sums of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::killer::Strikes;
use super::verdict::Verdict;
use crate::Chaos;

/// Streams that failed and are told of, at most.
const EXAMPLES_MAX: usize = 20;

/// Everything that is told in the end.
#[derive(Debug)]
pub(crate) struct Report {
    streams: usize,
    tokens: usize,
    struck: usize,
    verdicts: BTreeMap<Verdict, usize>,
    /// Of those that diverged at a tie: whose worker had not been struck.
    ties_unstruck: usize,
    widest_tie: f64,
    strikes: Strikes,
    pauses: Vec<Duration>,
    deaths: u64,
    resumed: u64,
    examples: Vec<String>,
}

impl Report {
    pub(crate) fn of(outcomes: &[Outcome], strikes: &Strikes, metrics: &str) -> Self {
        let mut verdicts = BTreeMap::new();
        for outcome in outcomes {
            *verdicts.entry(outcome.verdict).or_default() += 1;
        }
        let ties = || outcomes.iter().filter(|outcome| outcome.verdict == Verdict::DivergedAtTie);
        let mut pauses: Vec<Duration> = outcomes.iter().flat_map(|outcome| outcome.pauses.clone()).collect();
        pauses.sort();
        let bad = outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Exact);
        Self {
            streams: outcomes.len(),
            tokens: outcomes.iter().map(|outcome| outcome.tokens).sum(),
            struck: outcomes.iter().filter(|outcome| outcome.struck).count(),
            verdicts,
            ties_unstruck: ties().filter(|outcome| !outcome.struck).count(),
            widest_tie: ties().filter_map(|outcome| Some(outcome.diverged?.1)).fold(0.0, f64::max),
            strikes: strikes.clone(),
            pauses,
            deaths: sum(metrics, "ollmlx_worker_deaths_total"),
            resumed: sum(metrics, "ollmlx_requests_resumed_total"),
            examples: bad.take(EXAMPLES_MAX).map(|bad| format!("{}: {}", bad.verdict.words(), bad.what)).collect(),
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.get(&verdict).copied().unwrap_or_default()
    }

    /// Whether every count that must be zero is, and what was to happen did.
    pub(crate) fn holds(&self, options: &Chaos) -> bool {
        let faults = Verdict::FAULTS.iter().filter(|fault| options.strict || **fault != Verdict::DivergedAtTie);
        let was_struck = options.kill_every_ms == 0 || (self.struck > 0 && self.deaths > 0);
        self.streams > 0 && was_struck && faults.map(|fault| self.count(*fault)).sum::<usize>() == 0
    }

    fn pause_ms(&self, percent: usize) -> f64 {
        let index = (self.pauses.len().saturating_sub(1)) * percent / 100;
        self.pauses.get(index).map_or(0.0, |pause| pause.as_secs_f64() * 1e3)
    }

    pub(crate) fn print(&self, options: &Chaos) {
        let holds = self.holds(options);
        if options.json {
            let faults: BTreeMap<_, _> =
                Verdict::FAULTS.iter().map(|fault| (fault.words(), self.count(*fault))).collect();
            let value = json!({
                "seconds": options.duration().as_secs(), "clients": options.clients, "seed": options.seed,
                "kill_every_ms": options.kill_every_ms, "streams": self.streams, "struck": self.struck,
                "exact": self.count(Verdict::Exact), "tokens": self.tokens, "strikes": self.strikes,
                "pause_ms": {"count": self.pauses.len(), "p50": self.pause_ms(50), "p95": self.pause_ms(95),
                             "max": self.pause_ms(100)},
                "deaths": self.deaths, "resumed": self.resumed, "faults": faults,
                "ties_unstruck": self.ties_unstruck, "widest_tie": self.widest_tie, "examples": self.examples,
                "holds": holds,
            });
            println!("{value}");
            return;
        }
        let row = |name: &str, value: String| println!("{name:<38} {value}");
        row("streams", format!("{} ({} of them struck)", self.streams, self.struck));
        row("  the calm answer, token for token", self.count(Verdict::Exact).to_string());
        row("tokens", self.tokens.to_string());
        let strikes: Vec<String> = self.strikes.iter().map(|(signal, count)| format!("{signal} {count}")).collect();
        row("strikes", format!("{} ({})", self.strikes.values().sum::<u64>(), strikes.join(", ")));
        row("deaths that the server counted", self.deaths.to_string());
        row("requests resumed", self.resumed.to_string());
        let [p50, p95, max] = [50, 95, 100].map(|percent| self.pause_ms(percent));
        row("pauses (ms)", format!("{}: p50 {p50:.0}, p95 {p95:.0}, max {max:.0}", self.pauses.len()));
        for fault in Verdict::FAULTS {
            let (count, excused) = (self.count(fault), fault == Verdict::DivergedAtTie && !options.strict);
            let verdict = if count == 0 || excused { "" } else { "  MUST BE 0" };
            row(fault.words(), format!("{count}{verdict}"));
        }
        if self.count(Verdict::DivergedAtTie) > 0 {
            row("  of these not struck", self.ties_unstruck.to_string());
            row("  widest tie (log probability)", format!("{:.4}", self.widest_tie));
        }
        for example in &self.examples {
            println!("  {example}");
        }
        println!("{}", if holds { "HOLDS" } else { "DOES NOT HOLD" });
    }
}

/// The sum of all samples of a family.
fn sum(metrics: &str, family: &str) -> u64 {
    let samples = metrics
        .lines()
        .filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' ')));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn samples_of_a_family_are_summed() {
        let text = "# HELP a_total x\na_total{model=\"m n\",cause=\"SIGKILL\"} 3\na_total{cause=\"x\"} 4\na_total_more 9\nb 7\n";
        assert_eq!((sum(text, "a_total"), sum(text, "b")), (7, 7));
    }
}
