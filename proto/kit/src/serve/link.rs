//! Both directions of the socket: frames in on a thread of their own, frames out in batches.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ollmlx_proto::frame::{Decoder, encode};
use ollmlx_proto::{Failure, FailureKind, FromWorker, Output, RequestId, ToWorker};

use crate::fault::{GARBAGE, Spoil};
use crate::limits::{BUFFER_BYTES_KEPT, INBOX_LEN_MAX, READ_BYTES, WRITE_TIMEOUT};
use crate::tell::tell;

/// The supervisor is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor is gone")]
pub(super) struct Gone;

/// One end of a socket, shared by the two threads.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<UnixStream>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// The stream to the supervisor, which whoever started this process has dialled: a worker can't. Returns the end to read from and
/// the end to write to. An error where it is no socket.
pub(super) fn inherited(stream: impl AsFd) -> io::Result<(Shared, Shared)> {
    let stream = UnixStream::from(stream.as_fd().try_clone_to_owned()?);
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let shared = Shared(Arc::new(stream));
    Ok((shared.clone(), shared))
}

/// Starts the thread that reads. Its end, `gone`, is reached whatever happens; then the channel closes.
pub(super) fn read_in_background(
    mut reader: impl Read + Send + 'static,
    gone: impl FnOnce() + Send + 'static,
) -> io::Result<Receiver<ToWorker>> {
    let (inbox, messages) = sync_channel(INBOX_LEN_MAX);
    // Never joined: it ends with the process, or with the stream.
    std::thread::Builder::new().name("socket".to_owned()).spawn(move || {
        // Nothing here may panic, standard error be gone or not: a process that missed its end would be an orphan.
        if let Err(error) = catch_unwind(AssertUnwindSafe(|| read(&mut reader, &inbox))).unwrap_or(Ok(())) {
            tell(format_args!("socket closed: {error}"));
        }
        // The engine's thread learns of it first.
        drop(inbox);
        gone();
    })?;
    Ok(messages)
}

fn read(reader: &mut impl Read, inbox: &SyncSender<ToWorker>) -> io::Result<()> {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => decoder.push(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        while let Some(message) = decoder.next_message().map_err(io::Error::other)? {
            if inbox.send(message).is_err() {
                return Ok(());
            }
        }
    }
}

/// Frames on their way out.
pub(super) struct Sender<W> {
    writer: W,
    buffer: Vec<u8>,
}

impl<W: Write> Sender<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::new() }
    }

    /// Puts a message into the next write.
    pub(super) fn queue(&mut self, message: &FromWorker) {
        if let Err(error) = encode(message, &mut self.buffer) {
            // Only outputs can be that large, and those go another way.
            tell(format_args!("a message was dropped: {error}"));
        }
    }

    /// The same for an output; one that no frame can hold becomes the failure of its request.
    pub(super) fn queue_output(&mut self, id: RequestId, output: Output) {
        if let Err(error) = encode(&FromWorker::Output(id, output), &mut self.buffer) {
            let failure = Failure::new(FailureKind::Internal, "the answer is too large").with_detail(error.to_string());
            self.queue(&FromWorker::Output(id, Output::Failed(failure)));
        }
    }

    /// Writes everything at once.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.writer.write_all(&self.buffer).and_then(|()| self.writer.flush());
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        written.map_err(|error| {
            tell(format_args!("supervisor can't be written to: {error}"));
            Gone
        })
    }

    /// Injects a fault into what waits: see [`crate::fault`].
    pub(super) fn spoil(&mut self, spoil: Spoil) -> Result<(), Gone> {
        tell(format_args!("fault injected: {spoil:?} on the socket ({})", crate::fault::VARIABLE));
        match spoil {
            Spoil::Garbage => self.buffer = GARBAGE.to_vec(),
            Spoil::Half => self.buffer.truncate(self.buffer.len().div_ceil(2)),
        }
        self.flush()
    }

    /// Writes one message now.
    pub(super) fn send(&mut self, message: &FromWorker) -> Result<(), Gone> {
        self.queue(message);
        self.flush()
    }
}
