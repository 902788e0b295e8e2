//! What an operator changes: accounts, keys, caps and prices.

use seatbelt_schemas::{
    cap::{CAPS_PER_SCOPE_MAX, CapSpec},
    command::{Change, CommandError},
    event::{AccountOpened, Adjusted, CapRemoved, Credited, EventBody, KeyIssued, KeyRevoked},
    ids::{CapId, KeyId},
    price::{MULTIPLIER_ONE_PPM, Price},
    window::Window,
};

use super::validate;
use crate::{
    account::{Account, Cap},
    prices::PriceBook,
};

/// The change that an operator's event came from; `None` for every other event.
pub fn change_of(body: &EventBody) -> Option<Change> {
    Some(match body {
        EventBody::AccountOpened(data) => match data.multiplier_ppm {
            None => Change::OpenAccount,
            Some(ppm) => Change::SetMultiplier { ppm },
        },
        EventBody::KeyIssued(data) => Change::IssueKey(data.clone()),
        EventBody::KeyRevoked(KeyRevoked { key, reason }) => Change::RevokeKey {
            key: key.clone(),
            reason: reason.clone(),
        },
        EventBody::CapSet(spec) => Change::SetCap(spec.clone()),
        EventBody::CapRemoved(CapRemoved { cap }) => Change::RemoveCap { cap: cap.clone() },
        EventBody::Credited(Credited {
            cap,
            amount,
            reason,
        }) => Change::Credit {
            cap: cap.clone(),
            amount: *amount,
            reason: reason.clone(),
        },
        EventBody::Adjusted(Adjusted { cap, delta, reason }) => Change::Adjust {
            cap: cap.clone(),
            delta: *delta,
            reason: reason.clone(),
        },
        EventBody::PriceSet(price) => Change::SetPrice(price.clone()),
        _ => return None,
    })
}

/// Decides an operator's change of an account; `None` where nothing has to change.
pub fn change(account: &Account, change: &Change) -> Result<Option<EventBody>, CommandError> {
    match change {
        Change::OpenAccount => Ok((!account.is_open()).then(|| AccountOpened::default().into())),
        Change::SetMultiplier { ppm } => set_multiplier(account, *ppm),
        Change::IssueKey(data) => Ok(issue(account, data)),
        Change::RevokeKey { key, reason } => revoke(account, key, reason.as_ref()),
        Change::SetCap(spec) => set_cap(account, spec),
        Change::RemoveCap { cap } => {
            operators(account, cap)?;
            let known = account.cap(cap);
            Ok(known.map(|_| CapRemoved { cap: cap.clone() }.into()))
        }
        Change::Credit {
            cap,
            amount,
            reason,
        } => {
            operators(account, cap)?;
            let known = known_cap(account, cap)?;
            if known.spec.window != Window::Balance {
                return Err(CommandError::invalid(format!(
                    "cap {cap} resets by itself: only a balance can be credited"
                )));
            }
            Ok(Some(
                Credited {
                    cap: cap.clone(),
                    amount: *amount,
                    reason: reason.clone(),
                }
                .into(),
            ))
        }
        Change::Adjust { cap, delta, reason } => {
            operators(account, cap)?;
            known_cap(account, cap)?;
            Ok(Some(
                Adjusted {
                    cap: cap.clone(),
                    delta: *delta,
                    reason: reason.clone(),
                }
                .into(),
            ))
        }
        Change::SetPrice(_) => Err(CommandError::invalid(
            "prices belong to the partition: give the account as \"_\"",
        )),
    }
}

/// Decides a change of the price book; `None` where the price is in force already.
pub fn set_price(prices: &PriceBook, price: &Price) -> Result<Option<Price>, CommandError> {
    let current = prices.current(&price.model);
    if current.is_some_and(|known| known.same_terms(price)) {
        return Ok(None);
    }
    let last = current.map_or(0, |known| known.version);
    let version = last
        .checked_add(1)
        .ok_or_else(|| CommandError::invalid("price versions are used up"))?;
    Ok(Some(Price {
        version,
        ..price.clone()
    }))
}

fn known_cap<'a>(account: &'a Account, cap: &CapId) -> Result<&'a Cap, CommandError> {
    account
        .cap(cap)
        .ok_or_else(|| CommandError::UnknownCap { cap: cap.clone() })
}

/// A cap is an operator's to change, unless an open run brought it with it.
fn operators(account: &Account, cap: &CapId) -> Result<(), CommandError> {
    let known = account.cap(cap);
    match known.and_then(|known| account.run_with_cap(&known.spec)) {
        None => Ok(()),
        Some(run) => Err(CommandError::invalid(format!(
            "cap {cap} is the budget of an open run: release reservation {} to close the run",
            run.reservation
        ))),
    }
}

fn set_multiplier(account: &Account, ppm: u64) -> Result<Option<EventBody>, CommandError> {
    if !account.is_open() {
        return Err(CommandError::invalid(
            "only an account that is open has a multiplier: open it first",
        ));
    }
    let known = account.multiplier_ppm().unwrap_or(MULTIPLIER_ONE_PPM);
    let opened = AccountOpened {
        multiplier_ppm: Some(ppm),
    };
    Ok((known != ppm).then(|| opened.into()))
}

fn issue(account: &Account, data: &KeyIssued) -> Option<EventBody> {
    let same = account.key(&data.key).is_some_and(|known| {
        !known.revoked && known.team == data.team && known.secret_sha256 == data.secret_sha256
    });
    (!same).then(|| data.clone().into())
}

fn revoke(
    account: &Account,
    key: &KeyId,
    reason: Option<&String>,
) -> Result<Option<EventBody>, CommandError> {
    let known = account
        .key(key)
        .ok_or_else(|| CommandError::UnknownKey { key: key.clone() })?;
    Ok((!known.revoked).then(|| {
        KeyRevoked {
            key: key.clone(),
            reason: reason.cloned(),
        }
        .into()
    }))
}

fn set_cap(account: &Account, spec: &CapSpec) -> Result<Option<EventBody>, CommandError> {
    operators(account, &spec.cap)?;
    let known = account.cap(&spec.cap);
    if known.is_some_and(|known| known.spec == *spec) {
        return Ok(None);
    }
    let moves = known.is_none_or(|known| known.spec.scope != spec.scope);
    if moves && account.caps_of(&spec.scope).len() >= CAPS_PER_SCOPE_MAX {
        return Err(CommandError::invalid(format!(
            "{} has {CAPS_PER_SCOPE_MAX} caps already: remove one first",
            spec.scope
        )));
    }
    if known.is_none() {
        validate::room_for_cap(account)?;
    }
    Ok(Some(spec.clone().into()))
}
