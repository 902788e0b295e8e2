//! The side of the caller: one partition's ledger, wherever its writer is.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use seatbelt_schemas::{
    command::{
        Ack, Admin, AdminOutcome, CommandError, Exchange, Read, Release, Reserve, ReserveOutcome,
        Resize, Resolution, Settle, Standing,
    },
    ids::{AccountId, Actor, ReservationId},
    names::Names,
    position::Partition,
    wire,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::{
    RequestFrame, SettleBody, VERSION, Verb, decode_reply,
    post::{Heard, Post},
    twice,
};
use crate::api::{Answer, Ledger, Taken};

/// How long a call waits for its reply before it is sent again; doubles each time. A host that was
/// killed or frozen takes its requests with it: one sent again finds that out, or its successor. The
/// writer answers a command sent twice once it is decided, to both.
pub(super) const AGAIN_FIRST: Duration = Duration::from_millis(300);
/// Pauses before a call is sent again that was told that nobody hosts the partition now.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(10);
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long a reserve given up by its caller is tried to be given back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(10);

/// A partition's ledger behind requests. Clones share the way to it.
#[derive(Debug, Clone)]
pub struct RemoteLedger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) post: Arc<dyn Post>,
    pub(super) names: Names,
    pub(super) partition: Partition,
    pub(super) patience: Duration,
}

impl RemoteLedger {
    /// The ledger of `partition`. A call is tried again for `patience`, on top of the time that a
    /// reserve itself may wait; longer than a takeover takes.
    pub fn new<P: Post + Clone>(
        post: &P,
        names: &Names,
        partition: Partition,
        patience: Duration,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                post: Arc::new(post.clone()),
                names: names.clone(),
                partition,
                patience,
            }),
        }
    }
}

impl Inner {
    /// Asks until there is an answer, for `waits` longer than patience.
    async fn call<T: Serialize, R: DeserializeOwned>(
        &self,
        verb: Verb,
        body: T,
        waits: Duration,
    ) -> Answer<R> {
        let subject = self.names.ledger_subject(self.partition, verb.name());
        let deadline = Instant::now() + self.patience + waits;
        let mut request = RequestFrame {
            v: VERSION,
            within_ms: 0,
            body,
        };
        let mut send = || {
            // the host works on it until the last try ends: if it gave a hold back before, a later
            // try would be told of a hold that is no more
            let left = deadline.saturating_duration_since(Instant::now());
            request.within_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            self.post
                .request(&subject, wire::encode(&request).into(), left)
        };
        // replies to earlier tries stay welcome
        let mut tries = FuturesUnordered::from_iter([send()]);
        let (mut again, mut pause) = (AGAIN_FIRST, PAUSE_MIN);
        let mut send_at = Instant::now() + again;
        let mut detail = format!("the host of partition {} does not answer", self.partition);
        loop {
            let tried = tokio::select! {
                biased;
                Some(tried) = tries.next() => tried,
                () = sleep_until(send_at.min(deadline)) => {
                    if Instant::now() >= deadline {
                        return Err(CommandError::Unavailable { detail });
                    }
                    tries.push(send());
                    again *= 2;
                    send_at = Instant::now() + again;
                    continue;
                }
            };
            detail = match tried {
                Heard::Reply(bytes) => match decode_reply(&bytes) {
                    Err(CommandError::Unavailable { detail }) => detail,
                    answer => return answer,
                },
                Heard::TooLarge(detail) => return Err(CommandError::Invalid { detail }),
                Heard::Denied(detail) => return Err(CommandError::Unavailable { detail }),
                Heard::Nobody => format!("nobody hosts partition {} now", self.partition),
                Heard::Silence => continue,
            };
            debug!(subject, detail, "asking again");
            send_at = send_at.min(Instant::now() + pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Ledger for RemoteLedger {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        async move {
            let waits = Duration::from_millis(command.wait_ms);
            let mut undelivered = Undelivered::of(&self.inner, &command);
            let answer = self.inner.call(Verb::Reserve, command, waits).await;
            undelivered.delivered = true;
            answer
        }
        .boxed()
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        async move {
            let mut undelivered = Undelivered::of(&self.inner, &command.reserve);
            let call = self.inner.call(Verb::Exchange, command, Duration::ZERO);
            let answer = call.await;
            undelivered.delivered = true;
            answer
        }
        .boxed()
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.inner
            .call(Verb::Resize, command, Duration::ZERO)
            .boxed()
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        let body = SettleBody {
            command,
            ack,
            lasting: false,
        };
        self.inner.call(Verb::Settle, body, Duration::ZERO).boxed()
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        twice::settle(&self.inner, command).boxed()
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.inner
            .call(Verb::Release, command, Duration::ZERO)
            .boxed()
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.inner.call(Verb::Read, query, Duration::ZERO).boxed()
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.inner
            .call(Verb::Admin, command, Duration::ZERO)
            .boxed()
    }
}

/// A reserve on its way. If its caller goes away before the answer, the hold that may have been
/// taken is given back.
struct Undelivered {
    inner: Arc<Inner>,
    account: AccountId,
    reservation: ReservationId,
    delivered: bool,
}

impl Undelivered {
    fn of(inner: &Arc<Inner>, command: &Reserve) -> Self {
        Self {
            inner: Arc::clone(inner),
            account: command.account.clone(),
            reservation: command.id.into(),
            delivered: false,
        }
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        if self.delivered {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let release = Release {
            id: self.inner.post.command_id(),
            account: self.account.clone(),
            reservation: self.reservation,
            reason: "the caller went away before the answer".to_owned(),
            actor: Actor::system("gateway"),
        };
        let inner = Arc::clone(&self.inner);
        // its end is bounded; if it fails, the reservation ends by its deadline
        runtime.spawn(async move {
            let call = inner.call::<_, Resolution>(Verb::Release, release, Duration::ZERO);
            match timeout(GIVE_BACK_MAX, call).await {
                // nothing was taken, or it has ended
                Ok(Ok(_) | Err(CommandError::UnknownReservation { .. })) => {}
                other => debug!(?other, "a reserve without a caller was not given back"),
            }
        });
    }
}
