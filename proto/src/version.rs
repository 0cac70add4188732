//! Protocol versions: the worker offers, the supervisor chooses.

/// What this build speaks. 3: `Trim`, and a resumed `Run` says how exactly it is to go on. 4: `Pause` and `Continue`. 5: a
/// `Load` says how attention is computed, and a failure no longer who is to blame, and a `Run` says when it was asked. 6: a `Run`
/// says whose caches it shares; a worker no longer dials, its standard input is the stream. Earlier ones were never released.
pub const PROTOCOL_VERSION: u16 = 6;

/// Every version this build speaks, best last.
pub const PROTOCOL_VERSIONS: &[u16] = &[PROTOCOL_VERSION];

/// The best version that both sides speak.
#[must_use]
pub fn choose(offered: &[u16]) -> Option<u16> {
    PROTOCOL_VERSIONS.iter().rev().copied().find(|version| offered.contains(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_common_version_is_chosen() {
        assert_eq!(choose(&[PROTOCOL_VERSION]), Some(PROTOCOL_VERSION));
        assert_eq!(choose(&[7, PROTOCOL_VERSION, 900]), Some(PROTOCOL_VERSION));
    }

    #[test]
    fn strangers_are_refused() {
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[0, 65_535]), None);
    }
}
