//! Ids of callers whose clocks were ahead, at a takeover.
//!
//! A writer takes the newest commands up from the journal's end; the ids of all before that are at or
//! below the newest of them. One caller whose clock is a minute ahead makes that newest id a minute newer
//! than the time of any event, and for that minute every new command of everybody would look as if it may
//! have been carried out, and would be looked up. So the floor of what is cold stays at the time of the last
//! event, and what came before it with an id above it is read from the journal in one piece: an id is
//! ahead of its event by a minute at most. New commands with such ids wait for that one reading.

use std::collections::BTreeMap;

use seatbelt_schemas::{event::Event, ids::CommandId};

use super::{End, Outcome, Outcomes, Stands};
use crate::{decide::validate::CLOCK_SKEW_MS_MAX, journal::Sequence};

/// What is to be read of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unsearched {
    /// Ids above this are looked for.
    pub floor: CommandId,
    /// From the first commit at or after this time, unix ms.
    pub from_ms: u64,
    /// Up to and with this commit.
    pub to: Sequence,
}

/// The ids that may have been carried out above the floor.
#[derive(Debug)]
pub(super) struct Ahead {
    unread: Unsearched,
    newest: CommandId,
    /// How reservations among them have ended since.
    ended: BTreeMap<CommandId, End>,
}

impl Ahead {
    /// Whether an id is one of them.
    pub(super) fn covers(&self, id: CommandId) -> bool {
        self.unread.floor < id && id <= self.newest
    }
}

impl Outcomes {
    /// Those of a journal whose events up to the commit `to` have ids up to `newest`, and where time has
    /// come to `at_ms` since; the `max` newest of what follows stay hot.
    pub fn resumed(newest: Option<CommandId>, to: Sequence, at_ms: u64, max: usize) -> Self {
        let floor = CommandId::from_parts(at_ms, u128::MAX);
        let Some(newest) = newest.filter(|newest| *newest > floor) else {
            return Self::after(newest, max);
        };
        let unread = Unsearched {
            floor,
            from_ms: at_ms.saturating_sub(CLOCK_SKEW_MS_MAX),
            to,
        };
        Self {
            ahead: Some(Ahead {
                unread,
                newest,
                ended: BTreeMap::new(),
            }),
            ..Self::after(Some(floor), max)
        }
    }

    /// What of the journal would tell which ids above the floor were carried out; none once that is known.
    pub fn unread(&self) -> Option<Unsearched> {
        self.ahead.as_ref().map(|ahead| ahead.unread)
    }

    /// That, where it would tell of this id.
    pub fn unread_of(&self, id: CommandId) -> Option<Unsearched> {
        let ahead = self.ahead.as_ref().filter(|ahead| ahead.covers(id))?;
        Some(ahead.unread)
    }

    /// Folds in an event that is being read, as far as it is about ids above the floor.
    pub fn apply_above(&mut self, event: &Event, floor: CommandId) {
        if event.cause > floor {
            self.apply(event);
        } else if let Some((reservation, end)) = End::by(event)
            && CommandId::from(reservation) > floor
        {
            self.end(reservation, end);
        }
    }

    /// Takes in what was read.
    pub fn take_read(&mut self, read: Self) {
        let Some(ahead) = self.ahead.take() else {
            return;
        };
        let read_ids = read.hot.known.into_iter().chain(read.refused.known);
        for (id, (fingerprint, mut outcome)) in read_ids {
            if let Outcome::Reserved { stands, .. } = &mut outcome
                && let Some(end) = ahead.ended.get(&id)
            {
                *stands = Stands::Ended(*end);
            }
            self.keep(id, (fingerprint, outcome));
        }
        // of more than stay hot the oldest were let go while reading
        self.floor = self.floor.max(read.floor);
        self.drop_oldest(None);
    }

    /// It cannot be read: each such id is looked up by itself.
    pub fn give_up_reading(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            self.floor = self.floor.max(Some(ahead.newest));
        }
    }

    /// Notes how a reservation has ended that is not known.
    pub(super) fn note_end(&mut self, id: CommandId, end: End) {
        let max = self.hot.max;
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.covers(id)) else {
            return;
        };
        ahead.ended.insert(id, end);
        if ahead.ended.len() > max {
            self.give_up_reading();
        }
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{meter::Amounts, position::Position};

    use super::*;
    use crate::outcomes::{EndOf, Fingerprint, Recall};

    const NOW_MS: u64 = 1_700_000_000_000;
    const TO: Sequence = Sequence(9);

    fn id(at_ms: u64) -> CommandId {
        CommandId::from_parts(at_ms, 7)
    }

    fn fingerprint() -> Fingerprint {
        Fingerprint::of("a command")
    }

    fn changed() -> Outcome {
        Outcome::Changed(Position(3))
    }

    fn resumed() -> Outcomes {
        Outcomes::resumed(Some(id(NOW_MS + 55_000)), TO, NOW_MS, 4)
    }

    #[test]
    fn a_callers_clock_that_was_ahead_lifts_no_floor() {
        let mut outcomes = resumed();
        let unread = outcomes.unread().unwrap();
        assert_eq!((unread.from_ms, unread.to), (NOW_MS - 60_000, TO));
        assert!(outcomes.is_cold(id(NOW_MS + 2_000)), "not known yet");
        assert_eq!(outcomes.unread_of(id(NOW_MS + 2_000)), Some(unread));
        assert!(outcomes.is_cold(id(NOW_MS - 2_000)));
        assert_eq!(outcomes.unread_of(id(NOW_MS - 2_000)), None);

        let mut read = Outcomes::after(None, 4);
        read.remember(id(NOW_MS + 55_000), fingerprint(), changed());
        outcomes.take_read(read);
        assert_eq!(outcomes.unread(), None);
        assert!(!outcomes.is_cold(id(NOW_MS + 2_000)), "new");
        assert!(outcomes.is_cold(id(NOW_MS - 2_000)));
        let known = outcomes.recall(id(NOW_MS + 55_000), fingerprint());
        assert_eq!(known, Recall::Same(&changed()));
    }

    #[test]
    fn what_cannot_be_read_stays_cold() {
        let mut outcomes = resumed();
        outcomes.give_up_reading();
        assert!(outcomes.is_cold(id(NOW_MS + 55_000)));
        assert_eq!(outcomes.unread_of(id(NOW_MS + 2_000)), None);
        assert!(!outcomes.is_cold(id(NOW_MS + 55_001)));
    }

    #[test]
    fn more_than_stays_hot_lifts_the_floor_as_ever() {
        let mut outcomes = resumed();
        let mut read = Outcomes::after(None, 4);
        for ahead_ms in [1, 2, 3, 4, 5] {
            read.remember(id(NOW_MS + ahead_ms), fingerprint(), changed());
        }
        outcomes.take_read(read);
        assert!(outcomes.is_cold(id(NOW_MS + 1)));
        assert!(!outcomes.is_cold(id(NOW_MS + 2)));
        assert!(!outcomes.is_cold(id(NOW_MS + 6)));
    }

    #[test]
    fn an_end_that_came_meanwhile_is_not_forgotten() {
        let mut outcomes = resumed();
        let (at, reserved) = (Position(8), id(NOW_MS + 100));
        let end = End {
            position: at,
            of: EndOf::Charged(Amounts::zero()),
        };
        outcomes.note_end(reserved, end);
        let mut read = Outcomes::after(None, 4);
        let outcome = Outcome::Reserved {
            position: Position(3),
            stands: Stands::Open {
                hold: Amounts::zero(),
                clamped: false,
            },
        };
        read.remember(reserved, fingerprint(), outcome);
        outcomes.take_read(read);
        assert_eq!(outcomes.ended(reserved.into()), Some(at));
    }

    #[test]
    fn clocks_in_step_have_nothing_to_read() {
        let outcomes = Outcomes::resumed(Some(id(NOW_MS)), TO, NOW_MS, 4);
        assert_eq!(outcomes.unread(), None);
        assert!(outcomes.is_cold(id(NOW_MS)));
        assert!(!outcomes.is_cold(id(NOW_MS + 1)));
    }
}
