//! What is added to a row of logits, and taken away, before a token is chosen.

use std::collections::{HashMap, HashSet};

/// Likes and dislikes of a request, as the API has them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Leanings {
    /// Taken from a token for each time it was written.
    pub(crate) frequency_penalty: f32,
    /// Taken from a token that was written.
    pub(crate) presence_penalty: f32,
    /// Divides what stands in the prompt or the answer; 1 is none.
    pub(crate) repetition_penalty: f32,
    /// Added to tokens.
    pub(crate) bias: Vec<(u32, f32)>,
    /// The answer does not end before it has so many tokens.
    pub(crate) min_tokens: usize,
}

impl Default for Leanings {
    fn default() -> Self {
        Self {
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
            min_tokens: 0,
        }
    }
}

impl Leanings {
    fn counts(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    fn repeats(&self) -> bool {
        self.repetition_penalty != 1.0
    }
}

/// What was said so far, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct History {
    /// How often each token was written, where that counts.
    written: Option<HashMap<u32, u16>>,
    /// What stands in the prompt or the answer, where that counts.
    seen: Option<HashSet<u32>>,
    eos: Vec<u32>,
    count: usize,
}

impl History {
    pub(super) fn new(leanings: &Leanings, prompt: &[u32], eos: &[u32]) -> Self {
        Self {
            written: leanings.counts().then(HashMap::new),
            seen: (leanings.repeats()).then(|| prompt.iter().copied().collect()),
            eos: eos.to_vec(),
            count: 0,
        }
    }

    pub(super) fn wrote(&mut self, token: u32) {
        self.count += 1;
        if let Some(written) = &mut self.written {
            let times = written.entry(token).or_default();
            *times = times.saturating_add(1);
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(token);
        }
    }

    /// Puts the row with all that is added and taken away in `row`; false where there is nothing of it.
    pub(super) fn lean(&self, leanings: &Leanings, logits: &[f32], row: &mut Vec<f32>) -> bool {
        let too_early = self.count < leanings.min_tokens;
        let told = self.written.is_some() || self.seen.is_some() || !leanings.bias.is_empty();
        if !told && !too_early {
            return false;
        }
        row.clear();
        row.extend_from_slice(logits);
        let mut change = |token: u32, changed: &dyn Fn(f32) -> f32| {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = changed(*logit);
            }
        };
        let penalty = leanings.repetition_penalty;
        for token in self.seen.iter().flatten() {
            let divided = |logit: f32| match logit > 0.0 {
                true => logit / penalty,
                false => logit * penalty,
            };
            change(*token, &divided);
        }
        for (token, times) in self.written.iter().flatten() {
            let taken = leanings.frequency_penalty * f32::from(*times) + leanings.presence_penalty;
            change(*token, &|logit| logit - taken);
        }
        for (token, bias) in &leanings.bias {
            change(*token, &|logit| logit + bias);
        }
        if too_early {
            for token in &self.eos {
                change(*token, &|_| f32::NEG_INFINITY);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(leanings: &Leanings, written: &[u32], expected: &[f32]) {
        let mut history = History::new(leanings, &[0], &[3]);
        for token in written {
            history.wrote(*token);
        }
        let mut row = Vec::new();
        assert!(history.lean(leanings, &[4.0, -4.0, 2.0, 9.0], &mut row));
        assert_eq!(row, expected);
    }

    #[test]
    fn each_leaning_does_what_the_api_says() {
        let none = Leanings::default();
        let twice = [1, 1, 2];
        let frequency = Leanings {
            frequency_penalty: 0.5,
            ..none.clone()
        };
        check(&frequency, &twice, &[4.0, -5.0, 1.5, 9.0]);
        let presence = Leanings {
            presence_penalty: -1.0,
            ..none.clone()
        };
        check(&presence, &twice, &[4.0, -3.0, 3.0, 9.0]);
        let repetition = Leanings {
            repetition_penalty: 2.0,
            ..none.clone()
        };
        check(&repetition, &twice, &[2.0, -8.0, 1.0, 9.0]);
        let bias = Leanings {
            bias: vec![(0, 100.0), (2, -1.0), (70, 5.0)],
            ..none
        };
        check(&bias, &[], &[104.0, -4.0, 1.0, 9.0]);
        let early = Leanings {
            min_tokens: 4,
            ..Leanings::default()
        };
        check(&early, &twice, &[4.0, -4.0, 2.0, f32::NEG_INFINITY]);
        let mut history = History::new(&early, &[], &[3]);
        (0..4).for_each(|_| history.wrote(1));
        assert!(
            !history.lean(&early, &[1.0], &mut Vec::new()),
            "late enough"
        );
        assert!(!History::default().lean(&none, &[1.0], &mut Vec::new()));
    }
}
