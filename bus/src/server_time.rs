//! The server's time, carried on by this process's monotonic clock.
//!
//! A gateway names deadlines, ids and waits that a writer in another process goes by. By a wall clock that is
//! off, a hold would end while its request runs, or be refused as if the caller were to blame; so it asks the
//! clock that all of a ledger share, and its own is only told to the operator. A look at the server's clock
//! lies between two readings of ours and gives bounds, no number: a reckoning that is within them stays.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use seatbelt_schemas::{names::Names, position::Partitions};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Nats, settings::bucket_stream, stream};

/// How often the server's clock is looked at, and how soon again where it did not answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long an answer may take: a look that took longer says little.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long a start waits for the first look.
const FIRST_MAX: Duration = Duration::from_secs(10);
/// A wall clock that is further off is told.
const TOLD_FROM_MS: u64 = 1_000;

/// What the server's clock shows now, as far as it is known.
#[derive(Debug)]
pub struct ServerTime {
    /// Any of these tells it.
    streams: Vec<String>,
    began: Instant,
    /// The server's time when this began, unix ms.
    at_began_ms: AtomicU64,
    /// How far the wall clock of this machine is ahead of it, ms.
    ahead_ms: AtomicI64,
}

/// One look at the server's clock: when it was asked and when it was heard, since the beginning, and what it
/// showed in between, unix ms.
#[derive(Debug, Clone, Copy)]
struct Look {
    asked_ms: u64,
    heard_ms: u64,
    server_ms: u64,
}

impl Look {
    /// What the server's clock may have shown at the beginning, the least and the most.
    fn bounds_ms(self) -> (u64, u64) {
        // it shows whole ms: it may be almost one further
        let most = self.server_ms.saturating_add(1);
        (
            self.server_ms.saturating_sub(self.heard_ms),
            most.saturating_sub(self.asked_ms),
        )
    }
}

impl ServerTime {
    /// Asks until there is an answer, for ten seconds at most: then it goes on from this machine's clock, and
    /// [`ServerTime::follow`] mends it.
    pub async fn start(nats: &Nats, names: &Names, partitions: Partitions) -> Arc<Self> {
        Self::start_from(nats, names, partitions, wall_ms()).await
    }

    /// As [`ServerTime::start`], where this machine's clock shows `own_ms`.
    pub async fn start_from(
        nats: &Nats,
        names: &Names,
        partitions: Partitions,
        own_ms: u64,
    ) -> Arc<Self> {
        Self::told_by(nats, streams(names, partitions), own_ms).await
    }

    /// As [`ServerTime::start_from`], for a neuron, which may look at no stream of the ledger.
    pub async fn start_at_neuron(nats: &Nats, names: &Names, own_ms: u64) -> Arc<Self> {
        let streams = vec![bucket_stream(&names.neuron_bucket()), names.usage_stream()];
        Self::told_by(nats, streams, own_ms).await
    }

    async fn told_by(nats: &Nats, streams: Vec<String>, own_ms: u64) -> Arc<Self> {
        let time = Arc::new(Self {
            streams,
            began: Instant::now(),
            at_began_ms: AtomicU64::new(own_ms),
            ahead_ms: AtomicI64::new(0),
        });
        let first = timeout(FIRST_MAX, async {
            while !time.look(nats).await {
                sleep(LOOK_EVERY / 8).await;
            }
        });
        if first.await.is_err() {
            warn!("nats-server does not tell its time: this machine's is taken until it does");
        }
        time
    }

    /// The server's time, unix ms.
    pub fn now_ms(&self) -> u64 {
        let at_began_ms = self.at_began_ms.load(Ordering::Relaxed);
        at_began_ms.saturating_add(ms(self.began.elapsed()))
    }

    /// How far the wall clock of this machine was ahead at the last look, ms; behind, where negative.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// That the wall clock of this machine is off, for people, with the remedy.
    pub fn warning(&self) -> Option<String> {
        let ahead_ms = self.ahead_ms();
        let direction = if ahead_ms < 0 { "behind" } else { "ahead of" };
        (ahead_ms.unsigned_abs() > TOLD_FROM_MS).then(|| {
            format!(
                "this machine's clock is {} ms {direction} the clock of nats-server, which requests go by: set the one that is wrong right (chrony, systemd-timesyncd)",
                ahead_ms.unsigned_abs()
            )
        })
    }

    /// Looks at the server's clock from time to time.
    pub async fn follow(&self, nats: &Nats, stop: &CancellationToken) {
        let mut off = false;
        while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
            let looked = stop.run_until_cancelled(self.look(nats)).await;
            if looked == Some(true) {
                off = self.tell(off);
            }
        }
    }

    /// Logs a wall clock that comes to be off, and one that is right again, each once.
    fn tell(&self, was_off: bool) -> bool {
        let ahead_ms = self.ahead_ms();
        let off = ahead_ms.unsigned_abs() > TOLD_FROM_MS;
        match self.warning() {
            Some(text) if !was_off => warn!("{text}"),
            None if was_off => info!(ahead_ms, "this machine's clock is right again"),
            _ => {}
        }
        off
    }

    /// Whether the server told its time. Any of the ledger's streams will do: one may be gone.
    async fn look(&self, nats: &Nats) -> bool {
        for stream in &self.streams {
            let asked_ms = ms(self.began.elapsed());
            let told = timeout(LOOK_MAX, stream::info(nats, stream)).await;
            match told {
                Ok(Ok(info)) => {
                    let Ok(Some(server_ms)) = info.server_ms() else {
                        return false;
                    };
                    self.take(Look {
                        asked_ms,
                        heard_ms: ms(self.began.elapsed()),
                        server_ms,
                    });
                    return true;
                }
                // a stream that is gone: the next one
                Ok(Err(_)) => {}
                // nobody answers: nor would they for the next one
                Err(_) => return false,
            }
        }
        false
    }

    fn take(&self, look: Look) {
        let (least, most) = look.bounds_ms();
        let reckoned = self.at_began_ms.load(Ordering::Relaxed);
        self.at_began_ms
            .store(reckoned.clamp(least, most), Ordering::Relaxed);
        let ahead_ms = i128::from(wall_ms()) - i128::from(self.now_ms());
        self.ahead_ms.store(
            i64::try_from(ahead_ms).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
    }
}

fn streams(names: &Names, partitions: Partitions) -> Vec<String> {
    let mut streams: Vec<String> = partitions
        .iter()
        .map(|partition| names.journal_stream(partition))
        .collect();
    // there from the first start on
    streams.push(format!("KV_{}", names.meta_bucket()));
    streams
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, ms)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn reckoning(at_began_ms: u64) -> ServerTime {
        ServerTime {
            streams: Vec::new(),
            began: Instant::now(),
            at_began_ms: AtomicU64::new(at_began_ms),
            ahead_ms: AtomicI64::new(0),
        }
    }

    fn look(asked_ms: u64, heard_ms: u64, server_ms: u64) -> Look {
        Look {
            asked_ms,
            heard_ms,
            server_ms,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_by_the_server_and_by_no_wall_clock() {
        let server_ms = 5 * HOUR_MS;
        for own_ms in [server_ms - HOUR_MS, server_ms, server_ms + HOUR_MS] {
            let time = reckoning(own_ms);
            time.take(look(0, 10, server_ms));
            let off_ms = time.now_ms().abs_diff(server_ms);
            assert!(off_ms <= 10, "{off_ms}");
            // and goes on by itself
            let before_ms = time.now_ms();
            tokio::time::advance(Duration::from_secs(60)).await;
            assert_eq!(time.now_ms(), before_ms + 60_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_says_nothing_new_changes_nothing_and_a_slow_one_little() {
        let time = reckoning(HOUR_MS);
        time.take(look(1_000, 1_004, HOUR_MS + 1_002));
        assert_eq!(time.now_ms(), HOUR_MS);
        // it may have been shown at any moment of a second
        time.take(look(2_000, 3_000, HOUR_MS + 3_000));
        assert_eq!(time.now_ms(), HOUR_MS);
        time.take(look(4_000, 4_010, HOUR_MS + 4_100));
        assert_eq!(time.now_ms(), HOUR_MS + 90);
    }
}
