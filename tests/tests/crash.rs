//! kill -9 of everything under load: what was acknowledged is there, nothing ends twice, and what
//! was left open ends by the stated policy.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use seatbelt_tests::{Answer, Foreign, Key, Running, Stack, Stopped, until, until_within};
use serde_json::Value;

const CLIENTS: usize = 16;
/// Answers seen before the crash.
const ANSWERS: usize = 60;
/// A hold outlives its request's time by half a minute, so that a late settle still finds it.
const HOLD_LIFE_MAX: Duration = Duration::from_secs(60);

#[tokio::test]
async fn after_a_crash_under_load_nothing_acknowledged_is_missing() {
    let foreign = Foreign::start().await;
    let stack = Stack::new()
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1_000_000_000))
        .gateway("request_timeout_ms = 1000")
        .gateway("budget_wait_ms = 100")
        .ledger("expiry_grace_ms = 0")
        .start()
        .await;
    let (acknowledged, stopped) = crash_under_load(stack, &foreign).await;
    assert!(acknowledged.len() >= ANSWERS);
    let stack = stopped.start().await;
    for answer in &acknowledged {
        assert!(answer.is_ok(), "{answer:?}");
    }
    all_ended(&stack).await;
    let events = stack.home().events().await;
    let ends = ends_by_reservation(&events);
    let reserved = events.iter().filter(|event| event["kind"] == "reserved");
    for event in reserved {
        let reservation = event["data"]["reservation"].as_str().unwrap();
        assert!(ends.contains_key(reservation), "{reservation} never ended");
    }
    for answer in &acknowledged {
        let reservation = answer.header("x-seatbelt-reservation").unwrap();
        assert!(
            ends.contains_key(reservation),
            "{reservation} was acknowledged and is not there"
        );
    }
    let expired = events.iter().filter(|event| event["kind"] == "expired");
    for event in expired {
        assert_eq!(event["data"]["policy"], "charge_hold", "{event}");
    }
    let orphans = ends.values().filter(|end| *end == "expired").count();
    assert!(orphans > 0, "nothing was left open by the crash: {ends:?}");
    foreign.let_go();
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    stack.home().verify().await;
}

/// Sends without pause until enough was answered, holds what comes then, and kills everything.
async fn crash_under_load(stack: Running, foreign: &Foreign) -> (Vec<Answer>, Stopped) {
    let mut acknowledged = Vec::new();
    {
        let mut running: FuturesUnordered<_> =
            (0..CLIENTS).map(|_| stack.try_chat("sk-cap", 20)).collect();
        while acknowledged.len() < ANSWERS {
            let answer = running.next().await.unwrap().unwrap();
            acknowledged.push(answer);
            running.push(stack.try_chat("sk-cap", 20));
        }
        foreign.hold();
        let held = async {
            until("some are held upstream", || async {
                (foreign.hits() > foreign.answered()).then_some(())
            })
            .await;
        };
        tokio::pin!(held);
        loop {
            tokio::select! {
                () = &mut held => break,
                Some(answer) = running.next() => acknowledged.extend(answer),
            }
        }
    }
    (acknowledged, stack.kill_all().await)
}

/// Waits until nothing is held any more: what the dead process held ends by its deadline.
async fn all_ended(stack: &Running) {
    until_within(HOLD_LIFE_MAX, "every hold has ended", || async {
        let answer = stack.get("/v1/key", "sk-cap").await;
        (answer.is_ok() && answer.json()["caps"][0]["held"] == 0).then_some(())
    })
    .await;
}

/// How each reservation ended; fails the test where one ended twice.
fn ends_by_reservation(events: &[Value]) -> BTreeMap<String, String> {
    let mut ends = BTreeMap::new();
    for event in events {
        let kind = event["kind"].as_str().unwrap();
        let late = event["data"]["late"] == true;
        if matches!(kind, "settled" | "released" | "expired") && !late {
            let id = event["data"]["reservation"].as_str().unwrap().to_owned();
            let before = ends.insert(id, kind.to_owned());
            assert_eq!(before, None, "ended twice: {event}");
        }
    }
    ends
}
