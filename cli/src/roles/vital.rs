//! META, the usage events, and what clients' requests are bound by, watched while requests are served: none of them is
//! derived, and nobody would miss them before the next start.

use std::time::Duration;

use seatbelt_bus::vital::Vitals;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks in a row that must find the same before it is believed: a leader may be elected in between.
const FOUND_MIN: u32 = 2;

/// Watches until `stop`; what stands against them is told.
pub(super) async fn watch(
    vitals: Vitals,
    told: watch::Sender<Vec<String>>,
    stop: CancellationToken,
) {
    let (mut last, mut times) = (Vec::new(), 0);
    while !stop.is_cancelled() {
        let found = vitals.look().await;
        times = match found == last {
            true => times + 1,
            false => 1,
        };
        if times >= FOUND_MIN || found.is_empty() {
            told.send_if_modified(|known| tell(known, &found));
        }
        last = found;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn tell(known: &mut Vec<String>, found: &[String]) -> bool {
    for what in found.iter().filter(|what| !known.contains(what)) {
        error!(what, "what no start may find missing is in trouble");
    }
    if found.is_empty() && !known.is_empty() {
        info!("all that no start may find missing is there again");
    }
    let changed = *known != found;
    found.clone_into(known);
    changed
}
