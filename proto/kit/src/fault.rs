//! Commits the faults of `OLLMLX_FAULT` (see [`ollmlx_proto::fault`]) at the places where a real engine would.
//!
//! Without the variable this is one empty list. A fault that strikes "instead of a token" strikes after the step that
//! made it and before anything of that step is sent: as a crash in a computation does.

use std::time::{Duration, Instant};

use ollmlx_proto::fault::{Fault, FaultKind, parse};
use ollmlx_proto::{ContentPart, Output, Request, RequestId, Work};

use crate::tell::tell;

/// The variable.
pub const VARIABLE: &str = "OLLMLX_FAULT";
/// Between two bites of a leak.
const LEAK_INTERVAL: Duration = Duration::from_millis(100);
const MEGABYTE: usize = 1024 * 1024;
/// No frame begins like this: the length is out of range.
pub(crate) const GARBAGE: [u8; 32] = [0xff; 32];

/// What the sender must do to the frames of this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// Replace them by garbage.
    Garbage,
    /// Send half of them and leave.
    Half,
}

/// One rule and how far it has counted.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    counted: u64,
    /// Requests with its word that run.
    suspects: Vec<RequestId>,
}

/// The faults of this process.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Vec<Armed>,
    /// Kept so that it stays taken.
    ballast: Vec<Vec<u8>>,
}

impl Faults {
    /// Those that apply to this process of a model.
    #[must_use]
    pub fn new(faults: Vec<Fault>, incarnation: u32) -> Self {
        let armed = faults.into_iter().filter(|fault| fault.applies_to(incarnation));
        let armed = armed.map(|fault| Armed { fault, counted: 0, suspects: Vec::new() }).collect();
        Self { armed, ballast: Vec::new() }
    }

    /// From the variable's text, where there is one.
    ///
    /// # Errors
    /// What is not understood.
    pub fn from_text(text: Option<&str>, incarnation: u32) -> Result<Self, String> {
        let faults = parse(text.unwrap_or_default()).map_err(|error| format!("{VARIABLE}: {error}"))?;
        Ok(Self::new(faults, incarnation))
    }

    /// At the start of a load.
    pub(crate) fn load(&mut self) {
        for kind in self.armed.iter().map(|armed| armed.fault.kind) {
            match kind {
                FaultKind::AbortLoad => strike(kind, std::process::abort),
                FaultKind::HangLoad => strike(kind, hang),
                _ => {}
            }
        }
    }

    /// At the end of a load.
    pub(crate) fn loaded(&mut self) {
        for armed in &self.armed {
            if let FaultKind::Leak(megabytes) = armed.fault.kind {
                announce(armed.fault.kind);
                // Never joined: it leaks until the process ends.
                let started = std::thread::Builder::new().name("leak".to_owned()).spawn(move || leak(megabytes));
                if let Err(error) = started {
                    tell(format_args!("fault: no thread for the leak: {error}"));
                }
            }
        }
    }

    /// A request came.
    pub(crate) fn request(&mut self, request: &Request) {
        for armed in &mut self.armed {
            if armed.fault.text.as_deref().is_some_and(|word| mentions(request, word)) {
                armed.suspects.push(request.id);
            }
        }
    }

    /// Before a step.
    pub(crate) fn before_step(&mut self) {
        for armed in &mut self.armed {
            match armed.fault.kind {
                FaultKind::Slow(ms) => pause(Duration::from_millis(ms)),
                FaultKind::Hang if armed.counts() => {
                    armed.counted += 1;
                    if armed.counted == armed.fault.at {
                        strike(armed.fault.kind, hang);
                    }
                }
                _ => {}
            }
        }
    }

    /// After a step, with what it said. Does not return where the fault is an end of the process.
    pub(crate) fn after_step(&mut self, outputs: &[(RequestId, Output)]) -> Option<Spoil> {
        let mut spoil = None;
        for armed in &mut self.armed {
            let before = armed.counted;
            // These count steps, and have done so.
            let in_steps = matches!(armed.fault.kind, FaultKind::Hang | FaultKind::Slow(_));
            for (id, output) in outputs {
                // In their order: the last token of a request is still its own.
                if armed.counts() && !in_steps {
                    armed.counted += tokens(output);
                }
                if output.is_terminal() {
                    armed.suspects.retain(|suspect| suspect != id);
                }
            }
            let struck = before < armed.fault.at && armed.counted >= armed.fault.at;
            if !struck || in_steps {
                continue;
            }
            let kind = armed.fault.kind;
            match kind {
                FaultKind::Crash => strike(kind, segfault),
                FaultKind::Abort => strike(kind, std::process::abort),
                FaultKind::Exit(code) => {
                    announce(kind);
                    std::process::exit(i32::from(code));
                }
                FaultKind::Garbage => spoil = Some(Spoil::Garbage),
                FaultKind::Half => spoil = Some(Spoil::Half),
                FaultKind::Balloon(megabytes) => {
                    announce(kind);
                    self.ballast.push(touched(usize::try_from(megabytes).unwrap_or(0).saturating_mul(MEGABYTE)));
                }
                FaultKind::Hang
                | FaultKind::Slow(_)
                | FaultKind::AbortLoad
                | FaultKind::HangLoad
                | FaultKind::Leak(_) => {}
            }
        }
        spoil
    }
}

impl Armed {
    fn counts(&self) -> bool {
        self.fault.text.is_none() || !self.suspects.is_empty()
    }
}

fn tokens(output: &Output) -> u64 {
    match output {
        Output::Delta(delta) => delta.tokens.len() as u64,
        _ => 0,
    }
}

fn mentions(request: &Request, word: &str) -> bool {
    match &request.work {
        Work::Chat(chat) => chat.messages.iter().flat_map(|message| &message.content).any(|part| match part {
            ContentPart::Text(text) => text.contains(word),
            ContentPart::Image(_) => false,
        }),
        Work::Complete(complete) => complete.prompt.contains(word),
        Work::Embed(embed) => embed.inputs.iter().any(|input| input.contains(word)),
    }
}

fn announce(kind: FaultKind) {
    tell(format_args!("fault injected: {kind} ({VARIABLE})"));
}

fn strike(kind: FaultKind, end: fn() -> !) -> ! {
    announce(kind);
    end()
}

/// Rust's own handler of this signal gives it back to the system the first time, so the second one ends the process.
fn segfault() -> ! {
    loop {
        if nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).is_err() {
            std::process::abort();
        }
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Sleeps; an early wake-up counts for nothing.
fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn leak(megabytes_per_second: u64) -> ! {
    let bite = usize::try_from(megabytes_per_second).unwrap_or(0).saturating_mul(MEGABYTE) / 10;
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(touched(bite));
        pause(LEAK_INTERVAL);
    }
}

/// Every page written to, so that the system really gives it.
fn touched(bytes: usize) -> Vec<u8> {
    std::hint::black_box(vec![0xa5; bytes])
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::{Delta, Part};

    use super::*;
    use crate::batch::toy::complete;

    fn delta(id: u64, tokens: usize) -> (RequestId, Output) {
        let delta = Delta { tokens: vec![1; tokens], text: String::new(), part: Part::Content, logprobs: Vec::new() };
        (RequestId(id), Output::Delta(delta))
    }

    fn faults(text: &str, incarnation: u32) -> Faults {
        Faults::from_text(Some(text), incarnation).unwrap()
    }

    #[test]
    fn a_fault_strikes_once_at_its_token() {
        let mut faults = faults("garbage@3", 1);
        assert_eq!(faults.after_step(&[delta(1, 2)]), None);
        assert_eq!(faults.after_step(&[delta(1, 1), delta(2, 1)]), Some(Spoil::Garbage));
        assert_eq!(faults.after_step(&[delta(1, 9)]), None);
    }

    #[test]
    fn later_processes_are_spared() {
        assert_eq!(faults("half@1;times=1", 2).after_step(&[delta(1, 1)]), None);
        assert_eq!(faults("half@1;times=1", 1).after_step(&[delta(1, 1)]), Some(Spoil::Half));
        assert_eq!(Faults::from_text(None, 1).unwrap().after_step(&[delta(1, 1)]), None);
    }

    #[test]
    fn a_word_arms_a_fault_while_its_request_runs() {
        let mut faults = faults("half@2;text=doom", 1);
        faults.request(&complete(1, "peace"));
        assert_eq!(faults.after_step(&[delta(1, 5)]), None);
        faults.request(&complete(2, "the doom"));
        assert_eq!(faults.after_step(&[delta(1, 1)]), None);
        let failed = ollmlx_proto::Failure::new(ollmlx_proto::FailureKind::EngineFailed, "x");
        assert_eq!(faults.after_step(&[(RequestId(2), Output::Failed(failed)), delta(1, 7)]), None);
        faults.request(&complete(3, "doom"));
        let failed = ollmlx_proto::Failure::new(ollmlx_proto::FailureKind::EngineFailed, "x");
        let last = [delta(3, 1), (RequestId(3), Output::Failed(failed))];
        assert_eq!(faults.after_step(&last), Some(Spoil::Half), "its last token counts");
    }

    #[test]
    fn slow_steps_take_their_time_and_nonsense_is_named() {
        let begin = Instant::now();
        faults("slow=20", 1).before_step();
        assert!(begin.elapsed() >= Duration::from_millis(20));
        assert!(Faults::from_text(Some("bang"), 1).unwrap_err().starts_with("OLLMLX_FAULT: unknown fault \"bang\""));
    }
}
