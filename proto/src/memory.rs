//! How much memory a worker will take for a model, before it is loaded.
//!
//! A worker's inspect mode reads a [`MemoryModel`] off the files' headers: coefficients, so that any number of slots,
//! window and batch can be judged without starting anything. It knows the shapes of caches, no architecture. The
//! numbers of a running worker are in [`crate::MemoryReport`], which an estimate is told in too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::{FlashAttention, MemoryReport};
use crate::limits::MEMORY_LIMIT_BYTES_MIN;

/// Cells of a key-value cache that a group of layers keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCells {
    /// Elements, keys and values, that one token takes in these layers.
    pub elements: u64,
    /// Tokens that are kept of a sequence; 0: all of the window.
    pub window_tokens: u64,
    /// Cells beside a sliding window that is moved only now and then.
    pub slack_tokens: u64,
    /// Cells are rounded up to a multiple of this; at least 1.
    pub multiple: u64,
    /// Whether all slots lie in one buffer, with one slack.
    pub shared: bool,
}

impl KvCells {
    /// Elements of the cache of `slots` sequences of up to `context_tokens` tokens.
    #[must_use]
    pub fn total(&self, slots: u64, context_tokens: u64) -> u64 {
        let (buffers, tokens, window) = if self.shared {
            (1, slots.saturating_mul(context_tokens), self.window_tokens.saturating_mul(slots))
        } else {
            (slots, context_tokens, self.window_tokens)
        };
        let round = |cells: u64| cells.checked_next_multiple_of(self.multiple.max(1)).unwrap_or(u64::MAX);
        let all = round(tokens);
        let cells = match self.window_tokens {
            0 => all,
            _ => round(window.saturating_add(self.slack_tokens)).min(all),
        };
        self.elements.saturating_mul(cells).saturating_mul(buffers)
    }
}

/// What a worker of this machine takes for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryModel {
    /// Weights as they will be held, in bytes: mapped or copied, in their element type after the load.
    pub weights: u64,
    /// Key-value caches, by kind of layer.
    pub kv: Vec<KvCells>,
    /// Bytes that 32 elements of the cache take, by the word for their type (`f16`, `q8_0`, `q4_0`); the one of `f16`
    /// holds for a word that is not there.
    pub kv_bytes_of_32: BTreeMap<String, u64>,
    /// State of a sequence that does not depend on its length, in bytes.
    pub state_per_slot: u64,
    /// Most tokens of a window, whatever is asked for.
    pub context_max: u32,
    /// The process itself and buffers of a fixed size, in bytes.
    pub fixed: u64,
    /// Buffers per slot, in bytes.
    pub per_slot: u64,
    /// Buffers per token of a forward pass, in bytes.
    pub per_batch_token: u64,
    /// Buffers per token of a forward pass and token of the window, in bytes: attention scores, where they are held.
    pub per_score: u64,
    /// Whether a token has scores with the cells of all slots, and not only with those of its own.
    pub scores_across_slots: bool,
    /// Most tokens that are computed at once, whatever is asked for; 0: a whole window at once.
    pub batch_max: u32,
    /// Most windows that caches are made for, however many slots there are; 0: one for each.
    pub windows_max: u16,
    /// What is otherwise where attention isn't fused; `None` where it always is.
    pub unfused: Option<Unfused>,
}

/// An estimate without flash attention, in the place of what has the same name in a [`MemoryModel`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfused {
    /// Scores are held for all heads.
    pub per_score: u64,
    /// As the name says.
    pub scores_across_slots: bool,
    /// Caches whose values can't be read by the block have the type `f16`.
    pub kv_bytes_of_32: BTreeMap<String, u64>,
}

impl MemoryModel {
    /// The same for this setting. [`FlashAttention::Auto`] is taken for on, which engines choose where they can.
    #[must_use]
    pub fn with_attention(mut self, setting: FlashAttention) -> Self {
        match (setting, self.unfused.take()) {
            (FlashAttention::Off, Some(Unfused { per_score, scores_across_slots, kv_bytes_of_32 })) => {
                Self { per_score, scores_across_slots, kv_bytes_of_32, ..self }
            }
            (FlashAttention::Auto | FlashAttention::On | FlashAttention::Off, _) => self,
        }
    }

    /// The estimate for `slots` sequences of `context_tokens` each, `batch_tokens` at once, and this cache type.
    #[must_use]
    pub fn estimate(&self, slots: u16, context_tokens: u32, batch_tokens: u32, kv_type: &str) -> MemoryReport {
        let slots = u64::from(slots);
        let context = u64::from(context_tokens.min(self.context_max.max(1)));
        let windows = if self.windows_max == 0 { slots } else { slots.min(self.windows_max.into()) };
        let elements = self.kv.iter().fold(0_u64, |sum, cells| sum.saturating_add(cells.total(windows, context)));
        let of_32 = self.kv_bytes_of_32.get(kv_type).or_else(|| self.kv_bytes_of_32.get("f16")).copied().unwrap_or(64);
        let batch = match self.batch_max {
            0 => context,
            most => u64::from(batch_tokens.min(most)),
        };
        let seen = if self.scores_across_slots { context.saturating_mul(windows) } else { context };
        MemoryReport {
            weights: self.weights,
            kv: (elements / 32).saturating_mul(of_32).saturating_add(self.state_per_slot.saturating_mul(slots)),
            compute: self
                .fixed
                .saturating_add(self.per_slot.saturating_mul(slots))
                .saturating_add(self.per_batch_token.saturating_mul(batch))
                .saturating_add(self.per_score.saturating_mul(batch).saturating_mul(seen)),
        }
    }

    /// The longest window of `slots` sequences whose estimate `fits` accepts, at most `longest`; `None` where not
    /// even one token does. What fits must go on fitting when it gets smaller.
    pub fn longest_context(
        &self,
        slots: u16,
        longest: u32,
        (batch_tokens, kv_type): (u32, &str),
        fits: impl Fn(u64) -> bool,
    ) -> Option<u32> {
        let longest = longest.min(self.context_max.max(1));
        most(longest, |context| fits(self.estimate(slots, context, batch_tokens, kv_type).total()))
    }

    /// The most sequences of `context_tokens` each whose estimate `fits` accepts, at most `most_slots`; `None` where
    /// not even one does.
    pub fn most_slots(
        &self,
        most_slots: u16,
        context_tokens: u32,
        (batch_tokens, kv_type): (u32, &str),
        fits: impl Fn(u64) -> bool,
    ) -> Option<u16> {
        let total = |slots: u16| self.estimate(slots, context_tokens, batch_tokens, kv_type).total();
        let found = most(most_slots.into(), |slots| fits(total(u16::try_from(slots).unwrap_or(u16::MAX))));
        found.and_then(|slots| u16::try_from(slots).ok())
    }
}

/// The largest number from 1 to `highest` that fits, by halving.
fn most(highest: u32, fits: impl Fn(u32) -> bool) -> Option<u32> {
    if highest == 0 || !fits(1) {
        return None;
    }
    let (mut good, mut bad) = (1, highest.saturating_add(1));
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Some(good)
}

/// A number of bytes as people write it: bare, or with `KB MB GB TB` (÷1000) or `KiB MiB GiB TiB` (÷1024); `None` for
/// anything else.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    if unit.trim().is_empty() && number.contains('.') {
        // There is no part of a byte; it may have been meant as a share.
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let bytes = number * factor;
    (bytes.is_finite() && bytes < 9e18).then_some(bytes as u64)
}

/// What the limit of a single model must be, for errors.
pub const MODEL_LIMIT_RULE: &str = "a number of bytes from 1MB on, such as 2GB (shares and auto are for the limit of all \
                                    models together; for no limit of its own, leave it out)";

/// The memory limit of a single model; `None` for what is none.
#[must_use]
pub fn parse_model_limit(text: &str) -> Option<u64> {
    parse_bytes(text).filter(|bytes| *bytes >= MEMORY_LIMIT_BYTES_MIN)
}

/// Bytes that are needed, for people: in the units of Ollama's tables, and never less than they are.
#[must_use]
pub fn bytes_needed(bytes: u64) -> String {
    in_units(bytes, u64::div_ceil)
}

/// Bytes that there are, likewise, and never more than they are. So a need that is greater reads as greater.
#[must_use]
pub fn bytes_allowed(bytes: u64) -> String {
    in_units(bytes, |bytes, part| bytes / part)
}

/// To a hundredth of a GB, or a tenth of what is smaller.
fn in_units(bytes: u64, divide: impl Fn(u64, u64) -> u64) -> String {
    let units = [(1_000_000_000_000, 100, "TB"), (1_000_000_000, 100, "GB"), (1_000_000, 10, "MB"), (1_000, 10, "KB")];
    let Some((factor, parts, unit)) = units.into_iter().find(|(factor, _, _)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    let count = divide(bytes, factor / parts);
    let digits = if parts == 100 { 2 } else { 1 };
    let text = format!("{}.{:0digits$}", count / parts, count % parts);
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> MemoryModel {
        MemoryModel {
            weights: 1000,
            kv: vec![
                KvCells { elements: 64, window_tokens: 0, slack_tokens: 0, multiple: 256, shared: false },
                KvCells { elements: 32, window_tokens: 512, slack_tokens: 512, multiple: 256, shared: false },
            ],
            kv_bytes_of_32: [("f16".to_owned(), 64), ("q8_0".to_owned(), 34)].into(),
            state_per_slot: 5,
            context_max: 8192,
            fixed: 7,
            per_slot: 3,
            per_batch_token: 2,
            per_score: 1,
            scores_across_slots: false,
            batch_max: 512,
            windows_max: 0,
            unfused: Some(Unfused {
                per_score: 9,
                scores_across_slots: true,
                kv_bytes_of_32: [("f16".to_owned(), 64)].into(),
            }),
        }
    }

    #[test]
    fn every_part_is_counted() {
        let report = model().estimate(2, 4000, 2048, "f16");
        assert_eq!(report.weights, 1000);
        assert_eq!(report.kv, 2 * (4096 * 128 + 1024 * 64 + 5));
        assert_eq!(report.compute, 7 + 2 * 3 + 512 * 2 + 512 * 4000);
        assert_eq!(model().estimate(2, 4000, 2048, "q8_0").kv, 2 * (4096 * 68 + 1024 * 34 + 5));
        assert_eq!(model().estimate(2, 4000, 2048, "unknown"), report);
    }

    #[test]
    fn without_flash_attention_scores_are_held_and_caches_stay_whole() {
        for setting in [FlashAttention::Auto, FlashAttention::On] {
            let fused = model().with_attention(setting);
            assert_eq!(fused.estimate(2, 4000, 2048, "q8_0"), model().estimate(2, 4000, 2048, "q8_0"));
        }
        let off = model().with_attention(FlashAttention::Off).estimate(2, 4000, 2048, "q8_0");
        assert_eq!(off.kv, model().estimate(2, 4000, 2048, "f16").kv);
        assert_eq!(off.compute, 7 + 2 * 3 + 512 * 2 + 9 * 512 * 4000 * 2);
        let fuses = MemoryModel { unfused: None, ..model() };
        assert_eq!(fuses.clone().with_attention(FlashAttention::Off), fuses, "an engine that always fuses");
    }

    #[test]
    fn slots_may_share_one_window() {
        let shared = MemoryModel { windows_max: 1, ..model() };
        assert_eq!(shared.estimate(4, 4000, 512, "f16").kv, model().estimate(1, 4000, 512, "f16").kv + 3 * 5);
        assert_eq!(shared.estimate(4, 4000, 512, "f16").compute, model().estimate(4, 4000, 512, "f16").compute);
    }

    #[test]
    fn a_window_is_never_larger_than_the_context() {
        assert_eq!(model().estimate(1, 256, 1, "f16").kv, 256 * 128 + 256 * 64 + 5);
        assert_eq!(model().estimate(1, u32::MAX, 1, "f16").kv, 8192 * 128 + 1024 * 64 + 5);
    }

    #[test]
    fn shared_cells_are_rounded_once() {
        let cells = KvCells { elements: 1, window_tokens: 512, slack_tokens: 512, multiple: 256, shared: true };
        assert_eq!(cells.total(4, 4096), 4 * 512 + 512);
        assert_eq!(cells.total(4, 100), 512);
    }

    #[test]
    fn the_largest_that_fits_is_found() {
        let model = model();
        let need = |slots, context| model.estimate(slots, context, 512, "f16").total();
        for context in [1, 2, 255, 256, 257, 4096, 8192] {
            let found = model.longest_context(2, 8192, (512, "f16"), |total| total <= need(2, context)).unwrap();
            assert!(found >= context && need(2, found) == need(2, context), "{context}: {found}");
            assert!(found == 8192 || need(2, found + 1) > need(2, context));
        }
        assert_eq!(model.longest_context(2, u32::MAX, (512, "f16"), |_| true), Some(8192), "as trained");
        assert_eq!(model.longest_context(2, 8192, (512, "f16"), |total| total < need(2, 1)), None);
        assert_eq!(model.most_slots(16, 2048, (512, "f16"), |total| total <= need(5, 2048)), Some(5));
        assert_eq!(model.most_slots(3, 2048, (512, "f16"), |total| total <= need(5, 2048)), Some(3));
        assert_eq!(model.most_slots(0, 2048, (512, "f16"), |_| true), None);
        assert_eq!(model.most_slots(u16::MAX, 1, (512, "f16"), |_| true), Some(u16::MAX));
    }

    #[test]
    fn the_limit_of_a_model_has_a_least_and_parts_of_a_byte_are_none() {
        assert_eq!(parse_model_limit("1MB"), Some(MEMORY_LIMIT_BYTES_MIN));
        for text in ["999999", "0", "0GB", "80", "0.8", ".9", "1000000.5", "50%", "auto", "none", "-1", ""] {
            assert_eq!(parse_model_limit(text), None, "{text}");
        }
        assert_eq!((parse_bytes("0.5"), parse_bytes("0.5MB"), parse_bytes("0")), (None, Some(500_000), Some(0)));
    }

    #[test]
    fn a_need_that_is_greater_reads_as_greater() {
        for (bytes, needed, allowed) in [
            (0, "0 B", "0 B"),
            (999, "999 B", "999 B"),
            (1_000, "1 KB", "1 KB"),
            (500_000_000, "500 MB", "500 MB"),
            (500_000_001, "500.1 MB", "500 MB"),
            (535_822_336, "535.9 MB", "535.8 MB"),
            (1_000_000_001, "1.01 GB", "1 GB"),
            (12_345_678_901, "12.35 GB", "12.34 GB"),
            (1_500_000_000_000, "1.5 TB", "1.5 TB"),
        ] {
            assert_eq!((bytes_needed(bytes).as_str(), bytes_allowed(bytes).as_str()), (needed, allowed), "{bytes}");
        }
    }

    #[test]
    fn absurd_numbers_saturate() {
        let mut absurd = model();
        absurd.kv[0].elements = u64::MAX;
        absurd.per_slot = u64::MAX;
        let report = absurd.estimate(u16::MAX, u32::MAX, u32::MAX, "f16");
        assert_eq!(report.compute, u64::MAX);
        assert!(report.kv > u64::MAX / 2);
    }
}
