//! A supervisor's side of the socket, over real sockets, with every wait bounded by the stream's read timeout.

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;

use ollmlx_proto::frame::{Decoder, encode};
use ollmlx_proto::{FinishReason, Request};

use super::toy_backend::ToyBackend;
use super::*;
use crate::batch::toy::complete;

const WAIT: Duration = Duration::from_secs(20);

/// A worker on a thread, and the supervisor's end of its socket.
struct Fixture {
    stream: UnixStream,
    decoder: Decoder,
    worker: JoinHandle<Exit>,
    gone: mpsc::Receiver<()>,
}

fn identity() -> Identity {
    Identity { worker: WorkerId { model: ModelId("ab".repeat(32)), incarnation: Incarnation(7) }, token: [0xcd; 32] }
}

fn load(file: &str) -> ToWorker {
    ToWorker::Load(LoadSpec {
        weights: vec![PathBuf::from(file)],
        slots: 2,
        context_tokens: 4096,
        batch_tokens: 64,
        kv_type: "f16".to_owned(),
        ..LoadSpec::default()
    })
}

fn hello() -> ToWorker {
    ToWorker::Hello { version: ollmlx_proto::version::PROTOCOL_VERSION, build: "test".to_owned() }
}

impl Fixture {
    fn new() -> Self {
        Self::faulty(Faults::default())
    }

    fn faulty(faults: Faults) -> Self {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let (tell, gone) = mpsc::sync_channel(1);
        let (reader, writer) = (other.try_clone().unwrap(), other.try_clone().unwrap());
        let worker = std::thread::spawn(move || {
            let exit =
                run::<ToyBackend>(reader, writer, &identity(), faults, move || tell.send(()).unwrap_or_default());
            // A real worker's socket closes with its process.
            other.shutdown(std::net::Shutdown::Both).unwrap_or_default();
            exit
        });
        Self { stream, decoder: Decoder::new(), worker, gone }
    }

    /// Loaded, and ready.
    fn ready(file: &str) -> Self {
        let mut fixture = Self::new();
        assert!(matches!(fixture.next(), FromWorker::Hello(_)));
        fixture.send(&[hello(), load(file)]);
        assert!(matches!(fixture.after_load(), FromWorker::Ready(_)));
        fixture
    }

    fn send(&mut self, messages: &[ToWorker]) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encode(message, &mut bytes).unwrap());
        self.stream.write_all(&bytes).unwrap();
    }

    fn run(&mut self, request: Request) {
        self.send(&[ToWorker::Run(Box::new(request))]);
    }

    fn next(&mut self) -> FromWorker {
        self.try_next().expect("the worker hung up")
    }

    fn try_next(&mut self) -> Option<FromWorker> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            match self.stream.read(&mut buffer).unwrap() {
                0 => return None,
                bytes => self.decoder.push(&buffer[..bytes]),
            }
        }
    }

    fn after_load(&mut self) -> FromWorker {
        let mut told = 0;
        loop {
            match self.next() {
                FromWorker::LoadProgress { total, .. } => {
                    assert_eq!(total, 1000);
                    told += 1;
                }
                other => {
                    assert!((1..100).contains(&told), "{told} times for a load of an instant");
                    return other;
                }
            }
        }
    }

    /// Tokens told of until the end of `id`, and that end.
    fn until_end(&mut self, id: u64) -> (usize, Output) {
        let mut tokens = 0;
        loop {
            match self.next() {
                FromWorker::Output(from, Output::Delta(delta)) if from.0 == id => tokens += delta.tokens.len(),
                FromWorker::Output(from, output) if from.0 == id && output.is_terminal() => return (tokens, output),
                FromWorker::Output(..) | FromWorker::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Hangs up and waits for the worker.
    fn end(self) -> Exit {
        drop(self.stream);
        let exit = self.worker.join().unwrap();
        self.gone.recv_timeout(WAIT).expect("the reader saw the end");
        exit
    }
}

#[test]
fn a_worker_says_who_it_is_loads_answers_and_leaves() {
    let mut fixture = Fixture::new();
    match fixture.next() {
        FromWorker::Hello(hello) => {
            assert_eq!((hello.worker, hello.token), (identity().worker, identity().token));
            assert_eq!(hello.pid, std::process::id());
        }
        other => panic!("{other:?}"),
    }
    fixture.send(&[hello(), load("toy.gguf")]);
    match fixture.after_load() {
        FromWorker::Ready(ready) => {
            assert_eq!((ready.slots, ready.context_tokens, ready.memory.total()), (2, 4096, 1110));
            assert_eq!(ready.device, "toy");
        }
        other => panic!("{other:?}"),
    }
    fixture.run(complete(5, "hello"));
    let (tokens, end) = fixture.until_end(5);
    assert_eq!(tokens, 16);
    assert!(matches!(end, Output::Finished(finished) if finished.reason == FinishReason::Length));
    fixture.send(&[ToWorker::Drain]);
    assert_eq!(fixture.next(), FromWorker::Bye);
    assert_eq!(fixture.end(), Exit::Drained);
}

#[test]
fn a_step_that_takes_long_gives_signs_of_life() {
    let mut fixture = Fixture::ready("long.gguf");
    fixture.run(complete(1, "hello"));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match fixture.next() {
            FromWorker::Progress { steps } => seen.push(steps),
            // The step's own words come after it.
            other => panic!("{other:?} while it computes"),
        }
    }
    assert!(seen[0] < seen[1], "the same number twice is no progress: {seen:?}");
    toy_backend::LONG_STEP_ENDS.store(true, Ordering::Release);
    assert_eq!(fixture.until_end(1).0, 16);
    assert_eq!(fixture.end(), Exit::Gone);
}

fn endless(id: u64) -> Request {
    let mut request = complete(id, "go on");
    request.limits.max_tokens = None;
    request
}

#[test]
fn a_cancel_is_heard_while_another_request_runs() {
    let mut fixture = Fixture::ready("toy.gguf");
    fixture.run(endless(1));
    fixture.run(endless(2));
    fixture.send(&[ToWorker::Cancel(RequestId(1))]);
    assert!(matches!(fixture.until_end(1).1, Output::Finished(finished) if finished.reason == FinishReason::Cancelled));
    fixture.send(&[ToWorker::Cancel(RequestId(99)), ToWorker::Cancel(RequestId(2))]);
    assert!(matches!(fixture.until_end(2).1, Output::Finished(finished) if finished.reason == FinishReason::Cancelled));
    assert_eq!(fixture.end(), Exit::Gone);
}

#[test]
fn row_49_a_paused_request_is_silent_keeps_its_slot_and_goes_on_where_it_was() {
    let mut fixture = Fixture::ready("toy.gguf");
    let mut long = complete(1, "go on");
    long.limits.max_tokens = Some(3_000);
    fixture.run(long);
    let (mut first, mut second) = (0, 0);
    let mut count = |message: FromWorker| {
        match message {
            FromWorker::Output(RequestId(1), Output::Delta(delta)) => first += delta.tokens.len(),
            FromWorker::Output(RequestId(2), Output::Delta(delta)) => second += delta.tokens.len(),
            FromWorker::Output(id, output) if output.is_terminal() => return Some(id.0),
            _ => {}
        }
        None
    };
    assert_eq!(count(fixture.next()), None);
    fixture.send(&[ToWorker::Pause(RequestId(1)), ToWorker::Pause(RequestId(77))]);
    // The slot beside it serves one after the other.
    for _ in 0..3 {
        fixture.run(complete(2, "beside it"));
        let ended = loop {
            if let Some(id) = count(fixture.next()) {
                break id;
            }
        };
        assert_eq!(ended, 2, "the paused one can't have come to its end");
    }
    fixture.send(&[ToWorker::Continue(RequestId(1))]);
    while count(fixture.next()).is_none() {}
    assert_eq!((first, second), (3_000, 3 * 16));
    // One that is paused can be cancelled, and a worker that drains waits for one.
    fixture.run(endless(3));
    fixture.send(&[ToWorker::Pause(RequestId(3)), ToWorker::Drain, ToWorker::Cancel(RequestId(3))]);
    assert!(matches!(fixture.until_end(3).1, Output::Finished(finished) if finished.reason == FinishReason::Cancelled));
    assert_eq!(fixture.next(), FromWorker::Bye);
    assert_eq!(fixture.end(), Exit::Drained);
}

#[test]
fn draining_finishes_what_runs() {
    let mut fixture = Fixture::ready("toy.gguf");
    fixture.run(complete(1, "a"));
    fixture.send(&[ToWorker::Drain]);
    let (tokens, _) = fixture.until_end(1);
    assert_eq!(tokens, 16);
    assert_eq!(fixture.next(), FromWorker::Bye);
    assert_eq!(fixture.end(), Exit::Drained);
}

#[test]
fn a_supervisor_that_goes_is_noticed_in_every_state() {
    assert_eq!(Fixture::new().end(), Exit::Gone, "before the load");
    assert_eq!(Fixture::ready("toy.gguf").end(), Exit::Gone, "when idle");
    let mut fixture = Fixture::ready("toy.gguf");
    fixture.run(endless(1));
    fixture.next();
    assert_eq!(fixture.end(), Exit::Gone, "when busy");
}

#[test]
fn a_load_that_fails_or_panics_is_reported() {
    for (file, kind) in [("missing.gguf", FailureKind::ModelInvalid), ("panic.gguf", FailureKind::LoadFailed)] {
        let mut fixture = Fixture::new();
        fixture.next();
        fixture.send(&[hello(), load(file)]);
        assert!(matches!(fixture.after_load(), FromWorker::LoadFailed(failure) if failure.kind == kind));
        assert_eq!(fixture.try_next(), None, "it leaves by itself");
        assert_eq!(fixture.end(), Exit::LoadFailed);
    }
}

#[test]
fn row_03_a_broken_engine_and_a_panic_end_the_worker() {
    for (file, status) in [("broken.gguf", 4), ("explode.gguf", 101)] {
        let mut fixture = Fixture::ready(file);
        fixture.run(complete(1, "x"));
        while fixture.try_next().is_some() {}
        assert_eq!(fixture.end().status(), status);
    }
}

#[test]
fn what_breaks_the_protocol_ends_the_worker() {
    let strange = ToWorker::Hello { version: 999, build: String::new() };
    for messages in [vec![strange], vec![load("toy.gguf")], vec![hello(), hello()]] {
        let mut fixture = Fixture::new();
        fixture.send(&messages);
        while fixture.try_next().is_some() {}
        assert!(matches!(fixture.end(), Exit::Protocol(_)));
    }
    let mut fixture = Fixture::new();
    fixture.stream.write_all(&[0xff; 16]).unwrap();
    while fixture.try_next().is_some() {}
    assert_eq!(fixture.end(), Exit::Gone, "bytes that are no frame are the end of the stream");
}

#[test]
fn an_answer_that_no_frame_can_hold_fails_its_request() {
    let mut written = Vec::new();
    let mut sender = Sender::new(&mut written);
    sender.queue_output(RequestId(3), Output::Rendered("x".repeat(ollmlx_proto::limits::FRAME_BYTES_MAX)));
    sender.flush().unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&written);
    let message = decoder.next_message::<FromWorker>().unwrap();
    assert!(matches!(message, Some(FromWorker::Output(RequestId(3), Output::Failed(_)))));
}

#[test]
fn the_stream_is_inherited_and_nothing_but_a_socket_will_do() {
    let (given, mut supervisor) = UnixStream::pair().unwrap();
    let (mut reader, mut writer) = inherited(&given).unwrap();
    writer.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    supervisor.read_exact(&mut bytes).unwrap();
    supervisor.write_all(&bytes).unwrap();
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    assert!(inherited(tempfile::tempfile().unwrap()).is_err());
}

#[test]
fn tokens_are_64_hexadecimal_digits() {
    assert_eq!(parse_token(&"0aF9".repeat(16)), Some([[0x0a, 0xf9]; 16].concat().try_into().unwrap()));
    for bad in ["", "zz", &"0".repeat(63), &"0".repeat(65), &"+1".repeat(32), &"é".repeat(32)] {
        assert_eq!(parse_token(bad), None, "{bad}");
    }
}

#[test]
fn a_spoilt_step_sends_what_is_no_frame() {
    let faults = |text: &str| Faults::from_text(Some(text), 7).unwrap();
    for text in ["garbage@2", "half@2"] {
        let mut fixture = Fixture::faulty(faults(text));
        assert!(matches!(fixture.next(), FromWorker::Hello(_)));
        fixture.send(&[hello(), load("toy.gguf")]);
        assert!(matches!(fixture.after_load(), FromWorker::Ready(_)));
        fixture.run(complete(1, "hello"));
        let mut bytes = vec![0; 1 << 16];
        let broken = loop {
            let read = std::io::Read::read(&mut fixture.stream, &mut bytes).unwrap();
            if read == 0 {
                break fixture.decoder.is_mid_frame();
            }
            fixture.decoder.push(&bytes[..read]);
            let error = loop {
                match fixture.decoder.next_message::<FromWorker>() {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            if error {
                break true;
            }
        };
        assert!(broken, "{text}");
    }
}

#[test]
fn trimming_forgets_what_is_kept_for_reuse_and_says_what_is_left() {
    let mut fixture = Fixture::ready("toy.gguf");
    let cached = |fixture: &mut Fixture, id: u64| {
        fixture.run(complete(id, "a long beginning that is worth keeping"));
        let FromWorker::Output(_, Output::Started(started)) = fixture.next() else { panic!("it starts") };
        fixture.until_end(id);
        started.cached_tokens
    };
    assert_eq!(cached(&mut fixture, 1), 0);
    assert!(cached(&mut fixture, 2) > 0);
    fixture.send(&[ToWorker::Trim]);
    assert_eq!(fixture.next(), FromWorker::Memory(MemoryReport { weights: 1000, kv: 100, compute: 1 }));
    assert_eq!(cached(&mut fixture, 3), 0);
    fixture.send(&[ToWorker::Drain]);
    assert_eq!(fixture.next(), FromWorker::Bye);
}

#[test]
fn trimming_does_not_touch_what_runs() {
    let mut fixture = Fixture::ready("toy.gguf");
    fixture.run(complete(1, "one"));
    let (calm, _) = fixture.until_end(1);
    fixture.run(complete(2, "one"));
    fixture.send(&[ToWorker::Trim]);
    let mut tokens = 0;
    loop {
        match fixture.next() {
            FromWorker::Output(_, Output::Delta(delta)) => tokens += delta.tokens.len(),
            FromWorker::Output(_, output) if output.is_terminal() => break,
            _ => {}
        }
    }
    assert_eq!(tokens, calm);
}
