//! What the fuzz targets promise, for every file of `fuzz/corpus` and for each of them with a few thousand random changes.
//! Without a sanitizer and without coverage: an ordinary test run shows what a change broke in plain sight, and
//! `./dev fuzz` looks for what nobody has thought of. A failure prints the bytes as they would be kept in the corpus.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::world::Luck;

#[path = "../../fuzz/targets.rs"]
#[expect(unreachable_pub, reason = "it is the library of the fuzz targets")]
mod targets;

/// Random changes of each file.
const CHANGED: u64 = 2_000;
/// Of those that may each take milliseconds.
const CHANGED_SLOW: u64 = 100;
/// Bytes that are put in: what ends, opens, separates or overflows something in one of the formats.
const BYTES: &[u8] = b"\0\x01\x7f\xff{}[]\"'\\/:.,%-| \n09";

fn replay(target: fn(&[u8]), name: &str) {
    replay_changed(target, name, CHANGED);
}

fn replay_changed(target: fn(&[u8]), name: &str, changed_count: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let listed = fs::read_dir(&folder).expect("the target has a corpus");
    let mut paths: Vec<_> = listed.map(|entry| entry.expect("an entry can be read").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no file", folder.display());
    for path in paths {
        let bytes = fs::read(&path).expect("a file of the corpus can be read");
        check(target, &bytes, &path);
        for seed in 0..changed_count {
            check(target, &changed(&bytes, seed), &path);
        }
    }
}

fn check(target: fn(&[u8]), bytes: &[u8], origin: &Path) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    assert!(outcome.is_ok(), "from {}: \"{}\"", origin.display(), bytes.escape_ascii());
}

/// The bytes with one to four places changed, cut, doubled or filled in.
fn changed(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut luck = Luck(seed);
    let mut changed = bytes.to_vec();
    for _ in 0..=luck.below(4) {
        let at = luck.below(changed.len() as u64 + 1) as usize;
        let byte = BYTES[luck.below(BYTES.len() as u64) as usize];
        let end = (at + luck.below(9) as usize).min(changed.len());
        match luck.below(6) {
            0 => changed.truncate(at),
            1 => drop(changed.drain(at..end)),
            2 => changed.insert(at, byte),
            3 => changed[at..end].fill(byte),
            4 => changed.extend_from_within(at..end),
            _ => {
                if let Some(found) = changed.get_mut(at) {
                    *found ^= 1 << luck.below(8);
                }
            }
        }
    }
    changed
}

#[test]
fn frames_of_any_bytes_are_frames_or_an_error() {
    replay(targets::frames, "frames");
}

#[test]
fn any_gguf_file_has_a_header_or_an_error() {
    replay(targets::gguf, "gguf");
}

#[test]
fn any_modelfile_is_one_or_an_error() {
    replay(targets::modelfile, "modelfile");
}

#[test]
fn a_name_that_is_accepted_is_safe_as_a_path() {
    replay(targets::names, "names");
}

#[test]
fn any_request_is_a_call_or_a_rejection() {
    replay(targets::requests, "requests");
}

#[test]
fn any_schema_is_a_grammar_or_is_refused() {
    replay_changed(targets::schemas, "schemas", CHANGED_SLOW);
}

#[test]
fn any_template_renders_or_fails() {
    replay(targets::templates, "templates");
}

#[test]
fn any_tokenizer_makes_tokens_or_gives_up() {
    replay(targets::tokenizers, "tokenizers");
}

/// A target that nobody replays would be found by nobody.
#[test]
fn every_corpus_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let listed = fs::read_dir(folder).expect("there are corpora");
    for entry in listed {
        let name = entry.expect("an entry can be read").file_name();
        let call = format!("targets::{}, ", name.to_string_lossy());
        assert!(include_str!("corpora.rs").contains(&call), "{call}");
    }
}
