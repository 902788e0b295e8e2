//! Offers events to the sink until it takes them.
//!
//! Several at once and in no order: each event stands for itself. A sink that does not answer is
//! asked again, ever more slowly, for as long as the neuron runs.

use std::{io, path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use seatbelt_bus::Pauses;
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    UsageSink,
    outbox::{Outbox, Parcel},
};

/// Events offered at once.
const IN_FLIGHT_MAX: usize = 32;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Outbox {
    /// Opens the outbox in `folder` and publishes to `sink` until `stop`. Without a sink, events stay
    /// in the outbox.
    pub(crate) fn start(
        folder: &Path,
        sink: Option<Arc<dyn UsageSink>>,
        stop: CancellationToken,
    ) -> io::Result<(Self, Option<JoinHandle<()>>)> {
        let (outbox, outgoing) = Self::open(folder)?;
        let publisher = sink.map(|sink| {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = publish(outbox, outgoing, sink) => {}
                    () = stop.cancelled() => {}
                }
            })
        });
        Ok((outbox, publisher))
    }
}

async fn publish(outbox: Outbox, outgoing: UnboundedReceiver<Parcel>, sink: Arc<dyn UsageSink>) {
    let parcels = futures::stream::unfold(outgoing, async |mut outgoing| {
        let parcel = outgoing.recv().await?;
        Some((parcel, outgoing))
    });
    let deliver = async |parcel: Parcel| {
        deliver(sink.as_ref(), &parcel).await;
        outbox.taken(parcel.n);
    };
    parcels.for_each_concurrent(IN_FLIGHT_MAX, deliver).await;
}

async fn deliver(sink: &dyn UsageSink, parcel: &Parcel) {
    let mut pauses = Pauses::new(RETRY_FIRST, RETRY_MAX);
    while let Err(error) = sink.publish(parcel.id.clone(), parcel.event.clone()).await {
        tracing::warn!(%error, id = %parcel.id, "a usage event was not taken, it will be offered again");
        tokio::time::sleep(pauses.draw()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;
    use crate::usage::SinkError;

    /// Refuses so many times, then passes on.
    struct Stubborn {
        refusals: AtomicUsize,
        taken: mpsc::UnboundedSender<(String, Bytes)>,
    }

    impl UsageSink for Stubborn {
        fn publish(
            &self,
            id: String,
            event: Bytes,
        ) -> Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + '_>> {
            Box::pin(async move {
                let left =
                    self.refusals
                        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                            left.checked_sub(1)
                        });
                if left.is_ok() {
                    return Err(SinkError("not now".to_owned()));
                }
                self.taken
                    .send((id, event))
                    .map_err(|_| SinkError("gone".to_owned()))
            })
        }
    }

    fn stubborn(refusals: usize) -> (Arc<dyn UsageSink>, mpsc::UnboundedReceiver<(String, Bytes)>) {
        let (taken, received) = mpsc::unbounded_channel();
        (
            Arc::new(Stubborn {
                refusals: AtomicUsize::new(refusals),
                taken,
            }),
            received,
        )
    }

    #[tokio::test]
    async fn an_event_is_offered_until_it_is_taken_and_then_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (sink, mut received) = stubborn(2);
        let stop = CancellationToken::new();
        let (outbox, _) = Outbox::start(folder.path(), Some(sink), stop.clone()).unwrap();
        assert!(
            outbox
                .end(None, "a".to_owned(), Bytes::from_static(b"event"))
                .wait()
                .await
        );
        assert_eq!(
            received.recv().await.unwrap(),
            ("a".to_owned(), Bytes::from_static(b"event"))
        );
        outbox.drained().await;
        assert!(received.try_recv().is_err());
    }

    #[tokio::test]
    async fn events_left_by_a_run_without_a_sink_come_out_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::start(folder.path(), None, CancellationToken::new()).unwrap();
        let n = outbox.begin("ran".to_owned(), Bytes::from_static(b"bound"));
        assert!(
            outbox
                .end(Some(n), "ran".to_owned(), Bytes::from_static(b"truth"))
                .wait()
                .await
        );
        outbox.begin("lost".to_owned(), Bytes::from_static(b"bound"));
        assert!(
            outbox
                .end(None, "turned away".to_owned(), Bytes::from_static(b"none"))
                .wait()
                .await
        );
        outbox.close();

        let (sink, mut received) = stubborn(0);
        let (outbox, _) =
            Outbox::start(folder.path(), Some(sink), CancellationToken::new()).unwrap();
        outbox.drained().await;
        let mut seen = Vec::new();
        while let Ok((id, event)) = received.try_recv() {
            seen.push((id, event));
        }
        seen.sort();
        let expected = [("lost", "bound"), ("ran", "truth"), ("turned away", "none")];
        assert_eq!(
            seen,
            expected.map(|(id, event)| (id.to_owned(), Bytes::from(event)))
        );
    }
}
