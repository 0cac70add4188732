//! What a server that is replaced still holds of the memory, told to its successor.
//!
//! The line between the two over which the lock came and `ready` went (see [`super::successor`]) stays open afterwards: the old
//! server writes `held BYTES` there whenever what it has set aside changes, and the end of the line is the end of the old
//! server and of its workers. The new one has the limit less that. A successor of another make closes the line; a
//! predecessor of another make closes it when it has heard `ready`, and then nothing is known to be held.
//!
//! As long as the old server may still start a model, it tells that it holds everything: before its successor serves, for
//! [`UPGRADE_LINGER_MS`] after that, since open connections may bring a request, and while a request waits for a model
//! that has no process or one that goes. It passes on what its own predecessor tells. So a load in the new one begins a
//! second after the hand-over at the earliest.
//!
//! Decision: the old server tells, by its ledger. Rejected: the successor looks for the other one's workers and measures
//! them, which says nothing of what they were promised, and needs a walk over the processes on each system.
//!
//! Limit: a request that takes longer than that second to arrive at the old server may start a model there beside
//! those of the new one, and so may one in the line of a model at work that needs it loaded anew. Only memory is divided;
//! either server may have as many models as is set.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{LAST_WORDS_BYTES_MAX, UPGRADE_DRAIN_MS, UPGRADE_LINGER_MS};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

use super::leaving::Leaving;
use crate::driver::Handle;
use crate::types::{Snapshot, WorkerView};

/// All there is.
pub(super) const EVERYTHING: u64 = u64::MAX;

/// What a successor says on the line once it serves.
pub(super) const READY: &str = "ready\n";
const WORD: &str = "held ";
/// The time of an old server, and of one that it had replaced itself.
const PREDECESSOR_MAX: Duration = Duration::from_millis(2 * UPGRADE_DRAIN_MS);

/// What this server holds, where nothing more is to come to it, and what it was told that is held elsewhere.
fn held(snapshot: &Snapshot) -> u64 {
    let starts = |view: &WorkerView| view.pid.is_none() || matches!(view.state, "draining" | "exiting");
    let wanted = snapshot.workers.iter().any(|view| view.queued > 0 && starts(view));
    if wanted { EVERYTHING } else { snapshot.reserved_bytes.saturating_add(snapshot.elsewhere_bytes) }
}

/// Resolves when no more requests come to this server. Cancel-safe.
pub(super) async fn settled(mut leaving: watch::Receiver<Leaving>) {
    let _gone = leaving.wait_for(|leaving| *leaving > Leaving::No).await.is_err();
    tokio::time::sleep(Duration::from_millis(UPGRADE_LINGER_MS)).await;
}

/// Follows what this server holds until its driver is gone.
pub(super) async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    settled: impl Future<Output = ()>,
    told: watch::Sender<u64>,
) {
    let mut settled = std::pin::pin!(settled);
    let mut may_come = true;
    loop {
        tokio::select! {
            () = &mut settled, if may_come => may_come = false,
            changed = snapshots.changed() => if changed.is_err() {
                return;
            }
        }
        let now = if may_come { EVERYTHING } else { held(&snapshots.borrow_and_update()) };
        told.send_if_modified(|before| std::mem::replace(before, now) != now);
    }
}

/// Tells a successor, until it closes the line or this server has nothing more.
pub(super) async fn tell(mut line: OwnedWriteHalf, mut held: watch::Receiver<u64>) {
    loop {
        let text = format!("{WORD}{}\n", *held.borrow_and_update());
        if line.write_all(text.as_bytes()).await.is_err() || held.changed().await.is_err() {
            return;
        }
    }
}

/// The line to the predecessor; `None` where standard output is none.
pub(super) fn line() -> Option<UnixStream> {
    let line = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?);
    line.peer_addr().is_ok().then_some(line)
}

/// Tells the driver what a predecessor holds, until that is gone.
pub(super) async fn heed(line: UnixStream, handle: Handle) {
    hear(line, PREDECESSOR_MAX, |bytes| handle.elsewhere_held(bytes)).await;
    handle.elsewhere_held(0).await;
}

/// Takes what a predecessor says until that is gone, or for so long at most: one that is stopped or hangs ends no line; any
/// other has ended by then, and its own predecessor as well.
async fn hear<Told: Future<Output = ()>>(line: UnixStream, most: Duration, mut take: impl FnMut(u64) -> Told) {
    let opened = line.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(line));
    // A line that can't be listened to says nothing.
    let Ok(line) = opened else { return };
    let mut line = BufReader::new(line);
    let told = async {
        while let Some(bytes) = next(&mut line).await {
            take(bytes).await;
        }
    };
    let _ended = tokio::time::timeout(most, told).await;
}

/// The next number, or `None` at the end. Whatever makes no sense is all there is.
async fn next(line: &mut BufReader<tokio::net::UnixStream>) -> Option<u64> {
    let mut text = String::new();
    let read = line.take(LAST_WORDS_BYTES_MAX).read_line(&mut text).await;
    if read.ok()? == 0 {
        return None;
    }
    Some(text.strip_prefix(WORD).and_then(|number| number.trim_end().parse().ok()).unwrap_or(EVERYTHING))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (OwnedWriteHalf, BufReader<tokio::net::UnixStream>) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (ours.into_split().1, BufReader::new(theirs))
    }

    #[tokio::test]
    async fn what_is_held_is_told_whenever_it_changes_and_ends_with_the_server() {
        let (ours, mut theirs) = pair().await;
        let (held, told) = watch::channel(EVERYTHING);
        let telling = tokio::spawn(tell(ours, told));
        assert_eq!(next(&mut theirs).await, Some(EVERYTHING));
        held.send_replace(7);
        assert_eq!(next(&mut theirs).await, Some(7));
        drop(held);
        assert_eq!(next(&mut theirs).await, None);
        telling.await.unwrap();
    }

    #[tokio::test]
    async fn rubbish_is_everything_and_a_successor_that_does_not_listen_ends_it() {
        let (mut ours, mut theirs) = pair().await;
        ours.write_all(b"gone\nheld -1\nheld 5\n").await.unwrap();
        let heard = [next(&mut theirs).await, next(&mut theirs).await, next(&mut theirs).await];
        assert_eq!(heard, [Some(EVERYTHING), Some(EVERYTHING), Some(5)]);
        drop(theirs);
        tell(ours, watch::channel(1).1).await;
    }

    #[tokio::test]
    async fn one_that_is_stopped_or_hangs_is_heard_and_not_waited_for_without_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut theirs, b"held 5\n").unwrap();
        let (heard, mut last) = watch::channel(0);
        let hearing = hear(ours, Duration::from_millis(1_500), |bytes| {
            heard.send_replace(bytes);
            async {}
        });
        hearing.await;
        assert_eq!(*last.borrow_and_update(), 5);
        // It is still there.
        drop(theirs);
    }

    #[tokio::test]
    async fn everything_is_held_until_nothing_more_can_come() {
        let (snapshots, snapshots_out) =
            watch::channel(Arc::new(Snapshot { reserved_bytes: 5, ..Snapshot::default() }));
        let (settle, settled) = tokio::sync::oneshot::channel::<()>();
        let (held, mut told) = watch::channel(EVERYTHING);
        let settled = async { drop(settled.await) };
        let following = tokio::spawn(follow(snapshots_out, settled, held));
        snapshots.send_modify(|snapshot| Arc::make_mut(snapshot).reserved_bytes = 6);
        drop(settle);
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), 6);
        // What an earlier one still holds is passed on.
        snapshots.send_replace(Arc::new(Snapshot { elsewhere_bytes: 3, ..Snapshot::default() }));
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), 3);
        snapshots.send_modify(|snapshot| Arc::make_mut(snapshot).elsewhere_bytes = 0);
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), 0);
        drop(snapshots);
        following.await.unwrap();
        assert!(told.changed().await.is_err());
    }
}
