//! What must hold between processes once all is well, although the post doubles, delays and reorders what
//! they send each other.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use crate::{
    calm::{granted, reserve},
    hosts::{Host, Hosts},
    payers::Payers,
    vocabulary,
};

/// When a caller leaves: its reserve was sent three times by then, and the last one may still be on its way.
const LEAVES_AFTER: Duration = Duration::from_millis(1_100);
/// Every message of it has arrived after this.
const ARRIVED: Duration = Duration::from_millis(3_500);
/// A commit that is awaited, and the way there and back.
const LASTS_WITHIN: Duration = Duration::from_secs(1);

fn elsewhere(hosts: &Hosts) -> Result<Arc<Host>, String> {
    let host = hosts.elsewhere();
    host.ok_or_else(|| "all is well, and nobody reaches the writer by post".to_owned())
}

/// A reserve that its caller gave up holds nothing, however often and late it was sent.
pub(crate) async fn given_up(hosts: &Hosts, payers: &Payers) -> Result<(), String> {
    let (host, medium) = (elsewhere(hosts)?, &payers.medium);
    let before = granted(payers, &reserve(payers, "patient", 9_000, 0)).await?;
    medium.office.strain(true);
    let left = reserve(payers, "patient", 60_000, 10_000);
    if let Ok(answer) = timeout(LEAVES_AFTER, host.ledger.reserve(left)).await {
        return Err(format!(
            "a reserve that finds no room has an answer: {answer:?}"
        ));
    }
    sleep(medium.chance.ms(1_500)).await;
    let patient = vocabulary::account("patient");
    payers.release(&patient, before).await;
    sleep(ARRIVED).await;
    medium.office.strain(false);
    let next = granted(payers, &reserve(payers, "patient", 500, 1_000)).await;
    let next = next.map_err(|error| format!("after a reserve was given up: {error}"))?;
    payers.release(&patient, next).await;
    Ok(())
}

/// A settle goes to the writer once, and its caller hears that it lasts.
pub(crate) async fn settled_once(hosts: &Hosts, payers: &Payers) -> Result<(), String> {
    let (host, office) = (elsewhere(hosts)?, &payers.medium.office);
    let reserved = reserve(payers, "patient", 4_000, 0);
    granted(payers, &reserved).await?;
    let (command, sent) = (payers.settlement(&reserved), office.settles());
    let taken = host.ledger.settle_early(command.clone()).await;
    let taken = taken.map_err(|error| format!("all is well, and a settle is {error}"))?;
    match timeout(LASTS_WITHIN, taken.lasting).await {
        Ok(Ok(resolution)) => payers.settled(&command, resolution.position),
        other => return Err(format!("nobody says that a settle lasts: {other:?}")),
    }
    match office.settles() - sent {
        1 => Ok(()),
        times => Err(format!("a settle was sent {times} times")),
    }
}

/// A process that cannot open the journal does not keep the lease from who can.
pub(crate) async fn lease_of_who_cannot_open(hosts: &Hosts, leader: &Host) -> Result<(), String> {
    elsewhere(hosts)?.life.blind.store(true, Ordering::Relaxed);
    leader.life.kill();
    Ok(())
}
