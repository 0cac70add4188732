//! How far a server is on its way out.

/// How the server is being asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaving {
    /// Not at all.
    No,
    /// A successor has the socket: no new connections, everything else to its end.
    Replaced,
    /// First signal: no new work, running requests may end.
    Politely,
    /// Second signal: at once.
    AtOnce,
}
