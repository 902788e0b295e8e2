//! What follows from an event: an overrun where a settle charges more than was held, and the thresholds
//! that spend has reached. It belongs to the same decision: same account, same cause, same moment, same
//! commit. The writer that decides it, the auditor that decides it again, and the aggregate all ask here.

use std::sync::Arc;

use seatbelt_schemas::{
    event::{EventBody, Overrun, Settled, ThresholdCrossed},
    ids::CapId,
    scope::Scopes,
};

use crate::account::{Account, Cap};

/// Most thresholds that one decision announces, so that it always fits a commit. What is left over is
/// announced by the next decision that touches those caps. The first writers announced all of them at
/// once, so the audit takes more.
pub const THRESHOLDS_PER_DECISION_MAX: usize = 64;

/// What an event leads to, as far as it is known before the event is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Follows {
    overrun: Option<Overrun>,
    touched: Touched,
}

/// The caps whose spend or limit an event changes.
#[derive(Debug, Clone, PartialEq)]
enum Touched {
    None,
    Matching(Arc<Scopes>),
    One(CapId),
}

/// An event that follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Following {
    /// What it says.
    pub body: EventBody,
    /// Beyond what one decision announces: it stands there now, or comes after a later event.
    pub may_wait: bool,
}

impl Follows {
    /// Looks at an event that is about to be applied to its account.
    pub fn of(before: Option<&Account>, body: &EventBody) -> Self {
        let overrun = match (before, body) {
            (Some(before), EventBody::Settled(settled)) => overrun(before, settled),
            _ => None,
        };
        let touched = match body {
            EventBody::Settled(data) => Touched::Matching(Arc::clone(&data.scopes)),
            EventBody::Expired(data) => before
                .and_then(|account| account.open().get(&data.reservation))
                .map_or(Touched::None, |open| {
                    Touched::Matching(Arc::clone(&open.scopes))
                }),
            EventBody::CapSet(data) => Touched::One(data.cap.clone()),
            EventBody::Adjusted(data) => Touched::One(data.cap.clone()),
            _ => Touched::None,
        };
        Self { overrun, touched }
    }

    /// Whether the event charges more than was held.
    pub fn overruns(&self) -> bool {
        self.overrun.is_some()
    }

    /// All that follows, once the event has been applied at `at_ms`.
    pub fn due(self, after: &Account, at_ms: u64) -> impl Iterator<Item = Following> {
        let crossed = match &self.touched {
            Touched::None => Vec::new(),
            Touched::Matching(scopes) => crossed(after.matching(scopes), at_ms),
            Touched::One(cap) => crossed(after.cap(cap).into_iter(), at_ms),
        };
        let overrun = self.overrun.map(|data| Following {
            body: data.into(),
            may_wait: false,
        });
        let crossed = crossed
            .into_iter()
            .enumerate()
            .map(|(index, data)| Following {
                body: data.into(),
                may_wait: index >= THRESHOLDS_PER_DECISION_MAX,
            });
        overrun.into_iter().chain(crossed)
    }

    /// What of it is decided together with the event.
    pub fn decided(self, after: &Account, at_ms: u64) -> impl Iterator<Item = EventBody> {
        self.due(after, at_ms)
            .filter(|following| !following.may_wait)
            .map(|following| following.body)
    }
}

fn overrun(before: &Account, settled: &Settled) -> Option<Overrun> {
    let reservation = settled.reservation;
    let open = before.open().get(&reservation);
    let ended = || before.expired().get(&reservation);
    let hold = open.or_else(|| ended().map(|expired| &expired.reservation))?;
    let above = settled.charge.above(&hold.hold);
    (!above.is_zero()).then(|| Overrun {
        reservation,
        key: settled.scopes.key.clone(),
        above,
    })
}

/// The thresholds of these caps that have been reached and that nobody was told of.
fn crossed<'a>(caps: impl Iterator<Item = &'a Cap>, at_ms: u64) -> Vec<ThresholdCrossed> {
    let of_cap = |cap: &'a Cap| {
        cap.due_thresholds(at_ms)
            .map(move |percent| ThresholdCrossed {
                cap: cap.spec.cap.clone(),
                percent,
                limit: cap.limit(),
                spent: cap.spent(at_ms),
            })
    };
    caps.flat_map(of_cap).collect()
}
