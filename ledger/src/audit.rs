//! Proves one partition's journal: every commit chains, every event decides again to the same bytes,
//! no hard cap is ever broken, every reservation ends at most once.
//!
//! Reads only. It trusts nothing but the bytes: what an event claims is decided anew from the state
//! before it, with the same pure code that the writer runs.

use std::collections::VecDeque;

use bytes::Bytes;
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::{Event, EventBody, RefusalReason, Refused, StoredEvent},
    ids::{AccountId, CapId},
    position::{Partition, Position},
    scope::Scopes,
};
use thiserror::Error;

use crate::{
    account::Account,
    decide::{self, Context, ReserveRequest, Verdict},
    journal::Sequence,
    partition::{ChainError, PartitionState},
    writer::changed_cap,
};

/// The first thing that does not hold, and where.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A commit does not continue the journal.
    #[error("sequence {sequence}: the chain is broken")]
    Chain {
        /// Where.
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
        /// The one found.
        found: Sequence,
    },
    /// An event is not what its decision gives.
    #[error("sequence {sequence}, position {position}, account {account}: `{kind}` {detail}")]
    Decision {
        /// Where, as a commit.
        sequence: Sequence,
        /// Where, as an event.
        position: Position,
        /// Whose.
        account: AccountId,
        /// Which kind.
        kind: String,
        /// What does not hold.
        detail: String,
    },
}

/// What was proven of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionSummary {
    /// The partition.
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
    /// Hash of the last commit.
    pub chain: ChainHash,
}

/// Verifies one partition, commit by commit.
#[derive(Debug)]
pub struct Verifier {
    state: PartitionState,
    sequence: Sequence,
    events: u64,
    unknown: u64,
    /// What the last decision says must come next, of the same account and cause.
    owed: VecDeque<EventBody>,
}

impl Verifier {
    /// Begins before the first commit.
    pub fn new(partition: Partition) -> Self {
        Self {
            state: PartitionState::new(partition),
            sequence: Sequence(0),
            events: 0,
            unknown: 0,
            owed: VecDeque::new(),
        }
    }

    /// The state after everything accepted so far.
    pub fn state(&self) -> &PartitionState {
        &self.state
    }

    /// Verifies the next commit.
    pub fn accept(&mut self, sequence: Sequence, payload: &Bytes) -> Result<Commit, VerifyError> {
        if sequence != self.sequence.next() {
            return Err(VerifyError::Sequence {
                after: self.sequence,
                found: sequence,
            });
        }
        let commit = self
            .state
            .check(payload)
            .map_err(|source| VerifyError::Chain { sequence, source })?;
        for stored in &commit.events {
            self.event(stored, &commit)
                .map_err(|detail| VerifyError::Decision {
                    sequence,
                    position: stored.event.position,
                    account: stored.event.account.clone(),
                    kind: stored.event.body.kind().to_owned(),
                    detail,
                })?;
        }
        self.reigns(sequence, &commit)?;
        self.state.committed(commit.epoch, ChainHash::of(payload));
        self.sequence = sequence;
        Ok(commit)
    }

    /// A commit belongs to the reign that the last `writer_started` began.
    fn reigns(&self, sequence: Sequence, commit: &Commit) -> Result<(), VerifyError> {
        if commit.epoch == self.state.epoch() {
            return Ok(());
        }
        let first = &commit.events[0].event;
        Err(VerifyError::Decision {
            sequence,
            position: first.position,
            account: first.account.clone(),
            kind: first.body.kind().to_owned(),
            detail: format!("stands in epoch {}, which never began", commit.epoch),
        })
    }

    /// Ends the proof.
    pub fn finish(self) -> Result<PartitionSummary, VerifyError> {
        if let Some(body) = self.owed.front() {
            return Err(VerifyError::Decision {
                sequence: self.sequence,
                position: self.state.position(),
                account: AccountId::system(),
                kind: body.kind().to_owned(),
                detail: "is missing at the end of the journal".to_owned(),
            });
        }
        Ok(PartitionSummary {
            partition: self.state.partition(),
            commits: self.sequence.0,
            events: self.events,
            unknown: self.unknown,
            accounts: self.state.accounts().count() as u64,
            open: self
                .state
                .accounts()
                .map(|(_, account)| account.open().len() as u64)
                .sum(),
            chain: self.state.chain(),
        })
    }

    fn event(&mut self, stored: &StoredEvent, commit: &Commit) -> Result<(), String> {
        let event = &stored.event;
        self.events += 1;
        if let EventBody::Unknown { .. } = event.body {
            self.unknown += 1;
            self.state.apply(event);
            return Ok(());
        }
        let expected = match self.owed.pop_front() {
            Some(body) => body,
            None => self.decide(event, commit)?,
        };
        same_bytes(stored, expected)?;
        let before = self.breaches(event);
        let scopes = self.scopes_of(event);
        self.state.apply(event);
        self.caps_hold(event, &before)?;
        self.owe_thresholds(event, scopes.as_ref());
        Ok(())
    }

    fn account(&self, event: &Event) -> Result<&Account, String> {
        self.state
            .account(&event.account)
            .filter(|account| account.is_open())
            .ok_or_else(|| "belongs to an account that was never opened".to_owned())
    }

    /// Decides an event's command again, on the state before it.
    fn decide(&mut self, event: &Event, commit: &Commit) -> Result<EventBody, String> {
        let context = Context {
            at_ms: event.at_ms,
            prices: self.state.prices(),
        };
        match &event.body {
            EventBody::Genesis(_) | EventBody::WriterStarted(_) => self.decide_start(event, commit),
            EventBody::Reserved(data) => {
                let request = (&data.scopes, data.asked, data.reservation, &data.budget);
                decide_reserve(self.account(event)?, context, event, request, None)
            }
            EventBody::Refused(data) => {
                let at_ms = data.decided_at_ms.unwrap_or(event.at_ms);
                if at_ms > event.at_ms {
                    return Err("was decided after it was written".to_owned());
                }
                let context = Context { at_ms, ..context };
                let request = (&data.scopes, data.asked, data.reservation, &data.budget);
                let counted = Some(data);
                decide_reserve(self.account(event)?, context, event, request, counted)
            }
            EventBody::Resized(data) => {
                let (input, output) = (data.hold.input_tokens, data.hold.output_tokens);
                decide::resize(
                    self.account(event)?,
                    context,
                    data.reservation,
                    input,
                    output,
                )
                .map(EventBody::from)
                .map_err(|error| error.to_string())
            }
            EventBody::Settled(data) => {
                let decided = decide::settle(
                    self.account(event)?,
                    context,
                    data.reservation,
                    &data.report,
                );
                let (settled, overrun) = decided.map_err(|error| error.to_string())?;
                self.owed.extend(overrun.map(EventBody::from));
                Ok(settled.into())
            }
            EventBody::Released(data) => {
                decide::release(self.account(event)?, data.reservation, &data.reason)
                    .map(EventBody::from)
                    .map_err(|error| error.to_string())
            }
            EventBody::Expired(data) => {
                decide::expire(self.account(event)?, event.at_ms, 0, data.reservation)
                    .map(EventBody::from)
                    .ok_or_else(|| "ends a reservation that is not open or not due".to_owned())
            }
            EventBody::Overrun(_) | EventBody::ThresholdCrossed(_) => {
                Err("does not follow from the event before it".to_owned())
            }
            EventBody::Unknown { .. } => Err("is not known".to_owned()),
            _ => self.decide_change(event),
        }
    }

    fn decide_start(&self, event: &Event, commit: &Commit) -> Result<EventBody, String> {
        let first = event.position == Position(1);
        match &event.body {
            EventBody::Genesis(data) if !first || data.partition != commit.partition.0 => {
                Err("does not begin its own partition".to_owned())
            }
            EventBody::WriterStarted(data)
                if data.epoch != self.state.epoch().next() || data.epoch != commit.epoch =>
            {
                Err(format!(
                    "begins epoch {} after {}",
                    data.epoch,
                    self.state.epoch()
                ))
            }
            body if first != matches!(body, EventBody::Genesis(_)) => {
                Err("stands where genesis belongs".to_owned())
            }
            body => Ok(body.clone()),
        }
    }

    fn decide_change(&self, event: &Event) -> Result<EventBody, String> {
        let change = decide::change_of(&event.body).ok_or("is no operator's change")?;
        if let seatbelt_schemas::command::Change::SetPrice(price) = &change {
            let decided =
                decide::set_price(self.state.prices(), price).map_err(|error| error.to_string())?;
            return decided
                .map(EventBody::from)
                .ok_or_else(|| "changes nothing".to_owned());
        }
        let unopened = Account::default();
        let account = match &event.body {
            EventBody::AccountOpened(_) => self.state.account(&event.account).unwrap_or(&unopened),
            _ => self.account(event)?,
        };
        let decided = decide::change(account, &change).map_err(|error| error.to_string())?;
        decided.ok_or_else(|| "changes nothing".to_owned())
    }

    /// Whose caps an event may have led across a threshold.
    fn scopes_of(&self, event: &Event) -> Option<Scopes> {
        match &event.body {
            EventBody::Settled(data) => Some(data.scopes.clone()),
            EventBody::Expired(data) => {
                let account = self.state.account(&event.account)?;
                Some(account.open().get(&data.reservation)?.scopes.clone())
            }
            _ => None,
        }
    }

    fn owe_thresholds(&mut self, event: &Event, scopes: Option<&Scopes>) {
        let Some(account) = self.state.account(&event.account) else {
            return;
        };
        let crossed = match (
            scopes,
            decide::change_of(&event.body)
                .as_ref()
                .and_then(changed_cap),
        ) {
            (Some(scopes), _) => decide::thresholds(account.matching(scopes), event.at_ms),
            (None, Some(cap)) => decide::thresholds(account.cap(cap).into_iter(), event.at_ms),
            (None, None) => return,
        };
        self.owed.extend(crossed.into_iter().map(EventBody::from));
    }

    /// How far each hard cap of the account is above its limit.
    fn breaches(&self, event: &Event) -> Vec<(CapId, u64)> {
        let account = self.state.account(&event.account);
        let caps = account.map(Account::caps).unwrap_or_default().iter();
        let above = caps.filter(|cap| cap.spec.hard).filter_map(|cap| {
            let used = cap.spent(event.at_ms).saturating_add(cap.held);
            (used > cap.limit()).then(|| (cap.spec.cap.clone(), used - cap.limit()))
        });
        above.collect()
    }

    /// Promise 1: `spent + held <= limit` at every position. What lies above may only come from the
    /// truth (an overrun or a late settle) or from a change of the cap, and only shrinks otherwise.
    fn caps_hold(&self, event: &Event, before: &[(CapId, u64)]) -> Result<(), String> {
        let excused = match &event.body {
            EventBody::CapSet(_) | EventBody::Adjusted(_) => true,
            EventBody::Settled(data) => {
                data.late || matches!(self.owed.front(), Some(EventBody::Overrun(_)))
            }
            _ => false,
        };
        if excused {
            return Ok(());
        }
        for (cap, above) in self.breaches(event) {
            let was = before
                .iter()
                .find(|(known, _)| *known == cap)
                .map_or(0, |(_, above)| *above);
            if above > was {
                return Err(format!("takes cap {cap} {above} above its limit"));
            }
        }
        Ok(())
    }
}

fn decide_reserve(
    account: &Account,
    context: Context<'_>,
    event: &Event,
    (scopes, asked, reservation, budget): (
        &Scopes,
        seatbelt_schemas::event::Asked,
        seatbelt_schemas::ids::ReservationId,
        &Option<seatbelt_schemas::budget::Budget>,
    ),
    recorded: Option<&Refused>,
) -> Result<EventBody, String> {
    let request = ReserveRequest {
        reservation,
        key: &scopes.key,
        model: scopes.model.as_ref(),
        run: scopes.run.as_ref(),
        end_user: scopes.end_user.as_ref(),
        asked,
        budget: budget.as_ref(),
    };
    if account.open().contains_key(&reservation) || event.cause != reservation.into() {
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

/// Compares an event's stored bytes with those of the decision. A build that adds fields to events
/// must bring the code that decides them again: an older one says here that bytes differ.
fn same_bytes(stored: &StoredEvent, expected: EventBody) -> Result<(), String> {
    if stored.event.body != expected {
        return Err(format!("decides again to {expected:?}"));
    }
    let again = Event {
        body: expected,
        ..stored.event.clone()
    };
    if again.encode() != stored.bytes {
        return Err("decides again to the same event with other bytes".to_owned());
    }
    Ok(())
}
