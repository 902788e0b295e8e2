//! What the configuration declares, made true in the ledger at start: accounts, keys, caps, prices.
//!
//! The ledger writes an event only where something changes, so a restart writes none. Another gateway of the
//! same ledger may have another configuration, or an older one: so a cap goes only where it is certain that
//! this configuration declared it and does not any more. What a key has that is not named here stays, and so
//! does what it may share, until the key is retired. Caps that operators set have other ids and stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seatbelt_gateway::Clock;
use seatbelt_ledger::api::{Ledger, Read};
use seatbelt_schemas::{
    cap::{CapSpec, CapStanding},
    command::{Admin, Change, CommandError, declared_cap_id},
    event::KeyIssued,
    ids::{AccountId, Actor, CapId, CommandId, KeyId},
    price::{MULTIPLIER_ONE_PPM, Price},
    scope::Scope,
};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::config::{AccountTerms, DeclaredKey, RetiredKey};

/// Accounts made ready at the same time.
const ACCOUNTS_AT_ONCE: usize = 64;

/// A declaration that could not be made true.
#[derive(Debug, Error)]
#[error("cannot make true what is declared for account {account}")]
pub struct DeclareError {
    account: AccountId,
    /// What the ledger said.
    #[source]
    source: CommandError,
}

/// Whom it is declared to, and the time that its commands name.
struct To {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
}

/// What an account is to have, by one configuration.
#[derive(Debug, Clone, Default)]
pub struct Declaration {
    keys: Vec<DeclaredKey>,
    retired: Vec<KeyId>,
    multiplier_ppm: Option<u64>,
}

impl Declaration {
    /// The keys by which the account is read: all that are named, or one that is nobody's where none is.
    fn read_as(&self) -> Vec<Option<KeyId>> {
        let named = self.keys.iter().map(|key| &key.key).chain(&self.retired);
        let mut keys: Vec<_> = named.cloned().map(Some).collect();
        if keys.is_empty() {
            keys.push(KeyId::new("-").ok());
        }
        keys
    }
}

/// Makes all keys true and revokes the retired ones, many accounts at a time, each account in order.
pub async fn keys(
    ledger: Arc<dyn Ledger>,
    clock: &Clock,
    accounts: BTreeMap<AccountId, Declaration>,
) -> Result<(), DeclareError> {
    let mut tasks = JoinSet::new();
    for (account, declaration) in accounts {
        if tasks.len() >= ACCOUNTS_AT_ONCE {
            finished(&mut tasks).await?;
        }
        let to = To {
            ledger: Arc::clone(&ledger),
            clock: Arc::clone(clock),
        };
        tasks.spawn(async move {
            let declared = declare(&to, &account, &declaration).await;
            declared.map_err(|source| DeclareError { account, source })
        });
    }
    while !tasks.is_empty() {
        finished(&mut tasks).await?;
    }
    Ok(())
}

/// What each account is to have.
pub fn by_account(
    keys: &[DeclaredKey],
    retired: &[RetiredKey],
    terms: &[AccountTerms],
) -> BTreeMap<AccountId, Declaration> {
    let mut accounts: BTreeMap<AccountId, Declaration> = BTreeMap::new();
    for key in keys {
        let of_account = accounts.entry(key.account.clone()).or_default();
        of_account.keys.push(key.clone());
    }
    for RetiredKey { account, key } in retired {
        let of_account = accounts.entry(account.clone()).or_default();
        of_account.retired.push(key.clone());
    }
    for terms in terms {
        let of_account = accounts.entry(terms.account.clone()).or_default();
        of_account.multiplier_ppm = Some(terms.multiplier_ppm);
    }
    accounts
}

async fn finished(tasks: &mut JoinSet<Result<(), DeclareError>>) -> Result<(), DeclareError> {
    match tasks.join_next().await {
        Some(ended) => ended.expect("declaring does not panic and is not aborted"),
        None => Ok(()),
    }
}

async fn declare(
    to: &To,
    account: &AccountId,
    declaration: &Declaration,
) -> Result<(), CommandError> {
    let Declaration {
        keys,
        retired,
        multiplier_ppm,
    } = declaration;
    change(to, account, Change::OpenAccount).await?;
    // what bounds a key stands before the key does: whoever knows it already may send it in between
    let wanted = bounds(to, account, declaration).await?;
    for key in keys {
        let issued = KeyIssued {
            key: key.key.clone(),
            team: key.team.clone(),
            secret_sha256: None,
        };
        change(to, account, Change::IssueKey(issued)).await?;
    }
    for key in retired {
        let (key, reason) = (key.clone(), Some("retired by the configuration".to_owned()));
        match change(to, account, Change::RevokeKey { key, reason }).await {
            // a ledger that never knew it
            Ok(()) | Err(CommandError::UnknownKey { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let found = look(to, account, declaration, &wanted).await?;
    // one that is no longer declared is 1 again, where nobody else can have declared it
    let ppm = multiplier_ppm.or(found.alone.then_some(MULTIPLIER_ONE_PPM));
    if let Some(ppm) = ppm.filter(|ppm| *ppm != found.multiplier_ppm) {
        change(to, account, Change::SetMultiplier { ppm }).await?;
    }
    for cap in found.ours {
        tracing::info!(%account, %cap, "cap is no longer declared and is removed");
        change(to, account, Change::RemoveCap { cap }).await?;
    }
    if !found.shared.is_empty() {
        tracing::warn!(%account, caps = found.shared.join(", "), "caps stay in force that are not declared here, since the account has keys that are not named here and may have declared them: name those keys under entitlements.retired_keys if nobody uses them any more");
    }
    Ok(())
}

/// Sets every cap that any key is declared with, and what the account's costs are multiplied by; which caps
/// these are.
async fn bounds(
    to: &To,
    account: &AccountId,
    declaration: &Declaration,
) -> Result<BTreeSet<CapId>, CommandError> {
    let mut wanted: BTreeSet<CapId> = BTreeSet::new();
    let caps = declaration.keys.iter().flat_map(|key| &key.caps);
    for cap in caps.filter(|cap| wanted.insert(cap.cap.clone())) {
        change(to, account, Change::SetCap(CapSpec::clone(cap))).await?;
    }
    if let Some(ppm) = declaration.multiplier_ppm {
        change(to, account, Change::SetMultiplier { ppm }).await?;
    }
    Ok(wanted)
}

/// What an account has that this configuration does not declare.
struct Undeclared {
    /// Every key that is not revoked is named here: nobody else can have declared anything.
    alone: bool,
    multiplier_ppm: u64,
    /// Caps that nobody else can have declared.
    ours: BTreeSet<CapId>,
    /// Those of the account and its teams that a key may have declared which is not named here.
    shared: Vec<String>,
}

/// Looks key by key, since each answer is small: an account may have thousands of other caps.
async fn look(
    to: &To,
    account: &AccountId,
    declaration: &Declaration,
    wanted: &BTreeSet<CapId>,
) -> Result<Undeclared, CommandError> {
    let mut caps: BTreeMap<CapId, Scope> = BTreeMap::new();
    let mut found = Undeclared {
        alone: false,
        multiplier_ppm: MULTIPLIER_ONE_PPM,
        ours: BTreeSet::new(),
        shared: Vec::new(),
    };
    for key in declaration.read_as() {
        let account = account.clone();
        let standing = to
            .ledger
            .read(Read {
                account,
                key,
                run: None,
                reservation: None,
            })
            .await?;
        found.alone = standing.live_keys == Some(declaration.keys.len() as u64);
        found.multiplier_ppm = standing.multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM);
        let undeclared = standing.caps.into_iter();
        let undeclared = undeclared.filter(|cap| was_declared(cap) && !wanted.contains(&cap.cap));
        caps.extend(undeclared.map(|cap| (cap.cap, cap.scope)));
    }
    for (cap, scope) in caps {
        match scope {
            Scope::Key(_) => drop(found.ours.insert(cap)),
            Scope::Account | Scope::Team(_) if found.alone => drop(found.ours.insert(cap)),
            Scope::Account | Scope::Team(_) => found.shared.push(cap.to_string()),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether a cap's id is the one that only a declaration gives.
fn was_declared(cap: &CapStanding) -> bool {
    cap.cap.as_str() == declared_cap_id(&cap.scope, cap.meter, cap.window)
}

async fn change(to: &To, account: &AccountId, change: Change) -> Result<(), CommandError> {
    let command = admin((to.clock)(), account.clone(), change);
    to.ledger.admin(command).await.map(drop)
}

/// Makes all prices true; the ledger keeps them in every partition.
pub async fn prices(
    ledger: Arc<dyn Ledger>,
    clock: &Clock,
    prices: Vec<Price>,
) -> Result<(), DeclareError> {
    let to = To {
        ledger,
        clock: Arc::clone(clock),
    };
    for price in prices {
        let account = AccountId::system();
        let set = change(&to, &account, Change::SetPrice(price)).await;
        set.map_err(|source| DeclareError { account, source })?;
    }
    Ok(())
}

fn admin(at_ms: u64, account: AccountId, change: Change) -> Admin {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    Admin {
        id: CommandId::from_parts(at_ms, u128::from_be_bytes(random)),
        account,
        actor: Actor::system("config"),
        change,
    }
}

#[cfg(test)]
mod tests;
