//! `seatbelt ledger close-run`: ends a run that nobody can close any more, as its own key would have. What is left
//! of its budget goes back, and its requests that are under way finish and are charged.
//!
//! The one command here that is carried out by the writer of the partition, and so while the gateways serve.

use std::{io::Write, time::Duration};

use seatbelt_bus::{Nats, stream::info};
use seatbelt_ledger::{
    api::{Ledger, Read, Release},
    host::now_ms,
    remote::RemoteLedger,
};
use seatbelt_schemas::{
    cap::CapStanding,
    command::{CommandError, STANDING_RUNS_MAX, Standing},
    ids::{AccountId, Actor, CommandId, ReservationId, RunId},
    time::rfc3339_ms,
};

use super::{ExitCode, LedgerError};
use crate::config::NatsConfig;

/// How long a partition may take to answer; longer than a takeover takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often runs are looked for inside the one that is closed: each look closes as many as it is told of.
const LOOKS_MAX: usize = 64;
const REASON: &str = "run closed by an operator";

/// The run to end.
pub(super) struct Ending {
    pub(super) account: AccountId,
    pub(super) run: RunId,
    pub(super) by: String,
}

/// Ends the run and all inside it, or tells what that would do.
pub(super) async fn close_run(
    connected: &Nats,
    config: &NatsConfig,
    ending: &Ending,
    yes: bool,
) -> Result<ExitCode, LedgerError> {
    let meta = seatbelt_bus::meta(connected, &config.names).await?;
    let partition = meta.partitions.of(&ending.account);
    let ledger = RemoteLedger::new(connected, &config.names, partition, PATIENCE);
    let mut out = std::io::stdout();
    let standing = ending.stands(&ledger).await?;
    if !yes {
        write!(out, "{}", told(&ending.run, &standing))?;
        writeln!(out, "nothing was changed: it is ended with --yes")?;
        return Ok(ExitCode::FAILURE);
    }
    // the clock that the partition's writer is held to, wherever the operator sits
    let shown = info(connected, &config.names.journal_stream(partition)).await;
    let shown = shown.ok().and_then(|found| found.server_ms().ok()?);
    let at_ms = shown.unwrap_or_else(now_ms);
    let inside = ending.end_whole(&ledger, standing, at_ms).await?;
    let run = &ending.run;
    writeln!(out, "run {run} is ended, and {inside} inside it")?;
    Ok(ExitCode::SUCCESS)
}

impl Ending {
    /// How the run stands, where it or one inside it is open.
    async fn stands(&self, ledger: &dyn Ledger) -> Result<Standing, LedgerError> {
        let standing = self.look(ledger, &self.run).await?;
        if standing.run.is_none() && standing.inside.is_empty() {
            let (account, run) = (self.account.clone(), self.run.clone());
            return Err(LedgerError::NoRun { account, run });
        }
        Ok(standing)
    }

    /// Ends the run first, for then nothing is opened inside any more, and then all that are inside it; how many
    /// these were.
    async fn end_whole(
        &self,
        ledger: &dyn Ledger,
        first: Standing,
        at_ms: u64,
    ) -> Result<u64, LedgerError> {
        if let Some(run) = &first.run {
            self.end(ledger, run.reservation, at_ms).await?;
        }
        let mut ended = 0;
        for _ in 0..LOOKS_MAX {
            let inside = self.look(ledger, &self.run).await?.inside;
            if inside.is_empty() {
                break;
            }
            for inner in inside {
                if let Some(inner) = self.look(ledger, &inner).await?.run {
                    self.end(ledger, inner.reservation, at_ms).await?;
                    ended += 1;
                }
            }
        }
        Ok(ended)
    }

    async fn look(&self, ledger: &dyn Ledger, run: &RunId) -> Result<Standing, LedgerError> {
        let query = Read {
            account: self.account.clone(),
            key: None,
            run: Some(run.clone()),
            reservation: None,
        };
        Ok(ledger.read(query).await?)
    }

    async fn end(
        &self,
        ledger: &dyn Ledger,
        reservation: ReservationId,
        at_ms: u64,
    ) -> Result<(), LedgerError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the system gives random bytes");
        let release = Release {
            id: CommandId::from_parts(at_ms, u128::from_be_bytes(random)),
            account: self.account.clone(),
            reservation,
            reason: REASON.to_owned(),
            actor: Actor::operator(&self.by),
        };
        match ledger.release(release).await {
            // its time was up meanwhile
            Ok(_) | Err(CommandError::AlreadyResolved { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What would be ended, for people.
fn told(run: &RunId, standing: &Standing) -> String {
    let inside = match standing.inside.len() {
        STANDING_RUNS_MAX.. => format!("{STANDING_RUNS_MAX} or more"),
        some => some.to_string(),
    };
    let Some(open) = &standing.run else {
        return format!("run {run} has ended, and {inside} runs inside it have not\n");
    };
    let (key, opened) = (&open.key, rfc3339_ms(open.opened_at_ms));
    let until = rfc3339_ms(open.deadline_ms);
    let mut text = format!(
        "run {run} was opened by key {key} at {opened}, ends by itself at {until}, and has {inside} runs inside it\n"
    );
    for CapStanding {
        meter,
        limit,
        spent,
        held,
        ..
    } in &standing.caps
    {
        text += &format!("{meter}: {spent} of {limit} spent, {held} held by its requests\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use seatbelt_ledger::{
        host::HostedPartition,
        journal::memory::MemoryJournal,
        testing::{Payer, balance, one_partition},
    };
    use seatbelt_schemas::{
        budget::Budget,
        command::{Change, Reserve},
        meter::Meter,
        position::Partition,
        scope::Scope,
    };

    use super::*;

    fn payer() -> Payer {
        Payer::new("a", "gone")
    }

    fn run(id: &str) -> RunId {
        RunId::new(id).unwrap()
    }

    async fn open(ledger: &dyn Ledger, id: &str, tokens: u64, within: Option<&str>) {
        let command = Reserve {
            run: Some(run(id)),
            budget: Some(Budget::new([(Meter::Tokens, tokens)]).unwrap()),
            within: within.map(run),
            ..payer().reserve(0)
        };
        ledger.reserve(command).await.unwrap();
    }

    /// Nobody else may: the key is revoked, and its secrets with it.
    #[tokio::test]
    async fn an_operator_ends_the_run_of_a_key_that_is_gone_and_all_inside_it() {
        let journal = MemoryJournal::new();
        let host = HostedPartition::start(&one_partition("test"), Partition(0), journal, None);
        let ledger = host.handle();
        for change in payer().changes(balance("all", Scope::Account, 100)) {
            ledger.admin(payer().admin(change)).await.unwrap();
        }
        open(ledger, "outer", 60, None).await;
        open(ledger, "inner", 20, Some("outer")).await;
        open(ledger, "other", 10, None).await;
        let key = payer().key;
        let revoke = Change::RevokeKey { key, reason: None };
        ledger.admin(payer().admin(revoke)).await.unwrap();

        let ending = Ending {
            account: payer().account,
            run: run("outer"),
            by: "test".to_owned(),
        };
        let standing = ending.stands(ledger).await.unwrap();
        let text = told(&ending.run, &standing);
        assert!(
            text.contains("key gone") && text.contains("1 runs inside"),
            "{text}"
        );
        let ended = ending.end_whole(ledger, standing, now_ms()).await;
        assert_eq!(ended.unwrap(), 1);
        let held = async || {
            let query = Read {
                account: payer().account,
                key: None,
                run: None,
                reservation: None,
            };
            ledger.read(query).await.unwrap().caps[0].held
        };
        assert_eq!(held().await, 10, "the other one stays");
        let again = ending.stands(ledger).await;
        assert!(matches!(again, Err(LedgerError::NoRun { .. })), "{again:?}");
        host.stop().await;
    }
}
