//! A run's budget: one reservation out of what a key may spend.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use seatbelt_bus::{Nats, meta};
use seatbelt_ledger::{
    api::{Ledger, Read, Release, Reserve, ReserveOutcome},
    remote::RemoteLedger,
};
use seatbelt_schemas::{
    budget::Budget,
    cap::CapStanding,
    event::{OnShort, OnUnknown},
    ids::{AccountId, Actor, CommandId, KeyId, RunId},
    meter::Meter,
    names::Names,
    scope::Scope,
};
use ulid::Ulid;

/// How long the run may take; the ledger ends it then by itself. At most 24 hours.
const LASTS: Duration = Duration::from_secs(3600);

/// An open run.
pub(crate) struct Run {
    ledger: RemoteLedger,
    account: AccountId,
    id: RunId,
    opened: CommandId,
}

/// What became of a budget, in tokens.
pub(crate) struct Stood {
    pub(crate) spent: u64,
    pub(crate) given_back: u64,
}

impl Run {
    /// Holds `tokens` of what the key may spend for a new run.
    pub(crate) async fn open(
        nats: &Nats,
        account: &str,
        key: &str,
        tokens: u64,
    ) -> anyhow::Result<Self> {
        let account = AccountId::new(account)?;
        // with the default `nats.prefix`
        let names = Names::default();
        // each account is decided on in one partition
        let partition = meta(nats, &names).await?.partitions.of(&account);
        let opened = CommandId::from(Ulid::new());
        let run = Self {
            ledger: RemoteLedger::new(nats, &names, partition, super::PATIENCE),
            account,
            id: RunId::new(format!("example-{opened}"))?,
            opened,
        };
        let budget = Budget::new([(Meter::Tokens, tokens)])?;
        match run
            .ledger
            .reserve(run.reserve(KeyId::new(key)?, budget)?)
            .await?
        {
            ReserveOutcome::Reserved(_) => Ok(run),
            ReserveOutcome::Refused(refusal) => bail!(
                "the key has no room for {tokens} tokens: {} of {} are left",
                refusal.cap.available(),
                refusal.cap.limit
            ),
        }
    }

    fn reserve(&self, key: KeyId, budget: Budget) -> anyhow::Result<Reserve> {
        let ends = SystemTime::now() + LASTS;
        let deadline_ms = ends.duration_since(UNIX_EPOCH)?.as_millis();
        Ok(Reserve {
            team: None,
            id: self.opened,
            account: self.account.clone(),
            key,
            run: Some(self.id.clone()),
            budget: Some(budget),
            within: None,
            deadline_ms: u64::try_from(deadline_ms)?,
            // for others to give back what they hold
            wait_ms: 1000,
            // what a budget asks for is all in it
            model: None,
            end_user: None,
            input_tokens: 0,
            output_tokens: 0,
            tool_calls: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::Release,
        })
    }

    /// What requests name that spend from the budget.
    pub(crate) fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Gives back what is left.
    pub(crate) async fn close(self) -> anyhow::Result<Stood> {
        let cap = self.cap().await?;
        let release = Release {
            id: Ulid::new().into(),
            account: self.account,
            reservation: self.opened.into(),
            reason: "the agent is done".to_owned(),
            actor: Actor::operator("example"),
        };
        self.ledger.release(release).await?;
        Ok(Stood {
            spent: cap.spent,
            given_back: cap.available(),
        })
    }

    /// An open run has a cap of its own for each meter of its budget.
    async fn cap(&self) -> anyhow::Result<CapStanding> {
        let read = Read {
            account: self.account.clone(),
            key: None,
            run: None,
            reservation: None,
        };
        let caps = self.ledger.read(read).await?.caps;
        let own = Scope::Run(self.id.clone());
        caps.into_iter()
            .find(|cap| cap.scope == own && cap.meter == Meter::Tokens)
            .context("the run is not open any more: it ended by its deadline")
    }
}
