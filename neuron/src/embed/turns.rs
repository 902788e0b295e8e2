//! Whose texts go into the next run of an encoder: accounts take turns, and within one the requests as they came.
//!
//! An account has had so many tokens read; the one that had the fewest is next. Who comes anew begins with as many as the one
//! that had the fewest of those in line: he is next to be served, and gains nothing by having been away. Lengths go
//! in, counts of texts come out.

use std::time::Duration;

use seatbelt_schemas::ids::AccountId;

/// Most tokens of a run, with what pads the shorter texts.
pub(super) const RUN_TOKENS_MAX: usize = 2_048;
/// So many it may have however long they take: fewer at once take longer altogether.
const RUN_TOKENS_MIN: usize = 256;
/// A run may take so long, since whoever comes meanwhile waits for its end.
const RUN_TIME_MAX: Duration = Duration::from_millis(100);

/// What accounts in line have had.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Had>);

#[derive(Debug, Clone)]
struct Had {
    /// None is for all who say no account.
    account: Option<AccountId>,
    requests: usize,
    tokens: u64,
}

/// A request in line.
pub(super) struct Waits<'a> {
    pub(super) account: Option<&'a AccountId>,
    /// Texts that were not read yet.
    pub(super) texts: &'a [Vec<u32>],
}

impl Turns {
    fn at(&self, account: Option<&AccountId>) -> Option<usize> {
        let mut all = self.0.iter();
        all.position(|had| had.account.as_ref() == account)
    }

    /// A request of an account is in line.
    pub(super) fn enter(&mut self, account: Option<&AccountId>) {
        if let Some(at) = self.at(account) {
            self.0[at].requests += 1;
            return;
        }
        let tokens = self.0.iter().map(|had| had.tokens).min().unwrap_or(0);
        self.0.push(Had {
            account: account.cloned(),
            requests: 1,
            tokens,
        });
    }

    /// One has ended.
    pub(super) fn leave(&mut self, account: Option<&AccountId>) {
        let at = self.at(account).expect("whoever leaves was in line");
        self.0[at].requests -= 1;
        if self.0[at].requests == 0 {
            self.0.swap_remove(at);
        }
    }

    /// So many tokens of a request were read.
    pub(super) fn read(&mut self, account: Option<&AccountId>, tokens: usize) {
        if let Some(at) = self.at(account) {
            let had = &mut self.0[at].tokens;
            *had = had.saturating_add(tokens as u64);
        }
    }

    /// How many of the next texts of each request go into one run of at most so many tokens: as long as those suffice and
    /// padding is not most of them. One text at least, if there is one.
    pub(super) fn plan(&self, line: &[Waits<'_>], most: usize) -> Vec<usize> {
        let mut taken = vec![0usize; line.len()];
        let mut run = Run::default();
        // Of each account: what it had, with what this run gives it, and where its first request with a text left is.
        let mut accounts: Vec<(u64, usize, Option<&AccountId>)> = (self.0.iter())
            .map(|had| (had.tokens, 0, had.account.as_ref()))
            .collect();
        loop {
            let next = accounts.iter_mut().filter_map(|(had, first, account)| {
                let is_next = |at: &usize| {
                    line[*at].account == *account && taken[*at] < line[*at].texts.len()
                };
                *first = (*first..line.len()).find(is_next).unwrap_or(line.len());
                (*first < line.len()).then_some((had, *first))
            });
            let Some((had, at)) = next.min_by_key(|(had, first)| (**had, *first)) else {
                return taken;
            };
            let length = line[at].texts[taken[at]].len();
            if !run.takes(length, most) {
                return taken;
            }
            taken[at] += 1;
            *had = had.saturating_add(length as u64);
        }
    }
}

/// Most tokens of the next run, where one of `padded` took so long and might have had `most`.
pub(super) fn next_most(most: usize, padded: usize, took: Duration) -> usize {
    let fitting = padded as u128 * RUN_TIME_MAX.as_nanos() / took.as_nanos().max(1);
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX);
    // A short run tells little of a long one, but that it takes too long.
    match took > RUN_TIME_MAX || padded * 2 >= most {
        true => fitting.min(most * 2).clamp(RUN_TOKENS_MIN, RUN_TOKENS_MAX),
        false => most,
    }
}

/// What a run has so far.
#[derive(Debug, Default)]
struct Run {
    count: usize,
    longest: usize,
    tokens: usize,
}

impl Run {
    fn takes(&mut self, length: usize, most: usize) -> bool {
        let longest = self.longest.max(length);
        let padded = (self.count + 1) * longest;
        let fits = padded <= most && padded <= 2 * (self.tokens + length);
        if self.count > 0 && !fits {
            return false;
        }
        self.count += 1;
        self.longest = longest;
        self.tokens += length;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::new(name).unwrap()
    }

    /// What is planned of requests, each of an account and with texts of these lengths.
    fn planned(turns: &Turns, requests: &[(&AccountId, &[usize])]) -> Vec<usize> {
        let texts: Vec<Vec<Vec<u32>>> = (requests.iter())
            .map(|(_, lengths)| lengths.iter().map(|length| vec![1; *length]).collect())
            .collect();
        let line: Vec<Waits<'_>> = (requests.iter().zip(&texts))
            .map(|((account, _), texts)| Waits {
                account: Some(account),
                texts,
            })
            .collect();
        turns.plan(&line, RUN_TOKENS_MAX)
    }

    fn entered(accounts: &[&AccountId]) -> Turns {
        let mut turns = Turns::default();
        accounts
            .iter()
            .for_each(|account| turns.enter(Some(account)));
        turns
    }

    #[test]
    fn no_run_has_more_tokens_than_it_may_nor_more_padding_than_text() {
        let one = account("a");
        let planned = |all: &[&[usize]]| {
            let requests: Vec<_> = all.iter().map(|lengths| (&one, *lengths)).collect();
            planned(&entered(&vec![&one; all.len()]), &requests)
        };
        assert_eq!(planned(&[&[10, 10], &[10]]), [2, 1]);
        assert_eq!(planned(&[&[900, 900, 900], &[10]]), [2, 0]);
        assert_eq!(planned(&[&[9_000], &[10]]), [1, 0]);
        assert_eq!(planned(&[&[10], &[100], &[10]]), [1, 1, 0]);
        assert_eq!(planned(&[&[100], &[100], &[10]]), [1, 1, 1]);
        assert_eq!(planned(&[]), Vec::<usize>::new());
    }

    #[test]
    fn accounts_take_turns_however_much_one_of_them_has_in_line() {
        let (hog, other) = (account("hog"), account("other"));
        let mut turns = entered(&[&hog; 40]);
        turns.read(Some(&hog), 1_000_000);
        turns.enter(Some(&other));
        let mut requests = vec![(&hog, &[20usize; 2_048][..]); 40];
        requests.push((&other, &[20]));
        let plan = planned(&turns, &requests);
        assert_eq!((plan[0], plan[1], plan[40]), (101, 0, 1));
        // He had as many as the other, and gains nothing for the time before.
        requests[40].1 = &[20; 2_048];
        let plan = planned(&turns, &requests);
        assert_eq!((plan[0], plan[40]), (51, 51));
    }

    #[test]
    fn a_slow_device_has_shorter_runs_and_a_fast_one_the_longest() {
        let ms = Duration::from_millis;
        let slow = next_most(RUN_TOKENS_MAX, 2_000, ms(400));
        assert_eq!(slow, 500);
        assert_eq!(next_most(slow, 500, ms(110)), 454);
        assert_eq!(next_most(slow, 500, ms(1_000)), RUN_TOKENS_MIN);
        assert_eq!(next_most(slow, 5, ms(1)), slow, "it tells nothing");
        assert_eq!(next_most(slow, 500, ms(10)), 1_000);
        assert_eq!(next_most(1_500, 1_500, ms(1)), RUN_TOKENS_MAX);
        assert_eq!(next_most(1_500, 1_500, Duration::ZERO), RUN_TOKENS_MAX);
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let one = account("a");
        let mut turns = entered(&[&one, &one]);
        turns.read(Some(&one), 7);
        turns.leave(Some(&one));
        assert_eq!(turns.0[0].tokens, 7);
        turns.leave(Some(&one));
        assert!(turns.0.is_empty());
    }

    proptest! {
        #[test]
        fn all_texts_are_read_and_no_account_falls_behind(
            requests in proptest::collection::vec((0usize..4, proptest::collection::vec(1usize..40, 1..30)), 1..12),
        ) {
            let accounts: Vec<AccountId> = ["a", "b", "c", "d"].map(account).into();
            let mut turns = Turns::default();
            requests.iter().for_each(|(of, _)| turns.enter(Some(&accounts[*of])));
            let texts: Vec<Vec<Vec<u32>>> = (requests.iter())
                .map(|(_, lengths)| lengths.iter().map(|length| vec![1; *length]).collect())
                .collect();
            let mut done = vec![0; requests.len()];
            loop {
                let line: Vec<Waits<'_>> = (0..requests.len())
                    .map(|at| Waits { account: Some(&accounts[requests[at].0]), texts: &texts[at][done[at]..] })
                    .collect();
                let plan = turns.plan(&line, RUN_TOKENS_MAX);
                let left = line.iter().any(|waits| !waits.texts.is_empty());
                prop_assert_eq!(left, plan.iter().any(|count| *count > 0));
                if !left {
                    break;
                }
                for (at, count) in plan.iter().enumerate() {
                    let read = texts[at][done[at]..done[at] + count].iter().map(Vec::len).sum();
                    turns.read(Some(&accounts[requests[at].0]), read);
                    done[at] += count;
                }
                // Of two that both have texts left, neither is ahead by more than one text.
                let hungry = |of: usize| (0..requests.len()).any(|at| requests[at].0 == of && done[at] < texts[at].len());
                let had: Vec<u64> = (0..4).filter(|of| hungry(*of))
                    .map(|of| turns.0[turns.at(Some(&accounts[of])).unwrap()].tokens)
                    .collect();
                let ahead = had.iter().max().unwrap_or(&0) - had.iter().min().unwrap_or(&0);
                prop_assert!(ahead < 40, "{had:?}");
            }
        }
    }
}
