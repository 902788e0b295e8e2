//! The engine with a decoder that waits to be let on, so that every order of things can be had.

use std::{
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use seatbelt_schemas::{ids::ModelId, usage::UsageEvent};

use super::*;
use crate::{
    model::tests::tiny_folder,
    sampler::Sampling,
    usage::{
        Caller, TicketOffice,
        parts::{self, Part},
        tests::Office,
    },
};

mod choices;
mod flow;
mod growing;
mod reuse;

const VOCAB: usize = 272;
/// More steps than any test takes.
const ENDLESS: usize = 1 << 40;
const PATIENCE: Duration = Duration::from_secs(20);
/// A prompt with this token fails its prefill.
const POISON: u32 = 13;
/// A prompt with this token brings the engine down.
const BOMB: u32 = 14;

/// Says `abc...` by position; each step waits for a permit, until the gate is dropped.
struct Gated {
    slots: usize,
    gate: Receiver<()>,
    steps: Sender<usize>,
    /// The slots whose prompts were read on.
    reads: Sender<usize>,
}

impl Gated {
    fn row(position: usize) -> Vec<f32> {
        let letter = usize::from(b'a') + position % 26;
        (0..VOCAB)
            .map(|token| if token == letter { 1.0 } else { 0.0 })
            .collect()
    }

    /// What is said to a prompt of so many tokens.
    fn letters(prompt: usize, output: usize) -> String {
        let letters = prompt..prompt + output;
        let letters = letters.map(|at| b'a' + u8::try_from(at % 26).unwrap());
        letters.map(char::from).collect()
    }
}

impl Decoder for Gated {
    fn slots(&self) -> usize {
        self.slots
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn prefill(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        assert!(!tokens.contains(&BOMB), "the bomb of a test");
        if tokens.contains(&POISON) {
            return Err(StepError("poisoned".to_owned()));
        }
        let _ = self.reads.send(slot);
        *logits = Self::row(position + tokens.len());
        Ok(())
    }

    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
        let _ = self.gate.recv();
        let _ = self.steps.send(rows.len());
        *logits = rows
            .iter()
            .flat_map(|row| Self::row(row.position + 1))
            .collect();
        Ok(())
    }
}

struct Rig {
    engine: Engine,
    office: Office,
    gate: Sender<()>,
    steps: Receiver<usize>,
    reads: Receiver<usize>,
}

impl Rig {
    fn new(slots: usize, queue: usize) -> Self {
        let (gate, gated) = channel();
        let (steps_tx, steps) = channel();
        let (reads_tx, reads) = channel();
        let decoder = Gated {
            slots,
            gate: gated,
            steps: steps_tx,
            reads: reads_tx,
        };
        let office = Office::new();
        let metrics = office
            .office
            .metrics
            .of_engine(&ModelId::new("tiny").unwrap());
        let engine = Engine::start(Box::new(decoder), voice(), queue, metrics).unwrap();
        Self {
            engine,
            office,
            gate,
            steps,
            reads,
        }
    }

    fn submit(&self, job: Job) -> Result<Generation, NotQueued> {
        self.engine.submit(job)
    }

    fn step(&self) -> usize {
        self.gate.send(()).unwrap();
        self.steps.recv_timeout(PATIENCE).unwrap()
    }

    /// Lets every further step run.
    fn open(&mut self) {
        self.gate = channel().0;
    }

    fn job(&self, prompt: usize, max_output: usize) -> Job {
        job(&self.office.office, prompt, max_output)
    }

    fn report(&mut self) -> UsageEvent {
        self.office.next()
    }
}

fn voice() -> Voice {
    Voice {
        tokenizer: Tokenizer::load(&tiny_folder().join("tokenizer.json")).unwrap(),
    }
}

fn job(office: &TicketOffice, prompt: usize, max_output: usize) -> Job {
    let mut ticket = office.open(Caller::default());
    ticket.begin(prompt, max_output);
    Job {
        prompt: vec![1; prompt],
        max_output,
        allowance: None,
        sampling: Sampling::greedy(),
        eos: vec![257],
        stops: Vec::new(),
        guide: None,
        continues: false,
        deadline: None,
        ticket: Part::only(ticket),
    }
}

fn taken(submitted: Result<Generation, NotQueued>) -> Generation {
    submitted.unwrap_or_else(|_| panic!("the request was refused"))
}

/// All text and the reason of the end.
fn read(generation: &mut Generation) -> (String, EndReason) {
    let mut whole = String::new();
    loop {
        match generation.0.blocking_recv() {
            Some(Event::Text(piece)) => whole.push_str(&piece.text),
            Some(Event::End(ending)) => return (whole, ending.reason),
            None => panic!("the engine died after {whole:?}"),
        }
    }
}

#[test]
fn an_answer_runs_to_its_ceiling_and_is_reported_exactly() {
    let mut rig = Rig::new(1, 1);
    let mut generation = taken(rig.submit(rig.job(3, 5)));
    // The prompt itself gives the first token; four steps give the rest.
    for _ in 0..4 {
        assert_eq!(rig.step(), 1);
    }
    assert_eq!(
        read(&mut generation),
        ("defgh".to_owned(), EndReason::Length)
    );
    let report = rig.report();
    assert_eq!(
        (report.usage.input_tokens, report.usage.output_tokens),
        (3, 5)
    );
    assert_eq!(
        report.outcome,
        seatbelt_schemas::usage::NeuronOutcome::Completed
    );
}

#[test]
fn no_more_wait_than_may_and_a_place_is_free_again_after_an_end() {
    let mut rig = Rig::new(1, 1);
    let mut first = taken(rig.submit(rig.job(1, 2)));
    let mut second = taken(rig.submit(rig.job(1, 1)));
    let Err(NotQueued::QueueFull(refused)) = rig.submit(rig.job(1, 1)) else {
        panic!("a third was taken")
    };
    drop(parts::reject(refused));
    rig.step();
    assert_eq!(read(&mut first).1, EndReason::Length);
    assert_eq!(read(&mut second).1, EndReason::Length);
    let mut fourth = taken(rig.submit(rig.job(1, 1)));
    assert_eq!(read(&mut fourth).1, EndReason::Length);
    let outcomes: Vec<_> = (0..4)
        .map(|_| format!("{:?}", rig.report().outcome))
        .collect();
    assert_eq!(
        outcomes,
        ["Rejected", "Completed", "Completed", "Completed"]
    );
}

#[test]
fn a_caller_who_leaves_is_gone_within_one_step() {
    let mut rig = Rig::new(1, 1);
    let generation = taken(rig.submit(rig.job(2, 1000)));
    rig.step();
    drop(generation);
    // At most the step under way is still run, however many may.
    rig.open();
    let report = rig.report();
    assert_eq!(format!("{:?}", report.outcome), "Aborted");
    assert!((2..=3).contains(&report.usage.output_tokens), "{report:?}");
    assert_eq!((rig.engine.active(), rig.engine.queued()), (0, 0));
}

#[test]
fn a_caller_who_leaves_the_line_costs_nothing() {
    let mut rig = Rig::new(1, 1);
    let mut first = taken(rig.submit(rig.job(1, 3)));
    drop(taken(rig.submit(rig.job(9, 9))));
    rig.step();
    let report = rig.report();
    assert_eq!(
        (
            format!("{:?}", report.outcome).as_str(),
            report.usage.input_tokens
        ),
        ("Aborted", 0)
    );
    rig.step();
    assert_eq!(read(&mut first).1, EndReason::Length);
}

#[test]
fn a_deadline_ends_those_who_wait_and_those_who_run() {
    let mut rig = Rig::new(1, 1);
    let soon = Instant::now() + Duration::from_millis(100);
    let mut runs = taken(rig.submit(Job {
        deadline: Some(soon),
        ..rig.job(1, 1000)
    }));
    let mut waits = taken(rig.submit(Job {
        deadline: Some(soon),
        ..rig.job(1, 1000)
    }));
    rig.gate.send(()).unwrap();
    while Instant::now() < soon {
        std::thread::yield_now();
    }
    rig.open();
    assert_eq!(read(&mut waits), (String::new(), EndReason::Expired));
    assert_eq!(read(&mut runs).1, EndReason::Expired);
    let mut spent: Vec<_> = (0..2).map(|_| rig.report().usage.output_tokens).collect();
    spent.sort_unstable();
    assert_eq!(spent[0], 0);
    assert!(
        spent[1] <= 3,
        "only what ran before the deadline, and the step under way: {spent:?}"
    );
}

#[test]
fn steps_take_all_slots_up_to_the_highest_in_use() {
    let mut rig = Rig::new(3, 3);
    let mut first = taken(rig.submit(rig.job(1, 6)));
    assert_eq!(rig.step(), 1);
    let mut second = taken(rig.submit(rig.job(1, 6)));
    rig.open();
    assert_eq!(read(&mut first).0, "bcdefg");
    assert_eq!(read(&mut second).0, "bcdefg");
    let sizes: Vec<usize> = rig.steps.try_iter().collect();
    assert!(sizes.contains(&2) && !sizes.contains(&3), "{sizes:?}");
}

#[test]
fn a_prompt_that_fails_takes_nobody_with_it() {
    let mut rig = Rig::new(2, 2);
    let mut sound = taken(rig.submit(rig.job(1, 3)));
    let mut poisoned = taken(rig.submit(Job {
        prompt: vec![POISON],
        ..rig.job(1, 3)
    }));
    rig.open();
    assert_eq!(
        read(&mut poisoned).1,
        EndReason::Failed("poisoned".to_owned())
    );
    assert_eq!(read(&mut sound), ("bcd".to_owned(), EndReason::Length));
    let mut outcomes: Vec<_> = (0..2)
        .map(|_| format!("{:?}", rig.report().outcome))
        .collect();
    outcomes.sort();
    assert_eq!(outcomes, ["Completed", "Failed"]);
}

#[test]
fn an_engine_that_breaks_down_reports_all_it_had_and_takes_no_more() {
    let mut rig = Rig::new(2, 2);
    let mut runs = taken(rig.submit(rig.job(2, ENDLESS)));
    rig.step();
    let bomb = taken(rig.submit(Job {
        prompt: vec![BOMB],
        ..rig.job(1, 3)
    }));
    rig.open();
    assert!(matches!(read(&mut runs).1, EndReason::Failed(_)));
    let mut reports = [rig.report(), rig.report()];
    reports.sort_by_key(|report| report.usage.output_tokens);
    assert!(
        reports
            .iter()
            .all(|report| format!("{:?}", report.outcome) == "Failed")
    );
    assert_eq!(reports[0].usage.input_tokens, 0);
    assert!(reports[1].usage.output_tokens >= 2, "{reports:?}");
    while rig.engine.health() != Health::Dead {
        std::thread::yield_now();
    }
    let Err(NotQueued::Stopped(_)) = rig.submit(rig.job(1, 1)) else {
        panic!("it was taken")
    };
    drop(bomb);
}

#[test]
fn a_stop_ends_all_with_a_report_each() {
    let mut rig = Rig::new(1, 2);
    let mut runs = taken(rig.submit(rig.job(1, ENDLESS)));
    let mut waits = taken(rig.submit(rig.job(1, ENDLESS)));
    rig.step();
    rig.open();
    rig.engine.stop(PATIENCE);
    assert_eq!(read(&mut runs).1, EndReason::Stopping);
    assert_eq!(read(&mut waits).1, EndReason::NotRun);
    assert_eq!(rig.engine.health(), Health::Dead);
    let Err(NotQueued::Stopped(refused)) = rig.submit(rig.job(1, 1)) else {
        panic!("it was taken")
    };
    drop(refused);
    assert_eq!((0..3).map(|_| rig.report()).count(), 3);
}

#[test]
fn text_held_back_for_a_stop_string_is_sent_at_the_ceiling() {
    let mut rig = Rig::new(1, 1);
    let stops = vec!["defX".to_owned()];
    let mut generation = taken(rig.submit(Job {
        stops,
        ..rig.job(3, 3)
    }));
    rig.open();
    assert_eq!(read(&mut generation), ("def".to_owned(), EndReason::Length));
}

#[test]
fn the_oldest_prompt_is_read_first_whatever_its_slot() {
    let rig = Rig::new(2, 2);
    // Several pieces each, for the younger in the lower slot, which the first request leaves to it.
    let pieces = 2 * PREFILL_CHUNK_TOKENS + 1;
    let mut first = taken(rig.submit(rig.job(1, 3)));
    let mut older = taken(rig.submit(rig.job(pieces, 1)));
    rig.step();
    let mut younger = taken(rig.submit(rig.job(pieces, 1)));
    rig.step();
    for generation in [&mut first, &mut older, &mut younger] {
        assert_eq!(read(generation).1, EndReason::Length);
    }
    let mut order: Vec<usize> = rig.reads.try_iter().collect();
    order.dedup();
    assert_eq!(order, [0, 1, 0]);
}

#[test]
fn who_waits_when_an_engine_breaks_down_was_not_run() {
    let mut rig = Rig::new(1, 2);
    // Has the slot until all have come.
    let mut first = taken(rig.submit(rig.job(1, 2)));
    let mut bomb = taken(
        rig.submit(Job {
            prompt: vec![1; PREFILL_CHUNK_TOKENS + 1]
                .into_iter()
                .chain([BOMB])
                .collect(),
            ..rig.job(1, 3)
        }),
    );
    let mut waits = taken(rig.submit(rig.job(1, 3)));
    rig.open();
    assert_eq!(read(&mut first).1, EndReason::Length);
    assert!(matches!(read(&mut bomb).1, EndReason::Failed(_)));
    assert_eq!(read(&mut waits), (String::new(), EndReason::NotRun));
    let reports = [rig.report(), rig.report(), rig.report()];
    let outcomes = reports.map(|report| format!("{:?}", report.outcome));
    assert!(outcomes.contains(&"Rejected".to_owned()), "{outcomes:?}");
}

#[test]
fn a_decoder_that_fails_again_and_again_ends_its_engine() {
    let rig = Rig::new(1, 1);
    for n in 1..=FAILURES_MAX {
        assert_eq!(rig.engine.health(), Health::Well, "after {n} failures");
        let mut poisoned = taken(rig.submit(Job {
            prompt: vec![POISON],
            ..rig.job(1, 3)
        }));
        assert_eq!(
            read(&mut poisoned).1,
            EndReason::Failed("poisoned".to_owned())
        );
    }
    while rig.engine.health() != Health::Dead {
        std::thread::yield_now();
    }
}

#[test]
fn a_step_that_never_ends_is_not_waited_for() {
    let rig = Rig::new(1, 1);
    let _runs = taken(rig.submit(rig.job(1, ENDLESS)));
    rig.reads.recv_timeout(PATIENCE).unwrap();
    rig.engine.stop(Duration::from_millis(20));
    assert_eq!(
        rig.engine.health(),
        Health::Well,
        "its step is still under way"
    );
}
