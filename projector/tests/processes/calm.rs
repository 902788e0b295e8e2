//! What nobody may miss once all is well: a host serves, patience is kept whatever its clock is set to, and
//! what is due is done in time while a crowd keeps the host at work.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use seatbelt_ledger::api::{Ledger, Reserve, ReserveOutcome};
use seatbelt_schemas::{
    cap::CapSpec,
    event::{EventBody, OnShort},
    ids::ReservationId,
    meter::Meter,
    scope::Scope,
    window::Window,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    hosts::{GRACE_MS, Host, Hosts},
    payers::Payers,
    vocabulary,
};

/// Accounts that nobody else uses.
pub(crate) const ACCOUNTS: [&str; 3] = ["brief", "patient", "crowd"];

/// A takeover from a dead host, or from one that takes as long to stop as it may.
const SERVES_WITHIN: Duration = Duration::from_secs(25);
/// What a process that is starting up needs to take the partition over, whether or not it may.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(8);
/// How late something may be.
const LATE_MS_MAX: u64 = 1_000;
/// Callers of the crowd, and how often each asks. Together with the work that each costs they keep the host
/// at it for seconds of its own time.
const CROWD: usize = 20;
const EACH_ASKS: usize = 40;
const WORK_US: u64 = 300;
/// How long the two that are due wait from when the crowd sets in.
const DUE_MS: u64 = 600;

pub(crate) fn one_at_a_time() -> CapSpec {
    vocabulary::cap(
        "one",
        Scope::Account,
        Meter::Concurrency,
        Window::Balance,
        1,
    )
}

pub(crate) async fn all_is_well(hosts: &Arc<Hosts>, payers: &Arc<Payers>) -> Result<(), String> {
    hosts.right_clocks();
    hosts.lay_zombies();
    // whoever must step down has done so by then
    sleep(TAKEN_OVER_WITHIN).await;
    let host = serving(hosts).await?;
    let (ahead_ms, back_ms) = (host.offset_ms.load(Ordering::Relaxed), 2_000);
    deadline(payers).await?;
    patience(payers, || {
        host.offset_ms.store(ahead_ms - back_ms, Ordering::Relaxed);
    })
    .await?;
    let due = due(payers).await?;
    crowd(payers, &host).await;
    sleep(Duration::from_secs(4)).await;
    in_time(payers, due)
}

async fn serving(hosts: &Arc<Hosts>) -> Result<Arc<Host>, String> {
    let served = async {
        loop {
            if let Some(host) = hosts.serving() {
                return host;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let served = timeout(SERVES_WITHIN, served).await;
    served.map_err(|_| "all is well, and nobody serves".to_owned())
}

fn reserve(payers: &Payers, account: &str, lasts_ms: u64, wait_ms: u64) -> Reserve {
    let account = vocabulary::account(account);
    let command = vocabulary::reserve(payers.id(), &account, &payers.medium);
    Reserve {
        on_short: OnShort::Refuse,
        run: None,
        deadline_ms: payers.medium.now_ms() + lasts_ms,
        wait_ms,
        ..command
    }
}

async fn granted(payers: &Payers, command: &Reserve) -> Result<ReservationId, String> {
    match payers.reserve(command).await {
        Some(Ok(ReserveOutcome::Reserved(grant))) => Ok(grant.reservation),
        other => Err(format!("all is well, and a hold is {other:?}")),
    }
}

/// One who waits is answered when his patience ends, whatever somebody does to the clock meanwhile.
async fn patience(payers: &Payers, meanwhile: impl FnOnce()) -> Result<(), String> {
    const WAIT_MS: u64 = 1_500;
    granted(payers, &reserve(payers, "patient", 3_000, 0)).await?;
    let waiting = reserve(payers, "patient", 9_000, WAIT_MS);
    let began = Instant::now();
    let (answer, ()) = tokio::join!(payers.reserve(&waiting), async {
        sleep(Duration::from_millis(WAIT_MS / 2)).await;
        meanwhile();
    });
    let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap();
    let refused = matches!(answer, Some(Ok(ReserveOutcome::Refused(_))));
    if !refused || !(WAIT_MS - 50..WAIT_MS + LATE_MS_MAX).contains(&waited_ms) {
        return Err(format!(
            "patience of {WAIT_MS} ms ended after {waited_ms} ms: {answer:?}"
        ));
    }
    sleep(Duration::from_millis(4_000)).await;
    Ok(())
}

/// Nobody waits beyond the request's own deadline, however long he would.
async fn deadline(payers: &Payers) -> Result<(), String> {
    const LASTS_MS: u64 = 1_200;
    granted(payers, &reserve(payers, "patient", 3_000, 0)).await?;
    let waiting = reserve(payers, "patient", LASTS_MS, 9_000);
    let began = Instant::now();
    let answer = payers.reserve(&waiting).await;
    let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap();
    sleep(Duration::from_millis(4_000)).await;
    match answer {
        Some(Ok(ReserveOutcome::Reserved(_))) | None => Err(format!(
            "one that lasts {LASTS_MS} ms got {answer:?} after {waited_ms} ms"
        )),
        _ if waited_ms > LASTS_MS + LATE_MS_MAX => Err(format!(
            "one that lasts {LASTS_MS} ms waited for {waited_ms} ms"
        )),
        _ => Ok(()),
    }
}

/// A hold that ends while the crowd is there.
async fn due(payers: &Payers) -> Result<ReservationId, String> {
    granted(payers, &reserve(payers, "crowd", 8_000, 0)).await?;
    granted(payers, &reserve(payers, "brief", DUE_MS, 0)).await
}

/// Asks for what is never granted, as fast as answers come.
async fn crowd(payers: &Payers, host: &Host) {
    let work_us = &payers.medium.work_us;
    let before = work_us.swap(WORK_US, Ordering::Relaxed);
    let ask = async || {
        for _ in 0..EACH_ASKS {
            let absurd = Reserve {
                output_tokens: u64::MAX,
                ..reserve(payers, "crowd", 5_000, 0)
            };
            drop(host.handle.reserve(absurd).await);
        }
    };
    join_all((0..CROWD).map(|_| ask())).await;
    work_us.store(before, Ordering::Relaxed);
}

fn in_time(payers: &Payers, reservation: ReservationId) -> Result<(), String> {
    let journal = payers.medium.journal.commits();
    let events = journal
        .iter()
        .flat_map(|commit| crate::promises::events(commit));
    let (mut due_ms, mut ended_ms) = (0, None);
    for event in events {
        match &event.body {
            EventBody::Reserved(data) if data.reservation == reservation => {
                due_ms = data.asked.deadline_ms + GRACE_MS;
            }
            EventBody::Expired(data) if data.reservation == reservation => {
                ended_ms = Some(event.at_ms);
            }
            _ => {}
        }
    }
    match ended_ms {
        Some(at_ms) if at_ms <= due_ms + LATE_MS_MAX => Ok(()),
        Some(at_ms) => Err(format!(
            "a hold ended {} ms late in a crowd",
            at_ms - due_ms
        )),
        None => Err("a hold did not end in a crowd".to_owned()),
    }
}
