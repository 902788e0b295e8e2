//! Who waits for a load that a test lets go on.

use std::sync::mpsc::{Sender, channel};

use seatbelt_schemas::ids::ModelId;

use super::*;
use crate::{
    metrics::Metrics,
    seat::{Loaded, tests::Fake},
    session::library::tests::fetched,
};

async fn shelf(change: impl FnOnce(&mut NeuronConfig)) -> Arc<Shelf> {
    let mut config = NeuronConfig::new("outbox".into());
    config.onnxruntime = Some(fetched());
    change(&mut config);
    let loader = Loader::new(&config, &Arc::new(Metrics::new())).unwrap();
    let stopping = CancellationToken::new();
    Shelf::start(&config, loader, stopping).await.unwrap()
}

/// A model each of whose loads waits for a permit.
fn gated() -> (Arc<Seat<Fake>>, Sender<()>) {
    let (permits, gate) = channel();
    let gate = Mutex::new(gate);
    let load = move || {
        let _ = gate.lock().unwrap().recv();
        Ok(Loaded {
            runner: Fake::default(),
            bytes: 1,
        })
    };
    let id = ModelId::new("m").unwrap();
    (
        Arc::new(Seat::new(id, Memory::Host, 1, Box::new(load))),
        permits,
    )
}

#[tokio::test]
async fn so_many_wait_for_one_load_and_no_more() {
    let shelf = shelf(|config| config.queue = 3).await;
    let (seat, permits) = gated();
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (shelf, seat) = (Arc::clone(&shelf), Arc::clone(&seat));
        asked.spawn(async move { shelf.lease(&seat, None).await.map(drop) });
    }
    for _ in 0..2 {
        let refused = asked.join_next().await.unwrap().unwrap();
        assert_eq!(refused, Err(NotUp::Crowded));
    }
    // One permit: a second load would hang.
    permits.send(()).unwrap();
    while let Some(leased) = asked.join_next().await {
        assert_eq!(leased.unwrap(), Ok(()));
    }
    assert_eq!(shelf.waiting.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn a_load_goes_on_when_who_asked_for_it_has_left() {
    let shelf = shelf(|config| config.load_wait = Duration::ZERO).await;
    let (seat, permits) = gated();
    let early = shelf.lease(&seat, None).await.map(drop);
    assert_eq!(early, Err(NotUp::NotInTime));
    let late = shelf.lease(&seat, Some(Instant::now())).await.map(drop);
    assert_eq!(late, Err(NotUp::NotInTime), "at its deadline");
    permits.send(()).unwrap();
    let mut changes = seat.follow();
    while seat.up().is_none() {
        changes.changed().await.unwrap();
    }
    assert!(shelf.lease(&seat, None).await.is_ok());
}

#[tokio::test]
async fn nothing_is_loaded_any_more_once_the_neuron_stops() {
    let shelf = shelf(|_| {}).await;
    let (seat, _permits) = gated();
    shelf.stopping.cancel();
    let refused = shelf.lease(&seat, None).await.map(drop);
    assert_eq!(refused, Err(NotUp::Closed("the neuron is stopping")));
}

#[tokio::test]
async fn two_that_are_asked_for_together_take_turns() {
    let shelf = shelf(|config| {
        config.memory_bytes_max = Some(1);
        config.load_wait = Duration::from_secs(10);
    })
    .await;
    let [(one, permits), (other, others)] = [gated(), gated()];
    // each of one byte: they never fit together
    let both = [&one, &other].map(|seat| Arc::clone(seat) as Arc<dyn Resident>);
    shelf.parting().extend(both);
    for permits in [permits, others] {
        (0..9).for_each(|_| permits.send(()).unwrap());
    }
    let asked = [&one, &other].map(|seat| async { shelf.lease(seat, None).await.map(drop) });
    assert_eq!(futures::future::join_all(asked).await, [Ok(()), Ok(())]);
}
