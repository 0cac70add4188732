//! A worker without a model: it speaks the protocol and does whatever the script says that it finds where the weights
//! should be. `fake-worker supervise FOLDER SCRIPT` is instead a supervisor with one running request, to be killed.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a worker says is kept")]

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use harness::link::Link;
use harness::script::{Hello, Load, Misfortune, Script};
use ollmlx_proto::{
    Delta, Embeddings, Failure, FailureKind, FinishReason, Finished, FromWorker, LoadSpec, MemoryReport, Output, Part,
    Ready, Request, RequestId, SlotId, Started, Timings, ToWorker, Usage, Work, version,
};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, folder, script] = arguments.as_slice()
        && verb == "supervise"
    {
        harness::supervise(PathBuf::from(folder), PathBuf::from(script));
        return;
    }
    // Blocked here, so in every thread: as good as ignored, and needs no unsafe call. Unblocked once the script is known.
    let term = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGTERM);
    term.thread_block().expect("own mask");
    let link = Link::inherited();
    let (worker, token) = harness::link::identity();
    let incarnation = worker.incarnation.0;
    // The model id names the script until the load does: a misfortune may come before it.
    let early = harness::script::early(&worker.model);
    match early {
        Some(Hello::Never) => hang(),
        Some(Hello::WrongVersion) => link.hello(vec![9999], worker.clone(), token),
        Some(Hello::WrongToken) => link.hello(version::PROTOCOL_VERSIONS.to_vec(), worker.clone(), [0; 32]),
        Some(Hello::Good) | None => link.hello(version::PROTOCOL_VERSIONS.to_vec(), worker.clone(), token),
    }
    let messages = link.listen();
    let spec = loop {
        match messages.recv() {
            Ok(ToWorker::Load(spec)) => break spec,
            Ok(_) => {}
            Err(_) => return,
        }
    };
    let script = Script::read(&spec.weights[0]);
    if !script.ignore_term {
        term.thread_unblock().expect("own mask");
    }
    let held = script.hold.as_ref().map(|path| std::os::unix::net::UnixStream::connect(path).expect("a listener"));
    load(&link, &script, &spec, incarnation);
    serve(&link, &messages, &script, incarnation);
    drop(held);
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn load(link: &Link, script: &Script, spec: &LoadSpec, incarnation: u32) {
    let LoadSpec { slots, context_tokens, ref cpu_level, .. } = *spec;
    for done in 0..script.progress {
        std::thread::sleep(Duration::from_millis(script.progress_interval_ms));
        link.send(&FromWorker::LoadProgress { done, total: script.progress });
    }
    std::thread::sleep(Duration::from_millis(script.load_delay_ms));
    if script.is_unlucky(incarnation) {
        match &script.load {
            Load::Good => {}
            Load::Crash => {
                eprintln!("fake: cannot load");
                std::process::exit(9);
            }
            Load::Hang => hang(),
            Load::Illegal if cpu_level == "x64" => {}
            Load::Illegal => nix::sys::signal::raise(nix::sys::signal::Signal::SIGILL).expect("own process"),
            Load::Refuse => {
                link.send(&FromWorker::LoadFailed(Failure::new(FailureKind::ModelInvalid, "fake: bad magic")));
                std::process::exit(1);
            }
        }
    }
    std::mem::forget(touched(script.leak_bytes));
    let memory = MemoryReport { weights: 1, kv: 0, compute: 0 };
    let device = "fake".to_owned();
    link.send(&FromWorker::Ready(Ready { slots, context_tokens, memory, device, accelerator_bytes: 0 }));
}

/// Memory that the system really has to give.
fn touched(bytes: usize) -> Vec<u8> {
    std::hint::black_box(vec![1_u8; bytes])
}

struct Run {
    id: RequestId,
    index: u32,
    end: u32,
    /// Parts of its prompt to come.
    prefill: u32,
    /// Its prompt has the word in it.
    poisonous: bool,
    paused: bool,
}

fn serve(link: &Link, messages: &Receiver<ToWorker>, script: &Script, incarnation: u32) {
    let mut runs: Vec<Run> = Vec::new();
    let mut draining = false;
    let mut cache = touched(script.cache_bytes);
    loop {
        let message = if runs.iter().all(|run| run.paused) {
            messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            messages.recv_timeout(Duration::from_millis(script.interval_ms))
        };
        match message {
            Ok(ToWorker::Run(request)) => match &request.work {
                Work::Embed(embed) => embed_all(link, script, incarnation, request.id, embed.inputs.len()),
                _ => runs.push(begin(link, script, &request)),
            },
            Ok(ToWorker::Cancel(id)) if !script.ignore_cancel => {
                if let Some(place) = runs.iter().position(|run| run.id == id) {
                    finish(link, &runs.swap_remove(place), FinishReason::Cancelled);
                }
            }
            Ok(ToWorker::Pause(id)) if !script.ignore_pause => pause(&mut runs, id, true),
            Ok(ToWorker::Continue(id)) => pause(&mut runs, id, false),
            Ok(ToWorker::Trim) => {
                cache.clear();
                cache.shrink_to_fit();
                link.send(&FromWorker::Memory(MemoryReport { weights: 1, kv: 0, compute: cache.len() as u64 }));
            }
            Ok(ToWorker::Drain) if !script.ignore_drain => draining = true,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => step(link, &mut runs, script, incarnation),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if draining && runs.is_empty() {
            return link.send(&FromWorker::Bye);
        }
    }
}

fn begin(link: &Link, script: &Script, request: &Request) -> Run {
    let started = Started { slot: SlotId(0), prompt_tokens: 3, cached_tokens: 0 };
    link.send(&FromWorker::Output(request.id, Output::Started(started)));
    let index = u32::try_from(request.progress.produced.len()).expect("few");
    assert!(
        request.progress.produced.iter().copied().eq(0..index),
        "what was produced comes back: {:?}",
        request.progress.produced
    );
    let poisonous = format!("{:?}", request.work).contains("poison");
    Run { id: request.id, index, end: script.tokens, prefill: script.prefill, poisonous, paused: false }
}

fn pause(runs: &mut [Run], id: RequestId, paused: bool) {
    for run in runs.iter_mut().filter(|run| run.id == id) {
        run.paused = paused;
    }
}

fn embed_all(link: &Link, script: &Script, incarnation: u32, id: RequestId, inputs: usize) {
    if let Some((_, misfortune)) = script.misfortune.filter(|_| script.is_unlucky(incarnation)) {
        befall(link, script, misfortune, id);
    }
    let vectors = vec![vec![1.0]; inputs];
    let embedded = Embeddings { vectors, prompt_tokens: 3, timings: Timings::default() };
    link.send(&FromWorker::Output(id, Output::Embedded(embedded)));
}

fn finish(link: &Link, run: &Run, reason: FinishReason) {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: run.index };
    let timings = Timings::default();
    let finished = Finished { reason, stop_string: None, usage, timings, context: Vec::new() };
    link.send(&FromWorker::Output(run.id, Output::Finished(finished)));
}

/// One token for each that runs.
fn step(link: &Link, runs: &mut Vec<Run>, script: &Script, incarnation: u32) {
    runs.retain_mut(|run| {
        if run.paused {
            return true;
        }
        if run.prefill > 0 {
            run.prefill -= 1;
            let done = script.prefill - run.prefill;
            link.send(&FromWorker::Output(run.id, Output::Prefill { done, total: script.prefill }));
            return true;
        }
        if let Some((after, misfortune)) = script.misfortune
            && script.is_unlucky(incarnation)
            && run.index >= after
        {
            befall(link, script, misfortune, run.id);
            if misfortune == Misfortune::Fail {
                return false;
            }
        }
        if let Some((after, misfortune)) = script.poison
            && run.poisonous
            && run.index >= after
        {
            befall(link, script, misfortune, run.id);
            if misfortune == Misfortune::Fail {
                return false;
            }
        }
        if script.is_unlucky(incarnation) {
            std::mem::forget(touched(script.leak_bytes_per_token));
            let blown = script.balloon.filter(|(token, _)| *token == run.index);
            std::mem::forget(touched(blown.map_or(0, |(_, bytes)| bytes)));
        }
        if run.index >= script.end_of(run.end) {
            finish(link, run, FinishReason::Stop);
            return false;
        }
        let text = format!("{}{}", run.index, "x".repeat(script.padding_bytes));
        let delta = Delta { tokens: vec![run.index], text, part: Part::Content, logprobs: Vec::new() };
        link.send(&FromWorker::Output(run.id, Output::Delta(delta)));
        run.index += 1;
        true
    });
}

fn befall(link: &Link, script: &Script, misfortune: Misfortune, id: RequestId) {
    match misfortune {
        Misfortune::Abort => {
            eprintln!("fake: assertion failed");
            std::process::abort();
        }
        Misfortune::Exit => std::process::exit(3),
        Misfortune::Kill => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("own process");
        }
        Misfortune::Segfault => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).expect("own process");
        }
        Misfortune::Hang => hang(),
        Misfortune::Spin => loop {
            std::hint::spin_loop();
        },
        Misfortune::Beat => loop {
            link.send(&FromWorker::Progress { steps: 1 });
            std::thread::sleep(Duration::from_millis(20));
        },
        Misfortune::Fail => {
            let failure = Failure::new(FailureKind::EngineFailed, "fake: device lost");
            link.send(&FromWorker::Output(id, Output::Failed(failure)));
        }
        Misfortune::Orphan => {
            let hold = script.hold.as_ref().expect("somebody who looks for the child");
            let held = std::os::unix::net::UnixStream::connect(hold).expect("a listener");
            let mut sleep = std::process::Command::new("sleep");
            sleep.arg("600").stdin(std::os::fd::OwnedFd::from(held)).spawn().expect("there is a sleep");
            std::process::exit(3);
        }
        Misfortune::Flood => {
            for line in 0..50_000 {
                println!("fake: noise {line}");
            }
            std::process::exit(3);
        }
        Misfortune::Garbage => link.send_bytes(&[20, 0, 0, 0, 255, 1, 2, 3]),
        Misfortune::Oversize => link.send_bytes(&[255; 16]),
        Misfortune::HalfFrame => {
            link.send_bytes(&[200, 0, 0, 0, 68]);
            hang();
        }
        Misfortune::Stray => stray(link, id, 1),
        Misfortune::Strays => stray(link, id, 1_000),
    }
}

fn stray(link: &Link, id: RequestId, count: u64) {
    for other in 1..=count {
        let stray = RequestId(id.0 + 1_000_000 + other);
        link.send(&FromWorker::Output(stray, Output::Prefill { done: 1, total: 2 }));
    }
}
