//! `audit show`: how one account stood at some position or time, folded from the journal alone.

use std::{io::Write, process::ExitCode, str::FromStr};

use futures::TryStreamExt;
use seatbelt_ledger::{account::Account, partition::PartitionState};
use seatbelt_schemas::{
    cap::CapStanding,
    commit::{ChainHash, Commit},
    event::Event,
    ids::AccountId,
    position::{Partition, Position},
    time::{parse_rfc3339_ms, rfc3339_ms},
};
use serde_json::{Value, json};

use super::{AuditError, source::Source};

/// A moment of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// After this event of the account's partition.
    Position(Position),
    /// After everything up to this time, unix ms.
    Time(u64),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(position) = text.parse() {
            return Ok(Self::Position(Position(position)));
        }
        let time = parse_rfc3339_ms(text);
        time.map(Self::Time).ok_or_else(|| {
            "use a position such as 42, or a time such as 2026-11-23T09:30:00Z".to_owned()
        })
    }
}

impl At {
    fn includes(self, event: &Event) -> bool {
        match self {
            Self::Position(position) => event.position <= position,
            Self::Time(at_ms) => event.at_ms <= at_ms,
        }
    }
}

pub(super) async fn show(
    source: &Source,
    account: AccountId,
    at: Option<At>,
    as_json: bool,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let partition = source.partitions().await?.of(&account);
    let mut state = PartitionState::new(partition);
    let mut commits = source.commits_around(&account).await?;
    'fold: while let Some(item) = commits.try_next().await? {
        let at_sequence = item.stored.sequence;
        let commit = Commit::read(&item.stored.payload).map_err(|source| AuditError::Commit {
            partition,
            at: at_sequence,
            source,
        })?;
        for stored in &commit.events {
            if at.is_some_and(|at| !at.includes(&stored.event)) {
                break 'fold;
            }
            state.apply(&stored.event);
        }
        state.committed(commit.epoch, ChainHash::of(&item.stored.payload));
    }
    let Some(found) = state.account(&account) else {
        return Err(AuditError::NoAccount { account });
    };
    let at_ms = match at {
        Some(At::Time(at_ms)) => at_ms,
        _ => state.at_ms(),
    };
    let shown = Shown {
        account: &account,
        partition,
        position: state.position(),
        at_ms,
        state: found,
    };
    let text = match as_json {
        true => format!("{}\n", shown.json()),
        false => shown.text(),
    };
    out.write_all(text.as_bytes()).map_err(AuditError::Output)?;
    Ok(ExitCode::SUCCESS)
}

struct Shown<'a> {
    account: &'a AccountId,
    partition: Partition,
    position: Position,
    at_ms: u64,
    state: &'a Account,
}

impl Shown<'_> {
    fn caps(&self) -> Vec<CapStanding> {
        self.state.standings(None, self.at_ms)
    }

    fn json(&self) -> Value {
        let caps: Vec<Value> = self.caps().iter().map(cap_json).collect();
        let keys: Vec<Value> = self
            .state
            .keys()
            .iter()
            .map(|key| json!({"key": key.key, "team": key.team, "revoked": key.revoked}))
            .collect();
        let open: Vec<Value> = self
            .state
            .open()
            .iter()
            .map(|(id, open)| {
                json!({
                    "reservation": id, "key": open.scopes.key, "model": open.scopes.model,
                    "hold": open.hold, "at_ms": open.at_ms, "deadline_ms": open.asked.deadline_ms,
                })
            })
            .collect();
        json!({
            "account": self.account, "partition": self.partition.0, "position": self.position,
            "at_ms": self.at_ms, "keys": keys, "caps": caps, "open": open,
        })
    }

    fn text(&self) -> String {
        let (account, partition, position) = (self.account, self.partition, self.position);
        let time = rfc3339_ms(self.at_ms);
        let mut text =
            format!("account {account}, partition {partition}, position {position}, {time}\n");
        for key in self.state.keys() {
            let revoked = if key.revoked { ", revoked" } else { "" };
            text += &format!("key {}{revoked}\n", key.key);
        }
        for cap in self.caps() {
            text += &format!(
                "cap {} ({}, {}): limit {}, spent {}, held {}, available {}\n",
                cap.cap,
                cap.scope,
                cap.meter,
                cap.limit,
                cap.spent,
                cap.held,
                cap.available()
            );
        }
        for (id, open) in self.state.open() {
            let until = rfc3339_ms(open.asked.deadline_ms);
            text += &format!(
                "open {id}: {} tokens held until {until}\n",
                open.hold.tokens
            );
        }
        text
    }
}

fn cap_json(cap: &CapStanding) -> Value {
    json!({
        "id": cap.cap, "scope": cap.scope, "meter": cap.meter, "window": cap.window,
        "limit": cap.limit, "spent": cap.spent, "held": cap.held, "available": cap.available(),
        "resets_at_ms": cap.resets_at_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_position_or_a_time() {
        assert_eq!("42".parse(), Ok(At::Position(Position(42))));
        assert_eq!("2024-02-29".parse(), Ok(At::Time(1_709_164_800_000)));
        assert!("yesterday".parse::<At>().unwrap_err().contains("position"));
    }
}
