//! A seat with a model that runs nothing, and is as a test has it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// Runs nothing, and is as a test has it.
#[derive(Default)]
pub(crate) struct Fake {
    dead: AtomicBool,
    pub(crate) busy: AtomicUsize,
    stopped: AtomicBool,
}

impl Runs for Fake {
    fn health(&self) -> Health {
        match self.dead.load(Ordering::Acquire) {
            true => Health::Dead,
            false => Health::Well,
        }
    }

    fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    fn abort_all(&self) {}

    fn stop(&self, _: Duration) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// A seat whose load fails while told so.
fn seat(fails: &Arc<AtomicBool>) -> Arc<Seat<Fake>> {
    let fails = Arc::clone(fails);
    let load = move || match fails.load(Ordering::Acquire) {
        true => Err(NeuronError::Model {
            model: "m".to_owned(),
            detail: "no".to_owned(),
        }),
        false => Ok(Loaded {
            runner: Fake::default(),
            bytes: 7,
        }),
    };
    let id = ModelId::new("m").unwrap();
    Arc::new(Seat::new(id, Memory::Host, 9, Box::new(load)))
}

fn up(seat: &Arc<Seat<Fake>>) -> Arc<Fake> {
    assert!(seat.claim(Cause::Asked));
    seat.bring().unwrap();
    seat.up().unwrap()
}

#[test]
fn a_load_is_for_one_alone() {
    let seat = seat(&Arc::default());
    assert!(matches!(seat.look(1), Look::Out));
    assert!(seat.claim(Cause::Asked) && !seat.claim(Cause::Asked));
    assert!(matches!(seat.look(2), Look::Loading));
    let takes = seat.takes();
    assert_eq!(
        (takes.bytes, takes.held),
        (9, false),
        "while it waits for room"
    );
    assert_eq!(seat.take_out().err(), Some(NotOut::Busy));
    seat.bring().unwrap();
    assert!(seat.takes().held);
    assert!(matches!(seat.look(3), Look::Up(_)));
    assert_eq!((seat.takes().bytes, seat.takes().idle_since), (7, Some(3)));
    assert!(!seat.claim(Cause::Asked));
}

#[test]
fn one_that_is_used_is_not_taken_out() {
    let seat = seat(&Arc::default());
    let runner = up(&seat);
    let Look::Up(lease) = seat.look(1) else {
        panic!("it is up")
    };
    assert_eq!(seat.take_out().err(), Some(NotOut::Busy), "it is leased");
    runner.busy.store(1, Ordering::Release);
    drop(lease);
    assert_eq!(seat.take_out().err(), Some(NotOut::Busy), "it has work");
    assert_eq!(seat.takes().idle_since, None);
    runner.busy.store(0, Ordering::Release);
    assert!(seat.take_out().is_ok());
    assert_eq!(seat.take_out().err(), Some(NotOut::IsOut));
    assert!(!seat.takes().held);
}

#[test]
fn what_breaks_down_is_stopped_before_it_is_loaded_again() {
    let fails = Arc::default();
    let seat = seat(&fails);
    let runner = up(&seat);
    assert!(!seat.is_due());
    runner.dead.store(true, Ordering::Release);
    assert!(seat.status().is_broken() && seat.is_due());
    assert!(matches!(seat.look(1), Look::Closed(_)));
    fails.store(true, Ordering::Release);
    assert!(seat.claim(Cause::Asked) && seat.status() == Status::Broken);
    seat.bring().unwrap_err();
    assert!(runner.stopped.load(Ordering::Acquire));
    assert!(seat.status().is_broken(), "it did not come back");
    fails.store(false, Ordering::Release);
    while !seat.is_due() {}
    assert!(seat.claim(Cause::Asked));
    seat.bring().unwrap();
    assert_eq!(seat.status(), Status::Ready);
}

#[test]
fn what_fails_at_the_start_is_for_an_operator_and_later_is_tried_again() {
    for (cause, again) in [(Cause::Start, false), (Cause::Asked, true)] {
        let fails = Arc::new(AtomicBool::new(true));
        let seat = seat(&fails);
        assert!(seat.claim(cause));
        seat.bring().unwrap_err();
        let status = seat.status();
        assert!(!status.is_broken() && status.word() == "failed");
        assert!(status.reason().is_some_and(|why| why.contains("no")));
        assert!(status.closed().is_some_and(|why| !why.contains(": no")));
        assert_eq!((0..100).any(|_| seat.is_due()), again);
        fails.store(false, Ordering::Release);
        assert!(
            up(&seat).busy() == 0,
            "whoever asks for it by name is heard"
        );
    }
}

#[test]
fn one_that_was_taken_away_is_nobody_s() {
    let seat = seat(&Arc::default());
    let _runner = up(&seat);
    seat.retire();
    assert!(matches!(seat.look(1), Look::Gone));
    assert!(seat.take_out().is_ok() && !seat.claim(Cause::Asked));
}
