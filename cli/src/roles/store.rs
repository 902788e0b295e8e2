//! What keeps the ledger, watched while requests are served: why it would turn a commit away, what will
//! soon be so, and when an embedded server has to be started again to go on.
//!
//! A server whose disk was full keeps refusing after there is room again, each stream by itself; a new one goes on
//! with what is on the disk, all of which was acknowledged only once it was there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use seatbelt_bus::{StoreLook, StoreSeen, Writes, store_look::PAYLOAD_BYTES_MIN};
use seatbelt_gateway::{Cause, Reason, Room};
use seatbelt_ledger::{cluster::ClusterLedger, nats::journal::STORES_NOTHING};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that must fail before it is believed: a leader may be elected in between.
const FAILURES_MIN: u32 = 2;
/// Percent of the store in use from which on there is a warning.
const NEARLY_FULL_PERCENT: u128 = 90;
/// Free bytes of the disk below which there is a warning, and above which a new server gets on.
const DISK_FREE_LOW: u64 = 256 << 20;
const DISK_FREE_ENOUGH: u64 = 8 << 20;
/// How long the store must take nothing, with room on the disk, before its server is started again, and
/// how long the new one is given.
const FROZEN_AFTER: Duration = Duration::from_secs(3);
const REVIVE_PAUSE: Duration = Duration::from_secs(30);

/// How the store stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoreState {
    pub(super) reasons: Vec<Reason>,
    pub(super) warnings: Vec<String>,
    pub(super) room: Option<Room>,
}

/// What is known of the store beside what it says.
pub(super) struct Watch {
    pub(super) look: StoreLook,
    /// The folder of the embedded server.
    pub(super) data_dir: Option<PathBuf>,
    pub(super) ledger: Arc<ClusterLedger>,
    /// Told when the embedded server has to be started again.
    pub(super) revive: Arc<Notify>,
}

/// Watches until `stop`.
pub(super) async fn watch(
    watched: Watch,
    told: watch::Sender<StoreState>,
    stop: CancellationToken,
) {
    let (mut failures, mut frozen) = (0_u32, Frozen::default());
    while !stop.is_cancelled() {
        let look = watched.look.look().await;
        failures = match look.writes {
            Writes::Taken => 0,
            _ => failures.saturating_add(1),
        };
        let disk_free = watched.data_dir.as_deref().and_then(disk_free);
        let state = judge(&look, disk_free, failures);
        let is_silent = look.writes == Writes::Silence || a_journal_is_frozen(&watched.ledger);
        if frozen.is_to_be_revived(is_silent, disk_free, Instant::now()) {
            warn!(
                "the disk has room again, or the store takes nothing though it has: nats-server is started again"
            );
            watched.revive.notify_one();
        }
        told.send_if_modified(|known| tell(known, state));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Whether a writer found that its journal takes nothing.
fn a_journal_is_frozen(ledger: &ClusterLedger) -> bool {
    let unserved = ledger.unserved();
    unserved
        .iter()
        .any(|(_, reason)| reason.contains(STORES_NOTHING))
}

/// Logs what is new and keeps it.
fn tell(known: &mut StoreState, state: StoreState) -> bool {
    for reason in &state.reasons {
        if !known.reasons.contains(reason) {
            error!(reason = reason.text, "requests that cost are turned away");
        }
    }
    if state.reasons.is_empty() && !known.reasons.is_empty() {
        info!("the store takes commits again");
    }
    let begins = known.warnings.is_empty() && !state.warnings.is_empty();
    if let (true, Some(warning)) = (begins, state.warnings.first()) {
        warn!(warning, "the store needs room soon");
    }
    let changed = *known != state;
    *known = state;
    changed
}

fn judge(look: &StoreSeen, disk_free: Option<u64>, failures: u32) -> StoreState {
    let store = |text: String| Reason {
        cause: Cause::Store,
        text,
    };
    let failed = match &look.writes {
        Writes::Taken => None,
        Writes::Refused(detail) => Some(store(format!(
            "the store takes nothing: {detail}; make room, or raise max_file_store of nats-server"
        ))),
        Writes::Silence => Some(store(
            "the store answers but keeps nothing: its disk is full or broken; see the log of nats-server and make room"
                .to_owned(),
        )),
        Writes::Unreached(detail) => Some(store(format!("the store is not reached: {detail}"))),
    };
    let mut reasons: Vec<_> = failed
        .filter(|_| failures >= FAILURES_MIN)
        .into_iter()
        .collect();
    reasons.extend(payload_reason(look.payload_max));
    let mut warnings = Vec::new();
    if let Some(stored) = look.stored
        && u128::from(stored.used) * 100 >= u128::from(stored.max) * NEARLY_FULL_PERCENT
    {
        let (used, max) = (stored.used, stored.max);
        warnings.push(format!(
            "the store is nearly full: {used} of {max} bytes are used; raise max_file_store of nats-server, or make room"
        ));
    }
    if let Some(free) = disk_free.filter(|free| *free < DISK_FREE_LOW) {
        warnings.push(format!(
            "the disk of nats.data_dir is nearly full: {free} bytes are free; make room"
        ));
    }
    let room = look.stored.map(|stored| Room {
        used: stored.used,
        max: stored.max,
    });
    StoreState {
        reasons,
        warnings,
        room,
    }
}

/// A server that takes no commit of full size would stop a partition at its first large one.
fn payload_reason(payload_max: usize) -> Option<Reason> {
    (payload_max < PAYLOAD_BYTES_MIN).then(|| Reason {
        cause: Cause::Payload,
        text: format!(
            "the nats server takes messages of at most {payload_max} bytes, and a commit may have {PAYLOAD_BYTES_MIN}: raise max_payload in its configuration"
        ),
    })
}

/// Free bytes of the disk that a folder is on.
fn disk_free(folder: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(folder).ok()?;
    disk.blocks_available().checked_mul(disk.fragment_size())
}

/// Tells a store that stays frozen from one that is only slow.
#[derive(Debug, Default)]
struct Frozen {
    since: Option<Instant>,
    revived: Option<Instant>,
    /// The disk was full. Each stream that was written to meanwhile may refuse for good, where nothing but a write
    /// would show it: that of the neurons, for one, whom no gateway would see again.
    was_full: bool,
}

impl Frozen {
    fn is_to_be_revived(&mut self, is_silent: bool, disk_free: Option<u64>, now: Instant) -> bool {
        let has_room = disk_free.is_some_and(|free| free >= DISK_FREE_ENOUGH);
        self.was_full |= disk_free.is_some() && !has_room;
        if !has_room || !(is_silent || self.was_full) {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let rests = self
            .revived
            .is_some_and(|at| now.saturating_duration_since(at) < REVIVE_PAUSE);
        if rests || now.saturating_duration_since(since) < FROZEN_AFTER {
            return false;
        }
        (self.since, self.revived, self.was_full) = (None, Some(now), false);
        true
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_bus::StoreFill;

    use super::*;

    fn look(writes: Writes) -> StoreSeen {
        StoreSeen {
            writes,
            stored: Some(StoreFill { used: 1, max: 100 }),
            payload_max: 1 << 20,
        }
    }

    #[track_caller]
    fn check(writes: Writes, words: &str) {
        let once = judge(&look(writes.clone()), None, 1);
        assert_eq!(once.reasons, [], "one failure is not believed");
        let state = judge(&look(writes), None, FAILURES_MIN);
        let [reason] = &state.reasons[..] else {
            panic!("{state:?}");
        };
        assert_eq!(reason.cause, Cause::Store);
        assert!(reason.text.contains(words), "{reason:?}");
    }

    #[test]
    fn a_store_that_takes_nothing_is_a_reason_with_its_remedy() {
        let full = "insufficient storage resources available";
        check(Writes::Refused(full.to_owned()), full);
        check(Writes::Silence, "make room");
        check(
            Writes::Unreached("it does not answer".to_owned()),
            "does not answer",
        );
        assert_eq!(judge(&look(Writes::Taken), None, 0).reasons, []);
    }

    #[test]
    fn a_store_nearly_full_is_a_warning_and_no_reason() {
        let mut full = look(Writes::Taken);
        full.stored = Some(StoreFill { used: 90, max: 100 });
        let state = judge(&full, Some(DISK_FREE_LOW - 1), 0);
        assert_eq!(
            (state.reasons.len(), state.warnings.len()),
            (0, 2),
            "{state:?}"
        );
        assert_eq!(state.room, Some(Room { used: 90, max: 100 }));
        let state = judge(&look(Writes::Taken), Some(DISK_FREE_LOW), 0);
        assert!(state.warnings.is_empty(), "{state:?}");
    }

    #[test]
    fn a_server_that_takes_no_whole_commit_is_a_reason() {
        let mut small = look(Writes::Taken);
        small.payload_max = PAYLOAD_BYTES_MIN - 1;
        let state = judge(&small, None, 0);
        assert_eq!(state.reasons[0].cause, Cause::Payload);
        assert!(state.reasons[0].text.contains("max_payload"));
    }

    #[test]
    fn a_frozen_store_is_revived_once_there_is_room_and_not_at_once_again() {
        let (mut frozen, begun) = (Frozen::default(), Instant::now());
        let mut at =
            |s, silent, free| frozen.is_to_be_revived(silent, free, begun + Duration::from_secs(s));
        let room = Some(DISK_FREE_ENOUGH);
        assert!(!at(0, true, Some(0)), "the disk is full");
        assert!(!at(60, true, Some(0)));
        assert!(!at(61, true, room), "it may only be slow");
        assert!(at(64, true, room));
        assert!(!at(65, true, room));
        assert!(!at(80, true, room), "the new one is given its time");
        assert!(at(95, true, room));
        assert!(!at(196, true, room), "it may only be slow");
        assert!(!at(197, false, room), "it was");
        assert!(!at(200, true, room));
        assert!(!at(300, true, None), "another's server");
    }

    #[test]
    fn a_server_whose_disk_was_full_is_started_again_once_whatever_still_takes_something() {
        let (mut frozen, begun) = (Frozen::default(), Instant::now());
        let mut at = |s, free| frozen.is_to_be_revived(false, free, begun + Duration::from_secs(s));
        let room = Some(DISK_FREE_ENOUGH);
        assert!(!at(0, room) && !at(10, room));
        assert!(!at(11, Some(DISK_FREE_ENOUGH - 1)));
        assert!(!at(12, room) && !at(14, room) && at(15, room));
        assert!(!at(16, room) && !at(300, room));
    }
}
