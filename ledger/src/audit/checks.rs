//! The verifier's checks by name, so that a test can take one out and show a forged journal that nothing
//! else finds. A release build cannot take any out.
//!
//! Not here: what [`Head`](crate::partition::Head) checks of every reader's next commit, which has tests of
//! its own, and promise 1 over the caps, which an event that decides again to the same bytes keeps
//! anyhow: it is there to find faults of the decisions themselves.

/// A check of the verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Sequences have no gap.
    Sequence,
    /// What was stepped over is what the next writer names.
    StrayWord,
    /// Nothing at the end waits for such a word.
    StrayEnd,
    /// No event is from before the last commit.
    Time,
    /// A commit stands in the reign that began last.
    Reign,
    /// An event decides again to the same bytes.
    Bytes,
    /// What follows from an event is of the same account and cause.
    Owed,
    /// What follows from the last event is there.
    OwedAtEnd,
    /// What follows from nothing is not there.
    Orphan,
    /// No command is carried out twice.
    Twice,
    /// An account is opened in its own partition.
    Home,
    /// What was due to end has ended.
    Due,
    /// Nothing ends before it is due.
    NotDue,
    /// A refusal was decided before it was written.
    RefusedLate,
    /// A reservation is taken under its own id.
    OwnId,
    /// The log begins with genesis.
    First,
    /// Genesis stands nowhere else.
    Genesis,
    /// Reigns are counted without a gap.
    Epoch,
    /// A change changes something.
    Change,
    /// What made room for a hold is followed by that hold.
    Exchange,
    /// And that in the same commit.
    ExchangeAtEnd,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Sequence,
        Self::StrayWord,
        Self::StrayEnd,
        Self::Time,
        Self::Reign,
        Self::Bytes,
        Self::Owed,
        Self::OwedAtEnd,
        Self::Orphan,
        Self::Twice,
        Self::Home,
        Self::Due,
        Self::NotDue,
        Self::RefusedLate,
        Self::OwnId,
        Self::First,
        Self::Genesis,
        Self::Epoch,
        Self::Change,
        Self::Exchange,
        Self::ExchangeAtEnd,
    ];

    /// Whether something that is not as it should be counts.
    pub(super) fn finds(self, broken: bool) -> bool {
        broken && !self.is_out()
    }

    #[cfg(not(debug_assertions))]
    fn is_out(self) -> bool {
        false
    }

    #[cfg(debug_assertions)]
    fn is_out(self) -> bool {
        OUT.get() == Some(self)
    }

    /// Verifies on this thread without this check.
    #[cfg(debug_assertions)]
    pub fn taken_out<T>(self, verify: impl FnOnce() -> T) -> T {
        OUT.set(Some(self));
        let verified = verify();
        OUT.set(None);
        verified
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static OUT: std::cell::Cell<Option<Check>> = const { std::cell::Cell::new(None) };
}
