//! What nobody may miss once all is well: a host serves, patience is kept whatever its clock is set to, and
//! what is due is done in time while a crowd keeps the host at work.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use seatbelt_ledger::api::{Read, Reserve, ReserveOutcome};
use seatbelt_schemas::{
    cap::CapSpec,
    event::{EventBody, OnShort},
    ids::ReservationId,
    meter::Meter,
    scope::Scope,
    window::Window,
};
use tokio::time::{Instant, advance, sleep, timeout};

use crate::{
    by_post,
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
/// Readers: more than a task of the executor serves in one turn, where what each costs fills a burst.
const READERS: usize = 400;
const EACH_READS: usize = 8;
const EACH_TAKES: Duration = Duration::from_millis(500);
const READ_WORK_US: u64 = 500;
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
    hosts.put_right();
    hosts.lay_zombies();
    // whoever must step down has done so by then
    sleep(TAKEN_OVER_WITHIN).await;
    let host = serving(hosts).await?;
    agreed(hosts).await?;
    let (ahead_ms, back_ms) = (host.offset_ms.load(Ordering::Relaxed), 2_000_i64);
    deadline(payers).await?;
    patience(payers, || {
        host.offset_ms.store(ahead_ms - back_ms, Ordering::Relaxed);
    })
    .await?;
    // by the clock that was set back, the hold of the patient has ended too
    sleep(Duration::from_millis(back_ms.unsigned_abs() + 500)).await;
    by_post::given_up(hosts, payers).await?;
    by_post::died_waiting(hosts, payers).await?;
    agreed(hosts).await?;
    by_post::settled_once(hosts, payers).await?;
    let due = due(payers).await?;
    let (answer, ()) = tokio::join!(
        host.ledger.reserve(due.waiting.clone()),
        crowd(payers, &host)
    );
    drop(answer);
    sleep(Duration::from_secs(4)).await;
    in_time(payers, &due)?;
    by_post::lease_of_who_cannot_open(hosts, &host).await?;
    let host = serving(hosts).await?;
    by_post::stops_without_reading(hosts, payers, &host).await;
    serving(hosts).await.map(drop)
}

/// Waits until both processes know who serves.
async fn agreed(hosts: &Arc<Hosts>) -> Result<(), String> {
    let agreed = async {
        while !hosts.agree() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let agreed = timeout(SERVES_WITHIN, agreed).await;
    agreed.map_err(|_| "all is well, and a process knows of nobody who serves".to_owned())
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

pub(crate) fn reserve(payers: &Payers, account: &str, lasts_ms: u64, wait_ms: u64) -> Reserve {
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

pub(crate) async fn granted(payers: &Payers, command: &Reserve) -> Result<ReservationId, String> {
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

/// What ends while the crowd is there.
struct Due {
    hold: ReservationId,
    /// Nobody may have it, and it waits only so long.
    waiting: Reserve,
}

async fn due(payers: &Payers) -> Result<Due, String> {
    granted(payers, &reserve(payers, "crowd", 8_000, 0)).await?;
    granted(payers, &reserve(payers, "patient", 8_000, 0)).await?;
    let waiting = reserve(payers, "patient", 9_000, DUE_MS);
    let hold = granted(payers, &reserve(payers, "brief", DUE_MS, 0)).await?;
    Ok(Due { hold, waiting })
}

/// Reads without end, so that the writer never finds its channel empty.
async fn readers(payers: &Payers, host: &Host) {
    let query = Read {
        account: vocabulary::account("crowd"),
        key: None,
        run: None,
        reservation: None,
    };
    let read = async |reader: usize| {
        for _ in 0..EACH_READS {
            drop(host.ledger.read(query.clone()).await);
            if reader == 0 {
                // nobody is ever idle, so that time has to be moved on
                advance(EACH_TAKES).await;
            }
        }
    };
    let work_us = &payers.medium.work_us;
    let before = work_us.swap(READ_WORK_US, Ordering::Relaxed);
    join_all((0..READERS).map(read)).await;
    work_us.store(before, Ordering::Relaxed);
}

/// Reads, and then asks for what is never granted, as fast as answers come.
async fn crowd(payers: &Payers, host: &Host) {
    // whoever waits has begun to
    sleep(Duration::from_millis(200)).await;
    readers(payers, host).await;
    let work_us = &payers.medium.work_us;
    let before = work_us.swap(WORK_US, Ordering::Relaxed);
    let ask = async || {
        for _ in 0..EACH_ASKS {
            let absurd = Reserve {
                output_tokens: u64::MAX,
                ..reserve(payers, "crowd", 5_000, 0)
            };
            drop(host.ledger.reserve(absurd).await);
        }
    };
    join_all((0..CROWD).map(|_| ask())).await;
    work_us.store(before, Ordering::Relaxed);
}

fn in_time(payers: &Payers, due: &Due) -> Result<(), String> {
    let reservation = due.hold;
    let journal = payers.medium.journal.commits();
    let events = journal
        .iter()
        .flat_map(|commit| crate::promises::events(commit));
    let (mut due_ms, mut ended_ms, mut refused_ms) = (0, None, None);
    for event in events {
        match &event.body {
            EventBody::Reserved(data) if data.reservation == reservation => {
                due_ms = data.asked.deadline_ms + GRACE_MS;
            }
            EventBody::Expired(data) if data.reservation == reservation => {
                ended_ms = Some(event.at_ms);
            }
            EventBody::Refused(_) if event.cause == due.waiting.id => {
                refused_ms = Some(event.at_ms);
            }
            _ => {}
        }
    }
    // both were asked for at the same moment, and wait for the same time
    match refused_ms {
        Some(at_ms) if at_ms > due_ms + LATE_MS_MAX => {
            return Err(format!(
                "patience ended {} ms late in a crowd",
                at_ms - due_ms
            ));
        }
        // a refusal may be counted, and has no event of its own
        _ => {}
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
