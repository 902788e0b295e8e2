//! Each part of the writer by itself: a desk with one account, whose journal lands what it is told to.

use bytes::Bytes;
use seatbelt_schemas::{
    command::{
        Ack, AdminOutcome, Change, CommandError, Grant, Read, Reserve, ReserveOutcome, Resize,
        STANDING_CAPS_MAX,
    },
    event::OnShort,
    ids::{AccountId, Actor, EndUserId, LedgerId, ReservationId},
    position::{Partition, Partitions, Position},
    scope::Scope,
};

use super::{
    Caller, Next, Reply, Request, StepDown, Writer, WriterConfig,
    cold::{Fetch, Fetched},
};
use crate::{
    api::Answer,
    host::now_ms,
    journal::{AppendError, Sequence},
    resume::Resume,
    testing::{Payer, balance, command_id},
};

mod ends;
mod order;

/// A caller, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ear {
    number: u32,
    gone: bool,
}

impl Caller for Ear {
    fn is_gone(&self) -> bool {
        self.gone
    }
}

struct Desk {
    writer: Writer<Ear>,
    payer: Payer,
    now_ms: u64,
    journal: Vec<Bytes>,
    last: u32,
}

impl Desk {
    /// An account with one key and a cap of so many tokens, all of it on the journal.
    fn new(limit: u64) -> Self {
        Self::with(limit, |_| {})
    }

    fn with(limit: u64, differs: impl FnOnce(&mut WriterConfig)) -> Self {
        let mut config = WriterConfig {
            partition: Partition(0),
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("test").unwrap(),
            writer: "test".to_owned(),
            expiry_grace_ms: 1_000,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
            settle_linger_ms: 0,
            commit_events_max: 16,
        };
        differs(&mut config);
        let resumed = Resume::from_start(Partition(0), 4_096).finish();
        let now_ms = now_ms();
        let mut desk = Self {
            writer: Writer::start(config, resumed, now_ms),
            payer: Payer::new("acct", "key"),
            now_ms,
            journal: Vec::new(),
            last: 0,
        };
        for change in desk.payer.changes(balance("cap", Scope::Account, limit)) {
            desk.send(Request::Admin(desk.payer.admin(change)));
        }
        desk.land();
        desk.answers();
        desk
    }

    /// Sends a request; the number of who asks.
    fn send(&mut self, request: Request) -> u32 {
        self.last += 1;
        let ear = Ear {
            number: self.last,
            gone: false,
        };
        self.writer.submit(self.now_ms, request, ear);
        self.last
    }

    fn reserve(&mut self, output_tokens: u64, wait_ms: u64) -> (ReservationId, u32) {
        let command = Reserve {
            wait_ms,
            ..self.payer.reserve(output_tokens)
        };
        let id = command.id.into();
        (id, self.send(Request::Reserve(command)))
    }

    /// All that can be appended lands.
    fn land(&mut self) {
        while let Some((expected, payload)) = self.writer.take_append() {
            assert_eq!(expected, Sequence(self.journal.len() as u64));
            self.journal.push(payload);
            let next = self.writer.appended(Ok(expected.next()));
            assert!(matches!(next, Next::Continue));
        }
    }

    fn answers(&mut self) -> Vec<(u32, Answer<Reply>)> {
        let answers = self.writer.answers();
        answers.map(|(ear, answer)| (ear.number, answer)).collect()
    }

    /// The one answer that there is, once all has landed.
    #[track_caller]
    fn answer(&mut self) -> Answer<Reply> {
        self.land();
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0).1
    }

    #[track_caller]
    fn granted(&mut self, output_tokens: u64) -> ReservationId {
        self.reserve(output_tokens, 0);
        grant(self.answer()).reservation
    }

    fn stands(&self) -> (u64, u64) {
        let account = self.writer.state().account(&self.payer.account).unwrap();
        let first = account.standings(None, None, self.now_ms).next().unwrap();
        (first.spent, first.held)
    }

    fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        self.writer.tick(self.now_ms);
    }
}

#[track_caller]
fn grant(answer: Answer<Reply>) -> Grant {
    match answer {
        Ok(Reply::Reserve(ReserveOutcome::Reserved(grant))) => grant,
        other => panic!("no grant: {other:?}"),
    }
}

#[track_caller]
fn is_unavailable(answer: &Answer<Reply>) {
    let unavailable = matches!(answer, Err(CommandError::Unavailable { .. }));
    assert!(unavailable, "{answer:?}");
}
