//! A stream against the calm run of the same prompt, token by token. Pure.

/// The next best token was this close (difference of log probabilities): rounding may decide which is taken, since the
/// sums of a step are rounded in another order where others share it. Most formats differ by nothing or some 1e-5 then;
/// llama.cpp's K-quants, whose rows are computed by fours, have been seen to differ by 0.4.
pub(crate) const TIE_MARGIN: f64 = 0.5;

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    /// Its text.
    pub(crate) text: String,
    /// How much likelier it was than the next best one.
    pub(crate) margin: f64,
    /// That one.
    pub(crate) runner_up: String,
}

/// Everything a client heard of one answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) tokens: Vec<Token>,
    pub(crate) text: String,
    /// Terminal events, and whatever came after the first.
    pub(crate) ends: u32,
    /// `stop` or `length`.
    pub(crate) reason: Option<String>,
    /// Tokens of the prompt and of the answer, as the server says.
    pub(crate) counts: Option<(u64, u64)>,
    /// The first thing that is an error.
    pub(crate) trouble: Option<String>,
}

/// What a stream was, against the calm one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// The same, and counted the same.
    Exact,
    /// Fewer tokens came than the server counts.
    Lost,
    /// More came than the server counts.
    Duplicated,
    /// The same tokens in another order.
    Reordered,
    /// No terminal event came, or an error.
    Errored,
    /// Something came after the terminal event.
    EndedTwice,
    /// The same tokens with other counts or another text.
    Miscounted,
    /// It went another way at a place where two tokens were as good as equal.
    DivergedAtTie,
    /// It went another way somewhere else.
    Diverged,
}

impl Verdict {
    /// All but the first, in the order in which they are told of.
    pub(crate) const FAULTS: [Self; 8] = [
        Self::Lost,
        Self::Duplicated,
        Self::Reordered,
        Self::Errored,
        Self::EndedTwice,
        Self::Miscounted,
        Self::Diverged,
        Self::DivergedAtTie,
    ];

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Lost => "tokens lost",
            Self::Duplicated => "tokens duplicated",
            Self::Reordered => "tokens reordered",
            Self::Errored => "errored or cut off",
            Self::EndedTwice => "ended twice",
            Self::Miscounted => "counted wrongly",
            Self::DivergedAtTie => "diverged at a tie",
            Self::Diverged => "diverged elsewhere",
        }
    }
}

/// Judges a stream. With a divergence comes where it was.
pub(crate) fn judge(calm: &Heard, heard: &Heard) -> (Verdict, Option<usize>) {
    if heard.trouble.is_some() || heard.ends == 0 || heard.reason.is_none() {
        return (Verdict::Errored, None);
    }
    if heard.ends > 1 {
        return (Verdict::EndedTwice, None);
    }
    let Some((prompt, counted)) = heard.counts else { return (Verdict::Miscounted, None) };
    let texts = |heard: &Heard| heard.tokens.iter().map(|token| token.text.clone()).collect::<Vec<_>>();
    let (before, after) = (texts(calm), texts(heard));
    if before == after {
        let same = heard.counts == calm.counts && heard.text == calm.text && heard.reason == calm.reason;
        return (if same { Verdict::Exact } else { Verdict::Miscounted }, None);
    }
    // The token that ends an answer is counted and has no text.
    let silent = u64::from(heard.reason.as_deref() == Some("stop"));
    let delivered = after.len() as u64;
    if delivered + silent < counted {
        return (Verdict::Lost, None);
    }
    if delivered > counted || (silent == 0 && delivered != counted) {
        return (Verdict::Duplicated, None);
    }
    if calm.counts.is_none_or(|(calm_prompt, _)| calm_prompt != prompt) {
        return (Verdict::Miscounted, None);
    }
    let (mut one, mut other) = (before.clone(), after.clone());
    one.sort();
    other.sort();
    if one == other {
        return (Verdict::Reordered, None);
    }
    let at = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
    let tie = calm.tokens.get(at).is_some_and(|token| {
        // An answer that ended here took a token without a text.
        token.margin <= TIE_MARGIN && after.get(at).is_none_or(|taken| *taken == token.runner_up)
    });
    (if tie { Verdict::DivergedAtTie } else { Verdict::Diverged }, Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(words: &str, counted: u64) -> Heard {
        let token = |word: &str| Token { text: word.to_owned(), margin: 2.0, runner_up: "x".to_owned() };
        Heard {
            tokens: words.split(' ').map(token).collect(),
            text: words.to_owned(),
            ends: 1,
            reason: Some("length".to_owned()),
            counts: Some((5, counted)),
            trouble: None,
        }
    }

    #[test]
    fn every_fault_is_told_from_every_other() {
        let calm = heard("a b c d", 4);
        let of = |heard: Heard| judge(&calm, &heard).0;
        assert_eq!(of(heard("a b c d", 4)), Verdict::Exact);
        assert_eq!(of(heard("a b d", 4)), Verdict::Lost);
        assert_eq!(of(heard("a b b c d", 4)), Verdict::Duplicated);
        assert_eq!(of(heard("a c b d", 4)), Verdict::Reordered);
        assert_eq!(of(heard("a b c d", 5)), Verdict::Miscounted);
        assert_eq!(of(Heard { ends: 0, ..heard("a b c d", 4) }), Verdict::Errored);
        assert_eq!(of(Heard { ends: 2, ..heard("a b c d", 4) }), Verdict::EndedTwice);
        assert_eq!(of(Heard { trouble: Some("no".to_owned()), ..heard("a b c d", 4) }), Verdict::Errored);
        assert_eq!(of(Heard { counts: Some((6, 4)), ..heard("a b c e", 4) }), Verdict::Miscounted);
    }

    #[test]
    fn a_divergence_is_excused_at_a_tie_only() {
        let mut calm = heard("a b c d", 4);
        assert_eq!(judge(&calm, &heard("a b x d", 4)), (Verdict::Diverged, Some(2)));
        calm.tokens[2].margin = TIE_MARGIN / 2.0;
        assert_eq!(judge(&calm, &heard("a b x d", 4)), (Verdict::DivergedAtTie, Some(2)));
        assert_eq!(judge(&calm, &heard("a b y d", 4)), (Verdict::Diverged, Some(2)), "not the next best");
        let stopped = Heard { reason: Some("stop".to_owned()), ..heard("a b", 3) };
        assert_eq!(judge(&calm, &stopped), (Verdict::DivergedAtTie, Some(2)), "the end was the next best");
    }
}
