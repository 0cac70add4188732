//! How many tokens of prompts a step may take beside slots that generate, so that these don't wait for a stranger's prompt.
//!
//! Learned from the steps before: a step with a part of a prompt takes about half as long again as one without, on whatever
//! device. Where tokens of prompts cost next to nothing, as on a GPU, that is a large part. Pure; it is told of times.

use std::time::Duration;

use crate::limits::{
    PREFILL_BESIDE_MIN, PREFILL_BESIDE_SHARE, PREFILL_CHUNK_TOKENS, PREFILL_CHUNK_TOKENS_FIRST,
    PREFILL_CHUNK_TOKENS_MIN, PREFILL_STEPS_BESIDE,
};

/// Of what is known, a new step counts for this part.
const WEIGHT: f64 = 0.2;

/// What steps have taken lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step in which all slots generate.
    decode: Option<f64>,
    /// Seconds that a token of a prompt adds.
    prompt_token: Option<f64>,
    /// Tokens of prompts in the last step that had any; 0 where there has been none for a while.
    last: usize,
    /// Steps since one in which all slots generated.
    since: usize,
}

impl Pace {
    /// A step of so many generating slots and so many tokens of prompts has taken this long.
    pub(super) fn saw(&mut self, took: Duration, generating: usize, prompt_tokens: usize) {
        let took = took.as_secs_f64();
        match (generating, prompt_tokens) {
            (_, 0) if self.since == 0 => self.last = 0,
            (_, 0) => self.since = 0,
            (_, tokens) => {
                self.last = tokens;
                self.since += 1;
            }
        }
        match (generating, prompt_tokens) {
            (_, 0) => learn(&mut self.decode, took),
            // The first guess, where nobody was there to wait.
            (0, tokens) if self.prompt_token.is_none() => learn(&mut self.prompt_token, took / tokens as f64),
            (0, _) => {}
            (_, tokens) => {
                if let Some(decode) = self.decode {
                    learn(&mut self.prompt_token, (took - decode).max(0.0) / tokens as f64);
                }
            }
        }
    }

    /// Tokens of prompts that the next step may take beside generating slots. None now and then, to see what a step takes
    /// without.
    pub(super) fn prompt_tokens(&self) -> usize {
        let most = PREFILL_CHUNK_TOKENS as usize;
        let Some(decode) = self.decode.filter(|_| self.since < PREFILL_STEPS_BESIDE) else { return 0 };
        let Some(token) = self.prompt_token else { return PREFILL_CHUNK_TOKENS_FIRST };
        let time = (decode * PREFILL_BESIDE_SHARE).max(PREFILL_BESIDE_MIN.as_secs_f64());
        let tokens = if token > 0.0 { (time / token) as usize } else { most };
        // A guess from larger parts, or from long ago, is tried with small ones first.
        tokens.clamp(PREFILL_CHUNK_TOKENS_MIN, most).min((2 * self.last).max(PREFILL_CHUNK_TOKENS_FIRST))
    }
}

fn learn(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |known| known + WEIGHT * (new - known)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_prompt_takes_half_as_long_as_those_who_generate() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens(), 0, "nothing is known");
        pace.saw(800 * MS, 0, 400);
        for _ in 0..3 {
            pace.saw(40 * MS, 2, 0);
        }
        assert_eq!(pace.prompt_tokens(), PREFILL_CHUNK_TOKENS_FIRST, "tried with a small part first");
        pace.saw(40 * MS + 10 * 2 * MS, 2, 10);
        assert_eq!(pace.prompt_tokens(), 10);
        // Small parts may cost more for each of their tokens.
        for _ in 0..50 {
            pace.saw(120 * MS, 2, 20);
        }
        pace.saw(40 * MS, 2, 0);
        assert_eq!(pace.prompt_tokens(), 5);
    }

    #[test]
    fn where_prompts_cost_nothing_they_soon_come_in_large_parts() {
        let mut pace = Pace::default();
        pace.saw(2 * MS, 1, 0);
        let mut parts = Vec::new();
        for _ in 0..8 {
            parts.push(pace.prompt_tokens());
            pace.saw(2 * MS, 1, pace.prompt_tokens());
        }
        assert_eq!(parts, [8, 16, 32, 64, 128, 256, 512, 512]);
    }

    #[test]
    fn what_a_step_takes_without_prompts_is_looked_at_however_many_prompts_wait() {
        let mut pace = Pace::default();
        // Answers grow longer, and each step takes more for them.
        let (mut parts, mut decode) = (Vec::new(), 40 * MS);
        for _ in 0..200 {
            let tokens = pace.prompt_tokens();
            pace.saw(decode + MS * u32::try_from(tokens).unwrap(), 2, tokens);
            parts.push(tokens);
            decode += MS / 5;
        }
        assert!(parts[190..].iter().all(|&tokens| tokens == 0 || tokens > 10), "{:?}", &parts[190..]);
        assert!(parts.iter().filter(|&&tokens| tokens == 0).count() <= 200 / PREFILL_STEPS_BESIDE + 1);
    }

    #[test]
    fn a_prompt_gets_on_however_slow_it_is() {
        let mut pace = Pace::default();
        pace.saw(10 * MS, 1, 0);
        pace.saw(1_000 * MS, 1, 4);
        assert_eq!(pace.prompt_tokens(), PREFILL_CHUNK_TOKENS_MIN);
    }
}
