//! Every filter against its plain definition, and hostile numbers against all of them.

use super::*;
use crate::vocab::TokenKind;

fn settings() -> Sampling {
    Sampling {
        seed: 1,
        seeded: false,
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

fn vocab(size: usize) -> Vocab {
    Vocab {
        bytes: (0..size).map(|id| id.to_string().into_bytes()).collect(),
        kinds: vec![TokenKind::Text; size],
        ..Vocab::default()
    }
}

fn noise(size: usize, seed: u64) -> Vec<f32> {
    (0..size as u64).map(|index| (uniform(seed, index) * 16.0 - 8.0) as f32).collect()
}

fn choose(sampler: &Sampler, logits: &[f32]) -> Result<TokenId, SampleError> {
    let mut logits = logits.to_vec();
    sampler.sample(&mut logits, None, None, &mut Scratch::default()).map(|choice| choice.token)
}

/// Every token that ever comes up in `draws` draws.
fn support(settings: &Sampling, logits: &[f32], draws: usize) -> Vec<TokenId> {
    let mut sampler = Sampler::new(settings, 4096);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..draws {
        seen.insert(choose(&sampler, logits).unwrap());
        sampler.accept(0);
    }
    seen.into_iter().collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let greedy = Sampler::new(&Sampling { temperature: 0.0, ..settings() }, 4096);
    for size in [1, 5, 63, 64, 65, 1000] {
        let mut logits = noise(size, 3);
        let best = size / 2;
        logits[best] = 9.0;
        logits[size - 1] = 9.0;
        assert_eq!(choose(&greedy, &logits), Ok(best.min(size - 1) as TokenId), "{size}");
    }
    assert_eq!(choose(&greedy, &[1.0, f32::INFINITY, f32::NEG_INFINITY]), Ok(1));
}

#[test]
fn top_equals_a_full_sort() {
    for size in [1, 64, 257, 5000] {
        let logits: Vec<f32> = noise(size, 5).iter().map(|logit| logit.round()).collect();
        let mut sorted: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
        for count in [0, 1, 7, 40, 200, 6000] {
            let mut best = Vec::new();
            top(&logits, count, &mut best);
            let best: Vec<(TokenId, f32)> = best.iter().map(|candidate| (candidate.id, candidate.logit)).collect();
            assert_eq!(best, sorted[..count.min(size)], "{count} of {size}");
        }
    }
}

#[test]
fn each_filter_keeps_what_its_definition_says() {
    // Probabilities 0.5, 0.25, 0.125, 0.125, in an order that is not sorted.
    let logits = [0.125_f32, 0.5, 0.125, 0.25].map(f32::ln);
    assert_eq!(support(&settings(), &logits, 400), [0, 1, 2, 3]);
    assert_eq!(support(&Sampling { top_k: 2, ..settings() }, &logits, 400), [1, 3]);
    assert_eq!(support(&Sampling { top_k: 1, ..settings() }, &logits, 400), [1]);
    assert_eq!(support(&Sampling { top_p: 0.6, ..settings() }, &logits, 400), [1, 3]);
    assert_eq!(support(&Sampling { top_p: 0.4, ..settings() }, &logits, 400), [1]);
    assert_eq!(support(&Sampling { top_p: 0.0, ..settings() }, &logits, 400), [1]);
    assert_eq!(support(&Sampling { min_p: 0.4, ..settings() }, &logits, 400), [1, 3]);
    assert_eq!(support(&Sampling { min_p: 7.0, ..settings() }, &logits, 400), [1]);
    // Entropy is 1.75 ln 2 and the surprises are 1, 2, 3, 3: the second token is the most typical one.
    assert_eq!(support(&Sampling { typical_p: 0.2, ..settings() }, &logits, 400), [3]);
    assert_eq!(support(&Sampling { typical_p: 0.6, ..settings() }, &logits, 400), [1, 3]);
    assert_eq!(support(&Sampling { temperature: 1e-30, ..settings() }, &logits, 40), [1]);
    assert_eq!(support(&Sampling { temperature: f32::INFINITY, ..settings() }, &logits, 400), [0, 1, 2, 3]);
}

#[test]
fn the_partial_sort_of_top_p_agrees_with_a_full_one() {
    for top_p in [0.1, 0.5, 0.9, 0.99, 0.9999] {
        let logits = noise(3000, 11);
        let mut candidates: Vec<Candidate> =
            logits.iter().enumerate().map(|(id, &logit)| Candidate::new(id, logit)).collect();
        let max = highest(&candidates);
        let total = weigh(&mut candidates, max, 1.0);
        let mut sorted = candidates.clone();
        sorted.sort_by(better);
        let mut sum = 0.0;
        let count = sorted
            .iter()
            .take_while(|c| {
                let more = sum < top_p * total;
                sum += c.weight;
                more
            })
            .count();
        keep_mass(&mut candidates, top_p);
        let ids = |list: &[Candidate]| list.iter().map(|candidate| candidate.id).collect::<Vec<_>>();
        assert_eq!(ids(&candidates), ids(&sorted[..count]), "{top_p}");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.7_f32, 0.2, 0.1].map(f32::ln);
    let mut sampler = Sampler::new(&settings(), 4096);
    let mut counts = [0_u32; 3];
    for _ in 0..20_000 {
        counts[choose(&sampler, &logits).unwrap() as usize] += 1;
        sampler.accept(0);
    }
    for (count, expected) in counts.iter().zip([14_000_f64, 4_000.0, 2_000.0]) {
        assert!((f64::from(*count) - expected).abs() < 300.0, "{counts:?}");
    }
}

#[test]
fn a_draw_depends_on_seed_and_index_only() {
    let logits = noise(500, 2);
    let draws = |seed| {
        let mut sampler = Sampler::new(&Sampling { seed, ..settings() }, 4096);
        (0..50)
            .map(|_| {
                let token = choose(&sampler, &logits).unwrap();
                sampler.accept(token);
                token
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(draws(7), draws(7));
    assert_ne!(draws(7), draws(8));
    // Another history of the same length leads to the same draw.
    let mut other = Sampler::new(&Sampling { seed: 7, ..settings() }, 4096);
    (0..20).for_each(|token| other.accept(token));
    assert_eq!(choose(&other, &logits), Ok(draws(7)[20]));
}

#[test]
fn penalties_follow_llama_cpp() {
    let on = Sampling { repeat_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..settings() };
    let mut sampler = Sampler::new(&on, 4096);
    sampler.accept_prompt(&[0, 1]);
    sampler.accept(0);
    let mut logits = [4.0, -4.0, 1.0];
    sampler.penalize(&mut logits, &mut Vec::new());
    assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.25 - 0.5, -4.0 * 2.0 - 0.25 - 0.5, 1.0]);
}

#[test]
fn penalties_look_back_only_so_far() {
    let window = |repeat_last_n| {
        let mut sampler = Sampler::new(&Sampling { presence_penalty: 1.0, repeat_last_n, ..settings() }, 8);
        sampler.accept_prompt(&(0..20).collect::<Vec<_>>());
        sampler.accept(3);
        sampler.accept(3);
        let mut logits = [0.0; 20];
        sampler.penalize(&mut logits, &mut Vec::new());
        (0..20).filter(|&id| logits[id] != 0.0).collect::<Vec<_>>()
    };
    assert_eq!(window(0), [0_usize; 0]);
    assert_eq!(window(3), [3, 19]);
    assert_eq!(window(-1), [3, 14, 15, 16, 17, 18, 19], "the whole window of 8");
    assert_eq!(window(i32::MAX), window(-1));
}

#[test]
fn no_option_and_no_logit_panics() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, f32::MIN_POSITIVE, 1e30, 0.5];
    let mut rows = vec![vec![], vec![f32::NEG_INFINITY; 70], vec![f32::INFINITY; 70], vec![0.0; 70], noise(70, 1)];
    rows.push([noise(70, 1), vec![f32::NAN]].concat());
    rows.push([noise(70, 1), vec![f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN]].concat());
    for logits in rows {
        for value in odd {
            for field in 0..7 {
                let mut options = Sampling { top_k: 3 * (field % 2), ..settings() };
                match field {
                    0 => options.temperature = value,
                    1 => options.top_p = value,
                    2 => options.min_p = value,
                    3 => options.typical_p = value,
                    4 => options.repeat_penalty = value,
                    5 => options.presence_penalty = value,
                    _ => options.frequency_penalty = value,
                }
                let mut sampler = Sampler::new(&options, 4096);
                sampler.accept_prompt(&[0, 0, 1, 9999]);
                let mut spoilt = logits.clone();
                let vocab = vocab(logits.len());
                let chosen = sampler.sample(&mut spoilt, None, Some((20, &vocab)), &mut Scratch::default());
                match chosen {
                    Ok(choice) => {
                        let chosen = logits[choice.token as usize];
                        assert!(chosen > f32::NEG_INFINITY, "an impossible token was chosen");
                        let logprob = choice.logprob.expect("asked for");
                        assert!(logprob.logprob <= 0.0 && logprob.logprob.is_finite());
                    }
                    Err(SampleError::NotANumber) => assert!(logits.iter().any(|logit| logit.is_nan())),
                    Err(SampleError::NothingAllowed) => {
                        assert!(logits.iter().all(|&logit| logit == f32::NEG_INFINITY));
                    }
                    Err(SampleError::Grammar(_)) => panic!("there is no grammar"),
                }
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_before_any_option() {
    let logits = [0.125_f32, 0.5, 0.125, 0.25].map(|p| p.ln() + 3.0);
    let vocab = vocab(4);
    let on = Sampling { temperature: 0.0, presence_penalty: 9.0, top_k: 1, ..settings() };
    let mut sampler = Sampler::new(&on, 4096);
    sampler.accept_prompt(&[1, 3, 0]);
    let chosen = sampler.sample(&mut logits.clone(), None, Some((2, &vocab)), &mut Scratch::default()).unwrap();
    assert_eq!(chosen.token, 2, "the only one without a penalty");
    let report = chosen.logprob.unwrap();
    assert_eq!(report, logprobs(&logits, 2, 2, &vocab).unwrap());
    assert!((report.logprob - 0.125_f32.ln()).abs() < 1e-5);
    let top: Vec<(&[u8], f32)> = report.top.iter().map(|entry| (&entry.bytes[..], entry.logprob.exp())).collect();
    assert_eq!((top[0].0, top[1].0), (&b"1"[..], &b"3"[..]));
    assert!((top[0].1 - 0.5).abs() < 1e-5 && (top[1].1 - 0.25).abs() < 1e-5);

    sampler.accept(2);
    let penalized = sampler.sample(&mut logits.clone(), None, Some((0, &vocab)), &mut Scratch::default()).unwrap();
    assert_eq!(penalized.token, 1, "all are penalised alike now");
    let report = penalized.logprob.unwrap();
    assert!((report.logprob - 0.5_f32.ln()).abs() < 1e-5, "the penalty is not in the report");
    assert!(report.top.is_empty());
}
