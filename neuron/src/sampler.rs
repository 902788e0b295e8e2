//! Chooses the next token from a row of logits.
//!
//! The same logits, settings and seed give the same token. Nothing here is shared between requests.

use std::cmp::Ordering;

use self::row::Weights;

mod row;

/// Multiplier and increments of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// How a request wants its tokens chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampling {
    /// 0 is greedy.
    pub(crate) temperature: f32,
    /// Keep the likeliest tokens that together have this probability.
    pub(crate) top_p: f32,
    /// Start of the random sequence.
    pub(crate) seed: u64,
}

/// Chooses tokens for one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    // Kept between steps: a vocabulary is large and a step is short.
    weights: Weights,
    kept: Vec<Ranked>,
    scratch: Vec<Ranked>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            random: SplitMix64(sampling.seed),
            weights: Weights::default(),
            kept: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The next token. A row without one finite number yields none.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let peak = row::peak(logits)?;
        if self.sampling.temperature <= 0.0 {
            let best = logits.iter().position(|logit| *logit == peak);
            return best.and_then(|best| u32::try_from(best).ok());
        }
        (self.weights).fill(logits, peak, self.sampling.temperature);
        let unit = self.random.unit();
        Some(match self.sampling.top_p < 1.0 {
            true => self.within_nucleus(unit),
            false => self.weights.draw(unit),
        })
    }

    /// Draws from the likeliest tokens that together have `top_p` of the probability; at least one.
    fn within_nucleus(&mut self, unit: f64) -> u32 {
        let wanted = self.weights.total() * f64::from(self.sampling.top_p);
        self.weights.candidates(wanted, &mut self.kept);
        self.scratch.clone_from(&self.kept);
        let last = last_of_nucleus(&mut self.scratch, wanted);
        self.kept.retain(|ranked| *ranked <= last);
        draw(&self.kept, unit)
    }
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

/// The last of the first tokens that together weigh `wanted`. Nothing is sorted that need not be: the
/// part in which it lies is halved again and again. Leaves `ranked` in another order.
fn last_of_nucleus(ranked: &mut [Ranked], wanted: f64) -> Ranked {
    assert!(
        !ranked.is_empty(),
        "the likeliest token is always a candidate"
    );
    let (mut part, mut before) = (ranked, 0.0);
    while part.len() > 1 {
        let middle = part.len() / 2;
        part.select_nth_unstable(middle);
        let (first, rest) = part.split_at_mut(middle);
        let weight = total(first);
        match before + weight >= wanted {
            true => part = first,
            false => (part, before) = (rest, before + weight),
        }
    }
    part[0]
}

fn draw(ranked: &[Ranked], unit: f64) -> u32 {
    let mut left = total(ranked) * unit;
    for Ranked { token, weight } in ranked {
        left -= f64::from(*weight);
        if left < 0.0 {
            return *token;
        }
    }
    // Rounding can leave a last crumb; the last token takes it.
    ranked[ranked.len() - 1].token
}

fn total(ranked: &[Ranked]) -> f64 {
    ranked.iter().map(|ranked| f64::from(ranked.weight)).sum()
}

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
        Sampler::new(Sampling {
            temperature,
            top_p,
            seed,
        })
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 1.0, 1).choose(&[0.5, 2.0, 2.0, -1.0]), Some(1));
    }

    #[test]
    fn numbers_that_are_none_are_never_chosen() {
        assert_eq!(
            sampler(0.0, 1.0, 1).choose(&[f32::NAN, 1.0, f32::INFINITY]),
            Some(1)
        );
        assert_eq!(
            sampler(1.0, 1.0, 1).choose(&[f32::NAN, f32::NEG_INFINITY]),
            None
        );
        let mut hot = sampler(1.0, 1.0, 1);
        assert!((0..100).all(|_| hot.choose(&[f32::NAN, 1.0, 1.0]) != Some(0)));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0u8..64).map(|n| f32::from(n % 7)).collect();
        let run = |seed| {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..32)
                .map(|_| sampler.choose(&logits).unwrap())
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
        assert!((0..200).all(|_| narrow.choose(&logits) == Some(0)));
        let mut wider = sampler(1.0, 0.85, 3);
        let seen: Vec<u32> = (0..400).map(|_| wider.choose(&logits).unwrap()).collect();
        assert!(seen.contains(&0) && seen.contains(&1) && !seen.contains(&2) && !seen.contains(&3));
    }

    #[test]
    fn shares_follow_the_probabilities() {
        let logits = [1.0f32.ln(), 3.0f32.ln()];
        let mut sampler = sampler(1.0, 1.0, 11);
        let ones = (0..4000)
            .filter(|_| sampler.choose(&logits) == Some(1))
            .count();
        assert!(
            (2850..3150).contains(&ones),
            "{ones} of 4000, expected about 3000"
        );
    }

    /// What a full sort says.
    fn sorted_nucleus(mut ranked: Vec<Ranked>, wanted: f64) -> Ranked {
        ranked.sort_unstable();
        let mut sum = 0.0;
        let last = ranked.iter().find(|ranked| {
            sum += f64::from(ranked.weight);
            sum >= wanted
        });
        *last.unwrap_or(&ranked[ranked.len() - 1])
    }

    proptest! {
        #[test]
        fn the_nucleus_is_that_of_a_full_sort(weights in proptest::collection::vec(1u8..20, 1..300), top_p in 0.0f64..1.0) {
            // Small whole numbers: many ties, and sums that are exact in any order.
            let ranked: Vec<Ranked> = (0u32..).zip(&weights).map(|(token, weight)| Ranked { token, weight: f32::from(*weight) }).collect();
            let wanted = total(&ranked) * top_p;
            prop_assert_eq!(last_of_nucleus(&mut ranked.clone(), wanted), sorted_nucleus(ranked, wanted));
        }

        #[test]
        fn only_tokens_of_the_nucleus_are_drawn(logits in proptest::collection::vec(-30.0f32..30.0, 1..2_000), top_p in 0.01f32..1.0, seed: u64) {
            let token = sampler(1.0, top_p, seed).choose(&logits).unwrap();
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
                std::hint::black_box(sampler.choose(std::hint::black_box(&logits)));
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
        let mut sampler = sampler(1e-6, 1.0, 2);
        assert!((0..50).all(|_| sampler.choose(&[1.0, 1.5, 1.4]) == Some(1)));
    }
}
