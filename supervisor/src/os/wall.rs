//! The wall clock, for what clients are shown; nothing is decided by it.

use std::time::SystemTime;

/// The wall clock now, for what clients are shown.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "everybody else gets values")]
pub fn wall_now() -> SystemTime {
    SystemTime::now()
}

/// RFC 3339 in UTC, with as many fractional digits as there are.
#[must_use]
pub fn rfc3339_utc(at: SystemTime) -> String {
    let at = chrono::DateTime::<chrono::Utc>::from(at);
    format!("{}Z", trim_fraction(&at.format("%Y-%m-%dT%H:%M:%S%.9f").to_string()))
}

/// RFC 3339 in the server's own zone.
#[must_use]
pub fn rfc3339_local(at: SystemTime) -> String {
    let at = chrono::DateTime::<chrono::Local>::from(at);
    let zone = match at.format("%:z").to_string().as_str() {
        "+00:00" => "Z".to_owned(),
        other => other.to_owned(),
    };
    format!("{}{zone}", trim_fraction(&at.format("%Y-%m-%dT%H:%M:%S%.9f").to_string()))
}

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds(at: SystemTime) -> i64 {
    chrono::DateTime::<chrono::Utc>::from(at).timestamp()
}

fn trim_fraction(text: &str) -> &str {
    text.trim_end_matches('0').trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        let at = |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns);
        assert_eq!(rfc3339_utc(at(1_123_000_000)), "1970-01-01T00:00:01.123Z");
        assert_eq!(rfc3339_utc(at(10_000_000_000)), "1970-01-01T00:00:10Z");
        assert_eq!(unix_seconds(at(1_999_000_000)), 1);
    }
}
