//! What must hold when a run is over, by plain sums over the journal and by what callers were told.

use std::collections::BTreeMap;

use bytes::Bytes;
use seatbelt_ledger::{
    audit::Verifier,
    journal::Sequence,
    partition::PartitionState,
    snapshot::AccountSnapshot,
    store::{Kept, Revision},
};
use seatbelt_schemas::{
    command::{CommandError, Standing},
    commit::{ChainHash, Commit},
    event::{Event, EventBody},
    ids::ReservationId,
    names::Names,
    position::{Partition, Position},
};

use crate::{
    medium::Medium,
    oracle::{Books, makes_room},
    told::{Failed, Told},
};

/// By how much work alone leads a host's clock ahead of time.
const WORK_MS_MAX: u64 = 100;

/// Everything, once all processes are over.
pub(crate) fn hold(medium: &Medium, told: &Told) -> Result<(), String> {
    let journal = medium.journal.commits();
    let books = read(&journal, &told.reads)?;
    if books.open() > 0 {
        return Err(format!("{} reservations never end", books.open()));
    }
    outcomes_are_there(&books, told)?;
    nothing_is_done_twice(&books)?;
    nobody_is_told_two_things(told)?;
    if medium.clocks_are_right {
        nothing_is_granted_late(&books)?;
    }
    truths_are_charged(&books, told)?;
    for failed in &told.errors {
        error_is_right(&books, failed)?;
    }
    decides_again(&journal)?;
    snapshots_are_right(medium, &journal)?;
    feed_is_whole(medium, &books)
}

/// The events of a commit.
pub(crate) fn events(commit: &[u8]) -> Vec<Event> {
    let commit = Commit::decode(commit).unwrap();
    commit
        .events
        .into_iter()
        .map(|stored| stored.event)
        .collect()
}

/// Folds the journal into the books, and holds every read against them as they were at its position.
fn read(journal: &[Bytes], reads: &[Standing]) -> Result<Books, String> {
    let mut at: BTreeMap<Position, Vec<&Standing>> = BTreeMap::new();
    for standing in reads {
        at.entry(standing.position).or_default().push(standing);
    }
    let mut books = Books::default();
    let mut prev = ChainHash::default();
    for payload in journal {
        let commit = Commit::decode(payload).map_err(|error| error.to_string())?;
        if commit.prev != prev {
            return Err(format!("the chain breaks at {}", commit.first_position));
        }
        prev = ChainHash::of(payload);
        for stored in commit.events {
            let position = stored.event.position;
            books.take(stored.event)?;
            for standing in at.remove(&position).unwrap_or_default() {
                stood(&books, standing)?;
            }
        }
    }
    match at.first_key_value() {
        Some((position, _)) => Err(format!("a read rests on {position}, which does not exist")),
        None => Ok(books),
    }
}

fn stood(books: &Books, standing: &Standing) -> Result<(), String> {
    for cap in &standing.caps {
        let (spent, held) = books.stands(&standing.account, &cap.cap, standing.at_ms, None);
        let limit = books.limit(&standing.account, &cap.cap);
        let spent = u64::try_from(spent).unwrap_or(0);
        if (cap.spent, cap.held, cap.limit) != (spent, held, limit) {
            return Err(format!(
                "a read at {} says {cap:?}, the books {spent}, {held} of {limit}",
                standing.position
            ));
        }
    }
    Ok(())
}

fn event(books: &Books, position: Position) -> Option<&Event> {
    let index = usize::try_from(position.0.checked_sub(1)?).ok()?;
    books.events.get(index)
}

fn outcomes_are_there(books: &Books, told: &Told) -> Result<(), String> {
    for (id, positions) in &told.outcomes {
        for position in positions {
            let found = event(books, *position);
            // a refusal that was counted has no event of its own
            let counted = told.refused.contains(id) && found.is_some();
            let found = found.map(|event| event.cause);
            if found != Some(*id) && !counted {
                return Err(format!(
                    "{id} was told of {position}, where {found:?} stands"
                ));
            }
        }
    }
    Ok(())
}

/// A command that is sent again has the outcome that it had.
fn nobody_is_told_two_things(told: &Told) -> Result<(), String> {
    let mut outcomes = told.outcomes.iter();
    match outcomes.find(|(_, positions)| positions.iter().any(|other| *other != positions[0])) {
        Some((id, positions)) => Err(format!("{id} was told of {positions:?}")),
        None => Ok(()),
    }
}

fn nothing_is_done_twice(books: &Books) -> Result<(), String> {
    let follows = |event: &&Event| {
        let body = &event.body;
        let follows = matches!(body, EventBody::Overrun(_) | EventBody::ThresholdCrossed(_));
        !follows && !makes_room(body)
    };
    let twice = books.causes.iter();
    let mut twice = twice.filter(|(_, events)| events.iter().filter(follows).count() > 1);
    match twice.next() {
        Some((id, events)) => Err(format!("{id} was carried out twice: {events:?}")),
        None => Ok(()),
    }
}

/// A hold whose deadline has passed is worth nothing to its caller.
fn nothing_is_granted_late(books: &Books) -> Result<(), String> {
    for event in &books.events {
        if let EventBody::Reserved(data) = &event.body
            && event.at_ms > data.asked.deadline_ms + WORK_MS_MAX
        {
            return Err(format!(
                "{} is granted after its deadline",
                data.reservation
            ));
        }
    }
    Ok(())
}

/// The last end of each reservation, by its event.
fn ends(books: &Books) -> BTreeMap<ReservationId, &Event> {
    let end = |event: &Event| match &event.body {
        EventBody::Settled(data) => Some(data.reservation),
        EventBody::Released(data) => Some(data.reservation),
        EventBody::Expired(data) => Some(data.reservation),
        _ => None,
    };
    let events = books.events.iter();
    events
        .filter_map(|event| Some((end(event)?, event)))
        .collect()
}

fn truths_are_charged(books: &Books, told: &Told) -> Result<(), String> {
    let ends = ends(books);
    for (reservation, tokens) in &told.truths {
        let charged = match ends.get(reservation).map(|event| &event.body) {
            Some(EventBody::Settled(data)) => data.report.usage.tokens(),
            other => {
                return Err(format!(
                    "{reservation} used {tokens} and ended as {other:?}"
                ));
            }
        };
        if charged < *tokens {
            return Err(format!(
                "{reservation} used {tokens} and is charged {charged}"
            ));
        }
    }
    for reservation in &told.released {
        let end = ends.get(reservation).map(|event| &event.body);
        if !matches!(end, Some(EventBody::Released(_))) {
            return Err(format!("{reservation} was given back and ended as {end:?}"));
        }
    }
    Ok(())
}

/// An error is told only where it is true.
fn error_is_right(books: &Books, failed: &Failed) -> Result<(), String> {
    let Failed { id, error, .. } = failed;
    let is_true = match error {
        CommandError::AlreadyResolved {
            position,
            reservation,
        } => {
            let body = event(books, *position).map(|event| &event.body);
            match body {
                Some(EventBody::Settled(data)) => data.reservation == *reservation,
                Some(EventBody::Released(data)) => data.reservation == *reservation,
                Some(EventBody::Expired(data)) => data.reservation == *reservation,
                _ => false,
            }
        }
        CommandError::Conflict { .. } => failed.forged,
        CommandError::UnknownReservation { .. }
        | CommandError::UnknownAccount { .. }
        | CommandError::UnknownKey { .. }
        | CommandError::KeyRevoked { .. }
        | CommandError::RunEnded { .. }
        | CommandError::WrongPartition { .. } => false,
        CommandError::UnknownCap { .. }
        | CommandError::TooManyRuns { .. }
        | CommandError::Invalid { .. }
        | CommandError::Short { .. }
        | CommandError::Unavailable { .. } => true,
    };
    match is_true {
        true => Ok(()),
        false => Err(format!("{id} was told an untruth: {error}")),
    }
}

fn decides_again(journal: &[Bytes]) -> Result<(), String> {
    let mut verifier = Verifier::new(Partition(0));
    for (payload, number) in journal.iter().zip(1..) {
        verifier
            .accept(Sequence(number), payload)
            .map_err(|error| describe(&error))?;
    }
    verifier
        .finish()
        .map(drop)
        .map_err(|error| describe(&error))
}

/// What the last projector left is what the journal says, where nobody destroyed it since.
fn snapshots_are_right(medium: &Medium, journal: &[Bytes]) -> Result<(), String> {
    let mut replay = PartitionState::new(Partition(0));
    for payload in journal {
        replay.accept(payload).map_err(|error| error.to_string())?;
    }
    for (account, state) in replay
        .accounts()
        .filter(|(account, _)| !account.is_system())
    {
        let key = Names::snapshot_account_key(account);
        if medium.is_back(&key) {
            continue;
        }
        let value = medium.bucket.peek(&key);
        let kept = Kept {
            value,
            revision: Revision(1),
        };
        let any = (Revision(u64::MAX), Position(0));
        // what was lost, torn or came back, and has not been needed since, is still so
        let Ok(Some(found)) = AccountSnapshot::of_kept(account, &kept, any) else {
            continue;
        };
        if found.state != *state {
            return Err(format!(
                "the snapshot of {account} is not what the journal says"
            ));
        }
    }
    Ok(())
}

/// One message per event, in order and without gaps; what a projector repeats keeps its id.
fn feed_is_whole(medium: &Medium, books: &Books) -> Result<(), String> {
    let mut expected = 1;
    for message in medium.feed.messages() {
        let position = message.position;
        if position.0 > expected {
            return Err(format!("the feed lacks positions {expected} to {position}"));
        }
        expected = expected.max(position.0 + 1);
    }
    let end = books.events.len() as u64 + 1;
    if expected != end {
        return Err(format!("the feed ends before {expected} of {end}"));
    }
    Ok(())
}

pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
