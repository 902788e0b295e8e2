//! What the configuration declares, made true in the ledger at start: accounts, keys, caps, prices.
//!
//! The ledger writes an event only where something changes, so a restart writes none. A cap that was
//! declared before and is not any more is removed; caps set by operators have other ids and stay.
//! Keys that are no longer declared are simply not accepted by the gateway any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use seatbelt_ledger::api::{Ledger, Read};
use seatbelt_schemas::{
    cap::{CapSpec, CapStanding},
    command::{Admin, Change, CommandError, declared_cap_id},
    event::KeyIssued,
    ids::{AccountId, Actor, CapId, CommandId},
    price::{MULTIPLIER_ONE_PPM, Price},
};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::config::{AccountTerms, Key};

/// Accounts made ready at the same time.
const ACCOUNTS_AT_ONCE: usize = 64;

/// A declaration that could not be made true.
#[derive(Debug, Error)]
#[error("cannot make true what is declared for account {account}")]
pub struct DeclareError {
    /// The account.
    account: AccountId,
    /// What the ledger said.
    #[source]
    source: CommandError,
}

/// Makes all keys true, many accounts at a time, each account in order.
pub async fn keys(
    ledger: Arc<dyn Ledger>,
    keys: &[Key],
    terms: &[AccountTerms],
) -> Result<(), DeclareError> {
    let mut accounts: BTreeMap<AccountId, Vec<Key>> = BTreeMap::new();
    let mut multipliers: BTreeMap<AccountId, u64> = BTreeMap::new();
    for terms in terms {
        multipliers.insert(terms.account.clone(), terms.multiplier_ppm);
        accounts.entry(terms.account.clone()).or_default();
    }
    for key in keys {
        let of_account = accounts.entry(key.account.clone()).or_default();
        of_account.push(key.clone());
    }
    let mut tasks = JoinSet::new();
    for (account, keys) in accounts {
        if tasks.len() >= ACCOUNTS_AT_ONCE {
            finished(&mut tasks).await?;
        }
        let ledger = Arc::clone(&ledger);
        let multiplier_ppm = multipliers.get(&account).copied();
        tasks.spawn(async move {
            let declared = declare(&*ledger, &account, &keys, multiplier_ppm).await;
            declared.map_err(|source| DeclareError { account, source })
        });
    }
    while !tasks.is_empty() {
        finished(&mut tasks).await?;
    }
    Ok(())
}

async fn finished(tasks: &mut JoinSet<Result<(), DeclareError>>) -> Result<(), DeclareError> {
    match tasks.join_next().await {
        Some(ended) => ended.expect("declaring does not panic and is not aborted"),
        None => Ok(()),
    }
}

async fn declare(
    ledger: &dyn Ledger,
    account: &AccountId,
    keys: &[Key],
    multiplier_ppm: Option<u64>,
) -> Result<(), CommandError> {
    change(ledger, account, Change::OpenAccount).await?;
    let mut wanted: BTreeSet<CapId> = BTreeSet::new();
    for key in keys {
        let issued = KeyIssued {
            key: key.key.clone(),
            team: key.team.clone(),
            secret_sha256: None,
        };
        change(ledger, account, Change::IssueKey(issued)).await?;
        for cap in key.caps.iter().filter(|cap| wanted.insert(cap.cap.clone())) {
            change(ledger, account, Change::SetCap(CapSpec::clone(cap))).await?;
        }
    }
    let standing = Read {
        account: account.clone(),
        key: None,
    };
    let standing = ledger.read(standing).await?;
    // one that is no longer declared is 1 again
    let ppm = multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM);
    if standing.multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM) != ppm {
        change(ledger, account, Change::SetMultiplier { ppm }).await?;
    }
    for cap in standing.caps.iter().filter(|cap| was_declared(cap)) {
        if !wanted.contains(&cap.cap) {
            let cap = cap.cap.clone();
            tracing::info!(%account, %cap, "cap is no longer declared and is removed");
            change(ledger, account, Change::RemoveCap { cap }).await?;
        }
    }
    Ok(())
}

/// Whether a cap's id is the one that only a declaration gives.
fn was_declared(cap: &CapStanding) -> bool {
    cap.cap.as_str() == declared_cap_id(&cap.scope, cap.meter, cap.window)
}

async fn change(
    ledger: &dyn Ledger,
    account: &AccountId,
    change: Change,
) -> Result<(), CommandError> {
    let command = admin(account.clone(), change);
    ledger.admin(command).await.map(drop)
}

/// Makes all prices true; the ledger keeps them in every partition.
pub async fn prices(ledger: &dyn Ledger, prices: Vec<Price>) -> Result<(), DeclareError> {
    for price in prices {
        let account = AccountId::system();
        let set = change(ledger, &account, Change::SetPrice(price)).await;
        set.map_err(|source| DeclareError { account, source })?;
    }
    Ok(())
}

fn admin(account: AccountId, change: Change) -> Admin {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at_ms = now.map_or(0, |since| since.as_millis());
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    Admin {
        id: CommandId::from_parts(
            u64::try_from(at_ms).unwrap_or(u64::MAX),
            u128::from_be_bytes(random),
        ),
        account,
        actor: Actor::system("config"),
        change,
    }
}
