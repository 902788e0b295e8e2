//! Requests that a client may send again under an `Idempotency-Key`: charged once, whichever gateway is asked and
//! whatever dies in between.
//!
//! Before anything is reserved it is written which reservation the key stands for, and only where nobody wrote
//! before. Whoever repeats the request finds that, and the ledger says what became of it. Where nothing came of it,
//! the request goes on under a reservation of its own. What is refused leaves nothing behind, and an account has a
//! share of what is kept (ADR 0066): no one shuts it for others. Not here: how first uses are kept, and answers, which are gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use futures::future::BoxFuture;
use seatbelt_dialects::{Api, Exact, Fields};
use seatbelt_schemas::{
    chain::in_one_line,
    command::{Fate, Grant},
    first_use::FirstUse,
    ids::{AccountId, ReservationId},
    meter::Amounts,
    position::Position,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    clock::{Clock, ms},
    config::KeyEntry,
    error::{ApiError, Case, Seldom},
    gate::{Gate, NotHeld, Reservation, Want},
    receive::{Caller, IDEMPOTENCY_KEY, Received},
};

mod shares;

use shares::{Hour, PER_ACCOUNT_MAX, Shares};

/// Longest such key.
const LEN_MAX: usize = 255;
/// Reservations that one request may have had, one in the place of another, and more.
const ATTEMPTS_MAX: usize = 128;
/// How often a write is tried again where what was there is gone.
const WRITES_MAX: usize = 4;
/// How long a refusal waits until what was written is taken back.
const TAKE_BACK_WAIT: Duration = Duration::from_secs(1);
/// How long after the time for a reserve nobody asks for it any more: clocks differ.
const UNSURE: Duration = Duration::from_secs(5);

/// First uses could not be read or written: try again.
pub type FirstUseFailure = Box<dyn std::error::Error + Send + Sync>;

/// Who keeps what each key was used for first, for a day.
pub trait FirstUseStore: Send + Sync {
    /// The first use under a name, where there is one, and the revision that the next write expects.
    fn find(
        &self,
        name: String,
    ) -> BoxFuture<'static, Result<(Option<FirstUse>, u64), FirstUseFailure>>;

    /// Writes one where the name is at that revision, zero where it never was written; answers once it lasts, with
    /// the revision that it has. Nothing where somebody else wrote.
    fn write(
        &self,
        name: String,
        revision: u64,
        first: FirstUse,
    ) -> BoxFuture<'static, Result<Option<u64>, FirstUseFailure>>;

    /// Takes out what was written at a revision, and nothing else; no trace of it takes room.
    fn take_back(&self, revision: u64) -> BoxFuture<'static, Result<(), FirstUseFailure>>;
}

/// A request under a key of its client's, of which nothing came so far.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    account: AccountId,
    /// Of the key, for nobody but who sent it.
    name: String,
    asked: [u8; 32],
    /// What it takes the place of.
    revision: u64,
}

/// What became of a request that is sent again.
pub(crate) enum Became {
    Nothing,
    /// It is not known to be reserved, and may be at any time.
    Unsure(ReservationId),
    Open(ReservationId),
    Charged(ReservationId, Position, Amounts),
}

impl Named {
    /// Of a client's key: what else its first use is kept under, and what was asked.
    pub(crate) fn of(key: &KeyEntry, parts: &[&[u8]], asked: &[&[u8]]) -> Self {
        let own = [key.account.as_str().as_bytes(), key.key.as_str().as_bytes()];
        let hash = digest(own.into_iter().chain(parts.iter().copied()));
        Self {
            account: key.account.clone(),
            name: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            asked: digest(asked.iter().copied()),
            revision: 0,
        }
    }
}

/// A first use that was written.
#[must_use]
pub(crate) struct Written {
    account: AccountId,
    revision: u64,
    /// To which it counts.
    hour: Hour,
}

/// Lets each of them through once.
pub(crate) struct Repeats {
    kept: Option<Arc<dyn FirstUseStore>>,
    gate: Arc<Gate>,
    clock: Clock,
    tracker: TaskTracker,
    shares: Arc<Shares>,
    seldom: Arc<Seldom>,
}

impl Repeats {
    pub(crate) fn new(
        kept: Option<Arc<dyn FirstUseStore>>,
        gate: &Arc<Gate>,
        clock: &Clock,
        tracker: &TaskTracker,
    ) -> Self {
        Self {
            kept,
            gate: Arc::clone(gate),
            clock: Arc::clone(clock),
            tracker: tracker.clone(),
            shares: Arc::new(Shares::new(PER_ACCOUNT_MAX)),
            seldom: Arc::default(),
        }
    }

    /// Looks a request up that may be a repeated one. An error where it is, and the first one was let through, or was
    /// another one.
    pub(crate) async fn look_up(
        &self,
        api: Api,
        received: Received,
    ) -> Result<(Received, Option<Named>), ApiError> {
        let Some(key) = &received.caller.key else {
            return Ok((received, None));
        };
        let Some(told) = told(&received.headers)? else {
            return Ok((received, None));
        };
        let (key, told) = (Arc::clone(key), told.to_owned());
        let (received, asked) = asked(api, received).await?;
        let run = key.within.as_ref().map_or("", |within| within.run.as_str());
        let parts = ["request", run, &told].map(str::as_bytes);
        let mut named = Named::of(&key, &parts, &[&asked]);
        match self.became(&mut named).await? {
            Became::Nothing => Ok((received, Some(named))),
            became => Err(refused(&became)),
        }
    }

    /// Asks for a hold; first of all, where the request may be repeated, it is written which one.
    pub(crate) async fn reserve(
        &self,
        named: Option<Named>,
        want: Want,
    ) -> Result<(Reservation, Grant), ApiError> {
        let Some(mut named) = named else {
            return self.gate.reserve(want).await;
        };
        let id = self.gate.command_id();
        let until_ms = self.until_ms(self.gate.patience_for(&want));
        let written = self.first(&mut named, id.into(), until_ms).await?;
        let (reservation, grant) = match self.gate.reserve_as(id, want).await {
            Ok(held) => held,
            Err(NotHeld::Denied(error)) => {
                self.take_back(written).await;
                return Err(error);
            }
            Err(NotHeld::Unknown(error)) => return Err(error),
        };
        // whoever asked since took it that this never would be
        if (self.clock)() >= until_ms {
            reservation.release("reserved too late").await;
            return Err(ApiError::busy(
                "the request took too long to be let through",
            ));
        }
        Ok((reservation, grant))
    }

    /// Asks for one more hold for a request that was let through, after one of which nobody knows what it did. Where
    /// that one came to nothing, whoever repeats the request would take its place: so it is written first that
    /// this one does, and there is none where somebody was quicker.
    pub(crate) async fn reserve_anew(
        &self,
        named: Option<Named>,
        first: ReservationId,
        want: Want,
    ) -> Result<(Reservation, Grant), ApiError> {
        let Some(mut named) = named else {
            return self.gate.reserve(want).await;
        };
        match self.became(&mut named).await? {
            Became::Nothing => self.reserve(Some(named), want).await,
            Became::Charged(id, ..) if id == first => self.gate.reserve(want).await,
            became => Err(refused(&became)),
        }
    }

    /// Writes which reservation a request becomes; an error where another one came first, of which something came.
    async fn first(
        &self,
        named: &mut Named,
        reservation: ReservationId,
        until_ms: u64,
    ) -> Result<Written, ApiError> {
        for _ in 0..WRITES_MAX {
            if let Some(written) = self.write(named, reservation, until_ms).await? {
                return Ok(written);
            }
            match self.became(named).await? {
                // that one was refused, and what was written of it is taken back
                Became::Nothing => {}
                became => return Err(refused(&became)),
            }
        }
        let message = "other requests came under the same Idempotency-Key";
        Err(ApiError::busy(message))
    }

    /// Until when anybody reserves what is written now, if its answer is awaited for so long.
    pub(crate) fn until_ms(&self, patience: Duration) -> u64 {
        (self.clock)().saturating_add(ms(patience + UNSURE))
    }

    /// Writes which reservation a request becomes; nothing where somebody was quicker.
    pub(crate) async fn write(
        &self,
        named: &Named,
        reservation: ReservationId,
        until_ms: u64,
    ) -> Result<Option<Written>, ApiError> {
        let kept = self.kept()?;
        let account = &named.account;
        let Some(hour) = self.shares.take(account, (self.clock)()) else {
            return Err(ApiError::too_many_first_uses(self.shares.most()));
        };
        let first = FirstUse {
            v: FirstUse::VERSION,
            asked: named.asked,
            reservation,
            until_ms,
        };
        let written = kept.write(named.name.clone(), named.revision, first).await;
        if let Ok(Some(revision)) = written {
            let account = account.clone();
            return Ok(Some(Written {
                account,
                revision,
                hour,
            }));
        }
        self.shares.give_back(account, hour);
        let written = written.map_err(|error| ApiError::first_uses_away(error.to_string()))?;
        debug_assert_eq!(written, None, "what was written was returned");
        Ok(None)
    }

    /// Takes out what was written of a request that was refused: it costs nothing, and is to take no room of
    /// others. Goes on where the caller leaves; where it fails, it stays for a day and counts.
    pub(crate) async fn take_back(&self, written: Written) {
        let Ok(kept) = self.kept() else {
            return;
        };
        let taking = kept.take_back(written.revision);
        let (shares, seldom) = (Arc::clone(&self.shares), Arc::clone(&self.seldom));
        let taken = self.tracker.spawn(async move {
            match taking.await {
                Ok(()) => shares.give_back(&written.account, written.hour),
                Err(error) => {
                    let error = in_one_line(&*error);
                    if let Some(left_out) = seldom.note(&error, Instant::now()) {
                        tracing::warn!(
                            error,
                            left_out,
                            "a refused request's Idempotency-Key stays kept for a day"
                        );
                    }
                }
            }
        });
        // the refusal waits for it, so that refusals are no quicker than it is
        let _ = timeout(TAKE_BACK_WAIT, taken).await;
    }

    fn kept(&self) -> Result<&Arc<dyn FirstUseStore>, ApiError> {
        let none = || ApiError::first_uses_away("this gateway was started without");
        self.kept.as_ref().ok_or_else(none)
    }

    /// What became of the first use of a key; an error where that was another request.
    pub(crate) async fn became(&self, named: &mut Named) -> Result<Became, ApiError> {
        let found = self.kept()?.find(named.name.clone()).await;
        let found = found.map_err(|error| ApiError::first_uses_away(error.to_string()))?;
        let (first, revision) = found;
        named.revision = revision;
        let Some(first) = first else {
            return Ok(Became::Nothing);
        };
        if first.asked != named.asked {
            return Err(ApiError::idempotency_key_of_another());
        }
        self.led_to(&named.account, &first).await
    }

    /// What the ledger says of its reservation, and of those that took its place.
    async fn led_to(&self, account: &AccountId, first: &FirstUse) -> Result<Became, ApiError> {
        let mut id = first.reservation;
        for _ in 0..ATTEMPTS_MAX {
            return Ok(match self.gate.fate(account, id).await? {
                Fate::Replaced { by, .. } => {
                    id = by;
                    continue;
                }
                Fate::Open => Became::Open(id),
                Fate::Unknown if (self.clock)() < first.until_ms => Became::Unsure(id),
                Fate::Unknown | Fate::Refused { .. } => Became::Nothing,
                Fate::Ended { charge, .. } if charge.is_zero() => Became::Nothing,
                Fate::Ended { position, charge } => Became::Charged(id, position, charge),
            });
        }
        let message = "what became of the request under this Idempotency-Key is not known";
        Err(ApiError::new(Case::Internal, message))
    }
}

/// What is said of a request that is not let through again.
fn refused(became: &Became) -> ApiError {
    match became {
        Became::Charged(id, position, charge) => ApiError::request_answered(*id, *position, charge),
        Became::Unsure(id) | Became::Open(id) => ApiError::request_in_progress(*id),
        Became::Nothing => ApiError::new(Case::Internal, "nothing came of the request"),
    }
}

/// The key that a client names.
fn told(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut sent = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = sent.next() else {
        return Ok(None);
    };
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    let text = value
        .to_str()
        .ok()
        .filter(|text| (1..=LEN_MAX).contains(&text.len()) && text.bytes().all(printable));
    match (text, sent.next()) {
        (Some(text), None) => Ok(Some(text)),
        _ => {
            let problem = format!("must be sent once, with 1 to {LEN_MAX} printable characters");
            Err(ApiError::invalid_field(IDEMPOTENCY_KEY, &problem))
        }
    }
}

/// A digest of what a request asks, whatever its spaces, and of whom it is for.
async fn asked(api: Api, received: Received) -> Result<(Received, [u8; 32]), ApiError> {
    let Received { body, exact, .. } = received;
    let caller = received.caller;
    let working = {
        let caller = caller.clone();
        move || {
            let asked = asked_of(api, &caller, &body, exact.as_ref());
            Ok((body, exact, asked))
        }
    };
    let (body, exact, asked) = received.aside.clone().work(working).await?;
    let received = Received {
        body,
        exact,
        caller,
        ..received
    };
    Ok((received, asked))
}

fn asked_of(api: Api, caller: &Caller, body: &Fields, exact: Option<&Exact>) -> [u8; 32] {
    let body = serde_json::to_vec(body).expect("a JSON object is written to memory");
    let body = exact.map(|exact| exact.unmarked(&body)).unwrap_or(body);
    let api = format!("{api:?}");
    let run = caller.run.as_ref().map_or("", |run| run.as_str());
    let user = caller.end_user.as_ref().map_or("", |user| user.as_str());
    let parts = [api.as_bytes(), run.as_bytes(), user.as_bytes(), &body];
    // none where there is none: what was asked of an earlier release stays the same request
    let team = caller.team.as_ref().map(|team| team.as_str().as_bytes());
    digest(parts.into_iter().chain(team))
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use axum::http::HeaderValue;
    use futures::FutureExt;
    use seatbelt_schemas::ids::KeyId;

    use super::*;
    use crate::gate::testing::{self, Asked, Stub};

    /// Keeps nothing, and takes everything.
    struct Empty;

    impl FirstUseStore for Empty {
        fn find(
            &self,
            _: String,
        ) -> BoxFuture<'static, Result<(Option<FirstUse>, u64), FirstUseFailure>> {
            async { Ok((None, 0)) }.boxed()
        }

        fn write(
            &self,
            _: String,
            _: u64,
            _: FirstUse,
        ) -> BoxFuture<'static, Result<Option<u64>, FirstUseFailure>> {
            async { Ok(Some(1)) }.boxed()
        }

        fn take_back(&self, _: u64) -> BoxFuture<'static, Result<(), FirstUseFailure>> {
            async { Ok(()) }.boxed()
        }
    }

    fn named(account: AccountId) -> Named {
        Named {
            account,
            name: "n".to_owned(),
            asked: [0; 32],
            revision: 0,
        }
    }

    /// What a gateway asks for that wakes up so much later than it wrote what it would reserve.
    async fn asked_when_late_by(late: Duration) -> Vec<Asked> {
        let stub = Arc::new(Stub::default());
        let (gate, _, tracker) = testing::gate(&stub);
        let (now_ms, late_ms) = (AtomicU64::new(1_700_000_000_000), ms(late));
        let clock: Clock = Arc::new(move || now_ms.fetch_add(late_ms, SeqCst));
        let repeats = Repeats::new(Some(Arc::new(Empty)), &gate, &clock, &tracker);
        let named = named(testing::key().account);
        let reserved = repeats.reserve(Some(named), testing::want()).await;
        if let Ok((reservation, _)) = reserved {
            reservation.settle(testing::report(1)).await.unwrap();
        }
        stub.asked()
    }

    #[tokio::test]
    async fn a_hold_that_nobody_counts_on_any_more_is_given_back() {
        let late = asked_when_late_by(Duration::from_secs(3600)).await;
        let released = Asked::Release("reserved too late".to_owned());
        assert_eq!(late.last(), Some(&released));
        let in_time = asked_when_late_by(Duration::from_secs(1)).await;
        assert!(matches!(in_time.last(), Some(Asked::Settle(..))));
    }

    #[tokio::test]
    async fn an_account_that_has_its_share_is_refused_and_others_go_on() {
        let stub = Arc::new(Stub::default());
        let (gate, _, tracker) = testing::gate(&stub);
        let clock: Clock = Arc::new(|| 1_700_000_000_000);
        let mut repeats = Repeats::new(Some(Arc::new(Empty)), &gate, &clock, &tracker);
        repeats.shares = Arc::new(Shares::new(3));
        let own = named(testing::key().account);
        let asks = async |named: &Named| {
            let asked = repeats.reserve(Some(named.clone()), testing::want()).await;
            let (reservation, _) = asked.map_err(|error| error.code())?;
            reservation.release("test").await;
            Ok(())
        };
        for _ in 0..3 {
            assert_eq!(asks(&own).await, Ok(()));
        }
        let reserves = stub.asked().len();
        assert_eq!(asks(&own).await, Err("too_many_idempotency_keys"));
        assert_eq!(stub.asked().len(), reserves, "the ledger is not asked");
        let other = named(AccountId::new("other").unwrap());
        assert_eq!(asks(&other).await, Ok(()));
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(IDEMPOTENCY_KEY, value);
        }
        headers
    }

    #[test]
    fn a_key_is_short_printable_and_sent_once() {
        assert_eq!(told(&headers(&[])).unwrap(), None);
        assert_eq!(told(&headers(&["a b"])).unwrap(), Some("a b"));
        let longest = "k".repeat(LEN_MAX);
        assert_eq!(told(&headers(&[&longest])).unwrap(), Some(&*longest));
        let long = "k".repeat(LEN_MAX + 1);
        for odd in [&[""][..], &["é"], &["a\tb"], &[&long], &["a", "a"]] {
            let error = told(&headers(odd)).unwrap_err();
            assert_eq!(error.code(), "invalid_body", "{odd:?}");
        }
    }

    #[test]
    fn nobody_elses_key_is_met() {
        let name = |key: &KeyEntry, told: &str| Named::of(key, &[told.as_bytes()], &[]).name;
        let own = testing::key();
        let mut others = vec![own.clone(), own.clone()];
        others[0].account = AccountId::new("b").unwrap();
        others[1].key = KeyId::new("l").unwrap();
        for other in others {
            assert_ne!(name(&own, "1"), name(&other, "1"), "{other:?}");
        }
        assert_ne!(name(&own, "1"), name(&own, "2"));
        assert_eq!(name(&own, "1").len(), 64);
    }
}
