//! Numbers, sizes and times as people read them, in Ollama's forms (`docs/conformance.md`, Command line). Pure.

use std::time::Duration;

/// Decimal bytes: `98 MB`, `2.0 GB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "KB")];
    let Some((factor, unit)) = units.into_iter().find(|(factor, _)| count >= *factor) else {
        return format!("{count} B");
    };
    let value = count as f64 / factor as f64;
    if value >= 10.0 || count.is_multiple_of(factor) {
        format!("{} {unit}", count / factor)
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Counts of parameters: `8B`, `7.6B`, `136.73M`, `23K`.
#[must_use]
pub fn number(count: u64) -> String {
    const BILLION: u64 = 1_000_000_000;
    const MILLION: u64 = 1_000_000;
    const THOUSAND: u64 = 1_000;
    match count {
        BILLION.. if count.is_multiple_of(BILLION) => format!("{}B", count / BILLION),
        BILLION.. => format!("{:.1}B", count as f64 / BILLION as f64),
        MILLION.. if count.is_multiple_of(MILLION) => format!("{}M", count / MILLION),
        MILLION.. => format!("{:.2}M", count as f64 / MILLION as f64),
        THOUSAND.. => format!("{}K", count / THOUSAND),
        _ => count.to_string(),
    }
}

/// A distance in time without a direction: `4 minutes`, `About an hour`.
#[must_use]
pub fn distance(span: Duration) -> String {
    let seconds = span.as_secs();
    let minutes = seconds / 60;
    let hours = (span.as_secs_f64() / 3600.0).round() as u64;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Go's printing of a duration: `1.52s`, `31ms`, `1m30.5s`. From nanoseconds.
#[must_use]
pub fn go_duration(ns: u64) -> String {
    let fraction = |value: u64, unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => fraction(ns, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(ns, 1_000_000, "ms"),
        _ => {
            let minutes_total = ns / 60_000_000_000;
            let seconds = fraction(ns % 60_000_000_000, 1_000_000_000, "s");
            match (minutes_total / 60, minutes_total % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_decimal_and_short() {
        for (count, expect) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 KB"),
            (1_500, "1.5 KB"),
            (12_900_000, "12 MB"),
            (98_362_432, "98 MB"),
            (2_000_000_000, "2 GB"),
            (2_019_393_189, "2.0 GB"),
            (9_990_000_000, "10.0 GB"),
            (1_200_000_000_000, "1.2 TB"),
        ] {
            assert_eq!(bytes(count), expect, "{count}");
        }
    }

    #[test]
    fn parameters_are_counted_in_three_scales() {
        for (count, expect) in [
            (8_000_000_000, "8B"),
            (7_615_616_512, "7.6B"),
            (136_730_000, "136.73M"),
            (22_000_000, "22M"),
            (23_456, "23K"),
            (812, "812"),
        ] {
            assert_eq!(number(count), expect, "{count}");
        }
    }

    #[test]
    fn distances_are_rounded_like_ollama_s() {
        for (seconds, expect) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (299, "4 minutes"),
            (3_600, "About an hour"),
            (5_399, "About an hour"),
            (5_400, "2 hours"),
            (47 * 3_600, "47 hours"),
            (3 * 86_400, "3 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (730 * 86_400, "2 years"),
        ] {
            assert_eq!(distance(Duration::from_secs(seconds)), expect, "{seconds}");
        }
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (ns, expect) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (31_000_000, "31ms"),
            (31_250_000, "31.25ms"),
            (1_520_000_000, "1.52s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(ns), expect, "{ns}");
        }
    }
}
