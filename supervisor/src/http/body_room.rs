//! The room for bodies: who holds how much of it, and who gives way when it is full.
//!
//! All client addresses have the same share. Whoever needs more room than is left takes it from a client that holds more than
//! its share, with what it asks for counted: of the bodies of those that are still arriving the costliest one ends, by its
//! bytes times its age. So a body that is held back loses to one that has just come, from the same address or another, and
//! nobody within its share loses anything to others. A body that is whole is never ended: it is read within moments.
//!
//! A lock for moments, never across an `await`. Each body is a row that its [`BodyHold`] removes when it is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::crowd::Peer;
use crate::dialect::Rejection;

/// The room, and all that is in it.
#[derive(Debug)]
pub(super) struct BodyRoom {
    bytes_max: usize,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    next: u64,
    bytes: usize,
    held: HashMap<u64, HeldBody>,
}

/// What is held of one body.
#[derive(Debug)]
struct HeldBody {
    client: Peer,
    bytes: usize,
    since: Instant,
    /// Ends it, while it still arrives.
    end: Option<oneshot::Sender<()>>,
}

/// A body's own; what it holds is free when this is dropped.
#[derive(Debug)]
pub(super) struct BodyHold {
    room: Arc<BodyRoom>,
    row: u64,
}

impl BodyRoom {
    /// An empty one.
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, rows: Mutex::default() })
    }

    /// A body of this client begins. What is returned with its hold comes when it has to end.
    pub(super) fn enter(self: &Arc<Self>, client: Peer, now: Instant) -> (BodyHold, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let mut rows = self.rows();
        let row = rows.next;
        rows.next += 1;
        rows.held.insert(row, HeldBody { client, bytes: 0, since: now, end: Some(end) });
        (BodyHold { room: Arc::clone(self), row }, ended)
    }

    /// Bytes of all bodies.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.rows().bytes
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyHold {
    /// Makes it hold so many bytes more.
    ///
    /// # Errors
    /// 503 where there is no room for it, 408 where it was ended.
    pub(super) fn grow(&self, bytes: usize, now: Instant) -> Result<(), Rejection> {
        let mut rows = self.room.rows();
        while rows.bytes + bytes > self.room.bytes_max {
            if !rows.held.contains_key(&self.row) {
                return Err(too_slow());
            }
            let costliest = rows.costliest(self.row, bytes, self.room.bytes_max, now);
            let Some(other) = costliest.filter(|found| *found != self.row) else { return Err(busy()) };
            // Whoever is gone by now needs no word.
            let _gone = rows.remove(other).and_then(|row| row.end).map(|end| end.send(()));
        }
        let row = rows.held.get_mut(&self.row).ok_or_else(too_slow)?;
        row.bytes += bytes;
        rows.bytes += bytes;
        Ok(())
    }

    /// It has arrived.
    ///
    /// # Errors
    /// 408 where it was ended before.
    pub(super) fn complete(&self) -> Result<(), Rejection> {
        self.room.rows().held.get_mut(&self.row).ok_or_else(too_slow)?.end = None;
        Ok(())
    }

    /// Makes it hold so many bytes in all: what was made of it, in its place.
    ///
    /// # Errors
    /// As [`BodyHold::grow`].
    pub(super) fn resize(&self, bytes: usize, now: Instant) -> Result<(), Rejection> {
        let more = {
            let mut rows = self.room.rows();
            let held = rows.held.get(&self.row).map_or(0, |row| row.bytes);
            rows.shrink(self.row, held.saturating_sub(bytes));
            bytes.saturating_sub(held)
        };
        self.grow(more, now)
    }
}

impl Drop for BodyHold {
    fn drop(&mut self) {
        self.room.rows().remove(self.row);
    }
}

impl Rows {
    fn remove(&mut self, row: u64) -> Option<HeldBody> {
        let row = self.held.remove(&row)?;
        self.bytes -= row.bytes;
        Some(row)
    }

    fn shrink(&mut self, row: u64, bytes: usize) {
        if let Some(row) = self.held.get_mut(&row) {
            row.bytes -= bytes;
            self.bytes -= bytes;
        }
    }

    /// The costliest body that still arrives, among those of clients that hold more than their share once this row has
    /// so many bytes more.
    fn costliest(&self, asking: u64, more: usize, bytes_max: usize, now: Instant) -> Option<u64> {
        let mut clients: HashMap<Peer, usize> = HashMap::new();
        for (number, row) in &self.held {
            *clients.entry(row.client).or_default() += row.bytes + if *number == asking { more } else { 0 };
        }
        let share = bytes_max / clients.len().max(1);
        let may_end = |row: &HeldBody| row.end.is_some() && clients.get(&row.client).is_some_and(|held| *held > share);
        let cost = |row: &HeldBody| row.bytes as u128 * now.saturating_duration_since(row.since).as_nanos();
        let candidates = self.held.iter().filter(|(_, row)| may_end(row));
        // Of equals the older one.
        candidates.max_by_key(|(number, row)| (cost(row), std::cmp::Reverse(**number))).map(|(number, _)| *number)
    }
}

fn busy() -> Rejection {
    Rejection::new(503, "server busy, please try again.  too many large requests at once")
}

/// What one is told whose room was needed.
pub(super) fn too_slow() -> Rejection {
    let text = "the request body arrived too slowly while others needed its room; please send it again at once";
    Rejection::new(408, text)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    const MOST: usize = 1_000;

    fn client(number: u8) -> Peer {
        Peer::of(IpAddr::from([192, 0, 2, number]))
    }

    fn later(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    type Entered = (BodyHold, oneshot::Receiver<()>);

    fn with(room: &Arc<BodyRoom>, number: u8, bytes: usize, now: Instant) -> Entered {
        let (hold, ended) = room.enter(client(number), now);
        hold.grow(bytes, now).unwrap();
        (hold, ended)
    }

    fn has_ended(entered: &mut Entered) -> bool {
        entered.1.try_recv().is_ok()
    }

    #[test]
    fn row_52_held_bodies_give_way_to_another_address_and_to_a_quick_one_of_their_own() {
        for asking in [2, 1] {
            let (room, start) = (BodyRoom::new(MOST), Instant::now());
            let mut slow = [with(&room, 1, 600, start), with(&room, 1, 399, later(start, 1))];
            let now = later(start, 5);
            let quick = with(&room, asking, 2, now);
            quick.0.complete().unwrap();
            assert!(has_ended(&mut slow[0]) && !has_ended(&mut slow[1]), "{asking}");
            assert_eq!(slow[0].0.grow(1, now).unwrap_err().status, 408);
            assert_eq!(slow[0].0.complete().unwrap_err().status, 408);
            slow[1].0.grow(1, now).unwrap();
            assert_eq!(room.rows().bytes, 402);
            drop((slow, quick));
            let rows = room.rows();
            assert_eq!((rows.bytes, rows.held.len()), (0, 0));
        }
    }

    #[test]
    fn row_52_many_bodies_of_one_address_leave_others_their_share() {
        let (room, start) = (BodyRoom::new(MOST), Instant::now());
        let mut crowd: Vec<Entered> = (0..100).map(|_| with(&room, 1, 10, start)).collect();
        let others: Vec<Entered> = (0..50).map(|second| with(&room, 2, 10, later(start, second))).collect();
        assert_eq!(crowd.iter_mut().filter_map(|one| has_ended(one).then_some(())).count(), 50);
        // Both have their half: whoever wants more takes it from itself.
        let more = with(&room, 2, 10, later(start, 60));
        let left = others.into_iter().map(|mut one| has_ended(&mut one)).filter(|ended| *ended).count();
        assert_eq!(left, 1);
        drop(more);
    }

    #[test]
    fn a_body_that_costs_most_itself_is_refused_and_one_that_is_whole_is_never_ended() {
        let (room, start) = (BodyRoom::new(MOST), Instant::now());
        let slow = with(&room, 1, 900, start);
        let mut young = with(&room, 1, 100, later(start, 9));
        assert_eq!(slow.0.grow(1, later(start, 10)).unwrap_err().status, 503);
        assert!(!has_ended(&mut young));
        slow.0.complete().unwrap();
        young.0.complete().unwrap();
        let (late, _ended) = room.enter(client(2), later(start, 10));
        assert_eq!(late.grow(1, later(start, 11)).unwrap_err().status, 503);
        drop(slow);
        late.grow(900, later(start, 11)).unwrap();
    }

    #[test]
    fn what_is_made_of_a_body_takes_its_place() {
        let (room, now) = (BodyRoom::new(MOST), Instant::now());
        let (hold, _ended) = with(&room, 1, 600, now);
        hold.complete().unwrap();
        hold.resize(100, now).unwrap();
        assert_eq!(room.rows().bytes, 100);
        hold.resize(MOST, now).unwrap();
        assert_eq!(room.rows().bytes, MOST);
        assert_eq!(hold.resize(MOST + 1, now).unwrap_err().status, 503);
        drop(hold);
        assert_eq!(room.rows().bytes, 0);
    }
}
