//! The way to one partition's writer in this process: what its callers hand over, and how they wait.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use seatbelt_schemas::{
    command::{CommandError, ReserveOutcome},
    ids::AccountId,
    position::Partition,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{CHANNEL_SHARE_MAX, PartitionStatus, skew::Skew};
use crate::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Exchange, Ledger, Read, Release, Reserve, Resize,
        Resolution, Settle, Standing, Taken,
    },
    shares::{Share, Shares},
    writer::{Caller, Reply, Request},
};

#[derive(Debug)]
pub(super) enum Message {
    /// In one piece: it passes through many hands on its way.
    Command(Box<Handover>),
    /// Someone has left: see [`Handed::left`].
    Left,
}

/// A command on its way to the writer.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) request: Request,
    pub(super) asker: Asker,
    /// Its place in the channel, for a reserve.
    pub(super) place: Option<Share>,
}

/// Someone in this process who waits for an answer.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) sender: oneshot::Sender<Answer<Reply>>,
    /// Whose hold it would be, for a reserve.
    pub(super) account: Option<AccountId>,
    /// Where to say that a settle lasts, for one that is answered when it is taken too.
    pub(super) lasting: Option<oneshot::Sender<Answer<Reply>>>,
}

impl Caller for Asker {
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn second(&mut self) -> Option<Self> {
        let sender = self.lasting.take()?;
        Some(Self {
            sender,
            account: None,
            lasting: None,
        })
    }
}

/// What a partition's handles share with its task, beside the channel.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) shares: Arc<Shares>,
    /// Accounts of which a caller has left. Here and not in the channel, which may be full.
    pub(super) left: Mutex<BTreeSet<AccountId>>,
    /// How far this host's clock was from the server's when it was last looked.
    pub(super) skew: Mutex<Option<Skew>>,
}

impl Handed {
    pub(super) fn left(&self) -> MutexGuard<'_, BTreeSet<AccountId>> {
        // no code panics while it holds the lock half way through a change
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn skew(&self) -> MutexGuard<'_, Option<Skew>> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to one partition's writer in this process.
#[derive(Debug, Clone)]
pub struct PartitionHandle {
    pub(super) partition: Partition,
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) handed: Arc<Handed>,
    pub(super) status: watch::Receiver<PartitionStatus>,
}

impl PartitionHandle {
    /// Whether both lead to one writer.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.sender.same_channel(&other.sender)
    }

    /// How the partition stands.
    pub fn status(&self) -> PartitionStatus {
        self.status.borrow().clone()
    }

    /// How far this host's clock is ahead of the server's, as last looked, ms; none before that, or where
    /// the journal is kept in this process.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        self.handed.skew().map(|skew| skew.likely_ms())
    }

    /// Waits until the partition serves; its reason where it has stopped.
    pub async fn ready(&self) -> Result<(), CommandError> {
        let mut status = self.status.clone();
        let reached = status
            .wait_for(|status| *status != PartitionStatus::Recovering)
            .await;
        match reached.as_deref() {
            Ok(PartitionStatus::Serving) => Ok(()),
            Ok(PartitionStatus::Stopped(reason)) => Err(self.unavailable(reason)),
            Ok(PartitionStatus::Recovering) | Err(_) => {
                Err(self.unavailable("its writer has ended"))
            }
        }
    }

    /// Waits until the writer is over.
    pub async fn ended(&self) -> String {
        let mut status = self.status.clone();
        let reached = status
            .wait_for(|status| matches!(status, PartitionStatus::Stopped(_)))
            .await;
        match reached.as_deref() {
            Ok(PartitionStatus::Stopped(reason)) => reason.clone(),
            Ok(_) | Err(_) => "its writer has ended".to_owned(),
        }
    }

    fn unavailable(&self, reason: &str) -> CommandError {
        CommandError::unavailable(format!("partition {}: {reason}", self.partition))
    }

    /// Sends one request and waits for its answer.
    pub fn call(&self, request: Request) -> impl Future<Output = Answer<Reply>> + Send + '_ {
        self.call_twice(request, None)
    }

    /// The same; `lasting` hears again, see [`Caller::second`]. What is sent is made before anything waits, so that no
    /// future has the request in it.
    fn call_twice(
        &self,
        request: Request,
        lasting: Option<oneshot::Sender<Answer<Reply>>>,
    ) -> impl Future<Output = Answer<Reply>> + Send + '_ {
        let (sender, receiver) = oneshot::channel();
        let command = self.command(request, sender, lasting);
        async move {
            match self.sender.send(Message::Command(command?)).await {
                Ok(()) => receiver.await.unwrap_or_else(|_| Err(self.stopped())),
                Err(_) => Err(self.stopped()),
            }
        }
    }

    fn command(
        &self,
        request: Request,
        sender: oneshot::Sender<Answer<Reply>>,
        lasting: Option<oneshot::Sender<Answer<Reply>>>,
    ) -> Result<Box<Handover>, CommandError> {
        let account = match &request {
            Request::Reserve(command) => Some(command.account.clone()),
            Request::Exchange(command) => Some(command.reserve.account.clone()),
            _ => None,
        };
        let place = match &account {
            Some(account) => Some(self.place(account)?),
            None => None,
        };
        Ok(Box::new(Handover {
            request,
            asker: Asker {
                sender,
                account,
                lasting,
            },
            place,
        }))
    }

    fn place(&self, account: &AccountId) -> Result<Share, CommandError> {
        self.handed.shares.take(account).ok_or_else(|| {
            let most = CHANNEL_SHARE_MAX;
            self.unavailable(&format!(
                "{most} reserves of account {account} wait to be decided already: send fewer at once"
            ))
        })
    }

    fn stopped(&self) -> CommandError {
        match &*self.status.borrow() {
            PartitionStatus::Stopped(reason) => self.unavailable(reason),
            PartitionStatus::Recovering | PartitionStatus::Serving => {
                self.unavailable("its writer ended before it could answer")
            }
        }
    }
}

/// A repeated id may belong to a command of another verb: its outcome answers nothing here.
fn mismatched() -> CommandError {
    CommandError::invalid("the command id was used for another verb before: use a new id")
}

/// Tells the writer when a caller stops waiting, so that whoever waits behind it is looked at.
struct Leaving<'a> {
    handle: &'a PartitionHandle,
    account: Option<AccountId>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            self.handle.handed.left().insert(account);
            // only wakes the task: where the channel is full, it is about to look by itself
            let _ = self.handle.sender.try_send(Message::Left);
        }
    }
}

/// What a reply of the right kind holds.
macro_rules! expect {
    ($reply:expr, $kind:ident) => {
        match $reply? {
            Reply::$kind(outcome) => Ok(outcome),
            _ => Err(mismatched()),
        }
    };
}

impl Ledger for PartitionHandle {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let account = command.account.clone();
        let call = self.call(Request::Reserve(command));
        Box::pin(async move {
            let mut leaving = Leaving {
                handle: self,
                account: Some(account),
            };
            let reply = call.await;
            leaving.account = None;
            expect!(reply, Reserve)
        })
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        let call = self.call(Request::Resize(command));
        Box::pin(async move { expect!(call.await, Resolution) })
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        let call = self.call(Request::Settle(command, ack));
        Box::pin(async move { expect!(call.await, Resolution) })
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        let (sender, second) = oneshot::channel();
        let call = self.call_twice(Request::Settle(command, Ack::Taken), Some(sender));
        Box::pin(async move {
            let resolution = expect!(call.await, Resolution)?;
            let handle = self.clone();
            let lasting = async move {
                let reply = second.await.unwrap_or_else(|_| Err(handle.stopped()));
                expect!(reply, Resolution)
            };
            Ok(Taken {
                resolution,
                lasting: Box::pin(lasting),
            })
        })
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        let call = self.call(Request::Release(command));
        Box::pin(async move { expect!(call.await, Resolution) })
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let call = self.call(Request::Exchange(command));
        Box::pin(async move { expect!(call.await, Reserve) })
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        let call = self.call(Request::Read(query));
        Box::pin(async move { expect!(call.await, Standing) })
    }

    /// A price goes into this partition's book only.
    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        let call = self.call(Request::Admin(command));
        Box::pin(async move { expect!(call.await, Admin) })
    }
}
