//! How many connections one client address has open, and whether it may have one more.
//!
//! Loopback is exempt: all programs of this machine share it, and whoever may run programs here has other ways to be in
//! the way. An IPv6 client commonly has a whole /64 to itself, so that counts as one address.
//!
//! Decision: what is too much is closed at once. Rejected: a short 503: a connection that is closed with a request unread
//! is reset, and an answer that is under way is lost with it; reading the request first is the work that is to be spared.
//!
//! A connection holds its [`CountedConnection`] for as long as it lives; nothing else is needed to count it, so none is ever forgotten,
//! and there is no lock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::limits::{CONNECTIONS_PER_ADDRESS_MAX, CROWD_LOG_MS};
use crate::types::Mono;

/// Addresses without a connection are forgotten when so many are known, or twice as many as were left the last time.
const ADDRESSES_KEPT_MIN: usize = 64;

/// Who may have any number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// Programs on this machine.
    Loopback,
    /// Nobody; for tests, which have no other address than that.
    Nobody,
}

/// Whose connections, and whose bodies, are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// One address.
    V4(Ipv4Addr),
    /// The first 64 bits of all of a network.
    V6([u16; 4]),
}

impl Peer {
    /// The one with this address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// A connection's own; it is counted until this is dropped.
#[derive(Debug)]
pub(super) struct CountedConnection(#[expect(dead_code, reason = "it is only held")] Option<Arc<()>>);

/// The open connections of every address. Owned by whoever accepts them.
#[derive(Debug)]
pub struct Crowd {
    exempt: Exempt,
    most: usize,
    open: HashMap<Peer, Arc<()>>,
    prune_at: usize,
    refused: u64,
    told: Option<Mono>,
}

impl Crowd {
    /// Nobody yet; `most` for each address.
    #[must_use]
    pub fn new(exempt: Exempt, most: usize) -> Self {
        Self { exempt, most, open: HashMap::new(), prune_at: ADDRESSES_KEPT_MIN, refused: 0, told: None }
    }

    /// A place for one more of this address, unless it has all that it may have.
    pub(super) fn enter(&mut self, address: IpAddr) -> Option<CountedConnection> {
        if self.exempt == Exempt::Loopback && address.to_canonical().is_loopback() {
            return Some(CountedConnection(None));
        }
        self.prune();
        let counted = self.open.entry(Peer::of(address)).or_default();
        // One is our own.
        (Arc::strong_count(counted) <= self.most).then(|| CountedConnection(Some(Arc::clone(counted))))
    }

    /// Counts one that was turned away. Says how many there were since it last said so, where it is time for that.
    pub(super) fn refuse(&mut self, now: Mono) -> Option<u64> {
        self.refused += 1;
        if self.told.is_some_and(|told| now < told.plus_ms(CROWD_LOG_MS)) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.refused))
    }

    fn prune(&mut self) {
        if self.open.len() >= self.prune_at {
            self.open.retain(|_, counted| Arc::strong_count(counted) > 1);
            self.prune_at = (2 * self.open.len()).max(ADDRESSES_KEPT_MIN);
        }
    }
}

impl Default for Crowd {
    fn default() -> Self {
        Self::new(Exempt::Loopback, CONNECTIONS_PER_ADDRESS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn row_50_one_address_may_have_so_many_and_others_do_not_suffer() {
        let mut crowd = Crowd::default();
        let one = address("192.0.2.1");
        let mut places: Vec<CountedConnection> =
            (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| crowd.enter(one).unwrap()).collect();
        assert!(crowd.enter(one).is_none(), "one past the limit");
        assert!(crowd.enter(address("::ffff:192.0.2.1")).is_none(), "the same address in other clothes");
        assert!(crowd.enter(address("192.0.2.2")).is_some());
        places.pop();
        assert!(crowd.enter(one).is_some(), "its place is free when it goes");
    }

    #[test]
    fn row_50_a_network_of_ipv6_is_one_client() {
        let mut crowd = Crowd::new(Exempt::Loopback, 2);
        let _places = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::1"].map(|text| crowd.enter(address(text)).unwrap());
        assert!(crowd.enter(address("2001:db8:0:1::2")).is_none());
        assert!(crowd.enter(address("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn row_50_programs_of_this_machine_are_exempt() {
        let local = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"];
        let mut crowd = Crowd::new(Exempt::Loopback, 0);
        assert!(local.iter().all(|text| crowd.enter(address(text)).is_some()));
        assert!(crowd.enter(address("10.0.0.1")).is_none());
        let mut crowd = Crowd::new(Exempt::Nobody, 0);
        assert!(local.iter().all(|text| crowd.enter(address(text)).is_none()));
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let mut crowd = Crowd::default();
        let stays = crowd.enter(address("10.1.0.0"));
        for number in 0..10_000_u32 {
            crowd.enter(IpAddr::V4(Ipv4Addr::from_bits(number)));
            assert!(crowd.open.len() <= ADDRESSES_KEPT_MIN);
        }
        assert!(crowd.open.contains_key(&Peer::of(address("10.1.0.0"))));
        drop(stays);
    }

    #[test]
    fn a_flood_is_a_line_now_and_then() {
        let mut crowd = Crowd::default();
        let start = Mono(7);
        assert_eq!(crowd.refuse(start), Some(1));
        for _ in 0..5 {
            assert_eq!(crowd.refuse(start.plus_ms(CROWD_LOG_MS - 1)), None);
        }
        assert_eq!(crowd.refuse(start.plus_ms(CROWD_LOG_MS)), Some(6));
    }
}
