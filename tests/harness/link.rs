//! The worker's end of the wire, for workers of the tests that use as little of the kit as can be.

use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use ollmlx_proto::frame::{self, Decoder};
use ollmlx_proto::{FromWorker, Incarnation, ModelId, ToWorker, WorkerHello, WorkerId};

/// The stream of a worker that needs no kit.
#[derive(Clone, Debug)]
pub struct Link(Arc<UnixStream>);

impl Link {
    /// Standard input.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn inherited() -> Self {
        let stream = std::io::stdin().as_fd().try_clone_to_owned().expect("a standard input");
        Self(Arc::new(UnixStream::from(stream)))
    }

    /// Says who it is.
    pub fn hello(&self, versions: Vec<u16>, worker: WorkerId, token: [u8; 32]) {
        let build = "fake".to_owned();
        self.send(&FromWorker::Hello(WorkerHello { versions, build, worker, pid: std::process::id(), token }));
    }

    /// Sends one message.
    ///
    /// # Panics
    /// It is too large.
    pub fn send(&self, message: &FromWorker) {
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).expect("small");
        self.send_bytes(&bytes);
    }

    /// Sends bytes, frame or not. Without a supervisor the process ends.
    pub fn send_bytes(&self, bytes: &[u8]) {
        if (&*self.0).write_all(bytes).is_err() {
            std::process::exit(0);
        }
    }

    /// Reads in a thread of its own; the end of the socket is the end of the process, whatever else it does.
    ///
    /// # Panics
    /// There is no thread, or what comes is no frame.
    #[must_use]
    pub fn listen(&self) -> Receiver<ToWorker> {
        let stream = self.0.clone();
        let (messages, receiver) = channel();
        std::thread::spawn(move || {
            let mut decoder = Decoder::new();
            let mut buffer = [0; 16 * 1024];
            loop {
                match (&*stream).read(&mut buffer) {
                    Ok(0) | Err(_) => std::process::exit(0),
                    Ok(count) => decoder.push(&buffer[..count]),
                }
                while let Some(message) = decoder.next_message().expect("the supervisor speaks the protocol") {
                    if messages.send(message).is_err() {
                        return;
                    }
                }
            }
        });
        receiver
    }
}

/// Who this process is, and its proof.
///
/// # Panics
/// No supervisor started it.
#[must_use]
pub fn identity() -> (WorkerId, [u8; 32]) {
    let variable = |name: &str| std::env::var(name).expect("the supervisor sets it");
    let incarnation = variable("OLLMLX_INCARNATION").parse().expect("a number");
    let worker = WorkerId { model: ModelId(variable("OLLMLX_MODEL")), incarnation: Incarnation(incarnation) };
    (worker, token(&variable("OLLMLX_TOKEN")))
}

fn token(hex: &str) -> [u8; 32] {
    assert_eq!(hex.len(), 64, "64 hexadecimal digits");
    std::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hexadecimal"))
}
