//! How much of prompts is read between two steps of the answers under way.
//!
//! A run is sized by time: it may take as long as one and a half steps, so that a prompt, however
//! long, makes two tokens of an answer lie no further apart than three steps; but it has a few tokens
//! however long they take. Beside nobody it may take as long as arrivals may wait to be looked at, and has the
//! tokens of a piece however long they take: a CPU reads in pieces, a GPU all at once. What a run takes is
//! learned from the runs before. Nothing is measured here: times come in, sizes go out.

use std::time::Duration;

use crate::config::PREFILL_CHUNK_TOKENS;

/// Fewest tokens of a piece. With int4 weights on a CPU a piece of two takes nearly three times as long as a
/// step of one answer, and one of eight hardly longer: 45, 53 and 16 ms. Smaller ones would hold the answer
/// up as much, and the prompt four times as long.
const PIECE_MIN: usize = 8;
/// A piece may take so many halves of a step. Two steps would be the limit; the rest is for steps that
/// take longer than those before.
const HALF_STEPS: u32 = 3;
/// A piece beside answers is at most so many times as long as the one before, of which its time is foretold.
const GROWTH_MAX: usize = 2;
/// A run beside nobody may take so long, if it is to be longer than a piece: who comes meanwhile waits for its end.
const ALONE_MAX: Duration = Duration::from_millis(50);
/// The part of the newest step in what a step is taken to take.
const NEWEST_SHARE: u32 = 4;

const _: () = assert!(PIECE_MIN < PREFILL_CHUNK_TOKENS);

/// Whom the next piece of a prompt would hold up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// Nobody who could tell.
    Nobody,
    /// Answers that were under way before.
    Answers,
}

/// A piece that was read.
#[derive(Debug, Clone, Copy)]
struct Piece {
    tokens: usize,
    took: Duration,
}

/// Sizes pieces by what steps and pieces took.
#[derive(Debug, Default)]
pub(super) struct Pace {
    step: Option<Duration>,
    last: Option<Piece>,
    /// Tokens that take as long as a run takes whatever it reads, as they were measured, and as they are believed.
    spare: [usize; 2],
}

impl Pace {
    /// Where so many tokens take as long as a run takes whatever it reads.
    pub(super) fn new(spare: usize) -> Self {
        Self {
            spare: [spare, spare],
            ..Self::default()
        }
    }

    /// A step of the answers took so long. One that took very long is an accident, and no reason to
    /// let all further pieces take as long.
    pub(super) fn stepped(&mut self, took: Duration) {
        self.step = Some(match self.step {
            None => took,
            Some(step) => {
                let newest = took.min(step * 2);
                (step * (NEWEST_SHARE - 1) + newest) / NEWEST_SHARE
            }
        });
    }

    /// A piece of `tokens` took so long, where it might have been `planned` long.
    pub(super) fn read(&mut self, planned: usize, tokens: usize, took: Duration) {
        self.compare(tokens, took);
        // The end of a prompt may be a token or two, of which nothing follows for longer pieces.
        let tells = tokens == planned || self.last.is_none_or(|last| took > last.took);
        if tells && tokens > 0 {
            self.last = Some(Piece { tokens, took });
        }
    }

    /// Most tokens of the next run, where the decoder reads no more than `most` at once.
    pub(super) fn piece(&self, beside: Beside, most: usize) -> usize {
        assert!(most >= PREFILL_CHUNK_TOKENS, "every decoder reads a piece");
        match (beside, self.step, self.last) {
            (Beside::Nobody, _, None) => PREFILL_CHUNK_TOKENS,
            (Beside::Nobody, _, Some(last)) => {
                (self.fitting(last, ALONE_MAX)).clamp(PREFILL_CHUNK_TOKENS, most)
            }
            (Beside::Answers, Some(step), Some(last)) => {
                let grown = last.tokens.saturating_mul(GROWTH_MAX) + self.spare[1];
                let fitting = self.fitting(last, step * HALF_STEPS / 2);
                fitting.min(grown).clamp(PIECE_MIN, most)
            }
            (Beside::Answers, ..) => PIECE_MIN,
        }
    }

    /// Tokens that take `budget` together with what a run takes whatever it reads, by what the last piece took.
    fn fitting(&self, last: Piece, budget: Duration) -> usize {
        let [_, spare] = self.spare;
        let took = last.took.as_nanos().max(1);
        let all = ((last.tokens + spare) as u128).saturating_mul(budget.as_nanos()) / took;
        usize::try_from(all)
            .unwrap_or(usize::MAX)
            .saturating_sub(spare)
    }

    /// A longer piece that took much longer than was foretold tells that what a run takes was measured too high, and
    /// one that did not, that it was not.
    fn compare(&mut self, tokens: usize, took: Duration) {
        let [measured, believed] = self.spare;
        let Some(last) = self.last.filter(|last| tokens > last.tokens) else {
            return;
        };
        let (before, now) = (
            (last.tokens + believed) as u128,
            (tokens + believed) as u128,
        );
        let foretold = last.took.as_nanos().saturating_mul(now) / before.max(1);
        self.spare[1] = match took.as_nanos() * 2 > foretold.saturating_mul(3) {
            true => believed / 2,
            false => measured.min(believed + measured.div_ceil(16)),
        };
    }
}

/// How many of the tokens that are `left` to read come next, where at most so many may. Never one alone and
/// never all but one, except of a prompt of one token: kernels that quantise go another way for one row than
/// for several, and an answer is not to depend on how its prompt was cut.
pub(super) fn cut(left: usize, most: usize) -> usize {
    let tokens = left.min(most);
    match left - tokens {
        1 if tokens > 2 => tokens - 1,
        1 => tokens + 1,
        _ => tokens,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a decoder reads at once.
    const MOST: usize = 2_048;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// The longest piece, in hundredths of a step, while a prompt is read beside answers, on a machine
    /// where a piece takes `fixed` and `each` for every token.
    fn longest(pace: &mut Pace, step: u64, fixed: u64, each: u64, prompt: u64) -> u64 {
        let mut left = prompt;
        let mut longest = 0;
        while left > 0 {
            let planned = pace.piece(Beside::Answers, PREFILL_CHUNK_TOKENS);
            let tokens = left.min(planned as u64);
            let took = fixed + each * tokens;
            pace.read(planned, usize::try_from(tokens).unwrap(), us(took));
            pace.stepped(us(step));
            longest = longest.max(took * 100 / step);
            left -= tokens;
        }
        longest
    }

    #[test]
    fn pieces_beside_answers_take_at_most_two_steps() {
        // A CPU, where another token costs a tenth of a step; a GPU, where it costs next to nothing.
        for (step, fixed, each) in [
            (7_000, 4_000, 700),
            (4_000, 3_500, 10),
            (61_000, 42_000, 1_400),
        ] {
            let mut pace = Pace::default();
            pace.stepped(us(step));
            let longest = longest(&mut pace, step, fixed, each, 2_000);
            assert!(longest <= 200, "{longest} % of a step of {step} us");
        }
    }

    #[test]
    fn a_prompt_beside_nobody_is_read_in_the_longest_pieces() {
        let mut pace = Pace::default();
        assert_eq!(pace.piece(Beside::Nobody, MOST), PREFILL_CHUNK_TOKENS);
        pace.stepped(us(10));
        pace.read(1, 1, us(1_000_000));
        assert_eq!(pace.piece(Beside::Nobody, MOST), PREFILL_CHUNK_TOKENS);
    }

    #[test]
    fn beside_nobody_a_fast_device_reads_all_at_once_and_a_slow_one_in_pieces() {
        let mut gpu = Pace::default();
        gpu.read(256, 256, us(3_500));
        assert_eq!(gpu.piece(Beside::Nobody, MOST), MOST);
        gpu.read(MOST, 1_644, us(8_000));
        gpu.read(MOST, 16, us(3_000));
        assert_eq!(
            gpu.piece(Beside::Nobody, MOST),
            MOST,
            "a short prompt tells nothing"
        );
        let mut between = Pace::default();
        between.read(256, 256, us(20_000));
        assert_eq!(between.piece(Beside::Nobody, MOST), 640);
        let mut cpu = Pace::default();
        cpu.read(256, 256, us(1_000_000));
        assert_eq!(cpu.piece(Beside::Nobody, MOST), PREFILL_CHUNK_TOKENS);
    }

    #[test]
    fn pieces_grow_to_what_a_step_allows_and_shrink_at_once() {
        let mut pace = Pace::default();
        assert_eq!(
            pace.piece(Beside::Answers, MOST),
            PIECE_MIN,
            "nothing is known"
        );
        pace.stepped(us(1_000));
        let mut sizes = Vec::new();
        for _ in 0..6 {
            let tokens = pace.piece(Beside::Answers, MOST);
            pace.read(tokens, tokens, us(tokens as u64 * 50));
            sizes.push(tokens);
        }
        assert_eq!(sizes, [8, 16, 30, 30, 30, 30]);
        pace.read(30, 30, us(5_000));
        assert_eq!(pace.piece(Beside::Answers, MOST), 9);
        pace.read(9, 9, us(15_000));
        assert_eq!(pace.piece(Beside::Answers, MOST), PIECE_MIN, "however long");
    }

    /// What a run of so many tokens takes.
    fn run(fixed: u64, each: u64, tokens: usize) -> Duration {
        us(fixed + each * tokens as u64)
    }

    #[test]
    fn what_a_run_takes_whatever_it_reads_is_no_reason_for_short_pieces() {
        // Weights of four bits: unpacking them takes as long as fifty tokens, and most of a step of sixteen answers.
        let (fixed, each, step) = (45_000, 900, 60_000);
        let mut pace = Pace::new(50);
        pace.stepped(us(step));
        pace.read(8, 8, run(fixed, each, 8));
        assert_eq!(
            pace.piece(Beside::Answers, MOST),
            50,
            "1.5 steps, and no less"
        );
        let mut unaware = Pace::default();
        unaware.stepped(us(step));
        unaware.read(8, 8, run(fixed, each, 8));
        assert_eq!(unaware.piece(Beside::Answers, MOST), 13);
    }

    #[test]
    fn a_measure_that_was_too_high_does_not_make_pieces_too_long_again_and_again() {
        let (each, step) = (1_000, 10_000);
        let mut pace = Pace::new(50);
        pace.stepped(us(step));
        let mut long = 0;
        for _ in 0..50 {
            let tokens = pace.piece(Beside::Answers, MOST);
            let took = run(0, each, tokens);
            long += usize::from(took > us(2 * step));
            pace.read(tokens, tokens, took);
        }
        assert!(long <= 8, "{long} of 50 took more than two steps");
    }

    #[test]
    fn one_slow_step_does_not_let_pieces_take_as_long() {
        let mut pace = Pace::default();
        pace.stepped(us(1_000));
        pace.read(100, 100, us(10_000));
        pace.stepped(us(1_000_000));
        assert_eq!(pace.piece(Beside::Answers, MOST), 18);
    }

    #[test]
    fn the_short_end_of_a_prompt_teaches_nothing() {
        let mut pace = Pace::default();
        pace.stepped(us(1_000));
        pace.read(30, 30, us(1_500));
        pace.read(30, 1, us(900));
        assert_eq!(pace.piece(Beside::Answers, MOST), 30);
    }

    proptest! {
        #[test]
        fn no_prompt_is_cut_so_that_one_token_stands_alone(prompt in 2usize..3_000, most in PIECE_MIN..=PREFILL_CHUNK_TOKENS) {
            let mut left = prompt;
            while left > 0 {
                let tokens = cut(left, most);
                prop_assert!((2..=PREFILL_CHUNK_TOKENS).contains(&tokens) && tokens <= left, "{tokens} of {left}");
                left -= tokens;
            }
            prop_assert_eq!(cut(1, most), 1);
        }

        #[test]
        fn every_piece_is_within_its_bounds(times in proptest::collection::vec((0usize..300, any::<u32>(), any::<u32>()), 0..40)) {
            let mut pace = Pace::default();
            for (tokens, read, step) in times {
                pace.read(tokens, tokens, us(read.into()));
                pace.stepped(us(step.into()));
                let piece = pace.piece(Beside::Answers, MOST);
                prop_assert!((PIECE_MIN..=MOST).contains(&piece), "{piece}");
            }
        }
    }
}
