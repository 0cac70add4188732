//! A worker whose supervisor is gone in the most unlucky way.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::toy::Weights;
use ollmlx_proto::frame::encode;
use ollmlx_proto::{LoadSpec, ToWorker};

use crate::house::PATIENCE;

/// Frames that nobody has read make the end of the socket an error, nobody reads the worker's words of it any more, and its
/// engine hangs. It ends all the same.
#[test]
fn row_33_no_worker_outlives_a_supervisor_that_dies_with_frames_unread() {
    let folder = tempfile::Builder::new().prefix("oo").tempdir_in("/tmp").unwrap();
    let weights = folder.path().join("toy.gguf");
    Weights { template: "~".to_owned(), answer: None }.write(&weights);
    let (mut link, theirs) = UnixStream::pair().unwrap();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_toy-worker"))
        .env("OLLMLX_MODEL", "ab".repeat(32))
        .env("OLLMLX_INCARNATION", "1")
        .env("OLLMLX_TOKEN", "cd".repeat(32))
        .env("OLLMLX_FAULT", "hang-load")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut frames = Vec::new();
    let load = LoadSpec { weights: vec![weights], slots: 1, context_tokens: 64, ..LoadSpec::default() };
    let hello = ToWorker::Hello { version: ollmlx_proto::version::PROTOCOL_VERSION, build: "test".to_owned() };
    for message in [hello, ToWorker::Load(load)] {
        encode(&message, &mut frames).unwrap();
    }
    std::io::Write::write_all(&mut link, &frames).unwrap();
    // It hangs in its load as soon as it has said so.
    let mut said = std::io::BufReader::new(worker.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("fault injected"), "{line}");
    drop(said);
    // Its hello was never read.
    drop(link);
    let end = Instant::now() + PATIENCE;
    while worker.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it is an orphan");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
