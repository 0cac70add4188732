//! Logits to a token: Ollama's options in Ollama's order.
//!
//! Order: penalties, grammar, top-k, typical-p, top-p, min-p, temperature, draw. The random number of a token is a
//! function of the request's seed and of the token's index, not of history, so that a request that is resumed on
//! another process draws what it would have drawn. Nothing here panics on NaN, infinities or an empty set.

use ollmlx_proto::{Sampling, TokenId, TokenLogprob, TopLogprob};

use crate::vocab::Vocab;

/// One candidate: its logit, and its probability once it has one.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: TokenId,
    logit: f32,
    probability: f32,
}

/// Chooses the tokens of one request. Buffers are kept between tokens.
#[derive(Debug)]
pub struct Sampler {
    options: Sampling,
    candidates: Vec<Candidate>,
    counts: std::collections::HashMap<TokenId, u32>,
}

impl Sampler {
    /// For one request.
    #[must_use]
    pub fn new(options: Sampling) -> Self {
        Self { options, candidates: Vec::new(), counts: std::collections::HashMap::new() }
    }

    /// Whether logits are changed by what came before, so that they can't be used as they are.
    fn penalizes(&self) -> bool {
        self.options.repeat_last_n != 0
            && (differs(self.options.repeat_penalty, 1.0)
                || differs(self.options.presence_penalty, 0.0)
                || differs(self.options.frequency_penalty, 0.0))
    }

    /// Lowers the logits of what came before (llama.cpp's rule): a positive logit is divided by `repeat_penalty`, a
    /// negative one multiplied; then `frequency_penalty` per occurrence and `presence_penalty` once are taken off.
    pub fn penalize(&mut self, logits: &mut [f32], history: &[TokenId]) {
        if !self.penalizes() {
            return;
        }
        let window = usize::try_from(self.options.repeat_last_n).unwrap_or(usize::MAX).min(history.len());
        self.counts.clear();
        for &token in &history[history.len() - window..] {
            *self.counts.entry(token).or_default() += 1;
        }
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit > 0.0 {
                *logit /= self.options.repeat_penalty;
            } else {
                *logit *= self.options.repeat_penalty;
            }
            *logit -= count as f32 * self.options.frequency_penalty + self.options.presence_penalty;
        }
    }

    /// The token with number `index` of the answer, out of penalised and masked `logits`; `None` where none is
    /// allowed (all are -inf or NaN).
    pub fn choose(&mut self, logits: &[f32], index: u64) -> Option<TokenId> {
        if self.options.temperature <= 0.0 || self.options.top_k == 1 {
            return argmax(logits);
        }
        self.collect(logits);
        if self.candidates.is_empty() {
            return None;
        }
        self.typical_p();
        self.top_p();
        self.min_p();
        self.draw(unit(self.options.seed, index))
    }

    /// The `top_k` largest finite logits, best first.
    fn collect(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let k = match self.options.top_k {
            0 => logits.len(),
            k => (k as usize).min(logits.len()),
        };
        // A few hundred of a quarter million: a running threshold throws nearly all away at the first comparison.
        let roomy = k.saturating_mul(4).max(1024);
        let mut floor = f32::NEG_INFINITY;
        for (token, &logit) in logits.iter().enumerate() {
            if logit > floor || (floor == f32::NEG_INFINITY && logit.is_finite()) {
                if logit == f32::INFINITY || logit.is_nan() {
                    continue;
                }
                self.candidates.push(Candidate { token: token as TokenId, logit, probability: 0.0 });
                if self.candidates.len() >= roomy && k < self.candidates.len() {
                    floor = keep_best(&mut self.candidates, k);
                }
            }
        }
        if k < self.candidates.len() {
            keep_best(&mut self.candidates, k);
        }
        self.candidates.sort_unstable_by(best_first);
        self.softmax();
    }

    fn softmax(&mut self) {
        let Some(best) = self.candidates.first().map(|candidate| candidate.logit) else { return };
        let mut sum = 0.0;
        for candidate in &mut self.candidates {
            candidate.probability = (candidate.logit - best).exp();
            sum += candidate.probability;
        }
        for candidate in &mut self.candidates {
            candidate.probability /= sum;
        }
    }

    /// Keeps the tokens whose surprise is nearest to the expected one, until `typical_p` is reached (Meister et al.,
    /// "Locally Typical Sampling").
    fn typical_p(&mut self) {
        let p = self.options.typical_p;
        if p.is_nan() || p >= 1.0 {
            return;
        }
        let entropy: f32 = self.candidates.iter().map(|c| surprise(c.probability) * c.probability).sum();
        self.candidates.sort_by(|a, b| {
            let distance = |c: &Candidate| (surprise(c.probability) - entropy).abs();
            distance(a).total_cmp(&distance(b))
        });
        let keep = prefix_until(&self.candidates, p);
        self.candidates.truncate(keep);
        self.candidates.sort_unstable_by(best_first);
        self.softmax();
    }

    /// Keeps the best tokens until their probabilities add up to `top_p`.
    fn top_p(&mut self) {
        let p = self.options.top_p;
        if p.is_nan() || p >= 1.0 {
            return;
        }
        let keep = prefix_until(&self.candidates, p);
        self.candidates.truncate(keep);
        self.softmax();
    }

    /// Keeps the tokens at least `min_p` times as likely as the best one.
    fn min_p(&mut self) {
        let p = self.options.min_p;
        if p.is_nan() || p <= 0.0 {
            return;
        }
        let floor = self.candidates[0].probability * p.min(1.0);
        let keep = self.candidates.iter().take_while(|candidate| candidate.probability >= floor).count();
        self.candidates.truncate(keep.max(1));
    }

    /// Scales by the temperature and draws with `number` of `0.0..1.0`.
    fn draw(&mut self, number: f64) -> Option<TokenId> {
        let temperature = self.options.temperature;
        if !temperature.is_nan() {
            for candidate in &mut self.candidates {
                candidate.logit /= temperature;
            }
        }
        self.softmax();
        let sum: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.probability)).sum();
        let mut left = number * sum;
        for candidate in &self.candidates {
            left -= f64::from(candidate.probability);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        self.candidates.last().map(|candidate| candidate.token)
    }
}

fn differs(value: f32, neutral: f32) -> bool {
    (value - neutral).abs() > f32::EPSILON
}

fn best_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Leaves the best `k` and returns the logit of the worst of them.
fn keep_best(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    if k == 0 {
        candidates.clear();
        return f32::INFINITY;
    }
    let (_, worst, _) = candidates.select_nth_unstable_by(k - 1, best_first);
    let floor = worst.logit;
    candidates.truncate(k);
    floor
}

/// How many candidates from the front it takes to reach the probability `p`; at least one.
fn prefix_until(candidates: &[Candidate], p: f32) -> usize {
    let mut sum = 0.0;
    for (index, candidate) in candidates.iter().enumerate() {
        sum += candidate.probability;
        if sum >= p {
            return index + 1;
        }
    }
    candidates.len()
}

fn surprise(probability: f32) -> f32 {
    if probability > 0.0 { -probability.ln() } else { 0.0 }
}

/// The largest logit; the first of equals. NaN is never chosen.
fn argmax(logits: &[f32]) -> Option<TokenId> {
    let mut best = f32::NEG_INFINITY;
    let mut at = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best {
            best = logit;
            at = Some(token as TokenId);
        }
    }
    at
}

/// A number of `0.0..1.0` that depends on `seed` and `index` only: the finaliser of SplitMix64 (Steele, Lea and
/// Flood, "Fast splittable pseudorandom number generators", 2014) over both.
fn unit(seed: u64, index: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(index.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN));
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The log probability of `token` under raw `logits`, with the `top` best alternatives.
#[must_use]
pub fn logprobs(logits: &[f32], token: TokenId, top: usize, vocab: &Vocab) -> TokenLogprob {
    let best = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - best).exp()).filter(|e| e.is_finite()).sum();
    let norm = f64::from(best) + sum.ln();
    // JSON has no infinity; a forced token can be as unlikely as it likes.
    let logprob = |logit: f32| ((f64::from(logit) - norm) as f32).clamp(-1e9, 0.0);
    let mut candidates: Vec<Candidate> = Vec::new();
    if top > 0 {
        let mut floor = f32::NEG_INFINITY;
        for (id, &logit) in logits.iter().enumerate() {
            if logit.is_finite() && (logit > floor || candidates.len() < top) {
                candidates.push(Candidate { token: id as TokenId, logit, probability: 0.0 });
                if candidates.len() >= 8 * top {
                    floor = keep_best(&mut candidates, top);
                }
            }
        }
        candidates.sort_unstable_by(best_first);
        candidates.truncate(top);
    }
    TokenLogprob {
        bytes: vocab.spelling(token).to_vec(),
        logprob: logits.get(token as usize).map_or(-1e9, |&logit| logprob(logit)),
        top: candidates
            .iter()
            .map(|c| TopLogprob { bytes: vocab.spelling(c.token).to_vec(), logprob: logprob(c.logit) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Sampling {
        Sampling {
            seed: 1,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }

    /// Which tokens are ever drawn in many draws.
    fn drawn(options: Sampling, logits: &[f32]) -> Vec<TokenId> {
        let mut sampler = Sampler::new(options);
        let mut seen: Vec<_> = (0..2000).filter_map(|index| sampler.choose(logits, index)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    const LOGITS: [f32; 5] = [0.0, 3.0, 2.0, 2.5, -1.0];

    #[test]
    fn greedy_is_the_first_of_the_best() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..options() });
        assert_eq!(sampler.choose(&[1.0, 5.0, 5.0], 0), Some(1));
        assert_eq!(sampler.choose(&[f32::NAN, -2.0, f32::NAN], 0), Some(1));
    }

    #[test]
    fn filters_keep_what_they_say() {
        assert_eq!(drawn(options(), &LOGITS), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..options() }, &LOGITS), [1, 3]);
        assert_eq!(drawn(Sampling { top_p: 0.5, ..options() }, &LOGITS), [1, 3]);
        assert_eq!(drawn(Sampling { min_p: 0.5, ..options() }, &LOGITS), [1, 3]);
        assert_eq!(drawn(Sampling { top_p: 0.0, ..options() }, &LOGITS), [1]);
        assert_eq!(drawn(Sampling { typical_p: 0.2, ..options() }, &LOGITS).len(), 1);
    }

    #[test]
    fn the_same_seed_and_index_draw_the_same_and_history_does_not_matter() {
        let mut calm = Sampler::new(options());
        let all: Vec<_> = (0..50).map(|index| calm.choose(&LOGITS, index)).collect();
        let mut resumed = Sampler::new(options());
        let tail: Vec<_> = (20..50).map(|index| resumed.choose(&LOGITS, index)).collect();
        assert_eq!(all[20..], tail);
        let mut other = Sampler::new(Sampling { seed: 2, ..options() });
        assert_ne!(all, (0..50).map(|index| other.choose(&LOGITS, index)).collect::<Vec<_>>());
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut sampler = Sampler::new(options());
        let logits = [0.0_f32, (3.0_f32).ln()];
        let ones = (0..20_000).filter(|&index| sampler.choose(&logits, index) == Some(1)).count();
        assert!((14_700..15_300).contains(&ones), "{ones} of 20000, expected 15000");
    }

    #[test]
    fn penalties_follow_llama_cpp() {
        let penalties = Sampling { repeat_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..options() };
        let mut logits = [4.0, -4.0, 1.0];
        Sampler::new(penalties).penalize(&mut logits, &[0, 0, 1, 99]);
        assert_eq!(logits, [4.0 / 2.0 - 1.0, -8.0 - 0.75, 1.0]);
        let mut logits = [4.0, 4.0];
        let window = Sampling { repeat_penalty: 2.0, repeat_last_n: 1, ..options() };
        Sampler::new(window).penalize(&mut logits, &[0, 1]);
        assert_eq!(logits, [4.0, 2.0], "only the last one is looked back on");
    }

    #[test]
    fn nothing_allowed_is_none_and_odd_numbers_do_not_panic() {
        let nothing = [f32::NEG_INFINITY; 4];
        assert_eq!(Sampler::new(options()).choose(&nothing, 0), None);
        for odd in [f32::NAN, f32::INFINITY, -1.0, 1e30] {
            let all = Sampling {
                temperature: odd,
                top_p: odd,
                min_p: odd,
                typical_p: odd,
                repeat_penalty: odd,
                presence_penalty: odd,
                frequency_penalty: odd,
                repeat_last_n: -1,
                ..options()
            };
            let mut sampler = Sampler::new(all);
            let mut logits = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2.0];
            sampler.penalize(&mut logits, &[0, 4]);
            let _ = sampler.choose(&logits, 0);
        }
    }

    #[test]
    fn a_large_vocabulary_gives_the_same_best_as_a_full_sort() {
        let logits: Vec<f32> = (0..100_000).map(|i| (unit(7, i) * 20.0) as f32).collect();
        let mut sampler = Sampler::new(Sampling { top_k: 40, ..options() });
        sampler.collect(&logits);
        let mut sorted: Vec<_> = logits.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let best: Vec<_> = sorted[..40].iter().map(|&(token, _)| token as TokenId).collect();
        assert_eq!(sampler.candidates.iter().map(|c| c.token).collect::<Vec<_>>(), best);
    }

    #[test]
    fn log_probabilities_add_up() {
        let vocab = Vocab { bytes: vec![b"a".to_vec(); 5], ..Vocab::default() };
        let entry = logprobs(&LOGITS, 1, 5, &vocab);
        let sum: f32 = entry.top.iter().map(|top| top.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
        assert!(entry.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        assert_eq!(entry.logprob, entry.top[0].logprob);
        assert_eq!(logprobs(&LOGITS, 1, 0, &vocab).top, []);
    }
}
