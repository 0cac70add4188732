//! The socket at which a service manager listens to its services: systemd's sd_notify(3), a datagram for each message.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where to send messages.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl NotifySocket {
    /// By the text of `NOTIFY_SOCKET`: a path, or `@` and a name that is no path (Linux). Nobody need listen yet.
    ///
    /// # Errors
    /// The text is neither, or the system has no socket.
    pub fn open(text: &str) -> io::Result<Self> {
        let address = match text.strip_prefix('@') {
            Some(name) => unnamed_on_disk(name)?,
            None if text.starts_with('/') => SocketAddr::from_pathname(text)?,
            None => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        // What the manager has no time to read is lost; the next message comes soon.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Sends one message, `NAME=value` in each line. Never waits.
    ///
    /// # Errors
    /// Nobody listens, or the queue is full.
    pub fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address)?;
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn unnamed_on_disk(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn unnamed_on_disk(_: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_message_arrives_at_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let notify = NotifySocket::open(path.to_str().unwrap()).unwrap();
        assert!(notify.send("READY=1").is_err(), "nobody listens");
        let manager = UnixDatagram::bind(&path).unwrap();
        notify.send("READY=1\nSTATUS=well").unwrap();
        assert_eq!(heard(&manager), "READY=1\nSTATUS=well");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_message_arrives_at_an_abstract_name() {
        let name = format!("ollmlx-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&unnamed_on_disk(&name).unwrap()).unwrap();
        NotifySocket::open(&format!("@{name}")).unwrap().send("STOPPING=1").unwrap();
        assert_eq!(heard(&manager), "STOPPING=1");
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = NotifySocket::open(path.to_str().unwrap()).unwrap();
        (0..1_000_000).find_map(|_| notify.send("WATCHDOG=1").err()).expect("a queue has an end");
        drop(manager);
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in ["", "relative", "vsock:2:9", &format!("/{}", "x".repeat(200))] {
            assert!(NotifySocket::open(text).is_err(), "{text:?}");
        }
    }
}
