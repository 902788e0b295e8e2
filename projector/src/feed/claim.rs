//! What the feed held of a partition when its projector took it up, which the journal has to hold too.
//!
//! Pure. The feed gets events from nowhere else, and before it is looked at the journal holds them. A
//! journal that was put back from an older copy does not, and goes on with other events at the same
//! positions: those must not be taken for published because their ids are.

use bytes::Bytes;
use seatbelt_ledger::journal::Sequence;
use seatbelt_schemas::{event::StoredEvent, position::Position};

use crate::{chain::Tail, store::FeedSequence};

/// The partition's last event on the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// Its place there.
    pub(super) place: FeedSequence,
    pub(super) position: Position,
    /// Its bytes; `None` where they cannot be had any more.
    pub(super) event: Option<Bytes>,
    /// Where the journal ended after the feed was looked at.
    pub(super) end: Sequence,
}

/// How a claim stands once the journal has been read up to some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The journal holds the event.
    Holds,
    /// It may hold it further on.
    ReadOn,
    /// It has another event there.
    Other,
    /// It does not go that far.
    Missing,
}

impl Claim {
    /// How it stands after `events`, which the journal holds up to `tail`.
    pub(super) fn against(&self, tail: &Tail, events: &[StoredEvent]) -> Verdict {
        let mut events = events.iter();
        if let Some(found) = events.find(|it| it.event.position == self.position) {
            let same = self.event.as_ref().is_none_or(|it| *it == found.bytes);
            return if same { Verdict::Holds } else { Verdict::Other };
        }
        if tail.head.position >= self.position {
            // taken up behind it, by a mark that names the commit there
            Verdict::Holds
        } else if tail.sequence >= self.end {
            Verdict::Missing
        } else {
            Verdict::ReadOn
        }
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::position::Partition;

    use super::*;
    use crate::testing::{commits, opened};

    fn claim(position: u64, event: Option<Bytes>) -> Claim {
        Claim {
            place: FeedSequence(9),
            position: Position(position),
            event,
            end: Sequence(4),
        }
    }

    #[test]
    fn an_event_is_held_missing_another_or_still_to_come() {
        let commits = commits(&[&[opened("a"), opened("b")]]);
        let events = &commits[0].events;
        let mut tail = Tail::start(Partition(0));
        tail.sequence = Sequence(1);
        tail.head.position = Position(3);
        let own = Some(events[1].bytes.clone());
        let other = Some(events[2].bytes.clone());
        let check = |position, event: &Option<Bytes>, tail: &Tail| {
            claim(position, event.clone()).against(tail, events)
        };
        assert_eq!(check(2, &own, &tail), Verdict::Holds);
        assert_eq!(check(2, &None, &tail), Verdict::Holds);
        assert_eq!(check(2, &other, &tail), Verdict::Other);
        assert_eq!(check(0, &None, &tail), Verdict::Holds);
        assert_eq!(check(4, &None, &tail), Verdict::ReadOn);
        tail.sequence = Sequence(4);
        assert_eq!(check(4, &None, &tail), Verdict::Missing);
    }
}
