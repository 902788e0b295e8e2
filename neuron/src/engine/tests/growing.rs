//! Answers whose maximum grows while they run.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use seatbelt_schemas::usage::NeuronOutcome;

use super::{
    super::allowance::{PATIENCE, PATIENCE_BESIDE},
    *,
};

fn growing(rig: &Rig, now: usize, most: usize) -> (Generation, Allowance) {
    let allowance = Allowance::new(now, most);
    let job = Job {
        allowance: Some(allowance.clone()),
        ..rig.job(3, most)
    };
    (taken(rig.submit(job)), allowance)
}

fn until(said: impl Fn() -> bool) {
    while !said() {
        std::thread::yield_now();
    }
}

fn waits(allowance: &Allowance) -> impl Fn() -> bool {
    || allowance.stands().waits
}

#[test]
fn an_answer_at_its_limit_waits_and_nobody_waits_for_it() {
    let mut rig = Rig::new(2, 0);
    let (mut grows, allowance) = growing(&rig, 2, 6);
    assert_eq!(rig.step(), 1);
    until(waits(&allowance));
    let mut other = taken(rig.submit(rig.job(3, 4)));
    for _ in 0..3 {
        rig.step();
    }
    assert_eq!(read(&mut other), (Gated::letters(3, 4), EndReason::Length));
    assert!(allowance.stands().waits, "and it still waits");
    assert_eq!(allowance.stands().longest, 2);

    assert!(allowance.raise(4));
    rig.engine.look();
    for _ in 0..2 {
        assert_eq!(rig.step(), 1);
    }
    until(waits(&allowance));
    allowance.raise(100);
    rig.engine.look();
    rig.open();
    let whole = (Gated::letters(3, 6), EndReason::Length);
    assert_eq!(read(&mut grows), whole, "as if it had never waited");
    drop(rig.report());
    assert_eq!(rig.report().usage.output_tokens, 6);
}

#[test]
fn what_is_raised_before_it_is_needed_is_never_waited_for() {
    let mut rig = Rig::new(1, 0);
    let (mut grows, allowance) = growing(&rig, 3, 9);
    allowance.raise(9);
    rig.open();
    assert_eq!(read(&mut grows), (Gated::letters(3, 9), EndReason::Length));
}

#[test]
fn an_answer_that_gets_no_more_ends_at_its_limit() {
    let mut rig = Rig::new(1, 0);
    rig.open();
    let (mut grows, allowance) = growing(&rig, 2, 6);
    until(waits(&allowance));
    allowance.was_the_last();
    rig.engine.look();
    assert_eq!(read(&mut grows), (Gated::letters(3, 2), EndReason::Length));
    let report = rig.report();
    assert_eq!(report.outcome, NeuronOutcome::Completed);
    assert_eq!(report.usage.output_tokens, 2);
    assert!(!allowance.stands().waits);
}

#[test]
fn whoever_leaves_or_is_stopped_while_he_waits_is_reported_once() {
    let mut rig = Rig::new(1, 0);
    rig.open();
    let (grows, allowance) = growing(&rig, 2, 6);
    until(waits(&allowance));
    assert_eq!(rig.engine.active(), 1);
    drop(grows);
    let report = rig.report();
    assert_eq!(report.outcome, NeuronOutcome::Aborted);
    assert_eq!(report.usage.output_tokens, 2);
    assert!(!allowance.stands().waits);

    let (mut grows, allowance) = growing(&rig, 2, 6);
    until(waits(&allowance));
    rig.engine.abort_all();
    assert_eq!(read(&mut grows).1, EndReason::Stopping);
    assert_eq!(rig.report().usage.output_tokens, 2);
}

/// A rig whose clock only this moves.
fn timed(slots: usize, queue: usize) -> (Rig, Arc<AtomicU64>) {
    let mut rig = Rig::new(1, 0);
    let ms = Arc::new(AtomicU64::new(0));
    let (start, told) = (Instant::now(), Arc::clone(&ms));
    let clock = Clock::of(move || start + Duration::from_millis(told.load(Ordering::Acquire)));
    let decoder = Box::new(Gated {
        slots,
        gate: channel().1,
        steps: channel().0,
        reads: channel().0,
    });
    let model = ModelId::new("tiny").unwrap();
    let metrics = rig.office.office.metrics.of_engine(&model);
    rig.engine = Engine::start_at(clock, decoder, voice(), queue, metrics).unwrap();
    (rig, ms)
}

#[test]
fn nobody_waits_for_ever_and_less_long_where_others_wait_for_a_slot() {
    let (mut rig, ms) = timed(1, 1);
    let pass = |time: Duration| {
        let time = u64::try_from(time.as_millis()).unwrap();
        ms.fetch_add(time, Ordering::AcqRel);
    };
    let (mut alone, allowance) = growing(&rig, 2, 6);
    until(waits(&allowance));
    pass(PATIENCE - Duration::from_millis(1));
    rig.engine.look();
    assert!(allowance.stands().waits);
    pass(Duration::from_millis(1));
    assert_eq!(read(&mut alone), (Gated::letters(3, 2), EndReason::Length));

    let (mut first, allowance) = growing(&rig, 2, 6);
    until(waits(&allowance));
    let mut next = taken(rig.submit(rig.job(5, 2)));
    assert!(allowance.stands().waits);
    pass(PATIENCE_BESIDE);
    assert_eq!(read(&mut first), (Gated::letters(3, 2), EndReason::Length));
    assert_eq!(read(&mut next), (Gated::letters(5, 2), EndReason::Length));
    let page = rig.office.office.metrics.render(&[]);
    assert!(
        page.contains("seatbelt_neuron_limit_wait_seconds_count{model=\"tiny\"} 2"),
        "{page}"
    );
    drop(rig.report());
}
