//! Holds a request slice by slice while its neuron writes, where all of it at once does not fit.
//!
//! It begins with a small hold. Whatever more the ledger granted is given back at once. The neuron is told the limit with
//! the request and says when half of the last slice is written; then the next one, twice as large, is held first, and
//! told after that: so it never writes what is not held. Where a cap has less, what there is is taken. Where there is
//! nothing, but others hold some, the answer may wait for that as long as its request would have. Then the neuron is
//! told that no more will come, and ends the answer as at any maximum.
//!
//! All of that goes on beside the answer, of which nothing is read here, in a task that ends with its request.

use std::time::Duration;

use seatbelt_ledger::Pauses;
use seatbelt_schemas::{
    ids::{AccountId, CapId, KeyId, ReservationId},
    meter::Meter,
    neuron::{LimitCall, LimitTold, signature::NeuronSecret},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    clock::ms,
    config::{FIRST_SLICE, SLICE_MAX},
    gate::{Growing, NotGrown, Reservation},
    metrics::Slice,
    upstream::{
        choose::ChosenNeuron,
        limit::RunsAt,
        neuron::{Held, Pass},
    },
};

/// How long a neuron may take to say that half of a slice is written; then it is asked again.
const ASK_EVERY: Duration = Duration::from_secs(20);
/// Pause before a neuron is asked again that did not say: doubled each time. At first it only has not read the request.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The same before a cap is that has nothing left.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(400);
/// How often less is asked for in a row: each of several caps may have less than the one before.
const TRIES_MAX: usize = 4;

/// A request that is held in slices.
pub(super) struct Slices {
    /// What its neuron is told with it.
    pub(super) first: u64,
    /// Most output that it may come to.
    pub(super) most: u64,
    runs_at: watch::Sender<Option<RunsAt>>,
    task: JoinHandle<()>,
}

/// What it takes to call its neuron.
pub(super) struct Calls {
    pub(super) client: reqwest::Client,
    pub(super) secret: NeuronSecret,
    pub(super) deadline_ms: u64,
}

impl Slices {
    /// Begins with what was granted of a request that may have `most`.
    pub(super) fn begin(reservation: &mut Reservation, most: u64, calls: Calls) -> Self {
        let growing = reservation.growing();
        let first = growing.output_tokens().min(FIRST_SLICE).min(most);
        let (runs_at, told) = watch::channel(None);
        growing.gate().metrics().slice(Slice::Begun);
        let slicer = Slicer {
            reservation: reservation.id,
            account: reservation.account.clone(),
            key: reservation.key.clone(),
            input_tokens: reservation.hold().input_tokens,
            limit: first,
            step: FIRST_SLICE,
            most,
            growing,
            calls,
            runs_at: told,
        };
        Self {
            first,
            most,
            runs_at,
            task: tokio::spawn(slicer.run()),
        }
    }

    /// It is sent to this neuron now.
    pub(super) fn runs_at(&self, neuron: &ChosenNeuron) {
        self.runs_at.send_replace(Some(RunsAt {
            neuron: neuron.neuron.clone(),
            limit_url: neuron.limit_url.clone(),
        }));
    }

    /// Its hold stays as it is from now on.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        // a panic of its own was told where it happened
        let _ = (&mut self.task).await;
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Slicer {
    reservation: ReservationId,
    account: AccountId,
    key: KeyId,
    input_tokens: u64,
    /// What is held for sure, and the neuron may write.
    limit: u64,
    /// The next slice.
    step: u64,
    most: u64,
    growing: Growing,
    calls: Calls,
    runs_at: watch::Receiver<Option<RunsAt>>,
}

/// What became of asking for more.
#[derive(Debug)]
enum Grown {
    By(u64),
    /// This cap has nothing.
    Nothing(CapId, Meter),
    /// Nothing can be changed any more.
    Over,
}

impl Slicer {
    async fn run(mut self) {
        let mut is_last = self.growing.output_tokens() > self.limit
            && self.growing.to(self.limit).await == Err(NotGrown::Over);
        let (mut look_at, mut waits_since) = (self.limit.div_ceil(2), None);
        let mut looks = Pauses::new(LOOK_FIRST, LOOK_MAX);
        while !is_last {
            let told = self.told(look_at, false).await;
            if self.limit >= self.most {
                return; // and that is known there now
            }
            if told.written < look_at && !told.waits {
                continue;
            }
            match self.grow().await {
                Grown::By(more) => {
                    self.limit += more;
                    look_at = self.limit - more / 2;
                    waits_since = None;
                    looks = Pauses::new(LOOK_FIRST, LOOK_MAX);
                }
                Grown::Nothing(cap, meter) => {
                    let since = *waits_since.get_or_insert_with(Instant::now);
                    let patient = !told.waits || since.elapsed() < self.growing.patience;
                    is_last = !patient || !self.growing.others_hold(&cap, meter).await;
                    if !told.waits {
                        waits_since = None; // it waits for nobody yet
                    }
                    if !is_last {
                        sleep(looks.draw()).await;
                    }
                }
                Grown::Over => is_last = true,
            }
        }
        self.growing.gate().metrics().slice(Slice::Last);
        self.told(self.most, true).await;
    }

    /// Holds the next slice, or what there is of it.
    async fn grow(&mut self) -> Grown {
        let mut more = self.step.min(self.most - self.limit);
        let mut short = None;
        for _ in 0..TRIES_MAX {
            match self.growing.to(self.limit + more).await {
                Ok(()) => {
                    let slice = short.as_ref().map_or(Slice::Grown, |_| Slice::Short);
                    self.growing.gate().metrics().slice(slice);
                    if short.is_none() {
                        self.step = (self.step * 2).min(SLICE_MAX);
                    }
                    return Grown::By(more);
                }
                Err(NotGrown::Over) => return Grown::Over,
                Err(NotGrown::Short {
                    cap,
                    meter,
                    available,
                    requested,
                }) => {
                    more = part(more, available, requested);
                    short = Some((cap, meter));
                    if more == 0 {
                        break;
                    }
                }
            }
        }
        match short {
            Some((cap, meter)) => Grown::Nothing(cap, meter),
            None => Grown::Over,
        }
    }

    /// How the request stands, once so much of it is written, or it waits. Asks whoever runs it for as long as it
    /// takes; what comes to an end there ends this task too.
    async fn told(&self, written: u64, last: bool) -> LimitTold {
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        let mut changes = self.runs_at.clone();
        loop {
            let runs_at = changes.borrow_and_update().clone();
            if let Some(runs_at) = runs_at {
                let wait_ms = if last { 0 } else { ms(ASK_EVERY) };
                let call = LimitCall {
                    written,
                    wait_ms,
                    last,
                };
                let (calls, pass) = (&self.calls, self.pass());
                tokio::select! {
                    told = runs_at.told(&calls.client, &pass, call) => if let Some(told) = told {
                        return told;
                    },
                    // it went to another neuron meanwhile
                    _ = changes.changed() => {}
                }
            }
            sleep(pauses.draw()).await;
        }
    }

    fn pass(&self) -> Pass<'_> {
        Pass {
            secret: &self.calls.secret,
            held: Some(Held {
                reservation: self.reservation,
                account: &self.account,
                key: &self.key,
                input_tokens: self.input_tokens,
                output_tokens: self.limit,
                grows_to: None,
            }),
            deadline_ms: self.calls.deadline_ms,
        }
    }
}

/// What there is of a slice, where a cap has so much of what was asked for; less than the slice in any case.
fn part(slice: u64, available: u64, requested: u64) -> u64 {
    let scaled = u128::from(slice) * u128::from(available) / u128::from(requested.max(1));
    let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
    scaled.min(slice.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_slice_is_in_proportion_and_always_less() {
        assert_eq!(part(64, 10, 64), 10, "tokens");
        assert_eq!(part(64, 1_000, 64_000), 1, "money");
        assert_eq!(part(64, 999, 64_000), 0);
        assert_eq!(part(64, 64, 64), 63, "of caps that say nothing else");
        assert_eq!(part(1, 5, 5), 0);
        assert_eq!(part(0, 5, 0), 0);
        assert_eq!(part(u64::MAX, u64::MAX, 1), u64::MAX - 1);
    }
}
