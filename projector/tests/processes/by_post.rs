//! What must hold between processes once all is well, although the post doubles, delays and reorders what
//! they send each other.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use seatbelt_ledger::api::{Read, Reserve};
use seatbelt_schemas::ids::CommandId;
use tokio::time::{sleep, timeout};

use crate::{
    calm::{granted, reserve},
    hosts::{Host, Hosts, STOP_MAX},
    medium::START_MS,
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

/// A process that dies while its caller waits leaves nothing held, when room comes.
pub(crate) async fn died_waiting(hosts: &Hosts, payers: &Payers) -> Result<(), String> {
    let (host, medium) = (elsewhere(hosts)?, &payers.medium);
    let before = granted(payers, &reserve(payers, "patient", 9_000, 0)).await?;
    let waiting = reserve(payers, "patient", 60_000, 10_000);
    let ledger = Arc::clone(&host.ledger);
    let asking = tokio::spawn(async move { ledger.reserve(waiting).await });
    sleep(Duration::from_millis(100) + medium.chance.ms(1_000)).await;
    host.life.kill();
    let patient = vocabulary::account("patient");
    payers.release(&patient, before).await;
    sleep(LASTS_WITHIN).await;
    let next = granted(payers, &reserve(payers, "patient", 500, 1_000)).await;
    let next = next.map_err(|error| format!("after a process died that waited: {error}"))?;
    payers.release(&patient, next).await;
    // what is left of it here reaches nobody
    asking.abort();
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

/// A process that is told to stop ends in time, although what its callers wait for cannot be read.
pub(crate) async fn stops_without_reading(hosts: &Hosts, payers: &Payers, host: &Host) {
    let medium = &payers.medium;
    medium.unreadable.store(true, Ordering::Relaxed);
    let waiting = (0..3).map(|number| {
        let (ledger, account) = (Arc::clone(&host.ledger), format!("stranger{number}"));
        let account = vocabulary::account(&account);
        // from before all that a writer keeps of commands
        let id = CommandId::from_parts(START_MS + 1, 1 << 77 | number);
        let older = Reserve {
            id,
            ..reserve(payers, "brief", 9_000, 0)
        };
        tokio::spawn(async move {
            let query = Read {
                account,
                key: None,
                run: None,
                reservation: None,
            };
            tokio::join!(ledger.read(query), ledger.reserve(older))
        })
    });
    let waiting: Vec<_> = waiting.collect();
    sleep(Duration::from_millis(50)).await;
    host.stop();
    // an orderly stop that does not end is told by who waits for it
    sleep(STOP_MAX + LASTS_WITHIN).await;
    medium.unreadable.store(false, Ordering::Relaxed);
    waiting.iter().for_each(|waiting| waiting.abort());
    hosts.put_right();
}

/// A process that cannot open the journal does not keep the lease from who can.
pub(crate) async fn lease_of_who_cannot_open(hosts: &Hosts, leader: &Host) -> Result<(), String> {
    elsewhere(hosts)?.life.blind.store(true, Ordering::Relaxed);
    leader.life.kill();
    Ok(())
}
