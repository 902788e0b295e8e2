//! Turns texts into vectors, those of several requests at a time.
//!
//! A thread of its own owns the encoder. Requests wait in line, at most so many; each run takes as many texts as its
//! tokens allow, those of one account in the order in which they came, and accounts in turns (`turns`). A request ends at its last text, its deadline, a stop, or before the next run
//! once its caller has left, and its usage ticket is ended before it is answered. An encoder that panics, or fails
//! again and again, ends the thread.
//!
//! The encoder is a trait: nothing here knows ONNX Runtime.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use seatbelt_schemas::usage::NeuronOutcome;
use tokio::sync::oneshot;

use self::turns::{RUN_TOKENS_MAX, Turns, Waits, next_most};
use crate::{
    clock::{Clock, millis},
    engine::StepError,
    metrics::EmbedderMetrics,
    thread::{self, Health, Line, Pulse, Thread, Ties},
    usage::{Durable, Ticket, Times},
};

mod turns;

/// Runs in a row that failed: all further ones will.
const FAILURES_MAX: u32 = 3;

/// A model that gives a vector for each text.
pub(crate) trait Encoder: Send {
    /// Numbers of a vector.
    fn width(&self) -> usize;
    /// The vectors of texts, in their order, each of length one.
    fn encode(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError>;
}

/// A request, ready to run.
pub(crate) struct Ask {
    pub(crate) texts: Vec<Vec<u32>>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) ticket: Ticket,
}

/// All vectors of a request.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Resolves when the usage event is on disk.
    pub(crate) durable: Durable,
}

/// Why there are none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Undone {
    Expired,
    Stopping,
    Failed(String),
}

/// A request that was not taken, with its ticket.
pub(crate) enum NotTaken {
    /// As many wait as may.
    QueueFull(Box<Ticket>),
    /// The thread has ended.
    Stopped(Box<Ticket>),
}

type Answer = oneshot::Sender<Result<Embedded, Undone>>;

enum Order {
    Embed(Box<Asked>),
    Stop,
}

/// A request in line.
struct Asked {
    ask: Ask,
    answer: Answer,
    since: Instant,
    began: Option<Instant>,
    done: Vec<Vec<f32>>,
}

/// Handle of the thread.
pub(crate) struct Embedder {
    thread: Thread<Order>,
    width: usize,
}

impl Embedder {
    /// Starts the thread. At most `room` requests are in line.
    pub(crate) fn start(
        encoder: Box<dyn Encoder>,
        room: usize,
        metrics: EmbedderMetrics,
    ) -> std::io::Result<Self> {
        let width = encoder.width();
        let run = move |ties: Ties<Order>| {
            let worker = Worker {
                encoder,
                inbox: ties.inbox,
                asked: VecDeque::new(),
                turns: Turns::default(),
                most: RUN_TOKENS_MAX,
                line: ties.line,
                pulse: ties.pulse,
                failures: 0,
                stopping: false,
                metrics,
            };
            worker.run();
        };
        let thread = Thread::start("embedder", room, Clock::system(), run)?;
        Ok(Self { thread, width })
    }

    /// Puts a request in line.
    pub(crate) fn submit(
        &self,
        ask: Ask,
    ) -> Result<oneshot::Receiver<Result<Embedded, Undone>>, NotTaken> {
        let (answer, answered) = oneshot::channel();
        let asked = Box::new(Asked {
            ask,
            answer,
            since: Instant::now(),
            began: None,
            done: Vec::new(),
        });
        let ticket = |order| match order {
            Order::Embed(asked) => Box::new(asked.ask.ticket),
            Order::Stop => unreachable!("what is given back is what was given"),
        };
        let submitted = self.thread.submit(1, Order::Embed(asked));
        submitted.map_err(|not_taken| match not_taken {
            thread::NotTaken::Full(order) => NotTaken::QueueFull(ticket(order)),
            thread::NotTaken::Ended(order) => NotTaken::Stopped(ticket(order)),
        })?;
        Ok(answered)
    }

    /// Numbers of a vector.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Requests in line.
    pub(crate) fn waiting(&self) -> usize {
        self.thread.busy()
    }

    /// How its thread is.
    pub(crate) fn health(&self) -> Health {
        self.thread.health()
    }

    /// Ends every request and the thread, and waits for it, at most so long.
    pub(crate) fn stop(&self, patience: Duration) {
        self.thread.stop(Order::Stop, patience);
    }
}

struct Worker {
    encoder: Box<dyn Encoder>,
    inbox: mpsc::Receiver<Order>,
    asked: VecDeque<Asked>,
    turns: Turns,
    /// Tokens of the next run.
    most: usize,
    line: Arc<Line>,
    pulse: Arc<Pulse>,
    failures: u32,
    stopping: bool,
    metrics: EmbedderMetrics,
}

impl Worker {
    fn run(mut self) {
        let turns = catch_unwind(AssertUnwindSafe(|| self.turns()));
        let undone = match turns {
            Ok(()) if self.failures < FAILURES_MAX => || Undone::Stopping,
            _ => || Undone::Failed("the encoder broke down".to_owned()),
        };
        while let Ok(order) = self.inbox.try_recv() {
            self.obey(order);
        }
        while let Some(line) = self.asked.pop_front() {
            self.end(line, NeuronOutcome::Aborted, Err(undone()));
        }
    }

    fn turns(&mut self) {
        while self.receive() {
            self.sweep();
            let plan = self.turns.plan(&self.line_now(), self.most);
            if plan.iter().any(|count| *count > 0) {
                self.turn(&plan);
            }
        }
    }

    /// Takes all orders there are; waits for one if there is nothing else to do. False at the end.
    fn receive(&mut self) -> bool {
        if self.failures >= FAILURES_MAX {
            return false;
        }
        if self.asked.is_empty() {
            match self.inbox.recv() {
                Ok(order) => self.obey(order),
                Err(mpsc::RecvError) => return false,
            }
        }
        while let Ok(order) = self.inbox.try_recv() {
            self.obey(order);
        }
        !self.stopping
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Embed(line) => {
                self.turns.enter(line.ask.ticket.account());
                self.asked.push_back(*line);
            }
            Order::Stop => self.stopping = true,
        }
    }

    fn line_now(&self) -> Vec<Waits<'_>> {
        let line = self.asked.iter().map(|line| Waits {
            account: line.ask.ticket.account(),
            texts: &line.ask.texts[line.done.len()..],
        });
        line.collect()
    }

    /// Ends those that no longer want or may have a turn.
    fn sweep(&mut self) {
        let now = Instant::now();
        for _ in 0..self.asked.len() {
            let Some(line) = self.asked.pop_front() else {
                return;
            };
            if line.answer.is_closed() {
                self.end(line, NeuronOutcome::Aborted, Err(Undone::Stopping));
            } else if line.ask.deadline.is_some_and(|deadline| now >= deadline) {
                self.end(line, NeuronOutcome::Expired, Err(Undone::Expired));
            } else {
                self.asked.push_back(line);
            }
        }
    }

    /// One run: so many of the next texts of each request in line.
    fn turn(&mut self, plan: &[usize]) {
        let now = Instant::now();
        let mut texts: Vec<&[u32]> = Vec::new();
        for (line, count) in self.asked.iter_mut().zip(plan) {
            if *count > 0 && line.began.is_none() {
                line.began = Some(now);
                self.metrics.queued.took(now - line.since);
            }
            let next = line.ask.texts.iter().skip(line.done.len()).take(*count);
            texts.extend(next.map(Vec::as_slice));
        }
        let (encoder, pulse) = (&mut self.encoder, &self.pulse);
        let (ran, took) = pulse.around(|| encoder.encode(&texts));
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        self.most = next_most(self.most, texts.len() * longest, took);
        let expected = texts.len();
        self.metrics.batch(expected);
        match ran {
            Ok(vectors) if vectors.len() == expected => {
                self.failures = 0;
                self.share(vectors, plan);
            }
            Ok(_) => self.fail(plan, "the encoder gave another number of vectors"),
            Err(error) => self.fail(plan, &error.to_string()),
        }
    }

    fn share(&mut self, vectors: Vec<Vec<f32>>, plan: &[usize]) {
        let mut vectors = vectors.into_iter();
        for (mut line, count) in std::mem::take(&mut self.asked).into_iter().zip(plan) {
            let first = line.done.len();
            line.done.extend(vectors.by_ref().take(*count));
            let read = line.ask.texts[first..line.done.len()].iter();
            let read = read.map(Vec::len).sum();
            line.ask.ticket.read(read);
            self.turns.read(line.ask.ticket.account(), read);
            if line.done.len() < line.ask.texts.len() {
                self.asked.push_back(line);
                continue;
            }
            let done = std::mem::take(&mut line.done);
            if let Some(began) = line.began {
                self.metrics.prefill.took(began.elapsed());
            }
            self.end(line, NeuronOutcome::Completed, Ok(done));
        }
    }

    /// Those with a text in the run fail with it.
    fn fail(&mut self, plan: &[usize], words: &str) {
        self.failures += 1;
        tracing::error!(detail = words, "texts could not be embedded");
        for (line, count) in std::mem::take(&mut self.asked).into_iter().zip(plan) {
            if *count == 0 {
                self.asked.push_back(line);
                continue;
            }
            let undone = Undone::Failed(words.to_owned());
            self.end(line, NeuronOutcome::Failed, Err(undone));
        }
    }

    /// Ends the ticket, then tells the caller.
    fn end(&mut self, line: Asked, outcome: NeuronOutcome, result: Result<Vec<Vec<f32>>, Undone>) {
        self.line.leave(1);
        self.turns.leave(line.ask.ticket.account());
        let now = Instant::now();
        let began = line.began.unwrap_or(now);
        let times = Times {
            queued_ms: millis(began - line.since),
            prefill_ms: millis(now - began),
            decode_ms: 0,
        };
        let durable = line.ask.ticket.end(outcome, times);
        // Whoever asked may have left.
        let _ = line
            .answer
            .send(result.map(|vectors| Embedded { vectors, durable }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use seatbelt_schemas::ids::{AccountId, ModelId};

    use super::*;
    use crate::usage::{Caller, tests::Office};

    /// Says how long a text is and how many it was read with; waits at the door.
    struct Counting {
        door: Arc<Mutex<()>>,
    }

    /// A text with this token fails its run.
    const POISON: u32 = 13;

    impl Encoder for Counting {
        fn width(&self) -> usize {
            2
        }

        fn encode(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
            drop(self.door.lock());
            if texts.iter().any(|text| text.contains(&POISON)) {
                return Err(StepError("poisoned".to_owned()));
            }
            let number = |count: usize| f32::from(u16::try_from(count).unwrap());
            let vector = |text: &&[u32]| vec![number(text.len()), number(texts.len())];
            Ok(texts.iter().map(vector).collect())
        }
    }

    struct Rig {
        embedder: Embedder,
        office: Office,
        door: Arc<Mutex<()>>,
    }

    impl Rig {
        fn new(room: usize) -> Self {
            let door = Arc::default();
            let encoder = Counting {
                door: Arc::clone(&door),
            };
            let office = Office::new();
            let metrics = (office.office.metrics).of_embedder(&ModelId::new("vectors").unwrap());
            Self {
                embedder: Embedder::start(Box::new(encoder), room, metrics).unwrap(),
                office,
                door,
            }
        }

        fn ask(&self, lengths: &[usize]) -> Ask {
            let mut ticket = self.office.office.open(Caller::default());
            ticket.begin(lengths.iter().sum(), 0);
            Ask {
                texts: lengths.iter().map(|length| vec![1; *length]).collect(),
                deadline: None,
                ticket,
            }
        }

        fn submit(&self, ask: Ask) -> oneshot::Receiver<Result<Embedded, Undone>> {
            let submitted = self.embedder.submit(ask);
            submitted.unwrap_or_else(|_| panic!("the request was refused"))
        }
    }

    fn vectors(answer: oneshot::Receiver<Result<Embedded, Undone>>) -> Vec<Vec<f32>> {
        answer.blocking_recv().unwrap().unwrap().vectors
    }

    #[test]
    fn texts_of_several_requests_are_read_together_and_each_gets_its_own() {
        let mut rig = Rig::new(8);
        let door = rig.door.lock().unwrap();
        let first = rig.submit(rig.ask(&[5]));
        let others: Vec<_> = [&[3, 4][..], &[6]]
            .map(|lengths| rig.submit(rig.ask(lengths)))
            .into();
        drop(door);
        assert_eq!(vectors(first)[0][0], 5.0);
        let others: Vec<_> = others.into_iter().map(vectors).collect();
        let lengths: Vec<f32> = others.iter().flatten().map(|vector| vector[0]).collect();
        assert_eq!(lengths, [3.0, 4.0, 6.0]);
        let usage: Vec<u64> = (0..3)
            .map(|_| rig.office.next().usage.input_tokens)
            .collect();
        assert_eq!(usage, [5, 7, 6]);
        assert_eq!(rig.embedder.waiting(), 0);
        let told = rig.office.office.metrics.render(&[]);
        for expected in [
            "queue_wait_seconds_count{model=\"vectors\"} 3",
            "prefill_seconds_count{model=\"vectors\"} 3",
            "batch_sum{model=\"vectors\"} 4.0",
        ] {
            let expected = format!("seatbelt_neuron_{expected}");
            assert!(
                told.lines().any(|line| line == expected),
                "{expected} is not in\n{told}"
            );
        }
    }

    #[test]
    fn one_account_with_much_in_line_does_not_hold_up_another() {
        let mut rig = Rig::new(8);
        let of = |account: &str, lengths: &[usize]| {
            let account = Some(AccountId::new(account).unwrap());
            let caller = Caller {
                account,
                ..Caller::default()
            };
            let mut ticket = rig.office.office.open(caller);
            ticket.begin(lengths.iter().sum(), 0);
            Ask {
                texts: lengths.iter().map(|length| vec![1; *length]).collect(),
                deadline: None,
                ticket,
            }
        };
        let door = rig.door.lock().unwrap();
        let much = vec![500; 200];
        let hogs: Vec<_> = (0..3).map(|_| rig.submit(of("hog", &much))).collect();
        let other = rig.submit(of("other", &[500]));
        drop(door);
        assert_eq!(vectors(other).len(), 1);
        // Of 150 runs that the others take it is in the second at the latest.
        assert_eq!(rig.office.next().usage.input_tokens, 500);
        drop(hogs);
    }

    #[test]
    fn a_request_of_many_texts_is_read_in_several_runs() {
        let mut rig = Rig::new(1);
        let lengths = vec![500; 11];
        let all = vectors(rig.submit(rig.ask(&lengths)));
        let together: Vec<f32> = all.iter().map(|vector| vector[1]).collect();
        // Four have 2,000 tokens; fewer where this machine is held up.
        assert!(
            together.len() == 11 && together.iter().all(|count| *count <= 4.0),
            "{together:?}"
        );
        assert_eq!(rig.office.next().usage.input_tokens, 5_500);
    }

    #[test]
    fn who_is_too_many_too_late_or_gone_costs_nothing() {
        let mut rig = Rig::new(3);
        let door = rig.door.lock().unwrap();
        let first = rig.submit(rig.ask(&[5]));
        let late = rig.submit(Ask {
            deadline: Some(Instant::now()),
            ..rig.ask(&[5])
        });
        drop(rig.submit(rig.ask(&[5])));
        let Err(NotTaken::QueueFull(ticket)) = rig.embedder.submit(rig.ask(&[5])) else {
            panic!("a fourth was taken")
        };
        drop(ticket.reject());
        drop(door);
        drop(vectors(first));
        assert_eq!(late.blocking_recv().unwrap().unwrap_err(), Undone::Expired);
        let mut used: Vec<u64> = (0..4)
            .map(|_| rig.office.next().usage.input_tokens)
            .collect();
        used.sort_unstable();
        // The one that left may have been read with the first.
        assert_eq!(used[..2], [0, 0], "{used:?}");
    }

    #[test]
    fn what_fails_is_told_and_again_and_again_ends_the_thread() {
        let mut rig = Rig::new(3);
        for _ in 0..FAILURES_MAX {
            let mut ask = rig.ask(&[2]);
            ask.texts[0][0] = POISON;
            let failed = rig.submit(ask).blocking_recv().unwrap();
            assert_eq!(failed.unwrap_err(), Undone::Failed("poisoned".to_owned()));
            assert_eq!(rig.office.next().outcome, NeuronOutcome::Failed);
        }
        while rig.embedder.health() != Health::Dead {
            std::thread::yield_now();
        }
        let Err(NotTaken::Stopped(_)) = rig.embedder.submit(rig.ask(&[5])) else {
            panic!("it was taken")
        };
    }

    #[test]
    fn a_stop_ends_all_with_a_report_each() {
        let mut rig = Rig::new(3);
        let door = rig.door.lock().unwrap();
        let all: Vec<_> = (0..3).map(|_| rig.submit(rig.ask(&[1_500]))).collect();
        rig.embedder.thread.tell(Order::Stop);
        drop(door);
        rig.embedder.stop(Duration::from_secs(20));
        assert_eq!(rig.embedder.health(), Health::Dead);
        let ended: Vec<_> = all
            .into_iter()
            .map(|one| one.blocking_recv().unwrap())
            .collect();
        assert_eq!(ended[2].as_ref().unwrap_err(), &Undone::Stopping);
        assert_eq!((0..3).map(|_| rig.office.next()).count(), 3);
    }
}
