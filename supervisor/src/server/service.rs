//! What the service manager that started us is told, and when: that we serve, that we live, that we leave, and which
//! process is the server after an upgrade. Without one (a terminal, launchd) nothing is said.
//!
//! Decision: the old server names its successor (`MAINPID`), before it stops to accept. Rejected: that the successor names
//! itself, since the old one may end it for being late at the very moment, and the manager would take that for the end of the
//! service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::Manager;
use crate::os::clock::instant_now;
use crate::os::notify::NotifySocket;

/// Signs of life in the time after which the manager would act; it advises two.
const SIGNS_IN_TIME: u32 = 4;

/// The line to the service manager, or none. All copies are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Service {
    line: Option<Arc<ManagerLink>>,
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct ManagerLink {
    socket: NotifySocket,
    /// Whether another process is the service now.
    is_past: AtomicBool,
}

impl Service {
    /// To the manager of which the environment told.
    pub(super) fn of(manager: &Manager) -> Self {
        let Some(address) = manager.notify_socket.as_deref() else { return Self::default() };
        match NotifySocket::open(address) {
            Ok(socket) => {
                let line = ManagerLink { socket, is_past: AtomicBool::new(false) };
                Self { line: Some(Arc::new(line)), watchdog: manager.watchdog }
            }
            Err(error) => {
                tracing::warn!(%error, address, "the service manager can't be told anything");
                Self::default()
            }
        }
    }

    /// We serve at this address.
    pub(super) fn ready(&self, address: SocketAddr) {
        self.say(&format!("READY=1\nSTATUS=Listening on {address}"));
    }

    /// We were asked to leave.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// This process is the service from now on, and says the rest itself.
    pub(super) fn hand_over(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
        if let Some(line) = &self.line {
            line.is_past.store(true, Ordering::Relaxed);
        }
    }

    /// To give signs of life with.
    pub(super) fn pulse(&self) -> Pulse {
        let every = self.watchdog.filter(|_| self.line.is_some()).map(|within| within / SIGNS_IN_TIME);
        Pulse { service: self.clone(), every, last: None }
    }

    fn say(&self, message: &str) {
        let Some(line) = self.line.as_ref().filter(|line| !line.is_past.load(Ordering::Relaxed)) else { return };
        if let Err(error) = line.socket.send(message) {
            tracing::warn!(%error, said = message, "the service manager did not hear it");
        }
    }
}

/// Signs of life, as often as the manager wants them.
#[derive(Debug)]
pub(super) struct Pulse {
    service: Service,
    every: Option<Duration>,
    last: Option<Instant>,
}

impl Pulse {
    /// How often [`Self::beat`] must be called; `None` where nobody waits for it.
    pub(super) fn every(&self) -> Option<Duration> {
        self.every
    }

    /// We live. Said if it is time to.
    pub(super) fn beat(&mut self) {
        let Some(every) = self.every else { return };
        let now = instant_now();
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= every) {
            self.last = Some(now);
            self.service.say("WATCHDOG=1");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A manager that hears, and the service's line to it.
    fn line(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Service) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let service = Service::of(&Manager { notify_socket: Some(path.display().to_string()), watchdog });
        (folder, manager, service)
    }

    /// All that was said.
    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        let next =
            || manager.recv(&mut buffer).ok().map(|count| String::from_utf8_lossy(&buffer[..count]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn row_38_the_manager_hears_that_we_serve_and_that_we_leave() {
        let (_folder, manager, service) = line(None);
        service.ready("127.0.0.1:80".parse().unwrap());
        service.stopping();
        assert_eq!(heard(&manager), ["READY=1\nSTATUS=Listening on 127.0.0.1:80", "STOPPING=1"]);
    }

    #[test]
    fn row_38_whoever_has_handed_over_is_silent() {
        let (_folder, manager, service) = line(Some(Duration::from_nanos(4)));
        let mut pulse = service.pulse();
        pulse.beat();
        service.clone().hand_over(4711);
        pulse.beat();
        service.stopping();
        assert_eq!(heard(&manager), ["WATCHDOG=1", "MAINPID=4711"]);
    }

    #[test]
    fn row_35_signs_of_life_come_twice_in_the_time_and_no_oftener_than_need_be() {
        let (_folder, manager, service) = line(Some(Duration::from_secs(400)));
        let mut pulse = service.pulse();
        assert_eq!(pulse.every(), Some(Duration::from_secs(100)));
        pulse.beat();
        pulse.beat();
        assert_eq!(heard(&manager), ["WATCHDOG=1"]);
        assert!(pulse.every().unwrap() * 2 <= Duration::from_secs(400) / 2, "a late one is in time");
        assert_eq!(line(None).2.pulse().every(), None);
    }

    #[test]
    fn nobody_is_told_where_nobody_asked() {
        for notify_socket in [None, Some("nonsense".to_owned())] {
            let service = Service::of(&Manager { notify_socket, watchdog: Some(Duration::from_secs(1)) });
            service.ready("127.0.0.1:80".parse().unwrap());
            service.hand_over(1);
            assert_eq!(service.pulse().every(), None);
        }
    }
}
