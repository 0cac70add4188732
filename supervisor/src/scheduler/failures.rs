//! The failures that clients get from the scheduler, in words.

use ollmlx_proto::memory::{bytes_allowed, bytes_needed};
use ollmlx_proto::text::without_folders;
use ollmlx_proto::{Failure, FailureKind, Retry};

use crate::types::{Cause, Mono, too_large};

/// Longest line of a worker's standard error that a client gets to see, in characters.
const LAST_LINE_CHARS_MAX: usize = 300;
/// Models that are named to somebody who has waited too long for their memory.
const HOLDERS_NAMED_MAX: usize = 3;

fn last_line(log_tail: &str) -> Option<String> {
    let line = log_tail.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    Some(without_folders(&line).chars().take(LAST_LINE_CHARS_MAX).collect())
}

fn with_tail(mut text: String, log_tail: &str) -> String {
    if let Some(line) = last_line(log_tail) {
        text.push_str(": ");
        text.push_str(&line);
    }
    text
}

/// For a request whose worker died twice while it ran, the second time alone.
pub(super) fn poison(cause: &Cause, log_tail: &str) -> Failure {
    let kind = if *cause == Cause::Silent { FailureKind::WorkerHung } else { FailureKind::WorkerDied };
    let text = format!(
        "the model's worker died twice while working on this request, so it is not tried again: {}",
        cause.words()
    );
    let mut failure = Failure::new(kind, with_tail(text, log_tail)).with_detail(log_tail);
    failure.retry = Retry::Never;
    failure
}

/// For one that was ended for that a short time ago, and comes again.
pub(super) fn known_poison(until: Mono, now: Mono) -> Failure {
    let seconds = until.since(now).div_ceil(1_000_000_000);
    Failure::new(
        FailureKind::WorkerDied,
        format!(
            "the same request has killed the model's worker before and is not tried again for {seconds} s; change it, or \
             run \"ollmlx restart\" with the model's name to try it at once"
        ),
    )
}

/// For a request whose client left before its worker died.
pub(super) fn client_gone() -> Failure {
    Failure::new(FailureKind::Cancelled, "the client left")
}

/// For a request that was running and can't be resumed.
pub(super) fn died_running(cause: &Cause, log_tail: &str) -> Failure {
    let kind = if *cause == Cause::Silent { FailureKind::WorkerHung } else { FailureKind::WorkerDied };
    let text = format!(
        "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check \
         ollama server logs for details: {}",
        cause.words()
    );
    Failure::new(kind, with_tail(text, log_tail)).with_detail(log_tail)
}

/// For a request that waited for a load that failed. `model` is a name, or a path of which the file's name is told.
pub(super) fn load_failed(model: &str, cause: &Cause, log_tail: &str) -> Failure {
    if let Cause::LoadFailed(failure) = cause {
        return failure.clone();
    }
    if let Cause::TooLarge { need, limit, own } = cause {
        return can_never_fit(*need, *limit, *own);
    }
    let kind = if *cause == Cause::LoadStalled { FailureKind::LoadStalled } else { FailureKind::LoadFailed };
    let text = format!(
        "model failed to load, this may be due to resource limitations or an internal error, check ollama server logs \
         for details: {}, {}",
        without_folders(model),
        cause.words()
    );
    Failure::new(kind, with_tail(text, log_tail)).with_detail(log_tail)
}

pub(super) fn quarantined(last_death: Option<&str>, until: Mono, now: Mono) -> Failure {
    let seconds = until.since(now).div_ceil(1_000_000_000);
    let why = last_death.unwrap_or("unknown cause");
    Failure::new(
        FailureKind::Quarantined,
        format!("model failed too often and rests; it is tried again in {seconds} s: {why}"),
    )
}

pub(super) fn queue_full() -> Failure {
    // Ollama's own words, its two spaces included: clients match on them.
    Failure::new(FailureKind::Busy, "server busy, please try again.  maximum pending requests exceeded")
}

pub(super) fn waited_too_long() -> Failure {
    Failure::new(FailureKind::Busy, "server busy, please try again.  the request waited too long for its turn")
}

/// So much was needed, and these held most of what there is, the largest first.
pub(super) fn waited_for_memory(need: u64, limit: u64, held: &[(&str, u64)]) -> Failure {
    let all = held.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let (named, others) = held.split_at(held.len().min(HOLDERS_NAMED_MAX));
    let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    let mut failure = waited_too_long();
    failure.public.push_str(&format!(
        ": model requires more memory ({}) than is available ({} of {}): {}{more}; wait for them to end, or end one with \
         ollmlx stop",
        bytes_needed(need),
        bytes_allowed(limit.saturating_sub(all)),
        bytes_allowed(limit),
        listed(named)
    ));
    failure.with_detail(format!("{need} bytes needed, {limit} bytes allowed, {all} bytes held"))
}

pub(super) fn shutting_down() -> Failure {
    Failure::new(FailureKind::ShuttingDown, "server is shutting down")
}

/// It would fit if those were not kept for ever.
pub(super) fn pinned(need: u64, limit: u64, held: &[(&str, u64)]) -> Failure {
    let all = held.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    Failure::new(
        FailureKind::OutOfMemory,
        format!(
            "model requires more memory ({}) than is available ({} of {}): {} held by models that are kept for ever: {}; \
             end one with keep_alive 0 or ollmlx stop",
            bytes_needed(need),
            bytes_allowed(limit.saturating_sub(all)),
            bytes_allowed(limit),
            bytes_needed(all),
            listed(held)
        ),
    )
    .with_detail(format!("{need} bytes needed, {limit} bytes allowed, {all} bytes pinned"))
}

/// It is loaded, and takes more than this request wants it to.
pub(super) fn loaded_larger(takes: u64, limit: u64) -> Failure {
    Failure::new(
        FailureKind::OutOfMemory,
        format!(
            "model is loaded and takes more memory ({}) than the limit that this request has for it allows ({}); raise \
             ollmlx_memory_limit or leave it out, or unload the model first with keep_alive 0 or ollmlx stop",
            bytes_needed(takes),
            bytes_allowed(limit)
        ),
    )
}

/// As many models as may be loaded are kept for ever.
pub(super) fn places_are_pinned(workers_max: usize, held: &[(&str, u64)]) -> Failure {
    Failure::new(
        FailureKind::OutOfMemory,
        format!(
            "no more than {workers_max} models may be loaded, and as many are kept for ever: {}; end one with keep_alive 0 \
             or ollmlx stop",
            listed(held)
        ),
    )
}

fn listed(held: &[(&str, u64)]) -> String {
    let named = held.iter().map(|(name, bytes)| format!("{name} ({})", bytes_needed(*bytes)));
    named.collect::<Vec<_>>().join(", ")
}

/// It takes more than a limit: `limit` is everybody's, `own` the model's; `u64::MAX` is none.
pub(super) fn can_never_fit(need: u64, limit: u64, own: u64) -> Failure {
    let detail = format!("{need} bytes needed, {} bytes allowed", own.min(limit));
    Failure::new(FailureKind::OutOfMemory, too_large(need, limit, own)).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_told_with_its_signal_and_its_last_words() {
        let failure = died_running(&Cause::Signalled { signal: 9 }, "one\n/build/ggml: out of memory\n\n");
        assert_eq!(failure.kind, FailureKind::WorkerDied);
        assert!(failure.public.ends_with("for details: killed by SIGKILL: ggml: out of memory"), "{failure}");
        assert_eq!(died_running(&Cause::Silent, "").kind, FailureKind::WorkerHung);
        let failure = died_running(&Cause::Silent, "can't map /home/joe/m.gguf");
        assert!(failure.public.ends_with(": can't map m.gguf"), "{failure}");
    }

    #[test]
    fn a_failed_load_speaks_for_itself() {
        let own = Failure::new(FailureKind::ModelInvalid, "bad magic");
        assert_eq!(load_failed("m", &Cause::LoadFailed(own.clone()), "noise"), own);
        let crash = load_failed("/home/me/m.gguf", &Cause::Signalled { signal: 6 }, "/b/x.cpp:1: GGML_ASSERT(a)\n");
        assert!(crash.public.ends_with("for details: m.gguf, killed by SIGABRT: x.cpp:1: GGML_ASSERT(a)"), "{crash}");
    }
}
