//! The library's tokenizer, with bounds on what it makes of a text and on the time it takes for it.
//!
//! Normalisers and pre-tokenizers of the file run as the library runs them, in the same order, but one by one, with a look
//! at the clock and at the size of the result between two; and patterns that are the file's own with one before each match. So
//! what a published tokenizer makes of a text is the library's, and a hostile one ends with an error. A single match is bounded by
//! the steps that `fancy-regex` goes back. The library panics where files lead it to what is not there; that ends as an error too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fancy_regex::Regex;
use ollmlx_proto::{Failure, FailureKind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tokenizers::normalizer::SplitDelimiterBehavior;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Model as _, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    OffsetReferential, OffsetType, Offsets, PostProcessorWrapper, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, TokenizerImpl,
};

use super::super::config::invalid;
use super::super::limits::{GROWTH_BYTES_MIN, GROWTH_MAX, TEXT_MORE_TIME, TEXT_TIME};
use super::check::check;

/// The library's tokenizer, whose text passes through what is here.
pub(super) type Inner = TokenizerImpl<ModelWrapper, Normalisers, PreTokenisers, PostProcessorWrapper, DecoderWrapper>;
type Fault = tokenizers::Error;

/// A tokenizer whose texts come to an end.
pub(super) struct Bounded {
    pub(super) inner: Inner,
    /// Its added tokens, as they are where the spelling of a control token is text.
    spelled: AddedVocabulary,
}

impl Bounded {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        let unusable = |error: &dyn ToString| invalid("tokenizer.json is not usable").with_detail(error.to_string());
        check(bytes)?;
        let mut inner = caught(|| Inner::from_bytes(bytes)).map_err(|error| unusable(&error))?;
        // Padding and truncation are the engine's business, never the file's.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| unusable(&error))?;
        let mut spelled = inner.get_added_vocabulary().clone();
        spelled.set_encode_special_tokens(true);
        Ok(Self { inner, spelled })
    }

    /// The tokens of a text, with no markers around them.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or makes too much of it.
    pub(super) fn ids(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, Failure> {
        let pace = Pace::new(text.len());
        caught(|| self.paced(text, parse_special, &pace)).map_err(|error| match pace.halt.get() {
            Some(halt) => Failure::new(FailureKind::InvalidRequest, halt.to_string()),
            None => Failure::new(FailureKind::InvalidRequest, "this model's tokenizer fails on this text")
                .with_detail(error.to_string()),
        })
    }

    /// The tokens of a text with the markers that the file's template puts around it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub(super) fn framed(&self, text: &str) -> Result<Vec<u32>, Fault> {
        caught(|| self.inner.encode_fast(text, true)).map(|encoding| encoding.get_ids().to_vec())
    }

    /// As the library's own `encode_fast` does it.
    fn paced(&self, text: &str, parse_special: bool, pace: &Pace) -> Result<Vec<u32>, Fault> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.spelled };
        let normaliser = self.inner.get_normalizer().map(|steps| Paced { steps, pace });
        let mut words = added.extract_and_normalize(normaliser.as_ref(), text);
        // There an error goes no further.
        pace.check()?;
        if let Some(steps) = self.inner.get_pre_tokenizer() {
            steps.split(&mut words, pace)?;
        }
        let model = self.inner.get_model();
        words.tokenize(|word| {
            pace.check()?;
            model.tokenize(word.get())
        })?;
        Ok(words.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }
}

/// A panic is an error. Nothing that one has touched is used afterwards: a tokenizer only reads.
fn caught<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the tokenizer's library panicked".into()))
}

/// Why a text is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Halt {
    #[error("this model's tokenizer takes too long for this text")]
    Slow,
    #[error("this model's tokenizer makes too much of this text")]
    Large,
    #[error("a pattern of this model's tokenizer gives up on this text")]
    Pattern,
}

/// What one text may still take.
struct Pace {
    until: Instant,
    bytes_max: usize,
    /// Bytes of the parts that are normalised.
    made: AtomicUsize,
    halt: OnceLock<Halt>,
}

impl Pace {
    fn new(text_bytes: usize) -> Self {
        // A text comes in slices; one that is longer has more time.
        let more = u32::try_from(text_bytes / GROWTH_BYTES_MIN).unwrap_or(u32::MAX);
        Self {
            until: Instant::now() + TEXT_TIME.saturating_add(TEXT_MORE_TIME.saturating_mul(more)),
            bytes_max: GROWTH_BYTES_MIN.max(text_bytes.saturating_mul(GROWTH_MAX)),
            made: AtomicUsize::new(0),
            halt: OnceLock::new(),
        }
    }

    fn halt(&self, why: Halt) -> Fault {
        (*self.halt.get_or_init(|| why)).into()
    }

    fn check(&self) -> Result<(), Fault> {
        match self.halt.get() {
            Some(halt) => Err((*halt).into()),
            None if Instant::now() > self.until => Err(self.halt(Halt::Slow)),
            None => Ok(()),
        }
    }

    /// Whether so many bytes may be there beside what is made.
    fn has_room(&self, bytes: usize) -> Result<(), Fault> {
        self.check()?;
        match self.made.load(Ordering::Relaxed).saturating_add(bytes) > self.bytes_max {
            true => Err(self.halt(Halt::Large)),
            false => Ok(()),
        }
    }
}

/// A pattern of the file, at one text.
struct Matches<'a> {
    pattern: &'a Regex,
    pace: &'a Pace,
    /// What each match becomes.
    match_bytes: usize,
}

impl Pattern for &Matches<'_> {
    /// As the library's own does it, which goes on without the rest of the matches where a pattern gives up.
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let (mut found, mut end, mut bytes) = (Vec::new(), 0, inside.len());
        for next in self.pattern.find_iter(inside) {
            let next = next.map_err(|_| self.pace.halt(Halt::Pattern))?;
            bytes += self.match_bytes;
            self.pace.has_room(bytes)?;
            if end != next.start() {
                found.push(((end, next.start()), false));
            }
            found.push(((next.start(), next.end()), true));
            end = next.end();
        }
        if end != inside.len() {
            found.push(((end, inside.len()), false));
        }
        Ok(found)
    }
}

/// What is done to a text before it is split.
pub(super) struct Normalisers(Vec<Normaliser>);

enum Normaliser {
    Replace { pattern: Regex, content: String },
    Library(NormalizerWrapper),
}

impl Normalisers {
    fn flatten(&mut self, step: NormalizerWrapper) -> Result<(), Fault> {
        match step {
            NormalizerWrapper::Sequence(steps) => steps.into_iter().try_for_each(|step| self.flatten(step))?,
            NormalizerWrapper::Replace(replace) => {
                // The pattern is private.
                let value = serde_json::to_value(&replace)?;
                let pattern = match (value["pattern"]["String"].as_str(), value["pattern"]["Regex"].as_str()) {
                    (Some(text), _) => Regex::new(&fancy_regex::escape(text))?,
                    (None, pattern) => Regex::new(pattern.unwrap_or_default())?,
                };
                self.0.push(Normaliser::Replace { pattern, content: replace.content.clone() });
            }
            step => self.0.push(Normaliser::Library(step)),
        }
        Ok(())
    }

    fn apply(&self, text: &mut NormalizedString, pace: &Pace) -> Result<(), Fault> {
        for step in &self.0 {
            match step {
                Normaliser::Replace { pattern, content } => {
                    text.replace(&Matches { pattern, pace, match_bytes: content.len() }, content)?;
                }
                Normaliser::Library(step) => step.normalize(text)?,
            }
            pace.has_room(text.get().len())?;
        }
        pace.made.fetch_add(text.get().len(), Ordering::Relaxed);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Normalisers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut steps = Self(Vec::new());
        steps.flatten(NormalizerWrapper::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Ok(steps)
    }
}

/// For the spellings of added tokens, as they are read.
impl Normalizer for Normalisers {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        self.apply(text, &Pace::new(text.get().len()))
    }
}

struct Paced<'a> {
    steps: &'a Normalisers,
    pace: &'a Pace,
}

impl Normalizer for Paced<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        self.pace.check()?;
        self.steps.apply(text, self.pace)
    }
}

/// What splits a text into words.
pub(super) struct PreTokenisers(Vec<PreTokeniser>);

enum PreTokeniser {
    Split { pattern: Regex, behavior: SplitDelimiterBehavior, invert: bool },
    Library(PreTokenizerWrapper),
}

impl PreTokenisers {
    fn flatten(&mut self, step: PreTokenizerWrapper) -> Result<(), Fault> {
        match step {
            PreTokenizerWrapper::Sequence(steps) => steps.into_iter().try_for_each(|step| self.flatten(step))?,
            PreTokenizerWrapper::Split(split) => {
                let pattern = match &split.pattern {
                    SplitPattern::String(text) => Regex::new(&fancy_regex::escape(text))?,
                    SplitPattern::Regex(pattern) => Regex::new(pattern)?,
                };
                self.0.push(PreTokeniser::Split { pattern, behavior: split.behavior, invert: split.invert });
            }
            step => self.0.push(PreTokeniser::Library(step)),
        }
        Ok(())
    }

    fn split(&self, words: &mut PreTokenizedString, pace: &Pace) -> Result<(), Fault> {
        pace.made.store(0, Ordering::Relaxed);
        for step in &self.0 {
            match step {
                PreTokeniser::Split { pattern, behavior, invert } => {
                    let matches = Matches { pattern, pace, match_bytes: 0 };
                    words.split(|_, word| match invert {
                        true => word.split(Invert(&matches), *behavior),
                        false => word.split(&matches, *behavior),
                    })?;
                }
                PreTokeniser::Library(step) => step.pre_tokenize(words)?,
            }
            let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
            pace.has_room(splits.iter().map(|(text, ..)| text.len()).sum())?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PreTokenisers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut steps = Self(Vec::new());
        steps.flatten(PreTokenizerWrapper::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Ok(steps)
    }
}

impl PreTokenizer for PreTokenisers {
    fn pre_tokenize(&self, words: &mut PreTokenizedString) -> tokenizers::Result<()> {
        let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let bytes = splits.iter().map(|(text, ..)| text.len()).sum();
        self.split(words, &Pace::new(bytes))
    }
}
