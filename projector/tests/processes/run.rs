//! One run: a world is set up, misfortune strikes while payers work, and then all is well again, so that
//! what nobody may miss can be asked for. At last the promises are held against what happened.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use seatbelt_ledger::{journal::Sequence, snapshot::PartitionRecord};
use seatbelt_schemas::{
    command::Change,
    commit::{ChainHash, Commit},
    ids::{AccountId, CapId},
    names::Names,
    position::Partition,
};
use tokio::{
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

use crate::{
    calm,
    hosts::{Hosts, SEATS},
    medium::{Life, Medium},
    payers::Payers,
    promises, vocabulary,
};

/// Payers at once, and the stories of each.
const PAYERS: u64 = 6;
const STORIES: u64 = 5;
/// Longest that all of them may take, with every wait that they are allowed.
const WORK_MAX: Duration = Duration::from_secs(900);
/// Everything held has ended by its deadline after this.
const ALL_ENDED: Duration = Duration::from_secs(15);

/// A writer without work sees that its journal shrank within this.
const SEEN_WITHIN: Duration = Duration::from_secs(25);

/// How a run went.
pub(crate) struct Ran {
    pub(crate) promises: Result<(), String>,
    /// A digest of all that was written and told.
    pub(crate) trace: ChainHash,
    pub(crate) events: usize,
    /// What happened, where `SEATBELT_SIM_LOG` is set.
    pub(crate) log: Vec<String>,
}

/// One run on a thread and a clock of its own.
pub(crate) fn run(seed: u64) -> Ran {
    on_paused_time(async {
        let medium = Medium::new(seed);
        let hosts = Hosts::new(&medium);
        let payers = Payers::new(&medium, &hosts);
        let lived = live(&medium, &hosts, &payers).await;
        let told = payers.told();
        let kept = lived.and_then(|()| match medium.broken() {
            Some(broken) => Err(broken),
            None => promises::hold(&medium, &told),
        });
        let mut trace = medium.journal.commits().concat();
        let (outcomes, reads) = (&told.outcomes, &told.reads);
        trace.extend(format!("{outcomes:?}{reads:?}{}", medium.now_ms()).bytes());
        for commit in medium.journal.commits() {
            let events = Commit::decode(&commit).map(|commit| commit.events);
            for stored in events.into_iter().flatten() {
                medium.note(|| format!("{:?}", stored.event));
            }
        }
        medium.note(|| format!("{outcomes:?}"));
        told.reads
            .iter()
            .for_each(|read| medium.note(|| format!("{read:?}")));
        Ran {
            promises: kept,
            trace: ChainHash::of(&trace),
            events: told.outcomes.len(),
            log: medium.log(),
        }
    })
}

fn on_paused_time<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, run)
}

async fn live(
    medium: &Arc<Medium>,
    hosts: &Arc<Hosts>,
    payers: &Arc<Payers>,
) -> Result<(), String> {
    let mut processes = JoinSet::new();
    begin(&mut processes, medium, hosts, payers).await?;
    calm::all_is_well(hosts, payers).await?;
    sleep(ALL_ENDED).await;
    hosts.close();
    let ended = timeout(Duration::from_secs(60), async {
        while let Some(ended) = processes.join_next().await {
            ended.map_err(|error| format!("a process crashed: {error}"))?;
        }
        Ok(())
    });
    ended
        .await
        .unwrap_or_else(|_| Err("processes do not end".to_owned()))
}

/// Processes begin, payers work, misfortune strikes until they are done.
async fn begin(
    processes: &mut JoinSet<()>,
    medium: &Arc<Medium>,
    hosts: &Arc<Hosts>,
    payers: &Arc<Payers>,
) -> Result<(), String> {
    let projectors: Vec<_> = (0..2).map(|_| Arc::new(Mutex::new(Life::new()))).collect();
    for _ in 0..SEATS {
        processes.spawn(Arc::clone(hosts).seat());
    }
    for (lives, name) in projectors.iter().zip(["p1", "p2"]) {
        processes.spawn(Arc::clone(hosts).project(name, Arc::clone(lives)));
    }
    set_up(payers).await?;
    medium.be_calm(false);
    let misfortune = tokio::spawn(misfortune(
        Arc::clone(medium),
        Arc::clone(hosts),
        projectors,
    ));
    let worked = work(payers).await;
    misfortune.abort();
    medium.be_calm(true);
    worked
}

/// A run whose journal loses what was recorded of it: nobody goes on from there, and nobody begins anew.
pub(crate) fn shrinks(seed: u64) -> Result<(), String> {
    on_paused_time(async {
        let medium = Medium::new(seed);
        let hosts = Hosts::new(&medium);
        let payers = Payers::new(&medium, &hosts);
        let mut processes = JoinSet::new();
        begin(&mut processes, &medium, &hosts, &payers).await?;
        hosts.put_right();
        sleep(ALL_ENDED).await;
        let saw = recorded(&medium).ok_or("nothing is on record")?;
        medium.shrunk.store(true, Ordering::Relaxed);
        // all of it, or what was recorded last
        let to = saw - 1 - medium.chance.below(saw);
        medium.journal.cut(Sequence(to));
        let left = medium.journal.commits();
        // a writer that nobody asks anything has to see it by itself
        let is_idle = medium.chance.one_in(2);
        if let Some(host) = hosts.claiming().filter(|_| !is_idle) {
            // a writer that saw more than there is, or one that takes its place
            medium.chance.one_in(2).then(|| host.life.kill());
        }
        for name in vocabulary::ACCOUNTS.into_iter().filter(|_| !is_idle) {
            let credit = Change::Credit {
                cap: CapId::new("total").unwrap(),
                amount: 1,
                reason: None,
            };
            if payers.change(&vocabulary::account(name), credit).await {
                return Err(format!(
                    "the journal ends at {to} of {saw}, and a change is made"
                ));
            }
        }
        // whoever has nothing to write looks every five seconds, and believes what it sees thrice
        sleep(SEEN_WITHIN).await;
        let kept = medium.journal.commits() == left;
        let serves = hosts.claiming().is_some();
        match kept && !serves {
            true => medium.broken().map_or(Ok(()), Err),
            false => Err(format!(
                "the journal ends at {to} of {saw}: it is {}, serving: {serves}",
                if kept { "left alone" } else { "gone on from" }
            )),
        }
    })
}

/// How far the partition record saw the journal go.
fn recorded(medium: &Medium) -> Option<u64> {
    let value = medium
        .bucket
        .peek(&Names::snapshot_partition_key(Partition(0)))?;
    let record = PartitionRecord::decode(&value).ok()?;
    (record.sequence > 0).then_some(record.sequence)
}

async fn set_up(payers: &Arc<Payers>) -> Result<(), String> {
    let system = AccountId::system();
    let mut changes: Vec<_> = vocabulary::prices()
        .map(|price| (system.clone(), price))
        .into();
    for name in vocabulary::ACCOUNTS.into_iter().chain(calm::ACCOUNTS) {
        let account = vocabulary::account(name);
        changes.push((account.clone(), Change::OpenAccount));
        changes.extend(vocabulary::keys().map(|key| (account.clone(), key)));
        let chance = &payers.medium.chance;
        let mut caps = vocabulary::caps(chance);
        caps.retain(|_| !chance.one_in(3));
        if calm::ACCOUNTS.contains(&name) {
            caps = vec![calm::one_at_a_time()];
        }
        changes.extend(
            caps.into_iter()
                .map(|cap| (account.clone(), Change::SetCap(cap))),
        );
    }
    for (account, change) in changes {
        if !payers.change(&account, change).await {
            return Err("the world cannot be set up".to_owned());
        }
    }
    Ok(())
}

async fn work(payers: &Arc<Payers>) -> Result<(), String> {
    let mut working = JoinSet::new();
    for payer in 0..PAYERS {
        let name = vocabulary::ACCOUNTS[usize::try_from(payer % 3).unwrap()];
        let payer = Arc::clone(payers).work(vocabulary::account(name), STORIES);
        working.spawn_local(payer);
    }
    let all = async {
        while let Some(ended) = working.join_next().await {
            ended.map_err(|error| format!("a payer crashed: {error}"))?;
        }
        Ok(())
    };
    let worked = timeout(WORK_MAX, all).await;
    worked.unwrap_or_else(|_| Err("a payer waits for ever".to_owned()))
}

/// What befalls processes and what they left behind.
async fn misfortune(
    medium: Arc<Medium>,
    hosts: Arc<Hosts>,
    projectors: Vec<Arc<Mutex<Arc<Life>>>>,
) {
    let chance = &medium.chance;
    loop {
        sleep(chance.ms(1_500)).await;
        match chance.below(18) {
            0 | 1 => drop(hosts.any().inspect(|host| host.life.kill())),
            2 | 3 => drop(
                hosts
                    .any()
                    .inspect(|host| host.life.light(chance.below(30))),
            ),
            4 => drop(hosts.any().inspect(|host| host.stop())),
            5 => drop(tokio::spawn(Arc::clone(&hosts).haunt())),
            6 => {
                medium.freeze(true);
                sleep(chance.ms(2_000)).await;
                medium.freeze(false);
            }
            7 => {
                medium.cut_off(true);
                sleep(chance.ms(2_000)).await;
                medium.cut_off(false);
            }
            8 | 9 => chance
                .pick(&projectors)
                .lock()
                .unwrap()
                .light(chance.below(40)),
            10 | 11 => lose(&medium),
            12 => medium.copy_bucket(),
            13 => hosts.lose_lease(),
            14 => {
                medium.office.break_down(true);
                sleep(chance.ms(2_000)).await;
                medium.office.break_down(false);
            }
            // another server of the cluster leads the journal, and its clock shows something else
            16 if !medium.clocks_are_right => {
                let ahead_ms = *chance.pick(&[0, 2_000, -2_000]);
                medium.server_ahead_ms.store(ahead_ms, Ordering::Relaxed);
            }
            15 => drop(hosts.any().inspect(|host| {
                let is_blind = host.life.blind.fetch_not(Ordering::Relaxed);
                medium.note(|| format!("{} sees its journal: {is_blind}", host.name));
            })),
            _ => {
                let off_ms = medium.clock_is_off();
                drop(
                    hosts
                        .any()
                        .inspect(|host| host.offset_ms.store(off_ms, Ordering::Relaxed)),
                );
            }
        }
    }
}

/// Some of what the bucket keeps is gone, torn, or what it was once.
fn lose(medium: &Medium) {
    let chance = &medium.chance;
    let accounts = vocabulary::ACCOUNTS.map(vocabulary::account);
    let mut keys = accounts
        .map(|account| Names::snapshot_account_key(&account))
        .to_vec();
    keys.push(Names::snapshot_partition_key(Partition(0)));
    for key in keys {
        let Some(value) = medium.bucket.peek(&key) else {
            continue;
        };
        match chance.below(6) {
            0 => medium.bucket.put_back(&key, None),
            2 => medium.go_back(&key),
            1 => medium
                .bucket
                .put_back(&key, Some(value.slice(..value.len() / 2))),
            _ => {}
        }
    }
}
