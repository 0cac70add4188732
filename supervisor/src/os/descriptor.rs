//! One open file to another process, through a socket between the two (`SCM_RIGHTS` in unix(7)).
//!
//! Standard input, output and error are the only descriptors that a process can be started with and can take as its own
//! without `unsafe`; whatever else it is to have comes through one of these. `rustix`, which is here for others anyway, gives
//! received descriptors as owned ones; `nix` gives bare numbers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// A descriptor travels with at least one byte.
const COMPANION: &[u8] = b".";

/// Sends a copy of the descriptor; both are the same open file from then on.
///
/// # Errors
/// The system's.
pub fn send(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(COMPANION)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Takes the descriptor that was sent. Blocks until there is something, if the socket does.
///
/// # Errors
/// What came brought none, or the system's.
pub fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut companion = [0; COMPANION.len()];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut companion)], &mut control, RecvFlags::empty())?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let descriptor = received.ok_or_else(|| io::Error::other("no descriptor came"))?;
    // Not every system can receive it so.
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_arrives_is_the_same_open_file_and_no_child_gets_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sent = tempfile::tempfile().unwrap();
        send(&ours, &sent).unwrap();
        let descriptor = receive(&theirs).unwrap();
        assert!(rustix::io::fcntl_getfd(&descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let mut arrived = File::from(descriptor);
        sent.write_all(b"words").unwrap();
        assert_eq!(arrived.stream_position().unwrap(), 5, "they share even the position");
        arrived.rewind().unwrap();
        let mut text = String::new();
        sent.read_to_string(&mut text).unwrap();
        assert_eq!(text, "words");
    }

    #[test]
    fn words_or_an_end_without_a_descriptor_are_an_error() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"ready\n").unwrap();
        assert!(receive(&theirs).is_err());
        drop(ours);
        for _ in 0..6 {
            assert!(receive(&theirs).is_err());
        }
    }
}
