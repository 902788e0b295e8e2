//! Each check of the verifier is needed: a forged journal that it finds proves whole once it is taken out.

use bytes::Bytes;
use seatbelt_ledger::audit::{
    EXPIRY_GRACE_MS_MAX, EXPIRY_LATE_MS_MAX, Verifier,
    checks::Check::{
        self, Change, Due, Epoch, First, Genesis, Home, NotDue, Orphan, Owed, OwedAtEnd, OwnId,
        RefusedLate, Reign, StrayEnd, StrayWord, Time, Twice,
    },
};
use seatbelt_ledger::journal::Sequence;
use seatbelt_schemas::{
    commit::Commit,
    event::{AccountOpened, Event, EventBody, Overrun, Released, StoredEvent},
    ids::{CommandId, KeyId},
    meter::Amounts,
    position::{Partition, Partitions, Position},
};

use crate::{
    audit::{and_then_to, chained, commits, credit, renumber, unknown},
    story::{Ask, Call, Story, account, ask},
};

type Numbered = Vec<(u64, Bytes)>;

/// Whether a journal proves.
fn proves(journal: &Numbered) -> Result<(), String> {
    let mut verifier = Verifier::new(Partition(0));
    for (sequence, payload) in journal {
        let accepted = verifier.accept(Sequence(*sequence), payload);
        accepted.map_err(|error| format!("{error:?}"))?;
    }
    verifier
        .finish()
        .map(drop)
        .map_err(|error| format!("{error:?}"))
}

fn numbered(journal: Vec<Bytes>) -> Numbered {
    (1..).zip(journal).collect()
}

/// Reserved, refused, settled above the hold: the overrun and the thresholds end the journal.
fn overrun() -> Vec<Bytes> {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.reserve(&ask(10, 500));
    story.spend(&ask(10, 20), 10, 80);
    story.journal.clone()
}

/// A reservation that was settled as held.
fn settled() -> Vec<Bytes> {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    story.spend(&ask(10, 20), 10, 20);
    story.journal.clone()
}

/// The last event that `pick` finds, changed, in a chain computed anew.
fn last(
    journal: &[Bytes],
    pick: impl Fn(&EventBody) -> bool,
    change: impl FnOnce(&mut Event),
) -> Numbered {
    let mut commits = commits(journal);
    let mut events = commits.iter_mut().flat_map(|commit| &mut commit.events);
    let stored = events.rfind(|stored| pick(&stored.event.body)).unwrap();
    let mut event = stored.event.clone();
    change(&mut event);
    *stored = StoredEvent::new(event);
    numbered(chained(commits))
}

/// One more commit with this event, caused by nothing before it.
fn and_then(journal: &[Bytes], change: impl FnOnce(&mut Commit, &mut Event)) -> Numbered {
    numbered(and_then_to(journal, |blank| {
        let mut commit = blank.clone();
        let mut event = blank.events[0].event.clone();
        event.cause = CommandId::from_parts(7, 7);
        change(&mut commit, &mut event);
        commit.events = vec![StoredEvent::new(event)];
        commit
    }))
}

fn without_the_expiry() -> Numbered {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    story.reserve(&Ask {
        life_ms: 1000,
        ..ask(1, 1)
    });
    story.at(10_000);
    credit(
        &mut story,
        14,
        10_000 + EXPIRY_GRACE_MS_MAX,
        EXPIRY_LATE_MS_MAX / 6,
    );
    let mut commits = commits(&story.journal);
    let expired = |commit: &Commit| matches!(commit.events[0].event.body, EventBody::Expired(_));
    let at = commits.iter().position(expired).unwrap();
    let removed = commits.remove(at).events.len() as u64;
    renumber(&mut commits[at..], removed);
    numbered(chained(commits))
}

fn expired_early() -> Numbered {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    story.reserve(&Ask {
        life_ms: 10_000,
        ..ask(1, 1)
    });
    story.at(20_000);
    let mut commits = commits(&story.journal);
    let commit = commits.last_mut().unwrap();
    commit.at_ms -= 5_000;
    for stored in &mut commit.events {
        let mut event = stored.event.clone();
        event.at_ms -= 5_000;
        *stored = StoredEvent::new(event);
    }
    numbered(chained(commits))
}

fn credited_twice() -> Numbered {
    let mut story = Story::new(&["all account tokens balance 100"]);
    credit(&mut story, 2, 1000, 1000);
    let journal = story.journal.clone();
    let credited = |body: &EventBody| matches!(body, EventBody::Credited(_));
    let first = commits(&journal)
        .into_iter()
        .flat_map(|commit| commit.events)
        .find(|stored| credited(&stored.event.body))
        .unwrap();
    last(&journal, credited, |event| event.cause = first.event.cause)
}

fn of_another_partition() -> Numbered {
    let home = |count: u8| Partitions::try_from(count).unwrap().of(&account());
    let count = (2..10).find(|count| home(*count) != Partition(0)).unwrap();
    let genesis = |body: &EventBody| matches!(body, EventBody::Genesis(_));
    last(&settled(), genesis, |event| {
        if let EventBody::Genesis(data) = &mut event.body {
            data.partitions = count;
        }
    })
}

fn without_genesis() -> Numbered {
    let mut commits = commits(&settled());
    commits[0].events.remove(0);
    for stored in &mut commits[0].events {
        let mut event = stored.event.clone();
        event.position = Position(event.position.0 - 1);
        *stored = StoredEvent::new(event);
    }
    renumber(&mut commits[1..], 1);
    numbered(chained(commits))
}

/// Without what follows from the last settle.
fn cut_short() -> Numbered {
    let mut commits = commits(&overrun());
    let settled = |stored: &StoredEvent| matches!(stored.event.body, EventBody::Settled(_));
    let commit = commits.last_mut().unwrap();
    let at = commit.events.iter().position(settled).unwrap();
    commit.events.truncate(at + 1);
    numbered(chained(commits))
}

/// All in the second reign, without a first.
fn a_reign_left_out() -> Numbered {
    let mut commits = commits(&settled());
    for commit in &mut commits {
        commit.epoch = commit.epoch.next();
        for stored in &mut commit.events {
            let mut event = stored.event.clone();
            if let EventBody::WriterStarted(data) = &mut event.body {
                data.epoch = data.epoch.next();
            }
            *stored = StoredEvent::new(event);
        }
    }
    numbered(chained(commits))
}

/// A hold that made room for another, which took its place.
fn exchanged(change: impl FnOnce(&mut Vec<Commit>, &Call)) -> Numbered {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    let other = story.reserve(&ask(1, 1));
    let first = story.reserve(&ask(10, 20));
    story.exchange(&first, &ask(10, 30));
    let mut commits = commits(&story.journal);
    change(&mut commits, &other);
    numbered(chained(commits))
}

/// What was to take the place is missing.
fn nothing_in_its_place() -> Numbered {
    exchanged(|commits, _| {
        commits.last_mut().unwrap().events.pop();
    })
}

/// Another hold ends where that which took the place belongs.
fn something_in_between() -> Numbered {
    exchanged(|commits, other| {
        let stored = commits.last_mut().unwrap().events.last_mut().unwrap();
        let mut event = stored.event.clone();
        event.cause = CommandId::from_parts(7, 7);
        event.body = Released {
            reservation: other.reservation(),
            key: KeyId::new("k").unwrap(),
            reason: "forged".to_owned(),
            replaced_by: None,
        }
        .into();
        *stored = StoredEvent::new(event);
    })
}

/// A journal that only this check finds.
fn forged(check: Check) -> Numbered {
    let is = |kind: &'static str| move |body: &EventBody| body.kind() == kind;
    let genesis = commits(&settled())[0].events[0].event.body.clone();
    match check {
        Check::Exchange => something_in_between(),
        Check::ExchangeAtEnd => nothing_in_its_place(),
        Check::Sequence => {
            let mut journal = numbered(settled());
            journal.last_mut().unwrap().0 += 1;
            journal
        }
        StrayWord => {
            let mut story = Story::new(&["all account tokens balance 1000"]);
            let before = story.journal.len();
            story.spend(&ask(10, 20), 10, 20);
            let mut journal = story.journal.clone();
            journal.insert(before, Bytes::from_static(b"hello"));
            numbered(journal)
        }
        StrayEnd => numbered([settled(), vec![Bytes::from_static(b"hello")]].concat()),
        Time => and_then(&settled(), |_, event| {
            event.body = unknown();
            event.at_ms -= 1;
        }),
        Reign => and_then(&settled(), |commit, event| {
            event.body = unknown();
            commit.epoch = commit.epoch.next();
        }),
        Check::Bytes => last(&settled(), is("settled"), |event| {
            if let EventBody::Settled(data) = &mut event.body {
                data.charge.tokens -= 1;
            }
        }),
        Owed => last(&overrun(), is("overrun"), |event| {
            event.cause = CommandId::from_parts(1, 1);
        }),
        OwedAtEnd => cut_short(),
        Orphan => and_then(&settled(), |_, event| {
            let key = KeyId::new("k").unwrap();
            let (reservation, above) = (CommandId::from_parts(1, 1).into(), Amounts::zero());
            event.body = Overrun {
                reservation,
                key,
                above,
            }
            .into();
        }),
        Twice => credited_twice(),
        Home => of_another_partition(),
        Due => without_the_expiry(),
        NotDue => expired_early(),
        RefusedLate => last(&overrun(), is("refused"), |event| {
            let at_ms = event.at_ms;
            if let EventBody::Refused(data) = &mut event.body {
                data.decided_at_ms = Some(at_ms + 1);
            }
        }),
        OwnId => last(&settled(), is("reserved"), |event| {
            event.cause = CommandId::from_parts(7, 7);
        }),
        First => without_genesis(),
        Genesis => and_then(&settled(), |_, event| event.body = genesis),
        Epoch => a_reign_left_out(),
        Change => and_then(&settled(), |_, event| {
            event.account = account();
            event.body = AccountOpened::default().into();
        }),
    }
}

#[cfg(debug_assertions)]
#[test]
fn each_check_alone_finds_a_forged_journal() {
    let mut wrong = Vec::new();
    for check in Check::ALL {
        let journal = forged(check);
        if proves(&journal).is_ok() {
            wrong.push(format!("{check:?} does not find its journal"));
        }
        if let Err(error) = check.taken_out(|| proves(&journal)) {
            wrong.push(format!("{check:?} is not needed: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
