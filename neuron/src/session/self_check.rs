//! Whether a graph does with its caches what this crate relies on, found out before it serves anybody.
//!
//! The same token is reached by several ways: the prompt whole, in two pieces of which either is the longer,
//! and by a step, alone, beside idle slots, and with two slots at once. They agree only if the caches are
//! written in place, for the right slot.

use std::time::{Duration, Instant};

use crate::engine::{Decoder, Row, StepError, Together};

/// How far the logits of two ways to the same token may lie apart, as a share of their range.
const TOLERANCE: f32 = 0.02;
/// Kernels that quantise activations go another way for one row than for several, and then logits
/// lie 2 to 6 % of their range apart. Such ways still lie much nearer to each other than to what a
/// model says that has forgotten the prompt: at most this share of that distance.
const NEARER_THAN_FORGETTING: f32 = 0.25;
/// Any tokens do, and every vocabulary has these.
const TOKENS: [u32; 4] = [1, 2, 3, 4];
/// Fewest tokens of context a model can have.
const CONTEXT_MIN: usize = 2;

const _: () = assert!(TOKENS.len() >= CONTEXT_MIN);

/// What another device says to the prompt of the check.
pub(super) fn whole(decoder: &mut impl Decoder, context: usize) -> Result<Vec<f32>, String> {
    prefilled(decoder, 0, &[tokens(context)])
}

/// Goes all ways; `reference` is what another device said.
pub(super) fn check(
    decoder: &mut impl Decoder,
    context: usize,
    reference: Option<&[f32]>,
) -> Result<(), String> {
    let tokens = tokens(context);
    let (before, last) = tokens.split_at(tokens.len() - 1);
    let far = decoder.slots() - 1;
    let expected = whole(decoder, context)?;
    let forgot = prefilled(decoder, 0, &[last])?;
    let same = |logits: &[f32]| agree(&expected, logits, &forgot);

    let (first, rest) = tokens.split_at(1);
    for pieces in [[before, last], [first, rest]] {
        if !same(&prefilled(decoder, far, &pieces)?) {
            return Err(of_caches("a prompt in two pieces"));
        }
    }
    for slots in [&[0][..], &[far], &[0, far]] {
        for slot in slots {
            prefilled(decoder, *slot, &[before])?;
        }
        let rows = stepped(decoder, slots, last[0], before.len())?;
        if !rows.iter().all(|row| same(row)) {
            return Err(of_caches("a step on the cache"));
        }
    }
    match reference {
        Some(reference) if !same(reference) => Err(
            "the GPU does not give what the CPU gives for the same graph: the build of ONNX Runtime, CUDA and the driver do \
             not go together, or the graph is for another device; set cuda.check_on_cpu = false to go on without the \
             comparison"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// That two prompts read in one run are two read one by one, and that nothing is seen of what pads the shorter.
pub(super) fn together(decoder: &mut impl Decoder, context: usize) -> Result<(), String> {
    let Some(first) = decoder.slots().checked_sub(2) else {
        return Ok(());
    };
    let tokens = tokens(context);
    let (before, last) = tokens.split_at(tokens.len() - 1);
    let expected = whole(decoder, context)?;
    let forgot = prefilled(decoder, 0, &[last])?;
    let same = |logits: &[f32]| agree(&expected, logits, &forgot);
    let shorter = match decoder.reach().together {
        Together::Never => return Ok(()),
        Together::OfOneLength => tokens,
        Together::Padded => before,
    };
    let mut logits = Vec::new();
    let read = decoder.prefill_together(first, &[shorter, tokens], &mut logits);
    read.map_err(|error| failed(&error))?;
    let vocab = decoder.vocab();
    let mut rows = vec![logits[vocab..].to_vec()];
    match shorter.len() < tokens.len() {
        true => rows.extend(stepped(decoder, &[first], last[0], before.len())?),
        false => rows.push(logits[..vocab].to_vec()),
    }
    match rows.iter().all(|row| same(row)) {
        true => Ok(()),
        false => Err("prompts read in one run are not what each is by itself".to_owned()),
    }
}

/// Tokens of the runs by which it is found out what a run takes.
const SHORT: usize = 8;
const LONG: usize = 64;
/// How often each is run: the machine does other things too, and the first run is slower.
const TIMES: usize = 3;

/// Tokens that take as long as a run takes whatever it reads.
pub(super) fn spare(decoder: &mut impl Decoder, context: usize) -> Result<usize, String> {
    if context <= LONG {
        return Ok(0);
    }
    let mut best = |length: usize| -> Result<Duration, String> {
        let tokens = vec![TOKENS[0]; length];
        let mut best = Duration::MAX;
        for _ in 0..TIMES {
            let began = Instant::now();
            prefilled(decoder, 0, &[&tokens])?;
            best = best.min(began.elapsed());
        }
        Ok(best)
    };
    Ok(fixed(best(SHORT)?, best(LONG)?).min(decoder.reach().tokens_max))
}

/// The same of the times of a short and a long run, on the line through both.
fn fixed(short: Duration, long: Duration) -> usize {
    let more = long.saturating_sub(short).as_nanos().max(1);
    let tokens = short.as_nanos().saturating_mul((LONG - SHORT) as u128) / more;
    usize::try_from(tokens)
        .unwrap_or(usize::MAX)
        .saturating_sub(SHORT)
}

fn tokens(context: usize) -> &'static [u32] {
    &TOKENS[..TOKENS.len().min(context.max(CONTEXT_MIN))]
}

fn of_caches(way: &str) -> String {
    format!(
        "{way} does not give what the whole prompt gives: the graph does not share its past and present caches in place; \
         build it with past_present_share_buffer and GroupQueryAttention"
    )
}

fn prefilled(
    decoder: &mut impl Decoder,
    slot: usize,
    pieces: &[&[u32]],
) -> Result<Vec<f32>, String> {
    let mut logits = Vec::new();
    let mut position = 0;
    for piece in pieces {
        decoder
            .prefill(slot, position, piece, &mut logits)
            .map_err(|error| failed(&error))?;
        position += piece.len();
    }
    Ok(logits)
}

/// A step of `slots`, beside idle ones below the highest; what it gives for each.
fn stepped(
    decoder: &mut impl Decoder,
    slots: &[usize],
    token: u32,
    position: usize,
) -> Result<Vec<Vec<f32>>, String> {
    let idle = Row {
        token: 0,
        position: 0,
    };
    let mut rows = vec![idle; slots.iter().max().map_or(0, |highest| highest + 1)];
    for slot in slots {
        rows[*slot] = Row { token, position };
    }
    let mut logits = Vec::new();
    decoder
        .decode(&rows, &mut logits)
        .map_err(|error| failed(&error))?;
    let vocab = decoder.vocab();
    let row = |slot: &usize| logits[slot * vocab..][..vocab].to_vec();
    Ok(slots.iter().map(row).collect())
}

fn failed(error: &StepError) -> String {
    format!("the first run failed: {error}")
}

/// Whether two ways gave the same, where `forgot` is what comes of another prompt.
fn agree(a: &[f32], b: &[f32], forgot: &[f32]) -> bool {
    let range = (a.iter())
        .fold(0.0f32, |widest, value| widest.max(value.abs()))
        .max(f32::MIN_POSITIVE);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * range;
    let near = || distance(a, b) <= NEARER_THAN_FORGETTING * distance(a, forgot);
    a.len() == b.len() && (a.iter().zip(b).all(close) || near())
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f32>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::PREFILL_CHUNK_TOKENS as PIECE, engine::Reach};

    /// Says the sum of what its slot has read, weighed by position; what it gets wrong is told.
    struct Summing {
        slots: Vec<Vec<u32>>,
        forgets_pieces: bool,
        swaps_slots: bool,
        forgets_steps: bool,
        /// Of several tokens on a past, only the last is read.
        skips_tokens: bool,
        /// Of several rows that are not idle, only the first is right.
        mixes_rows: bool,
        /// What pads a prompt is taken for a part of it.
        sees_padding: bool,
        together: Together,
    }

    impl Summing {
        fn new(slots: usize) -> Self {
            Self {
                slots: vec![Vec::new(); slots],
                forgets_pieces: false,
                swaps_slots: false,
                forgets_steps: false,
                skips_tokens: false,
                mixes_rows: false,
                sees_padding: false,
                together: Together::Padded,
            }
        }

        fn row(&self, slot: usize) -> [f32; 2] {
            let read = (1u8..).zip(&self.slots[slot]);
            let sum =
                read.map(|(n, token)| f32::from(n) * f32::from(u16::try_from(*token).unwrap()));
            [sum.sum(), 1.0]
        }

        fn take(&mut self, slot: usize, position: usize, tokens: &[u32]) {
            self.slots[slot].truncate(position);
            self.slots[slot].extend(tokens);
        }
    }

    impl Decoder for Summing {
        fn slots(&self) -> usize {
            self.slots.len()
        }

        fn vocab(&self) -> usize {
            2
        }

        fn prefill(
            &mut self,
            slot: usize,
            position: usize,
            tokens: &[u32],
            logits: &mut Vec<f32>,
        ) -> Result<(), StepError> {
            let position = if self.forgets_pieces { 0 } else { position };
            let skipped = if self.skips_tokens && position > 0 {
                tokens.len() - 1
            } else {
                0
            };
            self.take(slot, position, &tokens[skipped..]);
            *logits = self.row(slot).to_vec();
            Ok(())
        }

        fn reach(&self) -> Reach {
            Reach {
                together: self.together,
                ..Reach::PIECE
            }
        }

        fn prefill_together(
            &mut self,
            first: usize,
            prompts: &[&[u32]],
            logits: &mut Vec<f32>,
        ) -> Result<(), StepError> {
            logits.clear();
            let width = prompts.iter().map(|prompt| prompt.len()).max().unwrap();
            for (slot, prompt) in (first..).zip(prompts) {
                let mut tokens = prompt.to_vec();
                if self.sees_padding && tokens.len() < width {
                    tokens = vec![9; width];
                }
                self.slots[slot] = tokens;
                logits.extend(self.row(slot));
            }
            Ok(())
        }

        fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
            logits.clear();
            for (slot, row) in rows.iter().enumerate() {
                let position = if self.forgets_steps { 0 } else { row.position };
                self.take(slot, position, &[row.token]);
            }
            let busy = rows.iter().filter(|row| row.position > 0).count();
            for slot in 0..rows.len() {
                if self.mixes_rows && busy > 1 {
                    logits.extend(
                        self.row(0)
                            .map(|value| value + 9.0 * f32::from(u16::try_from(slot).unwrap())),
                    );
                    continue;
                }
                let shown = if self.swaps_slots {
                    rows.len() - 1 - slot
                } else {
                    slot
                };
                logits.extend(self.row(shown));
            }
            Ok(())
        }
    }

    fn checked(change: impl FnOnce(&mut Summing)) -> Result<(), String> {
        let mut decoder = Summing::new(3);
        change(&mut decoder);
        check(&mut decoder, 100, None)
    }

    #[test]
    fn a_decoder_that_keeps_its_slots_apart_passes() {
        checked(|_| ()).unwrap();
        check(&mut Summing::new(1), 2, None).unwrap();
    }

    #[test]
    fn each_way_finds_what_only_it_can_find() {
        for fault in [
            (|decoder: &mut Summing| decoder.forgets_pieces = true) as fn(&mut Summing),
            |decoder| decoder.skips_tokens = true,
        ] {
            let pieces = checked(fault).unwrap_err();
            assert!(pieces.starts_with("a prompt in two pieces"), "{pieces}");
        }
        for fault in [
            (|decoder: &mut Summing| decoder.forgets_steps = true) as fn(&mut Summing),
            |decoder| decoder.swaps_slots = true,
            |decoder| decoder.mixes_rows = true,
        ] {
            let step = checked(fault).unwrap_err();
            assert!(step.starts_with("a step on the cache"), "{step}");
        }
    }

    #[test]
    fn prompts_read_together_are_each_what_they_are_alone() {
        for slots in [1, 2, 5] {
            together(&mut Summing::new(slots), 100).unwrap();
        }
        let mut padded = Summing::new(3);
        padded.sees_padding = true;
        together(&mut padded, 100).unwrap_err();
        padded.together = Together::OfOneLength;
        together(&mut padded, 100).unwrap();
        padded.together = Together::Never;
        together(&mut padded, 2).unwrap();
    }

    #[test]
    fn what_a_run_costs_is_told_in_tokens() {
        let of = |fixed_us: u64, each_us: u64| {
            let run = |tokens: usize| Duration::from_micros(fixed_us + each_us * tokens as u64);
            fixed(run(SHORT), run(LONG))
        };
        assert_eq!(of(420, 8), 52);
        assert_eq!(of(0, 8), 0);
        assert!(of(3_000, 0) > 1_000_000);
        assert_eq!(fixed(Duration::ZERO, Duration::ZERO), 0);
        assert!(spare(&mut Summing::new(2), 100).unwrap() <= PIECE);
        assert_eq!(spare(&mut Summing::new(2), 64).unwrap(), 0);
    }

    #[test]
    fn another_device_that_says_something_else_is_an_error_that_names_the_setting() {
        let mut decoder = Summing::new(2);
        let reference = whole(&mut decoder, 100).unwrap();
        check(&mut decoder, 100, Some(&reference)).unwrap();
        let error = check(&mut decoder, 100, Some(&[1.0, 30.0])).unwrap_err();
        assert!(error.contains("cuda.check_on_cpu"), "{error}");
    }

    #[test]
    fn ways_agree_within_a_share_of_their_range_or_far_nearer_than_without_the_prompt() {
        let forgot = [90.0, -3.0];
        assert!(agree(&[100.0, -3.0], &[100.5, -2.5], &forgot));
        assert!(!agree(&[100.0, -3.0], &[100.0, 3.0], &forgot));
        assert!(agree(&[100.0, -3.0], &[97.7, -3.0], &forgot), "near enough");
        assert!(!agree(&[100.0, -3.0], &[97.0, -3.0], &forgot));
        assert!(!agree(&[1.0], &[1.0, 2.0], &[5.0]));
        assert!(!agree(&[f32::NAN], &[f32::NAN], &[5.0]));
    }
}
