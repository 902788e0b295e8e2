//! What every row stands on: keys, a provider, a crowd, and the judgement when all is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    Room, Went,
    ask::DEAD_MODEL,
    crowd::{Crowd, Menu},
    oracle::{self, Journal, Span, Terms, Witness, Wrong},
    provider::Provider,
};
use crate::{Key, Running, Stack, Stopped, until_within, wait::PATIENCE};

/// Keys whose caps are never met.
pub(super) const WIDE: [usize; 3] = [0, 1, 2];
/// A key with a cap never met, and many soft ones that are: each crossing is an event.
pub(super) const STAIRS: usize = 3;
/// A key that may have one request at a time: the others wait.
pub(super) const NARROW: usize = 4;
/// A key that may spend so much within half a minute.
pub(super) const ROLLING: usize = 5;
/// A key that may spend so much a day, which is soon over.
pub(super) const DAILY: usize = 6;
/// The first of the keys that are soon spent.
pub(super) const TIGHT: usize = 7;
/// How many of these there are.
pub(super) const TIGHT_KEYS: usize = 40;

/// More than is ever spent.
const WIDE_LIMIT: u64 = 1_000_000_000_000;
/// Some thirty requests.
const TIGHT_LIMIT: u64 = 3000;
/// Length of the rolling window: several pass within a row.
const ROLLING_SECONDS: u64 = 30;
/// A hold outlives its request's time by half a minute, so that a late settle still finds it.
const HOLD_LIFE_MAX: Duration = Duration::from_secs(90);
/// An address at which nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/v1";

fn wide(name: &str) -> (Key, Terms) {
    let terms = Terms {
        id: format!("key-{name}"),
        limit: WIDE_LIMIT,
        span: Span::Balance,
        at_once: None,
        short: false,
    };
    (Key::new(name), terms)
}

fn caps(more: &str) -> String {
    format!("caps = [{{ meter = \"tokens\", limit = {WIDE_LIMIT} }}, {more}]")
}

fn keys() -> Vec<(Key, Terms)> {
    let mut keys = Vec::new();
    for name in ["wide-a", "wide-b", "wide-c"] {
        let (key, terms) = wide(name);
        let key = key.account(if name == "wide-c" {
            "acct-c"
        } else {
            "acct-ab"
        });
        keys.push((key.hard_cap(WIDE_LIMIT), terms));
    }
    let (stairs, terms) = wide("stairs");
    let soft = [2_u64, 5, 15, 40].map(|seconds| {
        format!(
            "{{ meter = \"requests\", limit = {}, hard = false, thresholds = [10, 30, 60, 100], \
             window = {{ kind = \"rolling\", seconds = {seconds} }} }}",
            seconds * 10
        )
    });
    keys.push((stairs.line(&caps(&soft.join(", "))), terms));
    let (narrow, mut terms) = wide("narrow");
    terms.at_once = Some(1);
    terms.short = true;
    let one = "{ meter = \"concurrency\", limit = 1 }";
    keys.push((narrow.line(&caps(one)), terms));
    let day = "window = { kind = \"calendar\", period = \"day\" }";
    for (name, span) in [
        ("rolling", Span::Rolling(ROLLING_SECONDS * 1000)),
        ("daily", Span::Day),
    ] {
        let (key, mut terms) = wide(name);
        (terms.limit, terms.span, terms.short) = (TIGHT_LIMIT, span, true);
        let key = key.hard_cap(TIGHT_LIMIT);
        let key = match span {
            Span::Day => key.line(day),
            _ => key.rolling(ROLLING_SECONDS),
        };
        keys.push((key, terms));
    }
    for number in 0..TIGHT_KEYS {
        let (key, mut terms) = wide(&format!("tight-{number}"));
        (terms.limit, terms.short) = (TIGHT_LIMIT, true);
        keys.push((key.hard_cap(TIGHT_LIMIT), terms));
    }
    keys
}

fn secret(terms: &Terms) -> String {
    format!("sk-{}", terms.id.trim_start_matches("key-"))
}

/// Sends a signal to a process of ours.
pub(super) fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap());
    kill(process, signal).unwrap();
}

/// A provider and a crowd, and the keys with which it pays.
pub(super) struct Scene {
    room: Room,
    terms: Vec<Terms>,
    provider: Provider,
    pub(super) crowd: Crowd,
}

impl Scene {
    /// Sets it, with no door open yet.
    pub(super) async fn set(room: Room, clients: u64, menu: Menu) -> Self {
        let terms: Vec<_> = keys().into_iter().map(|(_, terms)| terms).collect();
        let secrets = terms.iter().map(secret).collect();
        Self {
            room,
            provider: Provider::start().await,
            crowd: Crowd::start(clients, room.seed, secrets, menu),
            terms,
        }
    }

    /// The stack that the crowd pays at, not started yet. Holds end half a minute after their request.
    pub(super) fn stack(&self) -> Stack {
        let stack = Stack::new()
            .quiet()
            .upstream_at(&self.provider.base_url())
            .another_upstream("dead", DEAD_MODEL, NOBODY)
            .gateway("request_timeout_ms = 1500")
            .gateway("budget_wait_ms = 200")
            .ledger("expiry_grace_ms = 0");
        let keys = keys().into_iter().map(|(key, _)| key);
        keys.fold(stack, Stack::key)
    }

    /// Ends the crowd, waits until nothing is held, and judges.
    pub(super) async fn judge(self, gateway: &Running, rounds: u32, exact: bool) -> Went {
        let told = self.crowd.finish().await;
        let mut witness = Witness {
            sent: told.sent,
            served: HashMap::new(),
            exact,
        };
        let begun = Instant::now();
        let (journal, mut counts) = loop {
            let journal = all_ended(gateway.home(), &self.terms, self.room).await;
            // a stream whose client has left is read on: what the provider says of it may come until its hold ends
            witness.served = self.provider.served();
            let counts = oracle::judge(&journal, witness.clone());
            // a report that was kept through an outage may come after its hold has expired
            let may_come = self.room.plant.is_none() && begun.elapsed() < PATIENCE;
            if counts.kept() || !may_come {
                break (journal, counts);
            }
        };
        for (key, terms) in self.terms.iter().enumerate() {
            if self.room.plant.is_some() {
                // the journal as it was read is not the one that is projected
                break;
            }
            if !terms.span.stands_still() {
                // what is shown of it grows less while it is looked at
                continue;
            }
            let (spent, _) = journal.standing(key);
            let shown = shown(gateway, &secret(terms), journal.standing(key)).await;
            let what = || format!("{}: {spent} spent, /v1/key shows {shown}", terms.id);
            counts.wrong(Wrong::Lost, u64::from(shown < spent), what);
            counts.wrong(Wrong::Doubled, u64::from(shown > spent), what);
        }
        gateway.home().verify().await;
        Went::Through {
            rounds,
            counts,
            pause: told.pause,
        }
    }
}

/// Reads the journal until nothing in it is open any more.
async fn all_ended(home: &Stopped, terms: &[Terms], room: Room) -> Journal {
    until_within(HOLD_LIFE_MAX, "every hold has ended", || async {
        let journal = read(home, terms, room).await;
        if journal.open() == 0 || room.plant.is_some() {
            return Some(journal);
        }
        // reading is dear, and a hold lives for half a minute
        tokio::time::sleep(Duration::from_secs(1)).await;
        None
    })
    .await
}

/// Every event as `seatbelt audit replay --json` prints it, one after the other.
async fn read(home: &Stopped, terms: &[Terms], room: Room) -> Journal {
    let mut journal = Journal::new(terms, room.plant);
    let mut child = home.command(&["audit", "replay", "--json"]);
    child.stdout(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let event: Value = serde_json::from_str(&line).unwrap();
        journal.accept(&event);
    }
    let status = child.wait().await.unwrap();
    assert!(status.success(), "audit replay: {status}");
    journal
}

/// What `/v1/key` shows as spent, once it shows nothing held and what the journal says, or at last.
async fn shown(gateway: &Running, secret: &str, (spent, held): (u64, u64)) -> u64 {
    let mut last = 0;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let answer = gateway.get("/v1/key", secret).await;
        if answer.is_ok() {
            let caps = answer.json()["caps"].clone();
            let mut caps = caps.as_array().into_iter().flatten();
            // an account whose snapshot is being made again may have none for a moment
            if let Some(cap) = caps.find(|cap| cap["meter"] == "tokens") {
                last = cap["spent"].as_u64().unwrap();
                if last == spent && cap["held"] == held {
                    return last;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // a hold that is shown and is not there is one more than there is
    last + u64::from(last == spent)
}
