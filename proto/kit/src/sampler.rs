//! Logits to a token: Ollama's options, in llama.cpp's order.
//!
//! Grammar, then penalties, `top_k`, `typical_p`, `top_p`, `min_p`, temperature and the draw. A temperature of 0 (or
//! below, or not a number) takes the most likely token after the penalties. The random draw is a function of the
//! seed and the number of tokens accepted so far, of nothing else, so that a resumed request repeats it.
//!
//! Options come from clients and logits from models: no value of either may panic. An option outside its range is
//! off; logits that are not numbers are an error, infinite ones are fine. Nothing of the vocabulary's size is
//! allocated per token, and nothing of that size is sorted.

use std::collections::{HashMap, VecDeque};

use ollmlx_proto::{Failure, Sampling, TokenId, TokenLogprob, TopLogprob};

use crate::grammar::Grammar;
use crate::vocab::Vocab;

/// The lowest log probability that is reported: JSON has no minus infinity. OpenAI's number for "very unlikely".
const LOGPROB_MIN: f32 = -9999.0;
/// Logits looked at in one go by the scans.
const BLOCK: usize = 64;
/// Independent maxima per block, so that the compiler can use vector registers.
const LANES: usize = 16;
/// First guess of how many candidates make up the wanted probability mass; grows fourfold.
const MASS_GUESS: usize = 64;

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is not a number.
    #[error("the model's output is not a number")]
    NotANumber,
    /// Every token is forbidden or infinitely unlikely.
    #[error("no token is possible")]
    NothingAllowed,
    /// The grammar gave up.
    #[error("the output grammar failed: {0}")]
    Grammar(Failure),
}

/// Buffers that the samplers of all slots share.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Vec<Candidate>,
    /// Logits as they were before the penalties, for log probabilities.
    raw: Vec<(TokenId, f32)>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: TokenId,
    logit: f32,
    /// Not normalised.
    weight: f64,
    /// What a filter sorts by; larger is better.
    rank: f64,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub token: TokenId,
    /// Where asked for.
    pub logprob: Option<TokenLogprob>,
}

/// The sampling state of one request.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    /// The last tokens, oldest first, and how often each is among them. Empty where no penalty is on.
    recent: VecDeque<TokenId>,
    recent_max: usize,
    counts: HashMap<TokenId, u32>,
    /// Tokens generated so far: the position in the random sequence.
    drawn: u64,
}

impl Sampler {
    /// At the start of a request with a window of `context_tokens`.
    #[must_use]
    pub fn new(settings: &Sampling, context_tokens: u32) -> Self {
        let mut settings = settings.clone();
        if !(settings.repeat_penalty > 0.0 && settings.repeat_penalty.is_finite()) {
            settings.repeat_penalty = 1.0;
        }
        let on = |penalty: f32| penalty != 0.0 && penalty.is_finite();
        settings.presence_penalty = if on(settings.presence_penalty) { settings.presence_penalty } else { 0.0 };
        settings.frequency_penalty = if on(settings.frequency_penalty) { settings.frequency_penalty } else { 0.0 };
        let any = settings.repeat_penalty != 1.0 || on(settings.presence_penalty) || on(settings.frequency_penalty);
        let recent_max = match settings.repeat_last_n {
            _ if !any => 0,
            last_n if last_n < 0 => context_tokens as usize,
            last_n => last_n.unsigned_abs().min(context_tokens) as usize,
        };
        Self { settings, recent: VecDeque::new(), recent_max, counts: HashMap::new(), drawn: 0 }
    }

    /// Tells of the prompt, which the penalties see as well.
    pub fn accept_prompt(&mut self, tokens: &[TokenId]) {
        for &token in &tokens[tokens.len().saturating_sub(self.recent_max)..] {
            self.remember(token);
        }
    }

    /// Tells which token was generated; the next draw is another one.
    pub fn accept(&mut self, token: TokenId) {
        self.drawn += 1;
        self.remember(token);
    }

    /// Chooses the next token. `logits` are spoilt. With `logprobs`, that many alternatives are reported too.
    ///
    /// # Errors
    /// See [`SampleError`].
    pub fn sample(
        &self,
        logits: &mut [f32],
        grammar: Option<&mut Grammar>,
        logprobs: Option<(u8, &Vocab)>,
        scratch: &mut Scratch,
    ) -> Result<Choice, SampleError> {
        let report = match logprobs {
            Some((top, vocab)) => Some((Distribution::of(logits, top, scratch)?, vocab)),
            None => None,
        };
        if let Some(grammar) = grammar {
            grammar.mask(logits).map_err(SampleError::Grammar)?;
        }
        scratch.raw.clear();
        self.penalize(logits, &mut scratch.raw);
        let best = peak(logits)?;
        let token = if self.settings.temperature > 0.0 {
            self.draw(logits, best.logit, &mut scratch.candidates)
        } else {
            best.id
        };
        let logprob = report.map(|(distribution, vocab)| {
            let before = scratch.raw.iter().find(|(id, _)| *id == token);
            let logit = before.map_or(logits[token as usize], |&(_, logit)| logit);
            distribution.report(token, logit, vocab)
        });
        Ok(Choice { token, logprob })
    }

    fn remember(&mut self, token: TokenId) {
        if self.recent_max == 0 {
            return;
        }
        if self.recent.len() == self.recent_max
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// The rule of llama.cpp's `llama_sampler_penalties_apply`: the repeat penalty pushes away from certainty on
    /// either side of zero, frequency counts, presence does not.
    fn penalize(&self, logits: &mut [f32], raw: &mut Vec<(TokenId, f32)>) {
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if !logit.is_finite() {
                continue;
            }
            raw.push((token, *logit));
            let repeat = self.settings.repeat_penalty;
            let scaled = if *logit <= 0.0 { *logit * repeat } else { *logit / repeat };
            *logit = scaled - count as f32 * self.settings.frequency_penalty - self.settings.presence_penalty;
        }
    }

    /// The filters and the draw. At least one logit is above minus infinity.
    fn draw(&self, logits: &[f32], max: f32, candidates: &mut Vec<Candidate>) -> TokenId {
        let settings = &self.settings;
        let top_k = settings.top_k as usize;
        candidates.clear();
        if top_k > 0 && top_k < logits.len() {
            top(logits, top_k, candidates);
        } else {
            let possible = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
            candidates.extend(possible.map(|(id, &logit)| Candidate::new(id, logit)));
        }
        let fraction = |value: f32| (0.0..1.0).contains(&value).then_some(f64::from(value));
        if let Some(typical_p) = fraction(settings.typical_p) {
            weigh(candidates, max, 1.0);
            keep_typical(candidates, typical_p);
        }
        if let Some(top_p) = fraction(settings.top_p) {
            let max = highest(candidates);
            weigh(candidates, max, 1.0);
            candidates.iter_mut().for_each(|candidate| candidate.rank = f64::from(candidate.logit));
            keep_mass(candidates, top_p);
        }
        let max = highest(candidates);
        if settings.min_p > 0.0 {
            let threshold = max + settings.min_p.min(1.0).ln();
            candidates.retain(|candidate| candidate.logit >= threshold);
        }
        let total = weigh(candidates, max, settings.temperature);
        let mut left = uniform(settings.seed, self.drawn) * total;
        for candidate in candidates.iter() {
            left -= candidate.weight;
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding may leave a crumb: the last one that is possible at all takes it.
        candidates.iter().rfind(|candidate| candidate.weight > 0.0).map_or(0, |candidate| candidate.id)
    }
}

/// What log probabilities need to know of all logits before anything changes them.
struct Distribution {
    log_sum: f64,
    top: Vec<(TokenId, f32)>,
}

impl Distribution {
    fn of(logits: &[f32], alternatives: u8, scratch: &mut Scratch) -> Result<Self, SampleError> {
        let max = peak(logits)?.logit;
        let sum: f64 = logits.iter().map(|&logit| f64::from(weight(logit, max, 1.0))).sum();
        scratch.candidates.clear();
        top(logits, usize::from(alternatives), &mut scratch.candidates);
        let top = scratch.candidates.iter().map(|candidate| (candidate.id, candidate.logit)).collect();
        Ok(Self { log_sum: f64::from(max) + sum.ln(), top })
    }

    fn logprob(&self, logit: f32) -> f32 {
        // Infinite logits: only those count, and alike.
        let difference = f64::from(logit) - self.log_sum;
        if difference.is_nan() { 0.0 } else { (difference as f32).clamp(LOGPROB_MIN, 0.0) }
    }

    fn report(&self, token: TokenId, logit: f32, vocab: &Vocab) -> TokenLogprob {
        let alternative = |&(id, logit): &(TokenId, f32)| TopLogprob {
            bytes: vocab.spelling(id).to_vec(),
            logprob: self.logprob(logit),
        };
        TokenLogprob {
            bytes: vocab.spelling(token).to_vec(),
            logprob: self.logprob(logit),
            top: self.top.iter().map(alternative).collect(),
        }
    }
}

/// The log probability of `token` and of the `alternatives` most likely tokens, from logits as the model made them.
///
/// # Errors
/// The logits hold something that is not a number, or nothing is possible.
pub fn logprobs(logits: &[f32], token: TokenId, alternatives: u8, vocab: &Vocab) -> Result<TokenLogprob, SampleError> {
    let distribution = Distribution::of(logits, alternatives, &mut Scratch::default())?;
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Ok(distribution.report(token, logit, vocab))
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Self {
        let id = TokenId::try_from(id).expect("a vocabulary's ids have 32 bits");
        Self { id, logit, weight: 0.0, rank: f64::from(logit) }
    }
}

/// The most likely token, in one pass; of equal ones the first.
fn peak(logits: &[f32]) -> Result<Candidate, SampleError> {
    let mut best = f32::NEG_INFINITY;
    let mut best_block = None;
    let mut any_nan = false;
    for (number, block) in logits.chunks(BLOCK).enumerate() {
        let (max, nan) = block_max(block);
        any_nan |= nan;
        if max > best {
            best = max;
            best_block = Some(number);
        }
    }
    if any_nan {
        return Err(SampleError::NotANumber);
    }
    let start = best_block.ok_or(SampleError::NothingAllowed)? * BLOCK;
    let offset = logits[start..].iter().position(|&logit| logit == best).expect("the maximum is in its block");
    Ok(Candidate::new(start + offset, best))
}

/// The largest number of a block, and whether it holds something that is not a number.
fn block_max(block: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (wide, rest) = block.as_chunks::<LANES>();
    for values in wide {
        for lane in 0..LANES {
            max[lane] = if values[lane] > max[lane] { values[lane] } else { max[lane] };
            nan[lane] |= values[lane].is_nan();
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        max[lane] = if value > max[lane] { value } else { max[lane] };
        nan[lane] |= value.is_nan();
    }
    (max.iter().copied().fold(f32::NEG_INFINITY, f32::max), nan.contains(&true))
}

/// The `count` most likely tokens into `best`, best first; of equal ones the first.
///
/// A threshold rises while the logits pass by, so that most blocks are only compared with it.
fn top(logits: &[f32], count: usize, best: &mut Vec<Candidate>) {
    if count == 0 {
        return;
    }
    let room = count.saturating_mul(2).max(BLOCK);
    let mut threshold = f32::NEG_INFINITY;
    for (number, block) in logits.chunks(BLOCK).enumerate() {
        if block_max(block).0 <= threshold {
            continue;
        }
        for (offset, &logit) in block.iter().enumerate() {
            if logit > threshold {
                best.push(Candidate::new(number * BLOCK + offset, logit));
            }
        }
        if best.len() >= room {
            best.select_nth_unstable_by(count - 1, better);
            best.truncate(count);
            threshold = best[count - 1].logit;
        }
    }
    if best.len() > count {
        best.select_nth_unstable_by(count - 1, better);
        best.truncate(count);
    }
    best.sort_unstable_by(better);
}

fn better(one: &Candidate, other: &Candidate) -> std::cmp::Ordering {
    other.rank.total_cmp(&one.rank).then(one.id.cmp(&other.id))
}

fn highest(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
}

/// Proportional to the probability; 1 for the most likely token. Infinite logits share everything among them.
fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    if logit == max {
        return 1.0;
    }
    let weight = ((logit - max) / temperature).exp();
    // Infinitely unlikely at an infinite temperature.
    if weight.is_nan() { 0.0 } else { weight }
}

/// Sets all weights and returns their sum.
fn weigh(candidates: &mut [Candidate], max: f32, temperature: f32) -> f64 {
    let mut total = 0.0;
    for candidate in candidates {
        candidate.weight = f64::from(weight(candidate.logit, max, temperature));
        total += candidate.weight;
    }
    total
}

/// Keeps the tokens whose surprise is closest to the expected one (Meister et al., "Locally Typical Sampling", 2022).
fn keep_typical(candidates: &mut Vec<Candidate>, mass: f64) {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let surprise = |weight: f64| if weight > 0.0 { -(weight / total).ln() } else { f64::INFINITY };
    let expected: f64 = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0.0)
        .map(|candidate| candidate.weight / total * surprise(candidate.weight))
        .sum();
    for candidate in candidates.iter_mut() {
        candidate.rank = -(surprise(candidate.weight) - expected).abs();
    }
    keep_mass(candidates, mass);
}

/// Keeps the best ranked candidates that together have the share `mass` of all weight, at least one; best first.
fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64) {
    let wanted = mass * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut guess = MASS_GUESS;
    loop {
        let sorted = guess.min(candidates.len());
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted, better);
        }
        candidates[..sorted].sort_unstable_by(better);
        let mut sum = 0.0;
        let enough = candidates[..sorted].iter().position(|candidate| {
            sum += candidate.weight;
            sum >= wanted
        });
        match enough {
            Some(last) => return candidates.truncate(last + 1),
            None if sorted == candidates.len() => return,
            None => guess = guess.saturating_mul(4),
        }
    }
}

/// A number of `0.0..1.0` that depends on the seed and the index only: SplitMix64 (Steele, Lea, Flood, "Fast
/// Splittable Pseudorandom Number Generators", OOPSLA 2014), whose state after n steps is `seed + n × γ`.
fn uniform(seed: u64, index: u64) -> f64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |mut state: u64| {
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    };
    // The seed is mixed first: seeds of neighbours would else give shifted copies of one sequence.
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(GAMMA.wrapping_mul(index.wrapping_add(1))));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
