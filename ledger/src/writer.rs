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
    cap::CapStanding,
    command::{
        Ack, Admin, AdminOutcome, Change, CommandError, Grant, Read, Release, Reserve,
        ReserveOutcome, Resize, Resolution, Settle, Standing,
    },
    commit::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, ChainHash, encode_commit},
    event::{Adopted, Event, EventBody, Genesis, Refused, WriterStarted},
    ids::{AccountId, Actor, CommandId, LedgerId, ReservationId},
    meter::Amounts,
    position::{Epoch, Partition, Partitions, Position},
};

use crate::{
    account::Account,
    api::Answer,
    decide::{
        self, Context, ReserveRequest,
        follows::Follows,
        validate::{self, Malformed},
    },
    host::skew::ClockOff,
    journal::{AppendError, Sequence},
    outcomes::{self, Fingerprint, Outcome, Outcomes, Recall},
    partition::PartitionState,
    resume::Resumed,
};

pub mod cold;
pub mod pending;
mod queueing;
pub mod replies;
pub mod tally;
pub mod waiting;

use cold::{Fetch, Fetched, Parked};
use pending::{Pending, Queue};
use replies::{RESTING_MAX, Replies, TurnedAway};
use tally::{Counted, SINGLE_REFUSALS_PER_SECOND, Tallies};
pub use waiting::WAITERS_PER_ACCOUNT_MAX;
use waiting::{WAIT_MS_MAX, Waiter, Waiting};

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
    /// Its partition.
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
            Self::Read(query) => &query.account,
            Self::Admin(command) => &command.account,
        }
    }
}

/// An answer to the request of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To a reserve.
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
    waiting: Waiting<T>,
    tallies: Tallies,
    deadlines: BTreeSet<(u64, ReservationId, AccountId)>,
    pending: Queue,
    /// Until when what is pending may wait, unix ms; `None` where it may not, or nothing is.
    linger_until_ms: Option<u64>,
    in_flight: Option<InFlight>,
    tail: Sequence,
    replies: Replies<T>,
}

impl<T: Caller> Writer<T> {
    /// Takes a partition over. Its first commit writes `writer_started`, which fences every writer
    /// before it.
    pub fn start(config: WriterConfig, resumed: Resumed, now_ms: u64) -> Self {
        Self::begin(config, resumed, now_ms, None)
    }

    /// As [`Writer::start`], on an operator's word that this journal is to be gone on from.
    pub fn adopt(config: WriterConfig, resumed: Resumed, now_ms: u64, adopted: Adopted) -> Self {
        Self::begin(config, resumed, now_ms, Some(adopted))
    }

    fn begin(
        config: WriterConfig,
        resumed: Resumed,
        now_ms: u64,
        adopted: Option<Adopted>,
    ) -> Self {
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
            waiting: Waiting::default(),
            linger_until_ms: None,
            in_flight: None,
            tail,
        };
        writer.announce(now_ms, adopted);
        writer
    }

    fn announce(&mut self, now_ms: u64, adopted: Option<Adopted>) {
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
            adopted,
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

    /// Takes a command in. Its answer comes from [`Writer::answers`], now or later.
    pub fn submit(&mut self, now_ms: u64, request: Request, caller: T) {
        if self.pending.len() >= PENDING_EVENTS_MAX {
            let detail = format!("{PENDING_EVENTS_MAX} decisions wait for the journal already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        if self.replies.resting() >= RESTING_MAX {
            let detail = format!("{RESTING_MAX} answers wait for the journal already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        if let Some(fetch) = self.missing(&request) {
            return self.park(fetch, request, caller);
        }
        match request {
            Request::Reserve(command) => self.reserve(now_ms, command, caller),
            Request::Resize(command) => self.resize(now_ms, &command, caller),
            Request::Settle(command, ack) => self.settle(now_ms, command, ack, caller),
            Request::Release(command) => self.release(now_ms, &command, caller),
            Request::Read(query) => self.read(now_ms, &query, caller),
            Request::Admin(command) => self.admin(now_ms, &command, caller),
        }
    }

    /// What a command needs that is not in memory: its account, or what the journal tells of an older
    /// command with its id. What ends a reservation needs no such search while the reservation is
    /// there to be ended: it cannot have been carried out before.
    fn missing(&self, request: &Request) -> Option<Fetch> {
        let account = request.account();
        if !self.state.is_resident(account) && !account.is_system() && self.is_ours(account) {
            return Some(Fetch::Account(account.clone()));
        }
        let state = self.state.account(account);
        let is_open = |id| state.is_some_and(|state| state.open().contains_key(&id));
        let has_expired = |id| state.is_some_and(|state| state.expired().contains_key(&id));
        let id = match request {
            Request::Read(_) => return None,
            Request::Reserve(command) => command.id,
            Request::Admin(command) => command.id,
            Request::Resize(command) if is_open(command.reservation) => command.id,
            Request::Resize(Resize { reservation, .. })
            | Request::Settle(Settle { reservation, .. }, _)
            | Request::Release(Release { reservation, .. }) => {
                if is_open(*reservation) || has_expired(*reservation) {
                    return None;
                }
                CommandId::from(*reservation)
            }
        };
        if !self.outcomes.is_cold(id) {
            return None;
        }
        let unread = self.outcomes.unread_of(id).map(Fetch::Above);
        Some(unread.unwrap_or(Fetch::Command(id)))
    }

    fn is_ours(&self, account: &AccountId) -> bool {
        self.config.partitions.of(account) == self.config.partition
    }

    fn park(&mut self, fetch: Fetch, request: Request, caller: T) {
        if self.parked.len() >= PARKED_MAX {
            let detail = format!("{PARKED_MAX} commands wait for older state already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        let decided = self.state.position();
        self.parked.park(fetch, decided, request, caller);
    }

    /// The next that has to be fetched: from the snapshots, or from the journal up to its end.
    pub fn take_fetch(&mut self) -> Option<Fetch> {
        self.parked.next(self.replies.durable())
    }

    /// Watches the deadlines of accounts that may be out of memory.
    pub fn watch(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        let away = accounts.into_iter();
        let away = away.filter(|account| !self.state.is_resident(account));
        self.parked.watch(away);
    }

    /// Commands that wait for something to be fetched.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Takes in what was fetched, and carries out what waited for it.
    pub fn fetched(&mut self, now_ms: u64, fetched: Fetched) {
        let (fetch, failure) = match fetched {
            Fetched::Account(account, state) => {
                self.parked.arrived(&account);
                self.move_in(now_ms, &account, state.unwrap_or_default());
                (Fetch::Account(account), None)
            }
            Fetched::Command(trace) => {
                self.outcomes.recollect(&trace);
                (Fetch::Command(trace.id), None)
            }
            Fetched::Above(unread, read) => {
                self.outcomes.take_read(*read);
                (Fetch::Above(unread), None)
            }
            Fetched::Failed { fetch, detail } => {
                self.parked.failed(&fetch);
                if let Fetch::Above(_) = fetch {
                    self.outcomes.give_up_reading();
                }
                (fetch, Some(detail))
            }
        };
        for (request, caller) in self.parked.take(&fetch) {
            match &failure {
                None => self.submit(now_ms, request, caller),
                Some(detail) => self.turn_away(caller, TurnedAway::Unavailable(detail.clone())),
            }
        }
        if let Fetch::Account(account) = fetch {
            self.state.forget_unopened(&account);
        }
    }

    /// Accounts that may leave memory once their snapshots are as they are here, each with its version:
    /// some of those that nothing is open or waits in, where there are more in memory than there should
    /// be.
    pub fn crowd(&self) -> Vec<(AccountId, u32)> {
        let most = self.config.accounts_max;
        let above = self.state.residents().saturating_sub(most);
        if above == 0 {
            return Vec::new();
        }
        // some more than need be, so that the next account does not crowd it again
        let wanted = above.saturating_add(most / 16).min(LET_GO_MAX);
        let accounts = self.state.accounts();
        let idle = accounts.filter(|(_, state)| state.open().is_empty());
        idle.take(wanted)
            .map(|(account, state)| (account.clone(), state.version()))
            .collect()
    }

    /// Takes accounts out of memory whose snapshots hold these versions, unless something has happened
    /// to them since.
    pub fn let_go(&mut self, accounts: &[(AccountId, u32)]) {
        for (account, version) in accounts {
            let known = self.state.account(account);
            let same = known.is_some_and(|known| known.version() == *version);
            if same && self.waiting.len(account) == 0 && !self.tallies.counts(account) {
                // also in a writer that began with all of them, from the journal's beginning
                self.state.page();
                self.state.move_out(account);
            }
        }
    }

    /// Puts an account into memory, and ends what should have ended while it was away.
    fn move_in(&mut self, now_ms: u64, account: &AccountId, state: Account) {
        if self.state.is_resident(account) {
            return;
        }
        let open = state.open().iter();
        let open: Vec<_> = open
            .map(|(id, open)| (open.asked.deadline_ms, *id, account.clone()))
            .collect();
        self.state.move_in(account.clone(), state);
        let grace_ms = self.config.expiry_grace_ms;
        for deadline in open {
            if now_ms >= deadline.0.saturating_add(grace_ms) {
                self.expire(now_ms, account, deadline.1);
            } else {
                self.deadlines.insert(deadline);
            }
        }
    }

    /// Lets time act: deadlines and waits that have run out, windows that have aged.
    pub fn tick(&mut self, now_ms: u64) {
        // a clock that went back must not make anything wait longer
        let lingers =
            |until_ms| now_ms < until_ms && until_ms - now_ms <= self.config.settle_linger_ms;
        self.linger_until_ms = self.linger_until_ms.filter(|until_ms| lingers(*until_ms));
        let grace_ms = self.config.expiry_grace_ms;
        for _ in 0..EXPIRE_PER_TICK_MAX {
            match self.deadlines.first() {
                Some((deadline, ..)) if now_ms >= deadline.saturating_add(grace_ms) => {}
                _ => break,
            }
            if let Some((_, reservation, account)) = self.deadlines.pop_first() {
                self.expire(now_ms, &account, reservation);
            }
        }
        self.tick_waiting(now_ms);
        while let Some(account) = self.tallies.pop_due(now_ms) {
            self.write_counted(now_ms, &account);
            self.tallies.close(now_ms, &account);
        }
    }

    /// Lets nothing wait any longer, before a planned end.
    pub fn hurry(&mut self, now_ms: u64) {
        self.linger_until_ms = None;
        self.write_all_counted(now_ms);
    }

    fn write_all_counted(&mut self, now_ms: u64) {
        for account in self.tallies.counting() {
            self.write_counted(now_ms, &account);
        }
    }

    /// The next moment at which [`Writer::tick`] has something to do.
    pub fn next_wake_ms(&self) -> Option<u64> {
        let deadline = self
            .deadlines
            .first()
            .map(|(at_ms, ..)| at_ms + self.config.expiry_grace_ms);
        [
            deadline,
            self.linger_until_ms,
            self.waiting.next_wake_ms(),
            self.tallies.next_due_ms(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Up to where answers have been taken: what is answered again from before was heard of already.
    pub fn told(&self) -> Position {
        self.replies.told()
    }

    /// Answers that may be given now.
    pub fn answers(&mut self) -> std::vec::Drain<'_, (T, Answer<Reply>)> {
        self.replies.take()
    }

    /// The next commit to append, if there is one and none is in flight: the sequence at which the
    /// journal must end, and the bytes.
    pub fn take_append(&mut self) -> Option<(Sequence, Bytes)> {
        if self.in_flight.is_some() || self.linger_until_ms.is_some() {
            return None;
        }
        let taken = self.pending.take_commit();
        let (first, last) = (taken.first()?.position, taken.last()?);
        let events: Vec<&[u8]> = taken.iter().map(|event| event.bytes.as_ref()).collect();
        let (partition, prev) = (self.config.partition, self.state.chain());
        let payload = encode_commit(partition, self.epoch, first, prev, last.at_ms, &events);
        debug_assert!(payload.len() <= COMMIT_BYTES_MAX);
        self.state.committed(self.epoch, ChainHash::of(&payload));
        let expected = self.tail;
        self.in_flight = Some(InFlight {
            expected,
            payload: payload.clone(),
            last: last.position,
        });
        Some((expected, payload))
    }

    /// The bytes in flight, to append them again.
    pub fn in_flight(&self) -> Option<(Sequence, Bytes)> {
        self.in_flight
            .as_ref()
            .map(|flight| (flight.expected, flight.payload.clone()))
    }

    /// What came of the append in flight.
    pub fn appended(&mut self, outcome: Result<Sequence, AppendError>) -> Next {
        match outcome {
            Ok(sequence) => self.landed(sequence),
            Err(AppendError::Unknown { .. }) => Next::Retry,
            Err(AppendError::WrongSequence { expected }) => Next::ReadBack(expected.next()),
            Err(AppendError::Refused { detail }) => self.step_down(StepDown::Refused(detail)),
        }
    }

    /// What stands where the append in flight belongs: itself, if an earlier try landed, or another
    /// writer's commit.
    pub fn read_back(&mut self, found: Option<&Bytes>) -> Next {
        let flight = self
            .in_flight
            .as_ref()
            .expect("read back follows an append in flight");
        match found {
            Some(bytes) if *bytes == flight.payload => self.landed(flight.expected.next()),
            Some(_) => self.step_down(StepDown::Fenced),
            None => self.step_down(StepDown::Truncated),
        }
    }

    fn landed(&mut self, sequence: Sequence) -> Next {
        let flight = self.in_flight.take().expect("only what is in flight lands");
        assert_eq!(
            sequence,
            flight.expected.next(),
            "a conditional append lands right after its condition"
        );
        self.tail = sequence;
        self.replies.landed(flight.last);
        Next::Continue
    }

    /// Ends the writer: nobody is answered from its state any more.
    pub fn step_down(&mut self, reason: StepDown) -> Next {
        let mut callers = self.replies.give_up();
        callers.extend(self.waiting.drain());
        callers.extend(self.parked.drain());
        for caller in callers {
            self.turn_away(caller, TurnedAway::Unavailable(reason.to_string()));
        }
        self.pending.clear();
        self.in_flight = None;
        Next::StepDown(reason)
    }

    /// Answers what the state says now, once all of it is durable.
    fn answer(&mut self, caller: T, answer: Answer<Reply>) {
        self.answer_at(self.state.position(), caller, answer);
    }

    /// Answers once `position` is durable.
    fn answer_at(&mut self, position: Position, caller: T, answer: Answer<Reply>) {
        debug_assert!(position <= self.state.position(), "only what was decided");
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
        for Counted { cause, data } in self.tallies.drain(account) {
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

    fn account(&self, account: &AccountId) -> Result<&Account, CommandError> {
        let known = self.state.account(account);
        known.filter(|account| account.is_open()).ok_or_else(|| {
            let account = account.clone();
            if self.is_ours(&account) {
                CommandError::UnknownAccount { account }
            } else {
                let partition = self.config.partition.0;
                CommandError::WrongPartition { account, partition }
            }
        })
    }

    fn context(&self, now_ms: u64) -> Context<'_> {
        Context {
            at_ms: self.event_ms(now_ms),
            prices: self.state.prices(),
        }
    }

    fn reserve(&mut self, now_ms: u64, command: Reserve, caller: T) {
        let fingerprint = Fingerprint::of_reserve(&command);
        // first of all: what was decided stays so, also after the request's own deadline
        match self.recall(&command.account, command.id, fingerprint) {
            Some(Ok((position, reply))) => return self.answer_at(position, caller, reply),
            Some(Err(error)) => return self.answer(caller, Err(error)),
            None => {}
        }
        if let Err(malformed) = validate::reserve(&command, now_ms) {
            return self.turn_away(caller, TurnedAway::Malformed(malformed));
        }
        match self
            .account(&command.account)
            .map(validate::room_for_reserve)
        {
            Err(error) => return self.answer(caller, Err(error)),
            Ok(Err(full)) => return self.turn_away(caller, TurnedAway::Unavailable(full)),
            Ok(Ok(())) => {}
        }
        if let Some(waiter) = self.waiting.find(command.id) {
            if waiter.fingerprint == fingerprint {
                waiter.callers.push(caller);
            } else {
                self.answer(caller, Err(CommandError::Conflict { id: command.id }));
            }
            return;
        }
        let full = self.waiting.len(&command.account) >= WAITERS_PER_ACCOUNT_MAX;
        let wait_ms = if full {
            0
        } else {
            command.wait_ms.min(WAIT_MS_MAX)
        };
        let give_up_ms = now_ms.saturating_add(wait_ms).min(command.deadline_ms);
        let waiter = Waiter {
            command,
            fingerprint,
            give_up_ms,
            short: Vec::new(),
            callers: vec![caller],
        };
        self.enqueue(now_ms, waiter);
    }

    /// Answers all who wait for a reserve with an error.
    fn fail(&mut self, waiter: Waiter<T>, error: &CommandError) {
        for caller in waiter.callers {
            self.answer(caller, Err(error.clone()));
        }
    }

    /// Writes a refusal, or counts it where its key has caused many in this second. What is counted
    /// takes nothing from anybody, and its event follows within a second: its answer rests on the
    /// state that refused.
    fn refuse(&mut self, now_ms: u64, waiter: Waiter<T>, data: Refused) {
        let (account, at_ms) = (waiter.command.account.clone(), self.event_ms(now_ms));
        let counted = Refused {
            decided_at_ms: Some(at_ms),
            ..data.clone()
        };
        let single = !self
            .tallies
            .take(now_ms, &account, waiter.command.id, counted);
        if single {
            return self.conclude(now_ms, waiter, data.into());
        }
        let position = self.state.position();
        let fingerprint = waiter.fingerprint;
        if let Some(outcome) = Outcome::of_refused(&data, position, at_ms) {
            self.outcomes
                .remember_counted(waiter.command.id, fingerprint, outcome);
        }
        self.tell(&account, waiter.command.id, fingerprint, waiter.callers);
    }

    fn conclude(&mut self, now_ms: u64, waiter: Waiter<T>, body: EventBody) {
        let Waiter {
            command,
            fingerprint,
            callers,
            ..
        } = waiter;
        let actor = Actor::key(&command.key);
        self.carrying_out = Some((command.id, fingerprint));
        self.write(now_ms, &command.account, command.id, &actor, body);
        self.tell(&command.account, command.id, fingerprint, callers);
    }

    /// Tells the outcome of a command that was just carried out to all who wait for it.
    fn tell(
        &mut self,
        account: &AccountId,
        id: CommandId,
        fingerprint: Fingerprint,
        callers: Vec<T>,
    ) {
        for caller in callers {
            match self.recall(account, id, fingerprint) {
                Some(Ok((position, reply))) => self.answer_at(position, caller, reply),
                Some(Err(error)) => self.answer(caller, Err(error)),
                None => unreachable!("what was just carried out is remembered"),
            }
        }
    }

    /// What a command that was carried out before is answered; `None` where it is new.
    fn recall(
        &self,
        account: &AccountId,
        id: CommandId,
        fingerprint: Fingerprint,
    ) -> Option<Result<(Position, Answer<Reply>), CommandError>> {
        let outcome = match self.outcomes.recall(id, fingerprint) {
            // what is cold and matters was fetched before the command got here
            Recall::New | Recall::Cold => return None,
            Recall::Other => return Some(Err(CommandError::Conflict { id })),
            Recall::Same(outcome) => outcome,
        };
        // how a reservation stands is told from the state of now, wherever it began
        let position = match outcome {
            Outcome::Reserved { .. } => self.state.position(),
            other => other.position(),
        };
        let reply = match outcome {
            Outcome::Reserved {
                ended: Some(position),
                ..
            } => Err(CommandError::AlreadyResolved {
                reservation: id.into(),
                position: *position,
            }),
            Outcome::Reserved { hold, clamped, .. } => {
                Ok(Reply::Reserve(ReserveOutcome::Reserved(Grant {
                    reservation: id.into(),
                    position: outcome.position(),
                    hold: *hold,
                    clamped: *clamped,
                    caps: self.standings_of(account, id.into()),
                })))
            }
            Outcome::Refused(refusal) => {
                Ok(Reply::Reserve(ReserveOutcome::Refused(refusal.clone())))
            }
            Outcome::Resolved(resolution) => Ok(Reply::Resolution(*resolution)),
            Outcome::Changed(position) => Ok(Reply::Admin(AdminOutcome {
                position: Some(*position),
            })),
            Outcome::Unchanged(_) => Ok(Reply::Admin(AdminOutcome { position: None })),
        };
        Some(Ok((position, reply)))
    }

    /// The caps of an open reservation, as callers see them.
    fn standings_of(&self, account: &AccountId, reservation: ReservationId) -> Vec<CapStanding> {
        let Some(state) = self.state.account(account) else {
            return Vec::new();
        };
        let Some(open) = state.open().get(&reservation) else {
            return Vec::new();
        };
        state
            .limiting(reservation, open)
            .map(|cap| cap.standing(self.state.at_ms()))
            .collect()
    }

    /// Says where a reservation ended instead of that it is not known, if that is remembered.
    fn explained(&self, error: CommandError) -> CommandError {
        match error {
            CommandError::UnknownReservation { reservation } => {
                match self.outcomes.ended(reservation) {
                    Some(position) => CommandError::AlreadyResolved {
                        reservation,
                        position,
                    },
                    None => CommandError::UnknownReservation { reservation },
                }
            }
            other => other,
        }
    }

    /// Checks a command on an open reservation; `None` once it has been answered.
    fn admit(
        &mut self,
        valid: Result<(), Malformed>,
        (account, id, fingerprint): (&AccountId, CommandId, Fingerprint),
        ack: Ack,
        caller: T,
    ) -> Option<T> {
        self.carrying_out = Some((id, fingerprint));
        // first of all: what was decided stays so, however old it is
        match self.recall(account, id, fingerprint) {
            Some(Ok((position, reply))) => self.answer_when(ack, position, caller, reply),
            Some(Err(error)) => self.answer(caller, Err(error)),
            None => match (valid, self.unused(id).and(self.account(account).map(drop))) {
                (Err(malformed), _) => self.turn_away(caller, TurnedAway::Malformed(malformed)),
                (Ok(()), Err(error)) => self.answer(caller, Err(error)),
                (Ok(()), Ok(())) => return Some(caller),
            },
        }
        None
    }

    /// Checks that no reserve waits under the id of another command: one id has one outcome.
    fn unused(&self, id: CommandId) -> Result<(), CommandError> {
        if self.waiting.waits(id) {
            return Err(CommandError::Conflict { id });
        }
        Ok(())
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

    fn resize(&mut self, now_ms: u64, command: &Resize, caller: T) {
        let Resize {
            id,
            account,
            reservation,
            input_tokens,
            output_tokens,
            actor,
        } = command;
        let known = (account, *id, Fingerprint::of_resize(command));
        let valid = validate::resize(command, now_ms);
        let Some(caller) = self.admit(valid, known, Ack::Durable, caller) else {
            return;
        };
        let decision = self.account(account).and_then(|state| {
            decide::resize(
                state,
                self.context(now_ms),
                *reservation,
                *input_tokens,
                *output_tokens,
            )
        });
        match decision {
            Err(error) => {
                let error = self.explained(error);
                self.answer(caller, Err(error));
            }
            Ok(data) => {
                let amounts = data.hold;
                let position = self.write(now_ms, account, *id, actor, data.into());
                self.answer_at(
                    position,
                    caller,
                    Ok(Reply::Resolution(Resolution { position, amounts })),
                );
                self.sweep(now_ms, account);
            }
        }
    }

    fn settle(&mut self, now_ms: u64, command: Settle, ack: Ack, caller: T) {
        let known = (
            &command.account,
            command.id,
            Fingerprint::of_settle(&command),
        );
        let valid = validate::settle(&command, now_ms);
        let Some(caller) = self.admit(valid, known, ack, caller) else {
            return;
        };
        let Settle {
            id,
            account,
            reservation,
            report,
            actor,
        } = command;
        let (account, actor) = (&account, &actor);
        let decision = self
            .account(account)
            .and_then(|state| decide::settle(state, self.context(now_ms), reservation, report));
        match decision {
            Err(error) => {
                let error = self.explained(error);
                self.answer(caller, Err(error));
            }
            Ok(settled) => {
                let amounts = settled.charge;
                self.forget_deadline(account, reservation);
                let linger_until_ms = self.linger(now_ms);
                let position = self.write_whole(now_ms, account, id, actor, settled.into());
                self.linger_until_ms = linger_until_ms;
                let reply = Ok(Reply::Resolution(Resolution { position, amounts }));
                self.answer_when(ack, position, caller, reply);
                self.sweep(now_ms, account);
            }
        }
    }

    /// Until when a settle decided now may wait for its commit; not at all behind what may not.
    fn linger(&self, now_ms: u64) -> Option<u64> {
        let linger_ms = self.config.settle_linger_ms;
        if linger_ms == 0 {
            return None;
        }
        match self.linger_until_ms {
            None if self.pending.is_empty() => Some(now_ms.saturating_add(linger_ms)),
            until_ms => until_ms,
        }
    }

    fn release(&mut self, now_ms: u64, command: &Release, caller: T) {
        let Release {
            id,
            account,
            reservation,
            reason,
            actor,
        } = command;
        let known = (account, *id, Fingerprint::of_release(command));
        let valid = validate::release(command, now_ms);
        let Some(caller) = self.admit(valid, known, Ack::Durable, caller) else {
            return;
        };
        match self
            .account(account)
            .and_then(|state| decide::release(state, *reservation, reason))
        {
            Err(error) => {
                let error = self.explained(error);
                self.answer(caller, Err(error));
            }
            Ok(data) => {
                self.forget_deadline(account, *reservation);
                let position = self.write(now_ms, account, *id, actor, data.into());
                let amounts = Amounts::zero();
                self.answer_at(
                    position,
                    caller,
                    Ok(Reply::Resolution(Resolution { position, amounts })),
                );
                self.sweep(now_ms, account);
            }
        }
    }

    /// Gives back a hold whose caller left before it could be told.
    pub fn undelivered(&mut self, now_ms: u64, account: &AccountId, reservation: ReservationId) {
        let reason = "the caller left before the answer";
        let Ok(data) = self
            .account(account)
            .and_then(|state| decide::release(state, reservation, reason))
        else {
            return;
        };
        self.forget_deadline(account, reservation);
        let cause = self.own_id(now_ms);
        self.write(
            now_ms,
            account,
            cause,
            &Actor::system("writer"),
            data.into(),
        );
        self.sweep(now_ms, account);
    }

    fn expire(&mut self, now_ms: u64, account: &AccountId, reservation: ReservationId) {
        let (at_ms, grace_ms) = (self.event_ms(now_ms), self.config.expiry_grace_ms);
        let Some(state) = self.state.account(account) else {
            return;
        };
        let Some(expired) = decide::expire(state, at_ms, grace_ms, reservation) else {
            return;
        };
        let (cause, actor) = (self.own_id(now_ms), Actor::system("writer"));
        self.write_whole(now_ms, account, cause, &actor, expired.into());
        self.sweep(now_ms, account);
    }

    fn forget_deadline(&mut self, account: &AccountId, reservation: ReservationId) {
        let open = self
            .state
            .account(account)
            .and_then(|state| state.open().get(&reservation));
        if let Some(deadline_ms) = open.map(|open| open.asked.deadline_ms) {
            self.deadlines
                .remove(&(deadline_ms, reservation, account.clone()));
        }
    }

    fn read(&mut self, now_ms: u64, query: &Read, caller: T) {
        let at_ms = self.event_ms(now_ms);
        let position = self.state.position();
        let standing = self.account(&query.account).map(|state| {
            Reply::Standing(Standing {
                account: query.account.clone(),
                position,
                at_ms,
                open: state.open().len() as u64,
                caps: state.standings(query.key.as_ref(), at_ms),
            })
        });
        self.answer(caller, standing);
    }

    fn admin(&mut self, now_ms: u64, command: &Admin, caller: T) {
        let Admin {
            id,
            account,
            actor,
            change,
        } = command;
        let fingerprint = Fingerprint::of_change(account, change);
        self.carrying_out = Some((*id, fingerprint));
        match self.recall(account, *id, fingerprint) {
            Some(Ok((position, reply))) => return self.answer_at(position, caller, reply),
            Some(Err(error)) => return self.answer(caller, Err(error)),
            None => {}
        }
        if let Err(malformed) = validate::admin(command, now_ms) {
            return self.turn_away(caller, TurnedAway::Malformed(malformed));
        }
        if let Err(error) = self.unused(*id) {
            return self.answer(caller, Err(error));
        }
        match self.decide_change(account, change) {
            Err(error) => self.answer(caller, Err(error)),
            Ok(None) => {
                let position = self.state.position();
                self.outcomes
                    .remember(*id, fingerprint, Outcome::Unchanged(position));
                self.answer_at(
                    position,
                    caller,
                    Ok(Reply::Admin(AdminOutcome { position: None })),
                );
            }
            Ok(Some(body)) => {
                let position = self.write_whole(now_ms, account, *id, actor, body);
                let reply = AdminOutcome {
                    position: Some(position),
                };
                self.answer_at(position, caller, Ok(Reply::Admin(reply)));
                self.sweep(now_ms, account);
            }
        }
    }

    fn decide_change(
        &self,
        account: &AccountId,
        change: &Change,
    ) -> Result<Option<EventBody>, CommandError> {
        if let Change::SetPrice(price) = change {
            return Ok(decide::set_price(self.state.prices(), price)?.map(EventBody::from));
        }
        match (self.account(account), change) {
            (Ok(state), _) => {
                validate::room_for_change(state, change)?;
                decide::change(state, change)
            }
            (Err(CommandError::UnknownAccount { .. }), Change::OpenAccount) => {
                decide::change(&Account::default(), change)
            }
            (Err(error), _) => Err(error),
        }
    }
}

fn request_of(command: &Reserve) -> ReserveRequest<'_> {
    ReserveRequest {
        reservation: command.id.into(),
        key: &command.key,
        model: command.model.as_ref(),
        run: command.run.as_ref(),
        end_user: command.end_user.as_ref(),
        asked: outcomes::asked(command),
        budget: command.budget.as_ref(),
    }
}
