//! The writer of one partition, as a state machine without I/O: commands and append results go in,
//! commits and answers come out.
//!
//! It decides on the newest state at once and answers once the decision is durable. While one commit
//! is in flight, decisions queue; the next commit takes all of them. What becomes of an append whose
//! outcome is not known is settled by appending the same bytes at the same place until the answer is
//! definite, and by reading what stands there. A writer that lost its place answers nothing more
//! from its state. It has no clock: the time is given with every call, and goes only forward here.

use std::collections::BTreeSet;

use bytes::Bytes;
use seatbelt_schemas::{
    command::{
        Ack, Admin, AdminOutcome, Exchange, Read, Release, Reserve, ReserveOutcome, Resize,
        Resolution, Settle, Standing,
    },
    commit::COMMIT_EVENTS_MAX,
    event::{Adopted, Event, EventBody, Genesis, WriterStarted},
    ids::{AccountId, Actor, CommandId, LedgerId, ReservationId},
    position::{Epoch, Partition, Partitions, Position},
    skipped::Skipped,
};

use crate::{
    api::Answer,
    decide::{Context, Cover, ReserveRequest, follows::Follows},
    host::skew::ClockOff,
    journal::Sequence,
    outcomes::{self, Fingerprint, Outcomes},
    partition::PartitionState,
    resume::Resumed,
};

mod admission;
mod carrying;
pub mod cold;
mod doubts;
mod exchanging;
mod holds;
mod landing;
mod others;
pub mod pending;
mod queueing;
pub mod replies;
mod residents;
pub mod tally;
#[cfg(test)]
mod tests;
mod time;
pub mod waiting;

use cold::Parked;
use doubts::Doubts;
use pending::{Pending, Queue};
use replies::{Replies, TurnedAway};
use tally::{CountedRefusals, SINGLE_REFUSALS_PER_SECOND, Tallies};
pub use waiting::WAITERS_PER_ACCOUNT_MAX;
use waiting::Waiters;

/// Most decisions that wait for their commit; beyond it commands are turned away as unavailable.
pub const PENDING_EVENTS_MAX: usize = 1 << 14;
/// Most commands that wait for something to be fetched; beyond it they are turned away as unavailable.
pub const PARKED_MAX: usize = 1 << 14;
/// Most accounts that leave memory in one go.
const LET_GO_MAX: usize = 4096;
/// Most reservations ended by their deadline in one go.
const EXPIRE_PER_TICK_MAX: usize = 256;

const _: () = assert!(
    PENDING_EVENTS_MAX >= 4 * COMMIT_EVENTS_MAX,
    "a commit in flight must not stop deciding"
);

/// What a writer is told once.
#[derive(Debug, Clone)]
pub struct WriterConfig {
    pub partition: Partition,
    /// How many there are.
    pub partitions: Partitions,
    /// The ledger's id, for genesis.
    pub ledger: LedgerId,
    /// The process, by a name for people.
    pub writer: String,
    /// How long after its deadline a reservation is left alone, ms.
    pub expiry_grace_ms: u64,
    /// How many refusals of one key by one cap for one reason are events of their own, per second.
    pub single_refusals_per_second: u32,
    /// How many accounts stay in memory, where the others can be loaded from snapshots.
    pub accounts_max: usize,
    /// How long a settle may wait for a commit that something else needs, ms. A settle is taken into
    /// the state at once; a sequential caller's next reserve need not queue behind its append.
    pub settle_linger_ms: u64,
    /// Most events of a commit, unless one decision alone is more; at most [`COMMIT_EVENTS_MAX`].
    pub commit_events_max: usize,
}

impl WriterConfig {
    /// The usual rate of refusals that are events of their own.
    pub const SINGLE_REFUSALS_DEFAULT: u32 = SINGLE_REFUSALS_PER_SECOND;

    /// The usual number of accounts in memory: about 1 GB.
    pub const ACCOUNTS_MAX_DEFAULT: usize = 1 << 20;

    /// The usual linger of a settle, ms.
    pub const SETTLE_LINGER_MS_DEFAULT: u64 = 3;
}

/// A command.
#[derive(Debug, Clone)]
pub enum Request {
    /// Asks for a hold.
    Reserve(Reserve),
    /// Changes one.
    Resize(Resize),
    /// Replaces one by what was used.
    Settle(Settle, Ack),
    /// Gives one back.
    Release(Release),
    /// Puts one in the place of another.
    Exchange(Exchange),
    /// Asks how an account stands.
    Read(Read),
    /// Changes an account or the prices.
    Admin(Admin),
}

impl Request {
    /// The account that it is about.
    pub fn account(&self) -> &AccountId {
        match self {
            Self::Reserve(command) => &command.account,
            Self::Resize(command) => &command.account,
            Self::Settle(command, _) => &command.account,
            Self::Release(command) => &command.account,
            Self::Exchange(command) => &command.reserve.account,
            Self::Read(query) => &query.account,
            Self::Admin(command) => &command.account,
        }
    }
}

/// An answer to the request of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To a reserve, or an exchange.
    Reserve(ReserveOutcome),
    /// To a resize, settle or release.
    Resolution(Resolution),
    /// To a read.
    Standing(Standing),
    /// To an admin command.
    Admin(AdminOutcome),
}

/// Someone who waits for an answer.
pub trait Caller {
    /// Whether nobody listens any more.
    fn is_gone(&self) -> bool;

    /// Who hears again, once it lasts, of a settle that this one is told is taken; nobody unless the
    /// caller asked for both answers.
    fn second(&mut self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}

/// What to do after an append.
#[derive(Debug)]
pub enum Next {
    /// It landed; go on.
    Continue,
    /// Append the same bytes at the same place again.
    Retry,
    /// Read what stands at this sequence and tell [`Writer::read_back`].
    ReadBack(Sequence),
    /// This writer is over; drop it. All its callers have been answered.
    StepDown(StepDown),
}

/// Why a writer is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepDown {
    /// Another writer has taken the partition over.
    Fenced,
    /// The journal refuses appends.
    Refused(String),
    /// The journal is shorter than it was: it was damaged.
    Truncated,
    /// The host's clock is too far from the server's.
    Clock(ClockOff),
}

impl std::fmt::Display for StepDown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fenced => f.write_str("another writer has taken this partition over"),
            Self::Refused(detail) => write!(f, "the journal refuses appends: {detail}"),
            Self::Truncated => f.write_str("the journal is shorter than it was"),
            Self::Clock(off) => off.fmt(f),
        }
    }
}

#[derive(Debug)]
struct InFlight {
    expected: Sequence,
    payload: Bytes,
    last: Position,
}

/// The writer of one partition. `T` stands for a caller.
#[derive(Debug)]
pub struct Writer<T> {
    config: WriterConfig,
    epoch: Epoch,
    state: PartitionState,
    outcomes: Outcomes,
    parked: Parked<T>,
    /// The command being carried out, so that its events need not be digested to know it.
    carrying_out: Option<(CommandId, Fingerprint)>,
    waiting: Waiters<T>,
    /// Whether another host takes over: nobody waits here any more.
    handing_over: bool,
    tallies: Tallies,
    deadlines: BTreeSet<(u64, ReservationId, AccountId)>,
    pending: Queue,
    /// Until when what is pending may wait, unix ms; `None` where it may not, or nothing is.
    linger_until_ms: Option<u64>,
    in_flight: Option<InFlight>,
    tail: Sequence,
    replies: Replies<T>,
    doubts: Doubts<T>,
}

/// What an operator has a writer say when it starts.
#[derive(Debug, Clone, Default)]
pub struct Word {
    /// That the journal goes on from where it ends.
    pub adopted: Option<Adopted>,
    /// That messages at its end are no commits.
    pub skipped: Option<Skipped>,
}

impl<T: Caller> Writer<T> {
    /// Takes a partition over. Its first commit writes `writer_started`, which fences every writer
    /// before it.
    pub fn start(config: WriterConfig, resumed: Resumed, now_ms: u64) -> Self {
        Self::start_on(config, resumed, now_ms, Word::default())
    }

    /// As [`Writer::start`], on an operator's word how this journal is to be gone on from.
    pub fn start_on(config: WriterConfig, resumed: Resumed, now_ms: u64, word: Word) -> Self {
        let Resumed {
            state,
            outcomes,
            tail,
            open,
            ..
        } = resumed;
        let deadlines = state.accounts().flat_map(|(account, state)| {
            state
                .open()
                .iter()
                .map(|(id, open)| (open.asked.deadline_ms, *id, account.clone()))
        });
        let mut writer = Self {
            epoch: state.epoch().next(),
            deadlines: deadlines.collect(),
            replies: Replies::new(state.position()),
            tallies: Tallies::new(config.single_refusals_per_second),
            pending: Queue::new(config.commit_events_max),
            config,
            state,
            parked: Parked::watching(open).and_reading(outcomes.unread()),
            outcomes,
            carrying_out: None,
            waiting: Waiters::default(),
            handing_over: false,
            linger_until_ms: None,
            in_flight: None,
            tail,
            doubts: Doubts::default(),
        };
        writer.announce(now_ms, word);
        writer
    }

    fn announce(&mut self, now_ms: u64, word: Word) {
        let system = AccountId::system();
        let actor = Actor::system("writer");
        if self.state.position() == Position(0) {
            let genesis = Genesis {
                ledger: self.config.ledger.clone(),
                partition: self.config.partition.0,
                partitions: self.config.partitions.into(),
            };
            let cause = self.own_id(now_ms);
            self.write(now_ms, &system, cause, &actor, genesis.into());
        }
        let started = WriterStarted {
            epoch: self.epoch,
            writer: self.config.writer.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adopted: word.adopted,
            skipped: word.skipped,
        };
        let cause = self.own_id(now_ms);
        self.write(now_ms, &system, cause, &actor, started.into());
    }

    /// The state as decided so far, which may run ahead of what is durable.
    pub fn state(&self) -> &PartitionState {
        &self.state
    }

    /// The last durable position.
    pub fn durable(&self) -> Position {
        self.replies.durable()
    }

    /// The last commit on the journal, as far as this writer knows.
    pub fn tail(&self) -> Sequence {
        self.tail
    }

    /// Events decided and not yet in a commit.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Up to where answers have been taken: what is answered again from before was heard of already.
    pub fn told(&self) -> Position {
        self.replies.told()
    }

    /// Answers that may be given now.
    pub fn answers(&mut self) -> std::vec::Drain<'_, (T, Answer<Reply>)> {
        self.replies.take()
    }

    /// Answers what the state says now, once all of it is durable.
    fn answer(&mut self, caller: T, answer: Answer<Reply>) {
        self.answer_at(self.state.position(), caller, answer);
    }

    /// Answers once `position` is durable; what denies something, once this writer is also known to have
    /// had its place when it was decided.
    fn answer_at(&mut self, position: Position, caller: T, answer: Answer<Reply>) {
        debug_assert!(position <= self.state.position(), "only what was decided");
        if doubts::denies(&answer) {
            return self.doubts.add(position, caller, answer);
        }
        self.replies.rest(position, caller, answer);
    }

    fn turn_away(&mut self, caller: T, why: TurnedAway) {
        self.replies.turn_away(caller, why);
    }

    /// The time of the next event: the caller's clock, but never before the last event.
    fn event_ms(&self, now_ms: u64) -> u64 {
        now_ms.max(self.state.at_ms())
    }

    /// An id for a command of the writer's own: unique by the position that it leads to.
    fn own_id(&self, now_ms: u64) -> CommandId {
        let unique =
            u128::from(self.config.partition.0) << 64 | u128::from(self.state.position().next().0);
        CommandId::from_parts(self.event_ms(now_ms), unique)
    }

    /// Writes one event. Refusals that were counted on the state before it are written first: they
    /// decide again only there.
    fn write(
        &mut self,
        now_ms: u64,
        account: &AccountId,
        cause: CommandId,
        actor: &Actor,
        body: EventBody,
    ) -> Position {
        match &body {
            EventBody::PriceSet(_) => self.write_all_counted(now_ms),
            _ => self.write_counted(now_ms, account),
        }
        self.record(now_ms, account, cause, actor, body)
    }

    fn write_counted(&mut self, now_ms: u64, account: &AccountId) {
        for CountedRefusals { cause, data } in self.tallies.drain(account) {
            // the clock may have been set back since it was decided
            let now_ms = data.decided_at_ms.map_or(now_ms, |at_ms| now_ms.max(at_ms));
            let actor = Actor::key(&data.scopes.key);
            self.record(now_ms, account, cause, &actor, data.into());
        }
    }

    /// Records one event: state, outcome, and the next commit.
    fn record(
        &mut self,
        now_ms: u64,
        account: &AccountId,
        cause: CommandId,
        actor: &Actor,
        body: EventBody,
    ) -> Position {
        let event = Event {
            position: self.state.position().next(),
            at_ms: self.event_ms(now_ms),
            account: account.clone(),
            cause,
            actor: actor.clone(),
            body,
        };
        let (position, at_ms, bytes) = (event.position, event.at_ms, event.encode());
        self.mark_lines(&event);
        self.state.apply(&event);
        match self.carrying_out {
            Some((id, fingerprint)) if id == cause => {
                debug_assert!(Fingerprint::of_event(&event).is_none_or(|of| of == fingerprint));
                self.outcomes.apply_as(&event, fingerprint);
            }
            _ => self.outcomes.apply(&event),
        }
        self.linger_until_ms = None;
        // a journal never holds its genesis without the writer that began it
        let decision = match (&event.body, self.pending.last_decision()) {
            (EventBody::WriterStarted(_), Some(genesis)) => genesis,
            _ => cause,
        };
        self.pending.push(Pending {
            position,
            at_ms,
            decision,
            bytes,
        });
        position
    }

    /// Records an event and what follows from it: one decision.
    fn write_whole(
        &mut self,
        now_ms: u64,
        account: &AccountId,
        cause: CommandId,
        actor: &Actor,
        body: EventBody,
    ) -> Position {
        let follows = Follows::of(self.state.account(account), &body);
        let position = self.write(now_ms, account, cause, actor, body);
        let at_ms = self.event_ms(now_ms);
        let after = self.state.account(account);
        let following: Vec<EventBody> = after
            .map(|after| follows.decided(after, at_ms).collect())
            .unwrap_or_default();
        for body in following {
            self.write(now_ms, account, cause, actor, body);
        }
        position
    }

    fn context(&self, now_ms: u64) -> Context<'_> {
        Context {
            at_ms: self.event_ms(now_ms),
            prices: self.state.prices(),
            cover: Cover::WithinLimits,
        }
    }

    fn answer_when(&mut self, ack: Ack, position: Position, mut caller: T, reply: Answer<Reply>) {
        match (ack, reply) {
            (Ack::Taken, Ok(Reply::Resolution(resolution))) => {
                let second = caller.second();
                self.replies.taken(caller, resolution);
                if let Some(second) = second {
                    self.answer_at(position, second, Ok(Reply::Resolution(resolution)));
                }
            }
            (_, reply) => self.answer_at(position, caller, reply),
        }
    }
}

fn request_of(command: &Reserve) -> ReserveRequest<'_> {
    ReserveRequest {
        reservation: command.id.into(),
        key: &command.key,
        team: command.team.as_ref(),
        model: command.model.as_ref(),
        run: command.run.as_ref(),
        end_user: command.end_user.as_ref(),
        asked: outcomes::asked(command),
        budget: command.budget.as_ref(),
        within: command.within.as_ref(),
        attempt: None,
    }
}
