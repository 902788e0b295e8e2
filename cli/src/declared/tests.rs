#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use futures::future::BoxFuture;
use seatbelt_ledger::{
    api::{
        Ack, AdminOutcome, Answer, Release, Reserve, ReserveOutcome, Resize, Resolution, Settle,
        Standing,
    },
    testing::balance,
};
use seatbelt_schemas::{event::OnShort, position::Position};

use super::*;
use crate::config::Policy;

/// Notes what it is told to change.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

fn told(change: &Change) -> String {
    match change {
        Change::OpenAccount => "account".to_owned(),
        Change::SetMultiplier { ppm } => format!("multiplier {ppm}"),
        Change::IssueKey(data) => format!("key {}", data.key),
        Change::RevokeKey { key, .. } => format!("revoked {key}"),
        Change::SetCap(spec) => format!("cap {}", spec.cap),
        other => format!("{other:?}"),
    }
}

fn unasked<T: Send + 'static>() -> BoxFuture<'static, Answer<T>> {
    Box::pin(async { Err(CommandError::unavailable("not asked for here")) })
}

impl Ledger for Told {
    fn reserve(&self, _: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        unasked()
    }

    fn resize(&self, _: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        unasked()
    }

    fn settle(&self, _: Settle, _: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        unasked()
    }

    fn release(&self, _: Release) -> BoxFuture<'_, Answer<Resolution>> {
        unasked()
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        let standing = Standing {
            account: query.account,
            position: Position(0),
            at_ms: 0,
            open: 0,
            multiplier_ppm: Some(1_200_000),
            caps: Vec::new(),
            more: false,
            live_keys: Some(2),
            run: None,
            inside: Vec::new(),
            fate: None,
        };
        Box::pin(async { Ok(standing) })
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.0.lock().unwrap().push(told(&command.change));
        Box::pin(async { Ok(AdminOutcome { position: None }) })
    }
}

fn key(id: &str, cap: &str) -> DeclaredKey {
    let key = KeyId::new(id).unwrap();
    DeclaredKey {
        secret: format!("sk-{id}").into(),
        account: AccountId::new("a").unwrap(),
        key: key.clone(),
        teams: Vec::new(),
        team: None,
        caps: vec![
            balance("all", Scope::Account, 100),
            balance(cap, Scope::Key(key), 10),
        ],
        policy: Policy {
            on_short: Some(OnShort::Refuse),
            on_unknown: seatbelt_schemas::event::OnUnknown::ChargeHold,
        },
    }
}

/// Another gateway may know the key already, and let it in as soon as it is issued.
#[tokio::test]
async fn what_bounds_a_key_is_set_before_the_key_is_issued() {
    let ledger = Arc::new(Told::default());
    let keys = [key("k", "mine"), key("l", "theirs")];
    let gone = RetiredKey {
        account: AccountId::new("a").unwrap(),
        key: KeyId::new("old").unwrap(),
    };
    let terms = AccountTerms {
        account: AccountId::new("a").unwrap(),
        multiplier_ppm: 1_200_000,
    };
    let accounts = by_account(&keys, &[gone], &[terms]);
    let clock: Clock = Arc::new(|| 0);
    super::keys(Arc::<Told>::clone(&ledger), &clock, accounts)
        .await
        .unwrap();
    let told = ledger.0.lock().unwrap().join(", ");
    assert_eq!(
        told,
        "account, cap all, cap mine, cap theirs, multiplier 1200000, key k, key l, revoked old"
    );
}
