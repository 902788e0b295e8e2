//! Chooses the next token from a row of logits.
//!
//! The same logits, settings and seed give the same token. Nothing here is shared between requests.

use std::cmp::Ordering;

pub(crate) use self::leanings::Leanings;
use self::{leanings::History, row::Weights};
use crate::shape::Allowed;

mod leanings;
mod row;

/// Multiplier and increments of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// How a request wants its tokens chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    /// 0 is greedy.
    pub(crate) temperature: f32,
    /// Keep the likeliest tokens that together have this probability.
    pub(crate) top_p: f32,
    /// Keep so many of the likeliest.
    pub(crate) top_k: Option<usize>,
    /// Keep those that are at least this likely, the likeliest being 1.
    pub(crate) min_p: f32,
    /// Start of the random sequence.
    pub(crate) seed: u64,
    /// What is added and taken away before.
    pub(crate) leanings: Leanings,
    /// Tells how likely each chosen token was, and so many of the likeliest.
    pub(crate) logprobs: Option<usize>,
}

#[cfg(test)]
impl Sampling {
    /// The plainest: the likeliest token, always.
    pub(crate) fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            seed: 0,
            leanings: Leanings::default(),
            logprobs: None,
        }
    }
}

/// Chooses tokens for one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    history: History,
    // Kept between steps: a vocabulary is large and a step is short.
    row: Vec<f32>,
    weights: Weights,
    first: Vec<Ranked>,
}

impl Sampler {
    /// For an answer to `prompt`, which ends with one of `eos`.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32], eos: &[u32]) -> Self {
        Self {
            random: SplitMix64(sampling.seed),
            history: History::new(&sampling.leanings, prompt, eos),
            sampling,
            row: Vec::new(),
            weights: Weights::default(),
            first: Vec::new(),
        }
    }

    /// The next token, of those that are allowed. A row without one finite number yields none.
    pub(crate) fn choose(&mut self, logits: &[f32], allowed: Option<&Allowed>) -> Option<Chosen> {
        let mut row = std::mem::take(&mut self.row);
        let leans = (self.history).lean(&self.sampling.leanings, logits, &mut row);
        if let Some(allowed) = allowed {
            if !leans {
                row.clear();
                row.extend_from_slice(logits);
            }
            allowed.apply(&mut row);
        }
        let changed = leans || allowed.is_some();
        let token = self.pick(if changed { &row } else { logits });
        self.row = row;
        let token = token?;
        self.history.wrote(token);
        let logprobs = self.sampling.logprobs;
        Some(Chosen {
            token,
            likely: logprobs.map(|count| Box::new(self.likely(logits, token, count))),
        })
    }

    fn pick(&mut self, logits: &[f32]) -> Option<u32> {
        let peak = row::peak(logits)?;
        let sampling = &self.sampling;
        // of the smallest temperatures there is no reciprocal: they are as good as none
        if sampling.temperature <= 0.0 || sampling.temperature.recip().is_infinite() {
            let best = logits.iter().position(|logit| *logit == peak);
            return best.and_then(|best| u32::try_from(best).ok());
        }
        self.weights.fill(logits, peak, sampling.temperature);
        if sampling.min_p > 0.0 {
            self.weights.leave_out_below(sampling.min_p);
        }
        if let Some(count) = sampling.top_k {
            self.weights.keep_first(count, &mut self.first);
        }
        Some(match sampling.top_p < 1.0 {
            true => {
                let share = f64::from(sampling.top_p);
                self.weights.draw_first(share, || self.random.unit())
            }
            false => self.weights.draw(self.random.unit()),
        })
    }

    /// How likely the model itself finds a token, and the likeliest of all.
    fn likely(&mut self, logits: &[f32], token: u32, count: usize) -> Likely {
        let Some(peak) = row::peak(logits) else {
            return Likely::default();
        };
        self.weights.fill(logits, peak, 1.0);
        let whole = f64::from(peak) + self.weights.total().ln();
        let logprob = |token: u32| match logits.get(token as usize) {
            Some(logit) if logit.is_finite() => f64::from(*logit) - whole,
            _ => LOGPROB_NEVER,
        };
        self.first.clear();
        if count > 0 {
            self.weights.first(count, &mut self.first);
        }
        Likely {
            logprob: logprob(token),
            likeliest: (self.first.iter())
                .map(|ranked| (ranked.token, logprob(ranked.token)))
                .collect(),
        }
    }
}

/// How likely a token is that never comes, as the API has it.
const LOGPROB_NEVER: f64 = -9999.0;

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) token: u32,
    /// Where it was asked for.
    pub(crate) likely: Option<Box<Likely>>,
}

/// How likely a token was, before anything was added or taken away; natural logarithms.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Likely {
    pub(crate) logprob: f64,
    /// The likeliest first.
    pub(crate) likeliest: Vec<(u32, f64)>,
}

/// A token and its weight, the likeliest first and of equals the one with the lowest number.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    token: u32,
    weight: f32,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_weight = other.weight.total_cmp(&self.weight);
        by_weight.then(self.token.cmp(&other.token))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// A small generator with a 64-bit state: enough to choose tokens, and the same on every machine.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in [0, 1), from the upper 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        let sampling = Sampling {
            temperature,
            top_p,
            seed,
            ..Sampling::greedy()
        };
        Sampler::new(sampling, &[], &[])
    }

    fn token(sampler: &mut Sampler, logits: &[f32]) -> Option<u32> {
        sampler.choose(logits, None).map(|chosen| chosen.token)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(
            token(&mut sampler(0.0, 1.0, 1), &[0.5, 2.0, 2.0, -1.0]),
            Some(1)
        );
    }

    #[test]
    fn numbers_that_are_none_are_never_chosen() {
        assert_eq!(
            token(&mut sampler(0.0, 1.0, 1), &[f32::NAN, 1.0, f32::INFINITY]),
            Some(1)
        );
        assert_eq!(
            token(&mut sampler(1.0, 1.0, 1), &[f32::NAN, f32::NEG_INFINITY]),
            None
        );
        let mut hot = sampler(1.0, 1.0, 1);
        assert!((0..100).all(|_| token(&mut hot, &[f32::NAN, 1.0, 1.0]) != Some(0)));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0u8..64).map(|n| f32::from(n % 7)).collect();
        let run = |seed| {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..32)
                .map(|_| token(&mut sampler, &logits).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn top_p_keeps_only_the_likeliest() {
        // softmax of these: about 0.66, 0.24, 0.09, 0.01
        let logits = [4.0, 3.0, 2.0, 0.0];
        let mut narrow = sampler(1.0, 0.6, 3);
        assert!((0..200).all(|_| token(&mut narrow, &logits) == Some(0)));
        let mut wider = sampler(1.0, 0.85, 3);
        let seen: Vec<u32> = (0..400)
            .map(|_| token(&mut wider, &logits).unwrap())
            .collect();
        assert!(seen.contains(&0) && seen.contains(&1) && !seen.contains(&2) && !seen.contains(&3));
    }

    #[test]
    fn shares_follow_the_probabilities() {
        let logits = [1.0f32.ln(), 3.0f32.ln()];
        let mut sampler = sampler(1.0, 1.0, 11);
        let ones = (0..4000)
            .filter(|_| token(&mut sampler, &logits) == Some(1))
            .count();
        assert!(
            (2850..3150).contains(&ones),
            "{ones} of 4000, expected about 3000"
        );
    }

    /// The tokens that a full sort finds in a nucleus.
    fn sorted_nucleus(logits: &[f32], top_p: f64) -> Vec<u32> {
        let peak = logits.iter().copied().fold(f32::MIN, f32::max);
        let mut ranked: Vec<Ranked> = (0u32..)
            .zip(logits)
            .map(|(token, logit)| Ranked {
                token,
                weight: (logit - peak).exp(),
            })
            .collect();
        ranked.sort_unstable();
        let total: f64 = ranked.iter().map(|ranked| f64::from(ranked.weight)).sum();
        let mut before = 0.0;
        let within = ranked.iter().take_while(|ranked| {
            let within = before < total * top_p || before == 0.0;
            before += f64::from(ranked.weight);
            within
        });
        within.map(|ranked| ranked.token).collect()
    }

    #[test]
    fn all_of_the_nucleus_is_drawn_by_its_share_and_nothing_else() {
        // many ties, and an end that lies among them
        let logits: Vec<f32> = (0u8..40).map(|n| f32::from(n % 4)).collect();
        let nucleus = sorted_nucleus(&logits, 0.55);
        let mut sampler = sampler(1.0, 0.55, 9);
        let mut drawn = vec![0u32; logits.len()];
        for _ in 0..40_000 {
            drawn[token(&mut sampler, &logits).unwrap() as usize] += 1;
        }
        // Ten of e^3 are 0.64 of all, so nine are needed.
        assert_eq!(nucleus.len(), 9);
        for (at, count) in (0u32..).zip(drawn) {
            let expected = if nucleus.contains(&at) {
                4_100..4_800
            } else {
                0..1
            };
            assert!(expected.contains(&count), "{at}: {count}");
        }
    }

    #[test]
    fn top_k_and_min_p_leave_out_the_unlikely() {
        let logits = [4.0, 3.0, 3.0, 2.0, 0.0];
        let drawn = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling {
                temperature: 1.0,
                seed: 4,
                ..Sampling::greedy()
            };
            change(&mut sampling);
            let mut sampler = Sampler::new(sampling, &[], &[]);
            let tokens: std::collections::BTreeSet<u32> = (0..2_000)
                .map(|_| token(&mut sampler, &logits).unwrap())
                .collect();
            tokens.into_iter().collect::<Vec<u32>>()
        };
        assert_eq!(drawn(|_| ()), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(|sampling| sampling.top_k = Some(2)), [0, 1]);
        assert_eq!(drawn(|sampling| sampling.top_k = Some(1)), [0]);
        assert_eq!(drawn(|sampling| sampling.top_k = Some(99)), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(|sampling| sampling.min_p = 0.3), [0, 1, 2]);
        assert_eq!(drawn(|sampling| sampling.min_p = 1.0), [0]);
        // what is left is the whole for top_p
        let both = drawn(|sampling| (sampling.top_k, sampling.top_p) = (Some(3), 0.7));
        assert_eq!(both, [0, 1]);
    }

    #[test]
    fn how_likely_a_token_was_is_told_as_the_model_sees_it() {
        let logits = [1.0f32.ln(), 2.0f32.ln(), 5.0f32.ln(), f32::NEG_INFINITY];
        let mut sampling = Sampling::greedy();
        sampling.logprobs = Some(2);
        sampling.leanings.bias = vec![(2, -100.0)];
        let chosen = Sampler::new(sampling, &[], &[])
            .choose(&logits, None)
            .unwrap();
        let likely = chosen.likely.unwrap();
        let near = |logprob: f64, share: f64| (logprob - share.ln()).abs() < 1e-5;
        assert_eq!(chosen.token, 1);
        assert!(near(likely.logprob, 0.25), "{likely:?}");
        let [(2, first), (1, second)] = likely.likeliest[..] else {
            panic!("{likely:?}")
        };
        assert!(near(first, 0.625) && near(second, 0.25), "{likely:?}");
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_in_the_nucleus_of_a_full_sort(weights in proptest::collection::vec(1u8..20, 1..300), top_p in 0.0f64..1.0, seed: u64) {
            let logits: Vec<f32> = weights.iter().map(|weight| f32::from(*weight) / 4.0).collect();
            #[expect(clippy::cast_possible_truncation, reason = "as it comes")]
            let token = token(&mut sampler(1.0, top_p as f32, seed), &logits).unwrap();
            // sums are not exact
            let nucleus = sorted_nucleus(&logits, top_p + 1e-5);
            prop_assert!(nucleus.contains(&token), "{token} of {nucleus:?}");
        }

        #[test]
        fn only_tokens_of_the_nucleus_are_drawn(logits in proptest::collection::vec(-30.0f32..30.0, 1..2_000), top_p in 0.01f32..1.0, seed: u64) {
            let token = token(&mut sampler(1.0, top_p, seed), &logits).unwrap();
            let peak = logits.iter().copied().fold(f32::MIN, f32::max);
            let weight = |logit: f32| f64::from(logit - peak).exp();
            let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
            let chosen = logits[token as usize];
            let above: f64 = logits.iter().filter(|logit| **logit > chosen).map(|logit| weight(*logit)).sum();
            prop_assert!(above <= total * f64::from(top_p) * 1.000_1, "{above} of {total}");
        }
    }

    #[test]
    #[ignore = "a measurement, not a check: prints what a row costs"]
    #[expect(clippy::print_stdout, reason = "what it is for")]
    fn what_a_row_costs() {
        const VOCAB: usize = 151_936;
        const ROWS: u32 = 200;
        let mut random = SplitMix64(1);
        // Twelve uniforms make a bell, as logits are spread.
        let mut bell = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        #[expect(clippy::cast_possible_truncation, reason = "logits")]
        let logits: Vec<f32> = (0..VOCAB).map(|_| (bell() * 2.5) as f32).collect();
        for (name, temperature, top_p) in [
            ("greedy", 0.0, 1.0),
            ("all", 1.0, 1.0),
            ("top_p 0.9", 1.0, 0.9),
        ] {
            let mut sampler = sampler(temperature, top_p, 1);
            let rows = (0..ROWS).map(|_| {
                let started = std::time::Instant::now();
                std::hint::black_box(sampler.choose(std::hint::black_box(&logits), None));
                started.elapsed()
            });
            println!(
                "{name}: {:?} a row of {VOCAB}, the best of {ROWS}",
                rows.min().unwrap_or_default()
            );
        }
    }

    #[test]
    fn a_tiny_temperature_is_as_good_as_greedy() {
        for temperature in [1e-6, 1e-38, f32::MIN_POSITIVE, 1e-39, 1e-45] {
            let mut sampler = sampler(temperature, 1.0, 2);
            assert!((0..50).all(|_| token(&mut sampler, &[1.0, 1.5, 1.4]) == Some(1)));
        }
    }
}
