//! A journal without a partition record: all snapshots of the partition are lost, or none was ever made.

use tracing::warn;

use super::RecoverySource;
use crate::{
    journal::{Journal, Sequence},
    resume::Resume,
};

impl<J: Journal> RecoverySource<J> {
    /// Says that everything was folded again from the journal's beginning, and how much that was.
    pub(super) fn told_lost(&self, resume: &Resume, end: Sequence) {
        if let Some(lost) = Lost::of(resume.accounts(), end) {
            let (partition, Lost { accounts, end }) = (self.partition, lost);
            warn!(
                %partition, accounts, %end,
                "there is no snapshot of anything: the bucket was lost, or no projector has run yet; all accounts were folded again from the journal's beginning"
            );
        }
    }
}

/// What there was no snapshot of.
#[derive(Debug, PartialEq, Eq)]
struct Lost {
    accounts: usize,
    end: Sequence,
}

impl Lost {
    /// `None` where there is nothing that a snapshot could hold.
    fn of(accounts: usize, end: Sequence) -> Option<Self> {
        (accounts > 0).then_some(Self { accounts, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_without_accounts_lost_no_snapshot() {
        assert_eq!(Lost::of(0, Sequence(1)), None);
        let (accounts, end) = (3, Sequence(9));
        assert_eq!(Lost::of(accounts, end), Some(Lost { accounts, end }));
    }
}
