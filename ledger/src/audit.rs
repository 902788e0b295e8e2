//! Proves one partition's journal: every commit chains, every event decides again to the same bytes,
//! no hard cap is ever broken, every reservation ends at most once, no command is carried out twice.
//!
//! Reads only. It trusts nothing but the bytes: what an event claims is decided anew from the state
//! before it, with the same pure code that the writer runs.

mod caps;
pub mod checks;
mod exchanging;
mod whole;

use std::collections::VecDeque;

use seatbelt_schemas::{
    claim::{self, Claim},
    command::CommandError,
    commit::{ChainHash, Header, UnreadCommit},
    event::{Attempt, Event, EventBody, EventOf, RefusalReason},
    ids::{AccountId, CommandId},
    position::{Partition, Position},
    skipped::Skipped,
    wire::UnknownField,
};
use thiserror::Error;

use crate::{
    account::Account,
    decide::{
        self, Context, Cover, ReserveRequest, Verdict,
        follows::{Following, Follows},
    },
    journal::{
        Sequence,
        strays::{self, Strays, Unresolved},
    },
    partition::{ChainError, Head, PartitionState},
};

use caps::{above_everywhere, all_caps_hold, caps_hold, note_above, scopes_of};
use checks::Check;
use exchanging::Exchanging;
pub use whole::{EXPIRY_GRACE_MS_MAX, EXPIRY_LATE_MS_MAX};

/// The first thing that does not hold, and where.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A commit does not continue the journal.
    #[error("sequence {sequence}: the chain is broken")]
    Chain {
        sequence: Sequence,
        /// What does not fit.
        #[source]
        source: ChainError,
    },
    /// Commits are missing.
    #[error("sequence {found} follows sequence {after}: commits are missing")]
    Sequence {
        /// The last good one.
        after: Sequence,
        found: Sequence,
    },
    /// An event is not what its decision gives.
    #[error("sequence {sequence}, position {position}, account {account}: `{kind}` {detail}")]
    Decision {
        /// Where, as a commit.
        sequence: Sequence,
        /// Where, as an event.
        position: Position,
        account: AccountId,
        kind: String,
        /// What does not hold.
        detail: String,
    },
}

/// What was proven of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionSummary {
    pub partition: Partition,
    /// Commits read.
    pub commits: u64,
    /// Events decided again.
    pub events: u64,
    /// Events of kinds that this build does not know: chained and kept, not decided again.
    pub unknown: u64,
    /// Accounts seen.
    pub accounts: u64,
    /// Reservations still open at the end.
    pub open: u64,
    /// Messages that are no commits, and that an operator had skipped.
    pub skipped: u64,
    /// Hash of the last commit.
    pub chain: ChainHash,
}

/// Verifies one partition, commit by commit.
#[derive(Debug)]
pub struct Verifier {
    state: PartitionState,
    whole: whole::Whole,
    strays: Strays,
    sequence: Sequence,
    events: u64,
    unknown: u64,
    /// What the last decision says must come next, of the same account and cause.
    owed: VecDeque<Owed>,
    /// What made room for a reservation that must come next.
    exchanging: Option<Exchanging>,
    /// The bytes of the decision at hand; kept for its room.
    bytes: Vec<u8>,
    /// How far above their limits the caps at hand stood before the event; kept for its room.
    before: Vec<u64>,
}

impl Verifier {
    /// Begins before the first commit.
    pub fn new(partition: Partition) -> Self {
        Self {
            state: PartitionState::new(partition),
            whole: whole::Whole::default(),
            strays: Strays::default(),
            sequence: Sequence(0),
            events: 0,
            unknown: 0,
            owed: VecDeque::new(),
            exchanging: None,
            bytes: Vec::new(),
            before: Vec::new(),
        }
    }

    /// The state after everything accepted so far.
    pub fn state(&self) -> &PartitionState {
        &self.state
    }

    /// Verifies the next commit, event by event; says how many it holds: none where it is no commit, which
    /// is for a later one to explain. After an error the proof is over: the events before it are in the
    /// state.
    pub fn accept(&mut self, sequence: Sequence, payload: &[u8]) -> Result<u64, VerifyError> {
        if Check::Sequence.finds(sequence != self.sequence.next()) {
            return Err(VerifyError::Sequence {
                after: self.sequence,
                found: sequence,
            });
        }
        // from end to end before anything jumps about in it: so the bytes are at hand from here on
        let hash = ChainHash::of(payload);
        self.sequence = sequence;
        let (unread, events) = match read(self.state.head(), payload) {
            Ok(read) => read,
            Err(source) => {
                let met = self.strays.meet((sequence, payload), source);
                return met.map(|()| 0).map_err(VerifyError::from);
            }
        };
        let word = events.iter().find_map(|(_, claimed)| word_of(claimed));
        let resolved = self.strays.resolve(sequence, self.state.head(), word);
        if Check::StrayWord.finds(resolved.is_err()) {
            resolved?;
        }
        if let Some(field) = unread.unknown() {
            let detail = format!("stands in a commit {}", has_unknown(field));
            return Err(failure(sequence, unread.first(), detail));
        }
        let (header, before) = (unread.header(), self.events);
        for (bytes, claimed) in events {
            self.event(bytes, claimed, header)
                .map_err(|detail| failure(sequence, bytes, detail))?;
        }
        if let Some(exchanging) = self.exchanging.take()
            && Check::ExchangeAtEnd.finds(true)
        {
            return Err(failure(sequence, unread.first(), exchanging.cut()));
        }
        // a commit belongs to the reign that the last `writer_started` began
        if Check::Reign.finds(header.epoch != self.state.epoch()) {
            let detail = format!("stands in epoch {}, which never began", header.epoch);
            return Err(failure(sequence, unread.first(), detail));
        }
        self.state.committed(header.epoch, hash);
        Ok(self.events - before)
    }

    /// Ends the proof.
    pub fn finish(mut self) -> Result<PartitionSummary, VerifyError> {
        let met = self.strays.finish();
        if Check::StrayEnd.finds(met.is_err()) {
            met?;
        }
        let owed = self.owed.front().filter(|owed| !owed.may_wait);
        if let Some(owed) = owed.filter(|_| Check::OwedAtEnd.finds(true)) {
            return Err(VerifyError::Decision {
                sequence: self.sequence,
                position: self.state.position(),
                account: owed.account.clone(),
                kind: owed.body.kind().to_owned(),
                detail: "is missing at the end of the journal".to_owned(),
            });
        }
        Ok(PartitionSummary {
            partition: self.state.partition(),
            commits: self.sequence.0 - self.strays.skipped(),
            events: self.events,
            unknown: self.unknown,
            accounts: self.state.accounts().count() as u64,
            open: self
                .state
                .accounts()
                .map(|(_, account)| account.open().len() as u64)
                .sum(),
            skipped: self.strays.skipped(),
            chain: self.state.chain(),
        })
    }

    fn event(
        &mut self,
        stored: &[u8],
        claimed: EventOf<Claim>,
        header: &Header,
    ) -> Result<(), String> {
        let (envelope, claim) = claimed.replace(());
        self.events += 1;
        let exchanged = self.exchanging.take();
        if let Some(exchanging) = &exchanged {
            exchanging.goes_on_with(&envelope, &claim)?;
        }
        let claim = match claim {
            Claim::Other(body) if matches!(*body, EventBody::Unknown { .. }) => {
                self.unknown += 1;
                self.state.apply(&envelope.replace(*body).0);
                return Ok(());
            }
            claim => claim,
        };
        let may_wait = |owed: &Owed| owed.may_wait && !owed.is_told_by(&envelope);
        if self.owed.front().is_some_and(may_wait) {
            self.owed.clear();
        }
        let account = self.state.account(&envelope.account);
        let owed = self.owed.pop_front();
        let is_owed = owed.is_some();
        let expected = match owed {
            Some(owed) => owed.taken_by(&envelope)?,
            None => {
                let attempt = exchanged.as_ref().map(|made_room| made_room.attempt);
                self.decide(account, &envelope, (claim, attempt), header)?
            }
        };
        let (event, ()) = &envelope.replace(expected);
        same_bytes(&mut self.bytes, stored, event)?;
        let here = self.state.partition();
        let follows_one = is_owed || exchanged.is_some();
        self.whole.take(event, follows_one, account, here)?;
        self.exchanging = Exchanging::begun_by(account, event)?;
        let follows = Follows::of(account, &event.body);
        let overruns = follows.overruns();
        let scopes = account.and_then(|account| scopes_of(account, event));
        let whole = account.and_then(|account| above_everywhere(account, event));
        note_above(&mut self.before, account, event, scopes.as_deref());
        let account = self.state.apply(event);
        if let (Some(account), Some(before)) = (account, &whole) {
            all_caps_hold(account, event, before, overruns)?;
        }
        if let (Some(account), Some(scopes), None) = (account, scopes, &whole) {
            caps_hold(account, event, &scopes, &self.before, overruns)?;
        }
        if let Some(account) = account {
            let due = follows.due(account, event.at_ms);
            self.owed.extend(due.map(|next| Owed::after(event, next)));
        }
        Ok(())
    }

    /// Decides an event's command again, on the state before it.
    fn decide(
        &self,
        account: Option<&Account>,
        event: &EventOf<()>,
        (claim, attempt): (Claim, Option<Attempt>),
        header: &Header,
    ) -> Result<EventBody, String> {
        let context = Context {
            at_ms: event.at_ms,
            prices: self.state.prices(),
            cover: Cover::Always,
        };
        let body = match claim {
            Claim::Reserved(request) => {
                let claimed = (&request, None, attempt);
                decide_reserve(opened(account)?, context, event, claimed)?
            }
            Claim::Refused(data) => {
                let at_ms = data.decided_at_ms.unwrap_or(event.at_ms);
                if Check::RefusedLate.finds(at_ms > event.at_ms) {
                    return Err("was decided after it was written".to_owned());
                }
                let context = Context { at_ms, ..context };
                let claimed = (&data.request, Some(&data), None);
                decide_reserve(opened(account)?, context, event, claimed)?
            }
            Claim::Settled {
                reservation,
                report,
            } => {
                let decided = decide::settle(opened(account)?, context, reservation, report);
                decided.map_err(|error| error.to_string())?.into()
            }
            Claim::Other(body) => self.decide_other(account, context, event, &body, header)?,
        };
        Ok(body)
    }

    fn decide_other(
        &self,
        account: Option<&Account>,
        context: Context<'_>,
        event: &EventOf<()>,
        body: &EventBody,
        header: &Header,
    ) -> Result<EventBody, String> {
        let refused = |error: CommandError| error.to_string();
        Ok(match body {
            EventBody::Genesis(_) | EventBody::WriterStarted(_) => {
                self.decide_start(event.position, body, header)?
            }
            EventBody::Resized(data) => {
                let (input, output) = (data.hold.input_tokens, data.hold.output_tokens);
                let context = Context {
                    cover: Cover::by(data.uncovered),
                    ..context
                };
                decide::resize(opened(account)?, context, data.reservation, input, output)
                    .map_err(refused)?
                    .into()
            }
            EventBody::Released(data) if data.replaced_by.is_some() => {
                exchanging::leave(opened(account)?, event, data)?.into()
            }
            EventBody::Released(data) => {
                decide::release(opened(account)?, data.reservation, &data.reason)
                    .map_err(refused)?
                    .into()
            }
            EventBody::Expired(data) => {
                match decide::expire(opened(account)?, event.at_ms, 0, data.reservation) {
                    Some(expired) => expired.into(),
                    None if Check::NotDue.finds(true) => {
                        return Err("ends a reservation that is not open or not due".to_owned());
                    }
                    None => body.clone(),
                }
            }
            EventBody::Overrun(_) | EventBody::ThresholdCrossed(_) => {
                if !Check::Orphan.finds(true) {
                    return Ok(body.clone());
                }
                return Err("does not follow from the event before it".to_owned());
            }
            EventBody::Unknown { .. } => return Err("is not known".to_owned()),
            EventBody::AccountOpened(_) => {
                decide_change(account.unwrap_or(&Account::default()), body)?
            }
            EventBody::PriceSet(price) => decide::set_price(self.state.prices(), price)
                .map_err(refused)?
                .ok_or("changes nothing")?
                .into(),
            _ => decide_change(opened(account)?, body)?,
        })
    }

    fn decide_start(
        &self,
        position: Position,
        body: &EventBody,
        header: &Header,
    ) -> Result<EventBody, String> {
        let first = position == Position(1);
        match body {
            EventBody::Genesis(data)
                if Check::Genesis.finds(!first || data.partition != header.partition.0) =>
            {
                Err("does not begin its own partition".to_owned())
            }
            EventBody::WriterStarted(data)
                if Check::Epoch.finds(
                    data.epoch != self.state.epoch().next() || data.epoch != header.epoch,
                ) =>
            {
                Err(format!(
                    "begins epoch {} after {}",
                    data.epoch,
                    self.state.epoch()
                ))
            }
            body if Check::First.finds(first && !matches!(body, EventBody::Genesis(_))) => {
                Err("stands where genesis belongs".to_owned())
            }
            body => Ok(body.clone()),
        }
    }
}

impl From<Unresolved> for VerifyError {
    fn from(stray: Unresolved) -> Self {
        let Unresolved { at, source } = stray;
        Self::Chain {
            sequence: at,
            source,
        }
    }
}

type Read<'a> = (UnreadCommit<'a>, Vec<(&'a [u8], EventOf<Claim>)>);

/// Reads a commit that continues the journal, all of it before anything is applied: a message that is no
/// commit changes nothing.
fn read<'a>(head: &Head, payload: &'a [u8]) -> Result<Read<'a>, ChainError> {
    let unread = head.check_header(payload)?;
    let header = *unread.header();
    let mut events = Vec::new();
    for (position, read) in (head.position.0..).zip(unread.events()) {
        let read: (_, EventOf<Claim>) = read.map_err(|source| ChainError::Commit {
            partition: head.partition,
            after: Position(position),
            source,
        })?;
        // times within a commit only go forward, or it cannot be read
        let in_time = head.in_time(&header, read.1.at_ms);
        if Check::Time.finds(in_time.is_err()) {
            in_time?;
        }
        events.push(read);
    }
    Ok((unread, events))
}

fn word_of(claimed: &EventOf<Claim>) -> Option<&Skipped> {
    match &claimed.body {
        Claim::Other(body) => strays::word_in(body),
        _ => None,
    }
}

fn opened(account: Option<&Account>) -> Result<&Account, String> {
    account
        .filter(|account| account.is_open())
        .ok_or_else(|| "belongs to an account that was never opened".to_owned())
}

fn has_unknown(field: &UnknownField) -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!(
        "with the field `{field}`, which this release ({own}) does not know: audit it with the release that wrote it, or a later one (docs/upgrade.md)"
    )
}

/// What does not hold of an event that has been read before; first of all, that it is not known whole.
#[cold]
fn failure(sequence: Sequence, stored: &[u8], detail: String) -> VerifyError {
    let event = EventOf::<Claim>::decode(stored).expect("it has been read before");
    let detail = match Event::decode_noting(stored) {
        Ok((_, Some(field))) => format!("stands here {}", has_unknown(&field)),
        _ => detail,
    };
    VerifyError::Decision {
        sequence,
        position: event.position,
        account: event.account,
        kind: event.body.kind().to_owned(),
        detail,
    }
}

fn decide_change(account: &Account, body: &EventBody) -> Result<EventBody, String> {
    let change = decide::change_of(body).ok_or("is no operator's change")?;
    let decided = decide::change(account, &change).map_err(|error| error.to_string())?;
    match decided {
        Some(decided) => Ok(decided),
        None if Check::Change.finds(true) => Err("changes nothing".to_owned()),
        None => Ok(body.clone()),
    }
}

/// An event that must come next.
#[derive(Debug)]
struct Owed {
    account: AccountId,
    cause: CommandId,
    body: EventBody,
    /// A threshold beyond what one decision announces: there now, or after a later event.
    may_wait: bool,
}

impl Owed {
    fn after(event: &Event, next: Following) -> Self {
        let Following { body, may_wait } = next;
        Self {
            account: event.account.clone(),
            cause: event.cause,
            body,
            may_wait,
        }
    }

    fn is_told_by<T>(&self, event: &EventOf<T>) -> bool {
        self.account == event.account && self.cause == event.cause
    }

    /// What the event in its place must say.
    fn taken_by(self, event: &EventOf<()>) -> Result<EventBody, String> {
        if !Check::Owed.finds(!self.is_told_by(event)) {
            return Ok(self.body);
        }
        let Self {
            account,
            cause,
            body,
            ..
        } = self;
        let kind = body.kind();
        Err(format!(
            "stands where `{kind}` of account {account} belongs, caused by {cause}"
        ))
    }
}

/// Compares an event's stored bytes with those of the decision, which are encoded into `room`. A build
/// that adds fields to events must bring the code that decides them again: an older one says here that
/// bytes differ.
fn same_bytes(room: &mut Vec<u8>, stored: &[u8], expected: &Event) -> Result<(), String> {
    room.clear();
    expected.encode_into(room);
    if !Check::Bytes.finds(*room != *stored) {
        return Ok(());
    }
    Err(match Event::decode(stored) {
        Err(error) => format!("cannot be read whole: {error}"),
        Ok(event) if event == *expected => {
            "decides again to the same event with other bytes".to_owned()
        }
        Ok(_) => format!("decides again to {:?}", expected.body),
    })
}

fn decide_reserve(
    account: &Account,
    context: Context<'_>,
    event: &EventOf<()>,
    (claimed, recorded, attempt): (
        &claim::ReserveClaim,
        Option<&claim::RefusedClaim>,
        Option<Attempt>,
    ),
) -> Result<EventBody, String> {
    let claim::ReserveClaim {
        reservation,
        scopes,
        asked,
        budget,
        within,
        uncovered,
    } = claimed;
    let (reservation, asked) = (*reservation, *asked);
    let cover = Cover::by(*uncovered);
    let context = Context { cover, ..context };
    let request = ReserveRequest {
        reservation,
        key: &scopes.key,
        team: caps::named_team(account, scopes, budget.is_some()),
        model: scopes.model.as_ref(),
        run: scopes.run.as_ref(),
        end_user: scopes.end_user.as_ref(),
        asked,
        budget: budget.as_ref(),
        within: within.as_ref(),
        attempt,
    };
    let taken = account.open().contains_key(&reservation);
    if Check::OwnId.finds(taken || event.cause != reservation.into()) {
        return Err("takes a reservation id that is not its own".to_owned());
    }
    match decide::reserve(account, context, request, true).map_err(|error| error.to_string())? {
        Verdict::Reserve(data) => Ok(data.into()),
        Verdict::Refuse(mut data) => {
            if let Some(recorded) = recorded {
                (data.count, data.decided_at_ms) = (recorded.count, recorded.decided_at_ms);
                // earlier builds recorded no terms
                data.terms = data.terms.filter(|_| recorded.terms.is_some());
            }
            Ok(data.into())
        }
        Verdict::Wait(_) => Err(format!(
            "waits where it must be refused as {}",
            RefusalReason::Held.as_str()
        )),
    }
}
