//! `audit show`: how one account stood at some position or time, loaded from the journal alone.

use std::{io::Write, process::ExitCode, str::FromStr};

use seatbelt_ledger::account::{Account, Run};
use seatbelt_schemas::{
    cap::CapStanding,
    event::Event,
    ids::{AccountId, RunId},
    position::{Partition, Position},
    time::{parse_rfc3339_ms, rfc3339_ms},
};
use serde_json::{Value, json};

use super::{
    AuditError,
    account::{Stood, load},
    source::Source,
};

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
    pub(super) fn includes(self, event: &Event) -> bool {
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
    let Stood {
        account: state,
        reached,
    } = load(source, &account, at).await?;
    let at_ms = match at {
        Some(At::Time(at_ms)) => at_ms,
        _ => reached.at_ms,
    };
    let shown = Shown {
        account: &account,
        partition,
        position: reached.position,
        at_ms,
        state: &state,
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
        self.state.standings(None, None, self.at_ms).collect()
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
            "runs": self.runs().map(|run| run.json()).collect::<Vec<_>>(),
        })
    }

    /// Open runs with budgets of their own: what else would have to be told apart by the ids of caps.
    fn runs(&self) -> impl Iterator<Item = ShownRun<'_>> {
        let open = self.state.open();
        self.state.runs().iter().map(|(id, run)| ShownRun {
            id,
            run,
            deadline_ms: open
                .get(&run.reservation)
                .map(|open| open.asked.deadline_ms),
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
        for run in self.runs() {
            text += &run.text();
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

/// An open run.
struct ShownRun<'a> {
    id: &'a RunId,
    run: &'a Run,
    deadline_ms: Option<u64>,
}

impl ShownRun<'_> {
    fn json(&self) -> Value {
        let Run {
            reservation,
            payer,
            budget,
            within,
        } = self.run;
        json!({
            "run": self.id, "key": payer.key, "reservation": reservation, "budget": budget, "within": within,
            "deadline_ms": self.deadline_ms,
        })
    }

    fn text(&self) -> String {
        let Run {
            reservation,
            payer,
            budget,
            within,
        } = self.run;
        let amounts = budget
            .iter()
            .map(|(meter, amount)| format!("{amount} {meter}"));
        let amounts = amounts.collect::<Vec<_>>().join(", ");
        let within = within.first().map(|outer| format!(" within run {outer}"));
        let until = self
            .deadline_ms
            .map(|at_ms| format!(" until {}", rfc3339_ms(at_ms)));
        format!(
            "run {}{} of key {}: {amounts} set aside as {reservation}{}\n",
            self.id,
            within.unwrap_or_default(),
            payer.key,
            until.unwrap_or_default()
        )
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
    use seatbelt_schemas::{
        budget::Budget,
        event::{AccountOpened, Asked, EventBody, OnShort, OnUnknown, Reserved},
        ids::{Actor, CommandId, KeyId, ReservationId},
        meter::Meter,
        scope::Scopes,
    };

    use super::*;

    #[test]
    fn an_open_run_is_named_with_its_key_and_budget() {
        let account = AccountId::new("a").unwrap();
        let budget = Budget::new([(Meter::Tokens, 500)]).unwrap();
        let reserved = Reserved {
            uncovered: false,
            reservation: ReservationId::from_parts(7, 7),
            scopes: Scopes {
                key: KeyId::new("k").unwrap(),
                team: None,
                model: None,
                run: Some(RunId::new("nightly").unwrap()),
                end_user: None,
            }
            .into(),
            asked: Asked {
                input_tokens: 0,
                output_tokens: 0,
                tool_calls: 0,
                deadline_ms: 60_000,
                on_short: OnShort::Refuse,
                on_unknown: OnUnknown::ChargeHold,
            },
            hold: budget.hold(),
            price: None,
            multiplier_ppm: None,
            budget: Some(budget),
            within: None,
            attempt: None,
            caps: Vec::new(),
        };
        let mut state = Account::default();
        let bodies: [EventBody; 2] = [AccountOpened::default().into(), reserved.into()];
        for (position, body) in (1..).zip(bodies) {
            state.apply(&Event {
                position: Position(position),
                at_ms: 7,
                account: account.clone(),
                cause: CommandId::from_parts(7, 7),
                actor: Actor::operator("test"),
                body,
            });
        }
        let shown = Shown {
            account: &account,
            partition: Partition(0),
            position: Position(2),
            at_ms: 7,
            state: &state,
        };
        let text = shown.text();
        assert!(
            text.contains("run nightly of key k: 500 tokens set aside"),
            "{text}"
        );
        assert!(text.contains("until 1970-01-01T00:01:00"), "{text}");
        let json = shown.json();
        assert_eq!(json["runs"][0]["run"], "nightly");
        assert_eq!(json["runs"][0]["deadline_ms"], 60_000);
    }

    #[test]
    fn a_moment_is_a_position_or_a_time() {
        assert_eq!("42".parse(), Ok(At::Position(Position(42))));
        assert_eq!("2024-02-29".parse(), Ok(At::Time(1_709_164_800_000)));
        assert!("yesterday".parse::<At>().unwrap_err().contains("position"));
    }
}
