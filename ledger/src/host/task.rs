//! The task of one partition: recovers it, takes it over, and serves it until it loses its place or is
//! told to stop.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::command::CommandError;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    PartitionStatus,
    appending::{Ended, RETRY_FIRST, RETRY_LONGEST, append},
    clock::HostClock,
    fetching::{Brought, look, opened},
    handle::{Asker, Handed, Handover, Message},
    timepiece::{Looked, Timepiece},
};
use crate::{
    journal::{AppendError, Journal},
    recovery::{Base, RecoveryError, RecoverySource},
    writer::{Next, PENDING_EVENTS_MAX, StepDown, Writer, WriterConfig},
};

/// Commands taken in, and for how long, before it is looked what else is due: an append, a fetch, a
/// deadline. Time bounds what one expensive command after the other can keep from the rest.
const BURST_MAX: usize = 512;
const BURST_TIME_MAX: Duration = Duration::from_millis(2);
/// Longest sleep before the clock is looked at again: it may have been set meanwhile.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How long a stopping writer waits for each of its last commits, and for all that is to be fetched.
const FLUSH_MAX: Duration = Duration::from_secs(10);

/// The task of one partition.
pub(super) struct Task<J> {
    pub(super) config: WriterConfig,
    pub(super) source: RecoverySource<J>,
    /// What accounts that are not in memory are loaded from.
    pub(super) base: Base,
    pub(super) fetches: FuturesUnordered<BoxFuture<'static, Brought>>,
    pub(super) fetches_max: usize,
    /// When memory is looked at next.
    pub(super) clear_at: Instant,
    /// Looks in a row that found the journal shorter than it was.
    pub(super) short_looks: u32,
    pub(super) time: Timepiece,
    pub(super) handed: Arc<Handed>,
    pub(super) receiver: mpsc::Receiver<Message>,
    pub(super) report: watch::Sender<PartitionStatus>,
    /// Another host takes over soon.
    pub(super) handing_over: CancellationToken,
    pub(super) shutdown: CancellationToken,
}

/// How serving ended.
pub(super) enum End {
    Shutdown,
    StepDown(StepDown),
}

impl<J: Journal> Task<J> {
    pub(super) async fn run(mut self) {
        let partition = self.config.partition;
        loop {
            let reason = match self.serve().await {
                Ok(End::Shutdown) => break self.stopped("it was told to stop".to_owned()),
                Ok(End::StepDown(reason)) => reason,
                Err(failure) => {
                    let reason = in_one_line(&failure);
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
                biased;
                () = &mut pause => break,
                () = self.shutdown.cancelled() => break,
                Some(message) = self.receiver.recv() => {
                    if let Message::Command(command) = message {
                        let _ = command.asker.sender.send(Err(CommandError::unavailable(reason)));
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
            biased;
            () = self.compare_clocks() => {}
            () = shutdown.cancelled() => return Ok(End::Shutdown),
        }
        if let Some(off) = self.time.off() {
            return Ok(End::StepDown(StepDown::Clock(off)));
        }
        let (resumed, base) = tokio::select! {
            biased;
            recovered = self.source.recover() => recovered?,
            () = self.shutdown.cancelled() => return Ok(End::Shutdown),
        };
        let (tail, position) = (resumed.tail, resumed.state.position());
        let more_open = resumed.more_open;
        info!(partition = %self.config.partition, sequence = %tail, %position, "journal read");
        if let Some(ahead) = self.time.behind(resumed.state.at_ms()) {
            warn!(partition = %self.config.partition, ?ahead, "the journal's time is ahead of the server's: windows stand still until then");
        }
        let mut writer = Writer::start(self.config.clone(), resumed, self.time.ms());
        self.base = base;
        if more_open {
            let looking = opened(self.source.clone(), tail, self.clock());
            self.fetches.push(looking.boxed());
        }
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

    pub(super) fn looked(&mut self, looked: &Looked) {
        self.time.looked(looked);
        *self.handed.skew() = self.time.skew();
    }

    /// Serves: one thing at a time, what is due before what is new. An append goes on beside it.
    async fn work(&mut self, writer: &mut Writer<Asker>) -> End {
        let mut work = Work::new(self.clock());
        loop {
            if let Some(end) = self.prepare(writer, &mut work) {
                return end;
            }
            let room = work.has_room(writer);
            let is_over = work.is_stopping() && self.receiver.is_empty();
            let due = self.until_due(writer).into_iter();
            let due = due.chain(work.until_nothing_is_fetched(writer)).min();
            let give_up = work.until_give_up();
            tokio::select! {
                biased;
                ended = ended(&mut work.appending) => {
                    work.appending = None;
                    if let Some(reason) = self.appended(writer, ended) {
                        return End::StepDown(reason);
                    }
                }
                () = sleep(&work.clock, give_up) => {
                    let reason = "the journal did not answer while stopping".to_owned();
                    writer.step_down(StepDown::Refused(reason));
                    return End::Shutdown;
                }
                Some(brought) = self.fetches.next(), if room => {
                    if let Some(reason) = self.bring(writer, brought) {
                        return End::StepDown(reason);
                    }
                }
                // a channel that is closed and empty has no more to say, but what is fetched may be awaited
                message = self.receiver.recv(), if room && !is_over => match message {
                    Some(message) => self.take_burst(writer, message),
                    None => work.stop(),
                },
                () = sleep(&work.clock, due), if room => {}
                () = self.shutdown.cancelled(), if !work.is_stopping() => {}
                () = self.handing_over.cancelled(), if !work.handed_over => {}
            }
            self.deliver(writer);
        }
    }

    /// Does what is due and begins what may begin; the end, where it has come.
    fn prepare(&mut self, writer: &mut Writer<Asker>, work: &mut Work) -> Option<End> {
        if work.appending.is_none()
            && let Some(off) = self.time.off()
        {
            writer.step_down(StepDown::Clock(off));
            return Some(End::StepDown(StepDown::Clock(off)));
        }
        if self.handing_over.is_cancelled() && !work.handed_over {
            work.handed_over = true;
            writer.hand_over();
            self.deliver(writer);
        }
        if self.shutdown.is_cancelled() && !work.is_stopping() {
            self.receiver.close();
            work.stop();
        }
        if work.until_nothing_is_fetched(writer) == Some(Duration::ZERO) {
            writer.stop_fetching("what it needs was not read while the writer was stopping");
        }
        self.begin_fetches(writer);
        if work.has_room(writer) {
            self.tend(writer);
        }
        let is_idle = work.appending.is_none() && !self.begin_append(writer, work);
        if is_idle && work.is_stopping() && self.receiver.is_empty() && writer.parked() == 0 {
            let now_ms = self.now_ms(writer);
            writer.hurry(now_ms);
            if writer.pending() == 0 {
                return Some(End::Shutdown);
            }
            self.begin_append(writer, work);
        }
        None
    }

    /// Begins the next append, if there is one.
    fn begin_append(&self, writer: &mut Writer<Asker>, work: &mut Work) -> bool {
        let Some((expected, payload)) = writer.take_append() else {
            return false;
        };
        let journal = Arc::clone(&self.source.journal);
        let appending = append(journal, work.clock.clone(), expected, payload);
        work.begun = work.clock.instant();
        work.appending = Some(appending.boxed());
        true
    }

    /// Tells the writer what came of its append; why it is over, if it is.
    fn appended(&self, writer: &mut Writer<Asker>, ended: Ended) -> Option<StepDown> {
        let next = match ended {
            Ended::Landed(sequence) => writer.appended(Ok(sequence)),
            Ended::Found(payload) => writer.read_back(Some(&payload)),
            Ended::Gone => writer.read_back(None),
            Ended::Refused(detail) => writer.appended(Err(AppendError::Refused { detail })),
        };
        match next {
            Next::StepDown(reason) => return Some(reason),
            Next::Continue => {}
            Next::Retry | Next::ReadBack(_) => unreachable!("what is told is definite"),
        }
        if self.status_is_recovering() {
            self.report.send_replace(PartitionStatus::Serving);
        }
        None
    }

    fn status_is_recovering(&self) -> bool {
        *self.report.borrow() == PartitionStatus::Recovering
    }

    /// How long until time makes something due, as far as is known now.
    fn until_due(&self, writer: &Writer<Asker>) -> Option<Duration> {
        let due = writer.next_wake_ms().map(|at_ms| {
            let left = Duration::from_millis(at_ms.saturating_sub(self.time.ms()));
            left.min(SLEEP_MAX)
        });
        due.into_iter().chain(self.time.until_look()).min()
    }

    pub(super) fn clock(&self) -> HostClock {
        self.time.clock().clone()
    }

    /// The time, once the writer knows by how much the clock was set.
    pub(super) fn now_ms(&mut self, writer: &mut Writer<Asker>) -> u64 {
        let (now_ms, step_ms) = self.time.read();
        if step_ms != 0 {
            warn!(partition = %self.config.partition, step_ms, "the clock was set");
            writer.clock_was_set(step_ms);
        }
        now_ms
    }

    /// Does what time has made due and what callers left behind, a bounded piece of it at a time.
    fn tend(&mut self, writer: &mut Writer<Asker>) {
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

    fn take_burst(&mut self, writer: &mut Writer<Asker>, first: Message) {
        let until = self.time.clock().instant() + BURST_TIME_MAX;
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(message) = next {
            taken += 1;
            if let Message::Command(command) = message {
                let Handover {
                    request,
                    asker,
                    place,
                } = *command;
                drop(place);
                let now_ms = self.now_ms(writer);
                writer.submit(now_ms, request, asker);
            }
            let enough = taken >= BURST_MAX || self.time.clock().instant() >= until;
            next = if enough {
                None
            } else {
                self.receiver.try_recv().ok()
            };
        }
    }
}

/// What a serving task is in the middle of.
struct Work {
    clock: HostClock,
    /// The append in flight.
    appending: Option<BoxFuture<'static, Ended>>,
    begun: Instant,
    /// Whether its waiters were told to ask the next host.
    handed_over: bool,
    /// Since when it is to end.
    stopping: Option<Instant>,
}

impl Work {
    fn new(clock: HostClock) -> Self {
        Self {
            appending: None,
            begun: clock.instant(),
            handed_over: false,
            stopping: None,
            clock,
        }
    }

    fn stop(&mut self) {
        self.stopping = Some(self.clock.instant());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether more may be decided while the append goes on.
    fn has_room(&self, writer: &Writer<Asker>) -> bool {
        self.appending.is_none() || writer.pending() < PENDING_EVENTS_MAX / 2
    }

    /// How long commands may still wait for what is fetched, where they hold up the end.
    fn until_nothing_is_fetched(&self, writer: &Writer<Asker>) -> Option<Duration> {
        if writer.parked() == 0 {
            return None;
        }
        let went = self
            .clock
            .instant()
            .saturating_duration_since(self.stopping?);
        Some(FLUSH_MAX.saturating_sub(went))
    }

    /// How long the append may still take, where it holds up the end.
    fn until_give_up(&self) -> Option<Duration> {
        self.appending.as_ref()?;
        let since = self.stopping?.max(self.begun);
        let went = self.clock.instant().saturating_duration_since(since);
        Some(FLUSH_MAX.saturating_sub(went))
    }
}

async fn ended(appending: &mut Option<BoxFuture<'static, Ended>>) -> Ended {
    match appending {
        Some(appending) => appending.await,
        None => std::future::pending().await,
    }
}

async fn sleep(clock: &HostClock, left: Option<Duration>) {
    match left {
        Some(left) => clock.sleep(left).await,
        None => std::future::pending().await,
    }
}
