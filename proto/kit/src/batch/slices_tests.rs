//! Slices of texts: with their seams the tokens are those of the whole, without they are at least the same text, and nothing
//! is read that nobody wants.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ollmlx_proto::{Embed, Failure, FailureKind, Output, Request, Role, TokenId, Work};

use super::prepare::{Part, Watch};
use super::slices::{Reader, Seams, Text};
use super::tests::{chat, message};
use super::toy::{BOS as TOY_BOS, EOS as TOY_EOS, Toy, complete};
use super::{Batcher, Outputs, StepOutcome};
use crate::contract::PROMPT_TOO_LONG;
use crate::engine::Tokenizer;
use crate::limits::{
    CONTROL_BYTES_MAX, FLAT_RUN_BYTES_MAX, LONG_TOKEN_BYTES, LONG_TOKEN_RUN_BYTES_MAX, RUN_BYTES_MAX, SLICE_BYTES,
};
use crate::vocab::{TokenKind, Vocab};

const BOS: TokenId = 1;
const EOS: TokenId = 2;
const END: &str = "<|end|>";
const END_TOKEN: TokenId = 3;

/// Words with the spaces before them, each a token of its own; line ends in a row; and one control token. A word's token says
/// all that was taken with it, so that what is parted elsewhere has other tokens.
struct Words {
    /// Puts a space before what it is given, as SentencePiece does.
    prefixes: bool,
    /// Lengths of what it was given.
    taken: Mutex<Vec<usize>>,
}

fn words() -> Words {
    Words { prefixes: false, taken: Mutex::new(Vec::new()) }
}

fn hash(word: &str) -> TokenId {
    word.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 0x100
}

impl Tokenizer for Words {
    fn tokenize(&self, text: &str, add_special: bool, _: bool) -> Result<Vec<TokenId>, Failure> {
        self.taken.lock().expect("nothing panics here").push(text.len());
        let mut tokens = vec![];
        tokens.extend(add_special.then_some(BOS));
        for (index, part) in text.split(END).enumerate() {
            tokens.extend((index > 0).then_some(END_TOKEN));
            let part = if self.prefixes && !part.is_empty() { format!(" {part}") } else { part.to_owned() };
            let mut word = String::new();
            for (at, character) in part.char_indices() {
                let behind = part[..at].chars().next_back();
                let begins = match character {
                    ' ' => behind != Some(' '),
                    '\n' => behind != Some('\n'),
                    _ => behind == Some('\n'),
                };
                if begins && !word.is_empty() {
                    tokens.push(hash(&std::mem::take(&mut word)));
                }
                word.push(character);
            }
            tokens.extend((!word.is_empty()).then(|| hash(&word)));
        }
        tokens.extend(add_special.then_some(EOS));
        Ok(tokens)
    }
}

fn vocab(tokens: &[(&str, TokenKind)]) -> Vocab {
    let control = [("<s>", TokenKind::Control), ("</s>", TokenKind::Control), (END, TokenKind::Control)];
    let all = control.iter().chain(tokens);
    let (bytes, kinds) = all.map(|(text, kind)| (text.as_bytes().to_vec(), *kind)).unzip();
    Vocab { bytes, kinds, ..Vocab::default() }
}

fn ordinary() -> Vocab {
    vocab(&[(" word", TokenKind::Text), ("\n\n", TokenKind::Text), ("  ", TokenKind::Text)])
}

fn all(words: &Words, seams: &Seams, text: Text<'_>) -> Vec<TokenId> {
    let watch = Watch::new(Instant::now());
    watch.enter(Part::Tokens).expect("there is time");
    Reader { tokenizer: words, seams, watch: &watch }.first(text, usize::MAX).expect("it refuses nothing")
}

fn plain(text: &str) -> Text<'_> {
    Text { text, cuts: &[], add_special: true }
}

/// Texts of many slices, with all that could be mistaken for a seam.
fn texts() -> Vec<String> {
    let prose = "One  word and  another.\nA line\n\nand two,  漢字 é\n  indented\n7 8";
    vec![
        prose.repeat(2_000),
        format!("{}{}", "x".repeat(SLICE_BYTES - 3), prose.repeat(1_500)),
        "字と字。\n".repeat(8_000),
        format!("a {END} b{END}\nc {END}{END} d").repeat(4_000),
    ]
}

#[test]
fn slices_that_end_at_seams_have_the_tokens_of_the_whole() {
    for prefixes in [false, true] {
        for text in texts() {
            let words = Words { prefixes, ..words() };
            let seams = Seams::new(&words, &ordinary());
            words.taken.lock().unwrap().clear();
            let sliced = all(&words, &seams, plain(&text));
            let most = words.taken.lock().unwrap().iter().copied().max();
            assert!(most.unwrap() <= SLICE_BYTES + 100, "{most:?} bytes at once");
            assert_eq!(sliced, words.tokenize(&text, true, true).unwrap(), "{:?}", &text[..40]);
        }
    }
}

#[test]
fn a_short_text_is_given_to_the_tokenizer_as_it_is() {
    let words = words();
    let seams = Seams::new(&words, &ordinary());
    words.taken.lock().unwrap().clear();
    let text = "a ".repeat(SLICE_BYTES / 2);
    assert_eq!(all(&words, &seams, plain(&text)), words.tokenize(&text, true, true).unwrap());
    assert_eq!(*words.taken.lock().unwrap(), [text.len(); 2]);
    assert_eq!(all(&words, &seams, plain("")), [BOS, EOS]);
}

#[test]
fn where_a_token_reaches_across_there_is_no_seam() {
    let text = "some words ".repeat(10_000);
    for token in ["some words", "s\nw"] {
        let words = words();
        let seams = Seams::new(&words, &vocab(&[(token, TokenKind::Text)]));
        words.taken.lock().unwrap().clear();
        all(&words, &seams, plain(&text));
        let most = words.taken.lock().unwrap().iter().copied().max().unwrap();
        assert_eq!(most == RUN_BYTES_MAX, token.contains(' '), "{token:?}: {most}");
    }
}

#[test]
fn runs_without_a_seam_are_parted_in_no_character_and_no_control_token() {
    for (unit, most) in [
        ("a", RUN_BYTES_MAX),
        ("字", RUN_BYTES_MAX),
        (END, RUN_BYTES_MAX),
        (" ", FLAT_RUN_BYTES_MAX),
        ("7", FLAT_RUN_BYTES_MAX),
    ] {
        let words = words();
        let seams = Seams::new(&words, &ordinary());
        let text = unit.repeat(200_000 / unit.len());
        words.taken.lock().unwrap().clear();
        let tokens = all(&words, &seams, plain(&text));
        let taken = words.taken.lock().unwrap().clone();
        assert_eq!(taken.iter().sum::<usize>(), text.len(), "{unit:?}: all of it, once");
        let longest = taken.iter().copied().max().unwrap();
        assert!((most - CONTROL_BYTES_MAX..=most).contains(&longest), "{unit:?}: {longest} bytes at once");
        if unit == END {
            assert_eq!(tokens.len(), 2 + text.len() / END.len(), "none was parted");
        }
    }
}

#[test]
fn where_tokens_are_very_long_slices_are_short() {
    for (bytes, most) in [(LONG_TOKEN_BYTES, RUN_BYTES_MAX), (LONG_TOKEN_BYTES + 1, LONG_TOKEN_RUN_BYTES_MAX)] {
        let words = words();
        let seams = Seams::new(&words, &vocab(&[(&"x".repeat(bytes), TokenKind::Text)]));
        words.taken.lock().unwrap().clear();
        all(&words, &seams, plain(&"x".repeat(100_000)));
        assert_eq!(words.taken.lock().unwrap().iter().copied().max(), Some(most));
    }
}

#[test]
fn no_more_is_read_than_is_wanted_from_either_end() {
    let text = "word ".repeat(200_000);
    let words = words();
    let seams = Seams::new(&words, &ordinary());
    let whole = words.tokenize(&text, true, true).unwrap();
    words.taken.lock().unwrap().clear();
    let watch = Watch::new(Instant::now());
    let reader = Reader { tokenizer: &words, seams: &seams, watch: &watch };
    let first = reader.first(plain(&text), 5_000).unwrap();
    assert!((5_000..10_000).contains(&first.len()) && whole.starts_with(&first));
    assert_eq!(reader.last(plain(&text), 5_000).unwrap(), whole[whole.len() - 5_000..]);
    assert!(words.taken.lock().unwrap().iter().sum::<usize>() < 100_000, "{:?}", words.taken.lock().unwrap());
    let some = Text { text: "a b c", cuts: &[3], add_special: true };
    assert_eq!(reader.last(some, 3).unwrap(), [hash(" b"), hash(" c"), EOS]);
    assert_eq!(reader.last(some, 100).unwrap(), all(&words, &seams, some), "all, where there are no more");
}

#[test]
fn whoever_waits_no_more_ends_it_before_the_next_slice() {
    let words = words();
    let seams = Seams::new(&words, &ordinary());
    words.taken.lock().unwrap().clear();
    let watch = Watch::new(Instant::now());
    watch.give_up();
    let text = "word ".repeat(100_000);
    assert!(Reader { tokenizer: &words, seams: &seams, watch: &watch }.first(plain(&text), usize::MAX).is_err());
    assert_eq!(*words.taken.lock().unwrap(), [0; 0]);
}

#[test]
fn markers_go_around_the_whole_and_cuts_stay() {
    let words = words();
    let seams = Seams::new(&words, &ordinary());
    let typed = format!("say {END} now");
    let text = Text { text: &typed, cuts: &[6], add_special: true };
    let tokens = all(&words, &seams, text);
    assert!(!tokens.contains(&END_TOKEN), "what a client typed is no control token");
    assert_eq!((tokens.first(), tokens.last()), (Some(&BOS), Some(&EOS)));
}

/// Bytes that a toy was given for a request, and all that was said; its slot is left as it was.
fn read(toy: Toy, request: Request) -> (Batcher<Toy>, usize, Outputs) {
    let mut batcher = Batcher::new(toy);
    let before = batcher.engine().read.load(Ordering::Relaxed);
    batcher.run(request);
    let mut out = Outputs::new();
    while batcher.step(&mut out).expect("the engine is not broken") != StepOutcome::Idle {}
    let read = batcher.engine().read.load(Ordering::Relaxed) - before;
    (batcher, read, out)
}

/// Far more than a window, and nothing in it twice.
fn numbers() -> String {
    (0..200_000).map(|number| format!("{number} ")).collect()
}

#[test]
fn a_prompt_far_over_its_window_is_read_where_it_is_kept() {
    let text = numbers();
    let mut request = complete(1, &text);
    request.limits.max_tokens = Some(1);
    let (batcher, read, _) = read(Toy::new(1, 4096, 4096), request);
    let bytes = |text: &str| text.bytes().map(TokenId::from).collect::<Vec<_>>();
    // 4096 − (4096 − 5) / 2 = 2051 tokens: the beginning and four from the start, the others from the end.
    let kept = [vec![TOY_BOS], bytes(&text[..4]), bytes(&text[text.len() - 2046..])].concat();
    assert_eq!(batcher.engine().caches[0][..2051], kept);
    assert!(read < 3 * SLICE_BYTES, "{read} of {} bytes", text.len());
}

#[test]
fn a_prompt_that_may_not_be_cut_is_refused_by_its_first_window() {
    let mut request = complete(1, &numbers());
    request.limits.truncate = false;
    let (_, read, out) = read(Toy::new(1, 4096, 4096), request);
    let [(_, Output::Failed(failure))] = &out[..] else { panic!("{out:?}") };
    assert_eq!((failure.kind, failure.public.as_str()), (FailureKind::ContextExceeded, PROMPT_TOO_LONG));
    assert!(read < 2 * SLICE_BYTES, "{read} bytes");
}

#[test]
fn of_a_long_input_to_embed_its_window_is_read() {
    let inputs = vec![numbers(), "short".to_owned(), numbers()];
    let work = Work::Embed(Embed { inputs, truncate: true, normalize: false, dimensions: None });
    let mut toy = Toy::new(1, 4096, 4096);
    toy.facts.embedding = true;
    let (_, read, out) = read(toy, Request { work, ..complete(1, "") });
    let [(_, Output::Embedded(embedded))] = &out[..] else { panic!("{out:?}") };
    let (tokens, last): (Vec<_>, Vec<_>) = embedded.vectors.iter().map(|vector| (vector[0], vector[3])).unzip();
    assert_eq!((tokens, last), (vec![4096.0, 7.0, 4096.0], vec![TOY_EOS as f32; 3]), "the marker at the end stays");
    assert!(read < 4 * SLICE_BYTES, "{read} bytes");
}

#[test]
fn turns_are_dropped_without_reading_all_of_them_each_time() {
    let texts: Vec<String> = (0..256).map(|index| format!("{index} {}", "word ".repeat(1_600))).collect();
    let turns = texts.iter().map(|text| message(Role::User, text)).collect();
    let mut request = chat(1, turns);
    request.limits.context_tokens = 16_384;
    request.limits.max_tokens = Some(1);
    let (batcher, read, _) = read(Toy::new(1, 16_384, 16_384), request);
    assert!(batcher.engine().caches[0].len() > 8_000, "one of the messages is left");
    assert!(read < 12 * 2 * SLICE_BYTES, "{read} bytes: eight halvings, two slices each");
}
