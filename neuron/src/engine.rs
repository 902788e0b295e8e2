//! Runs requests on one decoder, several at a time.
//!
//! A thread of its own owns the decoder. Requests wait in line, at most so many, then take a slot;
//! each turn of the loop reads some of the waiting prompts and runs one step of all running answers,
//! so much of them that the answers go on flowing (`pace`), and several whole ones at once where that spares time
//! (`together`).
//! What may be written may grow meanwhile: an answer that has all of it waits in its slot for more, for a bounded time,
//! and takes part in no step (`allowance`).
//! A request ends at its ceiling, its deadline, a stop, or within one step of its caller's leaving,
//! and its usage ticket is ended before its last event is sent. A decoder that panics, or fails again and
//! again, ends the thread; who only waited then may be served elsewhere.
//!
//! The decoder is a trait: nothing here knows ONNX Runtime.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use seatbelt_tokens::Tokenizer;
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

pub(crate) use self::{
    allowance::Allowance,
    job::{EndReason, Ending, Event, Generation, Job, NotQueued, Piece},
    kept::Shift,
    together::Together,
};
use self::{
    job::QueuedJob,
    kept::Kept,
    pace::Pace,
    running::{Running, Turn},
    seats::idle,
};
use crate::{
    clock::Clock,
    config::PREFILL_CHUNK_TOKENS,
    metrics::EngineMetrics,
    shape::Guides,
    thread::{Health, Line, NotTaken, Pulse, Thread, Ties},
    usage::parts::Part,
};

mod allowance;
mod job;
mod kept;
mod pace;
mod reading;
mod running;
mod seats;
mod together;
mod waits;

/// A step that did not work.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct StepError(pub(crate) String);

/// One slot's part in a step: the token to take in, and where in the slot's cache it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) position: usize,
}

/// What a decoder reads in one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    /// Most tokens, padding included.
    pub(crate) tokens_max: usize,
    pub(crate) together: Together,
    /// Tokens that take as long as a run takes whatever it reads.
    pub(crate) spare: usize,
}

impl Reach {
    /// A piece of one prompt.
    pub(crate) const PIECE: Self = Self {
        tokens_max: PREFILL_CHUNK_TOKENS,
        together: Together::Never,
        spare: 0,
    };
}

/// A model that can be stepped: slots with a cache each.
pub(crate) trait Decoder: Send {
    /// How many sequences can be kept at once.
    fn slots(&self) -> usize;
    /// Length of one row of logits.
    fn vocab(&self) -> usize;
    /// Takes `tokens` into `slot` from `position` on; `logits` becomes the row after the last.
    fn prefill(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError>;
    /// What may be read in one run.
    fn reach(&self) -> Reach {
        Reach::PIECE
    }
    /// Takes a whole prompt into each slot from `first` on; `logits` becomes the rows after their last tokens in order.
    fn prefill_together(
        &mut self,
        _first: usize,
        _prompts: &[&[u32]],
        _logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        Err(StepError("prompts are read one by one".to_owned()))
    }
    /// Takes one token into each of the first `rows.len()` slots; `logits` becomes their rows in order.
    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError>;
    /// Most tokens of a slot that can be shifted by moving so many bytes; none where slots cannot be reached.
    fn movable(&self, _bytes: usize) -> usize {
        0
    }
    /// Moves what slots hold.
    fn shift(&mut self, _shift: Shift) -> Result<(), StepError> {
        Err(StepError("slots cannot be reached".to_owned()))
    }
}

enum Command {
    Run(Vec<QueuedJob>),
    AbortAll,
    /// Somebody who waits in a slot may have more.
    Look,
    Stop,
}

impl Command {
    /// The parts in tickets of what it would have run.
    fn into_parts(self) -> Vec<Part> {
        match self {
            Self::Run(queued) => queued
                .into_iter()
                .map(|waiting| waiting.job.ticket)
                .collect(),
            Self::Look | Self::AbortAll | Self::Stop => Vec::new(),
        }
    }
}

/// What the engine needs to know of its model.
pub(crate) struct Voice {
    pub(crate) tokenizer: Tokenizer,
}

/// Counts shared by the thread and its callers.
#[derive(Debug, Default)]
struct Load {
    active: AtomicUsize,
    cached: AtomicUsize,
}

/// Handle of a running engine.
pub(crate) struct Engine {
    thread: Thread<Command>,
    clock: Clock,
    load: Arc<Load>,
}

impl Engine {
    /// Starts the thread. Besides those in slots, at most `queue` requests wait.
    pub(crate) fn start(
        decoder: Box<dyn Decoder>,
        voice: Voice,
        queue: usize,
        metrics: EngineMetrics,
    ) -> std::io::Result<Self> {
        Self::start_at(Clock::system(), decoder, voice, queue, metrics)
    }

    fn start_at(
        clock: Clock,
        decoder: Box<dyn Decoder>,
        voice: Voice,
        queue: usize,
        metrics: EngineMetrics,
    ) -> std::io::Result<Self> {
        let load = Arc::new(Load::default());
        let slots = decoder.slots();
        let guides = Guides::start()?;
        let (own_clock, own_load) = (clock.clone(), Arc::clone(&load));
        let run = move |ties: Ties<Command>| {
            let worker = Worker {
                slots: (0..slots).map(|_| None).collect(),
                kept: vec![None; slots],
                turn: 0,
                rows: Vec::with_capacity(slots),
                logits: Vec::new(),
                waiting: VecDeque::new(),
                stopping: false,
                failures: 0,
                reach: decoder.reach(),
                pace: Pace::new(decoder.reach().spare),
                pulse: ties.pulse,
                clock: own_clock,
                line: ties.line,
                load: own_load,
                decoder,
                voice,
                guides,
                metrics,
                inbox: ties.inbox,
            };
            worker.run();
        };
        let thread = Thread::start("engine", slots + queue, clock.clone(), run)?;
        Ok(Self {
            thread,
            clock,
            load,
        })
    }

    /// Puts a request in line.
    #[cfg(test)]
    pub(crate) fn submit(&self, job: Job) -> Result<Generation, NotQueued> {
        let mut generations = self.submit_all(vec![job])?;
        Ok(generations.pop().expect("there is one for each"))
    }

    /// Puts the answers of one request in line: all of them, or none.
    pub(crate) fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<Generation>, NotQueued> {
        let since = self.clock.now();
        let queued = jobs.into_iter().map(|job| {
            let (events, generation) = unbounded_channel();
            (QueuedJob { job, since, events }, Generation(generation))
        });
        let (queued, generations): (Vec<QueuedJob>, Vec<Generation>) = queued.unzip();
        let submitted = self.thread.submit(queued.len(), Command::Run(queued));
        submitted.map_err(|not_taken| match not_taken {
            NotTaken::Full(command) => NotQueued::QueueFull(command.into_parts()),
            NotTaken::Ended(command) => NotQueued::Stopped(command.into_parts()),
        })?;
        Ok(generations)
    }

    /// Looks again at what those may have who wait in their slots.
    pub(crate) fn look(&self) {
        self.thread.tell(Command::Look);
    }

    /// Answers that can run or wait at once.
    pub(crate) fn room(&self) -> usize {
        self.thread.room()
    }

    /// Tokens in the caches of requests in slots.
    pub(crate) fn cached(&self) -> usize {
        self.load.cached.load(Ordering::Acquire)
    }

    /// Requests in slots.
    /// Requests in slots.
    pub(crate) fn active(&self) -> usize {
        self.load.active.load(Ordering::Acquire)
    }

    /// Requests in slots and waiting for one.
    pub(crate) fn busy(&self) -> usize {
        self.thread.busy()
    }

    /// Requests waiting for one.
    pub(crate) fn queued(&self) -> usize {
        self.thread.busy().saturating_sub(self.active())
    }

    /// How it is.
    pub(crate) fn health(&self) -> Health {
        self.thread.health()
    }

    /// Ends every request now, with [`EndReason::Stopping`].
    pub(crate) fn abort_all(&self) {
        self.thread.tell(Command::AbortAll);
    }

    /// Ends every request and the thread, and waits for it, at most so long.
    pub(crate) fn stop(&self, patience: Duration) {
        self.thread.stop(Command::Stop, patience);
    }
}

struct Worker {
    decoder: Box<dyn Decoder>,
    voice: Voice,
    guides: Guides,
    inbox: mpsc::Receiver<Command>,
    waiting: VecDeque<Box<QueuedJob>>,
    slots: Vec<Option<Running>>,
    /// What free slots hold.
    kept: Vec<Option<Kept>>,
    /// Requests that ended.
    turn: u64,
    line: Arc<Line>,
    load: Arc<Load>,
    metrics: EngineMetrics,
    stopping: bool,
    /// Runs of the decoder that failed since one did not.
    failures: u32,
    reach: Reach,
    pace: Pace,
    pulse: Arc<Pulse>,
    clock: Clock,
    // Kept between steps.
    rows: Vec<Row>,
    logits: Vec<f32>,
}

impl Worker {
    fn run(mut self) {
        let turns = AssertUnwindSafe(|| self.turns());
        let reason = match catch_unwind(turns) {
            Ok(()) if self.failures < FAILURES_MAX => EndReason::Stopping,
            Ok(()) => EndReason::Failed("the model fails again and again".to_owned()),
            Err(_) => EndReason::Failed("the engine broke down".to_owned()),
        };
        self.close(&reason);
    }

    fn turns(&mut self) {
        while self.receive() {
            self.sweep();
            self.look_at_waits();
            self.fill();
            self.prefill();
            // Who came meanwhile may be one whom the answers wait for.
            self.obey_all();
            self.fill();
            if !self.gathers() {
                self.decode();
            }
            let cached = self.slots.iter().flatten().map(|running| running.position);
            self.load.cached.store(cached.sum(), Ordering::Release);
        }
    }

    /// Ends all there are. Commands that came too late are answered too.
    fn close(&mut self, reason: &EndReason) {
        self.end_all(reason);
        self.obey_all();
        self.end_all(reason);
    }

    /// Takes all commands there are; waits for one if there is nothing else to do. False at the end.
    fn receive(&mut self) -> bool {
        if self.failures >= FAILURES_MAX {
            return false;
        }
        let idle = self.waiting.is_empty() && self.slots.iter().all(Option::is_none);
        if idle {
            match self.inbox.recv() {
                Ok(command) => self.obey(command),
                Err(mpsc::RecvError) => return false,
            }
        } else if self.only_waits() && !self.waits_for_word() {
            return false;
        }
        self.obey_all();
        !self.stopping
    }

    fn obey_all(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(jobs) => self.waiting.extend(jobs.into_iter().map(Box::new)),
            Command::AbortAll => self.end_all(&EndReason::Stopping),
            Command::Look => {}
            Command::Stop => self.stopping = true,
        }
    }

    /// Ends those that no longer want or may have a turn, in line and in slots.
    fn sweep(&mut self) {
        let now = self.clock.now();
        let mut at = 0;
        while let Some(waiting) = self.waiting.get(at) {
            let Some(reason) = over(&waiting.events, waiting.job.deadline, now) else {
                at += 1;
                continue;
            };
            if let Some(waiting) = self.waiting.remove(at) {
                self.end_waiting(*waiting, reason);
            }
        }
        for slot in 0..self.slots.len() {
            let reason = self.slots[slot]
                .as_ref()
                .and_then(|running| over(&running.events, running.deadline, now));
            if let Some(reason) = reason {
                self.end(slot, reason);
            }
        }
    }

    /// Runs one step of every answer under way.
    fn decode(&mut self) {
        let Some(highest) = self
            .slots
            .iter()
            .rposition(|slot| slot.as_ref().is_some_and(Running::answering))
        else {
            return;
        };
        self.rows.clear();
        let slots = self.slots[..=highest].iter().zip(&self.kept);
        (self.rows).extend(slots.map(|(running, kept)| match running {
            Some(running) => running.row(),
            None => idle(kept.as_ref()),
        }));
        let (decoder, rows, logits) = (&mut self.decoder, &self.rows, &mut self.logits);
        let (ran, took) = (self.pulse).around(|| decoder.decode(rows, logits));
        self.failures = failures(self.failures, &ran);
        self.pace.stepped(took);
        self.metrics.decode_step.took(took);
        if ran.is_err() {
            self.kept.fill(None);
        }
        let answers = self.slots.iter().flatten();
        (self.metrics).batch(answers.filter(|running| running.answering()).count());
        let vocab = self.decoder.vocab();
        for slot in 0..=highest {
            let Some(running) = self.slots[slot]
                .as_mut()
                .filter(|running| running.answering())
            else {
                continue;
            };
            let turn = match &ran {
                Ok(()) => {
                    let logits = &self.logits[slot * vocab..(slot + 1) * vocab];
                    running.answered(logits, &self.guides)
                }
                Err(error) => Turn::Over(EndReason::Failed(error.to_string())),
            };
            self.settle_turn(slot, turn);
        }
    }

    fn settle_turn(&mut self, slot: usize, turn: Turn) {
        if let Turn::Over(reason) = turn {
            self.end(slot, reason);
        }
    }

    fn end(&mut self, slot: usize, reason: EndReason) {
        let Some(running) = self.slots[slot].take() else {
            return;
        };
        self.load.active.fetch_sub(1, Ordering::AcqRel);
        self.line.leave(1);
        self.turn += 1;
        let turn = self.turn;
        self.kept[slot] = running.end(reason).map(|(account, tokens)| Kept {
            account,
            tokens,
            turn,
        });
    }

    fn end_waiting(&mut self, waiting: QueuedJob, reason: EndReason) {
        self.line.leave(1);
        running::end_waiting(waiting, reason);
    }

    /// Who waits had no turn, and may be served elsewhere.
    fn end_all(&mut self, reason: &EndReason) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.end_waiting(*waiting, EndReason::NotRun);
        }
        for slot in 0..self.slots.len() {
            self.end(slot, reason.clone());
        }
    }
}

/// Runs that failed one after the other.
fn failures(before: u32, ran: &Result<(), StepError>) -> u32 {
    match ran {
        Ok(()) => 0,
        Err(_) => before.saturating_add(1),
    }
}

/// After so many runs in a row that failed, all further ones will: the decoder has to be loaded again.
const FAILURES_MAX: u32 = 3;

fn over(
    events: &UnboundedSender<Event>,
    deadline: Option<Instant>,
    now: Instant,
) -> Option<EndReason> {
    if events.is_closed() {
        return Some(EndReason::Left);
    }
    deadline
        .is_some_and(|deadline| now >= deadline)
        .then_some(EndReason::Expired)
}

#[cfg(test)]
mod tests;
