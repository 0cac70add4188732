//! The memory limit as it is written, and what it comes to on a machine. Pure: whoever knows the machine says so.
//!
//! `auto` is a share of what there is: of the memory, or of the control group's limit where that is less. On Linux it is
//! [`AUTO_PERCENT`]. On macOS it is what Metal recommends by default as the working set of a process, by the size of the
//! memory alone, because no safe call asks Metal itself.

use std::fmt;

use crate::limits::MEMORY_LIMIT_BYTES_MIN;

use super::value::{ValueError, parse_bytes};

/// The share of `auto` on Linux: the rest is for the system, the server and everybody else.
pub const AUTO_PERCENT: u64 = 80;
/// The share of `auto` on a Mac with at most [`SMALL_MAC_BYTES`]: Metal recommends two thirds there, three quarters above.
const AUTO_PERCENT_SMALL_MAC: u64 = 66;
const AUTO_PERCENT_LARGE_MAC: u64 = 75;
const SMALL_MAC_BYTES: u64 = 36 << 30;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// A share that leaves room for the system.
    Auto,
    /// None.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
    /// This part of what there is, 1 to 100.
    Percent(u8),
}

/// The machine, as far as a limit depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Physical memory; `None` where the system doesn't say.
    pub physical_bytes: Option<u64>,
    /// What the server's control group may take.
    pub cgroup_bytes: Option<u64>,
    /// Whether this is macOS.
    pub is_mac: bool,
}

/// What a limit comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveLimit {
    /// Bytes; `None` is no limit.
    pub bytes: Option<u64>,
    /// Where that comes from, for the log.
    pub basis: String,
}

impl MemoryLimit {
    /// Reads one.
    ///
    /// # Errors
    /// It is neither `auto`, `none` (or `0`), a number of bytes that something fits, nor a percentage from 1 to 100.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        match text.to_ascii_lowercase().as_str() {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::Unlimited),
            _ => {}
        }
        let invalid = || ValueError::MemoryLimitInvalid(text.to_owned());
        if let Some(number) = text.strip_suffix('%') {
            let percent = number.trim_end().parse::<u8>().map_err(|_| invalid())?;
            return if (1..=100).contains(&percent) { Ok(Self::Percent(percent)) } else { Err(invalid()) };
        }
        if text == "0" {
            return Ok(Self::Unlimited);
        }
        let is_bare = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match parse_bytes(text) {
            Ok(bytes) if bytes >= MEMORY_LIMIT_BYTES_MIN => Ok(Self::Bytes(bytes)),
            Err(_) if !is_bare || text.parse::<f64>().is_err() => Err(invalid()),
            // A part of a byte, or hardly any.
            _ => Err(ValueError::MemoryLimitTooSmall { text: text.to_owned(), hint: meant(text) }),
        }
    }

    /// What it comes to on this machine. A share of an unknown whole is no limit.
    #[must_use]
    pub fn on(self, machine: Machine) -> EffectiveLimit {
        let percent = match self {
            Self::Unlimited => return EffectiveLimit { bytes: None, basis: "none, as set".to_owned() },
            Self::Bytes(bytes) => return EffectiveLimit { bytes: Some(bytes), basis: "as set".to_owned() },
            Self::Percent(percent) => u64::from(percent),
            Self::Auto if !machine.is_mac => AUTO_PERCENT,
            Self::Auto if machine.physical_bytes.is_some_and(|bytes| bytes > SMALL_MAC_BYTES) => AUTO_PERCENT_LARGE_MAC,
            Self::Auto => AUTO_PERCENT_SMALL_MAC,
        };
        let group = machine.cgroup_bytes.filter(|group| machine.physical_bytes.is_none_or(|all| *group < all));
        let (whole, name) = match (group, machine.physical_bytes) {
            (Some(group), _) => (group, "the control group's limit"),
            (None, Some(physical)) => (physical, "physical memory"),
            (None, None) => {
                return EffectiveLimit {
                    bytes: None,
                    basis: "none, since the system doesn't say what there is".to_owned(),
                };
            }
        };
        let bytes = u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        EffectiveLimit { bytes: Some(bytes), basis: format!("{self}: {percent}% of {name} ({whole} bytes)") }
    }
}

/// What may have been meant by a number without unit or percent sign.
fn meant(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(share) if (0.01..1.0).contains(&share) => format!("; did you mean the share {:.0}%?", share * 100.0),
        Ok(number) if (1.0..=100.0).contains(&number) && number.fract() == 0.0 => {
            format!("; did you mean {text}GB, or the share {text}%?")
        }
        Ok(number) if (1.0..=100.0).contains(&number) => format!("; did you mean {text}GB?"),
        Ok(number) if number > 100.0 => format!("; did you mean {text}MB?"),
        _ => "; no limit is none".to_owned(),
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Unlimited => out.write_str("none"),
            Self::Bytes(bytes) => write!(out, "{bytes}"),
            Self::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn bytes_shares_and_words_are_limits() {
        for (text, limit) in [
            ("12GiB", MemoryLimit::Bytes(12 * GIB)),
            ("1.5 GB", MemoryLimit::Bytes(1_500_000_000)),
            ("80%", MemoryLimit::Percent(80)),
            ("100 %", MemoryLimit::Percent(100)),
            ("AUTO", MemoryLimit::Auto),
            ("none", MemoryLimit::Unlimited),
            ("0", MemoryLimit::Unlimited),
        ] {
            assert_eq!(MemoryLimit::parse(text), Ok(limit), "{text}");
        }
        for text in ["0%", "101%", "-5%", "half", "12 apples", "%", "", "80.5%"] {
            let error = MemoryLimit::parse(text).unwrap_err();
            assert_eq!(error, ValueError::MemoryLimitInvalid(text.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_forgotten_unit_or_percent_sign_is_no_limit_and_not_taken_for_one() {
        for (text, told) in [
            ("0.8", "must be at least 1MB, not \"0.8\"; did you mean the share 80%?"),
            (".9", "must be at least 1MB, not \".9\"; did you mean the share 90%?"),
            ("0.5", "must be at least 1MB, not \"0.5\"; did you mean the share 50%?"),
            ("80", "must be at least 1MB, not \"80\"; did you mean 80GB, or the share 80%?"),
            ("1.5", "must be at least 1MB, not \"1.5\"; did you mean 1.5GB?"),
            ("2048", "must be at least 1MB, not \"2048\"; did you mean 2048MB?"),
            ("0.0", "must be at least 1MB, not \"0.0\"; no limit is none"),
            ("0GB", "must be at least 1MB, not \"0GB\"; no limit is none"),
            ("999999", "must be at least 1MB, not \"999999\"; did you mean 999999MB?"),
        ] {
            assert_eq!(MemoryLimit::parse(text).unwrap_err().to_string(), told);
        }
        assert_eq!(MemoryLimit::parse("1000000"), Ok(MemoryLimit::Bytes(1_000_000)));
    }

    #[test]
    fn a_share_is_of_the_control_group_where_that_is_less() {
        let bare = Machine { physical_bytes: Some(100 * GIB), ..Machine::default() };
        assert_eq!(MemoryLimit::Percent(50).on(bare).bytes, Some(50 * GIB));
        assert_eq!(MemoryLimit::Auto.on(bare).bytes, Some(80 * GIB));
        let grouped = Machine { cgroup_bytes: Some(10 * GIB), ..bare };
        assert_eq!(MemoryLimit::Auto.on(grouped).bytes, Some(8 * GIB));
        let basis = MemoryLimit::Auto.on(grouped).basis;
        assert_eq!(basis, format!("auto: 80% of the control group's limit ({} bytes)", 10 * GIB));
        let unlimited_group = Machine { cgroup_bytes: Some(u64::MAX), ..bare };
        assert_eq!(MemoryLimit::Auto.on(unlimited_group), MemoryLimit::Auto.on(bare));
        assert_eq!(MemoryLimit::Bytes(7).on(grouped).bytes, Some(7));
        assert_eq!(MemoryLimit::Unlimited.on(grouped).bytes, None);
        assert_eq!(MemoryLimit::Auto.on(Machine::default()).bytes, None);
    }

    #[test]
    fn auto_on_a_mac_is_what_metal_recommends() {
        let mac = |gib: u64| Machine { physical_bytes: Some(gib * GIB), is_mac: true, ..Machine::default() };
        assert_eq!(MemoryLimit::Auto.on(mac(16)).bytes, Some(16 * GIB * 66 / 100));
        assert_eq!(MemoryLimit::Auto.on(mac(64)).bytes, Some(48 * GIB));
    }
}
