//! What the fake worker is told to do: a JSON file in the place of the weights.

use std::path::Path;

use ollmlx_proto::ModelId;
use serde::{Deserialize, Serialize};

/// How it introduces itself. Told through the model's name, since it comes before the script is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// As it should.
    Good,
    /// Not at all.
    Never,
    /// In a version nobody speaks.
    WrongVersion,
    /// With another's token.
    WrongToken,
}

/// The introduction that a model's name asks for.
#[must_use]
pub fn early(model: &ModelId) -> Option<Hello> {
    let known =
        [("hello-never", Hello::Never), ("hello-version", Hello::WrongVersion), ("hello-token", Hello::WrongToken)];
    known.into_iter().find(|(name, _)| crate::id(name) == *model).map(|(_, hello)| hello)
}

/// How its load goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Well.
    #[default]
    Good,
    /// It exits with 9.
    Crash,
    /// Never ends.
    Hang,
    /// It says that the model is invalid.
    Refuse,
    /// SIGILL, except at the lowest CPU level.
    Illegal,
}

/// What befalls it at a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Misfortune {
    /// `abort`.
    Abort,
    /// Exit status 3.
    Exit,
    /// SIGKILL.
    Kill,
    /// SIGSEGV.
    Segfault,
    /// Its engine stops; the process stays.
    Hang,
    /// Its engine turns in a circle, with all of a processor.
    Spin,
    /// Its engine stops, and another thread goes on to say that it lives.
    Beat,
    /// Its engine fails this request, and the process stays.
    Fail,
    /// It leaves, and a child of its own keeps its standard output open, and a connection to `hold`.
    Orphan,
    /// It prints without end, and then dies.
    Flood,
    /// Bytes that are no frame.
    Garbage,
    /// A length over the limit.
    Oversize,
    /// A frame that begins and does not end.
    HalfFrame,
    /// An output for a request that nobody made.
    Stray,
    /// One after the other.
    Strays,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// Tokens of each answer; 0 is without end.
    pub tokens: u32,
    /// Between tokens.
    pub interval_ms: u64,
    /// Bytes added to each token's text.
    pub padding_bytes: usize,
    /// Progress frames of the load.
    pub progress: u64,
    /// Before each of them.
    pub progress_interval_ms: u64,
    /// Parts of the prompt that it tells of, one in each interval, before the first token.
    pub prefill: u32,
    /// Before the load is done.
    pub load_delay_ms: u64,
    /// How the load goes.
    pub load: Load,
    /// At which token of a request what happens.
    pub misfortune: Option<(u32, Misfortune)>,
    /// At which token of a request with the word `poison` in its prompt what happens, whatever the incarnation.
    pub poison: Option<(u32, Misfortune)>,
    /// Load and misfortune happen up to this incarnation; 0 is always.
    pub unlucky_until: u32,
    /// SIGTERM is not heeded.
    pub ignore_term: bool,
    /// `Drain` is not heeded.
    pub ignore_drain: bool,
    /// `Cancel` is not heeded.
    pub ignore_cancel: bool,
    /// `Pause` is not heeded.
    pub ignore_pause: bool,
    /// Memory held from the load on.
    pub leak_bytes: usize,
    /// Memory that it takes more of with every token, up to incarnation `unlucky_until`.
    pub leak_bytes_per_token: usize,
    /// Memory that it takes at once at this token, up to incarnation `unlucky_until`.
    pub balloon: Option<(u32, usize)>,
    /// Memory held from the load on until it is asked to trim.
    pub cache_bytes: usize,
    /// A socket that it connects to and holds until it ends.
    pub hold: Option<std::path::PathBuf>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 5,
            interval_ms: 1,
            padding_bytes: 0,
            progress: 2,
            progress_interval_ms: 0,
            prefill: 0,
            load_delay_ms: 0,
            load: Load::Good,
            misfortune: None,
            poison: None,
            unlucky_until: 0,
            ignore_term: false,
            ignore_drain: false,
            ignore_cancel: false,
            ignore_pause: false,
            leak_bytes: 0,
            leak_bytes_per_token: 0,
            balloon: None,
            cache_bytes: 0,
            hold: None,
        }
    }
}

impl Script {
    /// Reads one.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read(path).expect("the script is where the weights should be");
        serde_json::from_slice(&text).expect("a script")
    }

    /// Writes it.
    ///
    /// # Panics
    /// The disk is full.
    pub fn write(&self, path: &Path) {
        let text = serde_json::to_vec(self).expect("plain data");
        std::fs::write(path, text).expect("a writable folder");
    }

    /// Whether its misfortunes happen to this incarnation.
    #[must_use]
    pub fn is_unlucky(&self, incarnation: u32) -> bool {
        self.unlucky_until == 0 || incarnation <= self.unlucky_until
    }

    /// The index at which an answer ends.
    #[must_use]
    pub fn end_of(&self, tokens: u32) -> u32 {
        if tokens == 0 { u32::MAX } else { tokens }
    }
}
