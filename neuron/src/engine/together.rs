//! Which prompts are read in one run.
//!
//! Slots that lie side by side can be read together, each from its start to its end, the shorter ones with
//! padding behind them that their next tokens overwrite. The prompt that came first is always among them. One more
//! prompt in a run spares a run, which all that wait gain from, and those in the run wait for it: it is taken along
//! where they lose less together than the others gain. So a GPU reads all at once, and a CPU with weights that it need
//! not unpack one or a few. Nothing is known of requests here: lengths go in, a range of slots comes out.

use std::ops::Range;

/// How prompts of several slots may be read in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Together {
    /// Not at all.
    Never,
    /// Those of one length: of a run only the last row is given.
    OfOneLength,
    /// All.
    Padded,
}

/// What one run may read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) together: Together,
    /// Most tokens, padding included.
    pub(super) most: usize,
    /// Tokens that take as long as a run takes whatever it reads.
    pub(super) spare: usize,
    /// Prompts that wait to be read.
    pub(super) waiting: usize,
}

/// The slots that are read with `first`, it among them. `whole` says how long the prompt of a slot is, where it can be
/// read from its start to its end; those of one token go through other kernels, and by themselves.
pub(super) fn neighbours(whole: &[Option<usize>], first: usize, run: Run) -> Range<usize> {
    let alone = first..first + 1;
    let Some(length) = whole[first].filter(|length| *length > 1) else {
        return alone;
    };
    if run.together == Together::Never {
        return alone;
    }
    let mut group = Group {
        slots: alone,
        longest: length,
    };
    loop {
        let below = group.slots.start.checked_sub(1);
        let sides = [Some(group.slots.end), below];
        let grown = sides.into_iter().flatten().find_map(|slot| {
            let length = (*whole.get(slot)?).filter(|length| *length > 1)?;
            group.with(slot, length, run)
        });
        match grown {
            Some(grown) => group = grown,
            None => return group.slots,
        }
    }
}

struct Group {
    slots: Range<usize>,
    longest: usize,
}

impl Group {
    fn with(&self, slot: usize, length: usize, run: Run) -> Option<Self> {
        let grown = Self {
            slots: self.slots.start.min(slot)..self.slots.end.max(slot + 1),
            longest: self.longest.max(length),
        };
        let alike = run.together == Together::Padded || length == self.longest;
        let more = grown.padded() - self.padded();
        let gained = run.waiting.saturating_sub(self.slots.len()) * run.spare;
        let lost = self.slots.len() * more;
        // What pads costs time too, and gains nobody anything.
        let worth = lost <= gained && more.saturating_sub(length) <= run.spare;
        (alike && grown.padded() <= run.most && worth).then_some(grown)
    }

    /// Tokens of the run, padding included.
    fn padded(&self) -> usize {
        self.slots.len() * self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run = Run {
        together: Together::Padded,
        most: 100,
        spare: 1_000,
        waiting: 5,
    };

    #[track_caller]
    fn check(whole: &[usize], first: usize, run: Run, expected: Range<usize>) {
        // none is who cannot be read so
        let whole: Vec<Option<usize>> = (whole.iter())
            .map(|length| (*length > 0).then_some(*length))
            .collect();
        assert_eq!(neighbours(&whole, first, run), expected, "{whole:?}");
    }

    #[test]
    fn neighbours_on_both_sides_are_read_together() {
        check(&[16, 16, 16, 16], 0, RUN, 0..4);
        check(&[16, 16, 16, 16], 2, RUN, 0..4);
        check(&[0, 16, 16, 0, 16], 1, RUN, 1..3);
        check(&[0, 16, 0], 1, RUN, 1..2);
        check(&[16, 0, 16], 1, RUN, 1..2);
    }

    #[test]
    fn no_run_is_longer_than_it_may_be() {
        check(&[40, 40, 40], 0, RUN, 0..2);
        check(&[90, 90], 1, RUN, 1..2);
        check(&[200, 2], 0, RUN, 0..1);
    }

    #[test]
    fn who_is_taken_along_costs_the_others_less_than_it_spares_those_that_wait() {
        let of = |spare: usize, waiting: usize| Run {
            most: 256,
            spare,
            waiting,
            ..RUN
        };
        let all = [16; 16];
        // A run costs as much as three prompts, a third of one, and nothing.
        check(&all, 0, of(48, 16), 0..13);
        check(&all, 0, of(5, 16), 0..4);
        check(&all, 0, of(0, 16), 0..1);
        // Nobody else waits.
        check(&all[..2], 0, of(16, 2), 0..2);
        check(&all[..2], 0, of(15, 2), 0..1);
    }

    #[test]
    fn padding_is_less_than_a_run_costs() {
        let run = Run {
            spare: 10,
            waiting: 50,
            ..RUN
        };
        check(&[20, 10], 0, run, 0..2);
        check(&[20, 9], 0, run, 0..1);
        check(&[10, 21], 0, run, 0..1);
        check(&[20, 20, 25, 20], 0, run, 0..4);
    }

    #[test]
    fn one_length_alone_where_the_last_row_is_all_that_comes() {
        let run = Run {
            together: Together::OfOneLength,
            ..RUN
        };
        check(&[16, 16, 15], 0, run, 0..2);
        check(&[16, 16, 17], 1, run, 0..2);
        let never = Run {
            together: Together::Never,
            ..RUN
        };
        check(&[16, 16, 16], 1, never, 1..2);
    }

    #[test]
    fn a_prompt_of_one_token_is_read_by_itself() {
        check(&[1, 1, 2, 2], 0, RUN, 0..1);
        check(&[2, 1, 2], 2, RUN, 2..3);
    }
}
