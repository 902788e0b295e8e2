//! kill -9 of everything under load: what was acknowledged is there, nothing ends twice, and what
//! was left open ends by the stated policy.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream::FuturesUnordered};
use seatbelt_tests::{Answer, Foreign, Key, Running, Stack, Stopped, until};
use serde_json::Value;

const CLIENTS: usize = 16;
/// Answers seen before the crash.
const ANSWERS: usize = 60;

#[tokio::test]
async fn after_a_crash_under_load_nothing_acknowledged_is_missing() {
    let foreign = Foreign::start().await;
    let stack = Stack::new()
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1_000_000_000))
        .gateway("request_timeout_ms = 1000")
        .gateway("hold_grace_ms = 1000")
        .start()
        .await;
    let (acknowledged, stopped) = crash_under_load(stack, &foreign).await;
    assert!(acknowledged.len() >= ANSWERS);
    let stack = stopped.start().await;
    for answer in &acknowledged {
        assert!(answer.is_ok(), "{answer:?}");
    }
    let events = all_ended(stack.home()).await;
    let ends = ends_by_reservation(&events);
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

/// Waits until no reservation is open any more: those of the dead process end by their deadline.
async fn all_ended(home: &Stopped) -> Vec<Value> {
    until("every reservation has ended", || async {
        let events = home.events().await;
        let reserved = events.iter().filter(|event| event["kind"] == "reserved");
        let ends = ends_by_reservation(&events);
        let open = reserved.filter(|event| {
            let id = event["data"]["reservation"].as_str().unwrap();
            !ends.contains_key(id)
        });
        (open.count() == 0).then_some(events)
    })
    .await
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
