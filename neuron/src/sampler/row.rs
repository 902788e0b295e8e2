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

const _: () = assert!(BLOCK.is_multiple_of(LANES));

/// The largest finite number.
pub(super) fn peak(logits: &[f32]) -> Option<f32> {
    let peak = match largest(logits, larger) {
        // Hardly ever; to look for it in each number takes twice as long.
        f32::INFINITY => largest(logits, |most, logit| match logit < f32::INFINITY {
            true => larger(most, logit),
            false => most,
        }),
        peak => peak,
    };
    peak.is_finite().then_some(peak)
}

fn largest(logits: &[f32], larger: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |most, logit| larger(most, *logit))
}

/// What is no number is larger than nothing.
#[inline]
fn larger(most: f32, logit: f32) -> f32 {
    if logit > most { logit } else { most }
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
        self.draw_before(unit, None).token
    }

    /// Draws from the first tokens, likeliest first, that together have a share of all weight; at least one. Nothing is
    /// sorted: what is drawn beyond them makes all that is no likelier stand aside, and the rest is drawn from
    /// again, each time a part of what was there before. Of what is drawn in the end, nobody can tell that more was there.
    pub(super) fn draw_first(&mut self, share: f64, mut unit: impl FnMut() -> f64) -> u32 {
        let wanted = self.total() * share;
        let mut last = None;
        loop {
            let drawn = self.draw_before(unit(), last);
            self.sum_before(drawn);
            let before = self.total();
            if before < wanted || before <= 0.0 {
                return drawn.token;
            }
            last = Some(drawn);
        }
    }

    /// The token at `unit` of the way through the weights that come before `last`, of which `blocks` has the sums.
    fn draw_before(&self, unit: f64, last: Option<Ranked>) -> Ranked {
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
        let crumb = || self.blocks.iter().rposition(|weight| *weight > 0.0);
        let first = BLOCK * block.or_else(crumb).unwrap_or(0);
        let weights = &self.weights[first..self.weights.len().min(first + BLOCK)];
        let ranked = weights.iter().enumerate().map(|(at, weight)| Ranked {
            token: token(first + at),
            weight: *weight,
        });
        let mut found = Ranked {
            token: token(first),
            weight: weights[0],
        };
        let counts =
            |ranked: &Ranked| ranked.weight > 0.0 && last.is_none_or(|last| *ranked < last);
        for ranked in ranked.filter(counts) {
            found = ranked;
            left -= f64::from(ranked.weight);
            if left < 0.0 {
                break;
            }
        }
        found
    }

    /// Sums the weights of what comes before `last`.
    fn sum_before(&mut self, last: Ranked) {
        let at = last.token as usize;
        let blocks = self.weights.chunks(BLOCK).zip(&mut self.blocks);
        for (n, (weights, block)) in blocks.enumerate() {
            let first = n * BLOCK;
            let (below, above) = weights.split_at(at.saturating_sub(first).min(weights.len()));
            *block = sum_of(below, |weight| weight >= last.weight)
                + sum_of(above, |weight| weight > last.weight);
        }
    }

    /// Leaves out what weighs less than this.
    pub(super) fn leave_out_below(&mut self, least: f32) {
        self.keep(|_, weight| weight >= least);
    }

    /// Leaves out all but the first `count` tokens, likeliest first.
    pub(super) fn keep_first(&mut self, count: usize, first: &mut Vec<Ranked>) {
        if count < self.weights.len() {
            self.first(count, first);
            let last = first[first.len() - 1];
            let at = last.token as usize;
            self.keep(|n, weight| weight > last.weight || (weight >= last.weight && n <= at));
        }
    }

    /// The first `count` tokens, likeliest first.
    pub(super) fn first(&self, count: usize, first: &mut Vec<Ranked>) {
        first.clear();
        let count = count.clamp(1, self.weights.len().max(1));
        // Of equals the ones that come later rank behind.
        let mut least = f32::NEG_INFINITY;
        for (n, chunk) in self.weights.chunks(LANES).enumerate() {
            let any = (chunk.iter()).fold(false, |any, weight| any | (*weight > least));
            if !any {
                continue;
            }
            let more = chunk
                .iter()
                .enumerate()
                .filter(|(_, weight)| **weight > least);
            first.extend(more.map(|(at, weight)| Ranked {
                token: token(n * LANES + at),
                weight: *weight,
            }));
            if first.len() >= 2 * count + LANES {
                first.select_nth_unstable(count - 1);
                first.truncate(count);
                least = first[count - 1].weight;
            }
        }
        first.sort_unstable();
        first.truncate(count);
    }

    fn keep(&mut self, keeps: impl Fn(usize, f32) -> bool) {
        let blocks = self.weights.chunks_mut(BLOCK).zip(&mut self.blocks);
        for (n, (weights, block)) in blocks.enumerate() {
            for (at, weight) in weights.iter_mut().enumerate() {
                *weight = if keeps(n * BLOCK + at, *weight) {
                    *weight
                } else {
                    0.0
                };
            }
            *block = sum(weights);
        }
    }
}

fn sum(weights: &[f32]) -> f64 {
    sum_of(weights, |_| true)
}

/// The sum of those that count.
#[inline]
fn sum_of(weights: &[f32], counts: impl Fn(f32) -> bool) -> f64 {
    let counted = |weight: f32| if counts(weight) { weight } else { 0.0 };
    let mut lanes = [0.0f32; LANES];
    let chunks = weights.chunks_exact(LANES);
    let rest: f32 = chunks
        .remainder()
        .iter()
        .map(|weight| counted(*weight))
        .sum();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += counted(*weight);
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
        fn the_first_are_those_of_a_full_sort(logits in proptest::collection::vec(0u8..30, 1..1_000), count in 1usize..60) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut weights = Weights::default();
            weights.fill(&logits, peak(&logits).unwrap(), 2.0);
            let mut sorted: Vec<Ranked> = (0..).zip(&weights.weights).map(|(token, weight)| Ranked { token, weight: *weight }).collect();
            sorted.sort_unstable();
            sorted.truncate(count);
            let mut first = Vec::new();
            weights.first(count, &mut first);
            prop_assert_eq!(&first, &sorted);
            weights.keep_first(count, &mut first);
            let kept: Vec<usize> = (0..logits.len()).filter(|at| weights.weights[*at] > 0.0).collect();
            let mut expected: Vec<usize> = sorted.iter().filter(|ranked| ranked.weight > 0.0).map(|ranked| ranked.token as usize).collect();
            expected.sort_unstable();
            prop_assert_eq!(kept, expected);
        }
    }
}
