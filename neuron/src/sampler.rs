//! Chooses the next token from a row of logits.
//!
//! The same logits, settings and seed give the same token. Nothing here is shared between requests.

/// Multiplier and increments of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Tokens this much less likely than the likeliest are left out: a large vocabulary of them together
/// is still below 1 in 1,000.
const WEIGHT_MIN: f32 = 1e-9;

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
    ranked: Vec<(u32, f32)>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            random: SplitMix64(sampling.seed),
            ranked: Vec::new(),
        }
    }

    /// The next token. A row without one finite number yields none.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        if self.sampling.temperature <= 0.0 {
            return Some(best);
        }
        let peak = logits[best as usize];
        let temperature = self.sampling.temperature;
        self.ranked.clear();
        self.ranked.extend(
            (0u32..)
                .zip(logits)
                .filter(|(_, logit)| logit.is_finite())
                .map(|(token, logit)| (token, ((logit - peak) / temperature).exp()))
                .filter(|(_, weight)| *weight > WEIGHT_MIN),
        );
        if self.sampling.top_p < 1.0 {
            // Ties are ordered by token, so that the choice does not depend on the sort.
            self.ranked
                .sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            self.ranked
                .truncate(nucleus(&self.ranked, self.sampling.top_p));
        }
        Some(draw(&self.ranked, self.random.unit()))
    }
}

fn argmax(logits: &[f32]) -> Option<u32> {
    let finite = (0u32..).zip(logits).filter(|(_, logit)| logit.is_finite());
    finite
        .fold(
            None,
            |best: Option<(u32, f32)>, (token, logit)| match best {
                Some((_, peak)) if peak >= *logit => best,
                _ => Some((token, *logit)),
            },
        )
        .map(|(token, _)| token)
}

/// How many of the ranked tokens make up `top_p` of the probability; at least one.
fn nucleus(ranked: &[(u32, f32)], top_p: f32) -> usize {
    let wanted = total(ranked) * f64::from(top_p);
    let mut sum = 0.0;
    for (n, (_, weight)) in ranked.iter().enumerate() {
        sum += f64::from(*weight);
        if sum >= wanted {
            return n + 1;
        }
    }
    ranked.len()
}

fn draw(ranked: &[(u32, f32)], unit: f64) -> u32 {
    let mut left = total(ranked) * unit;
    for (token, weight) in ranked {
        left -= f64::from(*weight);
        if left < 0.0 {
            return *token;
        }
    }
    // Rounding can leave a last crumb; the last token takes it.
    ranked[ranked.len() - 1].0
}

fn total(ranked: &[(u32, f32)]) -> f64 {
    ranked.iter().map(|(_, weight)| f64::from(*weight)).sum()
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

    #[test]
    fn a_tiny_temperature_is_as_good_as_greedy() {
        let mut sampler = sampler(1e-6, 1.0, 2);
        assert!((0..50).all(|_| sampler.choose(&[1.0, 1.5, 1.4]) == Some(1)));
    }
}
