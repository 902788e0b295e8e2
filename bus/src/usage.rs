//! Usage events as neurons publish them: to whoever waits for one, and all of them in order.
//!
//! Read from the stream and not from the subject, so that an event is handed out once it is stored,
//! and one that lands while the connection is away is not missed. Events without a reservation are
//! nobody's to wait for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_schemas::{ids::ReservationId, names::Names, usage::UsageEvent};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{
    Nats,
    cursor::{Cursor, CursorError},
    stream::info,
};
use crate::kept::StoreError;

/// Most callers waiting at once; more are answered at once that nothing came.
pub const USAGE_WAITERS_MAX: usize = 1 << 16;
/// Recent events kept for a caller that comes late.
pub const USAGE_RECENT_MAX: usize = 4096;
/// Pause before the stream is read again.
const PAUSE: Duration = Duration::from_millis(500);

/// Hands usage events to who waits for them. Clones share one reader, which ends with the last.
#[derive(Clone)]
pub struct NatsUsageEvents {
    waiting: Arc<Mutex<UsageWaiters>>,
    _reader: Arc<AbortOnDropHandle<()>>,
}

impl NatsUsageEvents {
    /// Begins to read at the stream's end.
    pub async fn start(nats: &Nats, names: &Names) -> Result<Self, StoreError> {
        let stream = names.usage_stream();
        let end = usage_end(nats, names).await?;
        let waiting = Arc::<Mutex<UsageWaiters>>::default();
        let reader = tokio::spawn(read(nats.clone(), stream, end, Arc::clone(&waiting)));
        Ok(Self {
            waiting,
            _reader: Arc::new(AbortOnDropHandle::new(reader)),
        })
    }

    /// Waits for the usage event of a reservation, at most `patience`. Call it before the request is
    /// dispatched or cancelled: an event published before the call may be missed.
    pub fn usage(
        &self,
        reservation: ReservationId,
        patience: Duration,
    ) -> BoxFuture<'static, Option<UsageEvent>> {
        let ticket = lock(&self.waiting).enter(reservation);
        let place = match ticket {
            Admittance::There(event) => return async move { Some(event) }.boxed(),
            Admittance::Full => return async { None }.boxed(),
            Admittance::Wait(receiver, number) => (
                receiver,
                Attendance {
                    waiting: Arc::clone(&self.waiting),
                    reservation,
                    number,
                },
            ),
        };
        async move {
            // the place is given up when the caller goes away, too
            let (receiver, _place) = place;
            timeout(patience, receiver).await.ok()?.ok()
        }
        .boxed()
    }
}

/// Sequence of the last usage event on the stream.
pub async fn usage_end(nats: &Nats, names: &Names) -> Result<u64, StoreError> {
    let stream = names.usage_stream();
    let info = info(nats, &stream).await;
    let info = info.map_err(|error| StoreError {
        action: format!("read the end of stream {stream}"),
        source: error.into(),
    })?;
    Ok(info.state.last_seq)
}

/// Every usage event after sequence `after` and then each new one as it lands. An event that does
/// not decode is logged and left out. Reconnects by itself; an error is the last item.
pub fn follow_usage(
    nats: &Nats,
    names: &Names,
    after: u64,
) -> BoxStream<'static, Result<(u64, UsageEvent), StoreError>> {
    let stream = names.usage_stream();
    let cursor = Cursor::after(nats.clone(), stream.clone(), after);
    stream::unfold(Some(cursor), move |cursor| {
        let stream = stream.clone();
        async move {
            let mut cursor = cursor?;
            match next_event(&mut cursor).await {
                Ok(item) => Some((Ok(item), Some(cursor))),
                Err(source) => {
                    let action = format!("read stream {stream}");
                    Some((Err(StoreError { action, source }), None))
                }
            }
        }
    })
    .boxed()
}

async fn next_event(cursor: &mut Cursor) -> Result<(u64, UsageEvent), CursorError> {
    loop {
        let item = cursor.next().await?;
        match UsageEvent::decode(&item.message.message.payload) {
            Ok(event) => return Ok((item.sequence, event)),
            Err(error) => {
                let sequence = item.sequence;
                warn!(sequence, %error, "usage event not readable: left out");
            }
        }
    }
}

async fn read(nats: Nats, stream: String, end: u64, waiting: Arc<Mutex<UsageWaiters>>) {
    let mut last = end;
    loop {
        if info(&nats, &stream)
            .await
            .is_ok_and(|found| found.state.last_seq < last)
        {
            warn!("the usage stream was made anew: reading it from its start");
            last = 0;
        }
        let mut cursor = Cursor::after(nats.clone(), stream.clone(), last);
        loop {
            match next_event(&mut cursor).await {
                Ok((sequence, event)) => {
                    last = sequence;
                    lock(&waiting).deliver(event);
                }
                Err(error) => {
                    warn!(error, "usage events cannot be read: trying again");
                    break;
                }
            }
        }
        sleep(PAUSE).await;
    }
}

fn lock(waiting: &Mutex<UsageWaiters>) -> MutexGuard<'_, UsageWaiters> {
    // no code panics while it holds the lock half way through a change
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits, and what came recently.
#[derive(Default)]
struct UsageWaiters {
    waiters: HashMap<ReservationId, Vec<(u64, oneshot::Sender<UsageEvent>)>>,
    count: usize,
    next_number: u64,
    recent: HashMap<ReservationId, UsageEvent>,
    order: VecDeque<ReservationId>,
}

enum Admittance {
    There(UsageEvent),
    Wait(oneshot::Receiver<UsageEvent>, u64),
    Full,
}

impl UsageWaiters {
    fn enter(&mut self, reservation: ReservationId) -> Admittance {
        if let Some(event) = self.recent.get(&reservation) {
            return Admittance::There(event.clone());
        }
        if self.count >= USAGE_WAITERS_MAX {
            return Admittance::Full;
        }
        let (sender, receiver) = oneshot::channel();
        let number = self.next_number;
        self.next_number += 1;
        self.count += 1;
        let waiters = self.waiters.entry(reservation).or_default();
        waiters.push((number, sender));
        Admittance::Wait(receiver, number)
    }

    fn leave(&mut self, reservation: ReservationId, number: u64) {
        let Some(waiters) = self.waiters.get_mut(&reservation) else {
            return;
        };
        let before = waiters.len();
        waiters.retain(|(other, _)| *other != number);
        self.count -= before - waiters.len();
        if waiters.is_empty() {
            self.waiters.remove(&reservation);
        }
    }

    fn deliver(&mut self, event: UsageEvent) {
        let Ok(reservation) = event.reservation.parse::<ReservationId>() else {
            return;
        };
        let waiters = self.waiters.remove(&reservation).unwrap_or_default();
        self.count -= waiters.len();
        for (_, waiter) in waiters {
            // one who left needs none
            let _ = waiter.send(event.clone());
        }
        if self.recent.insert(reservation, event).is_none() {
            self.order.push_back(reservation);
        }
        if self.order.len() > USAGE_RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.recent.remove(&oldest);
        }
    }
}

/// A caller's place; left when dropped.
struct Attendance {
    waiting: Arc<Mutex<UsageWaiters>>,
    reservation: ReservationId,
    number: u64,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        lock(&self.waiting).leave(self.reservation, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seatbelt_schemas::{
        ids::NeuronId,
        usage::{NeuronOutcome, NeuronUsage},
    };

    fn id(number: u128) -> ReservationId {
        ReservationId::from_parts(1, number)
    }

    fn event(reservation: ReservationId) -> UsageEvent {
        UsageEvent {
            v: 1,
            reservation: reservation.to_string(),
            account: None,
            key: None,
            model: None,
            neuron: NeuronId::new("n").unwrap(),
            device: "cpu".to_owned(),
            usage: NeuronUsage::default(),
            outcome: NeuronOutcome::Completed,
            queued_ms: 0,
            prefill_ms: 0,
            decode_ms: 0,
            at_ms: 0,
        }
    }

    #[test]
    fn an_event_reaches_who_waits_and_who_comes_late() {
        let mut waiting = UsageWaiters::default();
        let Admittance::Wait(mut receiver, _) = waiting.enter(id(1)) else {
            panic!("nothing came yet");
        };
        waiting.deliver(event(id(1)));
        assert_eq!(receiver.try_recv().unwrap(), event(id(1)));
        assert!(matches!(waiting.enter(id(1)), Admittance::There(_)));
        assert_eq!(waiting.count, 0);
    }

    #[test]
    fn who_leaves_leaves_nothing_behind() {
        let mut waiting = UsageWaiters::default();
        let Admittance::Wait(_first, one) = waiting.enter(id(1)) else {
            panic!("nothing came yet");
        };
        let Admittance::Wait(_second, two) = waiting.enter(id(1)) else {
            panic!("nothing came yet");
        };
        waiting.leave(id(1), one);
        assert_eq!((waiting.count, waiting.waiters.len()), (1, 1));
        waiting.leave(id(1), two);
        assert_eq!((waiting.count, waiting.waiters.len()), (0, 0));
    }

    #[test]
    fn recent_events_are_bounded() {
        let mut waiting = UsageWaiters::default();
        for number in 0..=USAGE_RECENT_MAX as u128 {
            waiting.deliver(event(id(number)));
        }
        assert_eq!(waiting.recent.len(), USAGE_RECENT_MAX);
        assert!(matches!(waiting.enter(id(0)), Admittance::Wait(..)));
        assert!(matches!(waiting.enter(id(1)), Admittance::There(_)));
    }
}
