//! The model of what lies outside a writer's memory: snapshots that a projector writes now and then,
//! record last, and the search of the journal for older commands.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use seatbelt_ledger::{
    account::Account,
    journal::{Sequence, Stored},
    outcomes::{Outcomes, Trace, ahead::Unsearched},
    partition::PartitionState,
    recovery::Loaded,
    resume::{Resume, Resumed},
    snapshot::{AccountSnapshot, History, Mark, PartitionRecord, RECORD_VERSION},
    store::{Kept, Revision},
};
use seatbelt_schemas::{
    commit::Commit,
    event::{Event, EventBody},
    ids::{AccountId, CommandId, ReservationId},
    position::{Partition, Position},
};

/// Snapshots of the one partition.
pub(crate) struct Archive {
    state: PartitionState,
    sequence: u64,
    newest: Option<CommandId>,
    /// The newest id of all events up to each commit.
    marks: Vec<Mark>,
    accounts: HashMap<AccountId, Kept>,
    record: Option<(PartitionRecord, Revision)>,
    revision: u64,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            state: PartitionState::new(Partition(0)),
            sequence: 0,
            newest: None,
            marks: vec![Mark::default()],
            accounts: HashMap::new(),
            record: None,
            revision: 0,
        }
    }

    /// Projects what the journal has by now: the accounts, and unless the projector dies before it the
    /// record; `recent` says how many commits before the end the hot commands begin.
    pub(crate) fn project(&mut self, journal: &[Bytes], dies: bool, recent: usize) {
        for payload in &journal[self.sequence as usize..] {
            let Ok(commit) = self.state.accept(payload) else {
                return; // what a planted fault has broken is not projected
            };
            self.sequence += 1;
            let causes = commit.events.iter().map(|stored| Some(stored.event.cause));
            self.newest = causes.max().unwrap_or_default().max(self.newest);
            self.marks.push(Mark {
                sequence: self.sequence,
                position: self.state.position(),
                newest: self.newest,
            });
        }
        let (position, at_ms) = (self.state.position(), self.state.at_ms());
        let states: BTreeMap<_, _> = self.state.accounts().collect();
        for (account, state) in states {
            self.revision += 1;
            let kept = Kept {
                value: Some(AccountSnapshot::kept(account, position, at_ms, state)),
                revision: Revision(self.revision),
            };
            self.accounts.insert(account.clone(), kept);
        }
        if !dies && self.sequence > 0 {
            self.vouch(recent);
        }
    }

    fn vouch(&mut self, recent: usize) {
        let is_open = |(account, state): (&AccountId, &Account)| {
            (!state.open().is_empty()).then(|| account.clone())
        };
        let older = self.marks[self.marks.len().saturating_sub(recent + 1)];
        let record = PartitionRecord {
            v: RECORD_VERSION,
            projector: None,
            sequence: self.sequence,
            head: self.state.head().clone(),
            checked_at_ms: 0,
            history: History {
                newest: self.newest,
                older,
                newer: older,
            },
            open: Some(self.state.accounts().filter_map(is_open).collect()),
            directory: None,
        };
        self.revision += 1;
        self.record = Some((record, Revision(self.revision)));
    }

    /// A partition as a writer takes it up from here; `None` where there is no record yet.
    pub(crate) fn resume(
        &self,
        journal: &[Bytes],
        hot_max: usize,
    ) -> Option<Result<Resumed, String>> {
        let (record, revision) = self.record.clone()?;
        let vouched = (revision, record.head.position);
        let mut resume = Resume::from_record(record, hot_max);
        let from = resume.tail().0;
        for (payload, number) in journal.iter().zip(1..).skip(from as usize) {
            let stored = Stored {
                sequence: Sequence(number),
                payload: payload.clone(),
            };
            if let Err(failure) = self.take(&mut resume, &stored, vouched) {
                return Some(Err(failure));
            }
        }
        Some(Ok(resume.finish()))
    }

    fn take(
        &self,
        resume: &mut Resume,
        stored: &Stored,
        vouched: (Revision, Position),
    ) -> Result<(), String> {
        let commit = resume.check(stored).map_err(|error| error.to_string())?;
        for account in resume.missing(stored, &commit) {
            let snapshot = self.snapshot(&account, vouched)?;
            resume.move_in(account, snapshot);
        }
        resume
            .take(stored, &commit)
            .map_err(|error| error.to_string())
    }

    fn snapshot(
        &self,
        account: &AccountId,
        vouched: (Revision, Position),
    ) -> Result<Option<AccountSnapshot>, String> {
        let kept = self.accounts.get(account).cloned().unwrap_or_default();
        AccountSnapshot::of_kept(account, &kept, vouched).map_err(|error| error.to_string())
    }

    /// An account as its snapshot has it.
    pub(crate) fn account(&self, account: &AccountId) -> Option<Loaded> {
        let any = (Revision(u64::MAX), Position(0));
        let snapshot = self.snapshot(account, any).expect("snapshots are readable");
        snapshot.map(Loaded::from)
    }
}

/// What the journal up to a commit tells of a command: looked for from its beginning, as a check of the
/// search by time.
pub(crate) fn trace(journal: &[Bytes], to: Sequence, id: CommandId) -> Trace {
    let reservation = ReservationId::from(id);
    let concerns = |event: &Event| match &event.body {
        EventBody::Settled(data) => data.reservation == reservation,
        EventBody::Released(data) => data.reservation == reservation,
        EventBody::Expired(data) => data.reservation == reservation,
        EventBody::Resized(data) => data.reservation == reservation,
        _ => false,
    };
    let commits = up_to(journal, to)
        .iter()
        .filter_map(|payload| Commit::decode(payload).ok());
    let events = commits
        .flat_map(|commit| commit.events)
        .map(|stored| stored.event)
        .filter(|event| event.cause == id || concerns(event))
        .collect();
    Trace { id, events }
}

/// A writer with a planted fault may believe in commits that are not there.
fn up_to(journal: &[Bytes], to: Sequence) -> &[Bytes] {
    &journal[..journal.len().min(to.0 as usize)]
}

/// What the journal tells of ids above a floor: a full scan.
pub(crate) fn above(journal: &[Bytes], unread: Unsearched, hot_max: usize) -> Outcomes {
    let mut outcomes = Outcomes::after(None, hot_max);
    for payload in up_to(journal, unread.to) {
        let Ok(commit) = Commit::decode(payload) else {
            continue;
        };
        for stored in &commit.events {
            outcomes.apply_above(&stored.event, unread.floor);
        }
    }
    outcomes
}
