//! A row of logits as weights. Loops here are written so that the compiler makes them run over many
//! numbers at once: a vocabulary has 150,000 of them, and a step a few milliseconds.

use super::Ranked;

/// Numbers worked on at once.
const LANES: usize = 16;
/// Numbers whose weights are summed before the sum is kept: few enough for 32 bits.
const BLOCK: usize = 256;
/// Tokens this much less likely than the likeliest are left out, e to the minus of it: a large vocabulary
/// of them together is still below 1 in 1,000.
const DEPTH_MAX: f32 = 20.7;
/// Sums are not exact.
const NEARLY: f64 = 0.999;

const _: () = assert!(BLOCK.is_multiple_of(LANES));

/// The largest finite number.
pub(super) fn peak(logits: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    let all = lanes.iter().chain(rest);
    let peak = all.fold(f32::NEG_INFINITY, |most, logit| larger(most, *logit));
    peak.is_finite().then_some(peak)
}

/// What is no number, and infinity, is larger than nothing.
#[inline]
fn larger(most: f32, logit: f32) -> f32 {
    if logit > most && logit < f32::INFINITY {
        logit
    } else {
        most
    }
}

/// How likely each token is, the likeliest 1.
#[derive(Debug, Default)]
pub(super) struct Weights {
    weights: Vec<f32>,
    /// Sums of so many weights each.
    blocks: Vec<f64>,
}

impl Weights {
    /// Weighs all tokens of a row with this peak.
    pub(super) fn fill(&mut self, logits: &[f32], peak: f32, temperature: f32) {
        self.weights.resize(logits.len(), 0.0);
        self.blocks.clear();
        let scale = temperature.recip();
        let blocks = logits.chunks(BLOCK).zip(self.weights.chunks_mut(BLOCK));
        for (logits, weights) in blocks {
            for (weight, logit) in weights.iter_mut().zip(logits) {
                *weight = exp((*logit - peak) * scale);
            }
            self.blocks.push(sum(weights));
        }
    }

    /// What all weigh together.
    pub(super) fn total(&self) -> f64 {
        self.blocks.iter().sum()
    }

    /// The token at `unit` of the way through all weights.
    pub(super) fn draw(&self, unit: f64) -> u32 {
        let mut left = self.total() * unit;
        let here = |weight: &f64| {
            let here = left < *weight;
            if !here {
                left -= *weight;
            }
            here
        };
        let block = self.blocks.iter().position(here);
        // Rounding can leave a last crumb; the last token with any weight takes it.
        let last = || self.blocks.iter().rposition(|weight| *weight > 0.0);
        let first = BLOCK * block.or_else(last).unwrap_or(0);
        let weights = &self.weights[first..self.weights.len().min(first + BLOCK)];
        let here = |weight: &f32| {
            left -= f64::from(*weight);
            left < 0.0
        };
        let at = weights.iter().position(here);
        let last = || weights.iter().rposition(|weight| *weight > 0.0);
        token(first + at.or_else(last).unwrap_or(0))
    }

    /// All tokens that can be among the first that weigh `wanted` together, in their order. What weighs less
    /// than an equal share of the rest cannot: even all of such together are no more than the rest.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a bound that need not be exact"
    )]
    pub(super) fn candidates(&self, wanted: f64, kept: &mut Vec<Ranked>) {
        kept.clear();
        let least = (self.total() - wanted) / self.weights.len().max(1) as f64;
        let least = (least * NEARLY) as f32;
        for (n, chunk) in self.weights.chunks(LANES).enumerate() {
            let any = chunk
                .iter()
                .fold(false, |any, weight| any | (*weight > least));
            if any {
                let all = chunk
                    .iter()
                    .enumerate()
                    .filter(|(_, weight)| **weight > least);
                kept.extend(all.map(|(at, weight)| Ranked {
                    token: token(n * LANES + at),
                    weight: *weight,
                }));
            }
        }
    }
}

fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let chunks = weights.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += *weight;
        }
    }
    f64::from(lanes.iter().sum::<f32>() + rest)
}

fn token(at: usize) -> u32 {
    u32::try_from(at).expect("a vocabulary is counted in 32 bits")
}

/// e to the power of what is not above 0; 0 where that is next to nothing, and for what is no number. Within
/// a millionth, and the same on every machine.
#[inline]
fn exp(x: f32) -> f32 {
    // Adding and taking away this rounds to a whole number, which is left in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const MANTISSA_BITS: u32 = 23;
    let within = x > -DEPTH_MAX && x <= 0.0;
    let x = if within { x } else { 0.0 };
    let power = x * std::f32::consts::LOG2_E;
    let rounded = power + ROUND;
    let f = power - (rounded - ROUND);
    // Two to the power of what is left, within half of one, by Taylor's series.
    let tail = 0.009_618_129 + f * (0.001_333_355_8 + f * 0.000_154_035_3);
    let part =
        1.0 + f * (std::f32::consts::LN_2 + f * (0.240_226_5 + f * (0.055_504_11 + f * tail)));
    let whole = rounded.to_bits() << MANTISSA_BITS;
    if within {
        f32::from_bits(part.to_bits().wrapping_add(whole))
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn powers_are_those_of_the_library_within_a_millionth() {
        for n in 0u16..2_070 {
            let x = -f32::from(n) / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-6, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        for nothing in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -20.71, 0.1] {
            assert_eq!(exp(nothing), 0.0, "{nothing}");
        }
    }

    #[test]
    fn the_peak_is_the_largest_finite_number_wherever_it_stands() {
        for at in 0..70 {
            let mut row = vec![-3.0; 70];
            row[(at + 1) % 70] = f32::NAN;
            row[(at + 2) % 70] = f32::INFINITY;
            row[at] = -2.0;
            assert_eq!(peak(&row), Some(-2.0), "at {at}");
        }
        assert_eq!(peak(&[]), None);
        assert_eq!(peak(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_drawn_has_a_weight(logits in proptest::collection::vec(-60.0f32..60.0, 1..1_000), unit in 0.0f64..1.0) {
            let mut weights = Weights::default();
            weights.fill(&logits, peak(&logits).unwrap(), 1.0);
            let drawn = weights.draw(unit) as usize;
            prop_assert!(weights.weights[drawn] > 0.0);
            prop_assert!(weights.weights[weights.draw(1.0) as usize] > 0.0, "rounding");
        }

        #[test]
        fn candidates_weigh_what_is_wanted(logits in proptest::collection::vec(-20.0f32..20.0, 1..1_000), top_p in 0.0f64..1.0) {
            let mut weights = Weights::default();
            weights.fill(&logits, peak(&logits).unwrap(), 1.0);
            let wanted = weights.total() * top_p;
            let mut kept = Vec::new();
            weights.candidates(wanted, &mut kept);
            let weight: f64 = kept.iter().map(|ranked| f64::from(ranked.weight)).sum();
            prop_assert!(!kept.is_empty() && weight >= wanted * 0.999_999, "{weight} of {wanted}");
        }
    }
}
