//! The task of one partition: recovers it, takes it over, and serves it until it loses its place or is
//! told to stop.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use seatbelt_schemas::command::CommandError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    PartitionStatus,
    clock::HostClock,
    describe,
    fetching::{Brought, look},
    handle::{Handed, Message, Waiting},
    timepiece::{Looked, Timepiece},
};
use crate::{
    journal::{AppendError, Journal, Sequence},
    recovery::{Base, RecoveryError, Source},
    writer::{Next, StepDown, Writer, WriterConfig},
};

/// Commands taken in, and for how long, before it is looked what else is due: an append, a fetch, a
/// deadline. Time bounds what one expensive command after the other can keep from the rest.
const BURST_MAX: usize = 512;
const BURST_TIME_MAX: Duration = Duration::from_millis(2);
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

/// The task of one partition.
pub(super) struct Task<J> {
    pub(super) config: WriterConfig,
    pub(super) source: Source<J>,
    /// What accounts that are not in memory are loaded from.
    pub(super) base: Base,
    pub(super) fetches: FuturesUnordered<BoxFuture<'static, Brought>>,
    /// When memory is looked at next.
    pub(super) clear_at: tokio::time::Instant,
    pub(super) time: Timepiece,
    pub(super) handed: Arc<Handed>,
    pub(super) receiver: mpsc::Receiver<Message>,
    pub(super) report: watch::Sender<PartitionStatus>,
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

    pub(super) fn stopped(&self, reason: String) {
        self.report.send_replace(PartitionStatus::Stopped(reason));
    }

    /// Answers everyone with the reason for a while, before the journal is tried again.
    pub(super) async fn turn_away(&mut self, reason: &str) {
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

    pub(super) async fn serve(&mut self) -> Result<End, RecoveryError> {
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
    pub(super) async fn compare_clocks(&mut self) {
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

    pub(super) async fn work(&mut self, writer: &mut Writer<Waiting>) -> End {
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

    /// Nothing to append: waits for a command, for time to act, or for the end. What is due is done by
    /// the caller's loop before each wait.
    pub(super) async fn idle(&mut self, writer: &mut Writer<Waiting>, stopping: &mut bool) {
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
    pub(super) async fn append(
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

    pub(super) fn status_is_recovering(&self) -> bool {
        *self.report.borrow() == PartitionStatus::Recovering
    }

    /// One try of an append, while commands go on being decided.
    pub(super) async fn appending(
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
    pub(super) fn until_due(&self, writer: &Writer<Waiting>) -> Option<Duration> {
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
    pub(super) fn now_ms(&mut self, writer: &mut Writer<Waiting>) -> u64 {
        let (now_ms, step_ms) = self.time.read();
        if step_ms != 0 {
            warn!(partition = %self.config.partition, step_ms, "the clock was set");
            writer.clock_was_set(step_ms);
        }
        now_ms
    }

    /// Does what time has made due and what callers left behind, a bounded piece of it at a time.
    pub(super) fn tend(&mut self, writer: &mut Writer<Waiting>) {
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

    pub(super) fn take_burst(&mut self, writer: &mut Writer<Waiting>, first: Message) {
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
    pub(super) async fn read_back(
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

async fn sleep(clock: &HostClock, left: Option<Duration>) {
    match left {
        Some(left) => clock.sleep(left).await,
        None => std::future::pending().await,
    }
}
