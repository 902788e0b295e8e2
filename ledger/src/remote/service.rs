//! The side of the writer: takes requests for one partition and answers every one of them, bounded
//! in number.
//!
//! A `release` of a reservation whose `reserve` is still being worked on ends that reserve first, every
//! try of it, also one that comes later: it is how a caller that went away gives back what it was not
//! told of yet.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_schemas::{
    command::{
        Admin, CommandError, Exchange, Grant, Read, Release, Reserve, ReserveOutcome, Resize,
        Resolution,
    },
    ids::{AccountId, Actor, CommandId},
    names::Names,
    position::{Partition, Position},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    REQUEST_BYTES_MAX, RequestFrame, SettleBody, Verb, WITHIN_MAX, decode, encode_reply,
    post::{IncomingRequest, Listens, Post, Requests, SendError},
    reserving::{Reserving, Try},
    twice::{self, Lasting},
};
use crate::{
    api::{Answer, Ledger},
    shares::Shares,
    store::StoreError,
};

/// Requests worked on at once; more are turned away as unavailable.
pub const IN_FLIGHT_MAX: usize = 8192;
/// Reserves of one account among them, waiting ones included; a further one is turned away, so that one
/// account does not take the writer away from the others.
const IN_FLIGHT_SHARE_MAX: usize = IN_FLIGHT_MAX / 2;
/// How long a stop waits for requests being worked on.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);
/// What a reserve is answered that was given up: nobody listens any more.
const CALLER_GONE: &str = "the caller went away";

/// Serves one partition's ledger to other processes until stopped or dropped.
#[derive(Debug)]
pub struct LedgerService {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl LedgerService {
    /// Begins to serve `ledger`, which must be the writer of `partition`.
    pub async fn start<P: Post + Clone>(
        post: &P,
        names: &Names,
        partition: Partition,
        ledger: Arc<dyn Ledger>,
    ) -> Result<Self, StoreError> {
        let subject = names.ledger_subject(partition, "*");
        let requests = post.receive(subject).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let desk = Arc::new(Desk {
            post: Arc::new(post.clone()),
            ledger,
            slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            shares: Shares::new(IN_FLIGHT_SHARE_MAX),
            reserving: Reserving::default(),
            since: OnceCell::new(),
        });
        tasks.spawn(take_in(desk, requests, stop.clone(), tasks.clone()));
        Ok(Self { stop, tasks })
    }

    /// Takes in no more, so that callers turn elsewhere at once, and waits for what is being worked
    /// on, at most [`DRAIN_MAX`].
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
            warn!("some requests to the ledger were left without an answer");
        }
    }
}

impl Drop for LedgerService {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn take_in(
    desk: Arc<Desk>,
    mut requests: Box<dyn Requests>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            message = requests.next() => message,
        };
        let Some(message) = message else { break };
        match Arc::clone(&desk.slots).try_acquire_owned() {
            Ok(slot) => {
                // begun here, so that the writer hears of it a task switch earlier
                let mut answer = Arc::clone(&desk).answer(message, slot).boxed();
                if futures::poll!(&mut answer).is_pending() {
                    drop(tasks.spawn(answer));
                }
            }
            Err(_) => {
                let busy = CommandError::unavailable("the writer has too many requests at once");
                desk.reply(message.reply_to.as_deref(), encode_reply::<()>(Err(busy)))
                    .await;
            }
        }
    }
    requests.close().await;
}

/// What there is to do once a request is answered.
#[derive(Default)]
struct After<'a> {
    /// Where a further reply comes from, for a settle that has two.
    second: Option<Lasting>,
    granted: Option<Granted<'a>>,
}

/// A grant that is to be told.
struct Granted<'a> {
    one: Try<'a>,
    account: AccountId,
    grant: Grant,
}

/// What all requests share.
struct Desk {
    post: Arc<dyn Post>,
    ledger: Arc<dyn Ledger>,
    slots: Arc<Semaphore>,
    shares: Arc<Shares>,
    reserving: Reserving,
    since: OnceCell<Position>,
}

impl Desk {
    async fn answer(self: Arc<Self>, message: IncomingRequest, slot: OwnedSemaphorePermit) {
        let mut after = After::default();
        let first = self.work(&message, &mut after).await;
        if let Some(granted) = after.granted {
            // who is told costs nobody else a place
            drop(slot);
            return self.tell(granted, message.reply_to.as_deref(), first).await;
        }
        self.reply(message.reply_to.as_deref(), first).await;
        if let Some(lasting) = after.second {
            let second = twice::second(lasting).await;
            self.reply(message.reply_to.as_deref(), second).await;
        }
    }

    async fn reply(&self, to: Option<&str>, reply: Vec<u8>) {
        let Some(to) = to else {
            debug!("a request to the ledger named nobody to answer");
            return;
        };
        let size = reply.len();
        let failure = match self.post.reply(to, reply.into()).await {
            Ok(()) => return,
            Err(SendError::NotSent(detail)) => {
                return debug!(
                    detail,
                    "a reply of the ledger was not sent: the caller asks again"
                );
            }
            Err(SendError::TooLarge(detail)) => too_large(size, &detail),
        };
        // asked again it is as large again: the caller is told, instead of waiting for nothing
        warn!(%failure, "an answer of the ledger is too large to be sent");
        if let Err(error) = self
            .post
            .reply(to, encode_reply::<()>(Err(failure)).into())
            .await
        {
            debug!(%error, "a reply of the ledger was not sent: the caller asks again");
        }
    }

    /// Tells a grant, and takes it back where nobody is there any more to hear of it: whoever asked has died,
    /// and nothing was begun on it.
    async fn tell(&self, granted: Granted<'_>, to: Option<&str>, reply: Vec<u8>) {
        let listens = match to {
            Some(to) => self.post.reply_to_listener(to, reply.into()).await,
            None => Listens::Perhaps,
        };
        let Granted {
            one,
            account,
            grant,
        } = granted;
        // one that was decided before this host served may have been told by another
        let is_own = self
            .since
            .get()
            .is_some_and(|since| grant.position > *since);
        if !one.told(listens) || !is_own {
            return;
        }
        let reservation = grant.reservation;
        info!(%account, %reservation, "a hold is taken back: who asked for it is gone");
        let release = Release {
            id: self.post.command_id(),
            account,
            reservation,
            reason: "nobody was there to hear of the grant".to_owned(),
            actor: Actor::system("gateway"),
        };
        if let Err(error) = self.release(release).await {
            warn!(%reservation, %error, "a hold of nobody is not taken back: it ends by its deadline");
        }
    }

    /// Where the partition stood when the first reserve came here. What is granted beyond was not told by
    /// any other host; nothing is known where that cannot be read. Any account tells it.
    async fn since(&self, account: &AccountId) {
        let query = Read {
            account: account.clone(),
            key: None,
            run: None,
            reservation: None,
        };
        let read = self.since.get_or_try_init(async || {
            let standing = self.ledger.read(query).await?;
            Ok::<_, CommandError>(standing.position)
        });
        if let Err(error) = read.await {
            debug!(%error, "where the partition stands is not known yet");
        }
    }

    /// The reply to a request, and what there is to do once it is sent.
    async fn work<'a>(&'a self, message: &IncomingRequest, after: &mut After<'a>) -> Vec<u8> {
        let verb = message.subject.rsplit('.').next().unwrap_or_default();
        let Some(verb) = Verb::named(verb) else {
            let detail = format!(
                "unknown verb {:?}",
                verb.chars().take(40).collect::<String>()
            );
            return encode_reply::<()>(Err(CommandError::invalid(detail)));
        };
        let bytes = &message.payload;
        let ledger = &self.ledger;
        match verb {
            Verb::Reserve => {
                answered(bytes, |command| self.reserve(command, &mut after.granted)).await
            }
            Verb::Exchange => {
                answered(bytes, |command| self.exchange(command, &mut after.granted)).await
            }
            Verb::Release => answered(bytes, |command| self.release(command)).await,
            Verb::Resize => answered(bytes, |command: Resize| ledger.resize(command)).await,
            Verb::Read => answered(bytes, |query: Read| ledger.read(query)).await,
            Verb::Admin => answered(bytes, |command: Admin| ledger.admin(command)).await,
            Verb::Settle => {
                answered(bytes, |body: SettleBody| {
                    twice::settle_here(&**ledger, body, &mut after.second)
                })
                .await
            }
        }
    }

    async fn reserve<'a>(
        &'a self,
        command: Reserve,
        granted: &mut Option<Granted<'a>>,
    ) -> Answer<ReserveOutcome> {
        let (id, account) = (command.id, command.account.clone());
        let decide = || self.ledger.reserve(command);
        self.grant((id, account), decide, granted).await
    }

    async fn exchange<'a>(
        &'a self,
        command: Exchange,
        granted: &mut Option<Granted<'a>>,
    ) -> Answer<ReserveOutcome> {
        let (id, account) = (command.reserve.id, command.reserve.account.clone());
        let decide = || self.ledger.exchange(command);
        self.grant((id, account), decide, granted).await
    }

    /// Has a hold decided for a caller who may go away meanwhile.
    async fn grant<'a>(
        &'a self,
        (id, account): (CommandId, AccountId),
        decide: impl FnOnce() -> BoxFuture<'a, Answer<ReserveOutcome>>,
        granted: &mut Option<Granted<'a>>,
    ) -> Answer<ReserveOutcome> {
        let Some(_place) = self.shares.take(&account) else {
            let detail = format!(
                "{IN_FLIGHT_SHARE_MAX} reserves of account {account} are with the writer already: send fewer \
                 at once"
            );
            return Err(CommandError::unavailable(detail));
        };
        let Some(one) = self.reserving.begin(id.into()) else {
            return Err(CommandError::unavailable(CALLER_GONE));
        };
        self.since(&account).await;
        let answer = tokio::select! {
            biased;
            () = one.given_up() => Err(CommandError::unavailable(CALLER_GONE)),
            answer = decide() => answer,
        };
        if let Ok(ReserveOutcome::Reserved(grant)) = &answer {
            let grant = grant.clone();
            *granted = Some(Granted {
                one,
                account,
                grant,
            });
        }
        answer
    }

    async fn release(&self, command: Release) -> Answer<Resolution> {
        let reservation = command.reservation;
        // before the writer hears of it: a try that comes meanwhile would be taken up after the answer
        self.reserving.give_up(reservation);
        let answer = self.ledger.release(command).await;
        if let Ok(_) | Err(CommandError::AlreadyResolved { .. }) = &answer {
            self.reserving.ended(reservation);
        }
        answer
    }
}

fn too_large(size: usize, detail: &str) -> CommandError {
    CommandError::invalid(format!(
        "the answer has {size} bytes, more than the NATS server lets through ({detail}): ask for less, as for \
         one key at a time, or raise max_payload at the server"
    ))
}

async fn answered<T, R, F>(bytes: &Bytes, call: impl FnOnce(T) -> F) -> Vec<u8>
where
    T: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Answer<R>>,
{
    if bytes.len() > REQUEST_BYTES_MAX {
        let detail = format!("{} bytes, at most {REQUEST_BYTES_MAX}", bytes.len());
        return encode_reply::<R>(Err(CommandError::invalid(detail)));
    }
    let request: RequestFrame<T> = match decode("ledger request", bytes) {
        Ok(request) => request,
        Err(error) => return encode_reply::<R>(Err(CommandError::invalid(error.to_string()))),
    };
    let within = Duration::from_millis(request.within_ms).min(WITHIN_MAX);
    // dropping the call after the caller's time gives back what it cannot be told of
    let answer = timeout(within, call(request.body)).await;
    encode_reply(answer.unwrap_or_else(|_| {
        Err(CommandError::unavailable(
            "not answered within the caller's time",
        ))
    }))
}
