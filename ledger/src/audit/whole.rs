//! What holds over a partition's whole log, which no account's state tells: no command is carried out
//! twice, every account lives in its own partition, and what was due to end has ended.
//!
//! It keeps 16 bytes for each command carried out, about 30 in its table, and 32 for each open
//! reservation: some 300 MB where ten million commands stand in one log.

use std::collections::{BTreeSet, HashSet};

use seatbelt_schemas::{
    event::{Event, EventBody},
    ids::{AccountId, ReservationId},
    position::{Partition, Partitions},
};

use super::checks::Check;
use crate::account::Account;

/// Longest grace after a deadline that a writer may be told: a day.
pub const EXPIRY_GRACE_MS_MAX: u64 = 86_400_000;
/// How long a reservation stays open after its deadline and the longest grace, at most, counted in time
/// in which events show that somebody was there to end it.
pub const EXPIRY_LATE_MS_MAX: u64 = 3_600_000;
/// What the time between two events counts at most: nobody may have been there, or a clock jumped.
const GAP_MS_MAX: u64 = 600_000;

const _: () = assert!(
    GAP_MS_MAX < EXPIRY_LATE_MS_MAX,
    "the first event after a long silence accuses nobody"
);

/// What was seen of a log so far.
#[derive(Debug, Default)]
pub(super) struct Whole {
    partitions: Option<Partitions>,
    /// What caused the events so far: every id of a command that was carried out.
    causes: HashSet<u128>,
    /// Deadlines of what is open.
    due: BTreeSet<(u64, ReservationId)>,
    at_ms: u64,
    /// What is overdue the longest, and for how long.
    overdue: Option<(ReservationId, u64)>,
}

impl Whole {
    /// Takes the event that follows, before it is applied. `follows` says that it came of the event
    /// before it, with which it shares its cause.
    pub(super) fn take(
        &mut self,
        event: &Event,
        follows: bool,
        account: Option<&Account>,
        home: Partition,
    ) -> Result<(), String> {
        self.in_time(event.at_ms)?;
        if !follows {
            self.once(event)?;
        }
        match &event.body {
            EventBody::Genesis(data) => {
                let partitions = Partitions::try_from(data.partitions);
                self.partitions = Some(partitions.map_err(|error| error.to_string())?);
            }
            EventBody::AccountOpened(_) => self.at_home(&event.account, home)?,
            EventBody::Reserved(data) => {
                self.due.insert((data.asked.deadline_ms, data.reservation));
            }
            body => self.ended(body, account),
        }
        Ok(())
    }

    /// A refusal is carried out by nobody, and one event may stand for many of them.
    fn once(&mut self, event: &Event) -> Result<(), String> {
        let refused = matches!(event.body, EventBody::Refused(_));
        if !Check::Twice.finds(!refused && !self.causes.insert(event.cause.bits())) {
            return Ok(());
        }
        Err(format!("carries command {} out a second time", event.cause))
    }

    fn at_home(&self, account: &AccountId, here: Partition) -> Result<(), String> {
        let home = self.partitions.map(|partitions| partitions.of(account));
        match home {
            Some(home) if Check::Home.finds(home != here && !account.is_system()) => {
                Err(format!("opens an account of partition {home}"))
            }
            _ => Ok(()),
        }
    }

    fn ended(&mut self, body: &EventBody, account: Option<&Account>) {
        let reservation = match body {
            EventBody::Settled(data) if !data.late => data.reservation,
            EventBody::Released(data) => data.reservation,
            EventBody::Expired(data) => data.reservation,
            _ => return,
        };
        if let Some(open) = account.and_then(|account| account.open().get(&reservation)) {
            self.due.remove(&(open.asked.deadline_ms, reservation));
        }
    }

    fn in_time(&mut self, at_ms: u64) -> Result<(), String> {
        let gap_ms = at_ms.saturating_sub(self.at_ms).min(GAP_MS_MAX);
        self.at_ms = at_ms;
        let Some((deadline_ms, first)) = self.due.first().copied() else {
            self.overdue = None;
            return Ok(());
        };
        if at_ms <= deadline_ms.saturating_add(EXPIRY_GRACE_MS_MAX) {
            self.overdue = None;
            return Ok(());
        }
        let late_ms = match self.overdue {
            Some((known, late_ms)) if known == first => late_ms + gap_ms,
            _ => 0,
        };
        self.overdue = Some((first, late_ms));
        if !Check::Due.finds(late_ms > EXPIRY_LATE_MS_MAX) {
            return Ok(());
        }
        Err(format!(
            "comes although reservation {first} was due to end at {deadline_ms} and never did"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use seatbelt_schemas::{
        event::RefusalReason,
        event::{AccountOpened, Asked, Credited, Genesis, OnShort, OnUnknown, Refused, Reserved},
        ids::{Actor, CapId, CommandId, KeyId, LedgerId},
        meter::Amounts,
        position::Position,
        scope::Scopes,
    };

    use super::*;

    const HERE: Partition = Partition(0);

    fn id(number: u128) -> CommandId {
        CommandId::from_parts(1, number)
    }

    fn event(at_ms: u64, cause: u128, account: &str, body: EventBody) -> Event {
        Event {
            position: Position(1),
            at_ms,
            account: AccountId::new(account).unwrap(),
            cause: id(cause),
            actor: Actor::operator("test"),
            body,
        }
    }

    fn credited() -> EventBody {
        let cap = CapId::new("cap").unwrap();
        let (amount, reason) = (1, None);
        Credited {
            cap,
            amount,
            reason,
        }
        .into()
    }

    fn scopes() -> Arc<Scopes> {
        Arc::new(Scopes {
            key: KeyId::new("key").unwrap(),
            team: None,
            model: None,
            run: None,
            end_user: None,
        })
    }

    fn asked(deadline_ms: u64) -> Asked {
        Asked {
            input_tokens: 0,
            output_tokens: 1,
            tool_calls: 0,
            deadline_ms,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
        }
    }

    fn reserved(number: u128, deadline_ms: u64) -> EventBody {
        Reserved {
            uncovered: false,
            reservation: id(number).into(),
            scopes: scopes(),
            asked: asked(deadline_ms),
            hold: Amounts::request(0, 1, None),
            price: None,
            multiplier_ppm: None,
            budget: None,
            within: None,
            caps: Vec::new(),
            attempt: None,
        }
        .into()
    }

    fn refused(number: u128) -> EventBody {
        Refused {
            uncovered: false,
            reservation: id(number).into(),
            scopes: scopes(),
            asked: asked(1),
            want: Amounts::request(0, 1, None),
            price: None,
            multiplier_ppm: None,
            budget: None,
            within: None,
            reason: RefusalReason::Spent,
            cap: CapId::new("cap").unwrap(),
            resets_at_ms: None,
            terms: None,
            caps: Vec::new(),
            count: 1,
            decided_at_ms: None,
        }
        .into()
    }

    fn take(whole: &mut Whole, event: &Event) -> Result<(), String> {
        whole.take(event, false, None, HERE)
    }

    #[test]
    fn a_command_is_carried_out_once_and_what_follows_from_it_shares_its_cause() {
        let mut whole = Whole::default();
        let first = event(1, 7, "a", credited());
        take(&mut whole, &first).unwrap();
        whole.take(&first, true, None, HERE).unwrap();
        take(&mut whole, &event(1, 8, "a", credited())).unwrap();
        let error = take(&mut whole, &first).unwrap_err();
        assert!(error.contains("a second time"), "{error}");
    }

    #[test]
    fn a_reservation_id_is_taken_once_and_may_be_refused_before() {
        let mut whole = Whole::default();
        for _ in 0..2 {
            take(&mut whole, &event(1, 7, "a", refused(7))).unwrap();
        }
        take(&mut whole, &event(1, 7, "a", reserved(7, 100))).unwrap();
        let error = take(&mut whole, &event(1, 7, "a", reserved(7, 100))).unwrap_err();
        assert!(error.contains("a second time"), "{error}");
    }

    #[test]
    fn an_account_is_opened_in_its_own_partition_only() {
        let mut whole = Whole::default();
        let genesis = Genesis {
            ledger: LedgerId::new("test").unwrap(),
            partition: 0,
            partitions: 2,
        };
        let system = AccountId::system();
        take(&mut whole, &event(1, 1, system.as_str(), genesis.into())).unwrap();
        let partitions = Partitions::try_from(2).unwrap();
        let mut found = [0, 0];
        for (number, name) in (2..).zip(["a", "b", "c", "d", "e", "f", "g", "h"]) {
            let opened = event(1, number, name, AccountOpened::default().into());
            let home = partitions.of(&opened.account);
            let told = take(&mut whole, &opened);
            assert_eq!(told.is_ok(), home == HERE, "{name}: {told:?}");
            found[usize::from(home.0)] += 1;
        }
        assert!(!found.contains(&0), "names of both partitions were tried");
    }

    /// Events every so often after a deadline at 100 that nobody kept: how many are let pass.
    #[track_caller]
    fn passes(every_ms: u64, events: u64) {
        let mut whole = Whole::default();
        take(&mut whole, &event(1, 1, "a", reserved(1, 100))).unwrap();
        let due_ms = 100 + EXPIRY_GRACE_MS_MAX;
        take(&mut whole, &event(due_ms, 2, "a", credited())).unwrap();
        for number in 1..=events {
            let next = event(
                due_ms + number * every_ms,
                9 + u128::from(number),
                "a",
                credited(),
            );
            take(&mut whole, &next).unwrap();
        }
        let at_ms = due_ms + (events + 1) * every_ms;
        let error = take(&mut whole, &event(at_ms, 3, "a", credited())).unwrap_err();
        assert!(error.contains("was due to end at 100"), "{error}");
    }

    #[test]
    fn an_expiry_that_never_came_is_found_once_somebody_was_there_for_an_hour() {
        passes(EXPIRY_LATE_MS_MAX / 60, 61);
        // silence counts ten minutes at most: the writer may have been down
        passes(30 * EXPIRY_GRACE_MS_MAX, 7);
    }
}
