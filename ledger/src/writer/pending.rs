//! Events that are decided and not yet in a commit, and where a commit may be cut.
//!
//! All events of one decision are marked with the id of its command, and stand side by side. A
//! commit ends only where that changes: half a decision is never durable without the other half,
//! whenever the writer dies. That every decision fits one commit is asserted here, from the bounds of
//! what a decision may hold.

use std::collections::VecDeque;

use bytes::Bytes;
use seatbelt_schemas::{
    commit::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, COMMIT_OVERHEAD_MAX},
    ids::CommandId,
    position::Position,
};

use crate::decide::follows::THRESHOLDS_PER_DECISION_MAX;

/// Room for events in a commit.
pub const COMMIT_ROOM: usize = COMMIT_BYTES_MAX - COMMIT_OVERHEAD_MAX;
/// Most events of one decision: what is decided, its overrun, and the thresholds it leads across.
pub const DECISION_EVENTS_MAX: usize = 2 + THRESHOLDS_PER_DECISION_MAX;
/// Largest `threshold_crossed`: a cap's and an actor's name of 256 bytes each, an account's of 64, and
/// the envelope. That no event of this kind is larger is tested.
pub const THRESHOLD_BYTES_MAX: usize = 768;
/// Largest event of any other kind: a reserve with the evidence of eight caps in each of six scopes.
/// That none is larger is tested.
pub const EVENT_BYTES_MAX: usize = 24 * 1024;
/// Largest `overrun`.
const OVERRUN_BYTES_MAX: usize = 1024;
/// Largest `settled` or `expired`: the only ones that others follow.
pub const SETTLED_BYTES_MAX: usize = 4096;

const _: () = assert!(
    DECISION_EVENTS_MAX <= COMMIT_EVENTS_MAX && EVENT_BYTES_MAX <= COMMIT_ROOM,
    "one decision fits a commit"
);
const _: () = assert!(
    SETTLED_BYTES_MAX + OVERRUN_BYTES_MAX + THRESHOLDS_PER_DECISION_MAX * THRESHOLD_BYTES_MAX
        <= COMMIT_ROOM,
    "one decision with all that follows from it fits a commit"
);

/// An event on its way into a commit.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) position: Position,
    pub(super) at_ms: u64,
    /// The command whose decision it is part of.
    pub(super) decision: CommandId,
    pub(super) bytes: Bytes,
}

/// What waits for the next commits.
#[derive(Debug)]
pub(super) struct Queue {
    events: VecDeque<Pending>,
    /// Most events of a commit, unless one decision alone is more.
    events_max: usize,
}

impl Queue {
    pub(super) fn new(events_max: usize) -> Self {
        Self {
            events: VecDeque::new(),
            events_max: events_max.clamp(1, COMMIT_EVENTS_MAX),
        }
    }

    pub(super) fn push(&mut self, event: Pending) {
        self.events.push_back(event);
    }

    /// What the last event is part of.
    pub(super) fn last_decision(&self) -> Option<CommandId> {
        self.events.back().map(|event| event.decision)
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }

    /// The events of the next commit: as many whole decisions as fit, at least one.
    pub(super) fn take_commit(&mut self) -> Vec<Pending> {
        let (mut whole, mut bytes) = (0, 0);
        for (index, event) in self.events.iter().enumerate() {
            bytes += event.bytes.len();
            let fits = bytes <= COMMIT_ROOM && index < COMMIT_EVENTS_MAX;
            if !fits || (whole > 0 && index >= self.events_max) {
                break;
            }
            let next = self.events.get(index + 1);
            if next.is_none_or(|next| next.decision != event.decision) {
                whole = index + 1;
            }
        }
        assert!(
            whole > 0 || self.events.is_empty(),
            "one decision always fits a commit: what it holds is bounded"
        );
        self.events.drain(..whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seatbelt_schemas::{
        amount::AMOUNT_MAX,
        cap::{CAPS_PER_SCOPE_MAX, CapEvidence},
        event::{
            Asked, Event, EventBody, OnShort, OnUnknown, Overrun, Report, Reserved, Settled,
            ThresholdCrossed, Timings, UsageSource,
        },
        ids::{AccountId, Actor, CapId, EndUserId, KeyId, ModelId, RunId, TeamId},
        ids::{NAME_LEN_MAX, TOKEN_ID_LEN_MAX},
        meter::Amounts,
        scope::Scopes,
        usage::Usage,
    };

    use super::*;
    use crate::decide::validate::TEXT_LEN_MAX;

    const MOST: u64 = u64::MAX;

    fn token() -> String {
        "t".repeat(TOKEN_ID_LEN_MAX)
    }

    fn name() -> String {
        "n".repeat(NAME_LEN_MAX)
    }

    fn size(body: impl Into<EventBody>) -> usize {
        let event = Event {
            position: Position(MOST),
            at_ms: MOST,
            account: AccountId::new(token()).unwrap(),
            cause: CommandId::from_parts((1 << 48) - 1, u128::MAX),
            actor: Actor::new(name()).unwrap(),
            body: body.into(),
        };
        event.encode().len()
    }

    fn amounts() -> Amounts {
        Amounts {
            requests: MOST,
            tokens: MOST,
            input_tokens: MOST,
            output_tokens: MOST,
            cost: Some(MOST),
        }
    }

    fn scopes() -> Arc<Scopes> {
        Arc::new(Scopes {
            key: KeyId::new(token()).unwrap(),
            team: Some(TeamId::new(token()).unwrap()),
            model: Some(ModelId::new(name()).unwrap()),
            run: Some(RunId::new(token()).unwrap()),
            end_user: Some(EndUserId::new(name()).unwrap()),
        })
    }

    fn settled() -> Settled {
        let usage = Usage {
            input_tokens: MOST,
            cached_input_tokens: MOST,
            cache_write_tokens: MOST,
            cache_write_long_tokens: MOST,
            output_tokens: MOST,
            reasoning_tokens: MOST,
            tool_calls: MOST,
        };
        Settled {
            reservation: CommandId::from_parts(1, 1).into(),
            scopes: scopes(),
            report: Report {
                usage,
                upstream: "u".repeat(TEXT_LEN_MAX),
                source: UsageSource::Upstream,
                finish: Some("f".repeat(TEXT_LEN_MAX)),
                timings: Timings {
                    first_byte_ms: MOST,
                    total_ms: MOST,
                },
            },
            model: Some(ModelId::new(name()).unwrap()),
            charge: amounts(),
            price: Some(u32::MAX),
            multiplier_ppm: None,
            reserved_at_ms: MOST,
            late: true,
            attempt: None,
        }
    }

    /// Caps of an account, and of a team, key, model, run and end user.
    const SCOPES: usize = 6;

    #[test]
    fn no_event_is_larger_than_what_the_bounds_are_made_from() {
        let cap = CapId::new(name()).unwrap();
        let threshold = ThresholdCrossed {
            cap: cap.clone(),
            percent: u8::MAX,
            limit: AMOUNT_MAX,
            spent: MOST,
        };
        assert!(size(threshold) <= THRESHOLD_BYTES_MAX);
        let overrun = Overrun {
            reservation: CommandId::from_parts(1, 1).into(),
            key: KeyId::new(token()).unwrap(),
            above: amounts(),
        };
        assert!(size(overrun) <= OVERRUN_BYTES_MAX);
        assert!(size(settled()) <= SETTLED_BYTES_MAX);
        let met = CapEvidence {
            cap,
            limit: MOST,
            spent: MOST,
            held: MOST,
        };
        let reserved = Reserved {
            uncovered: false,
            reservation: CommandId::from_parts(1, 1).into(),
            scopes: scopes(),
            asked: Asked {
                input_tokens: MOST,
                output_tokens: MOST,
                tool_calls: MOST,
                deadline_ms: MOST,
                on_short: OnShort::Clamp,
                on_unknown: OnUnknown::ChargeHold,
            },
            hold: amounts(),
            price: Some(u32::MAX),
            multiplier_ppm: None,
            budget: None,
            within: None,
            caps: vec![met; SCOPES * CAPS_PER_SCOPE_MAX],
            attempt: None,
        };
        assert!(
            size(reserved) + 2048 <= EVENT_BYTES_MAX,
            "a refusal says more"
        );
    }

    /// A queue of decisions with so many events each, of so many bytes.
    fn queue(events_max: usize, decisions: &[usize], bytes: usize) -> Queue {
        let mut queue = Queue::new(events_max);
        let mut position = 0;
        for (index, count) in decisions.iter().enumerate() {
            for _ in 0..*count {
                position += 1;
                queue.push(Pending {
                    position: Position(position),
                    at_ms: 0,
                    decision: CommandId::from_parts(0, index as u128),
                    bytes: Bytes::from(vec![0; bytes]),
                });
            }
        }
        queue
    }

    #[track_caller]
    fn check(events_max: usize, decisions: &[usize], bytes: usize, expected: &[usize]) {
        let mut queue = queue(events_max, decisions, bytes);
        let mut taken = Vec::new();
        while !queue.is_empty() {
            taken.push(queue.take_commit().len());
        }
        assert_eq!(taken, expected);
    }

    #[test]
    fn a_commit_ends_where_a_decision_ends() {
        check(256, &[1, 1, 3], 100, &[5]);
        check(4, &[1, 1, 3], 100, &[2, 3]);
        check(4, &[2, 2, 2], 100, &[4, 2]);
        check(256, &[254, 3, 1], 10, &[254, 4]);
        check(256, &[2; 200], 10, &[256, 144]);
    }

    #[test]
    fn a_decision_larger_than_the_wanted_commit_is_taken_whole() {
        check(1, &[3, 1, 2], 100, &[3, 1, 2]);
        check(2, &[1, 66, 1], 100, &[1, 66, 1]);
    }

    #[test]
    fn bytes_end_a_commit_too_and_never_a_decision() {
        check(256, &[1, 1, 1], COMMIT_ROOM / 2, &[2, 1]);
        check(256, &[1, 2], COMMIT_ROOM / 2, &[1, 2]);
    }

    #[test]
    #[should_panic(expected = "one decision always fits")]
    fn a_decision_that_does_not_fit_is_a_defect() {
        queue(256, &[3], COMMIT_ROOM / 2).take_commit();
    }
}
