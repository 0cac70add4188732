//! Text to value: the parsing rules of Ollama's environment (`docs/conformance.md`, Environment), as pure functions.
//!
//! Knows no knob and no origin. Every function is total: any text yields a value or the reason why not.

use std::fmt;
use std::time::Duration;

use crate::limits::PROGRESS_INTERVAL_MS;
use ollmlx_proto::FlashAttention;
use thiserror::Error;

/// Ollama's port.
pub const DEFAULT_PORT: u16 = 11_434;

/// Why a text is not a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// `10` where `10s` is meant.
    #[error("time: missing unit in duration {0:?}")]
    DurationUnitMissing(String),
    /// `10x`.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    DurationUnitUnknown {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Not a duration at all.
    #[error("time: invalid duration {0:?}")]
    DurationInvalid(String),
    /// Not a whole number in range.
    #[error("must be a whole number, not {0:?}")]
    NumberInvalid(String),
    /// Not a byte count.
    #[error("must be a number of bytes such as 4GiB, not {0:?}")]
    BytesInvalid(String),
    /// Not a memory limit.
    #[error("must be auto, none, a number of bytes such as 12GiB or a share such as 80%, not {0:?}")]
    MemoryLimitInvalid(String),
    /// A memory limit that nothing fits.
    #[error("must be at least 1MB, not {text:?}{hint}")]
    MemoryLimitTooSmall {
        /// What it was.
        text: String,
        /// What may have been meant.
        hint: String,
    },
    /// Not a memory limit of one model.
    #[error("must be {rule}, not {text:?}")]
    ModelLimitInvalid {
        /// What it was.
        text: String,
        /// What it must be.
        rule: &'static str,
    },
    /// Not a whole number in range.
    #[error("must be a whole number from {least} to {most}, not {text:?}")]
    OutOfRange {
        /// What it was.
        text: String,
        /// What it may be at least.
        least: i32,
        /// What it may be at most.
        most: i32,
    },
    /// Shorter than what a worker may take to give a sign of life.
    #[error("must be at least {least_ms} ms, not {text:?}")]
    TooShort {
        /// What it was.
        text: String,
        /// What it must be.
        least_ms: u64,
    },
    /// The scheme is neither http nor https.
    #[error("must be host:port or http://host:port, not {0:?}")]
    HostInvalid(String),
    /// The port is not a number up to 65535.
    #[error("invalid port {0:?}")]
    PortInvalid(String),
    /// Not a list of faults.
    #[error("{0}")]
    FaultInvalid(String),
    /// Not one of the words.
    #[error("must be one of {allowed}, not {text:?}")]
    WordUnknown {
        /// What it was.
        text: String,
        /// What it may be.
        allowed: &'static str,
    },
}

/// Where the server listens and the command line finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUrl {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path prefix without a trailing slash; usually empty.
    pub path: String,
}

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS, which only something in front of ollmlx can end.
    Https,
}

impl HostUrl {
    /// `host:port`, IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Parses `scheme://host:port/path`, any part of which may be missing.
    ///
    /// # Errors
    /// An unknown scheme or a port that is none.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let (scheme, rest, default_port) = match text.split_once("://") {
            None => (Scheme::Http, text, DEFAULT_PORT),
            Some(("http", rest)) => (Scheme::Http, rest, 80),
            Some(("https", rest)) => (Scheme::Https, rest, 443),
            Some(_) => return Err(ValueError::HostInvalid(text.to_owned())),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_authority(authority, default_port)?;
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        let path = path.trim_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        if host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '@') {
            return Err(ValueError::HostInvalid(text.to_owned()));
        }
        Ok(Self { scheme, host: host.to_owned(), port, path })
    }
}

impl fmt::Display for HostUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(out, "{scheme}://{}{}", self.authority(), self.path)
    }
}

fn split_authority(authority: &str, default_port: u16) -> Result<(&str, u16), ValueError> {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = rest.strip_prefix(':').map_or(Ok(default_port), parse_port)?;
        return Ok((host, port));
    }
    match authority.rsplit_once(':') {
        // More than one colon without brackets is a bare IPv6 address.
        Some((host, _)) if host.contains(':') => Ok((authority, default_port)),
        Some((host, port)) => Ok((host, parse_port(port)?)),
        None => Ok((authority, default_port)),
    }
}

fn parse_port(text: &str) -> Result<u16, ValueError> {
    text.parse().map_err(|_| ValueError::PortInvalid(text.to_owned()))
}

/// How long something lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// This long; zero is not at all.
    For(Duration),
    /// Without end: what a negative duration means.
    Forever,
}

/// Removes what shells and `.env` files leave around a value.
#[must_use]
pub fn trim(text: &str) -> &str {
    text.trim().trim_matches(['"', '\'']).trim()
}

/// Go's `ParseBool`; anything else that is not empty counts as true.
#[must_use]
pub fn parse_bool(text: &str) -> bool {
    !matches!(text, "" | "0" | "f" | "F" | "false" | "FALSE" | "False")
}

/// Empty is the engine's own choice; else a boolean, read as Ollama reads its variable.
#[must_use]
pub fn parse_flash_attention(text: &str) -> FlashAttention {
    match (text, parse_bool(text)) {
        ("", _) => FlashAttention::Auto,
        (_, true) => FlashAttention::On,
        (_, false) => FlashAttention::Off,
    }
}

/// A whole number.
///
/// # Errors
/// Anything else.
pub fn parse_u32(text: &str) -> Result<u32, ValueError> {
    text.parse().map_err(|_| ValueError::NumberInvalid(text.to_owned()))
}

/// A number of bytes: bare, or with `KB MB GB TB` (÷1000) or `KiB MiB GiB TiB` (÷1024).
///
/// # Errors
/// Anything else.
pub fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    ollmlx_proto::memory::parse_bytes(text).ok_or_else(|| ValueError::BytesInvalid(text.to_owned()))
}

/// A duration in which a worker gives a sign of life at least once.
///
/// # Errors
/// Not a duration, or too short.
pub fn parse_hang_timeout(text: &str) -> Result<Span, ValueError> {
    let least_ms = 2 * PROGRESS_INTERVAL_MS;
    match parse_span(text)? {
        Span::For(span) if span < Duration::from_millis(least_ms) => {
            Err(ValueError::TooShort { text: text.to_owned(), least_ms })
        }
        span => Ok(span),
    }
}

/// A Go duration or a bare number of seconds; negative is without end.
///
/// # Errors
/// Anything else, in Go's words.
pub fn parse_span(text: &str) -> Result<Span, ValueError> {
    let ns = match text.parse::<i64>() {
        Ok(seconds) => i128::from(seconds) * 1_000_000_000,
        Err(_) => parse_go_duration(text)?,
    };
    Ok(span_of(ns))
}

/// Nanoseconds to a span.
#[must_use]
pub fn span_of(ns: i128) -> Span {
    match u64::try_from(ns) {
        Ok(ns) => Span::For(Duration::from_nanos(ns)),
        Err(_) => Span::Forever,
    }
}

/// Go's `time.ParseDuration`: `1h30m`, `-1.5s`, `300ms`, `0`. In nanoseconds.
///
/// # Errors
/// In Go's words.
pub fn parse_go_duration(text: &str) -> Result<i128, ValueError> {
    let invalid = || ValueError::DurationInvalid(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit_ns = match unit {
            "" => return Err(ValueError::DurationUnitMissing(text.to_owned())),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(ValueError::DurationUnitUnknown { unit: unit.to_owned(), text: text.to_owned() }),
        };
        total += number * unit_ns;
        rest = after;
    }
    // Go refuses what does not fit 64 bits.
    if total >= 9.2e18 {
        return Err(invalid());
    }
    let ns = total.round() as i128;
    Ok(if negative { -ns } else { ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_every_form_are_understood() {
        let check = |text: &str, expect: &str| assert_eq!(HostUrl::parse(text).unwrap().to_string(), expect, "{text}");
        check("", "http://127.0.0.1:11434");
        check("0.0.0.0", "http://0.0.0.0:11434");
        check(":5000", "http://127.0.0.1:5000");
        check("example.org:1234", "http://example.org:1234");
        check("http://example.org", "http://example.org:80");
        check("https://example.org", "https://example.org:443");
        check("https://example.org:8443/ollama/", "https://example.org:8443/ollama");
        check("::1", "http://[::1]:11434");
        check("[::1]:99", "http://[::1]:99");
        check("[::1]", "http://[::1]:11434");
    }

    #[test]
    fn bad_hosts_are_refused() {
        assert_eq!(HostUrl::parse("h:99999"), Err(ValueError::PortInvalid("99999".into())));
        assert_eq!(HostUrl::parse("h:x"), Err(ValueError::PortInvalid("x".into())));
        assert!(HostUrl::parse("ftp://h").is_err());
        assert!(HostUrl::parse("a b").is_err());
    }

    #[test]
    fn durations_are_go_s() {
        let check = |text: &str, expect: i128| assert_eq!(parse_go_duration(text), Ok(expect), "{text}");
        check("5m", 300_000_000_000);
        check("1h30m", 5_400_000_000_000);
        check("-1s", -1_000_000_000);
        check("1.5s", 1_500_000_000);
        check("300ms", 300_000_000);
        check("0", 0);
        let text = |text: &str| parse_go_duration(text).unwrap_err().to_string();
        assert_eq!(text("10"), r#"time: missing unit in duration "10""#);
        assert_eq!(text("10x"), r#"time: unknown unit "x" in duration "10x""#);
        assert_eq!(text("abc"), r#"time: invalid duration "abc""#);
        assert_eq!(text(""), r#"time: invalid duration """#);
        assert!(parse_go_duration("99999999999h").is_err());
    }

    #[test]
    fn bare_numbers_are_seconds_and_negative_is_forever() {
        assert_eq!(parse_span("10"), Ok(Span::For(Duration::from_secs(10))));
        assert_eq!(parse_span("0"), Ok(Span::For(Duration::ZERO)));
        assert_eq!(parse_span("-1"), Ok(Span::Forever));
        assert_eq!(parse_span("-5m"), Ok(Span::Forever));
        assert!(parse_span("soon").is_err());
    }

    #[test]
    fn words_that_are_no_boolean_count_as_true() {
        for (text, expect) in [("", false), ("0", false), ("false", false), ("1", true), ("true", true), ("yes", true)]
        {
            assert_eq!(parse_bool(text), expect, "{text}");
        }
    }

    #[test]
    fn flash_attention_is_on_off_or_the_engines_choice() {
        for (text, expect) in [
            ("", FlashAttention::Auto),
            ("1", FlashAttention::On),
            ("true", FlashAttention::On),
            ("0", FlashAttention::Off),
            ("false", FlashAttention::Off),
        ] {
            assert_eq!(parse_flash_attention(text), expect, "{text}");
        }
    }

    #[test]
    fn bytes_have_two_kinds_of_units() {
        assert_eq!(parse_bytes("1024"), Ok(1024));
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_bytes("1.5 GB"), Ok(1_500_000_000));
        assert!(parse_bytes("-1").is_err());
        assert!(parse_bytes("4 apples").is_err());
        assert!(parse_bytes("99999999999TB").is_err());
    }

    #[test]
    fn quotes_and_blanks_around_a_value_go() {
        assert_eq!(trim(" \" 5m ' "), "5m");
    }
}
