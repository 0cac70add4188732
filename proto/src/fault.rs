//! Faults that a worker commits on purpose, so that everybody can see what the server does about them. Off unless
//! `OLLMLX_FAULT` is set where the server starts; parsed strictly by the server, which passes it on, and by the worker.
//!
//! ```text
//! OLLMLX_FAULT   rules, separated by commas
//! rule           fault[@N][;times=COUNT][;text=WORD]
//!
//! crash@N        SIGSEGV instead of the Nth generated token
//! abort@N        SIGABRT there
//! exit=CODE@N    leaves with this status there
//! garbage@N      sends bytes that are no frame there, and goes on
//! half@N         sends half of the frame there, and leaves
//! hang@N         the Nth step never returns
//! slow=MS        every step takes this much longer
//! abort-load     SIGABRT in the load
//! hang-load      the load never ends
//! leak=MB        MB more memory every second from the load on, really touched
//! balloon=MB@N   MB more memory at once there
//!
//! times=COUNT    only in the first COUNT processes of a model
//! text=WORD      only while a request with this word in its prompt runs; tokens are counted from its arrival
//! ```
//!
//! `@N` is 1 where it is left out. Tokens are counted per process, over all its requests. Pure: what a fault does is
//! done by the worker kit's `fault`.

use std::fmt;

/// Rules of one variable.
pub const FAULT_RULES_MAX: usize = 16;
/// Largest number of megabytes of a balloon, or of a leak in a second.
const MEGABYTES_MAX: u64 = 1 << 20;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGSEGV.
    Crash,
    /// SIGABRT.
    Abort,
    /// This exit status.
    Exit(u8),
    /// Bytes that are no frame.
    Garbage,
    /// Half a frame, then the end.
    Half,
    /// A step that never returns.
    Hang,
    /// Steps that take this much longer, in milliseconds.
    Slow(u64),
    /// SIGABRT in the load.
    AbortLoad,
    /// A load without an end.
    HangLoad,
    /// Megabytes a second.
    Leak(u64),
    /// Megabytes at once.
    Balloon(u64),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// At which token or step, counted from 1.
    pub at: u64,
    /// Only in incarnations up to this one.
    pub times: Option<u32>,
    /// Only while a request with this word runs.
    pub text: Option<String>,
}

/// Why a text is no list of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// No such fault.
    #[error(
        "unknown fault {0:?}; known are crash, abort, exit, garbage, half, hang, slow, abort-load, hang-load, leak and balloon"
    )]
    UnknownFault(String),
    /// No such condition.
    #[error("unknown condition {0:?}; known are times=COUNT and text=WORD")]
    UnknownCondition(String),
    /// A number is missing, superfluous, or out of range.
    #[error("{rule:?}: {what}")]
    Number {
        /// The whole rule.
        rule: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Too many rules.
    #[error("more than {FAULT_RULES_MAX} faults")]
    TooMany,
}

impl Fault {
    /// Whether it applies to this process of a model, counted from 1.
    #[must_use]
    pub fn applies_to(&self, incarnation: u32) -> bool {
        self.times.is_none_or(|times| incarnation <= times)
    }
}

/// Reads the variable's text. Empty is no fault at all.
///
/// # Errors
/// What is not understood.
pub fn parse(text: &str) -> Result<Vec<Fault>, FaultError> {
    let rules: Vec<&str> = text.split(',').map(str::trim).filter(|rule| !rule.is_empty()).collect();
    if rules.len() > FAULT_RULES_MAX {
        return Err(FaultError::TooMany);
    }
    rules.into_iter().map(parse_rule).collect()
}

fn parse_rule(rule: &str) -> Result<Fault, FaultError> {
    let wrong = |what| FaultError::Number { rule: rule.to_owned(), what };
    let mut parts = rule.split(';').map(str::trim);
    let head = parts.next().unwrap_or_default();
    let (fault, at) = match head.split_once('@') {
        Some((fault, at)) => (fault, Some(at)),
        None => (head, None),
    };
    let (name, value) = match fault.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (fault, None),
    };
    let number = |max: u64| {
        let value = value.ok_or_else(|| wrong("a number is missing, as in slow=5"))?;
        value
            .parse::<u64>()
            .ok()
            .filter(|number| *number <= max)
            .ok_or_else(|| wrong("the value is no number in range"))
    };
    let (kind, takes_at) = match name {
        "crash" => (FaultKind::Crash, true),
        "abort" => (FaultKind::Abort, true),
        "exit" => (FaultKind::Exit(u8::try_from(number(255)?).map_err(|_| wrong("a status is at most 255"))?), true),
        "garbage" => (FaultKind::Garbage, true),
        "half" => (FaultKind::Half, true),
        "hang" => (FaultKind::Hang, true),
        "slow" => (FaultKind::Slow(number(3_600_000)?), false),
        "abort-load" => (FaultKind::AbortLoad, false),
        "hang-load" => (FaultKind::HangLoad, false),
        "leak" => (FaultKind::Leak(number(MEGABYTES_MAX)?), false),
        "balloon" => (FaultKind::Balloon(number(MEGABYTES_MAX)?), true),
        _ => return Err(FaultError::UnknownFault(name.to_owned())),
    };
    let valued = matches!(kind, FaultKind::Exit(_) | FaultKind::Slow(_) | FaultKind::Leak(_) | FaultKind::Balloon(_));
    if value.is_some() && !valued {
        return Err(wrong("this fault takes no value"));
    }
    let at = match at {
        None => 1,
        Some(_) if !takes_at => return Err(wrong("this fault takes no @N")),
        Some(at) => at.parse().ok().filter(|at| *at > 0).ok_or_else(|| wrong("@N needs a number from 1 on"))?,
    };
    let mut fault = Fault { kind, at, times: None, text: None };
    for condition in parts {
        match condition.split_once('=') {
            Some(("times", count)) => {
                fault.times = Some(count.parse().map_err(|_| wrong("times needs a number"))?);
            }
            Some(("text", word)) if !word.is_empty() && takes_at => fault.text = Some(word.to_owned()),
            _ => return Err(FaultError::UnknownCondition(condition.to_owned())),
        }
    }
    Ok(fault)
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => f.write_str("crash"),
            Self::Abort => f.write_str("abort"),
            Self::Exit(code) => write!(f, "exit={code}"),
            Self::Garbage => f.write_str("garbage"),
            Self::Half => f.write_str("half"),
            Self::Hang => f.write_str("hang"),
            Self::Slow(ms) => write!(f, "slow={ms}"),
            Self::AbortLoad => f.write_str("abort-load"),
            Self::HangLoad => f.write_str("hang-load"),
            Self::Leak(megabytes) => write!(f, "leak={megabytes}"),
            Self::Balloon(megabytes) => write!(f, "balloon={megabytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_apply_to_the_first_processes_only() {
        let faults = parse(" crash@20;times=1, slow=5 ,exit=7@3;text=doom,,abort-load").unwrap();
        let rule = |kind, at, times, text: Option<&str>| Fault { kind, at, times, text: text.map(str::to_owned) };
        assert_eq!(
            faults,
            [
                rule(FaultKind::Crash, 20, Some(1), None),
                rule(FaultKind::Slow(5), 1, None, None),
                rule(FaultKind::Exit(7), 3, None, Some("doom")),
                rule(FaultKind::AbortLoad, 1, None, None),
            ]
        );
        assert!(faults[0].applies_to(1) && !faults[0].applies_to(2) && faults[1].applies_to(9));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_says_so() {
        for (text, says) in [
            ("crush@1", "unknown fault \"crush\""),
            ("crash@0", "@N needs a number"),
            ("crash@x", "@N needs a number"),
            ("crash=1", "takes no value"),
            ("slow", "a number is missing"),
            ("slow=5@3", "takes no @N"),
            ("exit=256", "no number in range"),
            ("leak=99999999999", "no number in range"),
            ("crash;often", "unknown condition \"often\""),
            ("crash;times=x", "times needs a number"),
            ("slow=1;text=x", "unknown condition"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(parse(&"hang,".repeat(FAULT_RULES_MAX + 1)), Err(FaultError::TooMany));
    }
}
