//! What all projections share while they follow the journal: why they stop, how long they pause
//! before they try again, and how an error is told with its causes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::Halt;

/// Pause before something that did not work is tried again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Longest such pause.
pub(crate) const RETRY_PAUSE_MAX: Duration = Duration::from_secs(4);

/// When something that lasts is told again, first and at the longest.
const COMPLAINT_AGAIN: Duration = Duration::from_secs(2);
const COMPLAINT_AGAIN_MAX: Duration = Duration::from_secs(60);
/// What did not happen for so long has ended: the next time it begins anew. Longer than a write waits for
/// its acknowledgement.
const COMPLAINT_OVER: Duration = Duration::from_secs(10);

/// Pauses between tries, each longer than the one before; each failed try is told, so that what lasts
/// is told ever less often.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(RETRY_PAUSE)
    }
}

impl Patience {
    /// It works again.
    pub(crate) fn renew(&mut self) {
        self.0 = RETRY_PAUSE;
    }

    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(RETRY_PAUSE_MAX);
        now
    }

    /// Waits, or until `stop`.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.next()) => {}
        }
    }
}

/// Something that lasts, told when it begins and then ever less often; what tries again goes on as often
/// as before.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<Instant>,
    told: Option<(Instant, Duration)>,
}

impl Complaint {
    /// It happened again; whether to tell.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.last.is_some_and(|last| since(last) > COMPLAINT_OVER) {
            self.told = None;
        }
        self.last = Some(now);
        let pause = match self.told {
            None => COMPLAINT_AGAIN,
            Some((at, pause)) if since(at) >= pause => (pause * 2).min(COMPLAINT_AGAIN_MAX),
            Some(_) => return false,
        };
        self.told = Some((now, pause));
        true
    }
}

/// Why a projection does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Somebody else writes this partition's projections, or an own earlier write landed late: let
    /// go of everything held in memory and ask for the seat again.
    Fenced,
    /// The journal cannot be followed.
    Halted(Halt),
}

/// Waits a little, or until `stop`.
pub(crate) async fn pause(stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(RETRY_PAUSE) => {}
    }
}

/// Unix time in ms.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_when_it_begins_and_ever_less_often() {
        let (mut complaint, begun) = (Complaint::default(), Instant::now());
        let told: Vec<_> = (0..200_u32)
            .map(|n| begun + RETRY_PAUSE * n)
            .filter(|now| complaint.is_due(*now))
            .map(|now| (now - begun).as_secs())
            .collect();
        assert_eq!(told, [0, 2, 6, 14, 30]);
        let later = begun + RETRY_PAUSE * 200 + COMPLAINT_OVER;
        assert!(complaint.is_due(later), "it begins anew");
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_once_it_works() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = (0..7).map(|_| patience.next().as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 4000]);
        patience.renew();
        assert_eq!(patience.next(), RETRY_PAUSE);
    }
}
