//! Runs the writers of partitions in this process: one task each, fed by a bounded channel.
//!
//! A task recovers its partition from the journal, takes it over, and serves it until it loses its
//! place or is told to stop. It never decides anything itself. A partition whose journal cannot be
//! read or does not chain stops alone, with its reason; the others go on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use seatbelt_schemas::{
    command::{CommandError, ReserveOutcome},
    commit::COMMIT_EVENTS_MAX,
    ids::{AccountId, LedgerId},
    position::{Partition, Partitions},
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{error, info, warn};

use crate::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Ledger, Read, Release, Reserve, Resize, Resolution,
        Settle, Standing,
    },
    journal::{AppendError, Journal, Sequence},
    lookup,
    outcomes::{HOT_MAX, ahead::Unread},
    recovery::{Base, RecoveryError, Source},
    shares::{Place, Shares},
    store::SnapshotStore,
    writer::{
        Caller, Next, Reply, Request, StepDown, Writer, WriterConfig,
        cold::{Fetch, Fetched},
    },
};

/// Commands that wait in a partition's channel; beyond it callers wait to hand theirs over.
pub const CHANNEL_MAX: usize = 4096;
/// Reserves of one account that wait in it or to get into it; a further one is turned away at once, as
/// it would only make the other accounts wait. What ends a hold is never turned away.
pub const CHANNEL_SHARE_MAX: usize = CHANNEL_MAX / 2;
/// Commands taken in, and for how long, before it is looked what else is due: an append, a fetch, a
/// deadline. Time bounds what one expensive command after the other can keep from the rest.
const BURST_MAX: usize = 512;
const BURST_TIME_MAX: Duration = Duration::from_millis(2);
/// Accounts and older commands that are fetched at once.
const FETCHES_MAX: usize = 64;
/// How often a fetch is tried, and the pause in between.
const FETCH_TRIES_MAX: u32 = 8;
const FETCH_PAUSE: Duration = Duration::from_millis(250);
/// How often it is looked whether accounts should leave memory.
const CLEAR_EVERY: Duration = Duration::from_secs(1);
/// Longest sleep before the clock is looked at again: it may have been set meanwhile.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// First and longest pause between tries of an append whose outcome is not known.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// How often in a row a journal must be found shorter than it was before that is believed: a server
/// that has just become its leader may not have taken in all that was acknowledged.
const SHORT_READS: u32 = 5;
/// How long a stopping writer waits for its last commits.
const FLUSH_MAX: Duration = Duration::from_secs(10);

pub mod clock;
pub mod skew;
mod timepiece;

use clock::HostClock;
pub use clock::now_ms;
use skew::{Look, Skew};
use timepiece::{Looked, Timepiece};

/// What all partitions of a process share.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// How many partitions there are.
    pub partitions: Partitions,
    /// The ledger's id.
    pub ledger: LedgerId,
    /// This process, by a name for people.
    pub writer: String,
    /// How long after its deadline a reservation is left alone, ms.
    pub expiry_grace_ms: u64,
    /// How many accounts of a partition stay in memory, where there are snapshots.
    pub accounts_max: usize,
    /// Where it reads the time.
    pub clock: HostClock,
}

/// How a partition stands in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionStatus {
    /// Its journal is being read.
    Recovering,
    /// Its writer serves.
    Serving,
    /// Its writer is over; the reason, for people.
    Stopped(String),
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is a command"
)]
enum Message {
    Command(Request, Waiting, Option<Place>),
    /// Someone has left: see [`Handed::left`].
    Left,
}

/// Someone in this process who waits for an answer.
#[derive(Debug)]
struct Waiting {
    sender: oneshot::Sender<Answer<Reply>>,
    /// Whose hold it would be, for a reserve.
    account: Option<AccountId>,
}

impl Caller for Waiting {
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

/// What a partition's handles share with its task, beside the channel.
#[derive(Debug)]
struct Handed {
    shares: Arc<Shares>,
    /// Accounts of which a caller has left. Here and not in the channel, which may be full.
    left: Mutex<BTreeSet<AccountId>>,
    /// How far this host's clock was from the server's when it was last looked.
    skew: Mutex<Option<Skew>>,
}

impl Handed {
    fn left(&self) -> MutexGuard<'_, BTreeSet<AccountId>> {
        // no code panics while it holds the lock half way through a change
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn skew(&self) -> MutexGuard<'_, Option<Skew>> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to one partition's writer in this process.
#[derive(Debug, Clone)]
pub struct PartitionHandle {
    partition: Partition,
    sender: mpsc::Sender<Message>,
    handed: Arc<Handed>,
    status: watch::Receiver<PartitionStatus>,
}

/// One partition's writer in this process, and the way to it.
#[derive(Debug)]
pub struct HostedPartition {
    handle: PartitionHandle,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl HostedPartition {
    /// Starts a writer over the journal of `partition`, from its snapshots where there are any.
    pub fn start<J: Journal>(
        config: &HostConfig,
        partition: Partition,
        journal: J,
        snapshots: Option<Arc<dyn SnapshotStore>>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(CHANNEL_MAX);
        let (report, status) = watch::channel(PartitionStatus::Recovering);
        let handed = Arc::new(Handed {
            shares: Shares::new(CHANNEL_SHARE_MAX),
            left: Mutex::default(),
            skew: Mutex::default(),
        });
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let time = Timepiece::new(config.clock.clone());
        let config = WriterConfig {
            partition,
            partitions: config.partitions,
            ledger: config.ledger.clone(),
            writer: config.writer.clone(),
            expiry_grace_ms: config.expiry_grace_ms,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            accounts_max: config.accounts_max,
            settle_linger_ms: WriterConfig::SETTLE_LINGER_MS_DEFAULT,
            commit_events_max: COMMIT_EVENTS_MAX,
        };
        let source = Source {
            journal: Arc::new(journal),
            snapshots,
            partition,
        };
        let task = Task {
            config,
            source,
            base: Base::default(),
            fetches: FuturesUnordered::new(),
            clear_at: time.clock().instant(),
            time,
            handed: Arc::clone(&handed),
            receiver,
            report,
            shutdown: shutdown.clone(),
        };
        tasks.spawn(task.run());
        Self {
            handle: PartitionHandle {
                partition,
                sender,
                handed,
                status,
            },
            shutdown,
            tasks,
        }
    }

    /// The way to the writer.
    pub fn handle(&self) -> &PartitionHandle {
        &self.handle
    }

    /// Stops taking commands, makes what was decided durable, and ends.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The writers of a ledger of which this process hosts every partition.
#[derive(Debug)]
pub struct LedgerHost {
    partitions: Partitions,
    hosted: Vec<HostedPartition>,
}

impl LedgerHost {
    /// Starts a writer over each journal; `journals` are those of partition 0, 1, 2, ... in order.
    pub fn start<J: Journal>(config: &HostConfig, journals: Vec<J>) -> Arc<Self> {
        Self::start_from(config, journals, None)
    }

    /// The same, from the snapshots of the partitions where there are any.
    pub fn start_from<J: Journal>(
        config: &HostConfig,
        journals: Vec<J>,
        snapshots: Option<&Arc<dyn SnapshotStore>>,
    ) -> Arc<Self> {
        let partitions = config.partitions;
        assert_eq!(
            journals.len(),
            usize::from(u8::from(partitions)),
            "one journal per partition"
        );
        let hosted = partitions.iter().zip(journals);
        let hosted = hosted.map(|(partition, journal)| {
            HostedPartition::start(config, partition, journal, snapshots.cloned())
        });
        Arc::new(Self {
            partitions,
            hosted: hosted.collect(),
        })
    }

    /// The handle of one partition.
    pub fn partition(&self, partition: Partition) -> &PartitionHandle {
        self.hosted[usize::from(partition.0)].handle()
    }

    /// All handles, by partition.
    pub fn handles(&self) -> impl Iterator<Item = &PartitionHandle> {
        self.hosted.iter().map(HostedPartition::handle)
    }

    /// Waits until every partition serves; the first reason why one does not otherwise.
    pub async fn ready(&self) -> Result<(), CommandError> {
        for handle in self.handles() {
            handle.ready().await?;
        }
        Ok(())
    }

    /// Stops taking commands, makes what was decided durable, and ends.
    pub async fn stop(&self) {
        futures::future::join_all(self.hosted.iter().map(HostedPartition::stop)).await;
    }

    fn of(&self, account: &AccountId) -> &PartitionHandle {
        self.partition(self.partitions.of(account))
    }
}

impl PartitionHandle {
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
    pub async fn call(&self, request: Request) -> Answer<Reply> {
        let (sender, receiver) = oneshot::channel();
        let account = match &request {
            Request::Reserve(command) => Some(command.account.clone()),
            _ => None,
        };
        let place = match &account {
            Some(account) => Some(self.place(account)?),
            None => None,
        };
        let message = Message::Command(request, Waiting { sender, account }, place);
        let sent = self.sender.send(message).await;
        match sent {
            Ok(()) => receiver.await.unwrap_or_else(|_| Err(self.stopped())),
            Err(_) => Err(self.stopped()),
        }
    }

    fn place(&self, account: &AccountId) -> Result<Place, CommandError> {
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
        Box::pin(async move {
            let mut leaving = Leaving {
                handle: self,
                account: Some(command.account.clone()),
            };
            let reply = self.call(Request::Reserve(command)).await;
            leaving.account = None;
            expect!(reply, Reserve)
        })
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        Box::pin(async move { expect!(self.call(Request::Resize(command)).await, Resolution) })
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        Box::pin(async move { expect!(self.call(Request::Settle(command, ack)).await, Resolution) })
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        Box::pin(async move { expect!(self.call(Request::Release(command)).await, Resolution) })
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        Box::pin(async move { expect!(self.call(Request::Read(query)).await, Standing) })
    }

    /// A price goes into this partition's book only.
    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        Box::pin(async move { expect!(self.call(Request::Admin(command)).await, Admin) })
    }
}

impl Ledger for LedgerHost {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        self.of(&command.account).reserve(command)
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).resize(command)
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).settle(command, ack)
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).release(command)
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.of(&query.account).read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        Box::pin(async move {
            if !command.account.is_system() {
                return self.of(&command.account).admin(command).await;
            }
            // the price book is kept in every partition: each decides with its own
            let mut last = AdminOutcome { position: None };
            for handle in self.handles() {
                last = handle.admin(command.clone()).await?;
            }
            Ok(last)
        })
    }
}

/// The task of one partition.
struct Task<J> {
    config: WriterConfig,
    source: Source<J>,
    /// What accounts that are not in memory are loaded from.
    base: Base,
    fetches: FuturesUnordered<BoxFuture<'static, Brought>>,
    /// When memory is looked at next.
    clear_at: tokio::time::Instant,
    time: Timepiece,
    handed: Arc<Handed>,
    receiver: mpsc::Receiver<Message>,
    report: watch::Sender<PartitionStatus>,
    shutdown: CancellationToken,
}

/// How serving ended.
enum End {
    Shutdown,
    StepDown(StepDown),
}

impl<J: Journal> Task<J> {
    async fn run(mut self) {
        let partition = self.config.partition;
        loop {
            let reason = match self.serve().await {
                Ok(End::Shutdown) => break self.stopped("it was told to stop".to_owned()),
                Ok(End::StepDown(reason)) => reason,
                Err(failure) => {
                    let reason = describe(&failure);
                    error!(%partition, reason, "partition stopped");
                    break self.stopped(reason);
                }
            };
            let overtaken = reason == StepDown::Fenced && self.status_is_recovering();
            warn!(%partition, %reason, overtaken, "writer stepped down");
            match reason {
                // another writer was quicker to take over: read what it wrote and try again
                StepDown::Fenced if overtaken => {}
                StepDown::Fenced => break self.stopped(reason.to_string()),
                // what was acknowledged is gone: only an operator goes on from there
                StepDown::Truncated => break self.stopped(reason.to_string()),
                // another host may lead meanwhile
                StepDown::Clock(_) => break self.stopped(reason.to_string()),
                StepDown::Refused(_) => {
                    self.turn_away(&reason.to_string()).await;
                }
            }
        }
    }

    fn stopped(&self, reason: String) {
        self.report.send_replace(PartitionStatus::Stopped(reason));
    }

    /// Answers everyone with the reason for a while, before the journal is tried again.
    async fn turn_away(&mut self, reason: &str) {
        self.stopped(reason.to_owned());
        let clock = self.clock();
        let pause = clock.sleep(RETRY_LONGEST);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = self.shutdown.cancelled() => break,
                Some(message) = self.receiver.recv() => {
                    if let Message::Command(_, waiting, _) = message {
                        let _ = waiting.sender.send(Err(CommandError::unavailable(reason)));
                    }
                }
            }
        }
        self.report.send_replace(PartitionStatus::Recovering);
    }

    async fn serve(&mut self) -> Result<End, RecoveryError> {
        // before anything is written, and before long reading
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = self.compare_clocks() => {}
            () = shutdown.cancelled() => return Ok(End::Shutdown),
        }
        if let Some(off) = self.time.off() {
            return Ok(End::StepDown(StepDown::Clock(off)));
        }
        let (resumed, base) = tokio::select! {
            recovered = self.source.recover() => recovered?,
            () = self.shutdown.cancelled() => return Ok(End::Shutdown),
        };
        let (tail, position) = (resumed.tail, resumed.state.position());
        info!(partition = %self.config.partition, sequence = %tail, %position, "journal read");
        if let Some(ahead) = self.time.behind(resumed.state.at_ms()) {
            warn!(partition = %self.config.partition, ?ahead, "the journal's time is ahead of the server's: windows stand still until then");
        }
        let mut writer = Writer::start(self.config.clone(), resumed, self.time.ms());
        self.base = base;
        let end = self.work(&mut writer).await;
        self.fetches.clear();
        self.deliver(&mut writer);
        Ok(end)
    }

    /// Looks at the server's clock until it is known what that shows.
    async fn compare_clocks(&mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let looked = look(self.source.clone(), self.clock()).await;
            self.looked(&looked);
            if !matches!(looked, Looked::Failed) {
                return;
            }
            self.clock().sleep(pause).await;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    fn looked(&mut self, looked: &Looked) {
        self.time.looked(looked);
        *self.handed.skew() = self.time.skew();
    }

    async fn work(&mut self, writer: &mut Writer<Waiting>) -> End {
        let mut stopping = false;
        loop {
            if let Some(off) = self.time.off() {
                writer.step_down(StepDown::Clock(off));
                return End::StepDown(StepDown::Clock(off));
            }
            self.begin_fetches(writer);
            self.tend(writer);
            if self.shutdown.is_cancelled() && !stopping {
                self.receiver.close();
                stopping = true;
            }
            let Some((expected, payload)) = writer.in_flight().or_else(|| writer.take_append())
            else {
                if stopping && self.receiver.is_empty() && writer.parked() == 0 {
                    let now_ms = self.now_ms(writer);
                    writer.hurry(now_ms);
                    if writer.pending() == 0 {
                        return End::Shutdown;
                    }
                    continue;
                }
                self.idle(writer, &mut stopping).await;
                continue;
            };
            if let Some(end) = self.append(writer, expected, payload, &mut stopping).await {
                return end;
            }
        }
    }

    /// Begins to fetch what the writer wants, up to [`FETCHES_MAX`] at once, and now and then looks
    /// which accounts could leave memory.
    fn begin_fetches(&mut self, writer: &mut Writer<Waiting>) {
        while self.fetches.len() < FETCHES_MAX
            && let Some(fetch) = writer.take_fetch()
        {
            let (source, base) = (self.source.clone(), self.base.clone());
            self.fetches
                .push(fetched(source, base, fetch, writer.tail(), self.clock()).boxed());
        }
        if self.time.take_look() {
            let looked = look(self.source.clone(), self.clock());
            self.fetches.push(looked.map(Brought::Looked).boxed());
        }
        let now = self.time.clock().instant();
        if now < self.clear_at {
            return;
        }
        self.clear_at = now + CLEAR_EVERY;
        let crowd = writer.crowd();
        if !crowd.is_empty() {
            let (source, base) = (self.source.clone(), self.base.clone());
            let current = async move {
                let current = source.current(crowd, &base).await;
                Brought::Current(current.unwrap_or((base, Vec::new())))
            };
            self.fetches.push(current.boxed());
        }
    }

    fn bring(&mut self, writer: &mut Writer<Waiting>, brought: Brought) {
        match brought {
            Brought::Fetched(fetched) => {
                let now_ms = self.now_ms(writer);
                writer.fetched(now_ms, fetched);
            }
            Brought::Looked(looked) => self.looked(&looked),
            Brought::Current((base, accounts)) => {
                // whatever is not in memory has no event after the new base either; looks may overlap
                self.base = self.base.clone().later(base);
                self.base.leave(&accounts);
                writer.let_go(&accounts);
                if !accounts.is_empty() {
                    self.clear_at = self.time.clock().instant();
                }
            }
        }
    }

    /// Nothing to append: waits for a command, for time to act, or for the end. What is due is done by
    /// the caller's loop before each wait.
    async fn idle(&mut self, writer: &mut Writer<Waiting>, stopping: &mut bool) {
        let (clock, left) = (self.clock(), self.until_due(writer));
        let wake = sleep(&clock, left);
        tokio::select! {
            biased;
            Some(brought) = self.fetches.next() => self.bring(writer, brought),
            // a channel that is closed and empty has no more to say, but what is fetched may be awaited
            message = self.receiver.recv(), if !*stopping || !self.receiver.is_empty() => match message {
                Some(message) => self.take_burst(writer, message),
                None => *stopping = true,
            },
            () = wake => {}
            // the caller's loop closes the channel and takes what is left in it
            () = self.shutdown.cancelled(), if !*stopping => {}
        }
        self.deliver(writer);
    }

    /// Appends one commit to its definite end, deciding further commands meanwhile.
    async fn append(
        &mut self,
        writer: &mut Writer<Waiting>,
        expected: Sequence,
        payload: bytes::Bytes,
        stopping: &mut bool,
    ) -> Option<End> {
        let mut pause = RETRY_FIRST;
        let clock = self.clock();
        let give_up = clock.instant() + FLUSH_MAX;
        let mut short = 0;
        loop {
            let outcome = self.appending(writer, expected, payload.clone()).await;
            self.deliver(writer);
            let mut next = writer.appended(outcome);
            if let Next::ReadBack(sequence) = next {
                next = self.read_back(writer, sequence, &mut short).await;
            }
            match next {
                Next::Continue => {
                    if self.status_is_recovering() {
                        self.report.send_replace(PartitionStatus::Serving);
                    }
                    self.deliver(writer);
                    return None;
                }
                Next::StepDown(reason) => return Some(End::StepDown(reason)),
                Next::Retry | Next::ReadBack(_) => {}
            }
            if *stopping && clock.instant() > give_up {
                writer.step_down(StepDown::Refused(
                    "the journal did not answer while stopping".to_owned(),
                ));
                return Some(End::Shutdown);
            }
            *stopping = *stopping || self.shutdown.is_cancelled();
            clock.sleep(pause).await;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    fn status_is_recovering(&self) -> bool {
        *self.report.borrow() == PartitionStatus::Recovering
    }

    /// One try of an append, while commands go on being decided.
    async fn appending(
        &mut self,
        writer: &mut Writer<Waiting>,
        expected: Sequence,
        payload: bytes::Bytes,
    ) -> Result<Sequence, AppendError> {
        let journal = Arc::clone(&self.source.journal);
        let append = journal.append(expected, payload);
        tokio::pin!(append);
        let clock = self.clock();
        loop {
            self.begin_fetches(writer);
            let room = writer.pending() < crate::writer::PENDING_EVENTS_MAX / 2;
            if room {
                // before the commands, which may never end
                self.tend(writer);
            }
            let left = self.until_due(writer);
            tokio::select! {
                biased;
                outcome = &mut append => return outcome,
                Some(brought) = self.fetches.next(), if room => {
                    self.bring(writer, brought);
                    self.deliver(writer);
                }
                Some(message) = self.receiver.recv(), if room => {
                    self.take_burst(writer, message);
                    self.deliver(writer);
                }
                () = sleep(&clock, left), if room => {}
            }
        }
    }

    /// How long until time makes something due, as far as is known now.
    fn until_due(&self, writer: &Writer<Waiting>) -> Option<Duration> {
        let due = writer.next_wake_ms().map(|at_ms| {
            let left = Duration::from_millis(at_ms.saturating_sub(self.time.ms()));
            left.min(SLEEP_MAX)
        });
        due.into_iter().chain(self.time.until_look()).min()
    }

    fn clock(&self) -> HostClock {
        self.time.clock().clone()
    }

    /// The time, once the writer knows by how much the clock was set.
    fn now_ms(&mut self, writer: &mut Writer<Waiting>) -> u64 {
        let (now_ms, step_ms) = self.time.read();
        if step_ms != 0 {
            warn!(partition = %self.config.partition, step_ms, "the clock was set");
            writer.clock_was_set(step_ms);
        }
        now_ms
    }

    /// Does what time has made due and what callers left behind, a bounded piece of it at a time.
    fn tend(&mut self, writer: &mut Writer<Waiting>) {
        let now_ms = self.now_ms(writer);
        let left = std::mem::take(&mut *self.handed.left());
        for account in &left {
            writer.caller_left(now_ms, account);
        }
        if writer.next_wake_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            writer.tick(now_ms);
        }
        self.deliver(writer);
    }

    /// Gives out the answers that are due; takes back a hold that nobody is there to receive. Of a reserve
    /// that was sent again, one caller who hears of the hold is enough to keep it, now or earlier.
    fn deliver(&self, writer: &mut Writer<Waiting>) {
        let told = writer.told();
        let answers: Vec<_> = writer.answers().collect();
        let (mut received, mut returned) = (Vec::new(), Vec::new());
        for (Waiting { sender, account }, answer) in answers {
            let grant = match &answer {
                Ok(Reply::Reserve(ReserveOutcome::Reserved(grant))) if grant.position > told => {
                    Some(grant.reservation)
                }
                _ => None,
            };
            match (sender.send(answer), grant, account) {
                (Err(_), Some(reservation), Some(account)) => returned.push((account, reservation)),
                (Ok(()), Some(reservation), _) => received.push(reservation),
                _ => {}
            }
        }
        for (account, reservation) in returned {
            if !received.contains(&reservation) {
                writer.undelivered(self.time.ms(), &account, reservation);
            }
        }
    }

    fn take_burst(&mut self, writer: &mut Writer<Waiting>, first: Message) {
        let until = self.time.clock().instant() + BURST_TIME_MAX;
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(message) = next {
            taken += 1;
            if let Message::Command(request, waiting, place) = message {
                drop(place);
                let now_ms = self.now_ms(writer);
                writer.submit(now_ms, request, waiting);
            }
            let enough = taken >= BURST_MAX || self.time.clock().instant() >= until;
            next = if enough {
                None
            } else {
                self.receiver.try_recv().ok()
            };
        }
    }

    /// What stands where an append belongs that was refused for its place. Nothing may stand there
    /// yet: with copies on several servers an append meets an earlier try of itself that is still being
    /// replicated. Only an end before the place, read again and again, says that the journal shrank.
    async fn read_back(
        &mut self,
        writer: &mut Writer<Waiting>,
        sequence: Sequence,
        short: &mut u32,
    ) -> Next {
        let journal = &self.source.journal;
        match journal.get(sequence).await {
            Ok(Some(found)) => return writer.read_back(Some(&found.payload)),
            Ok(None) => {}
            // the append is tried again and leads back here
            Err(_) => return Next::Retry,
        }
        match journal.end().await {
            Ok(end) if end.next() < sequence => *short += 1,
            Ok(_) => *short = 0,
            Err(_) => {}
        }
        if *short < SHORT_READS {
            return Next::Retry;
        }
        writer.read_back(None)
    }
}

/// What comes back from the journal and the snapshots.
enum Brought {
    Fetched(Fetched),
    /// What the bucket vouches for by now, and the accounts whose snapshots are current.
    Current((Base, Vec<(AccountId, u32)>)),
    /// What the server's clock shows.
    Looked(Looked),
}

/// Looks at the server's clock.
async fn look<J: Journal>(source: Source<J>, clock: HostClock) -> Looked {
    let asked = clock.read();
    let told = source.journal.server_ms().await;
    let heard = clock.read();
    match told {
        Ok(Some(server_ms)) => Looked::At(Look {
            asked,
            heard,
            server_ms,
        }),
        Ok(None) => Looked::NoClock,
        Err(failure) => {
            let failure = describe(&failure);
            warn!(partition = %source.partition, failure, "the server's clock cannot be looked at");
            Looked::Failed
        }
    }
}

/// Fetches one thing; tries for a while, as callers wait for it.
async fn fetched<J: Journal>(
    source: Source<J>,
    base: Base,
    fetch: Fetch,
    end: Sequence,
    clock: HostClock,
) -> Brought {
    let mut detail = String::new();
    for _ in 0..FETCH_TRIES_MAX {
        let tried = match &fetch {
            Fetch::Account(account) => source
                .load(account, &base)
                .await
                .map(|state| Fetched::Account(account.clone(), state))
                .map_err(|error| describe(&error)),
            Fetch::Command(id) => lookup::trace(&*source.journal, *id, end)
                .await
                .map(Fetched::Command)
                .map_err(|error| describe(&error)),
            Fetch::Above(unread) => read_above(&source, *unread).await,
        };
        match tried {
            Ok(fetched) => return Brought::Fetched(fetched),
            Err(failure) => detail = failure,
        }
        clock.sleep(FETCH_PAUSE).await;
    }
    warn!(partition = %source.partition, ?fetch, detail, "cannot be fetched");
    Brought::Fetched(Fetched::Failed { fetch, detail })
}

/// Reads a piece of the journal that may be long, beside the task of the partition.
async fn read_above<J: Journal>(source: &Source<J>, unread: Unread) -> Result<Fetched, String> {
    let journal = Arc::clone(&source.journal);
    let reading = async move { lookup::above(&*journal, unread, HOT_MAX).await };
    match AbortOnDropHandle::new(tokio::spawn(reading)).await {
        Ok(Ok(read)) => Ok(Fetched::Above(unread, Box::new(read))),
        Ok(Err(failure)) => Err(describe(&failure)),
        Err(failure) => Err(describe(&failure)),
    }
}

async fn sleep(clock: &HostClock, left: Option<Duration>) {
    match left {
        Some(left) => clock.sleep(left).await,
        None => std::future::pending().await,
    }
}

/// An error with all its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
